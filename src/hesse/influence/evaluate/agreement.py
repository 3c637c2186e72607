"""Checks that need no retraining: do two fits agree, and do flipped labels stand out?   Shapes: Q queries, N rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from hesse.errors import ArgumentError, ShapeError
from hesse.influence.evaluate.lds import bootstrap_interval, score_table, spearman
from hesse.influence.scores import Scores

__all__ = ["Mislabelling", "Stability", "detect_mislabelled", "stability"]


@dataclass(frozen=True, slots=True)
class Stability:
    """How far two sets of scores of the same rows agree on what matters most."""

    rank_correlation: float  # Spearman among the rows that either has in its top k, mean over queries
    overlap: float  # share of the top k of one that is in the top k of the other
    interval: tuple[float, float]  # of the rank correlation, over queries
    per_query: NDArray[np.float64]  # (Q,) rank correlations


@dataclass(frozen=True, slots=True)
class Mislabelling:
    """How well a high score marks a wrong label."""

    auc: float  # probability that a flipped row ranks above a clean one
    precision: float  # among as many top rows as there are flipped ones


def stability(first: Scores | ArrayLike, second: Scores | ArrayLike, *, k: int = 50) -> Stability:
    """Compare the scores of two fits, for instance with other label seeds or on two halves of the data.

    Parameters
    ----------
    first, second : Scores or array_like, shape (Q, N)
        Of the same queries and rows, in the same order.
    k : int, default 50
        Rows a reader looks at; of fewer rows all count.

    Returns
    -------
    Stability
        What the labels drawn for the curvature leave uncertain: rows closer than this are tied.

    Raises
    ------
    ArgumentError
        If ``k < 2``.
    ShapeError
        If the shapes differ.
    """
    a, b = score_table(first), score_table(second)
    if a.shape != b.shape:
        raise ShapeError(f"stability: expected the same queries and rows, got {a.shape} and {b.shape}")
    if k < 2:
        raise ArgumentError(f"k: a rank correlation needs at least 2 rows, got {k}")
    depth = min(k, a.shape[1])
    correlations, overlaps = [], []
    for left, right in zip(a, b, strict=True):
        tops = [np.argsort(-row, kind="stable")[:depth] for row in (left, right)]
        either = np.union1d(tops[0], tops[1])
        correlations.append(spearman(left[either, None], right[either, None])[0])
        overlaps.append(len(np.intersect1d(tops[0], tops[1])) / depth)
    per_query = np.array(correlations)
    return Stability(float(per_query.mean()), float(np.mean(overlaps)), bootstrap_interval(per_query), per_query)


def detect_mislabelled(scores: ArrayLike, flipped: ArrayLike) -> Mislabelling:
    """Rank rows by a score, such as self-influence, and see how many wrong labels come first.

    Parameters
    ----------
    scores : array_like, shape (N,)
        From `Influence.self_influence`: a row whose label the others contradict rests on itself.
    flipped : array_like of bool, shape (N,)
        Which labels are known to be wrong.

    Returns
    -------
    Mislabelling
        An AUC of 0.5 is chance. Ties count half.

    Raises
    ------
    ArgumentError
        If no row, or every row, is flipped.
    ShapeError
        If the lengths differ.
    """
    values, wrong = score_table(np.asarray(scores, dtype=np.float64)[None])[0], np.asarray(flipped, dtype=bool)
    if wrong.shape != values.shape:
        raise ShapeError(f"flipped: expected one a score, {values.shape}, got {wrong.shape}")
    count = int(wrong.sum())
    if not 0 < count < len(wrong):
        raise ArgumentError(f"flipped: expected some rows but not all, got {count} of {len(wrong)}")
    ranks = rankdata(values)
    auc = (ranks[wrong].sum() - count * (count + 1) / 2) / (count * (len(wrong) - count))
    first = np.argsort(-values, kind="stable")[:count]
    return Mislabelling(float(auc), float(wrong[first].mean()))
