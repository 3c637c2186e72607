"""Windows of consecutive rows, handed to threads from a queue; each thread owns its scratch memory."""

import importlib
import itertools
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np

from hesse._optional import require
from hesse.errors import MissingDependencyError
from hesse.linalg.sparse._csr import Csr

__all__ = [
    "WINDOW_FLOPS",
    "Scratch",
    "available_bytes",
    "cut_windows",
    "load_kernels",
    "row_flops",
    "run_windows",
    "window_limit",
]

WINDOW_FLOPS = 1 << 20
WINDOWS_PER_THREAD = 8  # enough for the last ones to even out, few enough for the queue to cost nothing


def load_kernels(call: str) -> ModuleType | None:
    """Load the compiled loops; without numba, say so once and return None.

    Parameters
    ----------
    call : str
        The function, for the message.

    Returns
    -------
    ModuleType or None
        The module of kernels.
    """
    try:
        require("numba", extra="fast", feature=call)
    except MissingDependencyError as error:
        warnings.warn(f"{error}; until then SciPy and NumPy do the work, several times slower", stacklevel=3)
        return None
    return importlib.import_module("hesse.linalg.sparse._kernels")


def row_flops(a: Csr, b: Csr) -> np.ndarray:
    """Count the partial products of each output row: the symbolic pass that merges no columns.

    Parameters
    ----------
    a, b : Csr
        The factors.

    Returns
    -------
    numpy array of int64, shape (m,)
        An upper bound on the row's entries. O(nnz(A)).
    """
    total = np.concatenate([[0], np.cumsum(b.row_lengths()[a.indices], dtype=np.int64)])
    return np.diff(total[a.indptr])


def cut_windows(flops: np.ndarray, limit: int) -> np.ndarray:
    """Cut the rows into windows of at most ``limit`` partial products; a heavier row has a window of its own.

    Parameters
    ----------
    flops : numpy array of int64, shape (m,)
        From `row_flops`.
    limit : int
        Budget of a window.

    Returns
    -------
    numpy array of int64, shape (W + 1,)
        First row of each window, and m.
    """
    total = np.cumsum(flops)
    bounds, done, m = [0], 0, len(flops)
    while bounds[-1] < m:
        stop = max(int(np.searchsorted(total, done + limit, side="right")), bounds[-1] + 1)
        bounds.append(stop)
        done = int(total[stop - 1])
    return np.array(bounds, dtype=np.int64)


def window_limit(flops: np.ndarray, num_threads: int) -> int:
    """Budget of a window that leaves every thread several of them.

    Parameters
    ----------
    flops : numpy array of int64, shape (m,)
        From `row_flops`.
    num_threads : int
        Threads that will share them.

    Returns
    -------
    int
        2^20 partial products, or fewer for a small product.
    """
    if num_threads == 1:
        return WINDOW_FLOPS
    return max(1, min(WINDOW_FLOPS, int(flops.sum()) // (WINDOWS_PER_THREAD * num_threads)))


class Scratch:
    """Memory of one thread, made on its first window and used for all of them.

    Parameters
    ----------
    n : int
        Columns of the product.
    dtype : numpy.dtype
        Of the sums.
    zero : scalar
        Neutral element of the semiring's addition; every sum starts there.
    table : int
        Slots of the hash table.
    longest_row : int
        Entries of A's longest row.
    """

    __slots__ = ("acc", "bitmap", "cursor", "keys", "sums", "used")

    def __init__(self, n: int, dtype: np.dtype, zero: Any, table: int, longest_row: int) -> None:
        self.acc = np.full(max(n, 1), zero, dtype)
        self.bitmap = np.zeros((n + 63) // 64, np.uint64)
        self.keys = np.full(table, -1, np.int64)
        self.used = np.empty(table, np.int64)
        self.sums = np.empty(table, dtype)
        self.cursor = np.empty(longest_row, np.int64)


def run_windows(
    windows: np.ndarray, num_threads: int, make: Callable[[], Any], work: Callable[[Any, int, int], Any]
) -> list[Any]:
    """Work through all windows, every thread taking the next one as it becomes idle.

    Parameters
    ----------
    windows : numpy array of int64, shape (W + 1,)
        From `cut_windows`.
    num_threads : int
        Threads at most; one means the caller's own.
    make : callable
        Builds a thread's scratch.
    work : callable
        Given the scratch, a window's first row and its end.

    Returns
    -------
    list
        What ``make`` gave each thread, for results that were collected there.
    """
    count = len(windows) - 1
    tokens = itertools.count()  # next() on it is atomic

    def worker(_index: int) -> Any:
        scratch = make()
        for w in itertools.takewhile(lambda w: w < count, tokens):
            work(scratch, int(windows[w]), int(windows[w + 1]))
        return scratch

    threads = max(1, min(num_threads, count))
    if threads == 1:
        return [worker(0)]
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(worker, index) for index in range(1, threads)]
        own = worker(0)
        return [own, *(other.result() for other in others)]


def available_bytes() -> int:
    """Free memory of the machine, or 2 GiB where the system does not tell.

    Returns
    -------
    int
        Bytes.
    """
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" not in names:
        return 2 << 30
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
