"""Another look at one operator: its adjoint, its conjugate, some of its rows and columns.   Nothing is copied."""

import numpy as np
import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.linalg.operator import Index, LinearOperator

__all__ = ["AdjointOperator", "ConjugateOperator", "SlicedOperator"]


class AdjointOperator(LinearOperator):
    """A^H.

    Parameters
    ----------
    base : LinearOperator
        A.
    """

    _fields = ("base",)

    def __init__(self, base: LinearOperator) -> None:
        super().__init__(
            (base.shape[1], base.shape[0]),
            base.dtype,
            base.device,
            batch_shape=base.batch_shape,
            is_symmetric=base.is_symmetric,
            is_psd=base.is_psd,
        )
        self.base = base
        self._adjoint_of = base

    def _matmat(self, x: Tensor) -> Tensor:
        return self.base.rmatmat(x)

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self.base.matmat(y)

    def _diagonal(self) -> Tensor:
        return self.base.diagonal().conj()

    def _dense(self) -> Tensor:
        return self.base.to_dense().mH

    def _logdet(self) -> Tensor:
        return self.base.logdet()

    @property
    def H(self) -> LinearOperator:
        """The base."""
        return self.base


class ConjugateOperator(LinearOperator):
    """The entrywise conjugate of A.

    Parameters
    ----------
    base : LinearOperator
        A.
    """

    _fields = ("base",)

    def __init__(self, base: LinearOperator) -> None:
        super().__init__(
            base.shape,
            base.dtype,
            base.device,
            batch_shape=base.batch_shape,
            is_symmetric=base.is_symmetric,
            is_psd=base.is_psd,
        )
        self.base = base

    def _matmat(self, x: Tensor) -> Tensor:
        return self.base.matmat(x.conj()).conj()

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self.base.rmatmat(y.conj()).conj()

    def _diagonal(self) -> Tensor:
        return self.base.diagonal().conj()


class SlicedOperator(LinearOperator):
    """Rows and columns of A, chosen by slices or index vectors; a product still costs a whole product with A.

    Parameters
    ----------
    base : LinearOperator, shape (..., m, n)
        A.
    rows : slice, range, list of int or Tensor of int64
        Which rows, repeats allowed.
    columns : slice, range, list of int or Tensor of int64
        Which columns, repeats allowed.

    Raises
    ------
    ArgumentError
        If an index is out of range, or a single number (take ``i:i+1``).
    """

    _fields = ("base", "row_index", "column_index")

    def __init__(self, base: LinearOperator, rows: Index, columns: Index) -> None:
        self.base = base
        self.row_index = _positions(rows, base.shape[0], base.device)
        self.column_index = _positions(columns, base.shape[1], base.device)
        principal = torch.equal(self.row_index, self.column_index)
        super().__init__(
            (len(self.row_index), len(self.column_index)),
            base.dtype,
            base.device,
            batch_shape=base.batch_shape,
            is_symmetric=principal and base.is_symmetric,
            is_psd=principal and base.is_psd,
        )

    def _matmat(self, x: Tensor) -> Tensor:
        spread = x.new_zeros(*x.shape[:-2], self.base.shape[1], x.shape[-1]).index_add(-2, self.column_index, x)
        return self.base.matmat(spread)[..., self.row_index, :]

    def _rmatmat(self, y: Tensor) -> Tensor:
        spread = y.new_zeros(*y.shape[:-2], self.base.shape[0], y.shape[-1]).index_add(-2, self.row_index, y)
        return self.base.rmatmat(spread)[..., self.column_index, :]


def _positions(index: Index, size: int, device: torch.device) -> Tensor:
    if isinstance(index, slice):
        return torch.from_numpy(np.arange(size)[index].copy()).to(device)
    if isinstance(index, int):
        raise ArgumentError(f"A[...]: expected a slice or a list of positions, got {index}; take {index}:{index + 1}")
    positions = torch.as_tensor(list(index) if isinstance(index, range) else index, device=device)
    if positions.ndim != 1 or positions.is_floating_point():
        raise ArgumentError(f"A[...]: expected a vector of whole positions, got shape {tuple(positions.shape)}")
    if positions.dtype == torch.bool:
        positions = positions.nonzero().squeeze(-1)
    positions = torch.where(positions < 0, positions + size, positions).long()
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < size:
        raise ArgumentError(f"A[...]: a position is outside 0..{size - 1}")
    return positions
