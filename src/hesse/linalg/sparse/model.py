"""Exact counts of what a sparse product reads, writes and hashes under each dataflow, without the machine of the paper.

Counts, not times: every figure comes from the two patterns alone.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.sparse import _twin
from hesse.linalg.sparse._csr import Csr, read_csr
from hesse.linalg.sparse._multiply import Job, count_entries, new_job
from hesse.linalg.sparse._windows import WINDOW_FLOPS, cut_windows, load_kernels
from hesse.linalg.sparse.product import require_threads

__all__ = ["Dataflow", "HashKind", "Schedule", "SpgemmCounts", "WindowCounts", "spgemm_model"]

Dataflow = Literal["inner", "outer", "row_wise"]
"""The order of the three loops."""

HashKind = Literal["high", "low", "multiplicative"]
"""Which bits of a tag choose its slot."""

_KINDS = ("low", "high", "multiplicative")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A product laid out on parallel threads, in units of one looked-at slot."""

    makespan: int  # when the last thread ends
    ideal: float  # all work over the number of threads
    transfer_time: float  # the same product's traffic over the memory's speed
    time: float  # hashing and transfers: their sum, or the longer one where they overlap

    @property
    def imbalance(self) -> float:
        """Makespan over ideal; 1 is perfect."""
        return self.makespan / self.ideal if self.ideal else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class WindowCounts:
    """What the hash tables of a row-wise product meet.   Shapes: W windows of consecutive rows."""

    rows: np.ndarray  # (W + 1,): first row of each window, and the number of rows
    flops: np.ndarray  # (W,): insertions
    table_size: np.ndarray  # (W,): slots, a power of two
    probes: np.ndarray  # (W,): slots looked at, each by one compare-and-swap
    longest_probe: np.ndarray  # (W,): most slots looked at for one insertion
    claims: np.ndarray  # (W,): compare-and-swaps that found an empty slot: entries of the product
    entry_probes: np.ndarray  # (nnz(A),): slots looked at for each entry of A, a token

    @property
    def fetch_adds(self) -> np.ndarray:
        """Insertions that met their own tag and added to it, shape (W,)."""
        return self.flops - self.claims

    @property
    def load_factor(self) -> np.ndarray:
        """Share of the slots taken at the window's end, shape (W,)."""
        return self.claims / self.table_size

    @property
    def probes_per_insertion(self) -> float:
        """Mean over all insertions; at least 1, and 1 for a product without any."""
        return float(self.probes.sum() / self.flops.sum()) if self.flops.sum() else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class SpgemmCounts:
    """Traffic of one product under one dataflow, in numbers (an index and a value each).   F partial products."""

    dataflow: Dataflow
    shape: tuple[int, int, int]  # (m, k, n)
    flops: int  # F
    input_reads: int
    partial_writes: int  # partial products that leave the chip
    partial_reads: int
    output_writes: int  # nnz(C)
    bytes_per_number: int
    windows: WindowCounts | None  # row-wise only
    _lengths: tuple[np.ndarray, np.ndarray]  # entries of A's rows; entries of B's row for each entry of A

    @property
    def total(self) -> int:
        """All numbers moved."""
        return self.input_reads + self.partial_writes + self.partial_reads + self.output_writes

    @property
    def total_bytes(self) -> int:
        """All bytes moved."""
        return self.total * self.bytes_per_number

    def table(self) -> str:
        """Write the counts as text.

        Returns
        -------
        str
            One line a kind of traffic, in numbers and bytes, then the hash tables' figures if there are any.
        """
        rows = [
            ("input reads", self.input_reads),
            ("partial products written", self.partial_writes),
            ("partial products read", self.partial_reads),
            ("output writes", self.output_writes),
            ("total", self.total),
        ]
        m, k, n = self.shape
        lines = [
            f"{self.dataflow}, ({m}, {k}) by ({k}, {n}), {self.flops:,} partial products",
            f"{'':<26}{'numbers':>18}{'bytes':>20}",
            *(f"{name:<26}{count:>18,}{count * self.bytes_per_number:>20,}" for name, count in rows),
        ]
        if self.windows is not None:
            w = self.windows
            fullest = float(w.load_factor.max()) if len(w.flops) else 0.0
            longest = int(w.longest_probe.max()) if len(w.flops) else 0
            lines += [
                f"{len(w.flops):,} windows, fullest table {fullest:.2f}",
                f"probes an insertion: {w.probes_per_insertion:.2f} in the mean, {longest:,} at most",
                f"compare-and-swaps {int(w.probes.sum()):,}, fetch-adds {int(w.fetch_adds.sum()):,}",
            ]
        return "\n".join(lines)

    def schedule(
        self,
        num_threads: int = 64,
        *,
        tokens: bool = True,
        overlap: bool = True,
        token_size: int = 1024,
        bytes_per_unit: float = float("inf"),
    ) -> Schedule:
        """Lay the insertions out on threads; one unit of time is one looked-at slot.

        Parameters
        ----------
        num_threads : int, default 64
            Threads of the modelled machine: a PIUMA block.
        tokens : bool, default True
            Idle threads take the next scaled row of B, from a queue (the paper's second version). False: every thread
            has an equal share of consecutive rows of A (the first).
        overlap : bool, default True
            Transfers run while the next window is hashed (the third version), so that the longer of the two counts.
            False: one after the other.
        token_size : int, default 1024
            Longest token; a longer row of B is cut, which keeps one row from deciding the end.
        bytes_per_unit : float, default inf
            Bytes that the memory moves in one unit of time. Default: transfers cost nothing.

        Returns
        -------
        Schedule
            Without barriers between windows: a thread goes on to the next window when it finds no more tokens.

        Raises
        ------
        ArgumentError
            If the dataflow has no tables, or a number is not positive.
        """
        if self.windows is None:
            raise ArgumentError(f"SpgemmCounts.schedule: only row_wise products have hash tables, not {self.dataflow}")
        if num_threads < 1 or token_size < 1 or not bytes_per_unit > 0:
            raise ArgumentError(
                "SpgemmCounts.schedule: expected num_threads, token_size and bytes_per_unit above zero, "
                f"got {num_threads}, {token_size} and {bytes_per_unit}"
            )
        probes = self.windows.entry_probes
        row_lengths, lengths = self._lengths
        if tokens:
            makespan = _list_schedule(_cut_tokens(probes, lengths, token_size), num_threads)
        else:
            row_starts = np.concatenate([[0], np.cumsum(row_lengths)])
            bounds = np.linspace(0, self.shape[0], num_threads + 1).round().astype(np.int64)
            done = np.concatenate([[0], np.cumsum(probes)])[row_starts[bounds]]  # probes before each thread's rows
            makespan = int(np.diff(done).max())
        transfer = self.total_bytes / bytes_per_unit
        time = max(makespan, transfer) if overlap else makespan + transfer
        return Schedule(makespan, float(probes.sum()) / num_threads, transfer, float(time))


def _cut_tokens(probes: np.ndarray, lengths: np.ndarray, token_size: int) -> np.ndarray:
    # a row of B in equal pieces; the probes go with them in equal parts, the remainder to the first
    pieces = np.maximum(-(-lengths // token_size), 1)
    base = np.repeat(probes // pieces, pieces)
    starts = np.cumsum(pieces) - pieces
    base[starts] += probes - (probes // pieces) * pieces
    return base


def _list_schedule(work: np.ndarray, num_threads: int) -> int:
    ends = [0] * num_threads
    for units in work.tolist():
        heapq.heapreplace(ends, ends[0] + units)
    return max(ends)


def spgemm_model(
    a: Any,
    b: Any,
    dataflow: Dataflow = "row_wise",
    *,
    skip_empty: bool = False,
    cache_numbers: int | None = None,
    window_flops: int = WINDOW_FLOPS,
    hash_kind: HashKind = "multiplicative",
    index_bytes: int = 4,
    value_bytes: int = 8,
    num_threads: int | None = None,
) -> SpgemmCounts:
    """Count what C = A B moves and hashes under a dataflow; nothing is multiplied.

    Inner products read every row of A for every column of B and the reverse, N·nnz(A) + M·nnz(B) numbers, and write C
    once. Outer products read each input once, write all F partial products and read them back. Row by row, A is read
    once and the rows of B come F numbers in all; the partial products meet in tables on the chip.

    Parameters
    ----------
    a : scipy.sparse matrix or array, torch sparse tensor, or Sparse, shape (m, k)
        Pattern of A.
    b : the same, shape (k, n)
        Pattern of B.
    dataflow : {"row_wise", "outer", "inner"}, default "row_wise"
        Order of the loops.
    skip_empty : bool, default False
        Inner products only: leave out pairs with an empty row of A or an empty column of B.
    cache_numbers : int, optional
        Row-wise only: numbers that a cache for rows of B holds, the least recently used row going first; a longer row
        is never kept. Default: no cache.
    window_flops : int, default 2^20
        Row-wise only: insertions a window at most; a heavier row has a window of its own.
    hash_kind : {"multiplicative", "low", "high"}, default "multiplicative"
        Row-wise only: slot from the bits of tag = row in the window · n + column. "high" keeps the table nearly in
        order (the paper's first version), "low" spreads neighbours (its second), "multiplicative" is what `spgemm`
        uses.
    index_bytes : int, default 4
        Bytes of an index.
    value_bytes : int, default 8
        Bytes of a value.
    num_threads : int, optional
        Threads that count here. Default: `torch.get_num_threads`.

    Returns
    -------
    SpgemmCounts
        With ``.table()`` and ``.schedule()``.

    Raises
    ------
    ArgumentError
        If an option is unknown or not positive.
    ShapeError
        If the inner dimensions differ.

    Notes
    -----
    Tables have the smallest power of two of slots that is at least twice the window's insertions, so their load never
    passes one half. Insertions are simulated one by one in their order on one thread, O(probes). Without numba they run
    in Python, a thousand times slower.

    References
    ----------
    K. Shivdikar (2021), arXiv:2105.14156. Names and meaning of its versions are reconstructed, not quoted.
    """
    if dataflow not in ("inner", "outer", "row_wise"):
        raise ArgumentError(f"spgemm_model: expected dataflow inner, outer or row_wise, got {dataflow!r}")
    if hash_kind not in _KINDS:
        raise ArgumentError(f"spgemm_model: expected hash_kind in {', '.join(_KINDS)}, got {hash_kind!r}")
    sizes = {"window_flops": window_flops, "index_bytes": index_bytes, "value_bytes": value_bytes}
    for name, value in (sizes | {"cache_numbers": 1 if cache_numbers is None else cache_numbers}).items():
        if value < 1:
            raise ArgumentError(f"spgemm_model: expected {name} >= 1, got {value}")
    left, right = read_csr("spgemm_model", "a", a), read_csr("spgemm_model", "b", b)
    if left.shape[1] != right.shape[0]:
        raise ShapeError(f"spgemm_model: a is {left.shape}, b is {right.shape}: columns of a and rows of b differ")
    threads = require_threads("spgemm_model", num_threads)
    job = new_job(left, right, np.dtype(np.float32), "plus_times", "auto", threads, load_kernels("spgemm_model"))
    total, outputs = int(job.flops.sum()), int(count_entries(job).sum())
    partial, windows = 0, None
    if dataflow == "inner":
        reads = _inner_reads(left, right, skip_empty)
    elif dataflow == "outer":
        reads, partial = left.nnz + right.nnz, total
    else:
        reads = left.nnz + (total if cache_numbers is None else _cached_reads(left, right, cache_numbers))
        windows = _simulate(job, window_flops, hash_kind)
    return SpgemmCounts(
        dataflow=dataflow,
        shape=(*left.shape, right.shape[1]),
        flops=total,
        input_reads=reads,
        partial_writes=partial,
        partial_reads=partial,
        output_writes=outputs,
        bytes_per_number=index_bytes + value_bytes,
        windows=windows,
        _lengths=(left.row_lengths(), right.row_lengths()[left.indices]),
    )


def _inner_reads(a: Csr, b: Csr, skip_empty: bool) -> int:
    rows, columns = a.shape[0], b.shape[1]
    if skip_empty:
        rows, columns = int((a.row_lengths() > 0).sum()), len(np.unique(b.indices))
    return columns * a.nnz + rows * b.nnz


def _cached_reads(a: Csr, b: Csr, capacity: int) -> int:
    lengths = b.row_lengths().tolist()
    held: OrderedDict[int, int] = OrderedDict()
    room, reads = capacity, 0
    for k in cast(Iterable[int], a.indices.tolist()):
        if k in held:
            held.move_to_end(k)
            continue
        need = lengths[k]
        reads += need
        if need > capacity:
            continue
        while room < need:
            room += held.popitem(last=False)[1]
        held[k] = need
        room -= need
    return reads


def _simulate(job: Job, window_flops: int, hash_kind: HashKind) -> WindowCounts:
    a, b, kernels = job.a, job.b, job.kernels
    rows = cut_windows(job.flops, window_flops)
    flops = np.diff(np.concatenate([[0], np.cumsum(job.flops)])[rows])
    sizes = np.array([1 << max(2 * int(f) - 1, 1).bit_length() for f in flops], dtype=np.int64)
    kind = _KINDS.index(hash_kind)
    if kernels is None:
        entry_probes, probes, longest, claims = _twin.probe_windows(rows, a, b, sizes, kind)
    else:
        entry_probes = np.zeros(a.nnz, np.int64)
        probes, longest, claims = (np.zeros(len(flops), np.int64) for _ in range(3))
        keys = np.full(int(sizes.max()) if len(sizes) else 0, -1, np.int64)
        kernels.probe_windows(
            rows, a.indptr, a.indices, b.indptr, b.indices, b.shape[1], sizes, kind, keys,
            entry_probes, probes, longest, claims,
        )  # fmt: skip
    return WindowCounts(rows, flops, sizes, probes, longest, claims, entry_probes)
