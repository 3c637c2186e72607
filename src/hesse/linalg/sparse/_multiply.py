"""Row-wise products on checked arrays: choice of memory plan, scratch, threads and kernel."""

from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse

from hesse.errors import MemoryLimitError, NumericalError
from hesse.linalg.sparse import _twin
from hesse.linalg.sparse._csr import INT32_LIMIT, Csr
from hesse.linalg.sparse._windows import Scratch, available_bytes, cut_windows, row_flops, run_windows, window_limit

__all__ = [
    "MODES",
    "SEMIRINGS",
    "Job",
    "as_operands",
    "count_entries",
    "gradient",
    "index_dtype",
    "multiply",
    "new_job",
    "output_bytes",
    "require_table",
]

SEMIRINGS = ("plus_times", "min_plus", "or_and")
MODES = ("auto", "bitmap", "hash")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One product, all choices made.   Shapes: A (m, k), B (k, n)."""

    a: Csr
    b: Csr
    flops: np.ndarray  # (m,)
    semiring: str
    mode: str
    num_threads: int
    kernels: ModuleType | None

    @property
    def upper(self) -> int:
        """Most entries that the product can have."""
        return int(np.minimum(self.flops, self.b.shape[1]).sum())

    @property
    def zero(self) -> Any:
        """Neutral element of the addition, in the dtype of the sums."""
        dtype = self.a.data.dtype
        if self.semiring != "min_plus":
            return dtype.type(0)
        return dtype.type(np.inf) if dtype.kind == "f" else np.iinfo(dtype).max

    def windows(self) -> np.ndarray:
        """Cut the rows into portions for the queue.

        Returns
        -------
        numpy array of int64, shape (W + 1,)
            First row of each, and m.
        """
        return cut_windows(self.flops, window_limit(self.flops, self.num_threads))

    @property
    def mode_number(self) -> int:
        """The choice of accumulator as the kernels know it."""
        return MODES.index(self.mode)

    def scratch(self) -> Scratch:
        """Set memory aside for one thread: enough for the heaviest row that goes to the hash table.

        Returns
        -------
        Scratch
            Clean.
        """
        n, kernels = self.b.shape[1], self.kernels
        table = 0 if kernels is None else kernels.largest_table(self.flops, n, self.mode_number)
        lengths = self.a.row_lengths()
        longest = int(lengths.max()) if len(lengths) else 0
        return Scratch(n, self.a.data.dtype, self.zero, table, longest)


def as_operands(a: Csr, b: Csr, dtype: np.dtype) -> tuple[Csr, Csr]:
    """Give both factors the product's dtype and one index dtype, so that one compiled kernel fits.

    Parameters
    ----------
    a, b : Csr
        The factors.
    dtype : numpy.dtype
        Of the product; truth values are held as bytes, 1 for whatever is not zero.

    Returns
    -------
    a, b : Csr
        Without a copy where nothing changes.
    """
    index = np.result_type(a.indices, b.indices)

    def alike(matrix: Csr) -> Csr:
        data = (matrix.data != 0).view(np.uint8) if dtype.kind == "b" else matrix.data.astype(dtype, copy=False)
        return Csr(matrix.indptr, matrix.indices.astype(index, copy=False), data, matrix.shape)

    return alike(a), alike(b)


def index_dtype(job: Job, entries: int) -> np.dtype:
    """Dtype of the product's indices: the factors' own, or int64 where that is too narrow for ``entries``.

    Parameters
    ----------
    job : Job
        The product.
    entries : int
        Number of its entries, or a bound.

    Returns
    -------
    numpy.dtype
        int32 or int64.
    """
    return np.dtype(np.int64) if entries > INT32_LIMIT else job.b.indices.dtype


def output_bytes(job: Job, entries: int) -> int:
    """Memory of a product with that many entries.

    Parameters
    ----------
    job : Job
        The product.
    entries : int
        Number of entries.

    Returns
    -------
    int
        Bytes of row pointers, columns and values.
    """
    index = index_dtype(job, entries).itemsize
    return entries * (index + job.a.data.dtype.itemsize) + (job.a.shape[0] + 1) * index


def count_entries(job: Job) -> np.ndarray:
    """Exact number of entries of each output row, from the patterns alone.

    Parameters
    ----------
    job : Job
        The product.

    Returns
    -------
    numpy array of int64, shape (m,)
        Before any drop tolerance or mask.

    Raises
    ------
    NumericalError
        If a hash table is too small, which its size rules out.
    """
    a, b, kernels = job.a, job.b, job.kernels
    counts = np.zeros(a.shape[0], np.int64)
    if kernels is None:
        row, _, entry_b = _twin.expand(a, b)
        place = np.unique(row * b.shape[1] + b.indices[entry_b])
        return np.bincount(place // max(b.shape[1], 1), minlength=a.shape[0]).astype(np.int64)

    packed = kernels.pack_columns(b.indptr, b.indices)

    def work(scratch: Scratch, lo: int, hi: int) -> None:
        end = kernels.count_rows(
            lo, hi, job.flops, a.indptr, a.indices, b.indptr, b.indices, *packed, b.shape[1], job.mode_number,
            scratch.bitmap, scratch.keys, scratch.used, counts,
        )  # fmt: skip
        require_table(end)

    run_windows(job.windows(), job.num_threads, job.scratch, work)
    return counts


def require_table(end: int) -> None:
    """Raise where a kernel reports a table that is too small.

    Parameters
    ----------
    end : int
        What the kernel returned.

    Raises
    ------
    NumericalError
        If it is negative.
    """
    if end < 0:
        raise NumericalError("spgemm: a hash table is smaller than twice its row; please report this product's sizes")


def multiply(
    job: Job, *, mask: Csr | None, drop: float | None, max_bytes: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the product's three arrays, rows sorted.

    With one thread and room for the upper bound, the rows are written one after the other into untouched memory, which
    costs nothing until it is written, and the rest is given back. Otherwise they are counted first, and every thread
    writes to the final place.

    Parameters
    ----------
    job : Job
        The product.
    mask : Csr or None
        Places to keep, with values of the product's dtype.
    drop : float or None
        Entries of at most this size are left out.
    max_bytes : int or None
        Memory that the product may take.

    Returns
    -------
    indptr, indices, data : numpy arrays
        Row pointers are int64.

    Raises
    ------
    MemoryLimitError
        If the product is larger than ``max_bytes``; before it is allocated.
    """
    counts = None
    upper = mask.nnz if mask is not None else job.upper
    room = available_bytes()
    if mask is None and (job.num_threads > 1 or output_bytes(job, upper) > min(room, max_bytes or room)):
        counts = count_entries(job)
        upper = int(counts.sum())
    if max_bytes is not None and output_bytes(job, upper) > max_bytes:
        raise MemoryLimitError(
            f"spgemm: the product has {'up to ' if counts is None else ''}{upper} entries, "
            f"{output_bytes(job, upper)} bytes, above max_bytes={max_bytes}; raise it, or keep fewer entries with mask="
        )
    if job.kernels is None:
        return _without_numba(job, mask, drop)
    indices = np.empty(upper, index_dtype(job, upper))
    data = np.empty(upper, job.a.data.dtype)
    written = np.zeros(job.a.shape[0], np.int64)
    starts = None
    if mask is not None:
        starts = mask.indptr
    elif counts is not None:
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    windows = job.windows()
    _fill(job, windows, mask, drop, starts, written, indices, data)
    indptr = np.concatenate([[0], np.cumsum(written)])
    if starts is not None and indptr[-1] < upper:
        _close_gaps(windows, starts, indptr, indices, data)
    entries = int(indptr[-1])
    indices.resize(entries, refcheck=False)  # gives the untouched rest back without a copy
    data.resize(entries, refcheck=False)
    return indptr, indices, data


def _fill(
    job: Job,
    windows: np.ndarray,
    mask: Csr | None,
    drop: float | None,
    starts: np.ndarray | None,
    written: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
) -> None:
    # starts: where each row may be written; None for one row after the other, on one thread
    a, b, kernels = job.a, job.b, job.kernels
    if kernels is None:
        return
    which, limit = SEMIRINGS.index(job.semiring), -1.0 if drop is None else float(drop)
    common = (a.indptr, a.indices, a.data, b.indptr, b.indices, b.data)
    position = 0

    def plain(scratch: Scratch, lo: int, hi: int) -> None:
        nonlocal position
        start = position if starts is None else int(starts[lo])
        end = kernels.multiply[which](
            lo, hi, start, job.flops, *common, b.shape[1], job.zero, limit, job.mode_number,
            scratch.acc, scratch.bitmap, scratch.keys, scratch.used, scratch.sums, scratch.cursor,
            written, indices, data,
        )  # fmt: skip
        require_table(end)
        if starts is None:
            position = end

    if mask is None:
        run_windows(windows, job.num_threads, job.scratch, plain)
        return
    covered = mask

    def make() -> tuple[np.ndarray, np.ndarray]:
        return np.full(b.shape[1], job.zero, a.data.dtype), np.zeros(b.shape[1], np.uint8)

    def through_mask(own: tuple[np.ndarray, np.ndarray], lo: int, hi: int) -> None:
        kernels.multiply_masked[which](
            lo, hi, int(covered.indptr[lo]), *common, covered.indptr, covered.indices, covered.data,
            job.zero, limit, *own, written, indices, data,
        )  # fmt: skip

    run_windows(windows, job.num_threads, make, through_mask)


def _close_gaps(
    windows: np.ndarray, starts: np.ndarray, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray
) -> None:
    # within a window rows follow each other already; windows move down in order, so nothing is overwritten unread
    for lo, hi in pairwise(windows):
        source, target, count = starts[lo], indptr[lo], indptr[hi] - indptr[lo]
        if source != target and count:
            indices[target : target + count] = indices[source : source + count]
            data[target : target + count] = data[source : source + count]


def _without_numba(job: Job, mask: Csr | None, drop: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if mask is not None:
        return _twin.masked(job.a, job.b, mask, job.semiring, drop)
    if job.semiring != "plus_times" or drop is not None:
        return _twin.multiply(job.a, job.b, job.semiring, drop)
    found, places = (_scipy_product(job, with_values=values) for values in (True, False))
    index = job.b.indices.dtype
    if found.nnz == places.nnz:
        return found.indptr.astype(np.int64), found.indices.astype(index, copy=False), found.data
    # SciPy leaves out sums that are exactly zero; they are entries here
    n = job.b.shape[1]
    rows = np.arange(job.a.shape[0])
    at, kept = (np.repeat(rows, np.diff(side.indptr)) * n + side.indices for side in (places, found))
    data = np.zeros(places.nnz, job.a.data.dtype)
    data[np.searchsorted(at, kept)] = found.data
    return places.indptr.astype(np.int64), places.indices.astype(index, copy=False), data


def _scipy_product(job: Job, *, with_values: bool) -> Any:
    left, right = (
        scipy.sparse.csr_array(
            (side.data if with_values else np.ones(side.nnz), side.indices, side.indptr), shape=side.shape
        )
        for side in (job.a, job.b)
    )
    product: Any = left @ right
    product.sort_indices()
    return product


def gradient(job: Job, indptr: np.ndarray, indices: np.ndarray, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(G Bᴴ) on A's pattern and (Aᴴ G) on B's, in one pass over the partial products.

    Parameters
    ----------
    job : Job
        The product.
    indptr, indices : numpy arrays
        Pattern of the product.
    grad : numpy array, shape (nnz(C),)
        G, in the product's dtype.

    Returns
    -------
    grad_a, grad_b : numpy arrays
        Shapes (nnz(A),) and (nnz(B),). Each thread sums B's in an array of its own: nnz(B) numbers a thread.
    """
    a, b, kernels = job.a, job.b, job.kernels
    if kernels is None:
        return _twin.gradient(a, b, indptr, indices, grad)
    grad_a = np.zeros_like(a.data)

    def make() -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(max(b.shape[1], 1), a.data.dtype), np.zeros_like(b.data)

    def work(own: tuple[np.ndarray, np.ndarray], lo: int, hi: int) -> None:
        kernels.gradient_rows(
            lo, hi, a.indptr, a.indices, a.data, b.indptr, b.indices, b.data,
            indptr, indices, grad, a.data.dtype.type(0), own[0], grad_a, own[1],
        )  # fmt: skip

    parts = run_windows(job.windows(), job.num_threads, make, work)
    return grad_a, np.sum([part[1] for part in parts], axis=0, dtype=b.data.dtype)


def new_job(
    a: Csr, b: Csr, dtype: np.dtype, semiring: str, mode: str, num_threads: int, kernels: ModuleType | None
) -> Job:
    """Put a product together from checked factors.

    Parameters
    ----------
    a, b : Csr
        The factors.
    dtype : numpy.dtype
        Of the product.
    semiring, mode : str
        Names from `SEMIRINGS` and "auto", "bitmap", "hash".
    num_threads : int
        Threads at most.
    kernels : ModuleType or None
        From `load_kernels`.

    Returns
    -------
    Job
        With the partial products of each row counted.
    """
    left, right = as_operands(a, b, dtype)
    return Job(left, right, row_flops(left, right), semiring, mode, num_threads, kernels)
