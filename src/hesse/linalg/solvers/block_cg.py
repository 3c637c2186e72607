"""Block conjugate gradients: right-hand sides that share one Krylov space, so that each profits from the others.

R = Q C with QᴴMQ = I; S spans the directions:
    T = SᴴAS,  X += S T⁻¹ C,  Q₊ ζ = Q - A S T⁻¹,  S₊ = M Q₊ + S ζᴴ,  C₊ = ζ C

A residual is factored anew in every step and keeps only the directions that rounding resolves: dependent right-hand
sides, and columns that converge early, make the block narrower instead of breaking it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesse.errors import NumericalError
from hesse.linalg._arguments import single_operator
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import Preconditioner, column_norm, default_rtol, finish, prepare, unit_scale
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["block_cg"]

_PATIENCE = 3  # restarts in a row that gain less than a factor four before it counts as stagnation


@torch.no_grad()
def block_cg(
    operator: LinearOperator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_steps: int | None = None,
    recurrence_dtype: torch.dtype | None = None,
    record_history: bool = False,
    validate: bool = True,
) -> Solution:
    """Solve A X = B for a Hermitian positive definite A, minimising over the Krylov space of all columns together.

    Takes fewer steps than `cg`, and the more columns the fewer: k columns hide the k - 1 lowest eigenvalues. A step
    costs O(n k²) beside the product, where `cg` has O(n k): it pays the more, the dearer the products are.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
        A; not a stack.
    b : Tensor, shape (n,) or (..., n, k)
        Right-hand sides; those of a batch share the space as well.
    x0 : Tensor, shape of b, optional
        Start. Default: zero.
    preconditioner : LinearOperator or callable, optional
        M ≈ A⁻¹, Hermitian positive definite, applied once a step; its condition number costs digits once.
    rtol : float, optional
        Stop where ‖b - A x‖ <= max(rtol ‖b‖, atol) in every column. Default: as `cg`.
    atol : float, default 0.0
        See ``rtol``; in the units of b.
    max_steps : int, optional
        Products with a block. Default: min(10 n, 1000).
    recurrence_dtype : torch.dtype, optional
        Precision of the recurrences. Default: that of b, but float32 at least.
    record_history : bool, default False
        Keep the residual norms of every step.
    validate : bool, default True
        Test b for NaN, and at the operator's first use its declared symmetry.

    Returns
    -------
    Solution
        ``num_steps`` counts products with a block. At negative curvature ``direction`` holds one vector for all
        columns that have not converged. No gradient flows: see `hesse.linalg.solve` with ``method="block_cg"``.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit, or the operator is a stack.
    ArgumentError
        If a tolerance or limit is negative.
    NumericalError
        If b or the first product has NaN or Inf, or the operator is declared symmetric and is not.

    Notes
    -----
    A step costs one product, one application of M, O(n k²) work; memory 7 blocks of b.

    References
    ----------
    D. P. O'Leary (1980), Linear Algebra Appl. 29; A. A. Dubrulle (2001), Electron. Trans. Numer. Anal. 12, for the
    orthonormalised residual.
    """
    rtol = default_rtol(b.dtype) if rtol is None else rtol
    limit_steps = min(10 * operator.shape[0], 1000) if max_steps is None else max_steps
    system = prepare(
        "block_cg",
        single_operator("block_cg", operator),
        b,
        x0=x0,
        preconditioner=preconditioner,
        rtol=rtol,
        atol=atol,
        max_steps=limit_steps,
        recurrence_dtype=recurrence_dtype,
        validate=validate,
    )
    scale = unit_scale(system.b)
    target = system.b / scale
    limit = torch.maximum(rtol * column_norm(target), atol / scale)
    x = torch.zeros_like(target) if system.x0 is None else system.x0 / scale
    r = target if system.x0 is None else target - system.product(x)
    norms = column_norm(r)
    history = [norms * scale] if record_history else []
    step, patience, reason, direction = 0, _PATIENCE, Status.MAX_STEPS, None
    while step < limit_steps and bool((norms > limit).any()):
        run = _Run.begin(r, norms, norms > limit, system.precondition)
        while run.reason is None and step < limit_steps and bool((run.norms > limit).any()):
            step += 1
            x = x + run.advance(system.product, system.precondition, first=step == 1)
            if record_history:
                history.append(run.norms * scale)
        # the recurrence says done, or cannot go on: the explicit residual has the last word
        r = target - system.product(x)
        before, norms = norms, column_norm(r)
        if run.reason is not None:
            reason, direction = run.reason, run.direction
            break
        slow = bool((norms > torch.maximum(before / 4, limit)).any())
        patience = patience - 1 if slow else _PATIENCE
        if patience == 0:
            reason = Status.STAGNATED
            break
    statuses = torch.where(norms <= limit, int(Status.CONVERGED), int(reason))
    found = finish(
        system,
        x,
        statuses,
        method="block_cg",
        num_steps=step,
        limit=limit,
        scale=scale,
        history=history,
        residual=norms,
    )
    if direction is None:
        return found
    return replace(found, direction=system.unfold(torch.where(norms > limit, direction, 0)))


@dataclass(slots=True)
class _Run:
    """A Krylov space from one explicit residual, R = Q C."""

    Q: Tensor  # (n, r), M-orthonormal
    S: Tensor  # (n, r)
    C: Tensor  # (r, k)
    norms: Tensor  # (1, k) of the residuals
    idle: Tensor  # (1, k) of the residuals of columns that are left alone, else zero
    reason: Status | None = None  # why it cannot go on
    direction: Tensor | None = None  # (n, 1), of negative curvature

    @classmethod
    def begin(cls, r: Tensor, norms: Tensor, active: Tensor, precondition: Callable[[Tensor], Tensor] | None) -> "_Run":
        # columns that are done stay as they are: a zero right-hand side keeps its zero solution
        found = _orthonormal(torch.where(active, r / torch.where(active, norms, 1), 0), 1.0, precondition)
        if found is None:
            return cls(r[:, :0], r[:, :0], r[:0], norms, norms, Status.BREAKDOWN)
        return cls(found.Q, found.Z, found.zeta * torch.where(active, norms, 0), norms, torch.where(active, 0, norms))

    def advance(
        self, product: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor] | None, *, first: bool
    ) -> Tensor:
        """Make one step: one product and one application of M.

        Parameters
        ----------
        product, precondition : callable
            A and M on a block of columns.
        first : bool
            Whether NaN is the operator's fault.

        Returns
        -------
        Tensor, shape (n, k), or (n, 1) of zeros
            What is added to X.

        Raises
        ------
        NumericalError
            If the first product has NaN or Inf.
        """
        images = product(self.S)
        T = self.S.mH @ images
        T = (T + T.mH) / 2
        lower, failed = torch.linalg.cholesky_ex(T)
        if not bool(torch.isfinite(T).all()):
            if first:
                raise NumericalError(
                    "block_cg: the first product has NaN or Inf; check the operator and the preconditioner"
                )
            self.reason = Status.BREAKDOWN
            return torch.zeros_like(self.S[:, :1])
        if int(failed):
            self.reason, self.direction = Status.NEGATIVE_CURVATURE, self.S @ torch.linalg.eigh(T).eigenvectors[:, :1]
            return torch.zeros_like(self.S[:, :1])
        change = self.S @ torch.cholesky_solve(self.C, lower)
        images = images @ torch.cholesky_inverse(lower)
        cancelled = max(1.0, float(column_norm(images).max()))
        found = _orthonormal(self.Q - images, cancelled, precondition)
        if found is None:
            self.reason = Status.BREAKDOWN
            return change
        self.C = found.zeta @ self.C
        self.norms = self.idle + column_norm(self.C if found.plain is None else found.plain @ self.C)
        self.S = torch.addmm(found.Z, self.S, found.zeta.mH)
        self.Q = found.Q
        return change


@dataclass(frozen=True, slots=True)
class _Factors:
    Q: Tensor  # (n, r)
    Z: Tensor  # (n, r), M Q
    zeta: Tensor  # (r, width)
    plain: Tensor | None  # (r, r): Q times it has orthonormal columns; None where Q has


def _orthonormal(block: Tensor, size: float, precondition: Callable[[Tensor], Tensor] | None) -> _Factors | None:
    # block = Q ζ with QᴴMQ = I; ``size`` is that of the terms whose difference the block is, which sets the noise in it
    Q, R = torch.linalg.qr(block)
    if not bool(torch.isfinite(R).all()):
        return None
    left, values, right = torch.linalg.svd(R, full_matrices=False)
    noise = 8 * max(block.shape[1], 1) * torch.finfo(values.dtype).eps * size
    keep = values > noise
    if not bool(keep.all()) or R.shape[0] != R.shape[1]:
        Q, R = Q @ left[:, keep], values[keep].unsqueeze(1).to(R.dtype) * right[keep]
    if precondition is None:
        return _Factors(Q, Q, R, None)
    Z = precondition(Q)
    lower, failed = torch.linalg.cholesky_ex(Q.mH @ Z)
    if int(failed) or not bool(torch.isfinite(lower).all()):
        return None
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=Q.dtype, device=Q.device), upper=False)
    return _Factors(Q @ inverse.mH, Z @ inverse.mH, lower.mH @ R, inverse.mH)
