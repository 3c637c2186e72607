"""Preconditioners that read entries of the operator: its diagonal, or a few of its rows.

From products alone there is `hesse.linalg.NystromPreconditioner`.
"""

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError, SingularError
from hesse.linalg.basic import Diagonal
from hesse.linalg.inverse import InverseOperator
from hesse.linalg.low_rank import LowRankPlusDiagonal
from hesse.linalg.operator import LinearOperator

__all__ = ["jacobi", "pivoted_cholesky", "pivoted_cholesky_preconditioner"]


def jacobi(operator: LinearOperator) -> Diagonal:
    """Invert the diagonal: M = diag(A)⁻¹.

    Parameters
    ----------
    operator : LinearOperator, shape (..., n, n)
        A with a positive diagonal, as every positive definite one has. Where the structure does not know the diagonal,
        reading it costs n products.

    Returns
    -------
    Diagonal
        For `cg` and `minres`.

    Raises
    ------
    ShapeError
        If the operator is not square.
    SingularError
        If a diagonal entry is not positive.
    """
    if operator.shape[0] != operator.shape[1]:
        raise ShapeError(f"jacobi: expected a square operator, got shape {operator.shape}")
    diagonal = operator.diagonal()
    if not bool((diagonal.real > 0).all()):
        raise SingularError("jacobi: a diagonal entry is not positive; the operator is not positive definite")
    return Diagonal(1 / diagonal, is_psd=True)


def pivoted_cholesky(operator: LinearOperator, rank: int, *, rtol: float = 0.0) -> tuple[Tensor, Tensor]:
    """Factor A ≈ L Lᴴ by the rows of the largest remaining diagonal entries, r rows in all.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
        Positive semi-definite A, unbatched, whose rows are cheap to read: dense, sparse, a kernel.
    rank : int
        Largest number of rows, >= 1.
    rtol : float, default 0.0
        Stop where the remaining trace is at most ``rtol`` times the trace.

    Returns
    -------
    tuple of Tensor, shapes (n, r) and (r,)
        L with r <= rank, and the pivots. The error tr(A - L Lᴴ) is the remaining trace. Costs r rows and O(n r²).

    Raises
    ------
    ArgumentError
        If ``rank < 1``.
    ArgumentTypeError
        If the operator is not declared psd.
    ShapeError
        If it is batched.

    References
    ----------
    H. Harbrecht, M. Peters, R. Schneider (2012), Appl. Numer. Math. 62(4).
    """
    if rank < 1:
        raise ArgumentError(f"pivoted_cholesky: expected rank >= 1, got {rank}")
    if not operator.is_psd:
        raise ArgumentTypeError("pivoted_cholesky: expected an operator declared is_psd")
    if operator.batch_shape:
        raise ShapeError(f"pivoted_cholesky: expected one matrix, got batch shape {operator.batch_shape}")
    left = operator.diagonal().real.clone()
    n, total = operator.shape[0], left.sum()
    rank = min(rank, n)
    factor = torch.zeros(n, rank, dtype=operator.dtype, device=operator.device)
    pivots = torch.zeros(rank, dtype=torch.int64, device=operator.device)
    eps = torch.finfo(left.dtype).eps
    for j in range(rank):
        pivot = left.argmax()
        if not bool((left[pivot] > n * eps * total / max(n, 1)) & (left.clamp_min(0).sum() > rtol * total)):
            return factor[:, :j], pivots[:j]
        row = operator.rows(pivot.reshape(1))[0].conj()
        column = (row - factor[:, :j] @ factor[pivot, :j].conj()) / left[pivot].sqrt()
        factor[:, j] = column
        pivots[j] = pivot
        left = left - column.abs() ** 2
        left[pivot] = 0
    return factor, pivots


def pivoted_cholesky_preconditioner(operator: LinearOperator, rank: int, shift: float) -> InverseOperator:
    """Invert the approximation of A + shift · I: M = (L Lᴴ + shift · I)⁻¹ by Woodbury.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
        Positive semi-definite A, without the shift.
    rank : int
        Rows to read.
    shift : float
        The noise or damping that the system adds, > 0.

    Returns
    -------
    InverseOperator
        Positive definite; O(n r) an application.

    Raises
    ------
    ArgumentError
        If ``shift <= 0`` or ``rank < 1``.
    """
    if not shift > 0:
        raise ArgumentError(f"pivoted_cholesky_preconditioner: expected shift > 0, got {shift}")
    factor, _ = pivoted_cholesky(operator, rank)
    diagonal = torch.full((operator.shape[0],), shift, dtype=operator.dtype, device=operator.device)
    return InverseOperator(LowRankPlusDiagonal(diagonal, factor))
