"""The lower level's solution y*(x) = argmin_y g(x, y), by Newton's method with conjugate gradients inside.

Shapes: N entries of x, M of y.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.bilevel.oracle import Oracle
from hesse.errors import ArgumentError
from hesse.linalg.line_search import armijo
from hesse.linalg.solvers.cg import cg
from hesse.linalg.solvers.solution import Status

__all__ = ["LowerSolution", "solve_lower"]


@dataclass(frozen=True, slots=True)
class LowerSolution:
    """Where the lower level's solver stopped."""

    y: Tensor  # (M,)
    residual: float  # ‖g_y(x, y)‖
    converged: bool
    num_steps: int


def solve_lower(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    tol: float = 1e-10,
    max_steps: int = 100,
    max_cg_steps: int = 200,
    batch: Any = None,
) -> LowerSolution:
    """Go from y to a point with ‖g_y‖ <= tol.

    Parameters
    ----------
    oracle : Oracle
        Of a problem whose lower variable is not confined to a set.
    x : Tensor, shape (N,)
        Upper variable, held fixed.
    y : Tensor, shape (M,)
        Start.
    tol : float, default 1e-10
        In the units of g_y. Not relative to the start, so that warm starts pay.
    max_steps : int, default 100
        Newton steps.
    max_cg_steps : int, default 200
        Products a Newton step at most.
    batch : object, optional
        Of the lower level. Default: all data.

    Returns
    -------
    LowerSolution
        ``converged`` is False too where rounding hides any further descent.

    Raises
    ------
    ArgumentError
        If ``tol <= 0`` or the problem has a set for y: a solution on its edge has no vanishing gradient.

    Notes
    -----
    The inner tolerance follows the residual, min(1/2, √‖g_y‖), so that convergence is superlinear. Where conjugate
    gradients meet negative curvature, the step is the one reached before it.
    """
    if not tol > 0:
        raise ArgumentError(f"solve_lower: expected tol > 0, got {tol}")
    if oracle.problem.project_y is not None or oracle.problem.constraint is not None:
        raise ArgumentError("solve_lower: the lower level is constrained; solve it by a method for its set and pass y")
    y = y.detach().clone()
    gradient = oracle.lower_gradient(x, y, batch)
    norm = float(gradient.norm())
    for step in range(max_steps):
        if norm <= tol:
            return LowerSolution(y, norm, True, step)
        forcing = max(min(0.5, norm**0.5), 0.1 * tol / norm)
        found = cg(oracle.lower_hessian(x, y, batch), -gradient, rtol=forcing, max_steps=max_cg_steps, validate=False)
        direction = found.x
        if found.status >= Status.NEGATIVE_CURVATURE and not bool(direction.any()):
            direction = -gradient
        slope = float(gradient @ direction)
        if not slope < 0:
            direction, slope = -gradient, -(norm**2)
        trial = _step(oracle, x, y, direction, slope, norm, batch)
        if trial is None:
            return LowerSolution(y, norm, False, step)
        y, gradient, norm = trial
    return LowerSolution(y, norm, norm <= tol, max_steps)


def _step(
    oracle: Oracle, x: Tensor, y: Tensor, direction: Tensor, slope: float, norm: float, batch: Any
) -> tuple[Tensor, Tensor, float] | None:
    # near the solution differences of g drown in rounding, while its gradient still tells: a full step that lessens
    # the gradient is taken as it is
    full = y + direction
    gradient = oracle.lower_gradient(x, full, batch)
    if float(gradient.norm()) < norm / 2:
        return full, gradient, float(gradient.norm())
    with torch.no_grad():
        search = armijo(
            lambda t: oracle.lower_value(x, y + t * direction, batch), oracle.lower_value(x, y, batch), slope
        )
    if not search.converged:
        return None
    moved = y + search.step * direction
    gradient = oracle.lower_gradient(x, moved, batch)
    return moved, gradient, float(gradient.norm())
