"""Halpern iteration on an inexact resolvent, and the variance-reduced solver inside it: 0 in F(u) + G(u), F monotone.

u_{k+1} = λ_k u_0 + (1 - λ_k) z_k,   z_k ≈ (I + c (F + G))⁻¹ u_k,   λ_k = 1 / (k + 2)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse._values import check_count
from hesse.errors import ArgumentError
from hesse.optim.vr_halpern.finite_sum import ComponentSampler, FiniteSumOperator, check_point, lipschitz_estimate
from hesse.optim.vr_halpern.inclusion import (
    Certificate,
    InclusionResult,
    InclusionRun,
    Resolvent,
    check_limits,
    checked_resolvent,
)

__all__ = ["inexact_halpern", "vr_forb"]


def inexact_halpern(
    op: FiniteSumOperator,
    u0: Tensor,
    *,
    L: float | None = None,
    resolvent: Resolvent | None = None,
    scale: float | None = None,
    inner_constant: float = 0.05,
    inner_step: float | None = None,
    batch_size: int = 1,
    importance: Tensor | None = None,
    residual_step: float = 1.0,
    tol: float = 1e-6,
    max_epochs: float = 100,
    generator: Generator | None = None,
    callback: Callable[[Certificate, Tensor], None] | None = None,
) -> InclusionResult:
    """Drive the residual of 0 in F(u) + G(u) to zero for F that is monotone only, such as that of a bilinear game.

    The resolvent of c (F + G) is averaged whatever F is, so that Halpern's iteration converges; it is found roughly by
    M_k = ⌈inner_constant · (n + √n (cL + 1)) · log(k + 2)⌉ steps of `vr_forb` from u_k.

    Parameters
    ----------
    op : FiniteSumOperator
        F, monotone, with E‖F_i(u) - F_i(v)‖² <= L² ‖u - v‖².
    u0 : Tensor, shape (D,)
        Start and anchor, in float32 or float64.
    L : float, optional
        Lipschitz constant on average, > 0. Default: `lipschitz_estimate` at u0, a guess.
    resolvent : callable, optional
        ``(v, eta)`` ↦ (I + eta G)⁻¹ v. Default: G = 0.
    scale : float, optional
        c. Default: √n / L, which balances outer and inner work.
    inner_constant : float, default 0.05
        The theory wants errors that fall as a power of k; this small multiple does in practice.
    inner_step : float, optional
        γ of `vr_forb`. Default: its own.
    batch_size : int, default 1
        Components to an inner step; M_k is divided by it.
    importance : Tensor, shape (n,), optional
        Positive numbers in proportion to which components are drawn. Needs single components. Default: uniform.
    residual_step : float, default 1.0
        η of the certificates, in which c plays no part.
    tol : float, default 1e-6
        Residual Res_η at which to stop, in the units of F.
    max_epochs : float, default 100
        Budget in units of n evaluations, the closing certificate and the estimate of L among them. The last inner
        solve is cut short where it would not fit.
    generator : torch.Generator, optional
        Of samples and snapshots. Default: torch's global one of the CPU.
    callback : callable, optional
        Called with each `Certificate` and its point, not to be changed; its own evaluations are not counted.

    Returns
    -------
    InclusionResult
        Every u_k is certified, at no further cost: the inner solver starts from F(u_k). ``num_steps`` counts outer
        steps.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    ShapeError
        If u0, F or the resolvent do not fit.
    ConvergenceError
        If the residual is NaN or exceeds a thousand times its first value.

    Notes
    -----
    √n L / ε + n evaluations, up to logarithms, for an expected residual of ε; without variance reduction n L_F / ε.
    Memory: nine vectors.

    References
    ----------
    X. Cai, A. Alacaoglu, J. Diakonikolas (2024), ICLR, arXiv 2310.02987.
    """
    call = "inexact_halpern"
    _check_positive(call, "inner_constant", inner_constant)
    for name, value in (("scale", scale), ("inner_step", inner_step), ("residual_step", residual_step)):
        if value is not None:
            _check_positive(call, name, value)
    check_limits(call, tol, max_epochs)
    u = anchor = check_point(call, "u0", u0, op.dim)
    sampler = _sampler(call, op, u, batch_size, importance, generator)
    before = op.evaluations
    L = _lipschitz(call, op, u, L, sampler)
    run = InclusionRun(
        call,
        op,
        resolvent=resolvent,
        eta=residual_step,
        tol=tol,
        max_epochs=max_epochs,
        callback=callback,
        spent=op.evaluations - before,
    )
    c = math.sqrt(op.n) / L if scale is None else scale
    gamma = _default_step(batch_size / op.n, c * L + 1) if inner_step is None else inner_step
    inner = _ForbSteps(op, run.resolve, sampler, batch_size, c, 1.0, gamma)
    steps_per_log = inner_constant * (op.n + math.sqrt(op.n) * (c * L + 1)) / batch_size
    k = 0
    while run.affords(op.n):
        value = op.full(u)
        if run.certify(u, value).residual <= tol:
            return run.result(u, certified=True, num_steps=k)
        weight = 1 / (k + 2)
        z = inner.run(u, value, math.ceil(steps_per_log * math.log(k + 2)), run.affords)
        u = weight * anchor + (1 - weight) * z
        k += 1
    return run.result(u, certified=False, num_steps=k)


def vr_forb(
    op: FiniteSumOperator,
    u0: Tensor,
    *,
    L: float | None = None,
    resolvent: Resolvent | None = None,
    scale: float = 1.0,
    strong: float = 1.0,
    step: float | None = None,
    batch_size: int = 1,
    importance: Tensor | None = None,
    num_steps: int | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Approximate (I + c (F + G))⁻¹ u_0 by forward-reflected-backward steps with variance reduction.

    Solves 0 in Φ(v) + c G(v), Φ(v) = c F(v) + strong · (v - u_0), by
    v⁺ = J_{γcG}((1 - p) v + p w - γ [Φ(w) + Φ_i(v) - Φ_i(w⁻)]); then w⁻ ← w, and w ← v⁺ with probability p.

    Parameters
    ----------
    op : FiniteSumOperator
        F, monotone.
    u0 : Tensor, shape (D,)
        Centre and start, in float32 or float64.
    L : float, optional
        Lipschitz constant of F on average, > 0. Default: `lipschitz_estimate` at u0, a guess.
    resolvent : callable, optional
        ``(v, eta)`` ↦ (I + eta G)⁻¹ v. Default: G = 0.
    scale : float, default 1.0
        c > 0.
    strong : float, default 1.0
        Weight of v - u_0, >= 0; 1 gives the resolvent, 0 the inclusion 0 in F + G itself.
    step : float, optional
        γ. Default: √(p (1 - p)) / (2 (c L + strong)) for p < 1, and 0.45 / (c L + strong) for p = 1, which is the
        deterministic method and converges below 1/2. The authors tune it, up to five times as long.
    batch_size : int, default 1
        B, components to a step.
    importance : Tensor, shape (n,), optional
        Positive numbers in proportion to which components are drawn. Needs single components. Default: uniform.
    num_steps : int, optional
        Default: 10 n / B, which reduces the distance for c = 1 / L by orders of magnitude.
    generator : torch.Generator, optional
        Of samples and snapshots. Default: torch's global one of the CPU.

    Returns
    -------
    Tensor, shape (D,)
        The last v.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    ShapeError
        If u0, F or the resolvent do not fit.

    Notes
    -----
    p = B / n, so that snapshots cost half of what samples do: n evaluations first, then 3 B a step in the mean. Linear
    convergence for ``strong > 0``. Memory: seven vectors.

    References
    ----------
    A. Alacaoglu, Y. Malitsky (2022), COLT, arXiv 2102.08352.
    A. Alacaoglu, Y. Malitsky, V. Cevher (2021), Comput. Optim. Appl. 80.
    """
    call = "vr_forb"
    _check_positive(call, "scale", scale)
    if step is not None:
        _check_positive(call, "step", step)
    if not (strong >= 0 and math.isfinite(strong)):
        raise ArgumentError(f"{call}: expected strong >= 0, got {strong}")
    if num_steps is not None and num_steps < 0:
        raise ArgumentError(f"{call}: expected num_steps >= 0, got {num_steps}")
    u = check_point(call, "u0", u0, op.dim)
    sampler = _sampler(call, op, u, batch_size, importance, generator)
    L = _lipschitz(call, op, u, L, sampler)
    gamma = _default_step(batch_size / op.n, scale * L + strong) if step is None else step
    solver = _ForbSteps(op, checked_resolvent(resolvent), sampler, batch_size, scale, strong, gamma)
    count = math.ceil(10 * op.n / batch_size) if num_steps is None else num_steps
    return solver.run(u, op.full(u), count, lambda _cost: True)


@dataclass(frozen=True, slots=True)
class _ForbSteps:
    """The inner method with everything but its centre: ``run`` makes steps from there as long as they can be paid."""

    op: FiniteSumOperator
    resolve: Resolvent
    sampler: ComponentSampler
    batch_size: int
    scale: float
    strong: float
    gamma: float

    def run(self, center: Tensor, value: Tensor, num_steps: int, affords: Callable[[int], bool]) -> Tensor:
        op, c, strong, gamma = self.op, self.scale, self.strong, self.gamma
        source, p = self.sampler.generator, self.batch_size / self.op.n
        v = w = w_before = center
        at_snapshot = c * value  # Φ(w): the centre's own term is zero there
        for _ in range(num_steps):
            if not affords(2 * self.batch_size + op.n):
                break
            index, weights = self.sampler.draw(self.batch_size)
            change = op.mean(v, index, weights) - op.mean(w_before, index, weights)
            reflected = at_snapshot + c * change + strong * (v - w_before)
            v = self.resolve((1 - p) * v + p * w - gamma * reflected, gamma * c)
            w_before = w
            if p == 1 or float(torch.rand((), generator=source, device=source.device)) < p:
                w = v
                at_snapshot = c * op.full(w) + strong * (w - center)
        return v


def _default_step(p: float, lipschitz: float) -> float:
    return (math.sqrt(p * (1 - p)) / 2 if p < 1 else 0.45) / lipschitz


def _check_positive(call: str, name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ArgumentError(f"{call}: expected a positive finite {name}, got {value}")


def _sampler(
    call: str,
    op: FiniteSumOperator,
    u: Tensor,
    batch_size: int,
    importance: Tensor | None,
    generator: Generator | None,
) -> ComponentSampler:
    check_count(call, "batch_size", batch_size)
    if batch_size > op.n:
        raise ArgumentError(f"{call}: expected batch_size <= n = {op.n}, got {batch_size}")
    source = torch.default_generator if generator is None else generator
    return ComponentSampler(op.n, source, u.device, u.dtype, importance)


def _lipschitz(call: str, op: FiniteSumOperator, u: Tensor, L: float | None, sampler: ComponentSampler) -> float:
    if L is None:
        return lipschitz_estimate(op, u, importance=sampler.importance, generator=sampler.generator)
    _check_positive(call, "L", L)
    return L
