"""Sinkhorn's sweeps on a checked problem: by scaling vectors around absorbed potentials, or in logarithms."""

import torch
from torch import Tensor

from hesse.transport.problem import Problem, kernel, times, times_transposed

__all__ = ["log_potentials", "log_sweeps", "scaling_sweeps", "sweeps"]


def sweeps(problem: Problem, scaled: Tensor, u: Tensor, v: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make sweeps u <- u + log(a / P1), v <- v + log(b / Pᵀ1), in logarithms where scaling leaves the range.

    Parameters
    ----------
    problem : Problem
        B problems.
    scaled : Tensor, shape (B, n, m)
        M / reg.
    u : Tensor, shape (B, n)
        Potentials of the sources in logarithmic units.
    v : Tensor, shape (B, m)
        Potentials of the targets.
    count : int
        Sweeps, >= 1.

    Returns
    -------
    tuple of (Tensor, Tensor, Tensor)
        New potentials, and the error ‖P1 - a‖₁ per problem; columns are exact.
    """
    out = scaling_sweeps(problem, kernel(scaled, u, v), u, v, count)
    in_range = out[2].isfinite()
    if bool(in_range.all()):
        return out
    logs = log_sweeps(problem, scaled, u, v, count)
    keep = in_range.unsqueeze(-1)
    new_u, new_v = torch.where(keep, out[0], logs[0]), torch.where(keep, out[1], logs[1])
    return new_u, new_v, torch.where(in_range, out[2], logs[2])


def scaling_sweeps(problem: Problem, plan: Tensor, u: Tensor, v: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make sweeps on the plan of (u, v) by two products each.

    Parameters
    ----------
    problem : Problem
        B problems.
    plan : Tensor, shape (B, n, m)
        exp(u + v - M/reg); not changed.
    u : Tensor, shape (B, n)
        Potentials of the sources.
    v : Tensor, shape (B, m)
        Potentials of the targets.
    count : int
        Sweeps, >= 1.

    Returns
    -------
    tuple of (Tensor, Tensor, Tensor)
        As `sweeps`; where a row, a column or a factor left the floating range, the error is infinite.
    """
    live_a, live_b = problem.a > 0, problem.b > 0
    beta = torch.ones_like(v)
    alpha = torch.ones_like(u)
    row = times(plan, beta)
    for _ in range(count):
        alpha = torch.where(live_a, problem.a / row, 1)
        beta = torch.where(live_b, problem.b / times_transposed(plan, alpha), 1)
        row = times(plan, beta)
    error = (alpha * row - problem.a).abs().sum(-1)
    new_u, new_v = u + alpha.log(), v + beta.log()
    sound = new_u.isfinite().all(-1) & new_v.isfinite().all(-1) & error.isfinite()
    return new_u, new_v, torch.where(sound, error, torch.inf)


def log_sweeps(problem: Problem, scaled: Tensor, u: Tensor, v: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make sweeps by log-sum-exp, which no cost can drive out of range.

    Parameters
    ----------
    problem : Problem
        B problems.
    scaled : Tensor, shape (B, n, m)
        M / reg.
    u : Tensor, shape (B, n)
        Potentials of the sources; the first half sweep replaces them.
    v : Tensor, shape (B, m)
        Potentials of the targets.
    count : int
        Sweeps, >= 1.

    Returns
    -------
    tuple of (Tensor, Tensor, Tensor)
        As `sweeps`.
    """
    u, v = log_potentials(problem, scaled, u, v, count)
    return u, v, (kernel(scaled, u, v).sum(-1) - problem.a).abs().sum(-1)


def log_potentials(problem: Problem, scaled: Tensor, u: Tensor, v: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Do the work of `log_sweeps`, without a look at the marginals.

    Parameters
    ----------
    problem, scaled, u, v, count
        As in `log_sweeps`.

    Returns
    -------
    tuple of (Tensor, Tensor)
        New potentials.
    """
    live_a, live_b = problem.a > 0, problem.b > 0
    log_a, log_b = problem.a.log(), problem.b.log()
    for _ in range(count):
        u = torch.where(live_a, log_a - torch.logsumexp(v.unsqueeze(-2) - scaled, -1), 0)
        v = torch.where(live_b, log_b - torch.logsumexp(u.unsqueeze(-1) - scaled, -2), 0)
    return u, v
