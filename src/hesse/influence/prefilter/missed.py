"""What did the filter miss? Estimated from the random slice of the rows that it did not keep.

Of M rows outside of the filter m were drawn without replacement. A sum over the M is M/m times that over the m: its
expectation is right whatever the filter, and its standard error is M · sd / √m · √(1 - m/M).

Shapes: Q queries.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from hesse.errors import ArgumentError
from hesse.io import load_tensors

if TYPE_CHECKING:
    from hesse.influence.scores import Scores

__all__ = ["CHOICE_NAME", "Missed", "estimate_missed", "missed_of"]

CHOICE_NAME = "prefilter.safetensors"
"""File of what was chosen, beside the scores."""


@dataclass(frozen=True, slots=True)
class Missed:
    """What lies outside of a filter; every array has shape (Q,). NaN where fewer than two rows were drawn."""

    num_outside: int  # M
    num_drawn: int  # m
    k: int
    positive: np.ndarray  # nats: sum of the positive scores of all rows outside, unbiased
    positive_error: np.ndarray  # its standard error
    positive_share: np.ndarray  # of all positive influence
    positive_share_error: np.ndarray
    above: np.ndarray  # rows outside that are stronger than the k-th proponent inside, unbiased
    above_error: np.ndarray
    above_bound: np.ndarray  # upper end of the one-sided 95 % interval, also where none was seen
    top_share: np.ndarray  # above / (above + k): of all rows as strong as the k-th proponent inside
    top_share_error: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python, None for NaN.

        Returns
        -------
        dict
            JSON values.
        """
        out: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            out[name] = [None if x != x else x for x in value.tolist()] if isinstance(value, np.ndarray) else value
        return out

    def summary(self) -> str:
        """Say it in one line.

        Returns
        -------
        str
            The query of which most was missed.
        """
        if self.num_outside == 0:
            return "the filter kept every row"
        if self.num_drawn < 2 or np.isnan(self.positive_share).all():
            return f"{self.num_outside:,} rows were not scored, and too few drawn to say what they hold"
        worst = int(np.nanargmax(self.positive_share))
        return (
            f"{self.num_outside - self.num_drawn:,} rows were not scored; outside of the filter lie up to "
            f"{100 * self.positive_share[worst]:.0f} % (± {100 * self.positive_share_error[worst]:.0f}) of a query's "
            f"positive influence, and {self.above.max():.0f} rows (at most {self.above_bound.max():.0f}) stronger than "
            f"its {self.k}-th inside"
        )


def estimate_missed(scores: "Scores", *, k: int = 100) -> Missed:
    """Estimate how much positive influence, and how many of the strongest proponents, a filter left unscored.

    Parameters
    ----------
    scores : Scores
        Made with ``prefilter``; of the whole matrix, not of the best rows alone.
    k : int, default 100
        Proponents a query that must not be missed; fewer if the filter kept fewer rows.

    Returns
    -------
    Missed
        Sums and counts are unbiased, shares are ratios of them. A query without a positive score has NaN shares.

    Raises
    ------
    ArgumentError
        If there was no filter, only the best rows were kept, or ``k < 1``.

    Notes
    -----
    Errors of shares are of first order. Seeing no strong row among few drawn ones proves little: read ``above_bound``.
    """
    filtered = scores.state.get("prefilter")
    if filtered is None:
        raise ArgumentError("scores: they were made without a prefilter, so nothing was missed")
    relative = f"{scores.folder}/{CHOICE_NAME}"
    drawn = load_tensors(scores.run.path / relative, scores.run.entry(relative))["drawn"].numpy()
    return missed_of(np.asarray(scores.values), drawn, int(scores.state["prefilter_rows"]), k=k)


def missed_of(values: np.ndarray, drawn: np.ndarray, num_rows: int, *, k: int = 100) -> Missed:
    """Estimate from scores at hand.

    Parameters
    ----------
    values : ndarray, shape (Q, r)
        Of the rows that were scored.
    drawn : ndarray of bool, shape (r,)
        Those that the random slice brought in.
    num_rows : int
        R, of the whole data set.
    k : int, default 100
        As in `estimate_missed`.

    Returns
    -------
    Missed
        As there.

    Raises
    ------
    ArgumentError
        If ``k < 1``.
    """
    if k < 1:
        raise ArgumentError(f"k: expected >= 1, got {k}")
    inside, outside = values[:, ~drawn].astype(np.float64), values[:, drawn].astype(np.float64)
    count, population = outside.shape[1], num_rows - inside.shape[1]
    k = min(k, inside.shape[1])
    kept = np.maximum(inside, 0).sum(1)
    # without a k-th proponent every positive row outside is a stronger one
    least = np.maximum(np.partition(inside, -k, axis=1)[:, -k], 0) if k else np.zeros(len(values))
    positive, positive_error = _total(np.maximum(outside, 0), population)
    stronger = outside > least[:, None]
    above, above_error = _total(stronger.astype(np.float64), population)
    proponents = np.minimum((inside > 0).sum(1), k)
    if population == count:
        bound = above
    elif count:
        seen = stronger.sum(1)
        # of an even draw without replacement the binomial bound is a cautious one
        bound = population * np.where(seen < count, stats.beta.ppf(0.95, seen + 1, np.maximum(count - seen, 1)), 1.0)
    else:
        bound = np.full(len(values), float(population))
    return Missed(
        population,
        count,
        k,
        positive,
        positive_error,
        *_share(positive, positive_error, kept),
        above,
        above_error,
        bound,
        *_share(above, above_error, proponents.astype(np.float64)),
    )


def _total(terms: np.ndarray, population: int) -> tuple[np.ndarray, np.ndarray]:
    count = terms.shape[1]
    if population == 0:
        return np.zeros(len(terms)), np.zeros(len(terms))
    if count < 2 and count < population:
        return np.full(len(terms), np.nan), np.full(len(terms), np.nan)
    spread = terms.std(1, ddof=1) if count > 1 else np.zeros(len(terms))
    return population * terms.mean(1), population * spread / count**0.5 * max(0.0, 1 - count / population) ** 0.5


def _share(part: np.ndarray, error: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = part + rest
        return part / whole, error * rest / whole**2
