"""The sparse product in NumPy alone: expand all partial products, sort them, reduce equal places.

It needs memory for every partial product, which the compiled loops do not; it is what they are tested against, and
what runs where numba is not installed and SciPy has no such product.
"""

import numpy as np

from hesse.linalg.sparse._csr import Csr

__all__ = ["expand", "gradient", "masked", "multiply", "probe_windows"]

_GOLDEN = 0x9E3779B97F4A7C15


def expand(a: Csr, b: Csr) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every partial product in the order of A's entries.

    Parameters
    ----------
    a, b : Csr
        The factors, (m, k) and (k, n).

    Returns
    -------
    row, entry_a, entry_b : numpy arrays of int64, shape (F,)
        Output row, and which entries of A and of B meet.
    """
    lengths = b.row_lengths()[a.indices]
    entry_a = np.repeat(np.arange(a.nnz), lengths)
    starts = b.indptr[a.indices] - (np.cumsum(lengths) - lengths)
    entry_b = np.arange(len(entry_a)) + np.repeat(starts, lengths)
    row = np.repeat(np.arange(a.shape[0]), a.row_lengths())[entry_a]
    return row, entry_a, entry_b


def multiply(a: Csr, b: Csr, semiring: str, drop: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Multiply by sorting; a and b hold values of the product's dtype.

    Parameters
    ----------
    a, b : Csr
        The factors.
    semiring : {"plus_times", "min_plus", "or_and"}
        What stands for + and ·.
    drop : float or None
        Entries of at most this size are left out.

    Returns
    -------
    indptr, indices, data : numpy arrays
        The product, rows sorted.
    """
    row, entry_a, entry_b = expand(a, b)
    column = b.indices[entry_b].astype(np.int64)
    left, right = a.data[entry_a], b.data[entry_b]
    place = row * b.shape[1] + column
    order = np.argsort(place, kind="stable")
    first = np.flatnonzero(np.diff(place[order], prepend=-1))
    if semiring == "plus_times":
        data = np.add.reduceat((left * right)[order], first, dtype=a.data.dtype) if len(first) else left
    elif semiring == "min_plus":
        data = np.minimum.reduceat((left + right)[order], first) if len(first) else left
    else:
        data = np.bitwise_or.reduceat((left & right)[order], first) if len(first) else left
    row, column = row[order][first], column[order][first]
    if drop is not None:
        keep = ~(np.abs(data) <= drop)
        row, column, data = row[keep], column[keep], data[keep]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=a.shape[0]))]).astype(np.int64)
    return indptr, column.astype(b.indices.dtype), data


def masked(a: Csr, b: Csr, mask: Csr, semiring: str, drop: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Multiply, then keep what the mask covers, times the mask's values for ``plus_times``.

    Parameters
    ----------
    a, b, mask : Csr
        The factors, and the matrix of places to keep.
    semiring : str
        As in `multiply`.
    drop : float or None
        As in `multiply`, after the mask.

    Returns
    -------
    indptr, indices, data : numpy arrays
        The product, rows sorted.
    """
    n = b.shape[1]
    indptr, indices, data = multiply(a, b, semiring, None)
    row = np.repeat(np.arange(a.shape[0]), np.diff(indptr))
    place = row * n + indices
    places = np.repeat(np.arange(a.shape[0]), mask.row_lengths()) * n + mask.indices
    _, own, at = np.intersect1d(place, places, assume_unique=True, return_indices=True)
    row, indices, data = row[own], indices[own], data[own]
    if semiring == "plus_times":
        data = data * mask.data[at]
    if drop is not None:
        keep = ~(np.abs(data) <= drop)
        row, indices, data = row[keep], indices[keep], data[keep]
    return np.concatenate([[0], np.cumsum(np.bincount(row, minlength=a.shape[0]))]).astype(np.int64), indices, data


def gradient(
    a: Csr, b: Csr, indptr: np.ndarray, indices: np.ndarray, grad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(G Bᴴ) on A's pattern and (Aᴴ G) on B's, with G on the product's pattern.

    Parameters
    ----------
    a, b : Csr
        The factors.
    indptr, indices : numpy arrays
        Pattern of the product.
    grad : numpy array, shape (nnz(C),)
        G.

    Returns
    -------
    grad_a, grad_b : numpy arrays
        Shapes (nnz(A),) and (nnz(B),).
    """
    n = b.shape[1]
    row, entry_a, entry_b = expand(a, b)
    places = np.repeat(np.arange(a.shape[0]), np.diff(indptr)) * n + indices
    place = row * n + b.indices[entry_b]
    at = np.minimum(np.searchsorted(places, place), max(len(places) - 1, 0))
    g = np.where(places[at] == place, grad[at], 0) if len(places) else np.zeros(len(place), grad.dtype)
    grad_a, grad_b = np.zeros_like(a.data), np.zeros_like(b.data)
    np.add.at(grad_a, entry_a, g * np.conj(b.data[entry_b]))
    np.add.at(grad_b, entry_b, g * np.conj(a.data[entry_a]))
    return grad_a, grad_b


def probe_windows(
    windows: np.ndarray, a: Csr, b: Csr, sizes: np.ndarray, kind: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Insert one tag after the other into a Python list: the definition that the compiled count is held to.

    Parameters
    ----------
    windows : numpy array of int64, shape (W + 1,)
        First row of each window, and the end.
    a, b : Csr
        The factors.
    sizes : numpy array of int64, shape (W,)
        Slots of each window's table, powers of two.
    kind : int
        0 low bits, 1 high bits, 2 multiplicative.

    Returns
    -------
    entry_probes, probes, longest, claims : numpy arrays of int64
        Slots looked at for each entry of A, shape (nnz(A),); and for each window: in all, at most for one insertion,
        and tags that found an empty slot.
    """
    n, count = b.shape[1], len(sizes)
    entry_probes = np.zeros(a.nnz, np.int64)
    probes, longest, claims = (np.zeros(count, np.int64) for _ in range(3))
    for w in range(count):
        lo, hi, size = int(windows[w]), int(windows[w + 1]), int(sizes[w])
        bits = size.bit_length() - 1
        shift = max((max((hi - lo) * n, 1) - 1).bit_length() - bits, 0)
        table: list[int | None] = [None] * size
        for i in range(lo, hi):
            for p in range(int(a.indptr[i]), int(a.indptr[i + 1])):
                k = a.indices[p]
                for column in b.indices[b.indptr[k] : b.indptr[k + 1]].tolist():
                    tag = (i - lo) * n + column
                    slot = (tag % size, tag >> shift, (tag * _GOLDEN % 2**64) >> (64 - bits))[kind]
                    seen = 1
                    while table[slot] is not None and table[slot] != tag:
                        slot, seen = (slot + 1) % size, seen + 1
                    claims[w] += table[slot] is None
                    table[slot] = tag
                    entry_probes[p] += seen
                    longest[w] = max(longest[w], seen)
                probes[w] += entry_probes[p]
    return entry_probes, probes, longest, claims
