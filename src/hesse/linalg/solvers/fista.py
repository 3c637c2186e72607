"""Accelerated proximal gradient descent: minimise f(x) + g(x), f smooth, g with a cheap proximal map."""

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["fista"]


def fista(
    smooth_fn: Callable[[Tensor], Tensor],
    prox_fn: Callable[[Tensor, float], Tensor],
    start: Tensor,
    *,
    gradient_fn: Callable[[Tensor], Tensor] | None = None,
    step: float | None = None,
    restart: bool = True,
    tol: float = 1e-6,
    max_steps: int = 1000,
) -> Solution:
    """Run FISTA, x ← prox_{s g}(y - s ∇f(y)) with momentum y, backtracking on s and adaptive restart.

    Parameters
    ----------
    smooth_fn : callable
        f, from a tensor of the shape of ``start`` to a tensor of one element; convex with a Lipschitz gradient.
    prox_fn : callable
        (v, s) ↦ argmin_x g(x) + ‖x - v‖² / (2 s); a projection where g is the indicator of a set.
    start : Tensor, any shape
        First iterate.
    gradient_fn : callable, optional
        ∇f. Default: by automatic differentiation.
    step : float, optional
        s, kept fixed; at most 1 / L for a gradient that is L-Lipschitz. Default: begin with 1 and halve whenever the
        quadratic upper model fails, growing by a tenth a step so that one steep spot is not paid for ever.
    restart : bool, default True
        Drop the momentum when it points uphill; linear convergence then where f is strongly convex near the solution.
    tol : float, default 1e-6
        Stop when the gradient mapping ‖y - x‖ / s is at most tol · max(1, its first value).
    max_steps : int, default 1000
        Steps at most.

    Returns
    -------
    Solution
        ``residual`` is the norm of the gradient mapping, ``history`` the same at each step. ``x`` has no graph.

    Raises
    ------
    ArgumentError
        If ``step`` is not positive, ``tol`` negative, or ``max_steps`` below one.
    ShapeError
        If ``prox_fn`` or ``gradient_fn`` changes the shape.
    NumericalError
        If f or its gradient is NaN or Inf at the start.

    References
    ----------
    A. Beck, M. Teboulle (2009), SIAM J. Imaging Sci. 2(1). B. O'Donoghue, E. Candès (2015), Found. Comput. Math. 15.
    """
    if step is not None and not step > 0:
        raise ArgumentError(f"fista: expected step > 0, got {step}")
    at_least("fista", "tol", tol, 0)
    at_least("fista", "max_steps", max_steps, 1)
    backtrack = step is None
    size = 1.0 if step is None else float(step)
    x = y = start.detach()
    momentum, history = 1.0, []
    status = Status.MAX_STEPS
    goal, count = 0.0, 0
    for count in range(1, max_steps + 1):
        value, gradient = _value_and_gradient(smooth_fn, gradient_fn, y, backtrack)
        if count == 1 and not (bool(torch.isfinite(gradient).all()) and bool(torch.isfinite(value).all())):
            raise NumericalError("fista: the smooth function or its gradient is NaN or Inf at the start")
        while True:
            following = prox_fn(y - size * gradient, size).detach()
            if following.shape != y.shape:
                raise ShapeError(f"fista: prox_fn maps shape {tuple(y.shape)} to {tuple(following.shape)}")
            change = following - y
            if not backtrack or _model_holds(smooth_fn, value, gradient, following, change, size):
                break
            size /= 2
            if size < torch.finfo(y.dtype).tiny:
                status = Status.BREAKDOWN
                break
        if status is Status.BREAKDOWN:
            break
        mapping = torch.linalg.vector_norm(change) / size
        history.append(mapping)
        goal = tol * max(1.0, float(history[0]))
        if not bool(torch.isfinite(mapping)):
            status = Status.BREAKDOWN
            break
        if float(mapping) <= goal:
            x, status = following, Status.CONVERGED
            break
        if restart and float((change.conj() * (following - x)).sum().real) < 0:
            momentum = 1.0
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        y = following + (momentum - 1) / grown * (following - x)
        x, momentum = following, grown
        if backtrack:
            size *= 1.1
    residual = history[-1] if history else torch.full_like(start.detach().real.sum(), torch.inf)
    return Solution(
        x,
        torch.tensor(status is Status.CONVERGED, device=start.device),
        count,
        residual,
        status,
        "fista",
        history=torch.stack(history) if history else None,
    )


def _value_and_gradient(
    smooth_fn: Callable[[Tensor], Tensor],
    gradient_fn: Callable[[Tensor], Tensor] | None,
    point: Tensor,
    need_value: bool,
) -> tuple[Tensor, Tensor]:
    if gradient_fn is not None:
        gradient = gradient_fn(point).detach()
        if gradient.shape != point.shape:
            raise ShapeError(f"fista: gradient_fn maps shape {tuple(point.shape)} to {tuple(gradient.shape)}")
        if not need_value:
            return gradient.real.new_zeros(()), gradient
        with torch.no_grad():
            return smooth_fn(point), gradient
    with torch.enable_grad():
        leaf = point.requires_grad_(False).clone().requires_grad_()
        value = smooth_fn(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def _model_holds(
    smooth_fn: Callable[[Tensor], Tensor],
    value: Tensor,
    gradient: Tensor,
    following: Tensor,
    change: Tensor,
    size: float,
) -> bool:
    with torch.no_grad():
        reached = smooth_fn(following)
    model = value + (gradient.conj() * change).sum().real + change.abs().square().sum() / (2 * size)
    # near the solution all terms drown in the rounding of f itself
    slack = 4 * torch.finfo(change.dtype).eps * value.abs()
    return bool(reached <= model + slack)
