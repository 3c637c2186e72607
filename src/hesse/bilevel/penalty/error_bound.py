"""Does a lower level satisfy the proximal error bound that penalty methods rest on?   Shapes: K points, M entries of y.

μ dist(y, T) <= ‖y - prox_{ρh}(y)‖/ρ  where the right side is <= δ;   h = s f(x, ·) + g(x, ·), T its minimisers
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.bilevel.checks import require_separate_sets
from hesse.bilevel.oracle import Oracle
from hesse.bilevel.penalty.hypergradient import minimise_penalty
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.tree import Tree
from hesse.errors import ArgumentError
from hesse.linalg._arguments import at_least

__all__ = ["ErrorBound", "proximal_error_bound"]


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """What was seen at some points: evidence, not proof.

    Attributes
    ----------
    mu : float
        Smallest ratio of residual to distance; 0 where a descent ended without a residual but away from T.
    delta : float
        Largest residual among the points: the bound was looked at no further out.
    residuals, distances : Tensor, shape (K,)
        Of the points. Distances are to where a descent from the point ends, hence no shorter than the true ones, and
        ``mu`` is no larger than the true ratio at these points.
    converged : bool
        Whether all inner descents met their tolerance.
    """

    mu: float
    delta: float
    residuals: Tensor
    distances: Tensor
    converged: bool


def proximal_error_bound(
    problem: BilevelProblem,
    x: Tree,
    samples: Sequence[Tree],
    *,
    sigma: float = 0.0,
    rho: float = 1.0,
    tol: float = 1e-8,
    max_steps: int = 10_000,
    generator: Generator | None = None,
) -> ErrorBound:
    """Measure residual over distance at given points.

    Parameters
    ----------
    problem : BilevelProblem
        ``project_y`` is obeyed.
    x : pytree of Tensor
        Upper variable.
    samples : sequence of pytree of Tensor
        K >= 1 values of y; near the solutions for a bound on small errors only. Points that solve the problem
        already tell nothing and are left out of ``mu``.
    sigma : float, default 0.0
        s >= 0. The theory asks for one μ for all small s: compare a few.
    rho : float, default 1.0
        ρ, below 1 / (weak convexity of h).
    tol : float, default 1e-8
        Of the inner descents, relative to max(1, their first residual).
    max_steps : int, default 10000
        Steps of each, two descents a point.
    generator : torch.Generator, optional
        For the step sizes. Default: torch's global generator.

    Returns
    -------
    ErrorBound
        For a quadratic h with smallest non-zero eigenvalue m: μ >= m/(1 + ρ m), with equality along its eigenvector.

    Raises
    ------
    ArgumentError
        If an option is out of range, there is no sample, or none is away from the solutions.
    ShapeError
        If x or a sample is shaped otherwise than the variables.
    NumericalError
        If a descent runs away.

    References
    ----------
    J. Kwon, D. Kwon, S. Wright, R. Nowak (2024), ICLR, arXiv 2309.01753.
    """
    call = "proximal_error_bound"
    at_least(call, "sigma", sigma, 0)
    at_least(call, "tol", tol, 0)
    at_least(call, "max_steps", max_steps, 1)
    if not rho > 0:
        raise ArgumentError(f"{call}: expected rho > 0, got {rho}")
    if not len(samples):
        raise ArgumentError(f"{call}: expected at least one sample")
    require_separate_sets(call, problem)
    oracle, flat_x = Oracle(problem), problem.x_layout.flatten(x)
    residuals, distances, converged = [], [], True
    for sample in samples:
        y = oracle.project_y(problem.y_layout.flatten(sample))
        ends = [
            minimise_penalty(
                oracle, flat_x, y, sigma, center=center, rho=rho, tol=tol, max_steps=max_steps, generator=generator
            )
            for center in (y, None)
        ]
        residuals.append((y - ends[0].y).norm() / rho)
        distances.append((y - ends[1].y).norm())
        converged = converged and all(end.converged for end in ends)
    residual, distance = torch.stack(residuals), torch.stack(distances)
    away = distance > tol
    if not bool(away.any()):
        raise ArgumentError(f"{call}: all samples solve the lower level already; spread them")
    ratios = residual[away] / distance[away]
    return ErrorBound(float(ratios.min()), float(residual.max()), residual, distance, converged)
