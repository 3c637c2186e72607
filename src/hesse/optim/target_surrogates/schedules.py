"""Step lengths η in the space of outputs: scheduled, or searched for along the step an unlimited model would make."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hesse.linalg import armijo
from hesse.optim.target_surrogates.surrogate import Divergence, mirror_step

__all__ = [
    "CLIP",
    "DECREASE",
    "GROWTH",
    "INVERSE_SMOOTHNESS",
    "SCHEDULES",
    "SHRINK",
    "EtaSearch",
    "Schedule",
    "eta_factor",
]

Schedule = Literal["constant", "sqrt", "exponential", "adagrad", "diagonal-adagrad", "line-search"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)

INVERSE_SMOOTHNESS = {"half-squared": 1.0, "squared": 0.5, "logistic": 4.0, "cross-entropy": 2.0}
"""1/L_z of ½‖z-y‖², ‖z-y‖², log(1 + exp(-yz)), and cross-entropy of softmax(z)."""

GROWTH, SHRINK, DECREASE = 1.8, 0.9, 0.5  # Lavington et al., for both line searches: in outputs and in parameters
CLIP = (1e-4, 1e4)


def eta_factor(schedule: Schedule, t: int, total_steps: int | None) -> float:
    """Multiple of the first η that step t = 1, 2, ... uses.

    Parameters
    ----------
    schedule : str
        "sqrt": 1/√t. "exponential": (1/T)^(t/T), which ends at 1/T. Others: 1.
    t : int
        Number of the step, from 1.
    total_steps : int, optional
        T, for "exponential"; beyond it the factor stays.

    Returns
    -------
    float
        In (0, 1].
    """
    if schedule == "sqrt":
        return 1 / math.sqrt(t)
    if schedule == "exponential" and total_steps is not None:
        return (1 / total_steps) ** (min(t, total_steps) / total_steps)
    return 1.0


class EtaSearch:
    """A search for η by values of the loss, starting above the last η, with a count of the values.

    Armijo's rule loss(η) <= loss(0) + c η slope, c = 1/2; for a quadratic loss it accepts exactly the steps up to 1/L_z
    along the direction. η stays in [1e-4, 1e4]; if none is accepted, it is the lower end.

    Parameters
    ----------
    target_loss : callable
        z -> mean loss.
    previous : float, optional
        η of the last step: trials start from 1.8 times it. Default: grow from 1 as long as the rule holds.
    """

    def __init__(self, target_loss: Callable[[Tensor], Any], previous: float | None) -> None:
        self.target_loss, self.previous = target_loss, previous
        self.value = math.nan  # of the loss at η = 0, for the caller to set
        self.num_values = 0

    @torch.no_grad()
    def loss_at(self, z: Tensor) -> float:
        """Ask for one value of the loss, and count it.

        Returns
        -------
        float
            The mean loss.
        """
        self.num_values += 1
        return float(self.target_loss(z))

    def run(self, value_fn: Callable[[float], float], value: float, slope: float) -> float:
        """Search along any path.

        Parameters
        ----------
        value_fn : callable
            η -> objective.
        value, slope : float
            Objective at 0 and its derivative there, negative.

        Returns
        -------
        float
            η.
        """
        low, high = CLIP
        start = 1.0
        if self.previous is not None:
            start = min(max(GROWTH * self.previous, low), high)
        while self.previous is None and start < high:
            if not value_fn(start) <= value + DECREASE * start * slope:
                start *= SHRINK
                break
            start = min(GROWTH * start, high)
        trials = 1 + math.ceil(math.log(low / start) / math.log(SHRINK))
        found = armijo(value_fn, value, slope, initial_step=start, shrink=SHRINK, decrease=DECREASE, max_steps=trials)
        return max(found.step, low)

    def along_outputs(self, z: Tensor, gradient: Tensor, divergence: Divergence) -> float:
        """Search along the minimisers of the surrogate over all outputs, which a model of unlimited capacity reaches.

        Parameters
        ----------
        z, gradient : Tensor, shape (b, ..., p)
            Outputs and G.
        divergence : {"euclidean", "kl"} or Tensor of shape (p, p)
            D.

        Returns
        -------
        float
            η.
        """
        if isinstance(divergence, Tensor):
            speed = z - mirror_step(z, gradient, 1.0, divergence)
        elif divergence == "kl":  # derivative of the softmax path at η = 0
            speed = z * (gradient - (z * gradient).sum(-1, keepdim=True))
        else:
            speed = gradient
        slope = -float((gradient.double() * speed.double()).sum()) / len(z)
        if not slope < 0:  # a gradient constant over the simplex moves nothing
            return 1.0 if self.previous is None else self.previous
        return self.run(lambda eta: self.loss_at(mirror_step(z, gradient, eta, divergence)), self.value, slope)
