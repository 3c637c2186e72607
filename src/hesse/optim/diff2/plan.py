"""How often a run restarts from a private gradient, and which noise its rounds get for a privacy budget."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hesse.errors import ArgumentError
from hesse.optim.diff2.accountant import GaussianAccountant, GaussianRelease

__all__ = ["LocalReleases", "NoisePlan", "best_interval", "best_split", "plan_noise"]


@dataclass(frozen=True, slots=True)
class LocalReleases:
    """Releases of local steps that the budget must cover beside the rounds themselves.

    Parameters
    ----------
    count : int
        How many a record can meet in the whole run.
    sampling_rate : float, default 1.0
        Probability that it takes part in one, 1 where no amplification may be counted.
    share : float, default 1/3
        Of the budget, in (0, 1), as if every batch were full; the rest is split between the two kinds of rounds.
    """

    count: int
    sampling_rate: float = 1.0
    share: float = 1 / 3


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """Rounds, restarts and noise multipliers of a run, fixed before it sees data.

    Parameters
    ----------
    rounds : int
        R.
    restart_interval : int
        T in [1, R]: round r, counted from 0, is a restart if T divides r.
    restart_multiplier, difference_multiplier : float
        m₁ and m₂ >= 0, deviation of the noise over the sensitivity of the average that it is added to.
    local_multiplier : float, default 0.0
        m₃ of local steps; unused without them.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    """

    rounds: int
    restart_interval: int
    restart_multiplier: float
    difference_multiplier: float
    local_multiplier: float = 0.0

    def __post_init__(self) -> None:
        _check_count("rounds", self.rounds)
        _check_count("restart_interval", self.restart_interval)
        if self.restart_interval > self.rounds:
            raise ArgumentError(f"expected restart_interval <= rounds, got {self.restart_interval} > {self.rounds}")
        multipliers = (self.restart_multiplier, self.difference_multiplier, self.local_multiplier)
        if any(not (math.isfinite(m) and m >= 0) for m in multipliers):
            raise ArgumentError(f"noise_multipliers must be finite and >= 0, got {multipliers}")

    @property
    def num_restarts(self) -> int:
        """R₁ = ⌈R/T⌉."""
        return -(-self.rounds // self.restart_interval)

    @property
    def num_differences(self) -> int:
        """R₂ = R - R₁."""
        return self.rounds - self.num_restarts

    def is_restart(self, number: int) -> bool:
        """Whether a round takes a fresh private gradient.

        Parameters
        ----------
        number : int
            Counted from 0.

        Returns
        -------
        bool
            False for a difference round.
        """
        return number % self.restart_interval == 0


def plan_noise(
    rounds: int,
    *,
    epsilon: float,
    delta: float,
    clip_grad: float,
    clip_diff: float,
    restart_interval: int | Literal["auto"] = "auto",
    split: float | Literal["auto"] = "auto",
    step_length: float | None = None,
    local: LocalReleases | None = None,
    method: Literal["rdp", "exact"] = "rdp",
) -> NoisePlan:
    """Choose interval and noise so that R rounds spend (ε, δ).

    With shares s and 1 - s of ρ for R₁ restarts and R₂ difference rounds: m₁ = √(R₁/(2sρ)), m₂ = √(R₂/(2(1-s)ρ)).

    Parameters
    ----------
    rounds : int
        R >= 1.
    epsilon, delta : float
        The budget: ε > 0 in nats, δ in (0, 1).
    clip_grad, clip_diff : float
        C₁ and C₂, finite and positive; only their proportion enters, and only the automatic choices.
    restart_interval : int or "auto", default "auto"
        T. "auto": `best_interval` if ``step_length`` is given, else ⌈R/2⌉, which served well on logistic regression.
    split : float or "auto", default "auto"
        s in (0, 1). "auto": `best_split` if ``step_length`` is given, else 1/2.
    step_length : float, optional
        A guess of ‖x_r - x_{r-1}‖ = η‖v‖ over the run, in the units of x. It must not come from the private data; it
        decides utility, never privacy.
    local : LocalReleases, optional
        Releases of local steps to be covered as well.
    method : {"rdp", "exact"}, default "rdp"
        Accounting to calibrate by; see `GaussianAccountant.epsilon`.

    Returns
    -------
    NoisePlan
        With multipliers that spend between 0.99 ε and ε.

    Raises
    ------
    ArgumentError
        If an argument is out of range; the rest from `GaussianAccountant.calibrate`.
    """
    _check_count("rounds", rounds)
    _check_positive("clip_grad", clip_grad)
    _check_positive("clip_diff", clip_diff)
    if step_length is not None:
        _check_positive("step_length", step_length)
    if restart_interval == "auto":
        interval = -(-rounds // 2)
        if step_length is not None:
            interval = best_interval(rounds, clip_grad, clip_diff, step_length)
    elif isinstance(restart_interval, int):
        interval = restart_interval
    else:
        raise ArgumentError(f"restart_interval must be an integer or 'auto', got {restart_interval!r}")
    if split == "auto":
        share = 0.5 if step_length is None else best_split(rounds, interval, clip_grad, clip_diff, step_length)
    elif isinstance(split, int | float) and 0 < split < 1:
        share = float(split)
    else:
        raise ArgumentError(f"split must be 'auto' or lie in (0, 1), got {split!r}")
    shape = NoisePlan(rounds, interval, 1.0, 1.0)
    if shape.num_differences == 0:
        share = 1.0
    wanted = [GaussianRelease(math.sqrt(shape.num_restarts / share), shape.num_restarts)]
    if shape.num_differences:
        wanted.append(GaussianRelease(math.sqrt(shape.num_differences / (1 - share)), shape.num_differences))
    if local is not None and local.count:
        if not 0 < local.share < 1:
            raise ArgumentError(f"local_share must lie in (0, 1), got {local.share}")
        odds = local.share / (1 - local.share)  # against what the rounds get
        multiplier = local.sampling_rate * math.sqrt(local.count / odds)
        wanted.append(GaussianRelease(multiplier, local.count, local.sampling_rate))
    found = iter(GaussianAccountant.calibrate(epsilon, delta, wanted, method=method).releases)
    m1 = next(found).multiplier
    m2 = next(found).multiplier if shape.num_differences else 0.0
    m3 = next(found).multiplier if local is not None and local.count else 0.0
    return NoisePlan(rounds, interval, m1, m2, m3)


def best_split(rounds: int, interval: int, clip_grad: float, clip_diff: float, step_length: float) -> float:
    """Choose the share of the budget for restarts with the least expected noise in the estimates of a run.

    Noise of a run ∝ A/s + B/(1-s), A = C₁²R₁ and B = C₂² η²‖v‖² R₂ T/2, least at s = √A/(√A + √B).

    Parameters
    ----------
    rounds, interval : int
        R and T.
    clip_grad, clip_diff : float
        C₁ and C₂.
    step_length : float
        η‖v‖, the expected length of a step.

    Returns
    -------
    float
        In (0, 1], and 1 where no round is a difference round.
    """
    restart, difference = _noise_roots(rounds, np.array([interval]), clip_grad, clip_diff * step_length)
    return float((restart / (restart + difference))[0])


def best_interval(rounds: int, clip_grad: float, clip_diff: float, step_length: float) -> int:
    """Choose the restart interval with the least expected noise in the estimates of a run, each with its `best_split`.

    Parameters
    ----------
    rounds : int
        R.
    clip_grad, clip_diff : float
        C₁ and C₂.
    step_length : float
        η‖v‖, the expected length of a step.

    Returns
    -------
    int
        T in [1, R]; near √2 C₁/(C₂ η‖v‖).
    """
    intervals = np.arange(1, rounds + 1)
    restart, difference = _noise_roots(rounds, intervals, clip_grad, clip_diff * step_length)
    return int(intervals[(restart + difference).argmin()])


def _noise_roots(rounds: int, intervals: np.ndarray, first: float, second: float) -> tuple[np.ndarray, np.ndarray]:
    # √A and √B of `best_split`, a column an interval; the least of A/s + B/(1-s) is (√A + √B)²
    restarts = -(-rounds // intervals)
    return first * np.sqrt(restarts), second * np.sqrt((rounds - restarts) * intervals / 2)


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"expected an integer {name} >= 1, got {value!r}")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ArgumentError(f"expected a finite {name} > 0, got {value}")
