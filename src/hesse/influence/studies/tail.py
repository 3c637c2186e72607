"""How thinly is influence spread? The upper tail of the scores of each query as a power law, and what its top carries.

Shapes: R rows, P of them proponents (positive score), k log-excesses over the threshold of a tail.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hesse.errors import ArgumentError, NumericalError
from hesse.influence.plots import axes_or_new
from hesse.influence.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["QueryTail", "TailFit", "TailStudy", "fit_tail", "study_tail"]

_LEAST = 10  # values of a tail below which nothing is fitted
_DEFAULT = 500
_THRESHOLDS = 80  # candidates for the threshold, evenly spread on a logarithmic scale
_DRAWN = 8  # queries that a picture can hold


@dataclass(frozen=True, slots=True)
class TailFit:
    """P(I > s) ∝ s^(-exponent) above a threshold."""

    exponent: float
    low: float  # 95 % interval by bootstrap of the values above the threshold, which is held fixed
    high: float
    threshold: float  # nats
    num_tail: int
    distance: float  # Kolmogorov-Smirnov, between the tail and its power law


@dataclass(frozen=True, slots=True)
class QueryTail:
    """How the influence on one query is spread; fits are None where fewer than ten values, or equal ones, are there."""

    query: str
    num_rows: int
    proponents: np.ndarray  # (P,) nats, strongest first
    share_of_top: float  # of all positive influence, carried by the top of the proponents
    num_top: int
    num_for_half: int  # strongest proponents that together carry half of the positive influence
    fit: TailFit | None  # of the num_tail strongest
    best: TailFit | None  # threshold where the power law fits best


@dataclass(frozen=True, slots=True)
class TailStudy:
    """Tails of several queries."""

    queries: list[QueryTail]
    top_percent: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but the scores, as plain Python.

        Returns
        -------
        dict
            JSON values.
        """
        return {"study": "tail", "units": "nats", "top_percent": self.top_percent} | {
            "queries": [
                {
                    "id": q.query,
                    "rows": q.num_rows,
                    "proponents": len(q.proponents),
                    "positive": float(q.proponents.sum()),
                    "share_of_top": q.share_of_top,
                    "rows_in_top": q.num_top,
                    "rows_for_half": q.num_for_half,
                    "fit": _fit_dict(q.fit),
                    "best_fit": _fit_dict(q.best),
                }
                for q in self.queries
            ]
        }

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the survival function of the positive scores of at most eight queries, and the power law of each tail.

        Parameters
        ----------
        ax : Axes, optional
            Default: new ones.

        Returns
        -------
        Axes
            Both scales logarithmic: a power law is a straight line.
        """
        axes = axes_or_new(ax)
        for q in self.queries[:_DRAWN]:
            if not len(q.proponents):
                continue
            survival = np.arange(1, len(q.proponents) + 1) / q.num_rows
            label = f"{q.query}: top {self.top_percent:g} % carry {100 * q.share_of_top:.0f} %"
            (line,) = axes.loglog(q.proponents, survival, drawstyle="steps-post", label=label)
            if q.fit is not None:
                ends = np.array([q.fit.threshold, q.proponents[0]])
                law = q.fit.num_tail / q.num_rows * (ends / q.fit.threshold) ** -q.fit.exponent
                axes.loglog(ends, law, "--", color=line.get_color(), linewidth=1, label=_slope(q.fit))
        axes.set(xlabel="score s, nats a copy", ylabel="share of rows with a score above s")
        axes.legend(frameon=False, fontsize="small")
        return axes


def fit_tail(
    values: ArrayLike, num_tail: int | None = _DEFAULT, *, num_bootstrap: int = 1000, seed: int = 0
) -> TailFit:
    """Fit P(X > s) ∝ s^-a above a threshold by the Hill estimator, a = k / Σ_{i<=k} log(x_(i) / x_(k+1)).

    Parameters
    ----------
    values : array_like, shape (N,)
        Sample; only its largest values enter, which must be positive.
    num_tail : int or None, default 500
        The threshold is the value of this rank, so k = num_tail - 1. Its standard error is a / √k: 4.5 % by default.
        None: the threshold at which the distance between tail and power law is least.
    num_bootstrap : int, default 1000
        Resamples behind the interval.
    seed : int, default 0
        Of the resampling.

    Returns
    -------
    TailFit
        The interval leaves out how the threshold was chosen, and is too narrow where the tail is no power law.

    Raises
    ------
    ArgumentError
        If ``num_tail`` is below 10 or exceeds the positive values, or ``num_bootstrap < 1``.
    NumericalError
        If a value is not finite, or the values of the tail are all equal.

    Notes
    -----
    O(N log N) time; with ``num_tail=None`` 80 thresholds are tried, O(80·N).

    References
    ----------
    B. M. Hill (1975), Ann. Statist. 3(5). A. Clauset, C. R. Shalizi, M. E. J. Newman (2009), SIAM Review 51(4), arXiv
    0706.1062, for the choice of the threshold.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(sample).all():
        raise NumericalError("values: expected finite numbers, got NaN or Inf")
    if num_bootstrap < 1:
        raise ArgumentError(f"num_bootstrap: expected >= 1, got {num_bootstrap}")
    ordered = np.sort(sample[sample > 0])[::-1]
    least = _LEAST if num_tail is None else num_tail
    if not _LEAST <= least <= len(ordered):
        raise ArgumentError(f"num_tail: expected {_LEAST} to the {len(ordered)} positive values, got {num_tail}")
    logs = np.log(ordered)
    chosen = num_tail if num_tail is not None else _best_length(logs)
    excesses = logs[: chosen - 1] - logs[chosen - 1]
    if not excesses.any():
        raise NumericalError("values: those of the tail are all equal, and no power law")
    exponent, distance = _hill(logs, chosen)
    rng = np.random.default_rng(seed)
    totals = np.array([rng.choice(excesses, len(excesses)).sum() for _ in range(num_bootstrap)])
    low, high = np.quantile(len(excesses) / np.maximum(totals, np.finfo(float).tiny), [0.025, 0.975])
    return TailFit(exponent, float(low), float(high), float(ordered[chosen - 1]), chosen, distance)


def study_tail(
    scores: Scores,
    *,
    queries: Items[str] | None = None,
    num_tail: int | None = None,
    top_percent: float = 1.0,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> TailStudy:
    """Fit the upper tail of each query's scores, and say how much of the positive influence its top carries.

    Meant for scores of all rows or of a uniform sample: a lexical filter would have cut the body, and what it let
    through has another tail than the data.

    Parameters
    ----------
    scores : Scores
        Of a run.
    queries : sequence of str, optional
        Ids. Default: all.
    num_tail : int, optional
        Values in the tail, see `fit_tail`. Default: 500, or a tenth of the proponents if those are fewer, at least 10.
    top_percent : float, default 1
        Per cent of the proponents whose share is reported, rounded up to whole rows.
    num_bootstrap, seed : int
        See `fit_tail`.

    Returns
    -------
    TailStudy
        A query each, in nats. For scale: of values with an exponential law the top 1 % carry
        p(1 + log(1/p)) = 5.6 %, with a half-normal one 3.6 %.

    Raises
    ------
    ArgumentError
        If a query is unknown, ``num_tail < 10``, or the percentage lies outside (0, 100].

    References
    ----------
    R. Grosse, J. Bae, C. Anil et al. (2023), arXiv 2308.03296.
    """
    if not 0 < top_percent <= 100:
        raise ArgumentError(f"top_percent: expected above 0 and at most 100, got {top_percent}")
    if num_tail is not None and num_tail < _LEAST:
        raise ArgumentError(f"num_tail: expected >= {_LEAST}, got {num_tail}")
    found = []
    for query in scores.query_ids if queries is None else queries:
        values = scores.ranked_by(query).astype(np.float64)
        positive = np.sort(values[values > 0])[::-1]
        wanted = max(_LEAST, min(_DEFAULT, len(positive) // 10)) if num_tail is None else num_tail
        reached = np.cumsum(positive)
        total = reached[-1] if len(reached) else 0.0
        num_top = int(np.ceil(len(positive) * top_percent / 100))
        fits = [_fitted(positive, n, num_bootstrap, seed) for n in (min(wanted, len(positive)), None)]
        share = float(reached[num_top - 1] / total) if num_top else 0.0
        half = int(np.searchsorted(reached, total / 2)) + 1 if len(positive) else 0
        found.append(QueryTail(query, len(values), positive, share, num_top, half, fits[0], fits[1]))
    return TailStudy(found, float(top_percent))


def _fitted(positive: np.ndarray, num_tail: int | None, num_bootstrap: int, seed: int) -> TailFit | None:
    leading = positive[: _LEAST if num_tail is None else num_tail]
    if len(leading) < _LEAST or leading[0] == leading[-1]:
        return None
    return fit_tail(positive, num_tail, num_bootstrap=num_bootstrap, seed=seed)


def _hill(logs: np.ndarray, length: int) -> tuple[float, float]:
    # exponent and distance of the tail of this length; ``logs`` fall
    excesses = logs[: length - 1] - logs[length - 1]
    k = len(excesses)
    exponent = k / max(float(excesses.sum()), np.finfo(float).tiny)
    law = -np.expm1(-exponent * excesses[::-1])  # of the power law, below each value, rising
    steps = np.arange(k + 1) / k
    return exponent, float(max((steps[1:] - law).max(), (law - steps[:-1]).max()))


def _best_length(logs: np.ndarray) -> int:
    lengths = np.unique(np.geomspace(_LEAST, len(logs), _THRESHOLDS).round().astype(int))
    return int(lengths[np.argmin([_hill(logs, int(length))[1] for length in lengths])])


def _fit_dict(fit: TailFit | None) -> dict[str, float] | None:
    if fit is None:
        return None
    return {name: getattr(fit, name) for name in TailFit.__slots__}


def _slope(fit: TailFit) -> str:
    return f"exponent {fit.exponent:.2f} ({fit.low:.2f} to {fit.high:.2f})"
