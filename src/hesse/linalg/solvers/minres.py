"""MINRES: the smallest residual in each Krylov space of a symmetric, possibly indefinite or singular operator.

Lanczos for (A - shift I) M, Givens rotations on its tridiagonal, one short recurrence for x. Equivalent to
``scipy.sparse.linalg.minres`` column by column; the residual it reports is computed afresh.
"""

import torch
from torch import Tensor

from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import (
    Preconditioner,
    column_dot,
    column_norm,
    default_rtol,
    finish,
    prepare,
    unit_scale,
)
from hesse.linalg.solvers.deflation import Deflation, projected
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["minres"]


@torch.no_grad()
def minres(
    operator: LinearOperator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    shift: float = 0.0,
    deflation: Deflation | Tensor | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_steps: int | None = None,
    recurrence_dtype: torch.dtype | None = None,
    record_history: bool = False,
    validate: bool = True,
) -> Solution:
    """Solve (A - shift · I) x = b for a Hermitian A of any signature.

    Parameters
    ----------
    operator : LinearOperator, shape (..., n, n)
        A.
    b : Tensor, shape (n,) or (..., n, k)
        Right-hand sides.
    x0 : Tensor, shape of b, optional
        Start. Default: zero, for which a singular system gets its solution of least norm; else the one nearest to x0.
    preconditioner : LinearOperator or callable, optional
        Hermitian positive definite ``M ≈ |A|⁻¹``.
    shift : float, default 0.0
        Subtracted from the diagonal, as in SciPy.
    deflation : Deflation or Tensor of shape (n, d), optional
        A subspace U that the iteration need not search; worth its cost where U spans approximate eigenvectors of
        eigenvalues near zero, or far outside the rest. The residual is the least over U and the Krylov space together.
        Not for stacks of operators.
    rtol : float, optional
        Stop where ‖b - (A - shift I) x‖ <= max(rtol ‖b‖, atol). Default: 1e-6 in double, 1e-5 in single precision.
    atol : float, default 0.0
        See ``rtol``; in the units of b.
    max_steps : int, optional
        Default: min(10 n, 1000).
    recurrence_dtype : torch.dtype, optional
        Precision of the recurrences. Default: that of b, but float32 at least.
    record_history : bool, default False
        Keep the residual norm of every step.
    validate : bool, default True
        Test b for NaN, and at the operator's first use its declared symmetry.

    Returns
    -------
    Solution
        Status LEAST_SQUARES where the system is singular and b is not in its range: x then has the least residual, and
        of all that have it the least norm (with M: both in the norms of M and M⁻¹), to about √ε times the condition
        number on the range. It is the answer of MINRES-QLP; for more digits use `lsmr`.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If a tolerance or limit is negative.
    NumericalError
        If b or the image of the deflation has NaN or Inf, or the operator is declared symmetric and is not.

    Notes
    -----
    One product and one application of M a step; memory 8 blocks of b. A deflation of d columns adds d products at the
    start, one at the end, O(n d) work a step and column, and 2 n d numbers. Where b is not in the range, two products
    more: the Krylov space of b meets the null space in one direction only, that of the final residual, which is taken
    out.

    References
    ----------
    C. C. Paige, M. A. Saunders (1975), SIAM J. Numer. Anal. 12(4). S.-C. T. Choi, C. C. Paige, M. A. Saunders (2011),
    SIAM J. Sci. Comput. 33(4), arXiv 1003.4042, for the shortest solution; Y. Liu, A. Milzarek, F. Roosta (2023), arXiv
    2309.17096, for how to get it from MINRES; S. Wang, E. de Sturler, G. H. Paulino (2007), Int. J. Numer. Methods Eng.
    69(12), for the deflation.
    """
    rtol = default_rtol(b.dtype) if rtol is None else rtol
    limit_steps = min(10 * operator.shape[0], 1000) if max_steps is None else max_steps
    operator = operator if shift == 0 else operator.shift(-shift)
    given = prepare(
        "minres",
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
    scale = unit_scale(given.b)
    limit = torch.maximum(rtol * column_norm(given.b / scale), atol / scale)
    system, lift = (given, None) if deflation is None else projected("minres", given, operator, deflation)
    product, precondition = system.product, system.precondition or (lambda block: block)
    eps = torch.finfo(scale.dtype).eps

    x = torch.zeros_like(system.b) if system.x0 is None else system.x0 / scale
    residual = system.b / scale - (0 if system.x0 is None else product(x))
    y = precondition(residual)
    beta = column_dot(residual, y).clamp_min(0).sqrt()
    older, newer = torch.zeros_like(residual), residual
    w, w_old = torch.zeros_like(residual), torch.zeros_like(residual)
    zero = torch.zeros_like(beta)
    beta_old, dbar, epsln, phibar, norm2 = zero, zero, zero, beta, zero
    cs, sn = -torch.ones_like(beta), zero
    rnorm = column_norm(residual)
    stopped = rnorm <= limit
    statuses = torch.where(stopped, int(Status.CONVERGED), int(Status.MAX_STEPS))
    history = [rnorm * scale] if record_history else []
    step = 0
    while step < limit_steps and not bool(stopped.all()):
        step += 1
        v = y / _safe(beta)
        y = product(v) - _older_term(older, beta, beta_old)
        alpha = column_dot(v, y)
        y = y - newer * (alpha / _safe(beta))
        older, newer = newer, y
        y = precondition(newer)
        beta_old, square = beta, column_dot(newer, y)
        broken = ~stopped & ~(square >= -eps * norm2)  # M not positive definite, or NaN
        beta = square.clamp_min(0).sqrt()
        norm2 = norm2 + alpha**2 + beta_old**2 * (step > 1) + beta**2

        eps_old, epsln = epsln, sn * beta
        delta, gbar = cs * dbar + sn * alpha, sn * dbar - cs * alpha
        dbar = -cs * beta
        root = torch.hypot(gbar, dbar)
        gamma = torch.hypot(gbar, beta).clamp_min(torch.finfo(beta.dtype).tiny)
        cs, sn = gbar / gamma, beta / gamma
        phi, phibar = cs * phibar, sn * phibar
        # A r vanishes beside ‖A‖ ‖r‖ and the step gains nothing: r is orthogonal to the range
        singular = ~stopped & (root <= eps**0.5 * norm2.sqrt()) & (cs**2 <= eps**0.75)
        statuses = torch.where(broken, int(Status.BREAKDOWN), statuses)
        statuses = torch.where(singular & ~broken, int(Status.LEAST_SQUARES), statuses)
        stopped = stopped | broken | singular
        w, w_old = (v - eps_old * w_old - delta * w) / gamma, w
        x = torch.addcmul(x, w, torch.where(stopped, 0, phi))
        if system.precondition is None:
            rnorm = torch.where(stopped, rnorm, phibar.abs())
        else:  # phibar is the residual in the norm of M: the plain one needs its own recurrence
            update = residual * sn**2 - newer * (phibar * cs / _safe(beta))
            residual = torch.where(stopped, residual, update)
            rnorm = column_norm(residual)
        met = ~stopped & (rnorm <= limit)
        statuses = torch.where(met, int(Status.CONVERGED), statuses)
        stopped = stopped | met
        if record_history:
            history.append(rnorm * scale)
    flat = statuses == int(Status.LEAST_SQUARES)
    if bool(flat.any()):
        start = 0 if system.x0 is None else system.x0 / scale
        residual = system.b / scale - product(x)
        along = precondition(residual)  # lies in the null space, as far as the steps have got
        share = column_dot(residual, x - start) / _safe(column_dot(residual, along))
        x = torch.addcmul(x, along, torch.where(flat, share, 0), value=-1)
    x = x if lift is None else lift(x, scale)
    return finish(given, x, statuses, method="minres", num_steps=step, limit=limit, scale=scale, history=history)


def _older_term(older: Tensor, beta: Tensor, beta_old: Tensor) -> Tensor:
    return older * torch.where(beta_old > 0, beta / _safe(beta_old), 0)


def _safe(scalar: Tensor) -> Tensor:
    return torch.where(scalar > 0, scalar, 1)
