"""GMRES for square operators without symmetry, restarted, with a right preconditioner.

Arnoldi A M V_j = V_{j+1} H, orthogonalised twice; Givens rotations keep H triangular and give ‖r‖ without x.
Differs from ``scipy.sparse.linalg.gmres`` in the side of the preconditioner: here ‖r‖ is that of the system as posed.
"""

import math

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.linalg.memory import require_memory
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import Preconditioner, Product, column_norm, default_rtol, finish, prepare, unit_scale
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["gmres"]


@torch.no_grad()
def gmres(
    operator: LinearOperator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_steps: int | None = None,
    restart: int = 30,
    recurrence_dtype: torch.dtype | None = None,
    record_history: bool = False,
    validate: bool = True,
) -> Solution:
    """Solve A x = b for any square A.

    Parameters
    ----------
    operator : LinearOperator, shape (..., n, n)
        A.
    b : Tensor, shape (n,) or (..., n, k)
        Right-hand sides.
    x0 : Tensor, shape of b, optional
        Start. Default: zero.
    preconditioner : LinearOperator or callable, optional
        M ≈ A⁻¹, applied from the right: A M y = b, x = M y.
    rtol : float, optional
        Stop where ‖b - A x‖ <= max(rtol ‖b‖, atol). Default: 1e-6 in double, 1e-5 in single precision.
    atol : float, default 0.0
        See ``rtol``; in the units of b.
    max_steps : int, optional
        Products in all. Default: min(10 n, 1000).
    restart : int, default 30
        Length of a cycle: memory restart + 3 blocks of b. A longer one converges in fewer products.
    recurrence_dtype : torch.dtype, optional
        Precision of the recurrences. Default: that of b, but float32 at least.
    record_history : bool, default False
        Keep the residual norm of every step.
    validate : bool, default True
        Test b for NaN, and at the operator's first use its declared symmetry.

    Returns
    -------
    Solution
        Status STAGNATED where two cycles in a row gain less than a part in 10⁻³ each.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If a tolerance or limit is negative, or ``restart < 1``.
    NumericalError
        If b has NaN or Inf, or the operator is declared symmetric and is not.
    MemoryLimitError
        If the basis would not fit.

    References
    ----------
    Y. Saad, M. H. Schultz (1986), SIAM J. Sci. Stat. Comput. 7(3).
    """
    if restart < 1:
        raise ArgumentError(f"gmres: expected restart >= 1, got {restart}")
    rtol = default_rtol(b.dtype) if rtol is None else rtol
    limit_steps = min(10 * operator.shape[0], 1000) if max_steps is None else max_steps
    system = prepare(
        "gmres",
        operator,
        b,
        x0=x0,
        preconditioner=preconditioner,
        rtol=rtol,
        atol=atol,
        max_steps=limit_steps,
        recurrence_dtype=recurrence_dtype,
        validate=validate,
    )
    columns = system.b.numel() // max(operator.shape[0] * math.prod(operator.batch_shape), 1)  # of each matrix
    kept = min(restart, limit_steps, operator.shape[0])
    require_memory("gmres", operator, columns=max(columns, 1), size=kept, recurrence_dtype=system.b.dtype)
    precondition = system.precondition or (lambda block: block)
    scale = unit_scale(system.b)
    target = system.b / scale
    limit = torch.maximum(rtol * column_norm(target), atol / scale)
    x = torch.zeros_like(target) if system.x0 is None else system.x0 / scale
    r = target - system.product(x) if system.x0 is not None else target
    norm = column_norm(r)
    history = [norm * scale] if record_history else []
    step, idle = 0, 0
    while step < limit_steps and not bool((norm <= limit).all()) and idle < 2:
        length = min(restart, limit_steps - step, operator.shape[0])
        y, used = _cycle(
            system.product, precondition, r, norm, limit, length, scale, history if record_history else None
        )
        x = x + precondition(y)
        r = target - system.product(x)
        before, norm = norm, column_norm(r)
        step += used
        active = before > limit
        idle = 0 if bool(((norm < (1 - 1e-3) * before) | ~active).all()) else idle + 1
    bad = torch.isnan(norm)
    other = Status.STAGNATED if idle >= 2 else Status.MAX_STEPS
    statuses = torch.where(norm <= limit, int(Status.CONVERGED), int(other))
    statuses = torch.where(bad, int(Status.BREAKDOWN), statuses)
    return finish(system, x, statuses, method="gmres", num_steps=step, limit=limit, scale=scale, history=history)


def _cycle(
    product: Product,
    precondition: Product,
    r: Tensor,
    norm: Tensor,
    limit: Tensor,
    length: int,
    scale: Tensor,
    history: list[Tensor] | None,
) -> tuple[Tensor, int]:
    # one Arnoldi cycle; columns come first, so that the orthogonalisation is one batched product
    lead, (n, k) = r.shape[:-2], r.shape[-2:]
    basis = torch.zeros(*lead, k, length + 1, n, dtype=r.dtype, device=r.device)
    basis[..., 0, :] = (r / torch.where(norm > 0, norm, 1)).mT
    upper = torch.zeros(*lead, k, length + 1, length, dtype=r.dtype, device=r.device)
    rhs = torch.zeros(*lead, k, length + 1, dtype=r.dtype, device=r.device)
    rhs[..., 0] = norm.squeeze(-2).to(r.dtype)
    cosines: list[Tensor] = []
    sines: list[Tensor] = []
    floor = torch.finfo(norm.dtype).eps
    used = length
    for j in range(length):
        w = product(precondition(basis[..., j, :].mT)).mT.unsqueeze(-1)
        size = torch.linalg.vector_norm(w, dim=-2)
        known = basis[..., : j + 1, :]
        h = known.conj() @ w
        w = w - known.mT @ h
        again = known.conj() @ w
        w = (w - known.mT @ again).squeeze(-1)
        h = (h + again).squeeze(-1)
        next_norm = torch.linalg.vector_norm(w, dim=-1)
        happy = next_norm <= 10 * floor * size.squeeze(-1)  # the space is invariant: the system is solved in it
        next_norm = torch.where(happy, 0, next_norm)
        basis[..., j + 1, :] = torch.where(happy, 0, 1 / torch.where(happy, 1, next_norm)).unsqueeze(-1) * w
        column = torch.cat([h, next_norm.unsqueeze(-1).to(h.dtype)], -1)
        for i in range(j):
            top, bottom = column[..., i].clone(), column[..., i + 1].clone()
            column[..., i] = cosines[i] * top + sines[i] * bottom
            column[..., i + 1] = -sines[i].conj() * top + cosines[i] * bottom
        c, s, turned = _complex_rotation(column[..., j], column[..., j + 1])
        cosines.append(c)
        sines.append(s)
        upper[..., : j + 1, j] = torch.cat([column[..., :j], turned.unsqueeze(-1)], -1)
        rhs[..., j + 1] = -s.conj() * rhs[..., j]
        rhs[..., j] = c * rhs[..., j]
        left = rhs[..., j + 1].abs().unsqueeze(-2)
        if history is not None:
            history.append(left * scale)
        if bool(((left <= limit) | (left == 0)).all()):
            used = j + 1
            break
    triangle = upper[..., :used, :used]
    # after a happy breakdown nothing is left to find; of a singular operator only rounding is
    size = triangle.diagonal(dim1=-2, dim2=-1).abs()
    empty = size <= 10 * floor * size.amax(-1, keepdim=True)
    triangle = torch.where(torch.diag_embed(empty), 1, triangle)
    weights = torch.where(empty, 0, rhs[..., :used]).unsqueeze(-1)
    y = torch.linalg.solve_triangular(triangle, weights, upper=True)
    return (basis[..., :used, :].mT @ y).squeeze(-1).mT, used


def _complex_rotation(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # c a + s b = r with real c, b >= 0
    size = torch.hypot(a.abs(), b.abs())
    safe = torch.where(size > 0, size, 1)
    phase = torch.where(a != 0, a / torch.where(a != 0, a.abs(), 1), 1)
    c = torch.where(size > 0, a.abs() / safe, 1)
    s = phase * b.conj() / safe
    return c, s, phase * size
