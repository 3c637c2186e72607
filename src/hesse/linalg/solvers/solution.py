"""What an iterative solver returns: the answer, how far it got, and why it stopped."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from hesse.errors import ConvergenceError

__all__ = ["Solution", "Status"]


class Status(IntEnum):
    """Why a column stopped; the larger, the worse."""

    CONVERGED = 0
    LEAST_SQUARES = 1  # the system has no solution; the residual cannot fall further
    MAX_STEPS = 2
    STAGNATED = 3
    NEGATIVE_CURVATURE = 4
    BREAKDOWN = 5


_REMEDIES = {
    Status.LEAST_SQUARES: "the system is singular and b is outside its range; use lsmr, or add a shift",
    Status.MAX_STEPS: "raise max_steps, pass a preconditioner, or loosen rtol",
    Status.STAGNATED: "rounding hides further progress; use float64, a preconditioner, or a larger rtol",
    Status.NEGATIVE_CURVATURE: "the operator is not positive definite; use minres, or add a shift",
    Status.BREAKDOWN: "a product or the preconditioner gave NaN, or the preconditioner is not positive definite",
}


@dataclass(frozen=True, slots=True)
class Solution:
    """The result of a solve.   Shapes: b (n,) or (..., n, k); one entry a column in (...,) x (k,).

    Attributes
    ----------
    x : Tensor, shape of b
        The best iterate.
    converged : Tensor of bool, one entry a column
        Whether the explicit residual b - A x met the tolerance.
    num_steps : int
        Steps of the slowest column; 0 for a direct method.
    residual : Tensor, one entry a column
        Norm of the explicit b - A x.
    status : Status
        Of the worst column.
    method : str
        Which method ran.
    history : Tensor, shape (steps + 1, columns...), optional
        Residual norms by recurrence, where asked for.
    statuses : Tensor of int64, one entry a column, optional
        Status of each.
    direction : Tensor, shape of b, optional
        Where CG met p^H A p <= 0: that p, else zero.
    tridiagonal : tuple of Tensor, shapes (..., k, m) and (..., k, m - 1), optional
        Diagonal and off-diagonal of the Lanczos matrix of each column, padded by the identity.
    """

    x: Tensor
    converged: Tensor
    num_steps: int
    residual: Tensor
    status: Status
    method: str
    history: Tensor | None = None
    statuses: Tensor | None = None
    direction: Tensor | None = None
    tridiagonal: tuple[Tensor, Tensor] | None = None

    def require(self) -> "Solution":
        """Return the solution if every column converged, else raise.

        Returns
        -------
        Solution
            Itself.

        Raises
        ------
        ConvergenceError
            Naming the method, the worst residual, the cause and the remedy.
        """
        if bool(self.converged.all()):
            return self
        missed = int((~self.converged).sum())
        worst = float(torch.nan_to_num(self.residual, nan=torch.inf).max())
        raise ConvergenceError(
            f"{self.method}: {missed} of {self.converged.numel()} columns stopped after {self.num_steps} steps with "
            f"{self.status.name}, largest residual {worst:.2e}; {_REMEDIES.get(self.status, 'see Solution.residual')}"
        )
