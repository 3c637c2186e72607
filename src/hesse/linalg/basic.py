"""Operators that are one tensor, one number, or one function.   Shapes: (..., m, n) on operands (..., n, k)."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError, SingularError
from hesse.linalg.operator import LinearOperator, Scalar

__all__ = ["Dense", "Diagonal", "FunctionOperator", "Permutation", "ScaledIdentity", "Sparse"]


class Dense(LinearOperator):
    """A matrix that is stored.

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        The entries; not copied.
    is_symmetric : bool, default False
        Promise that A = A^H.
    is_psd : bool, default False
        Promise that A is positive semi-definite.

    Raises
    ------
    ShapeError
        If ``matrix`` has fewer than two dimensions.
    """

    _fields = ("matrix",)

    def __init__(self, matrix: Tensor, *, is_symmetric: bool = False, is_psd: bool = False) -> None:
        if matrix.ndim < 2:
            raise ShapeError(f"Dense: expected a matrix of shape (..., m, n), got {tuple(matrix.shape)}")
        m, n = matrix.shape[-2:]
        super().__init__(
            (m, n),
            matrix.dtype,
            matrix.device,
            batch_shape=tuple(matrix.shape[:-2]),
            is_symmetric=is_symmetric,
            is_psd=is_psd,
        )
        self.matrix = matrix

    def _matmat(self, x: Tensor) -> Tensor:
        return self.matrix @ x

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self.matrix.mH @ y

    def _dense(self) -> Tensor:
        return self.matrix

    def _diagonal(self) -> Tensor:
        return self.matrix.diagonal(dim1=-2, dim2=-1)

    def _rows(self, index: Tensor) -> Tensor:
        return self.matrix[..., index, :]


class _SparseProduct(torch.autograd.Function):
    """Y = A X with gradients for the stored values and for X; the pattern travels along."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, pattern: "_Pattern") -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(values, x)
        ctx.pattern = pattern
        return pattern.multiply(values, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, x = ctx.saved_tensors
        pattern: _Pattern = ctx.pattern
        grad_values = grad_x = None
        if ctx.needs_input_grad[0]:
            grad_values = (grad[..., pattern.row, :] * x[..., pattern.col, :].conj()).sum(-1)
            grad_values = grad_values.reshape(-1, len(values)).sum(0)
        if ctx.needs_input_grad[1]:
            flipped = pattern.transposed()
            grad_x = _SparseProduct.apply(values[pattern.to_transposed].conj(), grad, flipped)
        return grad_values, grad_x, None


class _Pattern:
    """Row pointers and columns of a CSR matrix, its rows spelled out, and the order of values in its transpose."""

    __slots__ = ("col", "crow", "row", "shape", "t_col", "t_crow", "to_transposed")

    def __init__(self, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> None:
        self.crow, self.col, self.shape = crow, col, shape
        self.row = torch.repeat_interleave(torch.arange(shape[0], device=crow.device), crow.diff())
        self.to_transposed = torch.argsort(col, stable=True)
        self.t_col = self.row[self.to_transposed]
        counts = torch.bincount(col, minlength=shape[1])
        self.t_crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def transposed(self) -> "_Pattern":
        flipped: _Pattern = object.__new__(_Pattern)
        flipped.crow, flipped.col, flipped.shape = self.t_crow, self.t_col, (self.shape[1], self.shape[0])
        flipped.row = self.col[self.to_transposed]
        flipped.to_transposed = torch.argsort(self.to_transposed)
        flipped.t_crow, flipped.t_col = self.crow, self.col
        return flipped

    def multiply(self, values: Tensor, x: Tensor) -> Tensor:
        matrix = torch.sparse_csr_tensor(self.crow, self.col, values.detach(), self.shape, check_invariants=False)
        if x.ndim == 2:
            return matrix @ x
        n, k = x.shape[-2:]  # a batch of blocks becomes one wide block: CSR products take matrices only
        wide = x.movedim(-2, 0).reshape(n, -1)
        return (matrix @ wide).reshape(self.shape[0], *x.shape[:-2], k).movedim(0, -2)


class Sparse(LinearOperator):
    """A sparse matrix in CSR form with its transpose kept, so that A X and A^H Y cost the same.

    Parameters
    ----------
    matrix : Tensor, sparse COO or CSR, shape (m, n)
        Differentiable with respect to its values when built by `Sparse.from_csr`.
    is_symmetric : bool, default False
        Promise that A = A^H.
    is_psd : bool, default False
        Promise that A is positive semi-definite.

    Raises
    ------
    ArgumentTypeError
        If the layout is neither COO nor CSR, or the dtype is a half on the CPU.
    ShapeError
        If the tensor is batched.

    Notes
    -----
    Memory: the values once, three index arrays of their length twice. A product costs O(nnz k).
    """

    _fields = ("values", "crow", "col")

    def __init__(self, matrix: Tensor, *, is_symmetric: bool = False, is_psd: bool = False) -> None:
        if matrix.layout not in (torch.sparse_coo, torch.sparse_csr):
            raise ArgumentTypeError(f"Sparse: expected layout sparse_coo or sparse_csr, got {matrix.layout}")
        if matrix.ndim != 2:
            raise ShapeError(
                f"Sparse: expected one matrix, got shape {tuple(matrix.shape)}; stack blocks by BlockDiagonal"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells every process once that CSR is in beta
            csr = matrix.coalesce().to_sparse_csr() if matrix.layout == torch.sparse_coo else matrix
        self._store(
            csr.crow_indices(),
            csr.col_indices(),
            csr.values(),
            (matrix.shape[0], matrix.shape[1]),
            is_symmetric,
            is_psd,
        )

    @classmethod
    def from_csr(
        cls,
        crow: Tensor,
        col: Tensor,
        values: Tensor,
        shape: tuple[int, int],
        *,
        is_symmetric: bool = False,
        is_psd: bool = False,
    ) -> "Sparse":
        """Build from the three arrays; products are differentiable with respect to ``values``.

        Parameters
        ----------
        crow : Tensor of int64, shape (m + 1,)
            Where each row starts.
        col : Tensor of int64, shape (nnz,)
            Column of each value.
        values : Tensor, shape (nnz,)
            The entries, row by row.
        shape : tuple of int
            (m, n).
        is_symmetric : bool, default False
            Promise that A = A^H.
        is_psd : bool, default False
            Promise that A is positive semi-definite.

        Returns
        -------
        Sparse
            Without a copy of ``values``.

        Raises
        ------
        ShapeError
            If the arrays do not fit each other or the shape.
        """
        fits = crow.shape == (shape[0] + 1,) and col.shape == values.shape == (int(crow[-1]),)
        if not fits or (len(col) and not 0 <= int(col.min()) <= int(col.max()) < shape[1]):
            raise ShapeError(
                f"Sparse.from_csr: crow {tuple(crow.shape)}, col {tuple(col.shape)} and values {tuple(values.shape)} "
                f"do not describe a matrix of shape {tuple(shape)}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.sparse_csr_tensor(crow, col, values.detach(), shape, check_invariants=True)
        operator = object.__new__(cls)
        operator._store(crow, col, values, shape, is_symmetric, is_psd)
        return operator

    def _store(
        self, crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int], is_symmetric: bool, is_psd: bool
    ) -> None:
        super().__init__(shape, values.dtype, values.device, is_symmetric=is_symmetric, is_psd=is_psd)
        self.crow, self.col, self.values = crow.long(), col.long(), values
        self._index()

    def _mapped(
        self, change: Callable[[str, Tensor], Tensor], prefix: str, dtype: torch.dtype, device: torch.device
    ) -> "Sparse":
        clone = super()._mapped(change, prefix, dtype, device)
        clone._index()
        return clone

    def _index(self) -> None:
        if self.device.type == "cpu" and self.dtype in (torch.float16, torch.bfloat16):
            raise ArgumentTypeError(f"Sparse: torch has no sparse product in {self.dtype} on the CPU; use float32")
        self._pattern = _Pattern(self.crow, self.col, self.shape)
        self._flipped = self._pattern.transposed()
        self._csr = torch.sparse_csr_tensor(
            self.crow, self.col, self.values.detach(), self.shape, check_invariants=False
        )

    def _matmat(self, x: Tensor) -> Tensor:
        x = x.resolve_conj()  # a sparse product without MKL overlooks that x is conjugated
        if x.ndim == 2 and not (torch.is_grad_enabled() and (x.requires_grad or self.values.requires_grad)):
            # MKL never reads it with beta = 0, and a zeroed one takes a quarter longer; others would keep a NaN in it
            make = x.new_empty if torch.backends.mkl.is_available() else x.new_zeros
            out = make(self.shape[0], x.shape[1])
            return torch.addmm(out, self._csr, x, beta=0, out=out)
        return _SparseProduct.apply(self.values, x, self._pattern)

    def _rmatmat(self, y: Tensor) -> Tensor:
        return _SparseProduct.apply(
            self.values[self._pattern.to_transposed].conj().resolve_conj(), y.resolve_conj(), self._flipped
        )

    def _dense(self) -> Tensor:
        dense = self.values.new_zeros(self.shape)
        return dense.index_put((self._pattern.row, self.col), self.values, accumulate=True)

    def _diagonal(self) -> Tensor:
        on = self._pattern.row == self.col
        return self.values.new_zeros(min(self.shape)).index_add(0, self.col[on], self.values[on])


class Diagonal(LinearOperator):
    """A diagonal matrix: product, solve and log-determinant in O(n).

    Parameters
    ----------
    values : Tensor, shape (..., n)
        The diagonal.
    is_psd : bool, optional
        Default: read off the values, one pass.

    Raises
    ------
    ShapeError
        If ``values`` is a scalar.
    """

    _fields = ("values",)

    def __init__(self, values: Tensor, *, is_psd: bool | None = None) -> None:
        if values.ndim < 1:
            raise ShapeError("Diagonal: expected values of shape (..., n), got a scalar; use ScaledIdentity")
        n = values.shape[-1]
        real = not values.is_complex()
        psd = (real and bool((values >= 0).all())) if is_psd is None else is_psd
        super().__init__(
            (n, n), values.dtype, values.device, batch_shape=tuple(values.shape[:-1]), is_symmetric=real, is_psd=psd
        )
        self.values = values

    def _matmat(self, x: Tensor) -> Tensor:
        return self.values.unsqueeze(-1) * x

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self.values.conj().unsqueeze(-1) * y

    @property
    def has_direct_solve(self) -> bool:
        """True: division."""
        return True

    def _solve(self, b: Tensor) -> Tensor:
        if bool((self.values == 0).any()):
            raise SingularError("Diagonal.solve: a diagonal entry is zero; add a shift")
        return b / self.values.unsqueeze(-1)

    def _logdet(self) -> Tensor:
        return self.values.abs().log().sum(-1)

    def _dense(self) -> Tensor:
        return torch.diag_embed(self.values)

    def _diagonal(self) -> Tensor:
        return self.values

    def _shifted(self, shift: Scalar) -> "Diagonal":
        return Diagonal(self.values + (shift.unsqueeze(-1) if isinstance(shift, Tensor) else shift))


class ScaledIdentity(LinearOperator):
    """A multiple of the identity.

    Parameters
    ----------
    n : int
        Order.
    scale : float or Tensor, shape ()
        The multiple.
    dtype : torch.dtype, optional
        Default: the tensor's, or float32 for a number.
    device : torch.device or str, optional
        Default: the tensor's, or the CPU.

    Raises
    ------
    ShapeError
        If ``scale`` is a tensor with dimensions; use `Diagonal` for those.
    """

    _fields = ("scale",)

    def __init__(
        self,
        n: int,
        scale: float | Tensor = 1.0,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(scale, Tensor):
            if scale.ndim:
                raise ShapeError(f"ScaledIdentity: expected a scalar, got shape {tuple(scale.shape)}; use Diagonal")
            tensor = scale.to(device=device, dtype=dtype)
        else:
            tensor = torch.tensor(scale, dtype=dtype or torch.float32, device=device or "cpu")
        real = not tensor.is_complex() or bool(tensor.imag == 0)
        psd = real and float(tensor.real) >= 0
        super().__init__((n, n), tensor.dtype, tensor.device, is_symmetric=real, is_psd=psd)
        self.scale = tensor

    def _matmat(self, x: Tensor) -> Tensor:
        return self.scale * x

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self.scale.conj() * y

    @property
    def has_direct_solve(self) -> bool:
        """True: division."""
        return True

    def _solve(self, b: Tensor) -> Tensor:
        if bool(self.scale == 0):
            raise SingularError("ScaledIdentity.solve: the scale is zero")
        return b / self.scale

    def _logdet(self) -> Tensor:
        return self.shape[0] * self.scale.abs().log()

    def _diagonal(self) -> Tensor:
        return self.scale.expand(self.shape[0])

    def _trace(self) -> Tensor:
        return self.shape[0] * self.scale

    def _shifted(self, shift: Scalar) -> LinearOperator:
        if isinstance(shift, Tensor) and shift.ndim:
            return super()._shifted(shift)
        return ScaledIdentity(self.shape[0], self.scale + shift)


class Permutation(LinearOperator):
    """(P x)_i = x at ``index[i]``: a reordering of rows.

    Parameters
    ----------
    index : Tensor of int64, shape (n,)
        A permutation of 0, ..., n-1.
    dtype : torch.dtype, default torch.float32
        Of the operands.

    Raises
    ------
    ArgumentError
        If ``index`` is not a permutation.
    """

    _fields = ("index",)

    def __init__(self, index: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        n = len(index)
        if index.ndim != 1 or not torch.equal(index.sort().values, torch.arange(n, device=index.device)):
            raise ArgumentError(f"Permutation: expected each of 0..{n - 1} once")
        super().__init__((n, n), dtype, index.device)
        self.index = index

    def _matmat(self, x: Tensor) -> Tensor:
        return x[..., self.index, :]

    def _rmatmat(self, y: Tensor) -> Tensor:
        return y[..., torch.argsort(self.index), :]

    @property
    def has_direct_solve(self) -> bool:
        """True: P⁻¹ = Pᵀ."""
        return True

    def _solve(self, b: Tensor) -> Tensor:
        return self._rmatmat(b)

    def _logdet(self) -> Tensor:
        return torch.zeros((), dtype=self.dtype.to_real(), device=self.device)

    def _diagonal(self) -> Tensor:
        return (self.index == torch.arange(len(self.index), device=self.device)).to(self.dtype)


class FunctionOperator(LinearOperator):
    """A matrix given by a function of a block of columns.

    Parameters
    ----------
    matmat_fn : callable
        ``matmat_fn(x, *tensors)`` maps (..., n, k) to (..., m, k) and is linear in x.
    shape : tuple of int
        (m, n).
    dtype : torch.dtype, default torch.float32
        Of operands and results.
    device : torch.device or str, default "cpu"
        Of operands and results.
    rmatmat_fn : callable, optional
        The adjoint product, called alike. Default: symmetry, or differentiation of ``matmat_fn``.
    tensors : tuple of Tensor, default ()
        Handed to both functions; only through them do gradients reach what the functions depend on, and only with
        them can ``to`` move the operator.
    batch_shape : tuple of int, default ()
        Shape of the stack.
    is_symmetric : bool, default False
        Promise that A = A^H.
    is_psd : bool, default False
        Promise that A is positive semi-definite.

    Raises
    ------
    ArgumentTypeError
        If a function is not callable.
    """

    _fields: ClassVar[tuple[str, ...]] = ("parameters",)

    def __init__(
        self,
        matmat_fn: Callable[..., Tensor],
        shape: tuple[int, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rmatmat_fn: Callable[..., Tensor] | None = None,
        tensors: tuple[Tensor, ...] = (),
        batch_shape: tuple[int, ...] = (),
        is_symmetric: bool = False,
        is_psd: bool = False,
    ) -> None:
        if not callable(matmat_fn) or (rmatmat_fn is not None and not callable(rmatmat_fn)):
            raise ArgumentTypeError("FunctionOperator: expected matmat_fn and rmatmat_fn to be callable")
        super().__init__(shape, dtype, device, batch_shape=batch_shape, is_symmetric=is_symmetric, is_psd=is_psd)
        self.matmat_fn = matmat_fn
        self.rmatmat_fn = rmatmat_fn
        self.parameters = tuple(tensors)

    def _matmat(self, x: Tensor) -> Tensor:
        return self._fits(self.matmat_fn(x, *self.parameters), x, self.shape[0])

    def _rmatmat(self, y: Tensor) -> Tensor:
        if self.rmatmat_fn is None:
            return super()._rmatmat(y)
        return self._fits(self.rmatmat_fn(y, *self.parameters), y, self.shape[1])

    def _fits(self, out: Tensor, operand: Tensor, rows: int) -> Tensor:
        if out.shape[-2:] != (rows, operand.shape[-1]) or out.dtype != self.dtype:
            raise ShapeError(
                f"FunctionOperator: the function gave {tuple(out.shape)} {out.dtype} for an operand of shape "
                f"{tuple(operand.shape)}; expected (..., {rows}, {operand.shape[-1]}) {self.dtype}"
            )
        return out

    def _mapped(
        self, change: Callable[[str, Tensor], Tensor], prefix: str, dtype: torch.dtype, device: torch.device
    ) -> "FunctionOperator":
        if not self.parameters and (dtype, device) != (self.dtype, self.device):
            raise ArgumentError(
                "FunctionOperator.to: what the function closes over cannot be moved; hand its tensors in by tensors="
            )
        return super()._mapped(change, prefix, dtype, device)
