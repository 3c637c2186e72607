"""Single loop: y, v and x each move once an iteration, all from the old triple and one pair of batches.

y ← y - r g_y,   v ← v - r (g_yy v - f_y),   x ← x - s m,   m ← (1 - b) m + b (f_x - g_xy v)
"""

from typing import ClassVar

import torch
from torch import Tensor

from hesse.bilevel.oracle import JointProducts
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import BilevelSolver, positive
from hesse.errors import ArgumentError

__all__ = ["MASOBA", "SOBA"]


class SOBA(BilevelSolver):
    """One joint double backward and one upper gradient an iteration; b = 1 and steps that decay.

    Parameters
    ----------
    problem : BilevelProblem
        With or without samplers.
    lr : float
        First step s of x.
    lr_lower : float
        First step of y, below 2 / ‖g_yy‖.
    lr_linear : float, optional
        First step of v. Default: ``lr_lower``.
    decay : float, default 0.5
        All steps fall as (k + 1)^(-decay).
    seed : int, default 0
        Unused but for the interface.

    References
    ----------
    M. Dagréou, P. Ablin, S. Vaiter, T. Moreau (2022), NeurIPS, arXiv 2201.13409.
    """

    tensors: ClassVar[tuple[str, ...]] = ("x", "y", "v")

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lr_lower: float,
        lr_linear: float | None = None,
        decay: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(problem, seed=seed)
        self.lr, self.lr_lower, self.decay = lr, lr_lower, decay
        self.lr_linear = lr_lower if lr_linear is None else lr_linear
        positive(type(self).__name__, lr=lr, lr_lower=lr_lower, lr_linear=self.lr_linear)
        if not decay >= 0:
            raise ArgumentError(f"{type(self).__name__}: expected decay >= 0, got {decay}")
        self.v = torch.zeros_like(self.y)

    def _derivatives(self) -> tuple[JointProducts, Tensor, Tensor]:
        upper_x, upper_y = self.oracle.upper_gradients(self.x, self.y, self.draw_upper())
        return self.oracle.joint(self.x, self.y, self.v, self.draw_lower()), upper_x, upper_y

    def _direction(self, estimate: Tensor) -> Tensor:
        return estimate

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            The estimate, averaged where the solver averages.
        """
        products, upper_x, upper_y = self._derivatives()
        shrink = (self.iteration + 1) ** -self.decay
        direction = self._direction(upper_x - products.jacobian_product)
        self.y = self.oracle.project_y(self.y - shrink * self.lr_lower * products.lower_gradient)
        self.v = self.v - shrink * self.lr_linear * (products.hessian_product - upper_y)
        self.x = self.oracle.project_x(self.x - shrink * self.lr * direction)
        return direction


class MASOBA(SOBA):
    """SOBA along a moving average of its estimates, with constant steps.

    Parameters
    ----------
    problem : BilevelProblem
        With or without samplers.
    lr, lr_lower, lr_linear
        Steps, as of `SOBA`.
    averaging : float, default 0.1
        b in (0, 1], the weight of the newest estimate.
    decay : float, default 0.0
        As of `SOBA`.
    seed : int, default 0
        Unused but for the interface.

    Raises
    ------
    ArgumentError
        If ``averaging`` is not in (0, 1].

    References
    ----------
    X. Chen, T. Xiao, K. Balasubramanian (2024), JMLR 25, arXiv 2306.12067.
    """

    tensors: ClassVar[tuple[str, ...]] = ("x", "y", "v", "average")

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lr_lower: float,
        lr_linear: float | None = None,
        averaging: float = 0.1,
        decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(problem, lr=lr, lr_lower=lr_lower, lr_linear=lr_linear, decay=decay, seed=seed)
        if not 0 < averaging <= 1:
            raise ArgumentError(f"MASOBA: expected 0 < averaging <= 1, got {averaging}")
        self.averaging = averaging
        self.average: Tensor | None = None

    def _direction(self, estimate: Tensor) -> Tensor:
        if self.average is None:
            self.average = estimate
        else:
            self.average = torch.lerp(self.average, estimate, self.averaging)
        return self.average
