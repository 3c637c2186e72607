"""The linear system behind a hypergradient: (g_yy + damping · I) v = f_y, by whichever method.

Shapes: N entries of x, M of y.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from hesse.bilevel.oracle import Oracle
from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least
from hesse.linalg.eigen.power import spectral_norm
from hesse.linalg.nystrom import nystrom
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import Preconditioner
from hesse.linalg.solvers.cg import cg
from hesse.linalg.solvers.minres import minres
from hesse.linalg.solvers.solution import Status

__all__ = ["Adjoint", "AdjointMethod", "inverse_norm", "solve_adjoint"]

AdjointMethod = Literal["cg", "minres", "neumann", "nystrom", "dense", "inverse"]


@dataclass(frozen=True, slots=True)
class Adjoint:
    """v with g_yy v = f_y, as far as it was solved."""

    v: Tensor  # (M,)
    num_steps: int
    converged: bool


def solve_adjoint(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    b: Tensor,
    *,
    method: AdjointMethod = "cg",
    rtol: float = 1e-8,
    max_steps: int = 200,
    damping: float = 0.0,
    rank: int | None = None,
    step_size: float | None = None,
    preconditioner: Preconditioner | None = None,
    v0: Tensor | None = None,
    batch: Any = None,
    generator: Generator | None = None,
) -> Adjoint:
    """Solve (g_yy + damping · I) v = b on flat vectors: the part of `hypergradient` that solvers call.

    Parameters
    ----------
    oracle : Oracle
        Counts the products.
    x : Tensor, shape (N,)
        Upper variable.
    y, b : Tensor, shape (M,)
        Lower variable and right-hand side.
    method, rtol, max_steps, damping, rank, step_size, preconditioner, generator
        See `hypergradient`; all methods but "unroll".
    v0 : Tensor, shape (M,), optional
        Start. Default: zero.
    batch : object, optional
        Of the lower level. Default: all data.

    Returns
    -------
    Adjoint
        Direct methods make 0 steps.

    Raises
    ------
    ArgumentError
        If an option is out of range or contradicts the method.
    NumericalError
        If "cg" meets negative curvature.
    """
    at_least("hypergradient", "rtol", rtol, 0)
    at_least("hypergradient", "damping", damping, 0)
    at_least("hypergradient", "max_steps", max_steps, 0)
    if method == "nystrom" and damping == 0:
        raise ArgumentError("hypergradient: method='nystrom' needs damping > 0; what the sketch misses is only damped")
    if method == "inverse" and preconditioner is None:
        raise ArgumentError("hypergradient: method='inverse' needs preconditioner, the approximate inverse of g_yy")
    if rank is not None and (method != "nystrom" or rank < 1):
        raise ArgumentError(f"hypergradient: rank >= 1 belongs to method='nystrom', got rank={rank}, {method!r}")
    operator = oracle.lower_hessian(x, y, batch, damping=0.0 if method == "nystrom" else damping, is_psd=True)
    if method in ("cg", "minres"):
        solver = cg if method == "cg" else minres
        found = solver(
            operator, b, x0=v0, preconditioner=preconditioner, rtol=rtol, max_steps=max_steps, validate=False
        )
        if found.status == Status.NEGATIVE_CURVATURE:
            raise NumericalError(_negative_curvature(operator, found.direction))
        if found.status == Status.BREAKDOWN:
            raise NumericalError(f"hypergradient: {method} broke down: a product or the preconditioner gave NaN")
        return Adjoint(found.x, found.num_steps, bool(found.converged))
    if method == "neumann":
        return _neumann(operator, b, v0, step_size, rtol, max_steps, generator)
    if method == "nystrom":
        sketch = nystrom(operator, min(len(b), 50 if rank is None else rank), generator=generator)
        inside = sketch.U.T @ b
        return Adjoint(
            (b - sketch.U @ inside) / damping + sketch.U @ (inside / (sketch.eigenvalues + damping)), 0, True
        )
    if method == "inverse" and preconditioner is not None:
        column = b.unsqueeze(1)
        applied = preconditioner @ column if isinstance(preconditioner, LinearOperator) else preconditioner(column)
        return Adjoint(applied.squeeze(1), 0, True)
    if method == "dense":
        matrix = operator.to_dense().double()
        return Adjoint(torch.linalg.solve(matrix, b.double()).to(b.dtype), 0, True)
    raise ArgumentError(f"solve_adjoint: method must be cg, minres, neumann, nystrom, dense or inverse; got {method!r}")


def _neumann(
    operator: LinearOperator,
    b: Tensor,
    v0: Tensor | None,
    step_size: float | None,
    rtol: float,
    max_steps: int,
    generator: Generator | None,
) -> Adjoint:
    if step_size is not None and not step_size > 0:
        raise ArgumentError(f"hypergradient: expected step_size > 0, got {step_size}")
    a = inverse_norm(operator, generator) if step_size is None else step_size
    v = a * b if v0 is None else v0  # the first term of the series costs no product
    limit = rtol * float(b.norm())
    for step in range(max_steps):
        residual = operator @ v - b
        if float(residual.norm()) <= limit:
            return Adjoint(v, step, True)
        v = v - a * residual
    return Adjoint(v, max_steps, False)


def inverse_norm(operator: LinearOperator, generator: Generator | None = None) -> float:
    """Give a step size that is safe for gradient steps with g_yy: 0.98 / ‖g_yy‖.

    Parameters
    ----------
    operator : LinearOperator, shape (M, M)
        g_yy.
    generator : torch.Generator, optional
        For the start of power iteration. Default: torch's global generator.

    Returns
    -------
    float
        Power iteration never exceeds the norm; the two per cent make up for what it lacks.

    Raises
    ------
    NumericalError
        If the operator is zero.
    """
    norm = float(spectral_norm(operator, generator=generator).eigenvalues)
    if not norm > 0:
        raise NumericalError("hypergradient: g_yy is zero, so that no step size can be chosen; pass step_size")
    return 1 / (1.02 * norm)


def _negative_curvature(operator: LinearOperator, direction: Tensor | None) -> str:
    quotient = float("nan")
    if direction is not None:
        quotient = float(direction @ (operator @ direction) / (direction @ direction))
    return (
        f"hypergradient: g_yy is not positive definite, cg met a direction of curvature {quotient:.3e}; add damping of "
        "more than that, or use method='minres'"
    )
