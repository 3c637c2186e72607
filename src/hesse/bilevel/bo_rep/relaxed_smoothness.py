"""How fast the curvature of an upper objective grows with its gradient.

‖∇f(u + w) - ∇f(u)‖ / ‖w‖ ≈ L0 + L1 ‖∇f(u)‖        for each block of ∇f, x and y, along the points of a run

Shapes: K points, N entries of x, M of y.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import nnls
from torch import Generator, Tensor

from hesse.bilevel.bo_rep.normalized_momentum import unit_direction
from hesse.bilevel.hypergradient.lower import solve_lower
from hesse.bilevel.oracle import Oracle
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.tree import Tree
from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least

__all__ = ["RelaxedSmoothness", "SmoothnessFit", "relaxed_smoothness"]


@dataclass(frozen=True, slots=True)
class SmoothnessFit:
    """L0 + L1 ‖∇f‖ fitted to one block of the gradient.

    Attributes
    ----------
    constant, slope : float
        L0 and L1, both >= 0. A slope of 0 is ordinary smoothness.
    gradient_norms, quotients : Tensor, shape (K,)
        What they were fitted to.
    """

    constant: float
    slope: float
    gradient_norms: Tensor
    quotients: Tensor


@dataclass(frozen=True, slots=True)
class RelaxedSmoothness:
    """The fits of both blocks of ∇f."""

    x: SmoothnessFit
    y: SmoothnessFit


def relaxed_smoothness(
    problem: BilevelProblem,
    x: Sequence[Tree],
    radius: float,
    *,
    y: Sequence[Tree] | None = None,
    num_probes: int = 4,
    generator: Generator | None = None,
) -> RelaxedSmoothness:
    """Measure L0 and L1 along a trajectory: whether a problem asks for normalised steps at all.

    Parameters
    ----------
    problem : BilevelProblem
        Its f is taken on all data.
    x : sequence of pytrees of Tensor
        K >= 2 points, as a callback of a run collects them.
    radius : float
        ‖w‖, of displacements of (x, y) together; of the order of the steps that shall be made.
    y : sequence of pytrees of Tensor, optional
        Where f is taken. Default: y*(x), solved for at every point.
    num_probes : int, default 4
        Random displacements a point, beside the one along ∇f; the largest quotient of a point counts.
    generator : torch.Generator, optional
        For them, on the CPU. Default: torch's global generator.

    Returns
    -------
    RelaxedSmoothness
        Least squares of relative errors with L0, L1 >= 0: a fit to sampled directions, no bound over all of them.

    Raises
    ------
    ArgumentError
        If ``radius <= 0``, ``num_probes < 0``, there are fewer than two points, or x and y differ in length.
    NumericalError
        If a gradient has NaN or Inf.

    Notes
    -----
    num_probes + 2 gradients of f a point.

    References
    ----------
    J. Zhang, T. He, S. Sra, A. Jadbabaie (2020), ICLR, arXiv 1905.11881; J. Hao, X. Gong, M. Liu (2024), ICLR, arXiv
    2401.09587, for the two blocks.
    """
    if not (radius > 0 and math.isfinite(radius)):
        raise ArgumentError(f"relaxed_smoothness: expected radius > 0, got {radius}")
    at_least("relaxed_smoothness", "num_probes", num_probes, 0)
    at_least("relaxed_smoothness", "the number of points", len(x), 2)
    if y is not None and len(y) != len(x):
        raise ArgumentError(f"relaxed_smoothness: expected as many points y as x, got {len(y)} and {len(x)}")
    oracle = Oracle(problem)
    size = problem.x_layout.size
    flat_y = problem.y_layout.flatten(problem.y0)
    rows: list[Tensor] = []
    for k in range(len(x)):
        flat_x = problem.x_layout.flatten(x[k])
        flat_y = solve_lower(oracle, flat_x, flat_y).y if y is None else problem.y_layout.flatten(y[k])
        here = torch.cat(oracle.upper_gradients(flat_x, flat_y))
        random = torch.randn(num_probes, len(here), generator=generator, dtype=torch.float64).to(here)
        quotients = []
        for probe in (here, *random):
            moved = torch.cat([flat_x, flat_y]) + radius * unit_direction(probe)
            change = (torch.cat(oracle.upper_gradients(moved[:size], moved[size:])) - here) / radius
            quotients.append(_norms(change, size))
        rows.append(torch.cat([_norms(here, size), torch.stack(quotients).amax(0)]))
    table = torch.stack(rows).cpu()  # (K, 4): gradient norms of x and y, quotients of x and y
    if not bool(torch.isfinite(table).all()):
        raise NumericalError("relaxed_smoothness: a gradient of f has NaN or Inf on the way; take fewer points")
    return RelaxedSmoothness(_fit(table[:, 0], table[:, 2]), _fit(table[:, 1], table[:, 3]))


def _norms(vector: Tensor, size: int) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in vector.tensor_split([size])])


def _fit(norms: Tensor, quotients: Tensor) -> SmoothnessFit:
    # relative errors: a trajectory spans decades, and its largest gradient must not decide alone
    weights = torch.where(quotients > 0, 1 / quotients, torch.ones_like(quotients))
    design = torch.stack([weights, weights * norms], 1)
    (constant, slope), _ = nnls(design.numpy(), (weights * quotients).numpy())
    return SmoothnessFit(float(constant), float(slope), norms, quotients)
