"""What all methods share: where to sample, how long a step is, and the check that samples came from where they had to.

Shapes: P parameters.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.curvature._binding import choose_parameters
from hesse.errors import ArgumentError, NumericalError
from hesse.rl.policy_gradient.estimators import step_log_probs
from hesse.rl.policy_gradient.policies import Policy, flat_parameters, load_parameters
from hesse.rl.policy_gradient.rollout import TrajectoryBatch

__all__ = ["Estimate", "PolicyOptimizer", "SamplingPoint", "StepInfo"]

GRADIENT = "gradient"  # the name of the batch that every method asks for


@dataclass(frozen=True, slots=True)
class SamplingPoint:
    """A batch that an optimiser wants: its name, the parameters it must be drawn at, and how large it shall be."""

    name: str
    parameters: Tensor  # (P,)
    num_trajectories: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A direction d_t and what went into it."""

    direction: Tensor  # (P,)
    hvp_norm: float | None = None
    importance_weight: float | None = None  # mean over the trajectories


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What one step did."""

    step: int  # t, from 0
    momentum: float  # η_t
    learning_rate: float  # γ_t
    direction_norm: float  # ‖d_t‖
    step_length: float  # ‖θ_{t+1} - θ_t‖; 0 if d_t = 0
    hvp_norm: float | None = None
    importance_weight: float | None = None


class PolicyOptimizer(ABC):
    """Stochastic ascent on J(θ): ask `sampling_points`, draw the batches there, hand them to `step`.

    Batches drawn elsewhere are refused, because every estimate here is unbiased only at the point it was drawn at.
    ``parameters`` is θ_t, which `step` also writes into the policy.

    Parameters
    ----------
    policy : Policy
        What is trained in evaluation mode where that matters.
    lr : float
        γ_0 > 0: of normalised methods the length of the first step.
    momentum : float, default 1.0
        η_0 > 0, the weight of the new estimate; η_t is cut at 1.
    schedule : bool, default True
        γ_t = γ_0 (2/(t+2))^``lr_power`` and η_t = η_0 (2/(t+2))^``momentum_power``; otherwise both stay constant.
    max_kl : float, optional
        Halve a step until ½ mean (Δ log π)² over the batch, an estimate of the divergence KL in nats a step, is below.
        Default: no check.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or a layer is in training mode that draws random numbers or changes its buffers.
    """

    lr_power: float
    momentum_power: float
    normalized: bool = True
    _own_settings: tuple[str, ...] = ()  # attributes of a method that its steps depend on

    def __init__(
        self,
        policy: Policy,
        lr: float,
        momentum: float = 1.0,
        *,
        schedule: bool = True,
        max_kl: float | None = None,
    ) -> None:
        name = type(self).__name__
        choose_parameters(name, policy, None)
        for argument, value in (("lr", lr), ("momentum", momentum), ("max_kl", 1.0 if max_kl is None else max_kl)):
            if not 0 < value < math.inf:
                raise ArgumentError(f"{name}: expected a finite {argument} > 0, got {value}")
        self.policy, self.lr, self.momentum, self.schedule, self.max_kl = policy, lr, momentum, schedule, max_kl
        self.parameters = flat_parameters(policy)
        self.previous = self.parameters
        self.direction: Tensor | None = None
        self.num_steps = 0
        self._points: dict[str, Tensor] | None = None

    # what a method gives ------------------------------------------------------------------------------------------

    @abstractmethod
    def _sample_at(self, generator: Generator | None) -> dict[str, Tensor]:
        """Return the parameters to sample at by name; asked once a step."""

    @abstractmethod
    def _estimate(self, batches: Mapping[str, TrajectoryBatch], momentum: float) -> Estimate:
        """Return d_t from batches that have been checked."""

    # the protocol -------------------------------------------------------------------------------------------------

    def sampling_points(
        self, batch: int = 15, hvp_batch: int | None = None, generator: Generator | None = None
    ) -> list[SamplingPoint]:
        """Say where the next step needs trajectories; the same answer until `step` is called.

        Parameters
        ----------
        batch : int, default 15
            Trajectories for the gradient.
        hvp_batch : int, optional
            For the Hessian-vector product of methods that take one. Default: as many.
        generator : torch.Generator, optional
            Of methods that draw the point. Default: torch's global generator.

        Returns
        -------
        list of SamplingPoint
            One or two.

        Raises
        ------
        ArgumentError
            If a size is below 1.
        """
        sizes = {GRADIENT: batch, "hvp": batch if hvp_batch is None else hvp_batch}
        if min(sizes.values()) < 1:
            raise ArgumentError(f"{type(self).__name__}: batch and hvp_batch must be >= 1, got {batch} and {hvp_batch}")
        if self._points is None:
            self._points = self._sample_at(generator)
        return [SamplingPoint(name, vector, sizes[name]) for name, vector in self._points.items()]

    def step(self, batches: Mapping[str, TrajectoryBatch]) -> StepInfo:
        """Take one step: θ_{t+1} = θ_t + γ_t d_t, or γ_t d_t/‖d_t‖ for normalised methods.

        Parameters
        ----------
        batches : mapping of str to TrajectoryBatch
            One a sampling point, drawn there.

        Returns
        -------
        StepInfo
            Plain numbers.

        Raises
        ------
        ArgumentError
            If a batch is missing, or was drawn at other parameters than those asked for.
        NumericalError
            If an estimate, or the next point, is not finite.
        """
        self._check(batches)
        momentum = self.momentum_at(self.num_steps)
        learning_rate = self.lr * self._decay(self.num_steps) ** self.lr_power
        found = self._estimate(batches, momentum)
        norm = float(found.direction.norm())
        if not math.isfinite(norm):
            raise NumericalError(f"{type(self).__name__}.step: the direction is not finite; take a smaller lr")
        unit = max(norm, torch.finfo(found.direction.dtype).tiny) if self.normalized else 1.0
        change = self._within_trust(batches[GRADIENT], learning_rate / unit * found.direction)
        self.direction, self.previous = found.direction, self.parameters
        self.parameters = self.parameters + change
        self.num_steps += 1
        self._points = None
        load_parameters(self.policy, self.parameters)
        return StepInfo(
            self.num_steps - 1,
            momentum,
            learning_rate,
            norm,
            float(change.norm()),
            found.hvp_norm,
            found.importance_weight,
        )

    def momentum_at(self, step: int) -> float:
        """Return η_t, at most 1.

        Parameters
        ----------
        step : int
            t >= 0.

        Returns
        -------
        float
            As the schedule has it.
        """
        return min(1.0, self.momentum * self._decay(step) ** self.momentum_power)

    def settings(self) -> dict[str, str]:
        """Name the method and its constants: a run goes on as it began only where they agree.

        Returns
        -------
        dict of str to str
            "optimizer", and the constructor's arguments but for the policy.
        """
        names = ("lr", "momentum", "normalized", "schedule", "max_kl", *self._own_settings)
        return {"optimizer": type(self).__name__} | {name: str(getattr(self, name)) for name in names}

    def state(self) -> dict[str, Tensor]:
        """Copy what a later run needs to go on, between two steps.

        Returns
        -------
        dict of str to Tensor
            θ_t, θ_{t-1}, d_{t-1} (once there is one) and t.
        """
        found = {"parameters": self.parameters, "previous": self.previous, "num_steps": torch.tensor(self.num_steps)}
        if self.direction is not None:
            found["direction"] = self.direction
        return {name: tensor.clone() for name, tensor in found.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where `state` was taken; writes θ_t into the policy.

        Parameters
        ----------
        state : mapping of str to Tensor
            From `state` of an optimiser of the same class and policy.

        Raises
        ------
        ArgumentError
            If an entry is missing or of another size.
        """
        for name in ("parameters", "previous", "direction"):
            if name not in state and not (name == "direction" and int(state.get("num_steps", 1)) == 0):
                raise ArgumentError(f"{type(self).__name__}.load_state: the state has no {name}")
            if name in state and state[name].shape != self.parameters.shape:
                raise ArgumentError(
                    f"{type(self).__name__}.load_state: {name} has shape {tuple(state[name].shape)}, the policy "
                    f"{len(self.parameters)} parameters"
                )
        here = self.parameters
        self.parameters, self.previous = (state[name].to(here, copy=True) for name in ("parameters", "previous"))
        self.direction = state["direction"].to(here, copy=True) if "direction" in state else None
        self.num_steps = int(state["num_steps"])
        self._points = None
        load_parameters(self.policy, self.parameters)

    def _decay(self, step: int) -> float:
        return 2 / (step + 2) if self.schedule else 1.0

    def _check(self, batches: Mapping[str, TrajectoryBatch]) -> None:
        name = type(self).__name__
        if self._points is None:
            raise ArgumentError(f"{name}.step: ask sampling_points() first, and draw the batches there")
        if set(batches) != set(self._points):
            raise ArgumentError(f"{name}.step: expected batches {sorted(self._points)}, got {sorted(batches)}")
        for key, vector in self._points.items():
            if not torch.equal(batches[key].parameters, vector):
                raise ArgumentError(
                    f"{name}.step: batch {key!r} was not drawn at its sampling point; load_parameters(policy, "
                    "point.parameters) before collect()"
                )

    def _within_trust(self, batch: TrajectoryBatch, change: Tensor) -> Tensor:
        if self.max_kl is None or not bool(change.any()):
            return change
        with torch.no_grad():
            before = step_log_probs(batch, self.policy, self.parameters)
            for _ in range(30):
                after = step_log_probs(batch, self.policy, self.parameters + change)
                if float((after - before).square().mean()) / 2 <= self.max_kl:
                    return change
                change = change / 2
        raise NumericalError(
            f"{type(self).__name__}.step: no step is short enough for max_kl {self.max_kl}; log-probabilities jump"
        )
