"""Do larger models, or later checkpoints, learn the same thing from other texts? The same questions on several runs.

Two numbers a checkpoint: how many of the strongest rows it shares with another, and how lexical they are: where the
rows share few words with the question, the model took something more abstract from them.   Shapes: S runs, Q queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence.lexical import bm25_scores
from hesse.influence.opened import Run
from hesse.influence.plots import BLUE, ORANGE, axes_or_new
from hesse.influence.studies.texts import asked_of, row_texts, texts_of, word_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ScaleStudy", "study_scale"]


@dataclass(frozen=True, slots=True)
class ScaleStudy:
    """The same queries and rows on several runs, in the order given: smallest first, if it is sizes that differ."""

    names: list[str]
    query_ids: list[str]
    jaccard: np.ndarray  # (Q, S, S): |top k of one ∩ of the other| / |∪|; 1 on the diagonal
    lexical: np.ndarray  # (Q, S): 0 as random rows, 1 as the rows that BM25 itself would choose; NaN where it cannot
    k: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python, None for NaN.

        Returns
        -------
        dict
            JSON values.
        """
        return {
            "study": "scale",
            "k": self.k,
            "runs": self.names,
            "queries": self.query_ids,
            "jaccard": self.jaccard.mean(0).tolist(),
            "lexical": [_mean(column) for column in self.lexical.T],
            "jaccard_by_query": self.jaccard.tolist(),
            "lexical_by_query": [[None if np.isnan(v) else float(v) for v in row] for row in self.lexical],
        }

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw how lexical the strongest rows are, run by run, and how many they share with the last run.

        Parameters
        ----------
        ax : Axes, optional
            Default: new ones.

        Returns
        -------
        Axes
            Means over queries; every query a dot.
        """
        axes = axes_or_new(ax)
        places = np.arange(len(self.names))
        axes.plot(places, self.lexical.T, ".", color=ORANGE, alpha=0.3, markeredgewidth=0)
        lexical = [_mean(column) for column in self.lexical.T]
        axes.plot(places, [np.nan if v is None else v for v in lexical], "o-", color=ORANGE, label="lexical overlap")
        axes.plot(places, self.jaccard[:, :, -1].mean(0), "s--", color=BLUE, label=f"shared with {self.names[-1]}")
        axes.set(xticks=places, xticklabels=self.names, ylabel=f"of the strongest {self.k} rows")
        axes.legend(frameon=False)
        return axes


def study_scale(runs: Mapping[str, Run], *, k: int = 50) -> ScaleStudy:
    """Compare the k strongest proponents of the same queries across runs.

    The lexical index of a run is (B_top - B_all) / (B_best - B_all): mean BM25 of its strongest rows with the question,
    on a scale where 0 is the mean over all rows and 1 what the k best rows by BM25 reach. It counts words, lower case,
    not tokens, so that models with different tokenizers compare.

    Parameters
    ----------
    runs : mapping of str to Run
        At least two, by the name they get; scored on the same rows and queries, texts kept.
    k : int, default 50
        Rows a query.

    Returns
    -------
    ScaleStudy
        In the order of ``runs``.

    Raises
    ------
    ArgumentError
        If there are fewer than two runs, their rows or queries differ, ``k < 1``, or a run keeps no texts.

    Notes
    -----
    BM25 takes O(words) time and 4·Q·R bytes.

    References
    ----------
    R. Grosse, J. Bae, C. Anil et al. (2023), arXiv 2308.03296, for the question; the index is ours.
    """
    if len(runs) < 2:
        raise ArgumentError(f"runs: expected at least two to compare, got {len(runs)}")
    names, opened = list(runs), list(runs.values())
    first = opened[0].scores
    for name, run in runs.items():
        if sorted(run.scores.query_ids) != sorted(first.query_ids):
            raise ArgumentError(f"runs: {name!r} was asked other queries than {names[0]!r}")
        if run.scores.row_places.keys() != first.row_places.keys():
            raise ArgumentError(f"runs: {name!r} scored other rows than {names[0]!r}")
    questions = [asked.prompt + asked.completion for asked in asked_of(opened[0], "study_scale")]
    texts = row_texts(texts_of(opened[0], "study_scale"), first.train_ids, "study_scale")
    asked, rows = word_numbers(questions, texts)
    values = bm25_scores(asked, rows)
    jaccard = np.ones((len(questions), len(runs), len(runs)))
    lexical = np.full((len(questions), len(runs)), np.nan)
    for q, query in enumerate(first.query_ids):
        top = [{first.row_places[item.id] for item in run.scores.topk(query, k)} for run in opened]
        everywhere = float(values[q].mean())
        for s, chosen in enumerate(top):
            best = float(np.sort(values[q])[::-1][: len(chosen)].mean()) if chosen else everywhere
            if best > everywhere:
                lexical[q, s] = (float(values[q][sorted(chosen)].mean()) - everywhere) / (best - everywhere)
            for other, theirs in enumerate(top):
                jaccard[q, s, other] = len(chosen & theirs) / max(len(chosen | theirs), 1)
    return ScaleStudy(names, first.query_ids, jaccard, lexical, k)


def _mean(column: np.ndarray) -> float | None:
    return None if np.isnan(column).all() else float(np.nanmean(column))
