"""How well scores find the sequences that are known to support a fact: recall among the first k, and reciprocal rank.

Ties are broken by expectation, not by the order of the data: lexical scores have many. Shapes: Q queries, N sequences.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Items

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesse.errors import ArgumentError, NumericalError, ShapeError

__all__ = ["mean_reciprocal_rank", "recall_at_k", "support_mask"]


def support_mask(
    supports: Mapping[str, Items[str]], query_ids: Items[str], sequence_ids: Items[str]
) -> NDArray[np.bool_]:
    """Mark which sequence supports which query.

    Parameters
    ----------
    supports : mapping of str to sequence of str
        Of every query id, the ids of the sequences that state its fact.
    query_ids : sequence of str
        Q ids, in the order of the scores' rows.
    sequence_ids : sequence of str
        N ids, in the order of the scores' columns.

    Returns
    -------
    ndarray of bool, shape (Q, N)
        True where the sequence supports the query.

    Raises
    ------
    ArgumentError
        If a query has no entry, or a supporting sequence is not among ``sequence_ids``.
    """
    column = {name: j for j, name in enumerate(sequence_ids)}
    mask = np.zeros((len(query_ids), len(sequence_ids)), dtype=bool)
    for i, query in enumerate(query_ids):
        if query not in supports:
            raise ArgumentError(f"supports: nothing is known of query {query!r}")
        for name in supports[query]:
            if name not in column:
                raise ArgumentError(f"supports: sequence {name!r} of query {query!r} was not scored")
            mask[i, column[name]] = True
    return mask


def recall_at_k(scores: ArrayLike, relevant: ArrayLike, k: int = 3) -> NDArray[np.float64]:
    """``|first k ∩ relevant| / min(k, |relevant|)``, query by query.

    Parameters
    ----------
    scores : array_like, shape (Q, N)
        Higher is better, in any unit.
    relevant : array_like of bool, shape (Q, N)
        At least one a query.
    k : int, default 3
        How many sequences a reader looks at: as many as support a fact in the worlds of `hesse.influence.facts`.

    Returns
    -------
    ndarray of float64, shape (Q,)
        Between 0 and 1. Where scores tie at the border, the expectation over a random order of the tied.

    Raises
    ------
    ArgumentError
        If ``k < 1``, or a query has no relevant sequence.
    NumericalError
        If a score is NaN.
    ShapeError
        If the shapes differ.
    """
    if k < 1:
        raise ArgumentError(f"k: expected >= 1, got {k}")
    values, truth = _checked(scores, relevant)
    depth = min(k, values.shape[1])
    border = -np.partition(-values, depth - 1, axis=1)[:, depth - 1 : depth]
    above, tied = values > border, values == border
    share = (depth - above.sum(1)) / tied.sum(1)  # of the tied, the part that still finds a place
    hits = (above & truth).sum(1) + share * (tied & truth).sum(1)
    return hits / np.minimum(k, truth.sum(1))


def mean_reciprocal_rank(scores: ArrayLike, relevant: ArrayLike) -> float:
    """Mean over queries of 1 / (rank of the first relevant sequence).

    Parameters
    ----------
    scores : array_like, shape (Q, N)
        Higher is better, in any unit.
    relevant : array_like of bool, shape (Q, N)
        At least one a query.

    Returns
    -------
    float
        Between 0 and 1. Where the first relevant one ties with others, its expected rank counts.

    Raises
    ------
    ArgumentError
        If there is no query, or a query has no relevant sequence.
    NumericalError
        If a score is NaN.
    ShapeError
        If the shapes differ.
    """
    values, truth = _checked(scores, relevant)
    best = np.where(truth, values, -np.inf).max(1, keepdims=True)
    tied = values == best
    # r relevant and o other sequences tie: before the first relevant one come o / (r + 1) others on average
    ranks = 1 + (values > best).sum(1) + (tied & ~truth).sum(1) / ((tied & truth).sum(1) + 1)
    return float((1 / ranks).mean())


def _checked(scores: ArrayLike, relevant: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if values.ndim != 2 or values.shape != truth.shape:
        raise ShapeError(f"scores and relevant: expected the same shape (Q, N), got {values.shape} and {truth.shape}")
    if not len(values):
        raise ArgumentError("scores: there is no query")
    if np.isnan(values).any():
        raise NumericalError(f"scores: query number {int(np.isnan(values).any(1).argmax())} has a NaN")
    if not truth.any(1).all():
        raise ArgumentError(f"relevant: query number {int((~truth.any(1)).argmax())} has no relevant sequence")
    return values, truth
