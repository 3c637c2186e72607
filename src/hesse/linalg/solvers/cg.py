"""Conjugate gradients on a block of right-hand sides, each column at its own pace.

    α = rᴴz / pᴴAp,  x += α p,  r -= α A p,  z = M r,  β = r₊ᴴz₊ / rᴴz,  p = z₊ + β p

Equivalent to ``scipy.sparse.linalg.cg`` column by column; it differs in that every column stops by itself, in that the
residual it reports is b - A x computed afresh, and in that it stops where pᴴAp <= 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hesse.errors import ArgumentError, NumericalError
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers._block import (
    Preconditioner,
    System,
    column_dot,
    column_norm,
    default_rtol,
    prepare,
    unit_scale,
)
from hesse.linalg.solvers.deflation import Deflation, deflated
from hesse.linalg.solvers.solution import Solution, Status

__all__ = ["cg"]

_GROUP_BYTES = 64  # a row of a group when the whole block is larger than the cache: 8 doubles, one cache line
_CACHE_BYTES = 1 << 20  # a block of this size, five times over, is what a core still holds near
_COMPACT_EVERY = 32  # steps between two chances to drop the columns that have stopped
_REPLACE_EVERY = 50  # steps between two fresh residuals in single precision
_LAZY_EVERY = 8  # steps between two looks at an accelerator, each of which waits for it
_DRIFT = 4.0  # a fresh residual of twice the recurrence's norm starts its column anew
_PATIENCE = 3  # fresh residuals in a row that disagree with the recurrence before it counts as stagnation


@torch.no_grad()
def cg(
    operator: LinearOperator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    deflation: Deflation | Tensor | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_steps: int | None = None,
    flexible: bool = False,
    replace_every: int | None = None,
    recurrence_dtype: torch.dtype | None = None,
    record_history: bool = False,
    return_tridiagonal: bool = False,
    observe_fn: Callable[[Tensor, Tensor], None] | None = None,
    validate: bool = True,
) -> Solution:
    """Solve A x = b for a Hermitian positive definite A.

    Parameters
    ----------
    operator : LinearOperator, shape (..., n, n)
        A. That it is positive definite is not tested beforehand: where it is not, the column stops with
        ``Status.NEGATIVE_CURVATURE`` and its direction is returned.
    b : Tensor, shape (n,) or (..., n, k)
        Right-hand sides. Half precision is iterated in float32 around products in half precision.
    x0 : Tensor, shape of b, optional
        Start. Default: zero.
    preconditioner : LinearOperator or callable, optional
        M ≈ A⁻¹, Hermitian positive definite, applied once a step.
    deflation : Deflation or Tensor of shape (n, d), optional
        Directions that are solved for exactly beforehand and kept out of the iteration: approximate eigenvectors of the
        lowest eigenvalues, as `recycled_cg` collects them. A tensor costs d products; one operator, not a stack.
    rtol : float, optional
        Stop where ‖b - A x‖ <= max(rtol ‖b‖, atol). Default: 1e-6 in double, 1e-5 in single, 1e-3 in half precision.
        With ``rtol=0`` and ``atol=0`` exactly ``max_steps`` steps are made, unless the residual is exactly zero.
    atol : float, default 0.0
        See ``rtol``; in the units of b.
    max_steps : int, optional
        Default: min(10 n, 1000).
    flexible : bool, default False
        Use β = (r₊ - r)ᴴz₊ / rᴴz (Polak-Ribière), for a preconditioner that changes from step to step; one more block.
    replace_every : int, optional
        Steps between two fresh residuals. Default: 50 in single precision, never (but at the end) in double.
    recurrence_dtype : torch.dtype, optional
        Precision of the recurrences around products in the operator's. Default: that of b, but float32 at least.
    record_history : bool, default False
        Keep the residual norm of every step.
    return_tridiagonal : bool, default False
        Keep the Lanczos matrix: its eigenvalues approximate those of M A, as `hesse.linalg.slq` uses them.
    observe_fn : callable, optional
        Called with the directions p and with A p after every product, a group of columns at a time; p is overwritten
        by the next step.
    validate : bool, default True
        Test b for NaN, and at the operator's first use its declared symmetry.

    Returns
    -------
    Solution
        ``converged`` speaks of the explicit residual. No gradient flows: see `hesse.linalg.solve`.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If a tolerance or limit is negative.
    NumericalError
        If b or the first product has NaN or Inf, or the operator is declared symmetric and is not.

    Notes
    -----
    One product and one application of M a step; memory 5 blocks of b. Deflation adds 8 n d operations a step and
    column, and holds 2 d vectors. On the CPU a block larger than the cache is worked off in groups of columns, 64 bytes
    to a row. Where a fresh residual and the recurrence part, the column starts anew from it.

    References
    ----------
    M. R. Hestenes, E. Stiefel (1952), J. Res. Natl. Bur. Stand. 49; H. A. van der Vorst, Q. Ye (2000), SIAM J. Sci.
    Comput. 22(3), for the replaced residual; Y. Notay (2000), SIAM J. Sci. Comput. 22(4), for the flexible variant;
    J. M. Tang, R. Nabben, C. Vuik, Y. A. Erlangga (2009), J. Sci. Comput. 39(3), for the balanced deflation.
    """
    rtol = default_rtol(b.dtype) if rtol is None else rtol
    limit = min(10 * operator.shape[0], 1000) if max_steps is None else max_steps
    if replace_every is not None and replace_every < 1:
        raise ArgumentError(f"cg: expected replace_every >= 1, got {replace_every}")
    system = prepare(
        "cg",
        operator,
        b,
        x0=x0,
        preconditioner=preconditioner,
        rtol=rtol,
        atol=atol,
        max_steps=limit,
        recurrence_dtype=recurrence_dtype,
        validate=validate,
    )
    if deflation is not None:
        system = deflated("cg", system, operator, deflation)
    single = system.b.dtype in (torch.float32, torch.complex64)
    plan = _Plan(
        rtol,
        atol,
        limit,
        flexible,
        replace_every or (_REPLACE_EVERY if single else 0),
        record_history,
        return_tridiagonal,
        observe_fn,
    )
    return _solution(system, [_iterate(group, plan) for group in _groups(system, plan)])


@dataclass(frozen=True, slots=True)
class _Plan:
    rtol: float
    atol: float
    max_steps: int
    flexible: bool
    replace_every: int  # 0: only where the recurrence says it is done
    record_history: bool
    tridiagonal: bool
    observe_fn: Callable[[Tensor, Tensor], None] | None

    @property
    def keeps_columns(self) -> bool:
        """Whether a record asks for every column to the end."""
        return self.record_history or self.tridiagonal


@dataclass(slots=True)
class _State:
    """The columns still iterated; per-column entries are (..., 1, k)."""

    columns: Tensor  # where they stand in the whole block
    b: Tensor
    x: Tensor
    r: Tensor
    z: Tensor
    p: Tensor
    rr: Tensor
    rz: Tensor
    limit: Tensor
    stopped: Tensor
    statuses: Tensor
    scratch: Tensor | None

    def take(self, keep: Tensor) -> None:
        """Drop the other columns."""
        for name in ("columns", "b", "x", "r", "z", "p", "rr", "rz", "limit", "stopped", "statuses"):
            setattr(self, name, getattr(self, name)[..., keep])
        self.scratch = None if self.scratch is None else torch.empty_like(self.b)


@dataclass(slots=True)
class _Run:
    """The whole block, filled in as its columns stop, and the record of the steps."""

    x: Tensor
    residual: Tensor
    statuses: Tensor
    direction: Tensor | None = None
    num_steps: int = 0
    history: list[Tensor] = field(default_factory=list)
    alphas: list[Tensor] = field(default_factory=list)
    betas: list[Tensor] = field(default_factory=list)

    def store(self, state: _State, done: Tensor) -> None:
        """Write back every live column; what ``done`` leaves out is overwritten later."""
        at = state.columns
        self.x[..., at] = state.x
        self.residual[..., at] = state.rr.sqrt()
        self.statuses[..., at] = torch.where(state.rr <= state.limit, int(Status.CONVERGED), state.statuses)
        curved = done & (state.statuses == int(Status.NEGATIVE_CURVATURE))
        if bool(curved.any()):
            if self.direction is None:
                self.direction = torch.zeros_like(self.x)
            self.direction[..., at] = torch.where(curved, state.p, 0)


def _groups(system: System, plan: _Plan) -> list[System]:
    b = system.b
    width = _GROUP_BYTES // b.element_size()
    small = b.ndim != 2 or b.shape[1] <= width or b.numel() * b.element_size() <= _CACHE_BYTES
    if small or b.device.type != "cpu" or plan.keeps_columns:
        return [system]
    parts = b.split(width, 1)
    starts = [None] * len(parts) if system.x0 is None else list(system.x0.split(width, 1))
    return [replace(system, b=part.contiguous(), x0=start) for part, start in zip(parts, starts, strict=True)]


def _start(system: System, plan: _Plan) -> tuple[_State, Tensor]:
    scale = unit_scale(system.b)
    b = system.b / scale
    x = torch.zeros_like(b) if system.x0 is None else system.x0 / scale
    r = b.clone() if system.x0 is None else b - system.product(x)
    scratch = None if b.is_complex() else torch.empty_like(b)
    rr = column_dot(r, r, scratch)
    z = r if system.precondition is None else system.precondition(r)
    limit = torch.maximum(plan.rtol * column_norm(b), plan.atol / scale) ** 2
    state = _State(
        columns=torch.arange(b.shape[-1], device=b.device),
        b=b,
        x=x,
        r=r,
        z=z,
        p=z.clone(),
        rr=rr,
        rz=rr if system.precondition is None else column_dot(r, z, scratch),
        limit=limit,
        stopped=rr <= limit,
        statuses=torch.full_like(rr, int(Status.MAX_STEPS), dtype=torch.int64),
        scratch=scratch,
    )
    return state, scale


def _iterate(system: System, plan: _Plan) -> _Run:
    product, precondition = system.product, system.precondition
    state, scale = _start(system, plan)
    run = _Run(torch.empty_like(state.x), torch.empty_like(state.rr), torch.empty_like(state.statuses))
    lazy = _is_lazy(state.b.device)
    num_stopped, total = int(state.stopped.sum()), state.stopped.numel()
    keep_directions, verified, patience, floor = lazy, False, _PATIENCE, torch.inf
    if plan.record_history:
        run.history.append(state.rr.sqrt() * scale)
    for step in range(1, plan.max_steps + 1):
        if num_stopped == total:
            break
        s = state
        ap = product(s.p)
        if plan.observe_fn is not None:
            plan.observe_fn(s.p, ap)
        pap = column_dot(s.p, ap, s.scratch)
        alpha = s.rz / pap
        if step == 1 and not bool(torch.isfinite(pap).all()):
            raise NumericalError("cg: the first product has NaN or Inf; check the operator and the preconditioner")
        sound = not lazy and bool(pap.min() > 0) and (precondition is None or bool(s.rz.min() > 0))
        if not sound:
            keep_directions = _note_breakdown(s, pap) or keep_directions
        if not sound or num_stopped:
            alpha = torch.where(s.stopped, 0, alpha)
        if plan.tridiagonal:
            run.alphas.append(alpha)
        s.x.addcmul_(s.p, alpha)
        before = s.r.clone() if plan.flexible else None
        s.r.addcmul_(ap, alpha, value=-1)
        s.rr, restart = column_dot(s.r, s.r, s.scratch), None
        if plan.replace_every and step % plan.replace_every == 0:
            restart = _replace_residual(s, product)
        s.stopped = s.rr <= s.limit
        if keep_directions:
            s.stopped = s.stopped | _is_broken(s)
        run.num_steps = step
        if plan.record_history:
            run.history.append(s.rr.sqrt() * scale)
        if not lazy or step % _LAZY_EVERY == 0:
            num_stopped = int(s.stopped.sum())
        compact = step % _COMPACT_EVERY == 0 and 4 * num_stopped >= total and s.b.ndim == 2 and not plan.keeps_columns
        if num_stopped == total or (num_stopped and compact):
            # the recurrence says done: the explicit residual has the last word
            restart = _replace_residual(s, product)
            s.stopped = (s.rr <= s.limit) | _is_broken(s)
            num_stopped = int(s.stopped.sum())
            if num_stopped == total:
                verified = True
                break
            if num_stopped and compact:
                run.store(s, s.stopped)
                if before is not None:
                    before = before[..., ~s.stopped[0]]
                restart = restart[..., ~s.stopped[0]]
                s.take(~s.stopped[0])
                num_stopped, total = 0, s.stopped.numel()
            else:
                worst = float((s.rr / s.limit)[~s.stopped].max())
                patience = _PATIENCE if worst < floor / 4 else patience - 1
                floor = min(floor, worst)
                if patience == 0:
                    s.statuses = torch.where(s.stopped, s.statuses, int(Status.STAGNATED))
                    break
        s.z = s.r if precondition is None else precondition(s.r)
        rz = s.rr if precondition is None else column_dot(s.r, s.z, s.scratch)
        fresh = rz if before is None else rz - column_dot(before, s.z, s.scratch)
        beta = fresh / s.rz
        s.rz = rz
        if num_stopped or lazy:
            beta = torch.where(s.stopped, 0, beta)
        if restart is not None:
            beta = torch.where(restart, 0, beta)
        if plan.tridiagonal:
            run.betas.append(beta)
        if keep_directions:
            s.p = torch.where(s.stopped, s.p, torch.addcmul(s.z, s.p, beta))
        else:
            torch.addcmul(s.z, s.p, beta, out=s.p)
    if not verified:
        state.r = state.b - product(state.x)
        state.rr = column_dot(state.r, state.r, state.scratch)
    run.store(state, state.stopped)
    run.x, run.residual = run.x * scale, run.residual * scale
    return run


def _replace_residual(s: _State, product: Callable[[Tensor], Tensor]) -> Tensor:
    # the explicit residual; where it is far above the recurrence's, or the recurrence thought it was done, the old
    # direction has lost its meaning beside it
    expected = s.rr
    s.r = s.b - product(s.x)
    s.rr = column_dot(s.r, s.r, s.scratch)
    return (s.rr > _DRIFT * expected) | (expected <= s.limit)


def _is_lazy(device: torch.device) -> bool:
    # on an accelerator every look at a number waits for all work before it, so masks take the place of branches
    return device.type != "cpu"


def _is_broken(s: _State) -> Tensor:
    return s.statuses >= int(Status.NEGATIVE_CURVATURE)


def _note_breakdown(s: _State, pap: Tensor) -> bool:
    # NaN compares false, so it lands here as well
    bad = ~s.stopped & ~((pap > 0) & (s.rz > 0))
    curved = (pap <= 0) & (s.rz > 0)
    kind = torch.where(curved, int(Status.NEGATIVE_CURVATURE), int(Status.BREAKDOWN))
    s.statuses = torch.where(bad, kind, s.statuses)
    s.stopped = s.stopped | bad
    return _is_lazy(s.b.device) or bool(bad.any())


def _solution(system: System, runs: list[_Run]) -> Solution:
    x = torch.cat([run.x for run in runs], -1)
    residual = torch.cat([run.residual for run in runs], -1)
    statuses = torch.cat([run.statuses for run in runs], -1)
    direction = None
    if any(run.direction is not None for run in runs):
        direction = torch.cat([torch.zeros_like(r.x) if r.direction is None else r.direction for r in runs], -1)
    first = runs[0]
    return Solution(
        x=system.unfold(x),
        converged=system.unfold_columns(statuses == int(Status.CONVERGED)),
        num_steps=max(run.num_steps for run in runs),
        residual=system.unfold_columns(residual),
        status=Status(int(statuses.max())) if statuses.numel() else Status.CONVERGED,
        method="cg",
        history=system.unfold_columns(torch.stack(first.history)) if first.history else None,
        statuses=system.unfold_columns(statuses),
        direction=None if direction is None else system.unfold(direction),
        tridiagonal=_tridiagonal(system, first) if first.alphas else None,
    )


def _tridiagonal(system: System, run: _Run) -> tuple[Tensor, Tensor]:
    # T_jj = 1/α_j + β_{j-1}/α_{j-1},  T_{j,j+1} = sqrt(β_j)/α_j; a column that has stopped goes on as the identity
    alphas = torch.stack(run.alphas)
    betas = torch.stack([*run.betas, torch.zeros_like(alphas[0])])[: len(alphas) - 1]
    live = alphas != 0
    inverse = torch.where(live, 1 / torch.where(live, alphas, 1), 0)
    carried = betas * inverse[:-1]
    diagonal = torch.where(live, inverse + torch.cat([torch.zeros_like(inverse[:1]), carried]), 1)
    off = torch.where(live[1:], betas.clamp_min(0).sqrt() * inverse[:-1], 0)
    return system.unfold_columns(diagonal).movedim(0, -1), system.unfold_columns(off).movedim(0, -1)
