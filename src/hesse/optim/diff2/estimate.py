"""The private estimate of a gradient along a run: restarts from a gradient, then adds up differences.

v_r = mean_p [(1/n_p) Σ_z clip(∇l(x_{r-1}, z), C₁) + ξ]                                  in a restart round,
v_r = v_{r-1} + mean_p [(1/n_p) Σ_z clip(∇l(x_{r-1}, z) - ∇l(x_{r-2}, z), C₂ Δ) + ξ],   Δ = ‖x_{r-1} - x_{r-2}‖, else.

The radius C₂Δ depends on points that are public already.   Shapes: P clients with n_p records, D parameters.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError
from hesse.optim.diff2.noise import gaussian_noise
from hesse.optim.diff2.plan import NoisePlan, plan_noise
from hesse.optim.diff2.records import ClippedSum, Records

__all__ = [
    "Adjacency",
    "EstimateRules",
    "EstimateState",
    "RoundInfo",
    "next_estimate",
    "rules_of",
    "sensitivity_factor",
]

Adjacency = Literal["replace", "add-remove"]


@dataclass(frozen=True, slots=True)
class EstimateRules:
    """What is fixed before a run.

    Parameters
    ----------
    plan : NoisePlan
        Rounds, restarts and noise.
    clip_grad : float
        C₁ > 0, the norm that a record's gradient is cut to; infinite only without noise.
    clip_diff : float
        C₂ > 0, likewise for a difference, per unit of the distance between the two points.
    adjacency : {"replace", "add-remove"}, default "replace"
        Neighbouring data sets differ in one record's value (sensitivity of a clipped mean 2C/n), or by one record
        more or less while the divisor n stays as it is, public (C/n).

    Raises
    ------
    ArgumentError
        If a radius is not positive, or infinite where noise is asked for, or the adjacency is unknown.
    """

    plan: NoisePlan
    clip_grad: float
    clip_diff: float
    adjacency: Adjacency = "replace"

    def __post_init__(self) -> None:
        pairs = (
            ("clip_grad", self.clip_grad, self.plan.restart_multiplier),
            ("clip_diff", self.clip_diff, self.plan.difference_multiplier),
        )
        for name, value, multiplier in pairs:
            if not value > 0 or (math.isinf(value) and multiplier > 0):
                raise ArgumentError(f"expected {name} > 0, finite where there is noise, got {value}")
        sensitivity_factor(self.adjacency)


@dataclass(frozen=True, slots=True, eq=False)
class EstimateState:
    """Where a run stands; all of it is public."""

    round: int  # rounds completed
    value: Tensor  # (D,), v of the last round
    point: Tensor  # (D,), where it was taken

    @classmethod
    def start(cls, point: Tensor) -> "EstimateState":
        """Stand before the first round, which is a restart.

        Parameters
        ----------
        point : Tensor, shape (D,)
            x₀.

        Returns
        -------
        EstimateState
            Of no round.
        """
        return cls(0, torch.zeros_like(point), point)


@dataclass(frozen=True, slots=True)
class RoundInfo:
    """What one round did.

    Attributes
    ----------
    number : int
        Counted from 0.
    restart : bool
        Whether it took a fresh gradient.
    released : bool
        False if the point had not moved, so that the difference is zero and costs nothing.
    multiplier : float
        Of the noise, in sensitivities of the average; this is what the accountant is told.
    noise_std : float
        Deviation of the noise in every entry of the average.
    clip : float
        The norm that records were cut to.
    estimate_norm : float
        ‖v_r‖, public: the round with the smallest one is a good point to output.
    num_clipped, num_nonfinite : int
        Records cut, and records left out for NaN or Inf. Read off the data without noise: for debugging only, outside
        of any guarantee.
    """

    number: int
    restart: bool
    released: bool
    multiplier: float
    noise_std: float
    clip: float
    estimate_norm: float
    num_clipped: int
    num_nonfinite: int


def rules_of(
    rounds: int,
    num_records: int,
    *,
    clip_grad: float,
    clip_diff: float,
    epsilon: float | None,
    delta: float,
    noise_multipliers: tuple[float, ...] | None,
    restart_interval: int | Literal["auto"],
    adjacency: Adjacency,
    **options: Any,
) -> EstimateRules:
    """Bring the privacy options of a run into one form: from a budget, or from multipliers.

    Parameters
    ----------
    rounds, num_records : int
        R, and the smallest number of records that share a sum.
    clip_grad, clip_diff : float
        C₁ and C₂.
    epsilon, delta : float
        The budget; ε None if there are multipliers.
    noise_multipliers : tuple of float or None
        m₁, m₂ and, with local steps, m₃.
    restart_interval : int or "auto"
        T.
    adjacency : {"replace", "add-remove"}
        Which data sets are neighbours.
    **options
        ``split``, ``step_length``, ``accounting`` and ``local`` of `plan_noise`, for a budget.

    Returns
    -------
    EstimateRules
        Checked.

    Raises
    ------
    ArgumentError
        If an option is out of range, or budget and multipliers are both given or both missing.
    """
    if (epsilon is None) == (noise_multipliers is None):
        raise ArgumentError("give either epsilon, a budget, or noise_multipliers")
    if not 0 < delta < 1:
        raise ArgumentError(f"expected 0 < delta < 1, got {delta}")
    if epsilon is not None:
        if delta * num_records >= 1:
            warnings.warn(
                f"delta={delta:g} with {num_records} records allows one of them to be published outright; choose it "
                f"well below {1 / num_records:.1g}",
                stacklevel=3,
            )
        method = options.pop("accounting")
        plan = plan_noise(
            rounds,
            epsilon=epsilon,
            delta=delta,
            clip_grad=clip_grad,
            clip_diff=clip_diff,
            restart_interval=restart_interval,
            method=method,
            **options,
        )
    else:
        multipliers = () if noise_multipliers is None else noise_multipliers
        expected = 2 if options.get("local") is None else 3
        if len(multipliers) != expected:
            raise ArgumentError(
                f"noise_multipliers: expected {expected}, one a kind of release, got {noise_multipliers}"
            )
        interval = max(1, -(-rounds // 2)) if restart_interval == "auto" else restart_interval
        plan = NoisePlan(rounds, interval, *multipliers)
    return EstimateRules(plan, clip_grad, clip_diff, adjacency)


def sensitivity_factor(adjacency: Adjacency) -> float:
    """How many clipping radii a sum can move between neighbours: 2 for "replace", 1 for "add-remove".

    Parameters
    ----------
    adjacency : {"replace", "add-remove"}
        Which data sets are neighbours.

    Returns
    -------
    float
        The factor.

    Raises
    ------
    ArgumentError
        If it is neither.
    """
    if adjacency not in ("replace", "add-remove"):
        raise ArgumentError(f"adjacency must be 'replace' or 'add-remove', got {adjacency!r}")
    return 2.0 if adjacency == "replace" else 1.0


def next_estimate(
    rules: EstimateRules,
    state: EstimateState,
    point: Tensor,
    clients: Sequence[Records],
    *,
    weights: Sequence[float] = (1.0,),
    secure_aggregation: bool = True,
    generator: Generator | None = None,
) -> tuple[EstimateState, RoundInfo]:
    """Make the next round's release and add it up.

    Parameters
    ----------
    rules : EstimateRules
        Fixed for the run.
    state : EstimateState
        After the last round; `EstimateState.start` at first.
    point : Tensor, shape (D,)
        x_{r-1}.
    clients : sequence of Records
        One entry for central training.
    weights : sequence of float, default (1,)
        w_p of the mean Σ w_p d_p over clients, summing to one.
    secure_aggregation : bool, default True
        Only the sum over clients is seen: each adds noise of m Δ/(w_p √P), Δ = max_p w_p 2C/n_p, so that the sum has
        m Δ. Otherwise each client's answer is seen and has m 2C/n_p of its own.
    generator : torch.Generator, optional
        Of the noise; see `gaussian_noise`.

    Returns
    -------
    state : EstimateState
        ``state.value`` is v_r.
    info : RoundInfo
        What was released.

    Raises
    ------
    ArgumentError
        If the run is over: more rounds would cost more than was planned.
    """
    number, plan = state.round, rules.plan
    if number >= plan.rounds:
        raise ArgumentError(
            f"all {plan.rounds} rounds that the noise was planned for are over; another would exceed the budget"
        )
    value, previous = state.value, state.point
    restart = plan.is_restart(number)
    if restart:
        clip, multiplier, base = rules.clip_grad, plan.restart_multiplier, torch.zeros_like(point)
    else:
        moved = float(torch.linalg.vector_norm(point - previous))
        if moved == 0:
            norm = float(torch.linalg.vector_norm(value))
            info = RoundInfo(number, False, False, 0.0, 0.0, 0.0, norm, 0, 0)
            return EstimateState(number + 1, value, point.clone()), info
        clip, multiplier, base = rules.clip_diff * moved, plan.difference_multiplier, value

    def clipped_sum(client: Records) -> ClippedSum:
        if restart:
            return client.gradient_sum(point, clip)
        return client.difference_sum(point, previous, clip)

    factor = sensitivity_factor(rules.adjacency)
    shares = [weight * factor / client.num_records for weight, client in zip(weights, clients, strict=True)]
    widest, update, variance, num_clipped, num_nonfinite = max(shares), torch.zeros_like(point), 0.0, 0, 0
    for client, weight, share in zip(clients, weights, shares, strict=True):
        std = 0.0  # said apart: 0 times an infinite radius is no number
        if multiplier > 0:
            spread = widest / math.sqrt(len(clients)) if secure_aggregation else share
            std = multiplier * clip * spread / weight
        found = clipped_sum(client)
        update += weight * (found.total / client.num_records + gaussian_noise(point, std, generator))
        variance += (weight * std) ** 2
        num_clipped, num_nonfinite = num_clipped + found.num_clipped, num_nonfinite + found.num_nonfinite
    value = base + update
    norm = float(torch.linalg.vector_norm(value))
    std = math.sqrt(variance)
    info = RoundInfo(number, restart, True, multiplier, std, clip, norm, num_clipped, num_nonfinite)
    return EstimateState(number + 1, value, point.clone()), info
