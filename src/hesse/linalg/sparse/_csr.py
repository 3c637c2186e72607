"""Compressed sparse rows as three NumPy arrays, read from SciPy, torch and hesse without a copy, and written back."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.basic import Sparse

__all__ = [
    "INT32_LIMIT",
    "Container",
    "Csr",
    "common_dtype",
    "container_of",
    "read_csr",
    "require_numbers",
    "values_of",
    "write_csr",
]

Container = Literal["csr_array", "csr_matrix", "torch", "operator"]
"""What a matrix came in, and goes out in."""

INT32_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Csr:
    """One matrix: row i holds ``data[indptr[i]:indptr[i + 1]]`` in the columns ``indices`` of the same range."""

    indptr: np.ndarray  # int64, (m + 1,)
    indices: np.ndarray  # int32 or int64, (nnz,); increasing in every row
    data: np.ndarray  # (nnz,)
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return len(self.indices)

    def row_lengths(self) -> np.ndarray:
        """Count the entries of each row.

        Returns
        -------
        numpy array of int64, shape (m,)
            Stored entries, explicit zeros among them.
        """
        return np.diff(self.indptr)


def container_of(call: str, name: str, matrix: Any) -> Container:
    """Tell what kind of sparse matrix this is.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    matrix : Any
        What came.

    Returns
    -------
    Container
        SciPy formats other than CSR count as the CSR class of their family.

    Raises
    ------
    ArgumentTypeError
        If it is no sparse matrix.
    """
    if isinstance(matrix, Sparse):
        return "operator"
    if isinstance(matrix, Tensor):
        if matrix.layout not in (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo):
            raise ArgumentTypeError(
                f"{call}: {name} is a dense tensor; use {name}.to_sparse_csr(), or the dense product"
            )
        return "torch"
    if scipy.sparse.issparse(matrix):
        return "csr_matrix" if isinstance(matrix, scipy.sparse.spmatrix) else "csr_array"
    raise ArgumentTypeError(
        f"{call}: expected {name} as a SciPy sparse matrix, a torch sparse tensor or a hesse Sparse operator, "
        f"got {type(matrix).__name__}"
    )


def read_csr(call: str, name: str, matrix: Any, *, repair: bool = True) -> Csr:
    """Take the three arrays out of a sparse matrix; CSR on the CPU is not copied, every other format is converted.

    Parameters
    ----------
    call, name : str
        The function and its argument, for messages.
    matrix : scipy.sparse matrix or array, torch sparse tensor, or Sparse
        What came.
    repair : bool, default True
        Put unsorted or repeated indices right in a copy, repeated entries summed; False: raise.

    Returns
    -------
    Csr
        Checked: the compiled loops trust every index.

    Raises
    ------
    ArgumentTypeError
        If it is no sparse matrix, or its numbers are of a kind without a product.
    ShapeError
        If it is not one matrix on the CPU.
    ArgumentError
        If the arrays contradict each other, or need repair that is not wanted.
    """
    kind = container_of(call, name, matrix)
    if kind in ("torch", "operator"):
        csr = _from_torch(call, name, matrix)
    else:
        if matrix.ndim != 2:
            raise ShapeError(f"{call}: expected {name} with two dimensions, got shape {matrix.shape}")
        rows: Any = matrix.tocsr()
        csr = Csr(rows.indptr.astype(np.int64), rows.indices, rows.data, (matrix.shape[0], matrix.shape[1]))
    require_numbers(call, name, csr.data.dtype)
    csr = _checked(call, name, csr)
    if _is_canonical(csr):
        return csr
    if not repair:
        raise ArgumentError(
            f"{call}: the rows of {name} are not sorted, or repeat columns; use {name}.sum_duplicates()"
        )
    copy: Any = scipy.sparse.csr_array((csr.data.copy(), csr.indices.copy(), csr.indptr.copy()), shape=csr.shape)
    copy.sum_duplicates()
    return Csr(copy.indptr.astype(np.int64), copy.indices, copy.data, csr.shape)


def require_numbers(call: str, name: str, dtype: np.dtype) -> None:
    """Refuse a dtype without a compiled product.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    dtype : numpy.dtype
        What came.

    Raises
    ------
    ArgumentTypeError
        Unless it is truth values, whole numbers, or single or double precision, real or complex.
    """
    if dtype.kind not in "biu" and dtype not in (np.float32, np.float64, np.complex64, np.complex128):
        raise ArgumentTypeError(f"{call}: {name} holds {dtype}; convert it to float32 or float64")


def _from_torch(call: str, name: str, matrix: Any) -> Csr:
    values = matrix.values if isinstance(matrix, Sparse) else None
    if len(matrix.shape) != 2:
        raise ShapeError(f"{call}: expected {name} as one matrix, got shape {tuple(matrix.shape)}")
    if matrix.device.type != "cpu":
        raise ShapeError(f"{call}: {name} is on {matrix.device}; move it with .cpu(): the product runs there")
    if matrix.dtype in (torch.float16, torch.bfloat16):
        raise ArgumentTypeError(f"{call}: {name} is {matrix.dtype}, which has no sparse product; use float32")
    if values is None:
        bare: Tensor = matrix.detach()  # pyright: ignore[reportAttributeAccessIssue]
        tensor = bare if bare.layout == torch.sparse_csr else _to_csr(bare)
        crow, col, values = tensor.crow_indices(), tensor.col_indices(), tensor.values()
        if values.ndim != 1:
            raise ShapeError(f"{call}: expected {name} with scalar entries, got values {tuple(values.shape)}")
    else:
        crow, col = matrix.crow, matrix.col
    data = values.detach().resolve_conj().resolve_neg().contiguous().numpy()
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    return Csr(crow.numpy().astype(np.int64, copy=False), col.contiguous().numpy(), data, shape)


def _to_csr(matrix: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells every process once that CSR is in beta
        return (matrix.coalesce() if matrix.layout == torch.sparse_coo else matrix).to_sparse_csr()


def _checked(call: str, name: str, csr: Csr) -> Csr:
    rows, columns = csr.shape
    pointers = csr.indptr
    end = int(pointers[-1]) if len(pointers) else -1
    if len(pointers) != rows + 1 or pointers[0] != 0 or bool((np.diff(pointers) < 0).any()):
        raise ArgumentError(f"{call}: the row pointers of {name} do not describe {rows} rows")
    if end > min(len(csr.indices), len(csr.data)):
        raise ArgumentError(f"{call}: {name} has {end} entries by its row pointers, but {len(csr.indices)} indices")
    indices = np.ascontiguousarray(csr.indices[:end])
    if indices.dtype not in (np.int32, np.int64):
        indices = indices.astype(np.int64)
    if end and not 0 <= int(indices.min()) <= int(indices.max()) < columns:
        raise ArgumentError(
            f"{call}: {name} has columns {indices.min()} to {indices.max()}, outside 0 to {columns - 1}"
        )
    return Csr(pointers, indices, np.ascontiguousarray(csr.data[:end]), csr.shape)


def _is_canonical(csr: Csr) -> bool:
    # one comparison a pair of neighbours; those across the start of a row do not count
    steps = csr.indices[1:] > csr.indices[:-1]
    starts = csr.indptr[1:-1]
    steps[starts[(starts > 0) & (starts < csr.nnz)] - 1] = True
    return bool(steps.all())


def common_dtype(a: Csr, b: Csr, semiring: str) -> np.dtype:
    """Dtype of the product by NumPy's promotion; truth values for ``or_and``.

    Parameters
    ----------
    a, b : Csr
        The factors.
    semiring : str
        Name of the semiring.

    Returns
    -------
    numpy.dtype
        Of the values of the product.
    """
    return np.dtype(bool) if semiring == "or_and" else np.result_type(a.data.dtype, b.data.dtype)


def write_csr(
    indptr: np.ndarray, indices: np.ndarray, values: np.ndarray | Tensor, shape: tuple[int, int], kind: Container
) -> Any:
    """Wrap three arrays without copying indices or values.

    Parameters
    ----------
    indptr, indices : numpy arrays
        Row pointers and columns, sorted in every row.
    values : numpy array or Tensor
        Entries; a tensor that carries gradients keeps them.
    shape : tuple of int
        (m, n).
    kind : Container
        What to wrap them in.

    Returns
    -------
    scipy.sparse.csr_array, scipy.sparse.csr_matrix, Tensor or Sparse
        As asked for.
    """
    narrow = indptr.astype(indices.dtype)
    if kind in ("torch", "operator"):
        entries = values if isinstance(values, Tensor) else torch.from_numpy(values)
        crow, col = torch.from_numpy(narrow), torch.from_numpy(indices)
        if kind == "operator":
            return Sparse.from_csr(crow.long(), col.long(), entries, shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells every process once that CSR is in beta
            return torch.sparse_csr_tensor(crow, col, entries, shape, check_invariants=False)
    entries = values.detach().numpy() if isinstance(values, Tensor) else values
    build: Any = scipy.sparse.csr_matrix if kind == "csr_matrix" else scipy.sparse.csr_array
    result = build((entries, indices, narrow), shape=shape, copy=False)
    result.has_canonical_format = True
    return result


def values_of(matrix: Any) -> Tensor | None:
    """Find the values through which gradients flow.

    Parameters
    ----------
    matrix : Any
        A matrix that `read_csr` takes.

    Returns
    -------
    Tensor or None
        Shape (nnz,), attached to the graph; None unless it requires gradients.
    """
    if isinstance(matrix, Sparse):
        return matrix.values if matrix.values.requires_grad else None
    if not isinstance(matrix, Tensor) or not matrix.requires_grad:
        return None
    return (matrix if matrix.layout == torch.sparse_csr else _to_csr(matrix)).values()
