"""Does what teaches a model something in one language move the same answer in another?

One question is asked in several languages; the strongest proponents of each version are scored against all versions.
Shapes: C concepts, G languages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence.plots import axes_or_new, draw_cells
from hesse.influence.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LanguageStudy", "study_languages"]


@dataclass(frozen=True, slots=True)
class LanguageStudy:
    """Mean influence of the strongest rows of one version of a question on another version."""

    concepts: list[str]
    languages: list[str]
    influence: np.ndarray  # (C, G, G) nats a row: of the first language's top rows, on the second's version
    k: int

    def transfer(self) -> np.ndarray:
        """Σ_c influence[c, a, b] / Σ_c influence[c, a, a]: what a's rows do for b, as a share of what they do for a.

        Returns
        -------
        ndarray, shape (G, G)
            1 on the diagonal; NaN in the row of a language whose versions have no proponent.
        """
        totals = self.influence.sum(0)
        own = np.diagonal(totals)[:, None]
        return np.divide(totals, own, out=np.full_like(totals, np.nan), where=own > 0)

    @property
    def mean_transfer(self) -> float | None:
        """Mean of `transfer` off the diagonal, the number to compare across model sizes; None if nothing is known."""
        others = self.transfer()[~np.eye(len(self.languages), dtype=bool)]
        return None if np.isnan(others).all() else float(np.nanmean(others))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python, None for NaN.

        Returns
        -------
        dict
            JSON values.
        """
        transfer = [[None if np.isnan(value) else float(value) for value in row] for row in self.transfer()]
        return {
            "study": "crosslingual",
            "units": "nats",
            "k": self.k,
            "languages": self.languages,
            "concepts": self.concepts,
            "transfer": transfer,
            "mean_transfer": self.mean_transfer,
            "influence": self.influence.tolist(),
        }

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the matrix of `transfer` with its numbers.

        Parameters
        ----------
        ax : Axes, optional
            Default: new ones.

        Returns
        -------
        Axes
            Whose rows down, on whose version across.
        """
        axes = axes_or_new(ax)
        transfer = self.transfer()
        draw_cells(axes, np.nan_to_num(transfer), label="share of the influence on its own version")
        for i, row in enumerate(transfer):
            for j, value in enumerate(row):
                axes.text(j, i, "" if np.isnan(value) else f"{value:.2f}", ha="center", va="center")
        places = range(len(self.languages))
        axes.set(xticks=places, xticklabels=self.languages, yticks=places, yticklabels=self.languages)
        axes.set(xlabel="on the version in", ylabel=f"strongest {self.k} rows of")
        return axes


def study_languages(
    scores: Scores, concepts: Mapping[str, str], languages: Mapping[str, str], *, k: int = 10
) -> LanguageStudy:
    """Average score, against the version of a concept in language b, of the k strongest rows of its version in a.

    Parameters
    ----------
    scores : Scores
        Of a run in which every concept was asked in every language.
    concepts, languages : mapping of str to str
        Of every query id, what it asks and in which language; queries that are in neither are left out.
    k : int, default 10
        Rows a version.

    Returns
    -------
    LanguageStudy
        See its ``transfer``. Run it on checkpoints of several sizes to see whether large models share more.

    Raises
    ------
    ArgumentError
        If there are fewer than two languages, a concept lacks one or has it twice, or ``k < 1``.

    References
    ----------
    R. Grosse, J. Bae, C. Anil et al. (2023), arXiv 2308.03296.
    """
    place: dict[tuple[str, str], str] = {}
    for query in scores.query_ids:
        if query in concepts and query in languages:
            key = concepts[query], languages[query]
            if key in place:
                raise ArgumentError(f"languages: {key[0]!r} is asked twice in {key[1]!r}: {place[key]!r} and {query!r}")
            place[key] = query
    asked = list(dict.fromkeys(concept for concept, _language in place))
    spoken = list(dict.fromkeys(language for _concept, language in place))
    if len(spoken) < 2:
        raise ArgumentError(f"languages: expected at least two among the queries, got {len(spoken)}")
    if missing := [(c, g) for c in asked for g in spoken if (c, g) not in place]:
        raise ArgumentError(f"languages: {missing[0][0]!r} is not asked in {missing[0][1]!r}")
    found = np.zeros((len(asked), len(spoken), len(spoken)))
    for c, concept in enumerate(asked):
        values = [scores.ranked_by(place[concept, language]) for language in spoken]
        for a, language in enumerate(spoken):
            rows = [scores.row_places[item.id] for item in scores.topk(place[concept, language], k)]
            if rows:
                found[c, a] = [float(np.mean(own[rows], dtype=np.float64)) for own in values]
    return LanguageStudy(asked, spoken, found, k)
