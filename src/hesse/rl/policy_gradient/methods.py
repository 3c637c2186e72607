"""Policy-gradient methods: normalised with implicit gradient transport, Hessian-aided, and what they are compared with.

    t = 0, 1, 2, ...;   d_0 = g_0;   θ_{t+1} = θ_t + γ_t d_t, or γ_t d_t/‖d_t‖

Shapes: P parameters.
"""

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError
from hesse.rl.policy_gradient.draws import uniform
from hesse.rl.policy_gradient.estimators import policy_gradient, policy_hvp, trajectory_log_probs
from hesse.rl.policy_gradient.optimizer import GRADIENT, Estimate, PolicyOptimizer
from hesse.rl.policy_gradient.policies import Policy
from hesse.rl.policy_gradient.rollout import TrajectoryBatch

__all__ = ["HARPG", "NPGIGT", "NormalizedMomentumPG", "Reinforce", "StormPG"]

SMALL_MOMENTUM = 1e-3  # below, an extrapolation is a thousand steps long


class Reinforce(PolicyOptimizer):
    """Plain stochastic gradient ascent, θ_{t+1} = θ_t + γ_t g_t with γ_t = γ_0 (2/(t+2))^{2/3}.

    Parameters
    ----------
    policy : Policy
        What is trained.
    lr : float
        γ_0, in units of the parameter squared per unit of return.
    schedule : bool, default True
        Let γ_t decay; see `PolicyOptimizer`.
    max_kl : float, optional
        See `PolicyOptimizer`.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    References
    ----------
    R. J. Williams (1992), Machine Learning 8.
    """

    lr_power = 2 / 3
    momentum_power = 0.0
    normalized = False

    def __init__(self, policy: Policy, lr: float, *, schedule: bool = True, max_kl: float | None = None) -> None:
        super().__init__(policy, lr, schedule=schedule, max_kl=max_kl)

    def _sample_at(self, generator: Generator | None) -> dict[str, Tensor]:
        return {GRADIENT: self.parameters}

    def _estimate(self, batches: Mapping[str, TrajectoryBatch], momentum: float) -> Estimate:
        return Estimate(policy_gradient(batches[GRADIENT], self.policy))


class NormalizedMomentumPG(PolicyOptimizer):
    """Normalised momentum (N-MPG): d_t = (1 - η_t) d_{t-1} + η_t g(τ_t, θ_t); parameters as `PolicyOptimizer`.

    η_t = η_0 (2/(t+2))^{2/3}, γ_t = γ_0 2/(t+2).
    """

    lr_power = 1.0
    momentum_power = 2 / 3

    def _sample_at(self, generator: Generator | None) -> dict[str, Tensor]:
        return {GRADIENT: self.parameters}

    def _estimate(self, batches: Mapping[str, TrajectoryBatch], momentum: float) -> Estimate:
        return Estimate(_mixed(self.direction, policy_gradient(batches[GRADIENT], self.policy), momentum))


class NPGIGT(PolicyOptimizer):
    """Normalised policy gradient with implicit gradient transport (N-PG-IGT): one batch a step, no Hessian.

    θ̃_t = θ_t + ((1 - η_t)/η_t) (θ_t - θ_{t-1}),   d_t = (1 - η_t) d_{t-1} + η_t g(τ_t, θ̃_t),   τ_t drawn at θ̃_t

    with η_t = η_0 (2/(t+2))^{4/5}, γ_t = γ_0 2/(t+2). For quadratic J the extrapolation cancels the bias of momentum
    exactly; O(ε^{-2.5}) trajectories for Fisher-non-degenerate policies. One batch and one backward pass a step, three
    vectors of P numbers.

    Parameters
    ----------
    policy : Policy
        What is trained.
    lr : float
        γ_0, the length of the first step; try 0.1, 0.3, 1, 3.
    momentum : float, default 1.0
        η_0.
    schedule : bool, default True
        Let γ_t and η_t decay; see `PolicyOptimizer`.
    extrapolation_cap : float, optional, default 10.0
        Largest ‖θ̃_t - θ_t‖ in units of the last step: further out the policy that is sampled may have nothing to do
        with θ_t. None is the method as published, without a cap.
    max_kl : float, optional
        See `PolicyOptimizer`.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Warns
    -----
    UserWarning
        Once, when η_t falls below 0.001 and there is no cap.

    References
    ----------
    I. Fatkhullin, A. Barakat, A. Kireeva, N. He (2023), ICML, arXiv 2302.01734; A. Cutkosky, H. Mehta (2020), ICML,
    arXiv 2002.03305.
    """

    lr_power = 1.0
    momentum_power = 4 / 5
    _own_settings = ("extrapolation_cap",)

    def __init__(
        self,
        policy: Policy,
        lr: float,
        momentum: float = 1.0,
        *,
        schedule: bool = True,
        extrapolation_cap: float | None = 10.0,
        max_kl: float | None = None,
    ) -> None:
        super().__init__(policy, lr, momentum, schedule=schedule, max_kl=max_kl)
        if extrapolation_cap is not None and not 0 < extrapolation_cap < math.inf:
            raise ArgumentError(f"NPGIGT: expected a finite extrapolation_cap > 0, or None; got {extrapolation_cap}")
        self.extrapolation_cap = extrapolation_cap
        self._warned = False

    def _sample_at(self, generator: Generator | None) -> dict[str, Tensor]:
        momentum = self.momentum_at(self.num_steps)
        if momentum < SMALL_MOMENTUM and self.extrapolation_cap is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"NPGIGT: momentum {momentum:.1e} extrapolates by {1 / momentum:,.0f} steps; raise momentum=, or set "
                "extrapolation_cap=",
                stacklevel=3,
            )
        factor = (1 - momentum) / momentum
        if self.extrapolation_cap is not None:
            factor = min(factor, self.extrapolation_cap)
        return {GRADIENT: self.parameters + factor * (self.parameters - self.previous)}

    def _estimate(self, batches: Mapping[str, TrajectoryBatch], momentum: float) -> Estimate:
        return Estimate(_mixed(self.direction, policy_gradient(batches[GRADIENT], self.policy), momentum))


class HARPG(PolicyOptimizer):
    """Hessian-aided recursive policy gradient: momentum whose bias one Hessian-vector product a step takes out.

    q ~ U[0, 1],  θ̂_t = q θ_t + (1 - q) θ_{t-1},  τ_t drawn at θ_t and τ̂_t at θ̂_t, independently
    d_t = (1 - η_t) (d_{t-1} + B(τ̂_t, θ̂_t) (θ_t - θ_{t-1})) + η_t g(τ_t, θ_t)

    The product is an unbiased estimate of ∇J(θ_t) - ∇J(θ_{t-1}), the line integral of the Hessian. η_t = η_0 2/(t+2),
    and γ_t = γ_0 2/(t+2) if normalised (N-HARPG, O(ε^{-2}) trajectories), γ_0 (2/(t+2))^{1/2} if not. Two batches and
    about six backward passes a step. The product's variance grows with the square of the horizon: with a batch of ten
    it may be all that is seen, and `NPGIGT` does better.

    Parameters
    ----------
    policy : Policy
        What is trained.
    lr : float
        γ_0; normalised, try 0.3 to 0.5.
    momentum : float, default 1.0
        η_0.
    normalized : bool, default True
        Divide the direction by its norm.
    schedule : bool, default True
        Let γ_t and η_t decay; see `PolicyOptimizer`.
    max_kl : float, optional
        See `PolicyOptimizer`.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    References
    ----------
    I. Fatkhullin, A. Barakat, A. Kireeva, N. He (2023), ICML, arXiv 2302.01734.
    """

    lr_power = 1.0
    momentum_power = 1.0

    def __init__(
        self,
        policy: Policy,
        lr: float,
        momentum: float = 1.0,
        *,
        normalized: bool = True,
        schedule: bool = True,
        max_kl: float | None = None,
    ) -> None:
        super().__init__(policy, lr, momentum, schedule=schedule, max_kl=max_kl)
        self.normalized = normalized
        self.lr_power = 1.0 if normalized else 0.5

    def _sample_at(self, generator: Generator | None) -> dict[str, Tensor]:
        if self.direction is None:
            return {GRADIENT: self.parameters}
        q = uniform((), self.parameters.dtype, self.parameters.device, generator)
        return {GRADIENT: self.parameters, "hvp": q * self.parameters + (1 - q) * self.previous}

    def _estimate(self, batches: Mapping[str, TrajectoryBatch], momentum: float) -> Estimate:
        gradient = policy_gradient(batches[GRADIENT], self.policy)
        if self.direction is None:
            return Estimate(gradient)
        change = policy_hvp(batches["hvp"], self.policy, self.parameters - self.previous)
        return Estimate(_mixed(self.direction + change, gradient, momentum), hvp_norm=float(change.norm()))


class StormPG(PolicyOptimizer):
    """STORM with importance weights: the same trajectories estimate the gradient at θ_t and at θ_{t-1}.

    d_t = g(τ_t, θ_t) + (1 - η_t) (d_{t-1} - mean_i w_i g(τ_i, θ_{t-1})),   w_i = Π_h π_{t-1}/π_t, cut at ``max_weight``

    η_t = η_0 (2/(t+2))^{2/3}, γ_t = γ_0 (2/(t+2))^{1/3}, not normalised.

    Parameters
    ----------
    policy : Policy
        What is trained.
    lr : float
        γ_0.
    momentum : float, default 1.0
        η_0.
    schedule : bool, default True
        Let γ_t and η_t decay; see `PolicyOptimizer`.
    max_weight : float, default 2.0
        Cut of the weights, so that no trajectory counts more than twice; the cut biases the estimate.
    max_kl : float, optional
        See `PolicyOptimizer`.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    References
    ----------
    A. Cutkosky, F. Orabona (2019), NeurIPS, arXiv 1905.10018; H. Yuan, X. Lian, J. Liu, Y. Zhou (2020), arXiv
    2003.04302.
    """

    lr_power = 1 / 3
    momentum_power = 2 / 3
    normalized = False
    _own_settings = ("max_weight",)

    def __init__(
        self,
        policy: Policy,
        lr: float,
        momentum: float = 1.0,
        *,
        schedule: bool = True,
        max_weight: float = 2.0,
        max_kl: float | None = None,
    ) -> None:
        super().__init__(policy, lr, momentum, schedule=schedule, max_kl=max_kl)
        if not 0 < max_weight < math.inf:
            raise ArgumentError(f"StormPG: expected a finite max_weight > 0, got {max_weight}")
        self.max_weight = max_weight

    def _sample_at(self, generator: Generator | None) -> dict[str, Tensor]:
        return {GRADIENT: self.parameters}

    def _estimate(self, batches: Mapping[str, TrajectoryBatch], momentum: float) -> Estimate:
        batch = batches[GRADIENT]
        gradient = policy_gradient(batch, self.policy)
        if self.direction is None:
            return Estimate(gradient)
        with torch.no_grad():
            logs = trajectory_log_probs(batch, self.policy, self.previous) - trajectory_log_probs(batch, self.policy)
            weights = logs.clamp(max=math.log(self.max_weight)).exp()
        before = policy_gradient(batch, self.policy, self.previous, trajectory_weights=weights)
        direction = gradient + (1 - momentum) * (self.direction - before)
        return Estimate(direction, importance_weight=float(weights.mean()))


def _mixed(old: Tensor | None, new: Tensor, momentum: float) -> Tensor:
    return new if old is None else (1 - momentum) * old + momentum * new
