"""The Newton system of entropic transport with a sparse plan in it, solved by conjugate gradients.

H = [[diag(P1), S], [Sᵀ, diag(Pᵀ1)]], S the largest entries of P; the sums are those of the whole P, so that H is
diagonally dominant whatever is dropped.   Shapes: B problems, n sources, m targets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.linalg import Diagonal, FunctionOperator, LinearOperator, Sparse, cg
from hesse.transport.problem import marginals

__all__ = ["NewtonSystem", "newton_system"]

EVEN = 0.1  # between plans that are spread out (0.35 and up) and near-matchings (0.006 and down)
RIDGE = 1e-14  # relative to the largest sum: a component of S that dropped nothing leaves a null direction of its own


@dataclass(frozen=True, slots=True)
class NewtonSystem:
    """The sparsified negative Hessian of the dual in logarithmic units, for a batch that is one block-diagonal S."""

    entries: LinearOperator  # (B n, B m): S
    transposed: LinearOperator  # (B m, B n)
    values: Tensor  # of S, row by row
    row: Tensor  # of each value, in 0..B n
    column: Tensor  # in 0..B m
    row_sums: Tensor  # (B, n): P 1, and 1 for points without weight
    column_sums: Tensor  # (B, m): Pᵀ1

    def operator(self, augmentation: float = 0.0) -> LinearOperator:
        """H + w s sᵀ with s = (1; -1), as the paper has it; w is ``augmentation`` times the largest sum over n + m.

        Parameters
        ----------
        augmentation : float, default 0.0
            At 1, the null direction of the full H gets an eigenvalue as large as the diagonal's.

        Returns
        -------
        LinearOperator, shape (..., n + m, n + m)
            Symmetric positive definite if ``augmentation > 0`` or an entry was dropped.
        """
        n, m = self.row_sums.shape[-1], self.column_sums.shape[-1]
        diagonal = torch.cat([self.row_sums, self.column_sums], -1).unsqueeze(-1)
        weight = augmentation * diagonal.amax(-2, keepdim=True) / (n + m)
        s = diagonal.new_ones(n + m, 1)
        s[n:] = -1

        def product(z: Tensor) -> Tensor:
            x, y = z.split((n, m), -2)
            off = torch.cat([self._apply(self.entries, y, n), self._apply(self.transposed, x, m)], -2)
            out = diagonal * z + off
            return out + weight * s * (s * z).sum(-2, keepdim=True) if augmentation else out

        return self._bound(product, n + m)

    def reduced(self) -> LinearOperator:
        """Eliminate the sources: diag(Pᵀ1) - Sᵀ diag(P1)⁻¹ S, which takes CG about half of the steps.

        Returns
        -------
        LinearOperator, shape (B, m, m)
            Symmetric positive semi-definite, with a ridge of 1e-14 of its largest diagonal entry.
        """
        n, m = self.row_sums.shape[-1], self.column_sums.shape[-1]
        inverse = self.row_sums.reciprocal().unsqueeze(-1)
        diagonal = self.column_sums.unsqueeze(-1)
        diagonal = diagonal + RIDGE * diagonal.amax(-2, keepdim=True)

        def product(y: Tensor) -> Tensor:
            return diagonal * y - self._apply(self.transposed, inverse * self._apply(self.entries, y, n), m)

        return self._bound(product, m)

    def reduced_diagonal(self) -> Tensor:
        """Read off the diagonal of `reduced`: Pᵀ1 less Σ_i S_ij² / (P1)_i, small where P is nearly a matching.

        Returns
        -------
        Tensor, shape (B, m)
            Positive; at least 1e-13 of the largest column sum.
        """
        inverse = self.row_sums.reciprocal().flatten()
        squares = torch.zeros_like(self.column_sums).flatten()
        squares = squares.index_add(0, self.column, self.values.square() * inverse[self.row])
        peak = self.column_sums.amax(-1, keepdim=True)
        return (self.column_sums - squares.view_as(self.column_sums)).clamp_min(0) + 10 * RIDGE * peak

    def jacobi(self) -> Tensor:
        """Diagonal preconditioner of `reduced`: its own diagonal where that is uneven, else Pᵀ1.

        Where entries of the diagonal are thousands of times below Pᵀ1, CG takes a third of the steps that it takes with
        Pᵀ1. Where none is below a tenth, Pᵀ1 needs an eighth fewer: with it the spectrum stays in [0, 1].

        Returns
        -------
        Tensor, shape (B, m)
            Positive.
        """
        own = self.reduced_diagonal()
        uneven = (own < EVEN * self.column_sums).any(-1, keepdim=True)
        return torch.where(uneven, own, self.column_sums)

    def solve(self, rows: Tensor, columns: Tensor, rtol: float, max_steps: int) -> tuple[Tensor, Tensor, int]:
        """Solve H (du, dv) = (rows, columns) by CG on the Schur complement.

        Parameters
        ----------
        rows : Tensor, shape (B, n)
            Right-hand side of the sources.
        columns : Tensor, shape (B, m)
            And of the targets.
        rtol : float
            On the reduced residual.
        max_steps : int
            Of CG.

        Returns
        -------
        tuple of (Tensor, Tensor, int)
            du, dv, and the steps that the slowest problem took.
        """
        n, m = self.row_sums.shape[-1], self.column_sums.shape[-1]
        eliminated = (rows / self.row_sums).unsqueeze(-1)
        rhs = columns.unsqueeze(-1) - self._apply(self.transposed, eliminated, m)
        y, steps = self.solve_reduced(rhs, rtol, max_steps)
        du = eliminated - self._apply(self.entries, y, n) / self.row_sums.unsqueeze(-1)
        return du.squeeze(-1), y.squeeze(-1), steps

    def solve_reduced(self, rhs: Tensor, rtol: float, max_steps: int) -> tuple[Tensor, int]:
        """Solve with the Schur complement alone, Jacobi-preconditioned.

        Parameters
        ----------
        rhs : Tensor, shape (B, m, 1)
            Right-hand side on the targets.
        rtol : float
            On the residual.
        max_steps : int
            Of CG.

        Returns
        -------
        tuple of (Tensor, int)
            The solution, shape (B, m, 1), and CG's steps.
        """
        preconditioner = Diagonal(self.jacobi().reciprocal(), is_psd=True)
        solution = cg(
            self.reduced(), rhs, preconditioner=preconditioner, rtol=rtol, max_steps=max_steps, validate=False
        )
        return solution.x, solution.num_steps

    def _apply(self, matrix: LinearOperator, x: Tensor, size: int) -> Tensor:
        # the blocks of the diagonal, read one after the other
        return matrix._matmat(x.reshape(-1, x.shape[-1])).view(-1, size, x.shape[-1])

    def _bound(self, product: Callable[[Tensor], Tensor], size: int) -> LinearOperator:
        num = len(self.row_sums)
        return FunctionOperator(
            lambda x: product(x.expand(num, *x.shape[-2:])),
            (size, size),
            dtype=self.values.dtype,
            device=self.values.device,
            batch_shape=(num,),
            is_symmetric=True,
        )


def newton_system(plan: Tensor, counts: Tensor) -> NewtonSystem:
    """Keep the largest entries of each plan.

    Parameters
    ----------
    plan : Tensor, shape (B, n, m)
        P.
    counts : Tensor of int64, shape (B,)
        Entries to keep of each, capped at n m. Ties at the threshold are broken arbitrarily.

    Returns
    -------
    NewtonSystem
        O(B n m) operations; entries that are exactly zero are not stored.
    """
    num, n, m = plan.shape
    row_sums, column_sums = marginals(plan)
    most = min(int(counts.max()), n * m)
    ragged = bool((counts != counts[0]).any())
    top = plan.flatten(1).topk(most, sorted=ragged)
    keep = top.values > 0
    if ragged:
        keep &= torch.arange(most, device=plan.device) < counts.unsqueeze(-1)
    flat = (top.indices + n * m * torch.arange(num, device=plan.device).unsqueeze(-1))[keep].sort().values
    values = plan.flatten()[flat]
    row = flat.div(m, rounding_mode="floor")  # the problem's number and the row in one
    column = row.div(n, rounding_mode="floor") * m + flat % m
    shape = (num * n, num * m)
    order = column.argsort(stable=True)
    return NewtonSystem(
        entries=Sparse.from_csr(_pointers(row, shape[0]), column, values, shape),
        transposed=Sparse.from_csr(_pointers(column, shape[1]), row[order], values[order], (shape[1], shape[0])),
        values=values,
        row=row,
        column=column,
        row_sums=torch.where(row_sums > 0, row_sums, 1),
        column_sums=torch.where(column_sums > 0, column_sums, 1),
    )


def _pointers(index: Tensor, size: int) -> Tensor:
    counts = torch.bincount(index, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
