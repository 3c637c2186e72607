"""Deterministic methods for 0 in F(u) + G(u), F the full mean: Halpern, extragradient, and anchored extragradient.

They cost n or 2n component evaluations a step, and are what variance reduction is measured against.
"""

from collections.abc import Callable

from torch import Tensor

from hesse.errors import ArgumentError
from hesse.optim.vr_halpern.finite_sum import FiniteSumOperator, check_point
from hesse.optim.vr_halpern.inclusion import Certificate, InclusionResult, InclusionRun, Resolvent

__all__ = ["extra_anchored_gradient", "extragradient", "halpern"]

_Step = Callable[[InclusionRun, Tensor, Tensor, Tensor, int], Tensor]  # run, u_0, u_k, F(u_k), k ↦ u_{k+1}


def halpern(
    op: FiniteSumOperator,
    u0: Tensor,
    *,
    L: float | None = None,
    step: float | None = None,
    resolvent: Resolvent | None = None,
    tol: float = 1e-6,
    max_epochs: float = 100,
    callback: Callable[[Certificate, Tensor], None] | None = None,
) -> InclusionResult:
    """Halpern iteration of the forward-backward map: u_{k+1} = λ_k u_0 + (1 - λ_k) J(u_k - η F(u_k)), λ_k = 1/(k+2).

    For cocoercive F, ⟨F(u) - F(v), u - v⟩ >= ‖F(u) - F(v)‖² / L, the residual falls as 1/k.

    Parameters
    ----------
    op : FiniteSumOperator
        F.
    u0 : Tensor, shape (D,)
        Start and anchor, in float32 or float64.
    L : float, optional
        Constant of cocoercivity of the full F, > 0. Needed unless ``step`` is given.
    step : float, optional
        η > 0, the map is nonexpansive up to 2 / L. Default: 2 / L.
    resolvent : callable, optional
        ``(v, eta)`` ↦ (I + eta G)⁻¹ v. Default: G = 0.
    tol : float, default 1e-6
        Residual Res_η at which to stop, in the units of F.
    max_epochs : float, default 100
        Budget in full passes, the closing certificate among them.
    callback : callable, optional
        Called with each `Certificate` and its point, not to be changed; its own evaluations are not counted.

    Returns
    -------
    InclusionResult
        Every iterate is certified, at no further cost.

    Raises
    ------
    ArgumentError
        If a number is out of range, or both L and ``step`` are missing.
    ConvergenceError
        If the residual is NaN or exceeds a thousand times its first value.

    Notes
    -----
    n evaluations a step; memory three vectors.

    References
    ----------
    B. Halpern (1967), Bull. Amer. Math. Soc. 73(6). F. Lieder (2021), Optim. Lett. 15.
    """

    def advance(run: InclusionRun, anchor: Tensor, u: Tensor, value: Tensor, k: int) -> Tensor:
        weight = 1 / (k + 2)
        return weight * anchor + (1 - weight) * run.resolve(u - run.eta * value, run.eta)

    eta = _step_size("halpern", L, step, 2.0)
    run = InclusionRun("halpern", op, resolvent=resolvent, eta=eta, tol=tol, max_epochs=max_epochs, callback=callback)
    return _iterate(run, u0, advance, passes=1)


def extragradient(
    op: FiniteSumOperator,
    u0: Tensor,
    *,
    L: float | None = None,
    step: float | None = None,
    resolvent: Resolvent | None = None,
    tol: float = 1e-6,
    max_epochs: float = 100,
    callback: Callable[[Certificate, Tensor], None] | None = None,
) -> InclusionResult:
    """Extragradient: v = J(u_k - η F(u_k)), u_{k+1} = J(u_k - η F(v)).

    Parameters
    ----------
    op : FiniteSumOperator
        F, monotone and L-Lipschitz.
    u0 : Tensor, shape (D,)
        Start, in float32 or float64.
    L : float, optional
        Lipschitz constant of the full F, > 0. Needed unless ``step`` is given.
    step : float, optional
        η, convergent below 1 / L. Default: 0.9 / L.
    resolvent : callable, optional
        ``(v, eta)`` ↦ (I + eta G)⁻¹ v. Default: G = 0.
    tol : float, default 1e-6
        Residual Res_η at which to stop, in the units of F.
    max_epochs : float, default 100
        Budget in full passes, the closing certificate among them.
    callback : callable, optional
        Called with each `Certificate` and its point, not to be changed; its own evaluations are not counted.

    Returns
    -------
    InclusionResult
        The last iterate's residual falls as 1/√k; every iterate is certified, at no further cost.

    Raises
    ------
    ArgumentError
        If a number is out of range, or both L and ``step`` are missing.
    ConvergenceError
        If the residual is NaN or exceeds a thousand times its first value.

    Notes
    -----
    2n evaluations a step; memory four vectors.

    References
    ----------
    G. M. Korpelevich (1976), Matecon 12.
    """

    def advance(run: InclusionRun, _anchor: Tensor, u: Tensor, value: Tensor, _k: int) -> Tensor:
        return _extra_step(run, u, value)

    eta = _step_size("extragradient", L, step, 0.9)
    run = InclusionRun(
        "extragradient", op, resolvent=resolvent, eta=eta, tol=tol, max_epochs=max_epochs, callback=callback
    )
    return _iterate(run, u0, advance, passes=2)


def extra_anchored_gradient(
    op: FiniteSumOperator,
    u0: Tensor,
    *,
    L: float | None = None,
    step: float | None = None,
    resolvent: Resolvent | None = None,
    tol: float = 1e-6,
    max_epochs: float = 100,
    callback: Callable[[Certificate, Tensor], None] | None = None,
) -> InclusionResult:
    """Anchored extragradient (EAG): extragradient from a_k = λ_k u_0 + (1 - λ_k) u_k, λ_k = 1/(k+2).

    v = J(a_k - η F(u_k)), u_{k+1} = J(a_k - η F(v)).

    Parameters
    ----------
    op : FiniteSumOperator
        F, monotone and L-Lipschitz.
    u0 : Tensor, shape (D,)
        Start and anchor, in float32 or float64.
    L : float, optional
        Lipschitz constant of the full F, > 0. Needed unless ``step`` is given.
    step : float, optional
        η. Default: 0.9 / L, within what is stable in practice; the proof of a constant step wants 1 / (8 L).
    resolvent : callable, optional
        ``(v, eta)`` ↦ (I + eta G)⁻¹ v. Default: G = 0.
    tol : float, default 1e-6
        Residual Res_η at which to stop, in the units of F.
    max_epochs : float, default 100
        Budget in full passes, the closing certificate among them.
    callback : callable, optional
        Called with each `Certificate` and its point, not to be changed; its own evaluations are not counted.

    Returns
    -------
    InclusionResult
        The last iterate's residual falls as 1/k, the best rate for monotone F.

    Raises
    ------
    ArgumentError
        If a number is out of range, or both L and ``step`` are missing.
    ConvergenceError
        If the residual is NaN or exceeds a thousand times its first value.

    Notes
    -----
    2n evaluations a step; memory five vectors.

    References
    ----------
    T. Yoon, E. K. Ryu (2021), ICML, arXiv 2102.07922.
    """

    def advance(run: InclusionRun, anchor: Tensor, u: Tensor, value: Tensor, k: int) -> Tensor:
        weight = 1 / (k + 2)
        return _extra_step(run, weight * anchor + (1 - weight) * u, value)

    eta = _step_size("extra_anchored_gradient", L, step, 0.9)
    run = InclusionRun(
        "extra_anchored_gradient", op, resolvent=resolvent, eta=eta, tol=tol, max_epochs=max_epochs, callback=callback
    )
    return _iterate(run, u0, advance, passes=2)


def _extra_step(run: InclusionRun, base: Tensor, value: Tensor) -> Tensor:
    trial = run.resolve(base - run.eta * value, run.eta)
    return run.resolve(base - run.eta * run.op.full(trial), run.eta)


def _step_size(call: str, L: float | None, step: float | None, factor: float) -> float:
    if step is not None:
        return step
    if L is None:
        raise ArgumentError(f"{call}: expected L or step")
    if not L > 0:
        raise ArgumentError(f"{call}: expected L > 0, got {L}")
    return factor / L


def _iterate(run: InclusionRun, u0: Tensor, advance: _Step, *, passes: int) -> InclusionResult:
    u = anchor = check_point(run.call, "u0", u0, run.op.dim)
    k = 0
    while run.affords(passes * run.op.n):
        value = run.op.full(u)
        if run.certify(u, value).residual <= run.tol:
            return run.result(u, certified=True, num_steps=k)
        u = advance(run, anchor, u, value, k)
        k += 1
    return run.result(u, certified=False, num_steps=k)
