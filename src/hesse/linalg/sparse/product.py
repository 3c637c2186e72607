"""The product of two sparse matrices, C = A B, row by row in cache: SMASH's windows and tokens on an ordinary CPU."""

import importlib
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from hesse._optional import require
from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.sparse._csr import Container, Csr, common_dtype, container_of, read_csr, values_of, write_csr
from hesse.linalg.sparse._multiply import MODES, SEMIRINGS, Job, gradient, multiply, new_job
from hesse.linalg.sparse._windows import load_kernels

__all__ = ["Accumulator", "Semiring", "spgemm"]

Accumulator = Literal["auto", "bitmap", "hash"]
"""Where a row's partial products meet: a dense row with a bitmap, or a hash table."""

Semiring = Literal["plus_times", "min_plus", "or_and"]
"""What stands for addition and multiplication."""

Output = Literal["auto", "scipy", "torch", "operator"]


class _SparseValues(torch.autograd.Function):
    """The product's values as a function of the factors' values; their patterns travel along."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        values_a: Tensor,
        values_b: Tensor,
        job: Job,
        found: tuple[np.ndarray, np.ndarray, np.ndarray],
        weight: Any,
    ) -> Tensor:
        ctx.save_for_backward(values_a, values_b)  # so that torch notices a change in place before the backward pass
        ctx.job, ctx.indptr, ctx.indices, ctx.weight = job, found[0], found[1], weight
        return torch.from_numpy(found[2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values_a, values_b = ctx.saved_tensors
        dense = grad.resolve_conj().resolve_neg().contiguous().numpy()
        if ctx.weight is not None:
            dense = dense * np.conj(ctx.weight)
        grad_a, grad_b = (torch.from_numpy(part) for part in gradient(ctx.job, ctx.indptr, ctx.indices, dense))
        return _like(grad_a, values_a), _like(grad_b, values_b), None, None, None


def _like(grad: Tensor, values: Tensor) -> Tensor:
    # a real factor of a complex product has a real gradient
    return (grad if values.is_complex() or not grad.is_complex() else grad.real).to(values.dtype)


def spgemm(
    a: Any,
    b: Any,
    *,
    num_threads: int | None = None,
    accumulator: Accumulator = "auto",
    semiring: Semiring = "plus_times",
    mask: Any = None,
    drop_tol: float | None = None,
    max_bytes: int | None = None,
    out: Output = "auto",
) -> Any:
    """Multiply two sparse matrices: C_ij = Σ_k a_ik b_kj, each row of C summed in cache and written once, sorted.

    Row-wise (Gustavson): the rows B_k of A_i's columns are scaled and merged as they are produced. Where the machine
    of the paper merges with atomic operations in a scratchpad, here a window of rows belongs to one thread and the
    core's cache is the scratchpad: a dense row of sums with one bit a column (no branch in the inner loop, and the
    columns come out in order), or a hash table for a row with few products in a wide matrix.

    Parameters
    ----------
    a : scipy.sparse matrix or array, torch sparse tensor, or Sparse, shape (m, k)
        A, on the CPU. CSR is used as it is; other formats are converted, unsorted or repeated entries are put right
        in a copy. Explicit zeros count as entries.
    b : the same, shape (k, n)
        B; it may come in another container than A.
    num_threads : int, optional
        Default: `torch.get_num_threads`.
    accumulator : {"auto", "bitmap", "hash"}, default "auto"
        "auto" decides row by row, by the columns between the row's first and last: the bitmap up to 131,072 (the sums
        then fit a second-level cache), and beyond if more than a sixteenth as many products fall there, column block
        by column block; the hash table for the rest, and for rows with fewer than one product in 512 columns, where
        walking the bitmap would cost more than sorting.
    semiring : {"plus_times", "min_plus", "or_and"}, default "plus_times"
        "min_plus": C_ij = min_k (a_ik + b_kj), shortest paths of two hops; a place without entries is +∞ and is not
        stored. "or_and": truth values, a path of two hops exists.
    mask : sparse matrix, shape (m, n), optional
        Compute (A B) ∘ M without forming A B: only M's places are summed. ``plus_times`` multiplies by M's values, the
        other semirings use its pattern.
    drop_tol : float, optional
        Entries with ``|C_ij| <= drop_tol`` are never stored. Default: every place with a partial product is stored,
        sums that come out as zero included (SciPy's own product leaves those out; 0.0 does so here).
    max_bytes : int, optional
        Most memory that C may take. Default: no limit.
    out : {"auto", "scipy", "torch", "operator"}, default "auto"
        Container of C: A's own, a ``csr_array``, a sparse CSR tensor, or a `hesse.linalg.Sparse` operator.

    Returns
    -------
    scipy.sparse.csr_array or csr_matrix, Tensor, or Sparse, shape (m, n)
        Values in NumPy's promotion of the two dtypes (truth values for ``or_and``), summed in that dtype; NaN and
        infinities propagate. Indices as wide as the factors', or int64 above 2³¹ - 1 entries. Differentiable in the
        values of torch tensors and operators that require gradients: dA = (dC Bᴴ) on A's pattern, dB = (Aᴴ dC) on B's.

    Raises
    ------
    ArgumentTypeError
        If a factor is no sparse matrix of numbers, or is in half precision.
    ShapeError
        If the inner dimensions differ, the mask has another shape than C, or a tensor is batched or not on the CPU.
    ArgumentError
        If an option is unknown, a semiring meets numbers it has no order for, or gradients are asked of a product
        that has none.
    MemoryLimitError
        If C would take more than ``max_bytes``; said before it is allocated.
    MissingDependencyError
        If ``accumulator`` names one and numba is not installed. Without numba, "auto" warns and uses SciPy or NumPy.

    Notes
    -----
    Time O(F), F = Σ_ik nnz(B_k) over A's entries, plus n / 64 a row for the bitmap. Memory: C, and n sums a thread.
    Several threads first count C's entries from the patterns, 64 columns a step, which adds a sixth to a quarter to
    the work, and then write to the final place. The first call compiles for some seconds; the result is kept on disk.
    It pays where rows have many partial products. With a handful a row (a five-point stencil squared) SciPy's
    unsorted product takes half the time, and its sorted one about the same: there use `spgemm_symbolic`. Complex
    values are never conjugated. A chain A B v is cheaper as two products with a vector: operators do that,
    ``(A @ B) @ v``.

    References
    ----------
    K. Shivdikar (2021), SMASH: Sparse Matrix Atomic Scratchpad Hashing, M.Sc. thesis, Northeastern University,
    arXiv:2105.14156. F. G. Gustavson (1978), ACM Trans. Math. Softw. 4(3). Y. Nagasaka, S. Matsuoka, A. Azad,
    A. Buluç (2018), ICPP Workshops (hash accumulators on CPUs). M. Deveci, C. Trott, S. Rajamanickam (2018),
    Parallel Comput. 78 (packed columns while counting).

    Examples
    --------
    >>> import scipy.sparse
    >>> path = scipy.sparse.csr_array([[0.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    >>> spgemm(path, path).toarray().tolist()
    [[0.0, 0.0, 6.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    _check_options(accumulator, semiring, drop_tol, max_bytes, out)
    threads = require_threads("spgemm", num_threads)
    kind = _output_kind(container_of("spgemm", "a", a), out)
    left, right = read_csr("spgemm", "a", a), read_csr("spgemm", "b", b)
    if left.shape[1] != right.shape[0]:
        raise ShapeError(f"spgemm: a is {left.shape}, b is {right.shape}: columns of a and rows of b differ")
    dtype = common_dtype(left, right, semiring)
    require_semiring("spgemm", semiring, dtype)
    values_a, values_b = _graph(a, left, "a", semiring, kind), _graph(b, right, "b", semiring, kind)
    kernels = load_kernels("spgemm") if accumulator == "auto" else _require_kernels(accumulator)
    if dtype.kind == "b":
        semiring = "or_and"
    job = new_job(left, right, dtype, semiring, accumulator, threads, kernels)
    cover = None if mask is None else _read_mask(mask, job, dtype)
    indptr, indices, data = multiply(job, mask=cover, drop=drop_tol, max_bytes=max_bytes)
    data = data.view(bool) if dtype.kind == "b" else data
    values: Any = data
    if values_a is not None or values_b is not None:
        first, second = (
            torch.from_numpy(side.data) if graph is None else graph
            for side, graph in ((left, values_a), (right, values_b))
        )
        weight = None if cover is None else _mask_values(cover, indptr, indices)
        values = _SparseValues.apply(first, second, job, (indptr, indices, data), weight)
    return write_csr(indptr, indices, values, (left.shape[0], right.shape[1]), kind)


def _check_options(accumulator: str, semiring: str, drop_tol: float | None, max_bytes: int | None, out: str) -> None:
    for name, value, allowed in (
        ("accumulator", accumulator, MODES),
        ("semiring", semiring, SEMIRINGS),
        ("out", out, ("auto", "scipy", "torch", "operator")),
    ):
        if value not in allowed:
            raise ArgumentError(f"spgemm: expected {name} to be one of {', '.join(allowed)}, got {value!r}")
    if drop_tol is not None and not drop_tol >= 0:
        raise ArgumentError(f"spgemm: expected drop_tol >= 0, got {drop_tol}")
    if max_bytes is not None and max_bytes < 1:
        raise ArgumentError(f"spgemm: expected max_bytes >= 1, got {max_bytes}")


def require_threads(call: str, num_threads: int | None) -> int:
    """Settle the number of threads.

    Parameters
    ----------
    call : str
        The function, for the message.
    num_threads : int or None
        What came; None is torch's own number.

    Returns
    -------
    int
        At least one.

    Raises
    ------
    ArgumentError
        If it is below one.
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise ArgumentError(f"{call}: expected num_threads >= 1, got {num_threads}")
    return threads


def require_semiring(call: str, semiring: str, dtype: np.dtype) -> None:
    """Refuse a minimum where the numbers have no order or no addition.

    Parameters
    ----------
    call : str
        The function, for the message.
    semiring : str
        Its name.
    dtype : numpy.dtype
        Of the product.

    Raises
    ------
    ArgumentError
        If ``min_plus`` meets complex numbers or truth values.
    """
    if semiring == "min_plus" and dtype.kind in "cb":
        raise ArgumentError(f"{call}: min_plus needs numbers with an order and a sum, got {dtype}; convert them first")


def _output_kind(kind: Container, out: str) -> Container:
    if out == "auto":
        return kind
    return "csr_array" if out == "scipy" else cast(Container, out)


def _graph(matrix: Any, csr: Csr, name: str, semiring: str, kind: Container) -> Tensor | None:
    values = values_of(matrix) if torch.is_grad_enabled() else None
    if values is None:
        return None
    if semiring != "plus_times":
        raise ArgumentError(f"spgemm: {semiring} has no gradient here; detach {name}")
    if kind not in ("torch", "operator"):
        raise ArgumentError(f"spgemm: {name} requires gradients, which SciPy cannot carry; detach it, or out='torch'")
    if kind == "torch" and values.is_complex():
        raise ArgumentError(f"spgemm: {name} requires complex gradients, which torch's CSR lacks; use out='operator'")
    if len(values) != csr.nnz:
        raise ArgumentError(f"spgemm: {name} requires gradients and repeats entries; sum them first with .coalesce()")
    return values


def _require_kernels(accumulator: str) -> ModuleType:
    require("numba", extra="fast", feature=f"spgemm with accumulator={accumulator!r}")
    return importlib.import_module("hesse.linalg.sparse._kernels")


def _read_mask(mask: Any, job: Job, dtype: np.dtype) -> Csr:
    cover = read_csr("spgemm", "mask", mask)
    if values_of(mask) is not None and torch.is_grad_enabled():
        raise ArgumentError("spgemm: mask requires gradients, which do not pass through it; detach it")
    shape = (job.a.shape[0], job.b.shape[1])
    if cover.shape != shape:
        raise ShapeError(f"spgemm: the product is {shape}, mask is {cover.shape}")
    if job.semiring == "plus_times" and not np.can_cast(cover.data.dtype, dtype, casting="same_kind"):
        raise ArgumentError(f"spgemm: mask holds {cover.data.dtype}, the product {dtype}; convert the mask")
    data = cover.data.astype(job.a.data.dtype, copy=False)
    return Csr(cover.indptr, cover.indices.astype(job.b.indices.dtype, copy=False), data, shape)


def _mask_values(cover: Csr, indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    n = cover.shape[1]
    places = np.repeat(np.arange(cover.shape[0]), cover.row_lengths()) * n + cover.indices
    place = np.repeat(np.arange(cover.shape[0]), np.diff(indptr)) * n + indices
    return cover.data[np.searchsorted(places, place)]
