"""What the first-order penalty solvers share: two copies of the lower variable, gradients at both on the same samples.

y nearly minimises s f(x, ·) + g(x, ·),   z nearly minimises g(x, ·)
∇ψ_s(x) ≈ f_x(x, y) + (g_x(x, y) - g_x(x, z)) / s,   ψ_s = (f_s - g)/s of the two minimal values

Shapes: x (N,), y and z (M,).
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hesse.bilevel.checks import require_separate_sets
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import BilevelSolver

__all__ = ["PenaltyGradients", "TwoCopies"]


class PenaltyGradients(NamedTuple):
    """The five gradients that a penalty step is made of."""

    upper_x: Tensor  # (N,): f_x(x, y)
    upper_y: Tensor  # (M,): f_y(x, y)
    lower_y: Tensor  # (M,): g_y(x, y)
    lower_z: Tensor  # (M,): g_y(x, z)
    difference: Tensor  # (N,): g_x(x, y) - g_x(x, z)


class TwoCopies(BilevelSolver):
    """A solver by gradients of f and g alone.

    A subclass gives `step` and `sigma`; both copies start at the problem's ``y0``, so that along directions in which g
    is flat they part by what f asks for and by nothing else.

    Parameters
    ----------
    problem : BilevelProblem
        ``project_x`` and ``project_y`` are obeyed.
    seed : int, default 0
        Unused but for the interface: batches come from the problem's samplers.

    Raises
    ------
    ArgumentError
        If the lower level has constraint functions without a projection, or a set that couples x and y.
    """

    tensors: ClassVar[tuple[str, ...]] = ("x", "y", "z", "tracked", "old_point")

    def __init__(self, problem: BilevelProblem, *, seed: int = 0) -> None:
        require_separate_sets(type(self).__name__, problem)
        super().__init__(problem, seed=seed)
        self.y = self.oracle.project_y(self.y)
        self.z = self.y
        self.tracked: Tensor | None = None  # (2 N + 3 M,)
        self.old_point: Tensor | None = None  # (N + 2 M,): x, y, z where they were tracked last

    @property
    @abstractmethod
    def sigma(self) -> float:
        """The penalty s of the next step."""

    def draw_batches(self) -> tuple[Any, Any, Any]:
        """Draw the samples of one evaluation.

        Returns
        -------
        upper, lower_y, lower_z : object
            Batches for f, for g at y and for g at z. The last two are one and the same: the noise of g_x cancels in the
            difference, which is divided by s.
        """
        upper, lower = self.draw_upper(), self.draw_lower()
        return upper, lower, lower

    def gradients_at(self, x: Tensor, y: Tensor, z: Tensor, batches: tuple[Any, Any, Any]) -> Tensor:
        """Take all five gradients in three backwards.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Upper variable.
        y, z : Tensor, shape (M,)
            The copies.
        batches : tuple
            From `draw_batches`.

        Returns
        -------
        Tensor, shape (2 N + 3 M,)
            In the order of `PenaltyGradients`, end to end.
        """
        upper, lower_y, lower_z = batches
        upper_x, upper_y = self.oracle.upper_gradients(x, y, upper)
        by_x, by_y = self.oracle.lower_gradients(x, y, lower_y)
        at_z, by_z = self.oracle.lower_gradients(x, z, lower_z)
        return torch.cat([upper_x, upper_y, by_y, by_z, by_x - at_z])

    def tracked_gradients(self, momentum: float) -> PenaltyGradients:
        """Estimate the gradients at the present point with recursive momentum.

        q̃ = q(point; ξ) + (1 - η) (q̃_old - q(old point; ξ)),   η = max(momentum, (k + 1)^(-2/3))

        Parameters
        ----------
        momentum : float
            Floor of η in (0, 1]. At 1, and without samplers, nothing is remembered and half of the work is saved.

        Returns
        -------
        PenaltyGradients
            Unbiased where the last estimate was.
        """
        batches = self.draw_batches()
        order, size = len(self.y), len(self.x)
        found = self.gradients_at(self.x, self.y, self.z, batches)
        if momentum < 1 and self.is_noisy:
            if self.tracked is not None and self.old_point is not None:
                weight = max(momentum, (self.iteration + 1) ** (-2 / 3))
                x, y, z = self.old_point.split([size, order, order])
                found = found + (1 - weight) * (self.tracked - self.gradients_at(x, y, z, batches))
            self.tracked, self.old_point = found, torch.cat([self.x, self.y, self.z])
        return PenaltyGradients(*found.split([size, order, order, order, size]))

    @property
    def is_noisy(self) -> bool:
        """Whether batches are drawn at all."""
        return bool(self._samplers())

    def extra(self) -> dict[str, Any]:
        """Say how far apart the copies are, on all data.

        Returns
        -------
        dict
            "z", shaped like y; "sigma"; "penalty_value", ψ_s ≈ f(x, y) + (g(x, y) - g(x, z))/s; "penalty_gap", the
            second term of it, >= 0 and of order s where both copies are solved for.
        """
        with torch.no_grad():
            upper = float(self.oracle.value(self.x, self.y))
            gap = float(self.oracle.lower_value(self.x, self.y) - self.oracle.lower_value(self.x, self.z))
        sigma = self.sigma
        return {
            "z": self.problem.y_layout.unflatten(self.z.clone()),
            "sigma": sigma,
            "penalty_value": upper + gap / sigma,
            "penalty_gap": gap / sigma,
        }
