"""Double-loop stochastic solvers: several steps on g, then v by a Neumann series (stocBiO) or by SGD (AmIGO).

stocBiO   v = a Σ_{q<=Q} Π_{j<=q} (I - a g_yy(·; batch_j)) f_y
AmIGO     v ← v - r (g_yy v - f_y), N times, from the last v
"""

from typing import ClassVar

import torch
from torch import Tensor

from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import BilevelSolver, positive

__all__ = ["AmIGO", "StocBiO"]


class _DoubleLoop(BilevelSolver):
    def __init__(
        self, problem: BilevelProblem, *, lr: float, lr_lower: float, lower_steps: int, linear_steps: int, seed: int
    ) -> None:
        super().__init__(problem, seed=seed)
        positive(type(self).__name__, lr=lr, lr_lower=lr_lower, lower_steps=lower_steps, linear_steps=linear_steps)
        self.lr, self.lr_lower, self.lower_steps, self.linear_steps = lr, lr_lower, lower_steps, linear_steps

    def _lower_loop(self) -> None:
        for _ in range(self.lower_steps):
            gradient = self.oracle.lower_gradient(self.x, self.y, self.draw_lower())
            self.y = self.oracle.project_y(self.y - self.lr_lower * gradient)

    def _hessian_product(self, v: Tensor) -> Tensor:
        return self.oracle.hessian_product(self.x, self.y, v, self.draw_lower())

    def _move(self, upper_x: Tensor, v: Tensor) -> Tensor:
        estimate = upper_x - self.oracle.jacobian_product(self.x, self.y, v, self.draw_lower())
        self.x = self.oracle.project_x(self.x - self.lr * estimate)
        return estimate


class StocBiO(_DoubleLoop):
    """Neumann series from f_y anew in every iteration: its bias (1 - a μ)^Q stays.

    Parameters
    ----------
    problem : BilevelProblem
        With or without samplers.
    lr : float
        Step of x.
    lr_lower : float
        a, of y and of the series; below 1 / ‖g_yy‖.
    lower_steps : int, default 10
        Steps of y an iteration, from the last y.
    linear_steps : int, default 10
        Q. Take several times 1 / (a μ).
    seed : int, default 0
        Unused but for the interface.

    References
    ----------
    K. Ji, J. Yang, Y. Liang (2021), ICML, arXiv 2010.07962.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lr_lower: float,
        lower_steps: int = 10,
        linear_steps: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__(
            problem, lr=lr, lr_lower=lr_lower, lower_steps=lower_steps, linear_steps=linear_steps, seed=seed
        )

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            The estimate followed.
        """
        self._lower_loop()
        upper_x, term = self.oracle.upper_gradients(self.x, self.y, self.draw_upper())
        total = term
        for _ in range(self.linear_steps):
            term = term - self.lr_lower * self._hessian_product(term)
            total = total + term
        return self._move(upper_x, self.lr_lower * total)


class AmIGO(_DoubleLoop):
    """Both inner problems by SGD from where they stood: no bias is left where the batches have no noise.

    Parameters
    ----------
    problem : BilevelProblem
        With or without samplers.
    lr : float
        Step of x.
    lr_lower : float
        Step of y, below 2 / ‖g_yy‖.
    lr_linear : float, optional
        r. Default: ``lr_lower``.
    lower_steps, linear_steps : int, default 10
        Steps of y and of v an iteration.
    seed : int, default 0
        Unused but for the interface.

    References
    ----------
    M. Arbel, J. Mairal (2022), ICLR, arXiv 2111.14580.
    """

    tensors: ClassVar[tuple[str, ...]] = ("x", "y", "v")

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lr_lower: float,
        lr_linear: float | None = None,
        lower_steps: int = 10,
        linear_steps: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__(
            problem, lr=lr, lr_lower=lr_lower, lower_steps=lower_steps, linear_steps=linear_steps, seed=seed
        )
        self.lr_linear = lr_lower if lr_linear is None else lr_linear
        positive("AmIGO", lr_linear=self.lr_linear)
        self.v = torch.zeros_like(self.y)

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            The estimate followed.
        """
        self._lower_loop()
        upper_x, upper_y = self.oracle.upper_gradients(self.x, self.y, self.draw_upper())
        for _ in range(self.linear_steps):
            self.v = self.v - self.lr_linear * (self._hessian_product(self.v) - upper_y)
        return self._move(upper_x, self.v)
