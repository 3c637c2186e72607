"""A transport problem and what its potentials say about it, shared by all solvers of the family.

P_ij = exp(u_i + v_j - M_ij / reg).   Shapes: B problems, n sources, m targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Problem", "cost_spread", "kernel", "marginal_error", "marginals", "times", "times_transposed"]

EXPONENT_LIMIT = 50.0  # trial points of a line search may be absurd; their plans must still be numbers


@dataclass(frozen=True, slots=True)
class Problem:
    """B problems of one shape without a graph. Forbidden pairs, and all pairs of a point without weight, cost +inf."""

    cost: Tensor  # (B, n, m), in the user's units
    a: Tensor  # (B, n)
    b: Tensor  # (B, m)
    reg: float
    batched: bool  # whether the user's cost had a batch dimension

    @property
    def scaled(self) -> Tensor:
        """M / reg, shape (B, n, m)."""
        return self.cost / self.reg

    def take(self, which: Tensor) -> "Problem":
        """Pick some of the problems.

        Parameters
        ----------
        which : Tensor of int64 or bool, shape (k,) or (B,)
            Their places in the batch, or a mask.

        Returns
        -------
        Problem
            A copy of them.
        """
        return Problem(self.cost[which], self.a[which], self.b[which], self.reg, self.batched)


def kernel(scaled: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Compute the plan of two potentials in logarithmic units, exponents clipped at 50.

    Parameters
    ----------
    scaled : Tensor, shape (B, n, m)
        M / reg.
    u : Tensor, shape (B, n)
        Of the sources.
    v : Tensor, shape (B, m)
        Of the targets.

    Returns
    -------
    Tensor, shape (B, n, m)
        P_ij = exp(u_i + v_j - M_ij / reg).
    """
    exponent = u.unsqueeze(-1) - scaled
    return exponent.add_(v.unsqueeze(-2)).clamp_(max=EXPONENT_LIMIT).exp_()


def cost_spread(problem: Problem) -> float:
    """Measure how far the allowed costs lie apart.

    Parameters
    ----------
    problem : Problem
        All of a batch count together.

    Returns
    -------
    float
        max(M) - min(M), in units of the cost.
    """
    allowed = problem.cost[problem.cost < torch.inf]
    return float(allowed.max() - allowed.min())


def times(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply each matrix by its vector; a batch of one takes the matrix-vector routine, nine times as fast on a CPU.

    Parameters
    ----------
    matrix : Tensor, shape (B, n, m)
        B matrices.
    x : Tensor, shape (B, m)
        B vectors.

    Returns
    -------
    Tensor, shape (B, n)
        The products.
    """
    if len(matrix) == 1:
        return (matrix[0] @ x[0]).unsqueeze(0)
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def times_transposed(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply the transpose of each matrix by its vector.

    Parameters
    ----------
    matrix : Tensor, shape (B, n, m)
        B matrices.
    x : Tensor, shape (B, n)
        B vectors.

    Returns
    -------
    Tensor, shape (B, m)
        The products.
    """
    return times(matrix.mT, x)


def marginals(plan: Tensor) -> tuple[Tensor, Tensor]:
    """Sum each plan along both sides.

    Parameters
    ----------
    plan : Tensor, shape (B, n, m)
        P.

    Returns
    -------
    tuple of (Tensor, Tensor)
        Row sums (B, n) and column sums (B, m).
    """
    ones = plan.new_ones(len(plan), plan.shape[1])
    return plan.sum(-1), times_transposed(plan, ones)


def marginal_error(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Measure how far a plan is from its marginals: ‖P 1 - a‖₁ + ‖Pᵀ1 - b‖₁.

    Parameters
    ----------
    plan : Tensor, shape (n, m) or (batch, n, m)
        P.
    a : Tensor, shape (n,) or (batch, n)
        Source weights.
    b : Tensor, shape (m,) or (batch, m)
        Target weights.

    Returns
    -------
    Tensor, shape () or (batch,)
        In units of mass.
    """
    return (plan.sum(-1) - a).abs().sum(-1) + (plan.sum(-2) - b).abs().sum(-1)
