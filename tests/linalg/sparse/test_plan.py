import numpy as np
import pytest
import scipy.sparse
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, MemoryLimitError, ShapeError
from hesse.linalg.sparse import rmat, spgemm, spgemm_symbolic
from tests.linalg.sparse.cases import random_pair, same_pattern, without_numba

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("semiring", ["plus_times", "min_plus", "or_and"])
def test_new_values_on_an_old_pattern(num_threads, semiring):
    """Oracle: `spgemm` on the new values, bit for bit; the plan is used three times."""
    for seed in range(9):
        a, b = random_pair(seed)
        plan = spgemm_symbolic(a, b, num_threads=num_threads)
        rng = np.random.default_rng(seed)
        for _ in range(3):
            a.data, b.data = rng.standard_normal(a.nnz), rng.standard_normal(b.nnz)
            found = plan.numeric(a.data, b.data, num_threads=num_threads, semiring=semiring)
            expected = spgemm(a, b, semiring=semiring)
            assert found.dtype == expected.dtype
            assert same_pattern(found, expected)
            np.testing.assert_allclose(found.data, expected.data, rtol=1e-12, atol=1e-13)


def test_plan_describes_the_product():
    """Oracle: the product that was made: entries, bytes, partial products by the definition."""
    graph = rmat(8, 3000, generator=torch.Generator().manual_seed(0))
    plan, product = spgemm_symbolic(graph, graph), spgemm(graph, graph)
    assert plan.nnz == product.nnz
    assert plan.nbytes == product.data.nbytes + product.indices.nbytes + product.indptr.nbytes
    assert plan.nbytes <= plan.nbytes_upper
    lengths = np.diff(graph.indptr)
    assert plan.flops.tolist() == [int(lengths[graph[[i]].indices].sum()) for i in range(graph.shape[0])]
    assert plan.compression == pytest.approx(plan.flops.sum() / product.nnz)
    assert plan.windows[-1] == graph.shape[0]


def test_torch_in_torch_out_and_dtype_of_the_values():
    """Oracle: the dense product, for values in single precision on a pattern made in double."""
    gen = torch.Generator().manual_seed(0)
    dense = torch.randn(12, 12, dtype=torch.float64, generator=gen) * (torch.rand(12, 12, generator=gen) < 0.3)
    csr = dense.to_sparse_csr()
    found = spgemm_symbolic(csr, csr).numeric(csr.values().float(), csr.values().float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.to_dense(), dense.float() @ dense.float())


def test_without_numba_the_same_plan(monkeypatch):
    """Oracle: the compiled plan."""
    a, b = random_pair(4)
    compiled = spgemm_symbolic(a, b)
    without_numba(monkeypatch)
    with pytest.warns(UserWarning, match="needs numba"):
        plan = spgemm_symbolic(a, b)
    assert np.array_equal(plan.indptr, compiled.indptr)
    assert np.array_equal(plan.indices, compiled.indices)
    with pytest.warns(UserWarning, match="needs numba"):
        found = plan.numeric(a.data, b.data)
    np.testing.assert_allclose(found.toarray(), (a @ b).toarray(), rtol=1e-12, atol=1e-13)


def test_bad_input():
    """Oracle: the documented error."""
    a, b = random_pair(5)
    plan = spgemm_symbolic(a, b)
    with pytest.raises(ShapeError, match="data_a of shape"):
        plan.numeric(a.data[:-1], b.data)
    with pytest.raises(ArgumentTypeError, match="convert it to float32"):
        plan.numeric(a.data.astype(np.float16), b.data)
    with pytest.raises(ArgumentError, match="expected semiring in"):
        plan.numeric(a.data, b.data, semiring="max_plus")
    with pytest.raises(ArgumentError, match="num_threads >= 1"):
        plan.numeric(a.data, b.data, num_threads=0)
    with pytest.raises(ArgumentError, match="an order and a sum"):
        plan.numeric(a.data * 1j, b.data, semiring="min_plus")
    with pytest.raises(ShapeError, match="rows of b differ"):
        spgemm_symbolic(a, scipy.sparse.csr_array((a.shape[1] + 1, 2)))
    with pytest.raises(MemoryLimitError, match="above max_bytes=1"):
        spgemm_symbolic(a, b, max_bytes=1)
    with pytest.raises(ArgumentError, match="max_bytes >= 1"):
        spgemm_symbolic(a, b, max_bytes=0)
    unsorted = scipy.sparse.csr_array((np.ones(2), np.array([1, 0]), np.array([0, 2])), shape=(1, a.shape[0]))
    with pytest.raises(ArgumentError, match="not sorted, or repeat"):
        spgemm_symbolic(unsorted, a)
