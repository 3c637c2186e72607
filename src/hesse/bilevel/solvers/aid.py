"""Approximate implicit differentiation with ever finer inner solves, and a line search for the upper step.

y ← y*(x) to tol_k,  v by conjugate gradients to tol_k,  x ← x + t (P(x - s d) - x),   tol_k = c (k + 1)⁻²
"""

from typing import ClassVar

import torch
from torch import Tensor

from hesse.bilevel.hypergradient.adjoint import solve_adjoint
from hesse.bilevel.hypergradient.lower import solve_lower
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import BilevelSolver, positive
from hesse.errors import ConvergenceError
from hesse.linalg.line_search import armijo
from hesse.linalg.solvers._block import Preconditioner

__all__ = ["AID"]


class AID(BilevelSolver):
    """Deterministic, warm-started, on all data: the one to try first where that is affordable.

    Parameters
    ----------
    problem : BilevelProblem
        Its lower level strongly convex and not confined to a set; ``project_x`` is obeyed.
    lr : float, default 1.0
        First trial step s; it doubles after a step taken in full and follows the line search down.
    tolerance : float, default 0.1
        c, relative to the first lower gradient and to f_y.
    max_steps : int, default 200
        Newton steps of an inner solve, and conjugate-gradient steps of each and of the adjoint.
    preconditioner : LinearOperator or callable, optional
        For the adjoint; see `hesse.bilevel.hypergradient`.
    seed : int, default 0
        Unused but for the interface: nothing here is random.

    References
    ----------
    F. Pedregosa (2016), ICML, arXiv 1602.02355, whose schedule of tolerances this is; its step-size rule is not.
    """

    tensors: ClassVar[tuple[str, ...]] = ("x", "y", "v", "trial", "scale")

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float = 1.0,
        tolerance: float = 0.1,
        max_steps: int = 200,
        preconditioner: Preconditioner | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(problem, seed=seed)
        positive("AID", lr=lr, tolerance=tolerance, max_steps=max_steps)
        self.tolerance, self.max_steps, self.preconditioner = tolerance, max_steps, preconditioner
        self.v = torch.zeros_like(self.y)
        self.trial = torch.tensor(lr, dtype=torch.float64)
        self.scale: Tensor | None = None

    def step(self) -> Tensor:
        """Solve both inner problems to this step's tolerance, then search along the direction.

        Returns
        -------
        Tensor, shape (N,)
            d; where its step could not lessen f any more, x stays.

        Raises
        ------
        ConvergenceError
            If no step along the first direction lessens f.
        """
        oracle, x = self.oracle, self.x
        if self.scale is None:
            self.scale = oracle.lower_gradient(x, self.y).norm().double().clamp_min(1e-12)
        fine = self.tolerance * (self.iteration + 1) ** -2
        tol = max(fine * float(self.scale), 1e-14)
        y = solve_lower(oracle, x, self.y, tol=tol, max_steps=self.max_steps, max_cg_steps=self.max_steps).y
        upper_x, upper_y = oracle.upper_gradients(x, y)
        v = solve_adjoint(
            oracle,
            x,
            y,
            upper_y,
            rtol=max(fine, 1e-14),
            max_steps=self.max_steps,
            v0=self.v,
            preconditioner=self.preconditioner,
        ).v
        estimate = upper_x - oracle.jacobian_product(x, y, v)
        trial = float(self.trial)
        path = oracle.project_x(x - trial * estimate) - x
        slope = float(estimate @ path)
        self.y, self.v = y, v
        if not slope < 0:
            return estimate if self.problem.project_x is None else path / trial  # stationary

        def value(t: float) -> Tensor:
            moved = x + t * path
            lower = solve_lower(oracle, moved, y, tol=tol, max_steps=self.max_steps, max_cg_steps=self.max_steps).y
            # f(x, y) - vᵀg_y is Φ(x) up to the square of what y lacks: the plain value would not see that y lags behind
            return oracle.value(moved, lower) - v @ oracle.lower_gradient(moved, lower)

        with torch.no_grad():
            start = value(0.0)
            slack = 1e-14 * abs(float(start))
            search = armijo(value, start, slope, slack=slack, max_steps=30)
        if not search.converged:
            if self.iteration == 0:
                raise ConvergenceError("AID: no step along the first direction lessens f; lower tolerance or lr")
            return estimate
        self.x = x + search.step * path
        self.trial = torch.tensor(trial * (2.0 if search.num_steps == 1 else search.step), dtype=torch.float64)
        return estimate if self.problem.project_x is None else path / trial
