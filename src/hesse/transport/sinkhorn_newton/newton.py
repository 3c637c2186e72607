"""Sinkhorn-Newton-Sparse: a few sweeps, then Newton steps on the dual with the largest entries of the plan.

max_{u,v} aᵀu + bᵀv - Σ_ij P_ij,  P_ij = exp(u_i + v_j - M_ij/reg);  gradient (a - P1, b - Pᵀ1);  Hessian
-[[diag(P1), P], [Pᵀ, diag(Pᵀ1)]].   Shapes: B problems, n sources, m targets.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.transport.problem import Problem, cost_spread, kernel, marginals
from hesse.transport.sinkhorn_newton.arguments import check_problem, check_tolerance
from hesse.transport.sinkhorn_newton.plan import TransportPlan, TransportStep, finished, start_potentials
from hesse.transport.sinkhorn_newton.system import newton_system
from hesse.transport.sweeps import scaling_sweeps, sweeps

__all__ = ["sinkhorn_newton"]

COARSEST = 40.0  # spread of M / reg where continuation begins: a plan that Sinkhorn nearly solves in a few sweeps
COARSE_TOL, COARSE_STEPS, COARSE_SWEEPS = 1e-3, 8, 20  # a coarse stage is only a start for the next
CLOSE = 1e-2  # marginal error at which Newton steps begin to pay
ARMIJO, MOST_HALVINGS = 1e-4, 10
MAX_CG = 500
CG_MARGIN = 0.1  # of the tolerance: a system solved any better is solved for nothing
SLOW = 10.0  # a full step that gains less was held back by what the system left out
RESCUE_SWEEPS = 20  # where no step along the direction raises the dual


def sinkhorn_newton(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    *,
    num_sinkhorn: int = 20,
    sparsity: float = 15.0,
    max_sparsity: float = 100.0,
    continuation: bool = True,
    num_polish: int = 2,
    tol: float | None = None,
    max_steps: int = 60,
    init: tuple[Tensor, Tensor] | None = None,
) -> TransportPlan:
    """Solve min ⟨M, P⟩ + reg Σ P log P over P >= 0, P1 = a, Pᵀ1 = b to high accuracy.

    Sinkhorn's sweeps gain digits linearly, and slowly where ``reg`` is small. There the plan is nearly sparse, and with
    it the Hessian of the dual: Newton steps with its largest entries cost O(n m) as a sweep does, and gain digits
    quadratically.

    Parameters
    ----------
    a : Tensor, array or None, shape (n,) or (batch, n)
        Source weights >= 0, in units of mass; None or empty means 1/n each. Points of weight zero are left out.
    b : Tensor, array or None, shape (m,) or (batch, m)
        Target weights of the same total.
    M : Tensor or array, shape (n, m) or (batch, n, m)
        Costs, in float32 or float64; +inf forbids a pair. The arguments are those of POT's ``ot.sinkhorn``.
    reg : float
        Weight of the entropy > 0, in units of the cost (the paper's 1/η).
    num_sinkhorn : int, default 20
        Sweeps before the first Newton step, the paper's value. With ``continuation`` more follow while ten of them
        halve an error above 1e-2.
    sparsity : float, default 15.0
        Entries that the system keeps, times max(n, m). The paper's 2 for random costs makes the convergence linear.
    max_sparsity : float, default 100.0
        The same doubles, up to here, where a full step gains less than a digit. No larger than ``sparsity``: fixed.
    continuation : bool, default True
        Start where max(M) - min(M) is 40 reg at most and halve reg from stage to stage, extrapolating the potentials
        linearly. Without it, as in the paper, costs with many optimal plans (such as the l1 distance of a grid) fail.
        Not used if ``init`` is given.
    num_polish : int, default 2
        Sweeps after each Newton step: never downhill, and O(n m) each. 0 is the paper's algorithm.
    tol : float, optional
        On ‖P1 - a‖₁ + ‖Pᵀ1 - b‖₁. Default: 1e-10, and 1e-5 in float32, which is also the least there.
    max_steps : int, default 60
        Newton steps in all.
    init : tuple of Tensor, optional
        Potentials (f, g) of a similar problem, in units of the cost, as ``TransportPlan.potentials`` has them.

    Returns
    -------
    TransportPlan
        With ``converged``; a plan that missed ``tol`` is returned all the same (`entropic` raises). Differentiable
        with respect to ``M``, ``a`` and ``b``.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If a weight is negative, totals differ, a cost is NaN or -inf, a point with weight has no allowed pair, or a
        limit is out of range.

    Notes
    -----
    Time: O(n m) a step for exponentials, sums and selection, and O(sparsity max(n, m)) for each step of conjugate
    gradients on the Schur complement. Memory: four arrays of the size of M. A batch moves in step; problems that are
    done are put aside.

    References
    ----------
    X. Tang, M. Shavlovsky, H. Rahmanian, E. Tardini, K. K. Thekumparampil, T. Xiao, L. Ying (2024), ICLR,
    arXiv 2401.12253.
    """
    name = "sinkhorn_newton"
    source, target, cost, problem = check_problem(name, a, b, M, reg)
    tol = check_tolerance(name, tol, cost.dtype, 1e-10)
    if num_sinkhorn < 1 or max_steps < 0 or num_polish < 0 or not sparsity > 0:
        raise ArgumentError(
            f"{name}: expected num_sinkhorn >= 1, max_steps >= 0, num_polish >= 0 and sparsity > 0, got "
            f"{num_sinkhorn}, {max_steps}, {num_polish} and {sparsity}"
        )
    f, g = start_potentials(name, problem, init)
    blank = torch.full_like(f[:, 0], torch.inf)
    run = _Run(f / reg, g / reg, blank, torch.full_like(blank, sparsity))
    with torch.no_grad():
        _descend(
            problem, run, _Rules(tol, num_sinkhorn, num_polish, max_sparsity, max_steps, continuation), init is None
        )
    return finished(
        (cost, source, target),
        problem,
        (run.u, run.v),
        error=run.error,
        tol=tol,
        counts=(run.num_steps, run.num_sweeps, run.num_cg),
        history=run.history,
    )


@dataclass(slots=True)
class _Run:
    """Where the batch stands, in logarithmic units; counts are those of the slowest problem."""

    u: Tensor
    v: Tensor
    error: Tensor  # (B,)
    kept: Tensor  # (B,): entries of the plan that the system keeps, over max(n, m)
    num_steps: int = 0
    num_sweeps: int = 0
    num_cg: int = 0
    history: list[TransportStep] = field(default_factory=list)

    def note(self, kind: Literal["sinkhorn", "newton"], reg: float) -> None:
        """Write down where the run is."""
        self.history.append(TransportStep(kind, reg, self.error.clone(), self.num_steps, self.num_sweeps, self.num_cg))


@dataclass(frozen=True, slots=True)
class _Rules:
    tol: float
    num_sinkhorn: int
    num_polish: int
    max_sparsity: float
    max_steps: int
    continuation: bool


def _descend(problem: Problem, run: _Run, rules: _Rules, fresh: bool) -> None:
    doublings = 0
    if rules.continuation and fresh:
        doublings = max(0, math.ceil(math.log2(max(cost_spread(problem) / problem.reg, 1.0) / COARSEST)))
    older = None
    for stage in range(doublings, -1, -1):
        now = replace(problem, reg=problem.reg * 2.0**stage)
        scaled = now.scaled
        coarse = stage > 0
        stage_rules = replace(
            rules,
            tol=max(rules.tol, COARSE_TOL) if coarse else rules.tol,
            num_sinkhorn=COARSE_SWEEPS if coarse else rules.num_sinkhorn,
            max_steps=min(COARSE_STEPS, rules.max_steps - run.num_steps) if coarse else rules.max_steps - run.num_steps,
        )
        _warm_up(now, scaled, run, stage_rules)
        _newton(now, scaled, run, stage_rules)
        if coarse:
            # the potentials reg (u, v) are nearly linear in reg, and reg halves
            u, v = run.u, run.v
            run.u, run.v = (2 * u, 2 * v) if older is None else (3 * u - 2 * older[0], 3 * v - 2 * older[1])
            older = u, v


def _warm_up(problem: Problem, scaled: Tensor, run: _Run, rules: _Rules) -> None:
    close, count = max(CLOSE, rules.tol), rules.num_sinkhorn
    before = torch.full_like(run.error, torch.inf)
    while True:
        run.u, run.v, run.error = sweeps(problem, scaled, run.u, run.v, count)
        run.num_sweeps += count
        run.note("sinkhorn", problem.reg)
        falling = (run.error > close) & (run.error < before / 2)
        if not rules.continuation or not bool(falling.any()):
            return
        before, count = run.error, 10


@dataclass(frozen=True, slots=True)
class _Point:
    """Potentials with the plan they give, the gradient there and the value of the dual."""

    u: Tensor
    v: Tensor
    plan: Tensor
    rows: Tensor  # a - P1
    columns: Tensor  # b - Pᵀ1
    error: Tensor
    value: Tensor

    def take(self, which: Tensor) -> "_Point":
        return _Point(*(getattr(self, name)[which] for name in self.__slots__))


def _point(problem: Problem, scaled: Tensor, u: Tensor, v: Tensor) -> _Point:
    plan = kernel(scaled, u, v)
    row_sums, column_sums = marginals(plan)
    rows, columns = problem.a - row_sums, problem.b - column_sums
    error = rows.abs().sum(-1) + columns.abs().sum(-1)
    value = (problem.a * u).sum(-1) + (problem.b * v).sum(-1) - row_sums.sum(-1)
    return _Point(u, v, plan, rows, columns, error, value)


def _newton(problem: Problem, scaled: Tensor, run: _Run, rules: _Rules) -> None:
    tol = rules.tol
    live = (run.error > tol).nonzero().squeeze(-1)
    if not len(live) or not rules.max_steps:
        return
    if len(live) < len(run.u):
        problem, scaled = problem.take(live), scaled[live]
    at, kept = _point(problem, scaled, run.u[live], run.v[live]), run.kept[live]
    size = max(scaled.shape[1:])
    for _ in range(rules.max_steps):
        system = newton_system(at.plan, (kept * size).ceil().long())
        rtol = max(min(0.01, float(at.error.min())), CG_MARGIN * tol / float(at.error.max()))
        du, dv, cg_steps = system.solve(at.rows, at.columns, rtol, MAX_CG)
        after, alpha = _line_search(problem, scaled, at, du, dv)
        u, v, stuck = after.u, after.v, alpha == 0
        run.num_sweeps += rules.num_polish
        if rules.num_polish:
            u, v, polished = scaling_sweeps(problem, after.plan, u, v, rules.num_polish)
            stuck |= ~polished.isfinite()
        if bool(stuck.any()):
            rescued = sweeps(problem, scaled, at.u, at.v, RESCUE_SWEEPS)
            u, v = (torch.where(stuck.unsqueeze(-1), x, y) for x, y in zip(rescued[:2], (u, v), strict=True))
            run.num_sweeps += RESCUE_SWEEPS
        after = _point(problem, scaled, u, v)
        slow = stuck | ((after.error > at.error / SLOW) & (alpha == 1))
        kept = torch.where(slow, torch.maximum(kept, (2 * kept).clamp_max(rules.max_sparsity)), kept)
        at = after
        run.num_steps += 1
        run.num_cg += cg_steps
        run.u[live], run.v[live], run.error[live], run.kept[live] = at.u, at.v, at.error, kept
        run.note("newton", problem.reg)
        left = at.error > tol
        if not bool(left.any()):
            return
        if not bool(left.all()):
            live, at, kept, problem, scaled = live[left], at.take(left), kept[left], problem.take(left), scaled[left]


def _line_search(problem: Problem, scaled: Tensor, at: _Point, du: Tensor, dv: Tensor) -> tuple[_Point, Tensor]:
    # each problem halves its own step until its dual rises enough; 0 means that none did
    slope = (at.rows * du).sum(-1) + (at.columns * dv).sum(-1)
    resolution = 1e3 * torch.finfo(at.value.dtype).eps * (1 + at.value.abs())
    alpha = torch.ones_like(at.value)
    accepted = alpha == 0
    for _ in range(MOST_HALVINGS):
        step = alpha.unsqueeze(-1)
        trial = _point(problem, scaled, at.u + step * du, at.v + step * dv)
        rises = trial.value >= at.value + ARMIJO * alpha * slope
        # near the maximum the dual is flat to rounding, and the marginals say more
        flat = (trial.value - at.value).abs() <= resolution
        accepted = rises | (flat & (trial.error < at.error))
        if bool(accepted.all()):
            return trial, alpha
        alpha = torch.where(accepted, alpha, alpha / 2)
    alpha = torch.where(accepted, alpha, 0)
    step = alpha.unsqueeze(-1)
    return _point(problem, scaled, at.u + step * du, at.v + step * dv), alpha
