"""Is a problem what its solver takes it for?   Shapes: N entries of x, M of y."""

import warnings
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.bilevel.oracle import Oracle
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.tree import Tree
from hesse.errors import ArgumentError
from hesse.linalg.eigen.lanczos import lanczos

__all__ = ["ProblemReport", "check_problem", "require_separate_sets", "warn_of_rounding"]

_UNIQUE = 1e-10  # smallest over largest eigenvalue of g_yy below which the lower solution counts as not unique
_LANCZOS_STEPS = 60
_SINGLE_PRECISION_SIGMA = 1e-3  # below it differences of gradients over s have lost most of seven digits


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


def require_separate_sets(call: str, problem: BilevelProblem) -> None:
    """Refuse lower levels that no projection of y alone describes.

    Parameters
    ----------
    call : str
        Name of the solver, for the message.
    problem : BilevelProblem
        What came.

    Raises
    ------
    ArgumentError
        Naming the field and what to do.
    """
    if problem.project_joint is not None:
        raise ArgumentError(f"{call}: project_joint couples x and y; the penalty needs a set of each, use LVHBA")
    for name in ("constraint", "equality"):
        if getattr(problem, name) is not None and problem.project_y is None:
            raise ArgumentError(
                f"{call}: the lower level declares {name} without project_y; give the projection on that set, or use "
                "LVHBA"
            )


def warn_of_rounding(call: str, sigma: float, dtype: torch.dtype) -> None:
    """Warn where differences of gradients are divided by less than the dtype can bear.

    Parameters
    ----------
    call : str
        Name of the caller, for the message.
    sigma : float
        The divisor s.
    dtype : torch.dtype
        Of the variables.
    """
    if sigma < _SINGLE_PRECISION_SIGMA and dtype != torch.float64:
        warnings.warn(
            f"{call}: a penalty of {sigma:g} is too fine for {dtype}, whose differences of gradients drown in "
            "rounding; keep it at 1e-3 or go to float64",
            stacklevel=3,
        )
