"""What a sequence of Gaussian releases costs: Rényi accounting, exact accounting, and noise for a given budget.

A release of multiplier m adds noise of m times its sensitivity. All at once are ρ-zCDP with ρ = Σ 1/(2m²), and exactly
as private as one Gaussian mechanism of μ = √(Σ 1/m²), also where later queries depend on earlier answers.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr

from hesse.errors import ArgumentError, ConvergenceError

__all__ = ["GaussianAccountant", "GaussianRelease", "gaussian_delta", "gaussian_epsilon", "sampled_gaussian_rdp"]

Floats = NDArray[np.float64]

# any order gives a valid bound; for a release on a random batch each one costs an integral, hence a short list
_SAMPLED_ORDERS: Floats = np.concatenate(
    [1 + np.geomspace(0.05, 1, 12), np.arange(2.1, 11, 0.1), np.arange(11.0, 64), [80.0, 112, 160, 256, 512]]
).astype(np.float64)
_EXCESS_ORDERS = np.geomspace(1e-4, 1e7, 1200)  # a - 1 of a first search where every batch is full


@dataclass(frozen=True, slots=True)
class GaussianRelease:
    """``count`` releases alike: noise of ``multiplier`` sensitivities, each on a Poisson sample of the records."""

    multiplier: float
    count: int = 1
    sampling_rate: float = 1.0


@dataclass(frozen=True, slots=True)
class GaussianAccountant:
    """A ledger of Gaussian releases; `add` returns a new one.

    Attributes
    ----------
    releases : tuple of GaussianRelease
        In any order; like ones are one entry.

    Examples
    --------
    >>> spent = GaussianAccountant().add(20.0, count=100)
    >>> round(spent.rho(), 3), round(spent.epsilon(1e-5), 2), round(spent.epsilon(1e-5, method="exact"), 2)
    (0.125, 2.17, 1.99)
    """

    releases: tuple[GaussianRelease, ...] = ()

    def add(self, multiplier: float, count: int = 1, sampling_rate: float = 1.0) -> "GaussianAccountant":
        """Enter further releases.

        Parameters
        ----------
        multiplier : float
            m >= 0: standard deviation of the noise over the sensitivity of what it is added to. 0 ends all privacy.
        count : int, default 1
            How many such releases, at least 0.
        sampling_rate : float, default 1.0
            q in (0, 1]: each record takes part with this probability, independently of the others and of other
            releases (Poisson sampling). Valid where neighbours differ by one record added or removed; batches of fixed
            size, or shuffled passes, are not Poisson samples and must be entered with 1.

        Returns
        -------
        GaussianAccountant
            With them; the old one is unchanged.

        Raises
        ------
        ArgumentError
            If a number is out of range.
        """
        if not (math.isfinite(multiplier) and multiplier >= 0):
            raise ArgumentError(f"GaussianAccountant.add: expected a finite multiplier >= 0, got {multiplier}")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ArgumentError(f"GaussianAccountant.add: expected an integer count >= 0, got {count!r}")
        if not 0 < sampling_rate <= 1:
            raise ArgumentError(f"GaussianAccountant.add: expected 0 < sampling_rate <= 1, got {sampling_rate}")
        if count == 0:
            return self
        wanted = (float(multiplier), float(sampling_rate))
        kept = [r for r in self.releases if (r.multiplier, r.sampling_rate) != wanted]
        before = sum(r.count for r in self.releases if (r.multiplier, r.sampling_rate) == wanted)
        return replace(self, releases=(*kept, GaussianRelease(wanted[0], before + count, wanted[1])))

    def rho(self) -> float:
        """ρ = Σ 1/(2m²) of zero-concentrated differential privacy.

        Returns
        -------
        float
            In nats per order; infinite if a release had no noise.

        Raises
        ------
        ArgumentError
            If a release was on a sample: it has no such ρ.
        """
        return self.mu() ** 2 / 2

    def mu(self) -> float:
        """μ = √(Σ 1/m²) of Gaussian differential privacy: how many deviations apart two neighbours can look.

        Returns
        -------
        float
            Without unit; infinite if a release had no noise.

        Raises
        ------
        ArgumentError
            If a release was on a sample: it is not of this form.
        """
        if any(r.sampling_rate < 1 for r in self.releases):
            raise ArgumentError("GaussianAccountant: a release was on a sample; only epsilon(delta) covers those")
        if self._without_noise():
            return math.inf
        return math.sqrt(sum(r.count / r.multiplier**2 for r in self.releases))

    def epsilon(self, delta: float, *, method: Literal["rdp", "exact"] = "rdp") -> float:
        """Find the ε for which all releases together are (ε, δ)-differentially private.

        Parameters
        ----------
        delta : float
            δ in (0, 1), usually well below one over the number of records.
        method : {"rdp", "exact"}, default "rdp"
            "rdp": ε = min over orders a > 1 of R(a) + log((a-1)/a) - (log δ + log a)/(a-1), R(a) = ρa for full
            batches, valid for samples too. "exact": from μ, for full batches only; no smaller ε is true.

        Returns
        -------
        float
            In nats; 0 without releases, infinite without noise.

        Raises
        ------
        ArgumentError
            If δ is not in (0, 1), the method is unknown, or "exact" is asked for releases on samples.

        References
        ----------
        I. Mironov (2017), arXiv 1702.07476. B. Balle et al. (2020), arXiv 1905.09982, for the conversion. J. Dong,
        A. Roth, W. J. Su (2022), JRSS B 84, arXiv 1905.02383, for "exact".
        """
        _check_delta("GaussianAccountant.epsilon", delta)
        if method not in ("rdp", "exact"):
            raise ArgumentError(f"GaussianAccountant.epsilon: method must be 'rdp' or 'exact', got {method!r}")
        if not self.releases:
            return 0.0
        if method == "exact":
            return gaussian_epsilon(self.mu(), delta)
        if self._without_noise():
            return math.inf
        if any(r.sampling_rate < 1 for r in self.releases):
            return float(_converted(_SAMPLED_ORDERS, self.rdp(_SAMPLED_ORDERS), delta).min())
        excess = _EXCESS_ORDERS
        _, best = self._best_order(excess, delta)
        low, high = excess[max(best - 1, 0)], excess[min(best + 1, len(excess) - 1)]
        found, _ = self._best_order(np.geomspace(low, high, 200).astype(np.float64), delta)
        return max(found, 0.0)

    def rdp(self, orders: Iterable[float]) -> Floats:
        """Rényi divergence of each order, summed over the releases.

        Parameters
        ----------
        orders : iterable of float
            Each above 1.

        Returns
        -------
        ndarray, shape (orders,)
            In nats.

        Raises
        ------
        ArgumentError
            If an order is not above 1.
        """
        orders = np.asarray(list(orders) if not isinstance(orders, np.ndarray) else orders, dtype=np.float64)
        if not bool((orders > 1).all()):
            raise ArgumentError(f"GaussianAccountant.rdp: orders must be above 1, got {orders.min()}")
        total = np.zeros_like(orders)
        for release in self.releases:
            total += release.count * sampled_gaussian_rdp(release.sampling_rate, release.multiplier, orders)
        return total

    @classmethod
    def calibrate(
        cls,
        epsilon: float,
        delta: float,
        plan: Sequence[GaussianRelease],
        *,
        method: Literal["rdp", "exact"] = "rdp",
    ) -> "GaussianAccountant":
        """Scale the noise of a plan to a budget.

        Parameters
        ----------
        epsilon : float
            ε > 0, in nats.
        delta : float
            δ in (0, 1).
        plan : sequence of GaussianRelease
            What will be released, with multipliers in their wanted proportion; their size does not matter.
        method : {"rdp", "exact"}, default "rdp"
            As of `epsilon`; "exact" needs less noise for the same guarantee.

        Returns
        -------
        GaussianAccountant
            The plan's entries, in its order, with the smallest multipliers whose spend is at most ε (and above
            0.99 ε).

        Raises
        ------
        ArgumentError
            If ε or δ is out of range, or the plan is empty or has a multiplier of 0.
        ConvergenceError
            If no multiple of the plan spends ε, which happens only for budgets out of all proportion.
        """
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise ArgumentError(f"GaussianAccountant.calibrate: expected a finite epsilon > 0, got {epsilon}")
        _check_delta("GaussianAccountant.calibrate", delta)
        if not plan or any(not r.multiplier > 0 for r in plan):
            raise ArgumentError("GaussianAccountant.calibrate: the plan must have releases, each with a multiplier > 0")

        def at(log_scale: float) -> "GaussianAccountant":
            scale = math.exp(log_scale)
            return cls(tuple(GaussianRelease(scale * r.multiplier, r.count, r.sampling_rate) for r in plan))

        def overspend(log_scale: float) -> float:
            return at(log_scale).epsilon(delta, method=method) / (epsilon * 0.9995) - 1

        low, high = _bracket(overspend, 0.5 * math.log(sum(r.count / r.multiplier**2 for r in plan)))  # from μ = 1
        calibrated = at(_root(overspend, low, high, xtol=1e-5))  # 1e-5 in log m is 2e-5 in ε, below the 5e-4
        spend = calibrated.epsilon(delta, method=method)
        if not 0.99 * epsilon <= spend <= epsilon:
            raise ConvergenceError(
                f"GaussianAccountant.calibrate: the noise found spends {spend:.6g} of epsilon={epsilon:.6g}; give the "
                "multipliers yourself and read epsilon(delta) off them"
            )
        return calibrated

    def _best_order(self, excess: Floats, delta: float) -> tuple[float, int]:
        orders = (1 + excess).astype(np.float64)
        found = _converted(orders, self.rdp(orders), delta)
        best = int(found.argmin())
        return float(found[best]), best

    def _without_noise(self) -> bool:
        return any(r.multiplier == 0 for r in self.releases)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """δ(ε) = Φ(-ε/μ + μ/2) - exp(ε) Φ(-ε/μ - μ/2), exact for the Gaussian mechanism.

    Parameters
    ----------
    mu : float
        μ >= 0, sensitivity over standard deviation.
    epsilon : float
        ε >= 0, in nats.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ArgumentError
        If μ or ε is negative or NaN.

    References
    ----------
    B. Balle, Y.-X. Wang (2018), ICML, arXiv 1805.06530.
    """
    if not (mu >= 0 and epsilon >= 0):
        raise ArgumentError(f"gaussian_delta: expected mu >= 0 and epsilon >= 0, got {mu} and {epsilon}")
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(-math.exp(first) * math.expm1(min(second - first, 0.0)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Find the smallest ε with gaussian_delta(μ, ε) <= δ.

    Parameters
    ----------
    mu : float
        μ >= 0, sensitivity over standard deviation.
    delta : float
        δ in (0, 1).

    Returns
    -------
    float
        In nats; infinite for infinite μ.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    """
    _check_delta("gaussian_epsilon", delta)
    if math.isinf(mu):
        return math.inf
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    top = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # the plain zCDP bound is always enough
    return _root(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, top + 1e-12, xtol=1e-12)


def sampled_gaussian_rdp(sampling_rate: float, multiplier: float, orders: Floats) -> Floats:
    """Rényi divergence of one Gaussian release on a Poisson sample, neighbours by adding or removing a record.

    R(a) = log E[((1-q) + q exp((2z-1)/(2m²)))ᵃ]/(a-1), z ~ N(0, m²); for q = 1 it is a/(2m²).

    Parameters
    ----------
    sampling_rate : float
        q in (0, 1].
    multiplier : float
        m >= 0.
    orders : ndarray, shape (orders,)
        a > 1.

    Returns
    -------
    ndarray, shape (orders,)
        In nats. The integral by the trapezoidal rule, whose error for this integrand is below rounding.

    References
    ----------
    I. Mironov, K. Talwar, L. Zhang (2019), arXiv 1908.10530.
    """
    if multiplier == 0:
        return np.full_like(orders, math.inf)
    if sampling_rate == 1:
        return orders / (2 * multiplier**2)
    variance = multiplier**2
    step = min(multiplier / 8, variance / 4)  # the integrand's nearest singularity is π m² off the real line
    z = np.arange(-12 * multiplier, float(orders.max()) + 12 * multiplier, step)
    log_density = -(z**2) / (2 * variance) + math.log(step / (multiplier * math.sqrt(2 * math.pi)))
    log_ratio = np.logaddexp(math.log1p(-sampling_rate), math.log(sampling_rate) + (2 * z - 1) / (2 * variance))
    values = np.empty_like(orders)
    for i, order in enumerate(orders):
        last = int(np.searchsorted(z, order + 12 * multiplier))
        values[i] = np.logaddexp.reduce(log_density[:last] + order * log_ratio[:last]) / (order - 1)
    return np.maximum(values, 0.0)


def _converted(orders: Floats, rdp: Floats, delta: float) -> Floats:
    return rdp + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)


def _root(function: Callable[[float], float], low: float, high: float, xtol: float) -> float:
    found: Any = brentq(function, low, high, xtol=xtol)  # typed as if it could return its statistics too
    return float(found)


def _bracket(function: Callable[[float], float], start: float) -> tuple[float, float]:
    # spends fall as the noise grows: two logarithms of scales between which the function changes sign
    low = high = start
    for _ in range(60):
        if function(low) > 0:
            break
        low -= 1.0
    for _ in range(60):
        if function(high) < 0:
            break
        high += 1.0
    if not (function(low) > 0 > function(high)):
        raise ConvergenceError("GaussianAccountant.calibrate: no multiple of the plan spends this budget")
    return low, high


def _check_delta(call: str, delta: float) -> None:
    if not 0 < delta < 1:
        raise ArgumentError(f"{call}: expected 0 < delta < 1, got {delta}")
