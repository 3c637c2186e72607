"""A sparse product whose pattern is found once and whose values are computed many times."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from hesse.errors import ArgumentError, MemoryLimitError, ShapeError
from hesse.linalg.sparse import _twin
from hesse.linalg.sparse._csr import Container, Csr, container_of, read_csr, require_numbers, write_csr
from hesse.linalg.sparse._multiply import (
    SEMIRINGS,
    Job,
    as_operands,
    count_entries,
    index_dtype,
    new_job,
    output_bytes,
    require_table,
)
from hesse.linalg.sparse._windows import Scratch, load_kernels, run_windows
from hesse.linalg.sparse.product import Semiring, require_semiring, require_threads

__all__ = ["SpgemmPlan", "spgemm_symbolic"]


@dataclass(frozen=True, slots=True, eq=False)
class SpgemmPlan:
    """The pattern of C = A B, and the work of each of its rows.   Shapes: A (m, k), B (k, n).

    Time stepping, multigrid and training on a fixed graph multiply the same patterns again and again: `numeric` skips
    the search for columns, and neither sorts nor allocates anything but the values.
    """

    shape: tuple[int, int]  # (m, n)
    indptr: np.ndarray  # int64, (m + 1,): where each row of C starts
    indices: np.ndarray  # (nnz(C),): its columns, sorted in every row
    flops: np.ndarray  # int64, (m,): partial products of each row
    windows: np.ndarray  # int64, (W + 1,): first row of each portion of work, and m
    nbytes_upper: int  # bound on C's memory from ``flops`` alone, known before any column is looked at
    nbytes: int  # C's memory, with values of the factors' dtype
    container: Container
    _patterns: tuple[Csr, Csr]

    @property
    def nnz(self) -> int:
        """Entries of C."""
        return len(self.indices)

    @property
    def compression(self) -> float:
        """Partial products for each entry of C; 1 where C is empty."""
        return int(self.flops.sum()) / self.nnz if self.nnz else 1.0

    def numeric(
        self, data_a: Any, data_b: Any, *, num_threads: int | None = None, semiring: Semiring = "plus_times"
    ) -> Any:
        """Compute C for new values on the same patterns.

        Parameters
        ----------
        data_a : numpy array or Tensor, shape (nnz(A),)
            Values of A in the order of its sorted CSR form: ``A.data``, or ``A.values()``. Gradients stop here; for
            those call `spgemm`.
        data_b : numpy array or Tensor, shape (nnz(B),)
            Values of B.
        num_threads : int, optional
            Default: `torch.get_num_threads`.
        semiring : {"plus_times", "min_plus", "or_and"}, default "plus_times"
            As in `spgemm`.

        Returns
        -------
        scipy.sparse.csr_array or csr_matrix, Tensor, or Sparse, shape (m, n)
            In the container that A came in, sharing the plan's pattern: change its values as you like, not its
            indices. Exact zeros stay entries.

        Raises
        ------
        ShapeError
            If an array has another length than its pattern.
        ArgumentError
            If an option is unknown, or a semiring meets numbers it has no order for.
        ArgumentTypeError
            If the values are no numbers, or in half precision.
        """
        threads = require_threads("SpgemmPlan.numeric", num_threads)
        if semiring not in SEMIRINGS:
            raise ArgumentError(f"SpgemmPlan.numeric: expected semiring in {', '.join(SEMIRINGS)}, got {semiring!r}")
        a, b = (
            _with_values(name, pattern, data)
            for name, pattern, data in zip(("data_a", "data_b"), self._patterns, (data_a, data_b), strict=True)
        )
        dtype = np.dtype(bool) if semiring == "or_and" else np.result_type(a.data.dtype, b.data.dtype)
        require_semiring("SpgemmPlan.numeric", semiring, dtype)
        kernels = load_kernels("SpgemmPlan.numeric")
        left, right = as_operands(a, b, dtype)
        kind = "or_and" if dtype.kind == "b" else semiring
        job = Job(left, right, self.flops, kind, "auto", threads, kernels)
        data = _twin.multiply(left, right, kind, None)[2] if kernels is None else self._gather(job)
        return write_csr(
            self.indptr, self.indices, data.view(bool) if dtype.kind == "b" else data, self.shape, self.container
        )

    def _gather(self, job: Job) -> np.ndarray:
        a, b, kernels = job.a, job.b, job.kernels
        data = np.empty(self.nnz, a.data.dtype)
        if kernels is None:
            return data
        kernel = kernels.gather[SEMIRINGS.index(job.semiring)]

        def make() -> np.ndarray:
            return np.full(self.shape[1], job.zero, a.data.dtype)

        def work(acc: np.ndarray, lo: int, hi: int) -> None:
            kernel(
                lo, hi, a.indptr, a.indices, a.data, b.indptr, b.indices, b.data,
                job.zero, acc, self.indptr, self.indices, data,
            )  # fmt: skip

        run_windows(job.windows(), job.num_threads, make, work)
        return data


def spgemm_symbolic(a: Any, b: Any, *, num_threads: int | None = None, max_bytes: int | None = None) -> SpgemmPlan:
    """Find the pattern of C = A B without multiplying any numbers.

    Parameters
    ----------
    a : scipy.sparse matrix or array, torch sparse tensor, or Sparse, shape (m, k)
        Pattern of A; its values are not read. C will come in its container.
    b : the same, shape (k, n)
        Pattern of B.
    num_threads : int, optional
        Default: `torch.get_num_threads`.
    max_bytes : int, optional
        Most memory that C may take, in the dtype of these factors. Default: no limit.

    Returns
    -------
    SpgemmPlan
        Sorted pattern, work of each row, and memory of C.

    Raises
    ------
    ArgumentTypeError
        If a factor is no sparse matrix of numbers.
    ShapeError
        If the inner dimensions differ.
    ArgumentError
        If a factor repeats entries or does not sort its rows: values given later could not be told apart.
    MemoryLimitError
        If C would take more than ``max_bytes``; said before it is allocated.

    Notes
    -----
    O(F) for F partial products: 0.6 of the product's own time on a skewed graph, 1.4 of it on a five-point stencil.
    Each `SpgemmPlan.numeric` then takes 0.6 and 0.4 of it. Memory: the pattern of C.
    """
    threads = require_threads("spgemm_symbolic", num_threads)
    if max_bytes is not None and max_bytes < 1:
        raise ArgumentError(f"spgemm_symbolic: expected max_bytes >= 1, got {max_bytes}")
    kind = container_of("spgemm_symbolic", "a", a)
    left, right = (read_csr("spgemm_symbolic", name, matrix, repair=False) for name, matrix in (("a", a), ("b", b)))
    if left.shape[1] != right.shape[0]:
        raise ShapeError(f"spgemm_symbolic: a is {left.shape}, b is {right.shape}: columns of a and rows of b differ")
    dtype = np.result_type(left.data.dtype, right.data.dtype)
    job = new_job(left, right, dtype, "plus_times", "auto", threads, load_kernels("spgemm_symbolic"))
    counts = count_entries(job)
    indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    entries = int(indptr[-1])
    nbytes = output_bytes(job, entries)
    if max_bytes is not None and nbytes > max_bytes:
        raise MemoryLimitError(
            f"spgemm_symbolic: the product has {entries} entries, {nbytes} bytes, above max_bytes={max_bytes}"
        )
    return SpgemmPlan(
        shape=(left.shape[0], right.shape[1]),
        indptr=indptr,
        indices=_columns(job, indptr),
        flops=job.flops,
        windows=job.windows(),
        nbytes_upper=output_bytes(job, job.upper),
        nbytes=nbytes,
        container=kind,
        _patterns=(left, right),
    )


def _columns(job: Job, indptr: np.ndarray) -> np.ndarray:
    a, b, kernels = job.a, job.b, job.kernels
    if kernels is None:
        return _twin.multiply(a, b, "plus_times", None)[1]
    indices = np.empty(int(indptr[-1]), index_dtype(job, int(indptr[-1])))
    packed = kernels.pack_columns(b.indptr, b.indices)

    def work(scratch: Scratch, lo: int, hi: int) -> None:
        end = kernels.pattern_rows(
            lo, hi, job.flops, a.indptr, a.indices, b.indptr, b.indices, *packed, b.shape[1], job.mode_number,
            scratch.bitmap, scratch.keys, scratch.used, indptr, indices,
        )  # fmt: skip
        require_table(end)

    run_windows(job.windows(), job.num_threads, job.scratch, work)
    return indices


def _with_values(name: str, pattern: Csr, data: Any) -> Csr:
    array = data.detach().resolve_conj().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
    if array.shape != (pattern.nnz,):
        raise ShapeError(f"SpgemmPlan.numeric: expected {name} of shape ({pattern.nnz},), got {array.shape}")
    require_numbers("SpgemmPlan.numeric", name, array.dtype)
    return Csr(pattern.indptr, pattern.indices, np.ascontiguousarray(array), pattern.shape)
