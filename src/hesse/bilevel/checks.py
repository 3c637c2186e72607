"""Is a problem what its solver takes it for?   Shapes: N entries of x, M of y."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.bilevel.oracle import Oracle
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.tree import Tree
from hesse.linalg.eigen.lanczos import lanczos

__all__ = ["ProblemReport", "check_problem"]

_UNIQUE = 1e-10  # smallest over largest eigenvalue of g_yy below which the lower solution counts as not unique
_LANCZOS_STEPS = 60


@dataclass(frozen=True, slots=True)
class ProblemReport:
    """What was found at one pair (x, y).

    Attributes
    ----------
    upper_gradient_error, lower_gradient_error : float
        Relative difference between the slope along a random direction and central differences: far above √ε where a
        loss is not smooth, draws random numbers or detaches a tensor.
    smallest_eigenvalue, largest_eigenvalue : float
        Ritz values of g_yy: the true ends lie outside or on them.
    is_strongly_convex : bool
        Whether the smallest is above 10⁻¹⁰ of the largest. If not, implicit formulas pick the v of least norm, and are
        right only where y is the lower solution that f likes best.
    projection_error : float
        Largest distance between a projected random point and its projection, relative: 0 for a projection.
    """

    upper_gradient_error: float
    lower_gradient_error: float
    smallest_eigenvalue: float
    largest_eigenvalue: float
    is_strongly_convex: bool
    projection_error: float


def check_problem(
    problem: BilevelProblem, x: Tree | None = None, y: Tree | None = None, *, generator: Generator | None = None
) -> ProblemReport:
    """Test gradients, strong convexity of g in y, and that projections project.

    Parameters
    ----------
    problem : BilevelProblem
        In float64, if the differences are to tell anything.
    x, y : pytree of Tensor, optional
        Where. Default: the problem's start.
    generator : torch.Generator, optional
        For directions and points, on the problem's device. Default: torch's global generator.

    Returns
    -------
    ProblemReport
        At this point alone.

    Notes
    -----
    At most 60 products with g_yy; with M <= 60 the Ritz values are the eigenvalues.
    """
    oracle = Oracle(problem)
    flat_x = problem.x_layout.flatten(problem.x0 if x is None else x)
    flat_y = problem.y_layout.flatten(problem.y0 if y is None else y)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)

    along_x, along_y = normal(flat_x), normal(flat_y)
    step = torch.finfo(flat_x.dtype).eps ** (1 / 3)
    errors = []
    for value, gradients in ((oracle.value, oracle.upper_gradients), (oracle.lower_value, oracle.lower_gradients)):
        by_x, by_y = gradients(flat_x, flat_y)
        slope = float(by_x @ along_x + by_y @ along_y)
        with torch.no_grad():
            ahead = value(flat_x + step * along_x, flat_y + step * along_y)
            behind = value(flat_x - step * along_x, flat_y - step * along_y)
        errors.append(abs(float(ahead - behind) / (2 * step) - slope) / max(abs(slope), 1e-12))
    operator = oracle.lower_hessian(flat_x, flat_y)
    with torch.no_grad():
        values = lanczos(operator, min(_LANCZOS_STEPS, len(flat_y)), generator=generator).ritz()[0]
    smallest, largest = float(values.min()), float(values.max())
    projection_error = 0.0
    for project, like in ((oracle.project_x, flat_x), (oracle.project_y, flat_y)):
        once = project(10 * normal(like))
        projection_error = max(projection_error, float((project(once) - once).norm() / once.norm().clamp_min(1e-12)))
    return ProblemReport(errors[0], errors[1], smallest, largest, smallest > _UNIQUE * abs(largest), projection_error)
