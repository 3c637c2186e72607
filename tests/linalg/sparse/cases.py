"""Random sparse matrices with what makes products go wrong: empty rows and columns, zeros stored, entries repeated."""

import sys

import numpy as np
import pytest
import scipy.sparse


def random_pair(seed: int, dtype: type = np.float64) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Two rectangles that fit each other; every third seed has a wide B, every fourth stored zeros."""
    rng = np.random.default_rng(seed)
    m, k = rng.integers(1, 50, 2)
    n = int(rng.integers(600, 3000)) if seed % 3 == 0 else int(rng.integers(1, 80))
    left, right = (random_csr(rng, shape, rng.uniform(0, 0.3), dtype) for shape in ((m, k), (k, n)))
    if seed % 4 == 0:
        for side in (left, right):
            side.data[rng.random(side.nnz) < 0.2] = 0
    return left, right


def random_csr(
    rng: np.random.Generator, shape: tuple[int, int], density: float, dtype: type = np.float64
) -> scipy.sparse.csr_array:
    """Entries at random places, a tenth of rows and columns emptied, in sorted CSR form."""
    hit = rng.random(shape) < density
    hit[rng.random(shape[0]) < 0.1] = False
    hit[:, rng.random(shape[1]) < 0.1] = False
    rows, columns = np.nonzero(hit)
    values = rng.standard_normal(len(rows)) * (10 if np.issubdtype(dtype, np.integer) else 1)
    if np.issubdtype(dtype, np.complexfloating):
        values = values + 1j * rng.standard_normal(len(rows))
    matrix = scipy.sparse.coo_array((values.astype(dtype), (rows, columns)), shape=shape).tocsr()
    matrix.sort_indices()
    return matrix


def same_pattern(found: scipy.sparse.csr_array, expected: scipy.sparse.csr_array) -> bool:
    """Whether row pointers and sorted columns agree."""
    expected = expected.copy()
    expected.sort_indices()
    return np.array_equal(found.indptr, expected.indptr) and np.array_equal(found.indices, expected.indices)


def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make numba look as if it were not installed."""
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr("hesse._optional.importlib.import_module", _refuse)


def _refuse(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
