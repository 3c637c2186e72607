"""Two time scales: one step on g, a Neumann product of random length, one step on f.

y ← y - b_k g_y,   v = Q a Π_{j<=p} (I - a g_yy(·; batch_j)) f_y,  p uniform on 0 … Q - 1,   x ← x - a_k (f_x - g_xy v)
a_k = lr (k + 1)^(-3/5),   b_k = lr_lower (k + 1)^(-2/5)
"""

import torch
from torch import Tensor

from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import BilevelSolver, positive

__all__ = ["TTSA"]


class TTSA(BilevelSolver):
    """A cheap and noisy estimate: in the mean over p that of a series of Q terms.

    Parameters
    ----------
    problem : BilevelProblem
        With or without samplers.
    lr : float
        First step of x.
    lr_lower : float
        First step of y.
    lr_linear : float, optional
        a <= 1 / ‖g_yy‖, constant. Default: ``lr_lower``.
    linear_steps : int, default 10
        Q; the noise of the estimate grows with it, its bias (1 - a μ)^Q falls.
    seed : int, default 0
        Of the random lengths.

    References
    ----------
    M. Hong, H.-T. Wai, Z. Wang, Z. Yang (2023), SIAM J. Optim. 33(1), arXiv 2007.05170.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lr_lower: float,
        lr_linear: float | None = None,
        linear_steps: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__(problem, seed=seed)
        self.lr, self.lr_lower, self.linear_steps = lr, lr_lower, linear_steps
        self.lr_linear = lr_lower if lr_linear is None else lr_linear
        positive("TTSA", lr=lr, lr_lower=lr_lower, lr_linear=self.lr_linear, linear_steps=linear_steps)

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            The estimate followed.
        """
        k = self.iteration + 1
        gradient = self.oracle.lower_gradient(self.x, self.y, self.draw_lower())
        self.y = self.oracle.project_y(self.y - self.lr_lower * k**-0.4 * gradient)
        upper_x, v = self.oracle.upper_gradients(self.x, self.y, self.draw_upper())
        length = int(torch.randint(self.linear_steps, (), generator=self.generator))
        for _ in range(length):
            v = v - self.lr_linear * self.oracle.hessian_product(self.x, self.y, v, self.draw_lower())
        v = self.linear_steps * self.lr_linear * v
        estimate = upper_x - self.oracle.jacobian_product(self.x, self.y, v, self.draw_lower())
        self.x = self.oracle.project_x(self.x - self.lr * k**-0.6 * estimate)
        return estimate
