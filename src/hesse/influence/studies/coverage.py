"""What would a lexical filter have missed? The share of the most influential rows that it keeps, against its size.

Meant for scores of all rows, or of a uniform sample: of what a filter has already chosen, it can only be praised.
Shapes: Q queries, R rows, M sizes.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence.lexical import bm25_scores, tfidf_paper
from hesse.influence.opened import Run
from hesse.influence.plots import axes_or_new
from hesse.influence.studies.texts import asked_of, row_tokens, texts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CoverageStudy", "kept_of_top", "study_coverage"]

_FILTERS = {"bm25": bm25_scores, "tfidf": tfidf_paper}


@dataclass(frozen=True, slots=True)
class CoverageStudy:
    """The share of the k most influential rows among the first m of a filter, for several m."""

    query_ids: list[str]
    sizes: np.ndarray  # (M,) rows a filter keeps, rising
    kept: dict[str, np.ndarray]  # filter -> (Q, M); NaN for a query without proponents
    num_rows: int
    k: int

    def mean(self) -> dict[str, np.ndarray]:
        """Average over the queries that have proponents.

        Returns
        -------
        dict of str to ndarray, shape (M,)
            A filter each, and "random": m / R.
        """
        known = {name: shares[~np.isnan(shares).any(1)] for name, shares in self.kept.items()}
        means = {name: shares.mean(0) if len(shares) else self.sizes * np.nan for name, shares in known.items()}
        return means | {"random": self.sizes / self.num_rows}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python, None for NaN.

        Returns
        -------
        dict
            JSON values.
        """
        mean = {name: _plain(values) for name, values in self.mean().items()}
        by_query = {
            query: {name: _plain(shares[i]) for name, shares in self.kept.items()}
            for i, query in enumerate(self.query_ids)
        }
        head = {"study": "coverage", "k": self.k, "rows": self.num_rows, "sizes": self.sizes.tolist()}
        return head | {"mean": mean, "queries": by_query}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the mean share kept against the share of all rows that a filter lets through.

        Parameters
        ----------
        ax : Axes, optional
            Default: new ones.

        Returns
        -------
        Axes
            A line a filter; dashed, a random choice.
        """
        axes = axes_or_new(ax)
        for name, shares in self.mean().items():
            style = {"linestyle": "--", "color": "0.6"} if name == "random" else {"marker": "."}
            axes.semilogx(self.sizes, shares, label=name, **style)
        axes.set(xlabel=f"rows kept by the filter, of {self.num_rows:,}", ylim=(0, 1.02))
        axes.set(ylabel=f"share of the {self.k} most influential")
        axes.legend(frameon=False)
        return axes


def study_coverage(run: Run, *, k: int = 100, sizes: Items[int] | None = None) -> CoverageStudy:
    """Measure how many of the k strongest proponents BM25 and the TF-IDF filter keep among their first m rows.

    Parameters
    ----------
    run : Run
        Scored, with texts kept. Both filters see the tokens of prompt and completion, and of whole rows.
    k : int, default 100
        Proponents a query; fewer if it has fewer.
    sizes : sequence of int, optional
        Values of m from 1 to R. Default: a dozen, from 1 % of the rows to all, evenly on a logarithmic scale.

    Returns
    -------
    CoverageStudy
        Rows that tie at the border of a filter count in part, as a random choice among them would keep them.

    Raises
    ------
    ArgumentError
        If a size is out of range, ``k < 1``, or the run keeps no texts.

    Notes
    -----
    8·Q·R bytes, and O(tokens) time.

    References
    ----------
    R. Grosse, J. Bae, C. Anil et al. (2023), arXiv 2308.03296.
    """
    scores = run.scores
    total = len(scores.train_ids)
    chosen = np.unique(np.geomspace(max(1, total // 100), total, 12).round().astype(int) if sizes is None else sizes)
    if not len(chosen) or chosen[0] < 1 or chosen[-1] > total:
        raise ArgumentError(f"sizes: expected numbers from 1 to {total}, got {chosen.tolist()}")
    asked = [question.input_ids for question in asked_of(run, "study_coverage")]
    documents = row_tokens(texts_of(run, "study_coverage"), scores.train_ids)
    tops = [[scores.row_places[item.id] for item in scores.topk(query, k)] for query in scores.query_ids]
    kept = {
        name: np.stack([kept_of_top(row, top, chosen) for row, top in zip(method(asked, documents), tops, strict=True)])
        for name, method in _FILTERS.items()
    }
    return CoverageStudy(scores.query_ids, chosen, kept, total, k)


def kept_of_top(values: np.ndarray, top: Items[int], sizes: np.ndarray) -> np.ndarray:
    """Expect the share of some rows among the first m by a filter's values, ties in random order.

    Parameters
    ----------
    values : ndarray, shape (R,)
        Of the filter, higher is kept first.
    top : sequence of int
        Numbers of the rows that matter.
    sizes : ndarray of int, shape (M,)
        Values of m, from 1 to R.

    Returns
    -------
    ndarray, shape (M,)
        Between 0 and 1; NaN if there are no rows that matter.
    """
    if not len(top):
        return np.full(len(sizes), np.nan)
    rising = np.sort(values)
    own = values[list(top)]
    above = len(values) - np.searchsorted(rising, own, side="right")
    tied = len(values) - np.searchsorted(rising, own, side="left") - above
    return np.clip((sizes[:, None] - above) / tied, 0, 1).mean(1)


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
