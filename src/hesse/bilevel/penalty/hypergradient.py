"""The hypergradient from gradients alone: two solved lower problems a distance O(s) apart, and a difference quotient.

∇ψ_s(x) = f_x(x, y_s) + (g_x(x, y_s) - g_x(x, z))/s,   y_s ∈ argmin_Y s f + g,   z ∈ argmin_Y g;   ∇ψ_s = ∇Φ + O(s)
2 ∇ψ_{s/2} - ∇ψ_s = ∇Φ + O(s²)

Shapes: N entries of x, M of y.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from hesse.bilevel.checks import require_separate_sets, warn_of_rounding
from hesse.bilevel.hypergradient.result import HyperGradient
from hesse.bilevel.oracle import Oracle
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.tree import Tree
from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least
from hesse.linalg.solvers.fista import fista

__all__ = ["LowerSolver", "PenaltyMinimum", "gradient_lipschitz", "minimise_penalty", "penalty_hypergradient"]

LowerSolver = Callable[[Tree, float], Tree]
"""(x, s) -> the minimiser of s f(x, ·) + g(x, ·) over Y; s = 0 asks for that of g alone."""

_POWER_STEPS = 20  # of power iteration by differences of gradients
_ROUNDS = 8  # halvings of the step before a descent counts as unbounded


@dataclass(frozen=True, slots=True)
class PenaltyMinimum:
    """Where s f + g was minimised over Y, as far as it was."""

    y: Tensor  # (M,)
    residual: float  # norm of the projected-gradient mapping
    converged: bool
    num_steps: int


def penalty_hypergradient(
    problem: BilevelProblem,
    x: Tree,
    sigma: float,
    *,
    y0: Tree | None = None,
    z0: Tree | None = None,
    tol: float = 1e-10,
    max_steps: int = 10_000,
    step_size: float | None = None,
    richardson: bool = True,
    lower_solver: LowerSolver | None = None,
    upper_batch: Any = None,
    lower_batch: Any = None,
    generator: Generator | None = None,
) -> HyperGradient:
    """Estimate ∇Φ(x) without second derivatives, for convex lower levels with one solution or many.

    Parameters
    ----------
    problem : BilevelProblem
        ``project_y`` is obeyed. Where many y solve the lower level, Φ takes the one that f likes best.
    x : pytree of Tensor
        Upper variable.
    sigma : float
        s > 0. The error is O(s) without ``richardson`` and O(s²) with it, that of the inner solves is divided by s.
    y0, z0 : pytree of Tensor, optional
        Starts of y_s and z: the last call's ``y``, say. Default: ``problem.y0`` for z, then z for y_s, so that they
        differ along directions in which g is flat by what f asks for alone.
    tol : float, default 1e-10
        Projected-gradient residual of an inner solve, relative to max(1, its first one); choose well below s.
    max_steps : int, default 10000
        Accelerated gradient steps an inner solve. Where g is flat, y_s needs some 10/√s of them.
    step_size : float, optional
        Of the inner solves, at most 1 / (L_g + s L_f). Default: from power iteration by differences of gradients.
    richardson : bool, default True
        Combine s and s/2: one more inner solve, from a start that is nearly there.
    lower_solver : callable, optional
        (x, s) -> y_s on pytrees, s = 0 for z: a closed form, or whatever solves the lower level already. Its residual
        must meet ``tol`` as that of the own solver does.
    upper_batch, lower_batch : object, optional
        Batches, the same in all evaluations. Default: all data.
    generator : torch.Generator, optional
        For the start of power iteration. Default: torch's global generator.

    Returns
    -------
    HyperGradient
        ``y`` is y_s (at s/2 with ``richardson``), ``adjoint`` the difference quotient (z - y_s)/s that stands for v,
        ``residual`` that of y_s over s, ``lower_residual`` that of z. Always ``approximate``.

    Raises
    ------
    ArgumentError
        If ``sigma``, ``tol`` or a limit is out of range, or the lower level is constrained by other means than
        ``project_y``.
    ShapeError
        If x, y0 or z0 is shaped otherwise than the problem's variables.
    NumericalError
        If an inner descent runs away: s f + g is unbounded below on Y for this s, or not convex along the way.

    Warns
    -----
    UserWarning
        If s is under 1e-3 in single precision.

    Notes
    -----
    Where constraints of Y change between active and idle on the way from s to 0, the orders above do not hold: Φ itself
    has directional derivatives only there. In float32 s under 1e-3 leaves few digits of the difference quotient, and a
    ``tol`` under some 1e-6 is not met; half precision leaves none.

    References
    ----------
    J. Kwon, D. Kwon, S. Wright, R. Nowak (2024), ICLR, arXiv 2309.01753.
    """
    call = "penalty_hypergradient"
    if not sigma > 0:
        raise ArgumentError(f"{call}: expected sigma > 0, got {sigma}")
    at_least(call, "tol", tol, 0)
    at_least(call, "max_steps", max_steps, 1)
    if step_size is not None and not step_size > 0:
        raise ArgumentError(f"{call}: expected step_size > 0, got {step_size}")
    require_separate_sets(call, problem)
    warn_of_rounding(call, sigma, problem.x_layout.dtype)
    oracle, x_layout, y_layout = Oracle(problem), problem.x_layout, problem.y_layout
    flat_x = x_layout.flatten(x)

    def solved(s: float, start: Tensor) -> PenaltyMinimum:
        if lower_solver is not None:
            start = y_layout.flatten(lower_solver(x, s))
            direction = _penalty_gradient(oracle, flat_x, start, s, upper_batch, lower_batch)
            residual = float((start - oracle.project_y(start - direction)).norm())
            return PenaltyMinimum(start, residual, residual <= tol * max(1.0, float(direction.norm())), 0)
        return minimise_penalty(
            oracle,
            flat_x,
            start,
            s,
            tol=tol,
            max_steps=max_steps,
            step_size=step_size,
            upper_batch=upper_batch,
            lower_batch=lower_batch,
            generator=generator,
        )

    bottom = solved(0.0, y_layout.flatten(problem.y0 if z0 is None else z0))
    at_bottom = oracle.lower_gradients(flat_x, bottom.y, lower_batch)[0]

    def quotient(s: float, start: Tensor) -> tuple[PenaltyMinimum, Tensor, Tensor]:
        found = solved(s, start)
        upper_x = oracle.upper_gradients(flat_x, found.y, upper_batch)[0]
        across = oracle.lower_gradients(flat_x, found.y, lower_batch)[0] - at_bottom
        return found, upper_x + across / s, (bottom.y - found.y) / s

    top, grad, adjoint = quotient(sigma, bottom.y if y0 is None else y_layout.flatten(y0))
    solves = [bottom, top]
    if richardson:
        half, finer, finer_adjoint = quotient(sigma / 2, (bottom.y + top.y) / 2)
        grad, adjoint, top = 2 * finer - grad, 2 * finer_adjoint - adjoint, half
        solves.append(half)
    return HyperGradient(
        grad=x_layout.unflatten(grad),
        y=y_layout.unflatten(top.y),
        adjoint=y_layout.unflatten(adjoint),
        residual=top.residual / (sigma / 2 if richardson else sigma),
        lower_residual=bottom.residual,
        converged=all(solve.converged for solve in solves),
        approximate=True,
        method="penalty",
        num_steps=sum(solve.num_steps for solve in solves),
        counts=oracle.counts,
    )


def minimise_penalty(
    oracle: Oracle,
    x: Tensor,
    start: Tensor,
    sigma: float,
    *,
    center: Tensor | None = None,
    rho: float = float("inf"),
    tol: float = 1e-10,
    max_steps: int = 10_000,
    step_size: float | None = None,
    upper_batch: Any = None,
    lower_batch: Any = None,
    generator: Generator | None = None,
) -> PenaltyMinimum:
    """Minimise s f(x, ·) + g(x, ·) + ‖· - center‖²/(2ρ) over Y by accelerated projected gradients, with restarts.

    Parameters
    ----------
    oracle : Oracle
        Counts the gradients.
    x : Tensor, shape (N,)
        Upper variable, held fixed.
    start : Tensor, shape (M,)
        First iterate.
    sigma : float
        s >= 0; at 0, f is not called.
    center : Tensor, shape (M,), optional
        Of the proximal term. Default: none.
    rho : float, default inf
        ρ > 0, for ``center``.
    tol, max_steps, step_size, upper_batch, lower_batch, generator
        See `penalty_hypergradient`.

    Returns
    -------
    PenaltyMinimum
        Not converged where the tolerance was not met in ``max_steps``, or lies below rounding.

    Raises
    ------
    NumericalError
        If the descent runs away however short its steps are.
    """

    def gradient(y: Tensor) -> Tensor:
        found = _penalty_gradient(oracle, x, y, sigma, upper_batch, lower_batch)
        return found if center is None else found + (y - center) / rho

    start = oracle.project_y(start)
    size = 1 / gradient_lipschitz(gradient, start, generator) if step_size is None else step_size
    first = _residual(oracle, gradient, start)
    for _ in range(_ROUNDS):
        found = fista(
            lambda y: y.sum(),  # not read: the step is fixed
            lambda y, _: oracle.project_y(y),
            start,
            gradient_fn=gradient,
            step=size,
            tol=tol,
            max_steps=max_steps,
        )
        residual = float(found.residual)
        if bool(torch.isfinite(found.x).all()) and residual <= 2 * max(first, tol):
            return PenaltyMinimum(found.x, residual, bool(found.converged), found.num_steps)
        size /= 2  # curvature away from the start is larger than at it
    raise NumericalError(
        f"penalty: the descent of s f + g at s={sigma:g} runs away from residual {first:.2e}; the sum is unbounded "
        "below on Y (lower sigma, or give project_y), or far from convex (use PenaltyBilevel with rho)"
    )


def gradient_lipschitz(gradient_fn: Callable[[Tensor], Tensor], y: Tensor, generator: Generator | None = None) -> float:
    """Estimate the largest curvature at y by power iteration on differences of gradients.

    Parameters
    ----------
    gradient_fn : callable
        (M,) -> (M,).
    y : Tensor, shape (M,)
        Where.
    generator : torch.Generator, optional
        For the start. Default: torch's global generator.

    Returns
    -------
    float
        Twenty per cent above the estimate, which lies below the truth; 1 where no curvature is seen.
    """
    step = torch.finfo(y.dtype).eps ** (1 / 3) * max(1.0, float(y.norm()))
    base = gradient_fn(y)
    direction = torch.randn(y.shape, dtype=y.dtype, device=y.device, generator=generator)
    curvature = 0.0
    for _ in range(_POWER_STEPS):
        norm = float(direction.norm())
        if not norm > 0:
            break
        direction = direction / norm
        direction = (gradient_fn(y + step * direction) - base) / step
        curvature = float(direction.norm())
    return 1.2 * curvature if curvature > 0 else 1.0


def _penalty_gradient(oracle: Oracle, x: Tensor, y: Tensor, sigma: float, upper_batch: Any, lower_batch: Any) -> Tensor:
    lower = oracle.lower_gradient(x, y, lower_batch)
    return lower if sigma == 0 else lower + sigma * oracle.upper_gradients(x, y, upper_batch)[1]


def _residual(oracle: Oracle, gradient: Callable[[Tensor], Tensor], y: Tensor) -> float:
    return float((y - oracle.project_y(y - gradient(y))).norm())
