"""Fully first-order bilevel optimisation: a penalty on the lower level whose multiplier λ = 1/s grows without end.

z ← z - γ g_y(x, z),   y ← y - (γ/2λ) (f_y + λ g_y)(x, y),   x ← x - a (f_x(x, y) + λ (g_x(x, y) - g_x(x, z)))

Shapes: x (N,), y and z (M,).
"""

from typing import Literal

from torch import Tensor

from hesse.bilevel.penalty.two_copies import TwoCopies
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import positive
from hesse.errors import ArgumentError

__all__ = ["F2SA", "F3SA"]

Schedule = Literal["5/7", "3/5", "1/3"]
_EXPONENTS = {"5/7": (5 / 7, 4 / 7), "3/5": (3 / 5, 2 / 5), "1/3": (1 / 3, 0.0)}  # of the steps of y and of z


class _Growing(TwoCopies):
    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lr_lower: float,
        multiplier: float,
        multiplier_increment: float,
        schedule: Schedule,
        seed: int,
    ) -> None:
        super().__init__(problem, seed=seed)
        call = type(self).__name__
        positive(call, lr=lr, lr_lower=lr_lower, multiplier=multiplier)
        if not multiplier_increment >= 0:
            raise ArgumentError(f"{call}: expected multiplier_increment >= 0, got {multiplier_increment}")
        if schedule not in _EXPONENTS:
            raise ArgumentError(f"{call}: schedule must be one of {', '.join(_EXPONENTS)}; got {schedule!r}")
        self.lr, self.lr_lower = lr, lr_lower
        self.multiplier_start, self.multiplier_increment = multiplier, multiplier_increment
        self.fast, self.slow = _EXPONENTS[schedule]

    @property
    def multiplier(self) -> float:
        """The multiplier λ of the next step."""
        growth = (1 + self.multiplier_increment * self.iteration) ** (self.fast - self.slow)
        return self.multiplier_start * growth

    @property
    def sigma(self) -> float:
        """The penalty s = 1/λ of the next step."""
        return 1 / self.multiplier

    @property
    def _shrink(self) -> float:
        return (self.iteration + 1) ** -self.slow

    def _move_copies(self, upper_y: Tensor, lower_y: Tensor, lower_z: Tensor) -> None:
        gamma = self.lr_lower * self._shrink
        self.y = self.oracle.project_y(self.y - gamma / 2 * (upper_y / self.multiplier + lower_y))
        self.z = self.oracle.project_y(self.z - gamma * lower_z)

    def _move_x(self, estimate: Tensor) -> Tensor:
        self.x = self.oracle.project_x(self.x - self.lr * self._shrink * estimate)
        return estimate


class F2SA(_Growing):
    """Several plain steps of both copies, then one of x; for a strongly convex lower level.

    Parameters
    ----------
    problem : BilevelProblem
        With or without samplers.
    lr : float
        First step a of x; it falls as (k + 1)^(-c), the exponent of the public benchmark.
    lr_lower : float
        First step γ of z, below 2 / ‖g_yy‖, and below 4 / ‖g_yy + f_yy/λ‖ for y, which takes half of it; it falls as
        (k + 1)^(-c) too.
    inner_steps : int, default 10
        Steps of y and z an iteration, each on a batch of its own.
    multiplier : float, default 1.0
        First λ; above twice the curvature of f over that of g, y's problem is strongly convex.
    multiplier_increment : float, default 0.1
        λ = multiplier (1 + multiplier_increment k)^(a - c): how soon it begins to grow.
    schedule : {"5/7", "3/5", "1/3"}, default "5/7"
        (a, c), exponents of the steps of y and z: (5/7, 4/7) for noise in both levels, (3/5, 2/5) in f only,
        (1/3, 0) without noise.
    seed : int, default 0
        Unused but for the interface.

    References
    ----------
    J. Kwon, D. Kwon, S. Wright, R. Nowak (2023), ICML, arXiv 2301.10945.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lr_lower: float,
        inner_steps: int = 10,
        multiplier: float = 1.0,
        multiplier_increment: float = 0.1,
        schedule: Schedule = "5/7",
        seed: int = 0,
    ) -> None:
        super().__init__(
            problem,
            lr=lr,
            lr_lower=lr_lower,
            multiplier=multiplier,
            multiplier_increment=multiplier_increment,
            schedule=schedule,
            seed=seed,
        )
        positive("F2SA", inner_steps=inner_steps)
        self.inner_steps = inner_steps

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            f_x + λ (g_x(x, y) - g_x(x, z)).
        """
        oracle = self.oracle
        for _ in range(self.inner_steps):
            upper, lower_y, lower_z = self.draw_batches()
            upper_y = oracle.upper_gradients(self.x, self.y, upper)[1]
            self._move_copies(
                upper_y, oracle.lower_gradient(self.x, self.y, lower_y), oracle.lower_gradient(self.x, self.z, lower_z)
            )
        found = self.tracked_gradients(1.0)
        return self._move_x(found.upper_x + self.multiplier * found.difference)


class F3SA(_Growing):
    """One step of every variable an iteration, all gradients with recursive momentum.

    Parameters
    ----------
    problem : BilevelProblem
        With or without samplers.
    lr, lr_lower
        First steps, as of `F2SA`.
    momentum : float, default 0.02
        Floor of the weight of the newest sample, max(momentum, (k + 1)^(-2/3)).
    multiplier, multiplier_increment, schedule
        As of `F2SA`.
    seed : int, default 0
        Unused but for the interface.

    Raises
    ------
    ArgumentError
        If ``momentum`` is not in (0, 1].

    References
    ----------
    J. Kwon, D. Kwon, S. Wright, R. Nowak (2023), ICML, arXiv 2301.10945.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lr_lower: float,
        momentum: float = 0.02,
        multiplier: float = 1.0,
        multiplier_increment: float = 0.1,
        schedule: Schedule = "5/7",
        seed: int = 0,
    ) -> None:
        super().__init__(
            problem,
            lr=lr,
            lr_lower=lr_lower,
            multiplier=multiplier,
            multiplier_increment=multiplier_increment,
            schedule=schedule,
            seed=seed,
        )
        if not 0 < momentum <= 1:
            raise ArgumentError(f"F3SA: expected 0 < momentum <= 1, got {momentum}")
        self.momentum = momentum

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            f_x + λ (g_x(x, y) - g_x(x, z)), averaged.
        """
        found = self.tracked_gradients(self.momentum)
        self._move_copies(found.upper_y, found.lower_y, found.lower_z)
        return self._move_x(found.upper_x + self.multiplier * found.difference)
