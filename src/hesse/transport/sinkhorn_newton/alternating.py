"""Sinkhorn's algorithm by itself: exact maximisation of the dual over one set of potentials, then over the other."""

from typing import Any, Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.transport.problem import kernel, marginal_error
from hesse.transport.sinkhorn_newton.arguments import check_problem, check_tolerance
from hesse.transport.sinkhorn_newton.plan import TransportPlan, TransportStep, finished, start_potentials
from hesse.transport.sweeps import log_sweeps, sweeps

__all__ = ["sinkhorn"]

CHECK_EVERY = 10  # sweeps between two looks at the error


def sinkhorn(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    *,
    method: Literal["scaling", "log"] = "scaling",
    tol: float | None = None,
    max_steps: int = 10_000,
    init: tuple[Tensor, Tensor] | None = None,
) -> TransportPlan:
    """Solve min ⟨M, P⟩ + reg Σ P log P over P >= 0, P1 = a, Pᵀ1 = b by alternating between the marginals.

    Parameters
    ----------
    a : Tensor, array or None, shape (n,) or (batch, n)
        Source weights >= 0, in units of mass; None or empty means 1/n each.
    b : Tensor, array or None, shape (m,) or (batch, m)
        Target weights of the same total.
    M : Tensor or array, shape (n, m) or (batch, n, m)
        Costs, in float32 or float64; +inf forbids a pair.
    reg : float
        Weight of the entropy > 0, in units of the cost.
    method : {"scaling", "log"}, default "scaling"
        ``"scaling"`` scales a plan into which the potentials are absorbed every ten sweeps, and takes logarithms where
        that leaves the floating range; ``"log"`` takes them always, at some thirty times the cost of a sweep.
    tol : float, optional
        On ‖P1 - a‖₁ + ‖Pᵀ1 - b‖₁. Default: 1e-9, which is POT's, and 1e-5 in float32, which is also the least there.
    max_steps : int, default 10000
        Sweeps; looked at every ten.
    init : tuple of Tensor, optional
        Potentials (f, g) to start from, in units of the cost.

    Returns
    -------
    TransportPlan
        With ``converged``; differentiable with respect to ``M``, ``a`` and ``b`` as if it had converged exactly.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentError
        If a weight is negative, totals differ, a cost is NaN or -inf, a point with weight has no allowed pair, or an
        option is out of range.

    Notes
    -----
    O(n m) a sweep; the error falls by a constant factor a sweep, which nears 1 as exp(-spread of M / reg).

    References
    ----------
    M. Cuturi (2013), NeurIPS, arXiv 1306.0895; B. Schmitzer (2019), SIAM J. Sci. Comput. 41(3), arXiv 1610.06519, for
    the absorbed potentials.
    """
    name = "sinkhorn"
    source, target, cost, problem = check_problem(name, a, b, M, reg)
    tol = check_tolerance(name, tol, cost.dtype, 1e-9)
    if method not in ("scaling", "log") or max_steps < 1:
        raise ArgumentError(
            f"{name}: expected method 'scaling' or 'log' and max_steps >= 1, got {method!r} and {max_steps}"
        )
    f, g = start_potentials(name, problem, init)
    advance = sweeps if method == "scaling" else log_sweeps
    history: list[TransportStep] = []
    done = 0
    with torch.no_grad():
        scaled, u, v = problem.scaled, f / reg, g / reg
        while True:
            count = min(CHECK_EVERY, max_steps - done)
            u, v, error = advance(problem, scaled, u, v, count)
            done += count
            history.append(TransportStep("sinkhorn", problem.reg, error, 0, done, 0))
            if done == max_steps or bool((error <= tol).all()):
                break
        error = marginal_error(kernel(scaled, u, v), problem.a, problem.b)
    return finished((cost, source, target), problem, (u, v), error=error, tol=tol, counts=(0, done, 0), history=history)
