"""The one protocol of the house: a matrix that is only multiplied by.

Shapes: an operator A is (..., m, n) with ``batch_shape`` = (...) and ``shape`` = (m, n); operands (n,) or (..., n, k).
Symmetric means Hermitian where the dtype is complex.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.linalg._tensor_tree import TensorTree

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

__all__ = ["LinearOperator"]

_PROBE_BLOCK = 128  # unit vectors a product when the dense matrix or its diagonal is read out
_SYMMETRY_LIMIT = 10**6  # above this order the two products of the symmetry check are left to the caller

Scalar = float | int | complex | Tensor
Index = slice | Tensor | list[int] | range


class LinearOperator(TensorTree, ABC):
    """A matrix known by its products.

    A subclass implements ``_matmat`` on blocks of columns and, if it can, ``_rmatmat``, the product with the adjoint
    A^H; without it the adjoint comes from differentiating ``_matmat``, which must then be made of torch operations.
    ``_fields`` names the attributes that hold tensors, operators, or tuples of these: they are what ``to``,
    ``state_dict`` and the gradients of `hesse.linalg.solve` see. An operator never changes after its construction.

    Parameters
    ----------
    shape : tuple of int
        (m, n), without the batch.
    dtype : torch.dtype
        float16, bfloat16, float32, float64, complex64 or complex128; operands must have the same.
    device : torch.device or str
        Where operands must live.
    batch_shape : tuple of int, default ()
        Shape of the stack of matrices; operands broadcast against it.
    is_symmetric : bool, default False
        Whether A = A^H is promised. Solvers rely on it; `validate_symmetry` tests it with two products.
    is_psd : bool, default False
        Whether x^H A x >= 0 is promised for every x. Implies ``is_symmetric``.

    Raises
    ------
    ShapeError
        If a dimension is negative, or a square-only flag is set on a rectangle.
    ArgumentTypeError
        If the dtype is not floating point.
    """

    __array_ufunc__ = None  # numpy scalars and arrays must hand the operation to us

    shape: tuple[int, int]
    batch_shape: tuple[int, ...]
    is_symmetric: bool
    is_psd: bool

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        batch_shape: tuple[int, ...] = (),
        is_symmetric: bool = False,
        is_psd: bool = False,
    ) -> None:
        name = type(self).__name__
        if len(shape) != 2 or min(shape) < 0:
            raise ShapeError(f"{name}: expected shape (m, n) with m, n >= 0, got {tuple(shape)}")
        if not (dtype.is_floating_point or dtype.is_complex):
            raise ArgumentTypeError(
                f"{name}: expected a floating or complex dtype, got {dtype}; convert the tensor first"
            )
        if (is_symmetric or is_psd) and shape[0] != shape[1]:
            raise ShapeError(f"{name}: is_symmetric and is_psd need a square operator, got shape {tuple(shape)}")
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = dtype
        self.device = torch.device(device)
        self.batch_shape = tuple(batch_shape)
        self.is_symmetric = is_symmetric or is_psd
        self.is_psd = is_psd
        self._symmetry_seen = False
        self._adjoint_of: LinearOperator | None = None  # whose .H this is, so that A.H @ A is known to be psd

    # ------------------------------------------------------------------------------------------ what a subclass gives

    @abstractmethod
    def _matmat(self, x: Tensor) -> Tensor:
        """Return A X for X of shape (..., n, k), k >= 1; shapes and dtype are checked already."""

    def _rmatmat(self, y: Tensor) -> Tensor:
        # A^H Y for Y of shape (..., m, k); here by symmetry, or by differentiating _matmat
        if self.is_symmetric:
            return self._matmat(y)
        batch = torch.broadcast_shapes(self.batch_shape, y.shape[:-2])
        record = torch.is_grad_enabled()
        with torch.enable_grad():
            x = y.new_zeros(*batch, self.shape[1], y.shape[-1]).requires_grad_()
            out = self._matmat(x)
            if not out.requires_grad:
                raise ArgumentTypeError(
                    f"{type(self).__name__}: the adjoint needs _rmatmat, because _matmat is not differentiable by torch"
                )
            (adjoint,) = torch.autograd.grad(out, x, y.expand(out.shape), create_graph=record)
        return adjoint

    def _solve(self, b: Tensor) -> Tensor:
        # A⁻¹ B for B of shape (..., n, k); a subclass that has it answers True to has_direct_solve
        raise ArgumentTypeError(
            f"{type(self).__name__}.solve: this operator has no exact inverse of its own; use hesse.linalg.solve(A, b)"
        )

    @property
    def has_direct_solve(self) -> bool:
        """Whether ``solve`` is exact and cheaper than a dense factorisation."""
        return False

    @property
    def has_spectral_form(self) -> bool:
        """Whether the structure gives an exact eigen-decomposition, in which any shift is exact as well."""
        return False

    def _spectral_form(self) -> "LinearOperator":
        # the same operator in its eigenbasis; a subclass that has it answers True to has_spectral_form
        raise ArgumentTypeError(f"{type(self).__name__}: the structure gives no eigen-decomposition")

    def _logdet(self) -> Tensor:
        raise ArgumentTypeError(
            f"{type(self).__name__}.logdet: not available in closed form; use hesse.linalg.logdet for an estimate"
        )

    def _dense(self) -> Tensor:
        blocks = [self.matmat(block) for _, block in self._identity_blocks()]
        if not blocks:
            return torch.zeros(*self.batch_shape, *self.shape, dtype=self.dtype, device=self.device)
        return torch.cat(blocks, dim=-1).expand(*self.batch_shape, *self.shape)

    def _diagonal(self) -> Tensor:
        length = min(self.shape)
        pieces = [
            self.matmat(block)[..., start : start + block.shape[1], :].diagonal(dim1=-2, dim2=-1)
            for start, block in self._identity_blocks()
            if start < length
        ]
        if not pieces:
            return torch.zeros(*self.batch_shape, 0, dtype=self.dtype, device=self.device)
        return torch.cat(pieces, dim=-1)[..., :length].expand(*self.batch_shape, length)

    def _trace(self) -> Tensor:
        return self._diagonal().sum(-1)

    def _rows(self, index: Tensor) -> Tensor:
        units = torch.zeros(self.shape[0], len(index), dtype=self.dtype, device=self.device)
        units[index, torch.arange(len(index), device=self.device)] = 1
        return self.rmatmat(units).mH

    def _shifted(self, shift: Scalar) -> "LinearOperator":
        from hesse.linalg.structured import ShiftedOperator

        return ShiftedOperator(self, shift)

    # ------------------------------------------------------------------------------------------ products

    def matmat(self, x: Tensor) -> Tensor:
        """Multiply: A X.

        Parameters
        ----------
        x : Tensor, shape (..., n, k)
            Columns to multiply; the leading dimensions broadcast against ``batch_shape``.

        Returns
        -------
        Tensor, shape (..., m, k)
            In the operator's dtype.

        Raises
        ------
        ShapeError
            If shape, dtype or device of ``x`` do not fit.
        """
        return self._checked(self._matmat, x, self.shape[1], self.shape[0], "@")

    def rmatmat(self, y: Tensor) -> Tensor:
        """Multiply by the adjoint: A^H Y.

        Parameters
        ----------
        y : Tensor, shape (..., m, k)
            Columns to multiply.

        Returns
        -------
        Tensor, shape (..., n, k)
            In the operator's dtype.

        Raises
        ------
        ShapeError
            If shape, dtype or device of ``y`` do not fit.
        ArgumentTypeError
            If the operator has no adjoint: no ``_rmatmat`` and a ``_matmat`` that torch cannot differentiate.
        """
        return self._checked(self._rmatmat, y, self.shape[0], self.shape[1], "rmatmat")

    def matvec(self, x: Tensor) -> Tensor:
        """Multiply a stack of vectors, which ``@`` would read as one matrix.

        Parameters
        ----------
        x : Tensor, shape (..., n)
            Vectors in the last dimension.

        Returns
        -------
        Tensor, shape (..., m)
            A x for each.
        """
        return self.matmat(x.unsqueeze(-1)).squeeze(-1)

    def rmatvec(self, y: Tensor) -> Tensor:
        """Multiply a stack of vectors by the adjoint.

        Parameters
        ----------
        y : Tensor, shape (..., m)
            Vectors in the last dimension.

        Returns
        -------
        Tensor, shape (..., n)
            A^H y for each.
        """
        return self.rmatmat(y.unsqueeze(-1)).squeeze(-1)

    def solve(self, b: Tensor) -> Tensor:
        """Solve A x = b by the structure of A alone: no iteration, no tolerance.

        Parameters
        ----------
        b : Tensor, shape (n,) or (..., n, k)
            Right-hand sides.

        Returns
        -------
        Tensor
            Of the shape of ``b``, broadcast against ``batch_shape``.

        Raises
        ------
        ShapeError
            If ``b`` does not fit, or the operator is not square.
        ArgumentTypeError
            If ``has_direct_solve`` is False.
        SingularError
            If the operator is singular.
        """
        if self.shape[0] != self.shape[1]:
            raise ShapeError(f"{type(self).__name__}.solve: expected a square operator, got shape {self.shape}")
        if b.ndim == 1:
            return self._checked(self._solve, b.unsqueeze(-1), self.shape[0], self.shape[1], "solve").squeeze(-1)
        return self._checked(self._solve, b, self.shape[0], self.shape[1], "solve")

    def logdet(self) -> Tensor:
        """Take ``log |det A|`` exactly, where the structure allows it.

        Returns
        -------
        Tensor, shape batch_shape
            Natural logarithm; -inf for a singular operator.

        Raises
        ------
        ShapeError
            If the operator is not square.
        ArgumentTypeError
            If the structure gives no determinant.
        """
        if self.shape[0] != self.shape[1]:
            raise ShapeError(f"{type(self).__name__}.logdet: expected a square operator, got shape {self.shape}")
        return self._logdet()

    def _checked(self, product: Callable[[Tensor], Tensor], x: Tensor, expected: int, rows: int, what: str) -> Tensor:
        name = f"{type(self).__name__} {what}"
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"{name}: expected a torch tensor, got {type(x).__name__}")
        if x.ndim < 2 or x.shape[-2] != expected:
            raise ShapeError(f"{name}: expected an operand of shape (..., {expected}, k), got {tuple(x.shape)}")
        if x.dtype != self.dtype:
            raise ShapeError(
                f"{name}: the operator is {self.dtype}, the operand {x.dtype}; convert one with .to(dtype)"
            )
        if x.device != self.device:
            raise ShapeError(
                f"{name}: the operator is on {self.device}, the operand on {x.device}; move one with .to(device)"
            )
        try:
            batch = torch.broadcast_shapes(self.batch_shape, x.shape[:-2])
        except RuntimeError as error:
            raise ShapeError(
                f"{name}: batch shapes {self.batch_shape} and {tuple(x.shape[:-2])} do not broadcast"
            ) from error
        if x.shape[-1] == 0 or 0 in self.shape:
            return x.new_zeros(*batch, rows, x.shape[-1])
        return product(x)

    # ------------------------------------------------------------------------------------------ algebra

    def __matmul__(self, other: "Tensor | LinearOperator") -> Any:
        if isinstance(other, LinearOperator):
            from hesse.linalg.structured import product

            return product(self, other)
        if isinstance(other, Tensor):
            if other.ndim == 1:
                return self.matmat(other.unsqueeze(-1)).squeeze(-1)
            return self.matmat(other)
        raise ArgumentTypeError(
            f"{type(self).__name__} @: expected a tensor or an operator, got {type(other).__name__}"
        )

    def __rmatmul__(self, other: Tensor) -> Tensor:
        if not isinstance(other, Tensor):
            raise ArgumentTypeError(f"@ {type(self).__name__}: expected a tensor, got {type(other).__name__}")
        if other.ndim == 1:
            return self.rmatvec(other.conj()).conj()
        return self.rmatmat(other.mH).mH

    def __add__(self, other: "LinearOperator | Tensor") -> "LinearOperator":
        from hesse.linalg.structured import add

        return add(self, _operand(other))

    def __radd__(self, other: Tensor) -> "LinearOperator":
        return self + other

    def __sub__(self, other: "LinearOperator | Tensor") -> "LinearOperator":
        return self + (-1.0) * _operand(other)

    def __rsub__(self, other: Tensor) -> "LinearOperator":
        return _operand(other) - self

    def __mul__(self, scalar: Scalar) -> "LinearOperator":
        from hesse.linalg.structured import scale

        return scale(self, scalar)

    def __rmul__(self, scalar: Scalar) -> "LinearOperator":
        return self * scalar

    def __truediv__(self, scalar: Scalar) -> "LinearOperator":
        return self * (1.0 / scalar)

    def __neg__(self) -> "LinearOperator":
        return self * -1.0

    def shift(self, shift: Scalar) -> "LinearOperator":
        """Add a multiple of the identity, A + shift · I, kept recognisable so that solvers exploit it.

        Parameters
        ----------
        shift : float or Tensor, shape () or batch_shape
            The multiple of the identity, in the units of A.

        Returns
        -------
        LinearOperator
            A `ShiftedOperator`, or a member of A's own class where that stays closed under shifts.
        """
        return self._shifted(shift)

    @property
    def H(self) -> "LinearOperator":
        """The adjoint A^H: A itself where it is symmetric."""
        from hesse.linalg.views import AdjointOperator

        return self if self.is_symmetric else AdjointOperator(self)

    @property
    def T(self) -> "LinearOperator":
        """The transpose, without conjugation."""
        from hesse.linalg.views import ConjugateOperator

        return ConjugateOperator(self.H) if self.dtype.is_complex else self.H

    def __getitem__(self, index: tuple[Index, Index]) -> "LinearOperator":
        from hesse.linalg.views import SlicedOperator

        if not isinstance(index, tuple) or len(index) != 2:
            raise ArgumentError(f"{type(self).__name__}[...]: expected two indices, as in A[i:j, k:l], got {index!r}")
        return SlicedOperator(self, *index)

    # ------------------------------------------------------------------------------------------ reading entries

    def _identity_blocks(self) -> Iterator[tuple[int, Tensor]]:
        n = self.shape[1]
        for start in range(0, n, _PROBE_BLOCK):
            stop = min(start + _PROBE_BLOCK, n)
            block = torch.zeros(n, stop - start, dtype=self.dtype, device=self.device)
            block[torch.arange(start, stop), torch.arange(stop - start)] = 1
            yield start, block

    def to_dense(self) -> Tensor:
        """Form the matrix itself: n products in blocks of 128, O(mn) memory.

        Returns
        -------
        Tensor, shape (..., m, n)
            Differentiable where the products are.
        """
        return self._dense()

    def diagonal(self) -> Tensor:
        """Read out the main diagonal, exactly: n products in blocks of 128 unless the structure knows better.

        Returns
        -------
        Tensor, shape (..., min(m, n))
            Differentiable where the products are.
        """
        return self._diagonal()

    def trace(self) -> Tensor:
        """Sum the diagonal, exactly; for an estimate see `hesse.linalg.trace`.

        Returns
        -------
        Tensor, shape batch_shape
            Differentiable where the products are.

        Raises
        ------
        ShapeError
            If the operator is not square.
        """
        if self.shape[0] != self.shape[1]:
            raise ShapeError(f"{type(self).__name__}.trace: expected a square operator, got shape {self.shape}")
        return self._trace()

    def rows(self, index: Tensor) -> Tensor:
        """Take rows as a dense block: one adjoint product with that many columns, or read off the entries.

        Parameters
        ----------
        index : Tensor of int64, shape (r,)
            Row numbers.

        Returns
        -------
        Tensor, shape (..., r, n)
            In the order of ``index``.
        """
        return self._rows(index)

    # ------------------------------------------------------------------------------------------ checks

    def validate_symmetry(self) -> None:
        """Test ⟨x, A y⟩ = ⟨A x, y⟩ on one fixed random pair, once in the operator's life: one product with two columns.

        Raises
        ------
        NumericalError
            If the operator is declared symmetric and is not, or gives NaN or Inf.
        """
        n = self.shape[0]
        if self._symmetry_seen or not self.is_symmetric or n == 0 or n > _SYMMETRY_LIMIT:
            return
        real = torch.float64 if self.dtype in (torch.float64, torch.complex128) else torch.float32
        drawn = torch.randn(n, 2, generator=torch.Generator().manual_seed(n), dtype=real)
        pair = drawn.to(device=self.device, dtype=self.dtype)
        with torch.no_grad():
            images = self.matmat(pair)
            self._require_finite(images)
            wide = images.to(torch.promote_types(images.dtype, torch.float32))
            pair = pair.to(wide.dtype)
            gap = (pair[:, 0].conj() * wide[..., 1]).sum(-1) - (wide[..., 0].conj() * pair[:, 1]).sum(-1)
            size = pair[:, 0].norm() * wide[..., 1].norm(dim=-1) + pair[:, 1].norm() * wide[..., 0].norm(dim=-1)
            eps = torch.finfo(self.dtype).eps
            worst = float((gap.abs() / size.clamp_min(torch.finfo(size.dtype).tiny)).max())
        if worst > max(eps**0.75, 4 * math.sqrt(n) * eps):
            raise NumericalError(
                f"{type(self).__name__}: declared symmetric, but <x, Ay> and <Ax, y> differ by {worst:.1e} of their "
                "size on a random pair; construct it with is_symmetric=False, or symmetrise it"
            )
        self._symmetry_seen = True

    def _require_finite(self, images: Tensor) -> None:
        if not bool(torch.isfinite(images).all()):
            raise NumericalError(
                f"{type(self).__name__}: the product with a finite vector has NaN or Inf; check the operator's entries"
            )

    def _forget(self) -> None:
        # what was found out about one set of entries does not hold for another
        self._symmetry_seen, self._adjoint_of = False, None

    # ------------------------------------------------------------------------------------------ elsewhere

    def to_scipy(self) -> "ScipyOperator":
        """Wrap as a `scipy.sparse.linalg.LinearOperator` with all four products, on the CPU through NumPy.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator
            Of the same dtype; without a copy for contiguous operands on the CPU.
        """
        from hesse.linalg.convert import to_scipy

        return to_scipy(self)

    def __repr__(self) -> str:
        flags = ", psd" if self.is_psd else ", symmetric" if self.is_symmetric else ""
        size = (*self.batch_shape, *self.shape)
        return f"{type(self).__name__}({size}, {str(self.dtype).removeprefix('torch.')}, {self.device}{flags})"


def _operand(other: Any) -> LinearOperator:
    if isinstance(other, LinearOperator):
        return other
    from hesse.linalg.convert import as_linear_operator

    return as_linear_operator(other)
