"""Choose training rows by their scores: leave out what works against some queries, or keep what works for them.

Every choice carries its reason, a row's number and rank.   Shapes: R rows.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence.scores import Scores

__all__ = ["Selection", "mean_scores", "select_rows"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows stay, and why; ``rank`` counts from the most harmful (drop) or the most helpful (keep) row."""

    ids: list[str]
    scores: np.ndarray  # (R,) nats
    kept: np.ndarray  # (R,) bool
    rank: np.ndarray  # (R,) int, from 1
    rule: str

    def reason(self, row: int) -> str:
        """Say in words why a row stays or goes.

        Parameters
        ----------
        row : int
            Number of the row.

        Returns
        -------
        str
            One line.
        """
        verdict = "kept" if self.kept[row] else "dropped"
        return f"{verdict} by {self.rule}: {self.scores[row]:+.4g} nats, place {int(self.rank[row])} of {len(self.ids)}"


def mean_scores(runs: Items[Scores], *, queries: Items[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Average the scores of rows over queries, and over runs: checkpoints or seeds of one model on the same data.

    Parameters
    ----------
    runs : sequence of Scores
        At least one; of the same queries and rows, in any order of the rows.
    queries : sequence of str, optional
        Ids to average over. Default: all.

    Returns
    -------
    list of str
        Ids of the rows, in the order of the first run.
    ndarray, shape (R,)
        float64, nats a copy on an average query.

    Raises
    ------
    ArgumentError
        If there is no run, their rows differ, or a query is unknown in one of them.
    """
    if not runs:
        raise ArgumentError("runs: expected at least one")
    ids = runs[0].train_ids
    total = np.zeros(len(ids))
    for scores in runs:
        wanted = list(scores.query_ids if queries is None else queries)
        if queries is None and wanted != runs[0].query_ids:
            raise ArgumentError(f"ensemble: {scores.run.path} was asked other queries than {runs[0].run.path}")
        places = scores.row_places
        if places.keys() != runs[0].row_places.keys():
            raise ArgumentError(f"ensemble: {scores.run.path} scored other rows than {runs[0].run.path}")
        mean = np.mean([scores.ranked_by(query).astype(np.float64) for query in wanted], axis=0)
        total += mean[[places[name] for name in ids]]
    return ids, total / len(runs)


def select_rows(
    ids: Items[str], scores: np.ndarray, *, rule: Literal["drop-opponents", "keep-top"], percent: float
) -> Selection:
    """Choose rows by their place in the ranking.

    Parameters
    ----------
    ids : sequence of str
        R of them.
    scores : ndarray, shape (R,)
        Nats, positive where a row helps.
    rule : {"drop-opponents", "keep-top"}
        Leave out the most harmful rows, only those with a negative score; or keep the most helpful ones, whatever their
        sign.
    percent : float
        Of all rows, above 0 and below 100; at least one row is dropped or kept where the rule allows it.

    Returns
    -------
    Selection
        With a reason for every row.

    Raises
    ------
    ArgumentError
        If the percentage is out of range, the numbers differ, or a score is not finite.
    """
    if not 0 < percent < 100:
        raise ArgumentError(f"{rule}: expected a percentage above 0 and below 100, got {percent}")
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(ids),):
        raise ArgumentError(f"scores: expected {len(ids)} numbers, one a row, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ArgumentError("scores: they hold NaN or Inf")
    count = max(1, round(len(ids) * percent / 100))
    order = np.argsort(values if rule == "drop-opponents" else -values, kind="stable")
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(1, len(ids) + 1)
    kept = rank <= count if rule == "keep-top" else (rank > count) | (values >= 0)
    return Selection(list(ids), values, kept, rank, f"{rule} {percent:g}")
