"""One door to the entropic solvers, and the proximal-point loop that leads from them to the linear programme."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ConvergenceError
from hesse.transport.problem import cost_spread
from hesse.transport.sinkhorn_newton.alternating import sinkhorn
from hesse.transport.sinkhorn_newton.arguments import check_problem
from hesse.transport.sinkhorn_newton.newton import COARSEST, sinkhorn_newton
from hesse.transport.sinkhorn_newton.plan import TransportPlan

__all__ = ["entropic", "linear_bound", "proximal"]


def entropic(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    *,
    method: Literal["auto", "sinkhorn", "newton", "proximal"] = "auto",
    tol: float | None = None,
    init: tuple[Tensor, Tensor] | None = None,
) -> TransportPlan:
    """Solve an entropic transport problem by the method that fits it, or raise.

    Parameters
    ----------
    a : Tensor, array or None, shape (n,) or (batch, n)
        Source weights >= 0, in units of mass; None or empty means 1/n each.
    b : Tensor, array or None, shape (m,) or (batch, m)
        Target weights of the same total.
    M : Tensor or array, shape (n, m) or (batch, n, m)
        Costs, in float32 or float64; +inf forbids a pair.
    reg : float
        Weight of the entropy > 0, in units of the cost; with ``"proximal"`` that of the first step.
    method : {"auto", "sinkhorn", "newton", "proximal"}, default "auto"
        ``"auto"``: `sinkhorn` where the costs spread over 40 reg at most, else `sinkhorn_newton`. ``"proximal"``: the
        limit of no regularisation, see `proximal`.
    tol : float, optional
        On ‖P1 - a‖₁ + ‖Pᵀ1 - b‖₁. Default: that of the method.
    init : tuple of Tensor, optional
        Potentials (f, g) to start from, in units of the cost.

    Returns
    -------
    TransportPlan
        Converged.

    Raises
    ------
    ArgumentError
        If the method is unknown, or as the method says.
    ConvergenceError
        If the tolerance was not reached.
    """
    solvers = {"sinkhorn": sinkhorn, "newton": sinkhorn_newton, "proximal": proximal}
    if method != "auto" and method not in solvers:
        raise ArgumentError(f"entropic: expected method 'auto' or one of {sorted(solvers)}, got {method!r}")
    if method == "auto":
        problem = check_problem("entropic", a, b, M, reg)[3]
        method = "sinkhorn" if cost_spread(problem) <= COARSEST * reg else "newton"
    result = solvers[method](a, b, M, reg, tol=tol, init=init)
    if not bool(result.converged.all()):
        raise ConvergenceError(
            f"entropic: {method} stopped at a marginal error of {float(result.marginal_error.max()):.1e} after "
            f"{result.num_sweeps} sweeps and {result.num_steps} Newton steps; raise reg or tol, use float64, and see "
            "whether forbidden pairs leave any plan at all"
        )
    return result


def proximal(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    *,
    rtol: float = 1e-6,
    tol: float | None = None,
    max_steps: int = 20,
    init: tuple[Tensor, Tensor] | None = None,
) -> TransportPlan:
    """Approach the unregularised optimum min ⟨M, P⟩ by proximal points in the Kullback-Leibler divergence.

    P_k = argmin ⟨M, P⟩ + ρ_k KL(P, P_{k-1}), M always the original cost. Solved exactly, such steps add up: P_k is the
    entropic plan of weight 1 / Σ_l 1/ρ_l. The weights are reg, reg, reg/2, reg/4, ..., so that the sum doubles from
    step to step, and each step is one warm-started `sinkhorn_newton`. A certificate from linear duality ends the loop.

    Parameters
    ----------
    a : Tensor, array or None, shape (n,) or (batch, n)
        Source weights >= 0, in units of mass; None or empty means 1/n each.
    b : Tensor, array or None, shape (m,) or (batch, m)
        Target weights of the same total.
    M : Tensor or array, shape (n, m) or (batch, n, m)
        Costs; +inf forbids a pair. In float32 the steps end early: the exponents M / reg_k lose their last digits.
    reg : float
        Of the first step, in units of the cost.
    rtol : float, default 1e-6
        Stop where ⟨M, P⟩ is certified to lie within rtol of the optimum, relative to ⟨M, P⟩.
    tol : float, optional
        On the marginals of every step, as in `sinkhorn_newton`; no less than what rounding of the exponents leaves.
    max_steps : int, default 20
        Proximal steps; the last has reg / 2¹⁹.
    init : tuple of Tensor, optional
        Potentials (f, g) to start from.

    Returns
    -------
    TransportPlan
        The last, with the counts of all steps added up; ``converged`` speaks of the marginals and of the certificate.
        Its ``reg`` is the weight that the steps add up to.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If ``rtol`` is negative or ``max_steps < 1``, or as `sinkhorn_newton` says.

    References
    ----------
    H. Wu, L. Liang, H. Yang (2025), arXiv 2502.03749.
    """
    if not rtol >= 0 or max_steps < 1:
        raise ArgumentError(f"proximal: expected rtol >= 0 and max_steps >= 1, got {rtol} and {max_steps}")
    problem = check_problem("proximal", a, b, M, reg)[3]
    eps, spread = torch.finfo(problem.cost.dtype).eps, cost_spread(problem)
    counts, history = [0, 0, 0], []
    before, start, step = None, init, 0
    while True:
        weight = reg / 2**step
        floor = 100 * eps * spread / weight  # what rounding of the exponents leaves of the marginals
        aim = tol if floor < 1e-12 else max(tol or 0.0, floor)
        result = sinkhorn_newton(a, b, M, weight, tol=aim, init=start)
        counts = [x + y for x, y in zip(counts, (result.num_steps, result.num_sweeps, result.num_cg), strict=True)]
        history += result.history
        with torch.no_grad():
            here = result.potentials[0].detach(), result.potentials[1].detach()
            # potentials are nearly linear in the weight, which halves: where that puts them at weight zero, and next
            limit = here if before is None else _beyond(here, before, 1.0)
            bound = torch.maximum(linear_bound(result, here), linear_bound(result, limit))
            certified = result.value - bound <= rtol * result.value.abs()
        step += 1
        if step == max_steps or bool(certified.all()):
            break
        start = here if before is None else _beyond(here, before, 0.5)
        before = here
    num_steps, num_sweeps, num_cg = counts
    return replace(
        result,
        converged=result.converged & certified,
        num_steps=num_steps,
        num_sweeps=num_sweeps,
        num_cg=num_cg,
        history=tuple(history),
    )


def linear_bound(problem: TransportPlan, potentials: tuple[Tensor, Tensor]) -> Tensor:
    """Bound min ⟨M, P⟩ from below by linear duality: Σ a_i f_i + Σ b_j min_i (M_ij - f_i).

    Parameters
    ----------
    problem : TransportPlan
        Gives cost and weights.
    potentials : tuple of Tensor
        Any f, in units of the cost; g plays no part.

    Returns
    -------
    Tensor, shape (...)
        In units of cost times mass; tight if f is optimal for the linear programme.
    """
    f = potentials[0].unsqueeze(-1)
    nearest = torch.where(f > -torch.inf, problem.cost - f, torch.inf).amin(-2)
    weighted = torch.where(problem.b > 0, problem.b * nearest, 0).sum(-1)
    return torch.where(problem.a > 0, problem.a * potentials[0], 0).sum(-1) + weighted


def _beyond(here: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor], factor: float) -> tuple[Tensor, Tensor]:
    f, g = (torch.where(x > -torch.inf, x + factor * (x - y), x) for x, y in zip(here, before, strict=True))
    return f, g
