"""What solvers by random projections share: checks, the loop, and projections on many equations one after the other.

Shapes: A is (M, N), b (M,), x (N,); Q equations at a time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least, same_numbers, wide_dtype
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["BLOCK", "StopFunction", "drive", "equation_limits", "prepare", "project_in_turn"]

StopFunction = Callable[[Tensor, float], bool]
"""Given x and ‖A x - b‖, whether to stop."""

BLOCK = 64  # projections that are taken together; larger blocks waste flops on their triangle


def project_in_turn(x: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    # with rows R and G = R Rᵀ, Q projections in turn are x + Rᵀ tril(G)⁻¹ (target - R x); rows of zeros are passed over
    triangle = (rows @ rows.T).tril()
    zero = triangle.diagonal() == 0
    gap = (target - rows @ x).masked_fill(zero, 0)
    triangle = triangle + torch.diag(zero.to(rows.dtype))
    return x + rows.T @ torch.linalg.solve_triangular(triangle, gap.unsqueeze(1), upper=False).squeeze(1)


def equation_limits(m: int, max_steps: int | None, check_every: int | None) -> tuple[int, int]:
    # 200 M projections, looked at every M, rounded up to blocks
    limit = max_steps if max_steps is not None else 200 * m
    return limit, check_every if check_every is not None else -(-m // BLOCK) * BLOCK


def prepare(call: str, operator: LinearOperator, b: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor, torch.dtype]:
    m, n = operator.shape
    if operator.dtype.is_complex:
        raise ArgumentError(f"{call}: expected a real operator, got {operator.dtype}")
    if min(m, n) == 0:
        raise ShapeError(f"{call}: expected an operator with rows and columns, got shape {operator.shape}")
    if b.shape != (m,):
        raise ShapeError(f"{call}: expected b of shape ({m},), got {tuple(b.shape)}")
    same_numbers(call, "b", b, operator)
    if start is not None:
        if start.shape != (n,):
            raise ShapeError(f"{call}: expected start of shape ({n},), got {tuple(start.shape)}")
        same_numbers(call, "start", start, operator)
    if not bool(torch.isfinite(b).all()):
        raise NumericalError(f"{call}: b has NaN or Inf")
    wide = wide_dtype(operator.dtype)
    x = torch.zeros(n, dtype=wide, device=operator.device) if start is None else start.detach().to(wide)
    return x, b.detach().to(wide), wide


def drive(
    call: str,
    operator: LinearOperator,
    b: Tensor,
    x: Tensor,
    advance: Callable[[Tensor, int], Tensor],
    block: int,
    limit: int,
    every: int,
    rtol: float,
    atol: float,
    stop_fn: StopFunction | None,
) -> Solution:
    at_least(call, "rtol", rtol, 0)
    at_least(call, "atol", atol, 0)
    at_least(call, "max_steps", limit, 1)
    at_least(call, "check_every", every, 1)
    goal = max(rtol * float(torch.linalg.vector_norm(b)), atol)
    history: list[Tensor] = []
    taken, next_look = 0, 0
    status = Status.MAX_STEPS
    with torch.no_grad():
        while True:
            if taken >= next_look or taken >= limit:
                image = operator.matmat(x.to(operator.dtype).unsqueeze(1)).squeeze(1).to(x.dtype)
                history.append(torch.linalg.vector_norm(image - b))
                reached = float(history[-1])
                if not bool(torch.isfinite(history[-1])):
                    status = Status.BREAKDOWN
                    break
                if reached <= goal or (stop_fn is not None and stop_fn(x.to(operator.dtype), reached)):
                    status = Status.CONVERGED
                    break
                if taken >= limit:
                    break
                next_look = taken + every
            width = min(block, limit - taken)
            x = advance(x, width)
            taken += width
    if status is Status.BREAKDOWN and len(history) == 1:
        raise NumericalError(f"{call}: the operator has NaN or Inf")
    return Solution(
        x.to(operator.dtype),
        torch.tensor(status is Status.CONVERGED, device=operator.device),
        taken,
        history[-1],
        status,
        call,
        history=torch.stack(history),
    )
