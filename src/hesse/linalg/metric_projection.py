"""Nearest point of a convex set in the metric of H, for many H at once, from the set's Euclidean projection."""

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.errors import ConvergenceError, ShapeError, SingularError
from hesse.linalg.projections import Ball, _secular
from hesse.linalg.solvers.fista import fista

__all__ = ["metric_projection"]

_MAX_STEPS = 10_000  # of FISTA; about √cond(H) times a few dozen are needed


def metric_projection(H: Tensor, y: Tensor, projection: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Minimise (x - y)ᵀ H (x - y) over x in a convex set; the step of online Newton methods.

    A `Ball` has one multiplier ν, x = center + (H + νI)⁻¹ H (y - center), found by Newton's method after one
    eigendecomposition. Any other set is reached by accelerated projected gradients. `HNormBall` does the first for one
    H and many y, with derivatives; here every y may have an H of its own.

    Parameters
    ----------
    H : Tensor, shape (..., n, n)
        Symmetric positive definite.
    y : Tensor, shape (..., n)
        Points; leading dimensions as those of H.
    projection : callable or None
        The set, as its Euclidean projection of vectors (..., n) in the last dimension. None: the whole space, where y
        itself is nearest.

    Returns
    -------
    Tensor, shape (..., n)
        Without a graph. Points of a ball are exact to rounding; for other sets the gradient mapping is below
        10⁴ machine epsilons of its first value.

    Raises
    ------
    ShapeError
        If H is not square or does not fit y.
    SingularError
        If an H is not positive definite.
    ConvergenceError
        If a set other than a ball was not reached: H is too badly conditioned, or ``projection`` is none.

    Notes
    -----
    O(n³) for the eigenvalues, then O(n²) a ball or a step.

    References
    ----------
    E. Hazan, A. Agarwal, S. Kale (2007), Mach. Learn. 69.
    """
    if H.shape[-1:] != y.shape[-1:] or H.shape[:-1] != y.shape:
        raise ShapeError(
            f"metric_projection: expected H (..., n, n) and y (..., n), got {tuple(H.shape)}, {tuple(y.shape)}"
        )
    if projection is None:
        return y.detach()
    H, y = H.detach(), y.detach()
    if isinstance(projection, Ball):
        return _onto_ball(H, y, projection)
    values = _positive(torch.linalg.eigvalsh(H))
    solution = fista(
        lambda x: ((x - y) * _apply(H, x - y)).sum() / 2,
        lambda x, _: projection(x),
        projection(y),
        gradient_fn=lambda x: _apply(H, x - y),
        step=1 / float(values.max()),
        tol=1e4 * torch.finfo(y.dtype).eps,
        max_steps=_MAX_STEPS,
    )
    if not bool(solution.converged):
        raise ConvergenceError(
            f"metric_projection: the projection in the metric of H still moves by {float(solution.residual):.1e} after "
            f"{solution.num_steps} steps; check the condition of H, and that projection(x) is the nearest point"
        )
    return solution.x


def _onto_ball(H: Tensor, y: Tensor, ball: Ball) -> Tensor:
    values, vectors = torch.linalg.eigh(H)
    _positive(values)
    shifted = y if ball.center is None else y - ball.center
    if ball.radius == 0:
        return y - shifted
    weighted = _apply(vectors.mT, shifted) * values
    nu = _secular(weighted.square(), values, torch.ones_like(values), ball.radius)
    moved = _apply(vectors, weighted / (values + nu.unsqueeze(-1)))
    inside = torch.linalg.vector_norm(shifted, dim=-1, keepdim=True) <= ball.radius
    moved = torch.where(inside, shifted, moved)
    return moved if ball.center is None else moved + ball.center


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _positive(values: Tensor) -> Tensor:
    least = float(values.min())
    if not least > 0:
        raise SingularError(f"metric_projection: H is not positive definite, its smallest eigenvalue is {least:.3e}")
    return values
