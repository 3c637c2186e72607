"""Entropic transport of a small dense problem, as training needs it: a plan and its potentials, without a graph.

P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps).   Shapes: C (N, M), a and f (N,), b and g (M,).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, NumericalError
from hesse.transport.problem import Problem, kernel
from hesse.transport.sweeps import log_potentials, scaling_sweeps

__all__ = ["EntropicPlan", "check_finite", "check_scale", "entropic_plan", "self_plan"]

SCALING_SWEEPS = 9  # cheap sweeps between two in the log domain, at which the marginals are checked
SAFE_RANGE = 1e-12  # of a row's mass to its goal: below it a cheap sweep would divide by what rounding left


@dataclass(frozen=True, slots=True)
class EntropicPlan:
    """A plan with the dual potentials it comes from, in units of the cost."""

    plan: Tensor  # (N, M)
    f: Tensor  # (N,)
    g: Tensor  # (M,)
    converged: bool
    num_steps: int  # sweeps over both marginals
    residual: float  # Σ_i |Σ_j P_ij - a_i|; the other marginal is met to rounding


def check_finite(call: str, cost: Tensor) -> None:
    """Refuse costs that are not finite.

    Parameters
    ----------
    call : str
        The public function, for the message.
    cost : Tensor
        All of the costs of a problem.

    Raises
    ------
    NumericalError
        If one is NaN or infinite.
    """
    if not bool(torch.isfinite(cost).all()):
        raise NumericalError(f"{call}: the costs contain NaN or Inf; look for them in the points or in the cost")


def check_scale(call: str, cost: Tensor, eps: float) -> None:
    """Refuse costs that are not finite, and an eps below the last digit of the costs.

    Parameters
    ----------
    call : str
        The public function, for the message.
    cost : Tensor
        All of the costs of a problem.
    eps : float
        Strength of the entropy, in units of the cost.

    Raises
    ------
    ArgumentError
        If eps is not positive, or so small that C / eps has no digit after the point in this dtype.
    """
    check_finite(call, cost)
    if not 0 < eps < float("inf"):
        raise ArgumentError(
            f"{call}: expected eps > 0, got {eps}; it is relative to the mean cost unless given: are all points one?"
        )
    largest = float(cost.abs().max())
    if largest / eps * torch.finfo(cost.dtype).eps > 0.1:
        raise ArgumentError(
            f"{call}: eps={eps:.1e} is below the resolution of {cost.dtype} for costs up to {largest:.1e}; "
            "raise it, scale the data or use float64"
        )


@torch.no_grad()
def entropic_plan(cost: Tensor, eps: float, a: Tensor, b: Tensor, *, tol: float, max_steps: int) -> EntropicPlan:
    """Sinkhorn's iteration: sweeps in the log domain, each followed by nine of plain scalings of the plan it gave.

    Parameters
    ----------
    cost : Tensor, shape (N, M)
        C.
    eps : float
        Strength of the entropy, in units of the cost.
    a, b : Tensor, shapes (N,) and (M,)
        Marginals, positive, of sum one.
    tol : float
        Bound on the L1 error of the first marginal.
    max_steps : int
        Sweeps at most.

    Returns
    -------
    EntropicPlan
        With ``converged`` False where the bound was not met. 10 sweeps cost some 3 exponentials of the matrix and 20
        products with it, a fifth of ten sweeps in the log domain.
    """
    problem = Problem(cost.unsqueeze(0), a.unsqueeze(0), b.unsqueeze(0), eps, batched=False)
    scaled, log_a, log_b = problem.scaled, problem.a.log(), problem.b.log()
    u, v = log_a, log_b
    steps = 0
    while True:
        u, v = log_potentials(problem, scaled, u, v, 1)
        plan = kernel(scaled, u, v)
        sums = plan.sum(-1)
        steps += 1
        residual = float((sums - problem.a).abs().sum())
        if residual <= tol or steps >= max_steps:
            break
        cheap = min(SCALING_SWEEPS, max_steps - steps - 1)
        if cheap > 0 and bool((sums > SAFE_RANGE * problem.a).all()):
            moved_u, moved_v, moved_error = scaling_sweeps(problem, plan, u, v, cheap)
            if bool(moved_error.isfinite()):
                u, v, steps = moved_u, moved_v, steps + cheap
    f, g = eps * (u - log_a), eps * (v - log_b)
    return EntropicPlan(plan[0], f[0], g[0], residual <= tol, steps, residual)


@torch.no_grad()
def self_plan(cost: Tensor, eps: float, a: Tensor, *, tol: float, max_steps: int) -> EntropicPlan:
    """Plan of a measure to itself, with f = g: the average of f and its update converges in some ten steps.

    Parameters
    ----------
    cost : Tensor, shape (N, N)
        C, symmetric.
    eps, tol, max_steps
        As in `entropic_plan`.
    a : Tensor, shape (N,)
        Both marginals.

    Returns
    -------
    EntropicPlan
        Neither marginal is met exactly; ``residual`` is the error of both.
    """
    scaled, log_a = cost / eps, a.log()
    potential = torch.zeros_like(a)
    steps = 0
    while True:
        update = -(potential + log_a - scaled).logsumexp(1)
        steps += 1
        residual = float((a * ((potential - update).exp() - 1).abs()).sum())
        if residual <= tol or steps >= max_steps:
            break
        potential = (potential + update) / 2
    logits = potential + log_a
    plan = (logits.unsqueeze(1) + logits - scaled).exp()
    return EntropicPlan(plan, eps * potential, eps * potential, residual <= tol, steps, residual)
