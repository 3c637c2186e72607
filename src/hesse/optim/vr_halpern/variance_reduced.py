"""Variance-reduced Halpern iteration: 0 in F(u) + G(u) for F a mean of n cocoercive components, in a single loop.

u_{k+1} = J_{ηG}(λ_k u_0 + (1 - λ_k) u_k - η g_k),   λ_k = 2 / (k + 4),   g_k an estimate of F(u_k) from √n components
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse._values import check_count
from hesse.errors import ArgumentError
from hesse.optim.vr_halpern.estimators import (
    ESTIMATORS,
    EstimatorName,
    OperatorEstimate,
    PageEstimate,
    SagaEstimate,
    SvrgEstimate,
)
from hesse.optim.vr_halpern.finite_sum import ComponentSampler, FiniteSumOperator, check_point, lipschitz_estimate
from hesse.optim.vr_halpern.inclusion import Certificate, InclusionResult, InclusionRun, Resolvent, check_limits

__all__ = ["HalpernState", "vr_halpern"]

_SAGA_EPOCHS = 4.0  # between certificates of SAGA, whose single refresh is its first step


@dataclass(frozen=True, slots=True)
class HalpernState:
    """Where a run of `vr_halpern` stands: give it in place of ``u0`` to go on.

    A run that was stopped by its budget goes on as if it had not been, with the same options and a larger budget.

    Attributes
    ----------
    u, anchor : Tensor, shape (D,)
        u_k and u_0.
    estimate : OperatorEstimate or None
        g_{k-1} and what the next estimate is made from; None before the first step.
    eta : float
        Step.
    since_anchor : int
        k, steps since the last restart.
    num_steps, num_restarts : int
        Of the whole run.
    reference : float or None
        Residual at the anchor, which a restart must halve.
    last_refresh : int
        Evaluations when all components were last read.
    evaluations : int
        So far; the closing certificate is not among them, for a run that goes on does not make it.
    history : tuple of Certificate
        So far, without the closing one.
    generator_state : Tensor of uint8
        Of the generator before the next draw.
    """

    u: Tensor
    anchor: Tensor
    estimate: OperatorEstimate | None
    eta: float
    since_anchor: int
    num_steps: int
    num_restarts: int
    reference: float | None
    last_refresh: int
    evaluations: int
    history: tuple[Certificate, ...]
    generator_state: Tensor


def vr_halpern(
    op: FiniteSumOperator,
    u0: Tensor | HalpernState,
    *,
    L: float | None = None,
    resolvent: Resolvent | None = None,
    step: Literal["practical", "theory"] | float = "practical",
    estimator: EstimatorName = "page",
    batch_size: int | None = None,
    refresh_probability: float | None = None,
    importance: Tensor | None = None,
    restart: Literal["residual-halving"] | int | None = None,
    certify_every: float | None = None,
    tol: float = 1e-6,
    max_epochs: float = 100,
    generator: Generator | None = None,
    callback: Callable[[Certificate, Tensor], None] | None = None,
) -> InclusionResult:
    """Drive the residual of 0 in F(u) + G(u) to zero with √n component evaluations a step, certified.

    u_{k+1} = J_{ηG}(λ_k u_0 + (1 - λ_k) u_k - η g_k) with λ_k = 2/(k+4). With probability p_k the estimate is F(u_k)
    itself, else g_k = g_{k-1} + (1/b) Σ_{i in S_k} (F_i(u_k) - F_i(u_{k-1})) over b random components. p_0 = p_1 = 1,
    then p_k = 4/(k+5) up to k = √n, and 4/(√n+5) from there on.

    Parameters
    ----------
    op : FiniteSumOperator
        F, cocoercive on average: ⟨F(u) - F(v), u - v⟩ >= (1/L) E‖F_i(u) - F_i(v)‖². For F that is monotone only,
        such as that of a bilinear game, nothing is proved: with an equilibrium in corners it has been seen to
        converge, from a mixed one it moves away. Use `inexact_halpern` there.
    u0 : Tensor, shape (D,), or HalpernState
        Start and anchor, in float32 or float64. A state continues its run: its step is kept, ``L`` and ``step`` are
        not looked at, and the generator is set to where it was.
    L : float, optional
        Constant of cocoercivity on average, > 0; with importance sampling that of F_i / (n q_i). Default:
        `lipschitz_estimate` at u0, which is a guess, and too small where F turns strongly.
    resolvent : callable, optional
        ``(v, eta)`` ↦ (I + eta G)⁻¹ v; for a constraint set ``lambda v, _: project(v)``. Default: G = 0.
    step : {"practical", "theory"} or float, default "practical"
        η: 1 / L, fine for components of about equal size; 1 / (4 L), for which the rate is proved; or a number.
    estimator : {"page", "svrg", "saga"}, default "page"
        The recursion above; F(w) + mean of F_i(u_k) - F_i(w) from the last refresh w; or a table of all components,
        n D numbers, which is filled once and not refreshed but for certificates.
    batch_size : int, optional
        b. Default: ⌈√n⌉, which balances updates and refreshes. Where an update is no cheaper than a refresh, as for
        n <= 6, every step is a refresh: the deterministic iteration.
    refresh_probability : float, optional
        A constant p in (0, 1] in place of p_k; 1 is the deterministic anchored iteration.
    importance : Tensor, shape (n,), optional
        Positive numbers in proportion to which components are drawn, such as their constants L_i: L is then the mean
        of the L_i instead of the largest. Needs single components. Default: uniform.
    restart : "residual-halving" or int, optional
        Where the problem is sharp, residual >= μ · distance: begin anew from u_k once a refresh finds the residual
        below half of what it was at the anchor; an integer K restarts after K steps at the latest (K = ⌈8 L / μ⌉ if μ
        is known). Convergence is then linear. Default: never, for where μ = 0 the anchor is what makes it converge.
    certify_every : float, optional
        Epochs after which a refresh is due whatever the coin says. Default: none for "page" and "svrg", whose
        refreshes come every 1.5 epochs and certify for free; 4 for "saga".
    tol : float, default 1e-6
        Residual Res_η at which to stop, in the units of F.
    max_epochs : float, default 100
        Budget in units of n evaluations, the closing certificate and the estimate of L among them.
    generator : torch.Generator, optional
        Of coins and samples; one on the CPU gives the same numbers on every device. Default: torch's global one.
    callback : callable, optional
        Called with each `Certificate` and its point, not to be changed; its own evaluations are not counted.

    Returns
    -------
    InclusionResult
        The last iterate with its certificate, and a `HalpernState` to go on from.

    Raises
    ------
    ArgumentError
        If a number is out of range, ``batch_size > n``, or an option is unknown.
    ArgumentTypeError
        If u0 is not a tensor of float32 or float64, or ``batch_size`` not an integer.
    ShapeError
        If u0, F or the resolvent do not fit.
    ConvergenceError
        If the residual is NaN or exceeds a thousand times its first value: the step is too long, or F not monotone.

    Notes
    -----
    Expected residual O(L ‖u_0 - u*‖ / k); √n L / ε + n evaluations, up to logarithms, for a residual of ε, where
    deterministic methods need n L_F / ε with the constant L_F of F itself. As L may be as large as n L_F, the gain
    lies between √n and a loss: with a few hundred components, or some that are far larger than the rest, `halpern` is
    better. A step costs 2b evaluations or n, six √n in the mean. Samples are drawn with replacement. Memory: six
    vectors.

    References
    ----------
    X. Cai, A. Alacaoglu, J. Diakonikolas (2024), ICLR, arXiv 2310.02987.
    Z. Li, H. Bao, X. Zhang, P. Richtárik (2021), ICML, arXiv 2008.10898, for PAGE.

    Examples
    --------
    >>> targets = torch.linspace(-1, 3, 100).unsqueeze(1)
    >>> op = FiniteSumOperator(lambda u, i: u - targets[i].mean(0), n=100, dim=1)
    >>> result = vr_halpern(op, torch.zeros(1), L=1.0, restart="residual-halving", tol=1e-3)
    >>> result.converged, bool((result.u - 1).abs() < 2e-3)
    (True, True)
    """
    check_limits("vr_halpern", tol, max_epochs)
    plan = _plan(op.n, estimator, batch_size, refresh_probability, restart, certify_every)
    source = torch.default_generator if generator is None else generator
    continued = isinstance(u0, HalpernState)
    u = check_point("vr_halpern", "u0", u0.u if continued else u0, op.dim)
    sampler = ComponentSampler(op.n, source, u.device, u.dtype, importance)
    if continued:
        state = u0
        if state.estimate is not None and not isinstance(state.estimate, plan.kind):
            raise ArgumentError(f"vr_halpern: the state is of another estimator than {estimator!r}")
        source.set_state(state.generator_state)
    else:
        before = op.evaluations
        eta = _step_size(op, u, L, step, importance, source)
        state = HalpernState(u, u, None, eta, 0, 0, 0, None, 0, op.evaluations - before, (), source.get_state())
    run = InclusionRun(
        "vr_halpern",
        op,
        resolvent=resolvent,
        eta=state.eta,
        tol=tol,
        max_epochs=max_epochs,
        callback=callback,
        history=state.history,
        spent=state.evaluations,
    )
    state, certified = _iterate(run, state, plan, sampler)
    return run.result(
        state.u, certified=certified, num_steps=state.num_steps, num_restarts=state.num_restarts, state=state
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """The options of a run, checked."""

    n: int
    kind: type[PageEstimate] | type[SvrgEstimate] | type[SagaEstimate]
    batch_size: int
    constant: float | None  # refresh probability
    halving: bool  # whether a halved residual moves the anchor
    latest: float  # steps after which the anchor is moved in any case
    due: float  # evaluations after which a refresh is made in any case

    def refresh_probability(self, k: int) -> float:
        if self.kind.cost(self.batch_size) >= self.n:
            return 1.0
        if self.constant is not None:
            return self.constant
        if self.kind is SagaEstimate:
            return 0.0
        return 1.0 if k < 2 else 4 / (min(k, math.sqrt(self.n)) + 5)


def _plan(
    n: int,
    estimator: EstimatorName,
    batch_size: int | None,
    refresh_probability: float | None,
    restart: str | int | None,
    certify_every: float | None,
) -> _Plan:
    if estimator not in ESTIMATORS:
        raise ArgumentError(f"vr_halpern: estimator must be one of {', '.join(ESTIMATORS)}; got {estimator!r}")
    if batch_size is not None:
        check_count("vr_halpern", "batch_size", batch_size)
    if batch_size is not None and batch_size > n:
        raise ArgumentError(f"vr_halpern: expected batch_size <= n = {n}, got {batch_size}")
    if refresh_probability is not None and not 0 < refresh_probability <= 1:
        raise ArgumentError(f"vr_halpern: expected 0 < refresh_probability <= 1, got {refresh_probability}")
    if certify_every is not None and not certify_every > 0:
        raise ArgumentError(f"vr_halpern: expected certify_every > 0, got {certify_every}")
    latest = math.inf if restart is None or restart == "residual-halving" else restart
    if isinstance(latest, str) or latest < 1:
        raise ArgumentError(
            f'vr_halpern: expected restart="residual-halving", a number of steps >= 1 or None, got {restart!r}'
        )
    rarest = _SAGA_EPOCHS if estimator == "saga" else math.inf
    return _Plan(
        n=n,
        kind=ESTIMATORS[estimator],
        batch_size=math.ceil(math.sqrt(n)) if batch_size is None else batch_size,
        constant=refresh_probability,
        halving=restart is not None,
        latest=latest,
        due=n * (rarest if certify_every is None else certify_every),
    )


def _iterate(
    run: InclusionRun, state: HalpernState, plan: _Plan, sampler: ComponentSampler
) -> tuple[HalpernState, bool]:
    # the second value: whether the last certificate is of the last point
    op, eta, source = run.op, run.eta, sampler.generator
    u, anchor, k, reference = state.u, state.anchor, state.since_anchor, state.reference
    num_steps, num_restarts, last_refresh = state.num_steps, state.num_restarts, state.last_refresh
    estimate = None if state.estimate is None else state.estimate.copied()
    certified = False
    while True:
        before_draw = source.get_state()
        if k >= plan.latest:
            anchor, reference, k, num_restarts = u, None, 0, num_restarts + 1
        p = plan.refresh_probability(k)
        refresh = estimate is None or p == 1 or run.evaluations - last_refresh >= plan.due
        if not refresh and p > 0:
            refresh = float(torch.rand((), generator=source, device=source.device)) < p
        if not run.affords(plan.n if refresh else plan.kind.cost(plan.batch_size)):
            source.set_state(before_draw)  # the same coin falls again if the run goes on
            break
        if refresh or estimate is None:
            estimate = plan.kind.refreshed(op, u)
            last_refresh = run.evaluations
            residual = run.certify(u, estimate.value).residual
            if residual <= run.tol:
                certified = True
                break
            if reference is None:
                reference = residual
            elif plan.halving and residual < reference / 2:
                anchor, reference, k, num_restarts = u, residual, 0, num_restarts + 1
        else:
            estimate = estimate.updated(op, u, *sampler.draw(plan.batch_size))
        weight = 2 / (k + 4)
        u = run.resolve(weight * anchor + (1 - weight) * u - eta * estimate.value, eta)
        k, num_steps = k + 1, num_steps + 1
    end = HalpernState(
        u=u,
        anchor=anchor,
        estimate=estimate,
        eta=eta,
        since_anchor=k,
        num_steps=num_steps,
        num_restarts=num_restarts,
        reference=reference,
        last_refresh=last_refresh,
        evaluations=run.evaluations,
        history=tuple(run.history),
        generator_state=source.get_state(),
    )
    return end, certified


def _step_size(
    op: FiniteSumOperator,
    u: Tensor,
    L: float | None,
    step: Literal["practical", "theory"] | float,
    importance: Tensor | None,
    generator: Generator,
) -> float:
    if L is not None and not (L > 0 and math.isfinite(L)):
        raise ArgumentError(f"vr_halpern: expected L > 0, got {L}")
    if isinstance(step, str):
        if step not in ("practical", "theory"):
            raise ArgumentError(f'vr_halpern: step must be "practical", "theory" or a number; got {step!r}')
        found = lipschitz_estimate(op, u, importance=importance, generator=generator) if L is None else L
        return 1 / found if step == "practical" else 1 / (4 * found)
    return step
