"""Linear datamodelling score: do summed scores rank the outcomes of training on random subsets as training does?

    g_j = Σ_{n in S_j} score_n,     LDS = mean over queries of Spearman_j(g_j, f after training on S_j)

Shapes: M subsets, N sequences, Q queries, R seeds.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.influence.scores import Scores

__all__ = [
    "LdsResult",
    "Reliability",
    "bootstrap_interval",
    "draw_masks",
    "lds",
    "reliability",
    "score_table",
    "spearman",
]

_SPLITS = 50  # ways to halve the seeds that are tried at most


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well outcomes repeat between seeds, and the LDS that this leaves to a perfect method."""

    split_half: float  # Spearman between the means of two halves of the seeds, mean over queries
    full: float  # the same expected between two sets of as many seeds as there are (Spearman-Brown)
    ceiling: float  # √full: what the exact expectation over seeds would reach


@dataclass(frozen=True, slots=True)
class LdsResult:
    """The score with its interval over queries."""

    value: float
    interval: tuple[float, float]
    per_query: NDArray[np.float64]  # (Q,)
    reliability: Reliability | None  # None with a single seed

    def __float__(self) -> float:
        return self.value


def draw_masks(num_masks: int, total: int, *, fraction: float = 0.5, seed: int = 0) -> NDArray[np.bool_]:
    """Draw random subsets of one size.

    Parameters
    ----------
    num_masks : int
        M. A hundred is customary; forty leave a spread of about 0.16 in the score of one query.
    total : int
        N.
    fraction : float, default 0.5
        α, the share of sequences that is kept; at one half a subset's outcome varies most.
    seed : int, default 0
        Of the draw.

    Returns
    -------
    ndarray of bool, shape (M, N)
        True where a sequence is kept: round(α N) in each row.

    Raises
    ------
    ArgumentError
        If there would be no subset, or an empty or a full one.
    """
    size = round(fraction * total)
    if num_masks < 1 or not 0 < size < total:
        raise ArgumentError(
            f"draw_masks: expected num_masks >= 1 and 0 < fraction * total < total, got {num_masks}, {fraction}, "
            f"{total}"
        )
    rng = np.random.default_rng(seed)
    masks = np.zeros((num_masks, total), dtype=bool)
    for row in masks:
        row[rng.choice(total, size, replace=False)] = True
    return masks


def lds(
    scores: Scores | ArrayLike,
    masks: ArrayLike,
    outcomes: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> LdsResult:
    """Rank correlation of summed scores with the outcomes of training on subsets, mean over queries.

    Parameters
    ----------
    scores : Scores or array_like, shape (Q, N)
        Positive raises the query's log-probability; any unit.
    masks : array_like of bool, shape (M, N)
        From `draw_masks`.
    outcomes : array_like, shape (R, M, Q) or (M, Q)
        f after training on each subset, from `retrain`; averaged over seeds.
    confidence : float, default 0.95
        Of the interval.
    resamples : int, default 1000
        Of the bootstrap over queries.
    seed : int, default 0
        Of the bootstrap.

    Returns
    -------
    LdsResult
        A query whose scores or outcomes do not vary counts 0.

    Raises
    ------
    ArgumentError
        If there are fewer than 3 subsets.
    NumericalError
        If a score or an outcome is not finite.
    ShapeError
        If the shapes do not fit.

    References
    ----------
    S. M. Park, K. Georgiev, A. Ilyas, G. Leclerc, A. Madry (2023), ICML, arXiv 2303.14186.
    """
    values, kept, found = score_table(scores), np.asarray(masks, dtype=bool), _outcomes(outcomes)
    if kept.ndim != 2 or kept.shape[1] != values.shape[1] or found.shape[1:] != (len(kept), len(values)):
        raise ShapeError(
            f"lds: scores (Q, N) = {values.shape}, masks (M, N) = {kept.shape} and outcomes (R, M, Q) = {found.shape} "
            "do not fit"
        )
    if len(kept) < 3:
        raise ArgumentError(f"masks: a rank correlation needs at least 3 subsets, got {len(kept)}")
    # rows that say the same have the same score up to its rounding, which must not decide which subset comes first
    unit = 1e-6 * np.abs(values).max(1)
    sums = np.round(kept @ values.T / np.where(unit > 0, unit, 1))
    per_query = spearman(sums, found.mean(0))
    interval = bootstrap_interval(per_query, confidence=confidence, resamples=resamples, seed=seed)
    repeat = reliability(found, seed=seed) if len(found) > 1 else None
    return LdsResult(float(per_query.mean()), interval, per_query, repeat)


def reliability(outcomes: ArrayLike, *, seed: int = 0) -> Reliability:
    """Correlate halves of the seeds: what chance in training leaves for any method to explain.

    Parameters
    ----------
    outcomes : array_like, shape (R, M, Q)
        From `retrain`, R >= 2 seeds.
    seed : int, default 0
        Picks among the ways to halve many seeds.

    Returns
    -------
    Reliability
        With an odd R each half has (R - 1)/2 seeds.

    Raises
    ------
    ArgumentError
        If there is only one seed.

    Notes
    -----
    With r between halves of h seeds each, R seeds have r_R = k r / (1 + (k - 1) r), k = R/h (Spearman-Brown), and
    an errorless predictor of the expected outcome correlates as √r_R with their mean.
    """
    found = _outcomes(outcomes)
    if len(found) < 2:
        raise ArgumentError("outcomes: a split in halves needs at least 2 seeds")
    half = len(found) // 2
    # a split and its mirror image are one, but with an odd number both halves leave out a seed
    splits = [
        (a, b)
        for a in combinations(range(len(found)), half)
        for b in combinations([i for i in range(len(found)) if i not in a], half)
        if a < b
    ]
    if len(splits) > _SPLITS:
        picked = np.random.default_rng(seed).choice(len(splits), _SPLITS, replace=False)
        splits = [splits[i] for i in picked]
    r = float(np.mean([spearman(found[list(a)].mean(0), found[list(b)].mean(0)).mean() for a, b in splits]))
    k = len(found) / half
    full = max(0.0, k * r / (1 + (k - 1) * r)) if 1 + (k - 1) * r > 0 else 0.0
    return Reliability(r, full, full**0.5)


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a mean, its items drawn with replacement.

    Parameters
    ----------
    values : array_like, shape (Q,)
        At least one.
    confidence : float, default 0.95
        Between 0 and 1.
    resamples : int, default 1000
        Means drawn.
    seed : int, default 0
        Of the draws.

    Returns
    -------
    tuple of float
        Low and high.

    Raises
    ------
    ArgumentError
        If an argument is out of range or there is no value.
    """
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1 or not len(items) or not 0 < confidence < 1 or resamples < 1:
        raise ArgumentError(
            f"bootstrap: expected values (Q,), 0 < confidence < 1, resamples >= 1, got shape {items.shape}, "
            f"{confidence}, {resamples}"
        )
    drawn = np.random.default_rng(seed).integers(len(items), size=(resamples, len(items)))
    low, high = np.quantile(items[drawn].mean(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def score_table(scores: Scores | ArrayLike | Any) -> NDArray[np.float64]:
    """Read scores as one table.

    Parameters
    ----------
    scores : Scores or array_like, shape (Q, N)
        From any method.

    Returns
    -------
    ndarray of float64, shape (Q, N)
        A copy.

    Raises
    ------
    NumericalError
        If one is NaN or Inf.
    ShapeError
        If it is no table.
    """
    values = np.array(scores.values if isinstance(scores, Scores) else scores, dtype=np.float64)
    if values.ndim != 2:
        raise ShapeError(f"scores: expected (Q, N), got {values.shape}")
    if not np.isfinite(values).all():
        raise NumericalError(f"scores: query number {int((~np.isfinite(values)).any(1).argmax())} has NaN or Inf")
    return values


def _outcomes(outcomes: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(outcomes, dtype=np.float64)
    found = found[None] if found.ndim == 2 else found
    if found.ndim != 3:
        raise ShapeError(f"outcomes: expected (R, M, Q), got {found.shape}")
    if not np.isfinite(found).all():
        raise NumericalError("outcomes: they hold NaN or Inf")
    return found


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlate ranks, column by column.

    Parameters
    ----------
    a, b : ndarray, shape (M, Q)
        Values.

    Returns
    -------
    ndarray of float64, shape (Q,)
        0 where one of the two does not vary.
    """
    left, right = (rankdata(table, axis=0) for table in (a, b))
    left, right = left - left.mean(0), right - right.mean(0)
    scale = np.sqrt((left**2).sum(0) * (right**2).sum(0))
    return np.divide((left * right).sum(0), scale, out=np.zeros(len(scale)), where=scale > 0)
