"""From the solution of a sketched least-squares problem to that of the full one, and what is known about either.

Shapes: A (N, D), b (N, K), x (D, K). The full problem is seen only through AᴴA x and Aᴴ(b - A x), a pass over A each.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hesse.linalg._sketched_system import SketchedFactor, TallMatrix, normal_solve

__all__ = ["Regression", "SketchedSolveInfo", "StoredRegression", "described", "refined"]

_ROUNDING_MARGIN = 30  # how far above condition times ε one round of refinement may aim


class Regression(Protocol):
    """A and b, in whatever form, behind two passes over the rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation, float32 at least."""
        ...

    @property
    def device(self) -> torch.device:
        """Where x lives."""
        ...

    @property
    def sizes(self) -> Tensor:
        """‖b‖, shape (K,)."""
        ...

    def gram(self, x: Tensor) -> Tensor:
        """AᴴA x."""
        ...

    def residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """‖b - A x‖, shape (K,), and Aᴴ(b - A x)."""
        ...


@dataclass(frozen=True, slots=True)
class StoredRegression:
    """A `Regression` whose A is an operator and whose b is a tensor, both off the graph."""

    matrix: TallMatrix
    b: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.matrix.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation."""
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        """Where A lives."""
        return self.matrix.device

    @property
    def sizes(self) -> Tensor:
        """‖b‖, shape (K,)."""
        return torch.linalg.vector_norm(self.b, dim=0)

    def gram(self, x: Tensor) -> Tensor:
        """Multiply by AᴴA.

        Parameters
        ----------
        x : Tensor, shape (D, K)
            Where.

        Returns
        -------
        Tensor, shape (D, K)
            One pass over A.
        """
        return self.matrix.gram(x)

    def residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute ‖b - A x‖ and Aᴴ(b - A x).

        Parameters
        ----------
        x : Tensor, shape (D, K)
            Where.

        Returns
        -------
        tuple of Tensor, shapes (K,) and (D, K)
            One pass over A.
        """
        return self.matrix.residual(self.b, x)


@dataclass(frozen=True, slots=True)
class SketchedSolveInfo:
    """What is known about a sketched solution.   Shapes: one entry a right-hand side in (K,), () for a single one.

    Attributes
    ----------
    sketch_size : int
        M; N where the problem was solved without a sketch.
    num_sketches : int
        How many were drawn; 0 without a sketch.
    condition : float
        Ratio of the singular values of S A that were used (with damping in them).
    residual_norm : Tensor, shape (K,)
        ‖A x - b‖.
    error_estimate : Tensor, shape (K,)
        ‖x - x*‖_∞, estimated by one step of preconditioned gradient: right up to the distortion of the sketch, of the
        order of √(D/M).
    two_sketch_error : Tensor, shape (K,), or None
        ‖x₁ - x₂‖_∞ / √2 of two independent sketches before their median was taken: how far a single one is off. It
        rests on no assumption about the sketch. None where only one was drawn.
    coordinate_bound : Tensor, shape (D,) or (D, K)
        Holds for all coordinates of the solution of one sketch at once, with probability 1 - delta where the error is
        near Gaussian: √(2 log(2D/δ)) standard errors of the sketched regression. True to the mark for Gaussian
        sketches and the SRHT; sparse sketches can exceed it. After ``refine`` steps: the bound by Cauchy-Schwarz
        from the gradient that is left.
    num_steps : int
        Steps of refinement made.
    converged : bool
        Whether that gradient, in preconditioned coordinates, is below ``tol`` ‖b‖ or ε^¾ ‖b‖ (1.8e-12 in float64),
        whichever is larger, up to a factor two: then x is the full solution, not only a sketched one.
    """

    sketch_size: int
    num_sketches: int
    condition: float
    residual_norm: Tensor
    error_estimate: Tensor
    two_sketch_error: Tensor | None
    coordinate_bound: Tensor
    num_steps: int
    converged: bool


def refined(
    problem: Regression, factor: SketchedFactor, x: Tensor, *, damping: float, limit: int, tol: float
) -> tuple[Tensor, int]:
    """Make rounds of conjugate gradients, each from a fresh residual, until one no longer halves the gradient.

    Parameters
    ----------
    problem : Regression
        The full problem.
    factor : SketchedFactor
        The preconditioner.
    x : Tensor, shape (D, K)
        Start.
    damping : float
        Weight of ‖x‖².
    limit : int
        Steps in all; a round costs one pass more than its steps.
    tol : float
        Stop where the preconditioned gradient is below ``tol`` ‖b‖.

    Returns
    -------
    tuple of Tensor and int
        The best x, and the number of steps.
    """
    n, d = problem.shape
    eps = torch.finfo(problem.dtype).eps
    sizes = problem.sizes
    floor = eps * math.sqrt(d / n)  # rounding in r is spread over N dimensions, of which the gradient sees D
    atol = max(tol, floor) * float(sizes.min())
    # A (P y) rounds at the size of A times that of P y: below this the recurrences of one round follow noise
    rtol = min(_ROUNDING_MARGIN * eps * factor.condition(), 0.1)
    steps, best, best_level = 0, x, math.inf
    while True:
        _, image = problem.residual(x)
        gradient = image - damping * x
        norms = torch.linalg.vector_norm(factor.adjoint(gradient), dim=0)
        level = float((norms / torch.where(sizes > 0, sizes, 1)).max())
        stalled = not level <= best_level / 2
        if level < best_level:
            best, best_level = x, level
        if stalled or steps >= limit or float(norms.max()) <= atol:
            return best, steps
        change, count = normal_solve(
            problem, factor, gradient, damping=damping, max_steps=limit - steps, rtol=rtol, atol=atol
        )
        x, steps = x + change, steps + count


def described(
    problem: Regression,
    factor: SketchedFactor,
    x: Tensor,
    standard_error: Tensor | None,
    *,
    shape: torch.Size,
    damping: float,
    delta: float,
    tol: float,
    sketch_size: int,
    num_sketches: int,
    two_sketch_error: Tensor | None,
    num_steps: int,
) -> SketchedSolveInfo:
    """Say how good a solution is, at the cost of one pass.

    Parameters
    ----------
    problem : Regression
        The full problem.
    factor : SketchedFactor
        Of the (first) sketch.
    x : Tensor, shape (D, K)
        The solution.
    standard_error : Tensor of shape (K,), or None
        Of the sketched regression; None where x is no longer its solution.
    shape : torch.Size
        Of the b that the caller passed: (N,) or (N, K).
    damping, delta, tol : float
        As in `sketched_lstsq`.
    sketch_size, num_sketches, num_steps : int
        For the record.
    two_sketch_error : Tensor of shape (K,), or None
        For the record.

    Returns
    -------
    SketchedSolveInfo
        With one entry a right-hand side.
    """
    d = len(x)
    single = len(shape) == 1

    def shaped(block: Tensor) -> Tensor:
        return block.squeeze(-1) if single else block

    residual_norm, gradient = problem.residual(x)
    left = factor.adjoint(gradient - damping * x)
    left_norm = torch.linalg.vector_norm(left, dim=0)
    level = max(2 * tol, torch.finfo(problem.dtype).eps ** 0.75) * problem.sizes
    scale = left_norm if standard_error is None else standard_error * math.sqrt(2 * math.log(2 * d / delta))
    return SketchedSolveInfo(
        sketch_size=sketch_size,
        num_sketches=num_sketches,
        condition=factor.condition(),
        residual_norm=shaped(residual_norm),
        error_estimate=shaped(factor.apply(left).abs().amax(0)),
        two_sketch_error=None if two_sketch_error is None else shaped(two_sketch_error),
        coordinate_bound=shaped(factor.row_norms().unsqueeze(1) * scale),
        num_steps=num_steps,
        converged=bool((left_norm <= level).all()),
    )
