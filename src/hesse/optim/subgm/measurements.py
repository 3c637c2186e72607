"""Linear measurements ⟨A_i, UUᵀ⟩ of a positive semi-definite matrix, and their adjoint.

Shapes: m measurements of a matrix of order d, factors U (..., d, k), weights (..., m); leading dimensions are problems
that share their measurements. Only the symmetric part of A_i is seen by a symmetric matrix.
"""

import math
from abc import ABC, abstractmethod
from typing import Self, TypeAlias

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import LinearOperator

__all__ = [
    "EntryMeasurements",
    "Measurements",
    "MeasurementsLike",
    "OperatorMeasurements",
    "RankOneDifferences",
    "SymmetricMatrices",
    "as_measurements",
]


class Measurements(ABC):
    """What the descent needs to know of A_1, ..., A_m. A subclass implements ``_apply``, ``_adjoint`` and ``_select``.

    Parameters
    ----------
    num_measurements : int
        m.
    order : int
        d.
    like : Tensor
        Has their dtype, float32 or float64, and their device.
    """

    def __init__(self, num_measurements: int, order: int, like: Tensor) -> None:
        self.num_measurements = num_measurements
        self.order = order
        self.dtype = like.dtype
        self.device = like.device

    @abstractmethod
    def _apply(self, factor: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, weights: Tensor) -> Tensor: ...

    @abstractmethod
    def _select(self, index: Tensor) -> Self: ...

    def apply(self, factor: Tensor) -> Tensor:
        """Measure UUᵀ.

        Parameters
        ----------
        factor : Tensor, shape (..., d, k)
            U.

        Returns
        -------
        Tensor, shape (..., m)
            ⟨A_i, UUᵀ⟩.

        Raises
        ------
        ShapeError
            If U is not of order d.
        """
        if factor.ndim < 2 or factor.shape[-2] != self.order:
            raise ShapeError(
                f"{type(self).__name__}.apply: expected factor (..., {self.order}, k), got {tuple(factor.shape)}"
            )
        return self._apply(factor)

    def adjoint(self, weights: Tensor) -> Tensor:
        """Sum the symmetric parts: Σ_i w_i (A_i + A_iᵀ)/2.

        Parameters
        ----------
        weights : Tensor, shape (..., m)
            w.

        Returns
        -------
        Tensor, shape (..., d, d)
            Symmetric.

        Raises
        ------
        ShapeError
            If there are not m weights.
        """
        if weights.ndim < 1 or weights.shape[-1] != self.num_measurements:
            raise ShapeError(
                f"{type(self).__name__}.adjoint: expected weights (..., {self.num_measurements}), "
                f"got {tuple(weights.shape)}"
            )
        return self._adjoint(weights)

    def select(self, index: Tensor) -> Self:
        """Keep some of the measurements.

        Parameters
        ----------
        index : Tensor of int, shape (n,)
            Their numbers, in the order wanted.

        Returns
        -------
        Measurements
            Of the same kind; copies what it keeps.
        """
        return self._select(index)


class SymmetricMatrices(Measurements):
    """Dense A_i, stored as rows with ⟨row, svec(X)⟩ = ⟨A_i, X⟩: half the memory and time of (m, d²), O(m d²) a product.

    Parameters
    ----------
    rows : Tensor, shape (m, d (d + 1)/2)
        Upper triangles of the symmetric parts, row by row, with √2 times what lies off the diagonal; `from_dense` makes
        them.
    order : int
        d.
    """

    def __init__(self, rows: Tensor, order: int) -> None:
        super().__init__(len(rows), order, rows)
        self.rows = rows
        self._places = _triangle(order, rows)

    @classmethod
    def from_dense(cls, matrices: Tensor) -> Self:
        """Pack matrices, symmetric or not.

        Parameters
        ----------
        matrices : Tensor, shape (m, d, d)
            The A_i.

        Returns
        -------
        SymmetricMatrices
            Of their symmetric parts.
        """
        i, j, scale = _triangle(matrices.shape[-1], matrices)
        return cls((matrices[:, i, j] + matrices[:, j, i]) / 2 * scale, matrices.shape[-1])

    def _apply(self, factor: Tensor) -> Tensor:
        i, j, scale = self._places
        return ((factor @ factor.mT)[..., i, j] * scale) @ self.rows.mT

    def _adjoint(self, weights: Tensor) -> Tensor:
        i, j, scale = self._places
        triangle = weights @ self.rows / scale
        full = triangle.new_empty(*weights.shape[:-1], self.order, self.order)
        full[..., i, j] = triangle
        full[..., j, i] = triangle
        return full

    def _select(self, index: Tensor) -> Self:
        return type(self)(self.rows[index], self.order)


def _triangle(d: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # places of the upper triangle, and the weights with which svec keeps inner products
    i, j = torch.triu_indices(d, d, device=like.device)
    root = like.new_tensor(2.0).sqrt()
    return i, j, torch.where(i == j, torch.ones_like(root), root)


class RankOneDifferences(Measurements):
    """A_i = a_i a_iᵀ - b_i b_iᵀ, never formed, and of mean zero where a_i and b_i have one distribution.

    O(m d k) for ``apply``, O(m d²) for ``adjoint``, O(m d) memory.

    Parameters
    ----------
    left, right : Tensor, shape (m, d)
        a and b.

    Raises
    ------
    ShapeError
        If they differ in shape, dtype or device, or are no matrices.
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        fits = left.ndim == 2 and left.shape == right.shape
        if not fits or left.dtype != right.dtype or left.device != right.device:
            raise ShapeError(
                f"RankOneDifferences: expected left and right of one shape (m, d), got {tuple(left.shape)} "
                f"{left.dtype} on {left.device} and {tuple(right.shape)} {right.dtype} on {right.device}"
            )
        super().__init__(left.shape[0], left.shape[1], left)
        self.left = left
        self.right = right

    def _apply(self, factor: Tensor) -> Tensor:
        return (self.left @ factor).square().sum(-1) - (self.right @ factor).square().sum(-1)

    def _adjoint(self, weights: Tensor) -> Tensor:
        column = weights.unsqueeze(-1)
        return self.left.mT @ (column * self.left) - self.right.mT @ (column * self.right)

    def _select(self, index: Tensor) -> Self:
        return type(self)(self.left[index], self.right[index])


class OperatorMeasurements(Measurements):
    """A linear operator from vec(X), row by row, to the measurements; `select` slices it, which saves no time.

    Parameters
    ----------
    operator : LinearOperator, shape (m, d²)
        With an adjoint.
    """

    def __init__(self, operator: LinearOperator) -> None:
        order = math.isqrt(operator.shape[1])
        if operator.batch_shape or order * order != operator.shape[1]:
            raise ShapeError(
                "OperatorMeasurements: expected an operator of shape (m, d²), got "
                f"{(*operator.batch_shape, *operator.shape)}"
            )
        super().__init__(operator.shape[0], order, torch.empty(0, dtype=operator.dtype, device=operator.device))
        self.operator = operator

    def _apply(self, factor: Tensor) -> Tensor:
        return self.operator.matvec((factor @ factor.mT).flatten(-2))

    def _adjoint(self, weights: Tensor) -> Tensor:
        full = self.operator.rmatvec(weights).unflatten(-1, (self.order, self.order))
        return (full + full.mT) / 2

    def _select(self, index: Tensor) -> Self:
        return type(self)(self.operator[index, :])


class EntryMeasurements(Measurements):
    """Entries M_ij of a rectangle M = LRᵀ, seen as measurements of UUᵀ with U = [L; R], of order p + q.

    O(m k) for ``apply``, O((p + q)²) for ``adjoint``, which is dense.

    Parameters
    ----------
    rows, columns : Tensor of int64, shape (m,)
        i and j.
    shape : (int, int)
        (p, q).
    like : Tensor
        Has the dtype.
    """

    def __init__(self, rows: Tensor, columns: Tensor, shape: tuple[int, int], like: Tensor) -> None:
        super().__init__(len(rows), sum(shape), like)
        self.rows = rows
        self.columns = columns
        self.shape = shape

    def _apply(self, factor: Tensor) -> Tensor:
        return (factor[..., self.rows, :] * factor[..., self.shape[0] + self.columns, :]).sum(-1)

    def _adjoint(self, weights: Tensor) -> Tensor:
        n = self.order
        flat = weights.new_zeros(*weights.shape[:-1], n * n)
        flat.index_add_(-1, self.rows * n + self.shape[0] + self.columns, weights / 2)
        upper = flat.unflatten(-1, (n, n))
        return upper + upper.mT

    def _select(self, index: Tensor) -> Self:
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return type(self)(self.rows[index], self.columns[index], self.shape, like)


MeasurementsLike: TypeAlias = Tensor | LinearOperator | Measurements


def as_measurements(A: MeasurementsLike) -> Measurements:
    """Wrap dense matrices or an operator; pass measurements on.

    Parameters
    ----------
    A : Tensor, LinearOperator or Measurements
        Dense A_i of shape (m, d, d); or an operator of shape (m, d²) with an adjoint; or measurements. Factors (m, d)
        of a_i a_iᵀ are not taken here, since these matrices have a mean: make differences with `RankOneDifferences`.

    Returns
    -------
    Measurements
        Float32 or float64, on the device of ``A``.

    Raises
    ------
    ShapeError
        If the shape is none of these.
    ArgumentTypeError
        If ``A`` is complex, of half precision or of integers, or no tensor and no operator.
    ArgumentError
        If a dense ``A`` has NaN or Inf.
    """
    if isinstance(A, Measurements):
        return A
    if not isinstance(A, LinearOperator | Tensor):
        raise ArgumentTypeError(
            f"as_measurements: expected A as a tensor, a LinearOperator or measurements, got {type(A).__name__}"
        )
    if A.dtype not in (torch.float32, torch.float64):
        raise ArgumentTypeError(f"as_measurements: expected A in float32 or float64, got {A.dtype}; convert it")
    if isinstance(A, LinearOperator):
        return OperatorMeasurements(A)
    if A.ndim != 3 or A.shape[1] != A.shape[2] or A.numel() == 0:
        raise ShapeError(f"as_measurements: expected A of shape (m, d, d), got {tuple(A.shape)}")
    if not bool(torch.isfinite(A).all()):
        raise ArgumentError("as_measurements: A has NaN or Inf; leave such measurements out")
    return SymmetricMatrices.from_dense(A)
