"""Iterative differentiation: the gradient of f through a few gradient steps on g.

y_{k+1} = y_k - a g_y(x, y_k) for N steps,   x ← P(x - lr ∇_x f(x, y_N(x)))
"""

from torch import Tensor

from hesse.bilevel.hypergradient.unrolled import unroll
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import BilevelSolver, positive

__all__ = ["ITD"]


class ITD(BilevelSolver):
    """No linear system; biased by (1 - a μ)^N, the less as the warm start comes to rest.

    Parameters
    ----------
    problem : BilevelProblem
        With samplers: one lower batch for all N steps of an iteration.
    lr : float
        Step of x.
    lr_lower : float
        a < 2 / ‖g_yy‖.
    lower_steps : int, default 10
        N.
    truncation : int, optional
        Go back through the last so many steps only. Default: all.
    seed : int, default 0
        Unused but for the interface.

    References
    ----------
    L. Franceschi, M. Donini, P. Frasconi, M. Pontil (2017), ICML, arXiv 1703.01785.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lr_lower: float,
        lower_steps: int = 10,
        truncation: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(problem, seed=seed)
        positive("ITD", lr=lr, lr_lower=lr_lower, lower_steps=lower_steps)
        if truncation is not None:
            positive("ITD", truncation=truncation)
        self.lr, self.lr_lower, self.lower_steps, self.truncation = lr, lr_lower, lower_steps, truncation

    def step(self) -> Tensor:
        """Unroll N steps from where the last ones ended.

        Returns
        -------
        Tensor, shape (N,)
            The gradient through them.
        """
        lower_batch, upper_batch = self.draw_lower(), self.draw_upper()
        estimate, self.y = unroll(
            self.oracle, self.x, self.y, self.lower_steps, self.lr_lower, self.truncation, upper_batch, lower_batch
        )
        self.x = self.oracle.project_x(self.x - self.lr * estimate)
        return estimate
