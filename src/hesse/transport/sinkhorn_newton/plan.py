"""What the entropic solvers return: potentials that carry gradients, and all that follows from them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hesse.errors import ShapeError
from hesse.transport.problem import Problem
from hesse.transport.sinkhorn_newton.implicit import implicit_potentials

__all__ = ["TransportPlan", "TransportStep", "finished", "start_potentials"]


@dataclass(frozen=True, slots=True)
class TransportStep:
    """One entry of a solver's history; counts run on from the start, those of the slowest problem in a batch."""

    kind: Literal["sinkhorn", "newton"]
    reg: float  # of the stage, in units of the cost
    error: Tensor  # (batch,): ‖P1 - a‖₁ + ‖Pᵀ1 - b‖₁
    num_steps: int  # Newton steps so far
    num_sweeps: int  # Sinkhorn sweeps so far
    num_cg: int  # steps of conjugate gradients so far


@dataclass(frozen=True, slots=True)
class TransportPlan:
    """An entropic transport plan P_ij = exp((f_i + g_j - M_ij) / reg), kept as its potentials.

    Every tensor has the batch dimension of the cost, if it had one. ``plan``, ``value`` and ``reg_value`` are computed
    when asked for, O(n m) each, and differentiable with respect to the cost and the weights.
    """

    cost: Tensor  # (..., n, m): M
    a: Tensor  # (..., n)
    b: Tensor  # (..., m)
    reg: float
    potentials: tuple[Tensor, Tensor]  # f (..., n) and g (..., m), in units of the cost; Σf = Σg; -inf without weight
    marginal_error: Tensor  # (...): ‖P1 - a‖₁ + ‖Pᵀ1 - b‖₁
    converged: Tensor  # (...): whether the error is within the tolerance
    num_steps: int  # Newton steps
    num_sweeps: int  # Sinkhorn sweeps
    num_cg: int  # steps of conjugate gradients
    history: tuple[TransportStep, ...]

    @property
    def plan(self) -> Tensor:
        """P, shape (..., n, m). Its gradient runs through the optimality conditions: one linear solve."""
        f, g = self.potentials
        return ((f.unsqueeze(-1) + g.unsqueeze(-2) - self.cost) / self.reg).exp()

    @property
    def value(self) -> Tensor:
        """⟨M, P⟩, shape (...), differentiated through P as well."""
        return (self.cost.masked_fill(self.cost == torch.inf, 0) * self.plan).sum((-2, -1))

    @property
    def reg_value(self) -> Tensor:
        """⟨M, P⟩ + reg Σ P log P at the optimum, shape (...), from the dual.

        Its gradient is free (Danskin): P with respect to the cost, the potentials with respect to the weights, each up
        to a constant. It holds to first order: for second derivatives differentiate ``plan``.
        """
        f, g = (potential.detach() for potential in self.potentials)
        f, g = f.masked_fill(f == -torch.inf, 0), g.masked_fill(g == -torch.inf, 0)
        live = (self.a > 0).unsqueeze(-1) & (self.b > 0).unsqueeze(-2)
        plan = torch.where(live, ((f.unsqueeze(-1) + g.unsqueeze(-2) - self.cost) / self.reg).exp(), 0)
        mass = self.a.detach().sum(-1)
        return (self.a * f).sum(-1) + (self.b * g).sum(-1) + self.reg * (mass - plan.sum((-2, -1)))

    def sparse(self, threshold: float = 1e-16) -> Tensor:
        """Drop what is negligible, in CSR form.

        Parameters
        ----------
        threshold : float, default 1e-16
            Smallest entry to keep, in units of mass: below it, none can change a marginal near 1 in double precision.

        Returns
        -------
        Tensor, sparse CSR, shape (n, m)
            Without a graph.

        Raises
        ------
        ShapeError
            If the plan is one of a batch: CSR tensors of unequal counts do not stack.
        """
        if self.cost.ndim != 2:
            raise ShapeError(f"TransportPlan.sparse: expected one problem, got a batch of {len(self.cost)}")
        plan = self.plan.detach()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells every process once that CSR is in beta
            return torch.where(plan >= threshold, plan, 0).to_sparse_csr()


def start_potentials(name: str, problem: Problem, init: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Potentials to start from.

    Parameters
    ----------
    name : str
        The caller, for messages.
    problem : Problem
        Gives the shapes.
    init : tuple of Tensor or None
        f and g in units of the cost, as `TransportPlan` returns them.

    Returns
    -------
    tuple of (Tensor, Tensor)
        Shapes (B, n) and (B, m), zeros by default and where they were infinite.

    Raises
    ------
    ShapeError
        If they do not fit the problem.
    """
    if init is None:
        return torch.zeros_like(problem.a), torch.zeros_like(problem.b)
    ready = []
    for label, given, weights in zip("fg", init, (problem.a, problem.b), strict=True):
        value = given.detach() if problem.batched else given.detach().unsqueeze(0)
        if value.shape != weights.shape or value.dtype != weights.dtype or value.device != weights.device:
            raise ShapeError(
                f"{name}: init's {label} is {tuple(given.shape)} {given.dtype} on {given.device}; the weights are "
                f"{tuple(weights.shape[not problem.batched :])} {weights.dtype} on {weights.device}"
            )
        ready.append(torch.where(value.isfinite(), value, 0))
    return ready[0], ready[1]


def finished(
    given: tuple[Tensor, Tensor, Tensor],
    problem: Problem,
    potentials: tuple[Tensor, Tensor],
    *,
    error: Tensor,
    tol: float,
    counts: tuple[int, int, int],
    history: Sequence[TransportStep],
) -> TransportPlan:
    """Fix the free constant, attach the derivative, and drop a batch dimension that the user did not have.

    Parameters
    ----------
    given : tuple of Tensor
        Cost and weights with their graph.
    problem : Problem
        As checked.
    potentials : tuple of Tensor
        u (B, n) and v (B, m) in logarithmic units.
    error : Tensor, shape (B,)
        Of the marginals.
    tol : float
        What counts as converged.
    counts : tuple of int
        Newton steps, sweeps, steps of conjugate gradients.
    history : sequence of TransportStep
        What happened.

    Returns
    -------
    TransportPlan
        In the user's shapes.
    """
    cost, a, b = given
    live_a, live_b = problem.a > 0, problem.b > 0
    f, g = torch.where(live_a, problem.reg * potentials[0], 0), torch.where(live_b, problem.reg * potentials[1], 0)
    count = (live_a.sum(-1) + live_b.sum(-1)).to(f.dtype)
    shift = ((g.sum(-1) - f.sum(-1)) / count).unsqueeze(-1)
    f, g = torch.where(live_a, f + shift, 0), torch.where(live_b, g - shift, 0)
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        stacked = [t if problem.batched else t.unsqueeze(0) for t in given]
        f, g = implicit_potentials(stacked[0], stacked[1], stacked[2], f, g, problem.reg)
    f, g = f.masked_fill(~live_a, -torch.inf), g.masked_fill(~live_b, -torch.inf)
    if not problem.batched:
        f, g, error = f[0], g[0], error[0]
    return TransportPlan(cost, a, b, problem.reg, (f, g), error, error <= tol, *counts, tuple(history))
