"""Conjugate gradients for many shifts at the price of one: a damping sweep in a single Krylov space.

(A + μ_i I) x_i = b: the residuals of all shifts stay parallel, r_i = ζ_i r, so only x_i and p_i are kept per shift.
"""

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import System, column_dot, column_norm, default_rtol, prepare, unit_scale
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["multishift_cg"]


@torch.no_grad()
def multishift_cg(
    operator: LinearOperator,
    b: Tensor,
    shifts: Tensor,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
    max_steps: int | None = None,
    recurrence_dtype: torch.dtype | None = None,
    validate: bool = True,
) -> Solution:
    """Solve (A + μ_i I) x_i = b for every shift with one product a step.

    Parameters
    ----------
    operator : LinearOperator, shape (..., n, n)
        Hermitian positive semi-definite A.
    b : Tensor, shape (n,) or (..., n, k)
        Right-hand sides, shared by the shifts. The start is zero: shifted residuals are parallel only from there.
    shifts : Tensor, shape (s,)
        The μ_i, in the units of A, such that A + μ_i I is positive definite; in any order. There is no
        preconditioner: one would have to commute with the shift.
    rtol : float, optional
        Stop where ‖b - (A + μ_i I) x_i‖ <= max(rtol ‖b‖, atol) for every i. Default: as `cg`.
    atol : float, default 0.0
        See ``rtol``.
    max_steps : int, optional
        Default: min(10 n, 1000); the smallest shift needs the most.
    recurrence_dtype : torch.dtype, optional
        Precision of the recurrences. Default: that of b, but float32 at least.
    validate : bool, default True
        Test b for NaN, and at the operator's first use its declared symmetry.

    Returns
    -------
    Solution
        ``x`` of shape ``(s, *b.shape)``, ``residual`` and ``converged`` with s first; the residuals are explicit, at
        the cost of one product a shift at the end.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If ``shifts`` is not a non-empty real vector.
    NumericalError
        If b has NaN or Inf, or the operator is declared symmetric and is not.

    Notes
    -----
    Memory: 2 s + 3 blocks of b. A shift whose ζ_i has fallen below its tolerance is frozen.

    References
    ----------
    B. Jegerlehner (1996), arXiv hep-lat/9612014.
    """
    if shifts.ndim != 1 or not len(shifts) or shifts.is_complex():
        raise ArgumentError(f"multishift_cg: expected a real vector of shifts, got shape {tuple(shifts.shape)}")
    rtol = default_rtol(b.dtype) if rtol is None else rtol
    limit_steps = min(10 * operator.shape[0], 1000) if max_steps is None else max_steps
    system = prepare(
        "multishift_cg",
        operator,
        b,
        rtol=rtol,
        atol=atol,
        max_steps=limit_steps,
        recurrence_dtype=recurrence_dtype,
        validate=validate,
    )
    scale = unit_scale(system.b)
    r = system.b / scale
    rr = column_dot(r, r)
    limit = torch.maximum(rtol * column_norm(r), atol / scale)
    # the recurrence runs on the smallest shift, the slowest: for all others ζ_i <= 1 shrinks
    base = shifts.min().to(rr.dtype)
    gaps = (shifts.to(rr) - base).reshape(-1, *[1] * rr.ndim)
    p = r.clone()
    zeta_old = torch.ones_like(rr).expand(len(shifts), *rr.shape).clone()
    zeta = zeta_old.clone()
    x_i = torch.zeros(len(shifts), *r.shape, dtype=r.dtype, device=r.device)
    p_i = r.expand_as(x_i).clone()
    alpha_old, beta = torch.ones_like(rr), torch.zeros_like(rr)
    stopped = rr.sqrt() <= limit
    statuses = torch.where(stopped, int(Status.CONVERGED), int(Status.MAX_STEPS))
    step = 0
    while step < limit_steps and not bool(stopped.all()):
        step += 1
        ap = system.product(p) + base.to(p.dtype) * p
        pap = column_dot(p, ap)
        bad = ~stopped & ~(pap > 0)
        kind = torch.where(pap <= 0, int(Status.NEGATIVE_CURVATURE), int(Status.BREAKDOWN))
        statuses = torch.where(bad, kind, statuses)
        stopped = stopped | bad
        alpha = torch.where(stopped, 0, rr / torch.where(stopped, 1, pap))
        live = ~stopped & (zeta.abs() * rr.sqrt() > limit * 1e-2)
        below = alpha * beta * (zeta_old - zeta) + zeta_old * alpha_old * (1 + gaps * alpha)
        zeta_new = torch.where(live, zeta * zeta_old * alpha_old / torch.where(below != 0, below, 1), zeta)
        ratio = torch.where(live, zeta_new / torch.where(zeta != 0, zeta, 1), 0)
        x_i.addcmul_(p_i, alpha * ratio)
        r = torch.addcmul(r, ap, alpha, value=-1)
        rr_new = column_dot(r, r)
        beta = torch.where(stopped, 0, rr_new / torch.where(rr > 0, rr, 1))
        p = torch.addcmul(r, p, beta)
        p_i = torch.where(live, zeta_new * r + (beta * ratio**2) * p_i, p_i)
        zeta_old, zeta = torch.where(live, zeta, zeta_old), zeta_new
        alpha_old, rr = torch.where(stopped, alpha_old, alpha), rr_new
        met = ~stopped & (rr.sqrt() <= limit)
        statuses = torch.where(met, int(Status.CONVERGED), statuses)
        stopped = stopped | met
    return _solution(system, x_i, shifts, statuses, limit, scale, step)


def _solution(
    system: System, x_i: Tensor, shifts: Tensor, statuses: Tensor, limit: Tensor, scale: Tensor, step: int
) -> Solution:
    residuals = []
    for shift, x in zip(shifts.to(x_i.dtype), x_i, strict=True):
        residuals.append(column_norm(system.b / scale - system.product(x) - shift * x))
    residual = torch.stack(residuals)
    met = residual <= limit
    claimed = torch.where(statuses == int(Status.CONVERGED), int(Status.STAGNATED), statuses)
    all_statuses = torch.where(met, int(Status.CONVERGED), claimed)
    return Solution(
        x=torch.stack([system.unfold(x * scale) for x in x_i]),
        converged=system.unfold_columns(met),
        num_steps=step,
        residual=system.unfold_columns(residual * scale),
        status=Status(int(all_statuses.max())) if all_statuses.numel() else Status.CONVERGED,
        method="multishift_cg",
        statuses=system.unfold_columns(all_statuses),
    )
