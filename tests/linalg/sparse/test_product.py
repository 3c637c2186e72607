from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
import torch

from hesse.errors import (
    ArgumentError,
    ArgumentTypeError,
    MemoryLimitError,
    MissingDependencyError,
    NumericalError,
    ShapeError,
)
from hesse.linalg import Sparse
from hesse.linalg.sparse import _multiply, _twin, rmat, spgemm
from hesse.linalg.sparse._csr import read_csr
from hesse.linalg.sparse._multiply import new_job, require_table
from hesse.linalg.sparse._windows import cut_windows, load_kernels, row_flops
from tests.linalg.sparse.cases import random_csr, random_pair, same_pattern, without_numba

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")


@pytest.mark.parametrize("block", range(8))
@pytest.mark.parametrize("accumulator", ["auto", "bitmap", "hash"])
def test_two_hundred_rectangles_match_scipy(block, accumulator):
    """Oracle: SciPy's product, and the product of the two patterns; 25 pairs a block, one and two threads."""
    for seed in range(25 * block, 25 * block + 25):
        a, b = random_pair(seed)
        expected = a @ b
        ones = [scipy.sparse.csr_array((np.ones(x.nnz), x.indices, x.indptr), shape=x.shape) for x in (a, b)]
        pattern = ones[0] @ ones[1]
        found = spgemm(a, b, accumulator=accumulator, num_threads=1 + seed % 2)
        assert same_pattern(found, pattern)
        scale = (abs(a) @ abs(b)).toarray()  # rounding is relative to the sum of magnitudes, not to what cancels
        assert bool((np.abs(found.toarray() - expected.toarray()) <= 1e-12 * scale).all())


@pytest.mark.parametrize(
    "dtype", [np.float32, np.int32, np.int64, np.int8, np.uint8, np.complex64, np.complex128, bool]
)
@pytest.mark.parametrize("accumulator", ["bitmap", "hash"])
def test_dtypes_match_scipy(dtype, accumulator):
    """Oracle: SciPy in the same dtype; integers wrap alike, truth values stay truth values."""
    for seed in range(6):
        a, b = random_pair(seed, dtype)
        expected = a @ b
        found = spgemm(a, b, accumulator=accumulator, num_threads=1)
        assert found.dtype == expected.dtype == dtype
        loose = 1e-5 if np.dtype(dtype).itemsize <= 8 and np.dtype(dtype).kind in "fc" else 1e-12
        np.testing.assert_allclose(found.toarray(), expected.toarray(), rtol=loose, atol=10 * loose)


def test_mixed_dtypes_promote():
    """Oracle: numpy.result_type, and SciPy's values."""
    a, _ = random_pair(1, np.int32)
    _, b = random_pair(1, np.float32)
    found = spgemm(a, b)
    assert found.dtype == np.result_type(np.int32, np.float32)
    np.testing.assert_allclose(found.toarray(), a.toarray() @ b.toarray().astype(np.float64), rtol=1e-12)


@pytest.mark.parametrize("accumulator", ["auto", "bitmap", "hash"])
def test_unsorted_and_repeated_entries(accumulator):
    """Oracle: the dense product; SciPy sums repeated entries, and so do we. The arguments are left as they were."""
    rng = np.random.default_rng(3)
    rows, columns = rng.integers(0, 30, (2, 400))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=30))])
    messy = scipy.sparse.csr_array((rng.standard_normal(400), columns, starts), shape=(30, 30))
    before = messy.data.copy(), messy.indices.copy()
    found = spgemm(messy, messy, accumulator=accumulator)
    np.testing.assert_allclose(found.toarray(), messy.toarray() @ messy.toarray(), rtol=1e-12, atol=1e-13)
    assert found.has_canonical_format
    assert np.array_equal(messy.data, before[0])
    assert np.array_equal(messy.indices, before[1])


@pytest.mark.parametrize(
    "shapes", [((0, 4), (4, 3)), ((4, 0), (0, 3)), ((4, 3), (3, 0)), ((0, 0), (0, 0)), ((1, 1), (1, 1))]
)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_empty_sides(shapes, num_threads):
    """Oracle: SciPy. No rows, no columns, nothing in between, nothing stored."""
    a, b = (scipy.sparse.csr_array(shape) for shape in shapes)
    found = spgemm(a, b, num_threads=num_threads)
    assert found.shape == (a @ b).shape
    assert found.nnz == 0


def test_wide_product_goes_block_by_block():
    """Oracle: SciPy, on 200,000 columns: heavy rows in column blocks, light ones hashed, single ones copied."""
    rng = np.random.default_rng(0)
    n, heavy = 200_003, 12
    lengths = np.r_[np.full(heavy, 9000), np.full(40, 3), 0]
    columns = np.concatenate([np.sort(rng.choice(n, size, replace=False)) for size in lengths])
    b = scipy.sparse.csr_array(
        (rng.standard_normal(len(columns)), columns, np.r_[0, np.cumsum(lengths)]), shape=(len(lengths), n)
    )
    a = random_csr(rng, (20, len(lengths)), 0.3)
    a = scipy.sparse.vstack([a, scipy.sparse.eye_array(len(lengths), format="csr")], format="csr")
    expected = a @ b
    expected.sort_indices()
    for threads in (1, 2):
        found = spgemm(a, b, num_threads=threads)
        assert same_pattern(found, expected)
        np.testing.assert_allclose(found.data, expected.data, rtol=1e-12, atol=1e-13)


def test_cancellation_and_stored_zeros_stay_entries():
    """Oracle: the definition; 1 - 1 and 0 · 5 are places with partial products."""
    a = scipy.sparse.csr_array((np.array([1.0, 1.0, 0.0]), [0, 1, 2], [0, 2, 3]), shape=(2, 3))
    b = scipy.sparse.csr_array(np.array([[1.0, 2.0], [-1.0, 0.0], [5.0, 0.0]]))
    found = spgemm(a, b)
    assert found.nnz == 3
    assert found.toarray().tolist() == [[0.0, 2.0], [0.0, 0.0]]


def test_nan_and_infinity_propagate():
    """Oracle: the dense product where every entry is stored."""
    full = np.array([[np.nan, 1.0], [2.0, np.inf]])
    stored = scipy.sparse.csr_array(full)
    with np.errstate(invalid="ignore"):  # whether NumPy's product warns of NaN depends on the library below it
        expected = full @ full
    np.testing.assert_array_equal(spgemm(stored, stored).toarray(), expected)
    tropical = spgemm(stored, stored, semiring="min_plus").toarray()
    expected = np.min(full[:, :, None] + full[None], axis=1)
    np.testing.assert_array_equal(tropical, expected)


@pytest.mark.parametrize("semiring", ["plus_times", "min_plus", "or_and"])
@pytest.mark.parametrize("accumulator", ["auto", "bitmap", "hash"])
@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_semirings_match_the_numpy_twin(semiring, accumulator, dtype):
    """Oracle: expand, sort and reduce in NumPy; for min_plus and or_and also a dense loop."""
    for seed in range(12):
        a, b = random_pair(seed, dtype)
        found = spgemm(a, b, semiring=semiring, accumulator=accumulator, num_threads=1 + seed % 2)
        left, right = read_csr("t", "a", a), read_csr("t", "b", b)
        job = new_job(
            left, right, np.dtype(bool) if semiring == "or_and" else np.dtype(dtype), semiring, "auto", 1, None
        )
        indptr, indices, data = _twin.multiply(job.a, job.b, semiring, None)
        assert np.array_equal(found.indptr, indptr)
        assert np.array_equal(found.indices, indices)
        np.testing.assert_allclose(found.data.astype(float), data.astype(float), rtol=1e-12, atol=1e-12)
        if semiring == "or_and":
            dense = (a.toarray() != 0).astype(int) @ (b.toarray() != 0).astype(int) > 0
            assert np.array_equal(found.toarray(), dense)


def test_min_plus_is_two_hops_of_shortest_path():
    """Oracle: a loop over the middle vertex."""
    a, _ = random_pair(5)
    a = random_csr(np.random.default_rng(8), (25, 25), 0.2)
    a.data[:] = np.abs(a.data)
    dense = np.full(a.shape, np.inf)
    rows = np.repeat(np.arange(25), np.diff(a.indptr))
    dense[rows, a.indices] = a.data
    expected = np.min(dense[:, :, None] + dense[None], axis=1)
    found = spgemm(a, a, semiring="min_plus")
    out = np.full(a.shape, np.inf)
    out[np.repeat(np.arange(25), np.diff(found.indptr)), found.indices] = found.data
    np.testing.assert_allclose(out, expected, rtol=1e-15)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("drop", [None, 0.5])
def test_mask_is_the_product_at_its_places(num_threads, drop):
    """Oracle: SciPy's product times the mask, entry by entry; and the NumPy twin's pattern."""
    for seed in range(12):
        a, b = random_pair(seed)
        cover = random_csr(np.random.default_rng(seed + 100), (a.shape[0], b.shape[1]), 0.2)
        found = spgemm(a, b, mask=cover, drop_tol=drop, num_threads=num_threads)
        dense = (a @ b).multiply(cover).toarray()
        if drop is not None:
            dense[np.abs(dense) <= drop] = 0
        np.testing.assert_allclose(found.toarray(), dense, rtol=1e-12, atol=1e-13)
        left, right, mask = (read_csr("t", "x", x) for x in (a, b, cover))
        twin = _twin.masked(left, right, mask, "plus_times", drop)
        assert np.array_equal(found.indptr, twin[0])
        assert np.array_equal(found.indices, twin[1])


def test_mask_counts_triangles():
    """Oracle: trace(A³) of the dense adjacency matrix: six times the number of triangles."""
    hit = random_csr(np.random.default_rng(2), (40, 40), 0.2).toarray() != 0
    graph = scipy.sparse.csr_array(np.triu(hit, 1) | np.triu(hit, 1).T).astype(np.int64)
    triangles = spgemm(graph, graph, mask=graph).sum()
    assert triangles == np.trace(np.linalg.matrix_power(graph.toarray(), 3))
    assert triangles > 0


@pytest.mark.parametrize("accumulator", ["bitmap", "hash"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_drop_tolerance(accumulator, num_threads):
    """Oracle: SciPy's product with the small entries taken out afterwards; many windows, so gaps are closed."""
    graph = rmat(9, 6000, generator=torch.Generator().manual_seed(0))
    expected = (graph @ graph).tocsr()
    expected.data[np.abs(expected.data) <= 0.7] = 0
    expected.eliminate_zeros()
    found = spgemm(graph, graph, drop_tol=0.7, accumulator=accumulator, num_threads=num_threads)
    assert same_pattern(found, expected)
    expected.sort_indices()
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-12)


def test_threads_do_not_change_a_bit():
    """Oracle: invariance; each row is summed in the same order whoever sums it."""
    graph = rmat(9, 5000, generator=torch.Generator().manual_seed(1))
    runs = [spgemm(graph, graph, num_threads=t) for t in (1, 2, 5)]
    for run in runs[1:]:
        assert np.array_equal(run.indptr, runs[0].indptr)
        assert np.array_equal(run.indices, runs[0].indices)
        assert np.array_equal(run.data, runs[0].data)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_torch_tensors(index, dtype):
    """Oracle: the dense product; layout, dtype and index width stay."""
    gen = torch.Generator().manual_seed(0)
    dense = torch.randn(20, 20, dtype=dtype, generator=gen) * (torch.rand(20, 20, generator=gen) < 0.2)
    csr = dense.to_sparse_csr()
    csr = torch.sparse_csr_tensor(
        csr.crow_indices().to(index), csr.col_indices().to(index), csr.values(), csr.shape, check_invariants=True
    )
    found = spgemm(csr, csr)
    assert found.layout == torch.sparse_csr
    assert found.dtype == dtype
    assert found.col_indices().dtype == index
    torch.testing.assert_close(found.to_dense(), dense @ dense)


def test_containers_follow_the_first_factor():
    """Oracle: the same product in every container, against SciPy."""
    a, b = random_pair(7)
    expected = (a @ b).toarray()
    coo = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack(a.tocoo().coords).astype(np.int64)),
        torch.from_numpy(a.data),
        a.shape,
        check_invariants=True,
    )
    for first, kind in (
        (a, scipy.sparse.csr_array),
        (a.tocsc(), scipy.sparse.csr_array),
        (scipy.sparse.csr_matrix(a), scipy.sparse.csr_matrix),
        (coo, torch.Tensor),
        (Sparse(coo), Sparse),
    ):
        found = spgemm(first, b)
        assert isinstance(found, kind)
        dense = found.toarray() if scipy.sparse.issparse(found) else found.to_dense().numpy()
        np.testing.assert_allclose(dense, expected, rtol=1e-12, atol=1e-14)
    assert isinstance(spgemm(coo, b, out="scipy"), scipy.sparse.csr_array)
    assert isinstance(spgemm(a, b, out="operator"), Sparse)


def _graph(seed, shape, dtype=torch.float64):
    matrix = random_csr(np.random.default_rng(seed), shape, 0.5)
    values = torch.from_numpy(matrix.data).to(dtype)
    if dtype.is_complex:
        values = values * (1 + 2j)
    return (
        torch.from_numpy(matrix.indptr.astype(np.int64)),
        torch.from_numpy(matrix.indices.astype(np.int64)),
        values.requires_grad_(),
        shape,
    )


def _csr(pattern, values):
    return torch.sparse_csr_tensor(pattern[0], pattern[1], values, pattern[3], check_invariants=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_gradients_by_finite_differences(dtype, masked, num_threads):
    """Oracle: torch's gradcheck in float64 on 6 x 5 and 5 x 6 patterns, both factors at once."""
    a, b = _graph(0, (6, 5), dtype), _graph(1, (5, 6), dtype)
    cover = random_csr(np.random.default_rng(2), (6, 6), 0.5) if masked else None

    def values(x, y):
        if dtype.is_complex:  # torch's CSR constructor passes no complex gradients; the operator does
            left, right = (Sparse.from_csr(p[0], p[1], v, p[3]) for p, v in ((a, x), (b, y)))
            return spgemm(left, right, mask=cover, num_threads=num_threads).values
        return spgemm(_csr(a, x), _csr(b, y), mask=cover, num_threads=num_threads).values()

    assert torch.autograd.gradcheck(values, (a[2], b[2]))


def test_gradients_match_the_dense_product():
    """Oracle: autograd through the dense product, restricted to the patterns; CSR, operator and one constant side."""
    a, b = _graph(3, (7, 9)), _graph(4, (9, 8))
    weight = torch.randn(7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense = [_csr(x, x[2].detach()).to_dense().requires_grad_() for x in (a, b)]
    ((dense[0] @ dense[1]) * weight).sum().backward()
    rows = [torch.repeat_interleave(torch.arange(x[3][0]), x[0].diff()) for x in (a, b)]
    wanted = [d.grad[r, x[1]] for d, r, x in zip(dense, rows, (a, b), strict=True)]
    found = torch.autograd.grad((spgemm(_csr(a, a[2]), _csr(b, b[2])).to_dense() * weight).sum(), (a[2], b[2]))
    operators = [Sparse.from_csr(x[0], x[1], x[2], x[3]) for x in (a, b)]
    through = torch.autograd.grad((spgemm(*operators).to_dense() * weight).sum(), (a[2], b[2]))
    leaf = _csr(a, a[2].detach()).requires_grad_()
    (spgemm(leaf, _csr(b, b[2].detach())).to_dense() * weight).sum().backward()
    for got in (found, through):
        for grad, exact in zip(got, wanted, strict=True):
            torch.testing.assert_close(grad, exact, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(leaf.grad.values(), wanted[0], rtol=1e-12, atol=1e-13)


def test_gradient_kernel_matches_its_twin():
    """Oracle: the NumPy twin, on larger rectangles and two threads."""
    for seed in range(6):
        a, b = (read_csr("t", "x", x) for x in random_pair(seed))
        jobs = [new_job(a, b, np.dtype(float), "plus_times", "auto", 2, k) for k in (load_kernels("t"), None)]
        indptr, indices, data = _multiply.multiply(jobs[0], mask=None, drop=None, max_bytes=None)
        ours, twin = (_multiply.gradient(job, indptr, indices, data) for job in jobs)
        for x, y in zip(ours, twin, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)


def test_count_matches_its_twin():
    """Oracle: the number of distinct places among all partial products."""
    for seed in range(12):
        a, b = (read_csr("t", "x", x) for x in random_pair(seed))
        jobs = [new_job(a, b, np.dtype(float), "plus_times", "auto", 2, k) for k in (load_kernels("t"), None)]
        assert np.array_equal(_multiply.count_entries(jobs[0]), _multiply.count_entries(jobs[1]))


def test_without_numba_one_warning_and_the_same_product(monkeypatch):
    """Oracle: the compiled product; the fallback says what to install, and "hash" cannot be had."""
    a, b = random_pair(4)  # with stored zeros, which SciPy's product would leave out
    cover = random_csr(np.random.default_rng(5), (a.shape[0], b.shape[1]), 0.3)
    options = ({}, {"semiring": "min_plus"}, {"semiring": "or_and"}, {"mask": cover}, {"drop_tol": 0.3})
    compiled = [spgemm(a, b, **option) for option in options]
    without_numba(monkeypatch)
    for option, expected in zip(options, compiled, strict=True):
        with pytest.warns(UserWarning, match=r"pip install \"hesse\[fast\]\"") as seen:
            found = spgemm(a, b, **option)
        assert len(seen) == 1
        assert same_pattern(found, expected)
        np.testing.assert_allclose(found.data.astype(float), expected.data.astype(float), rtol=1e-12, atol=1e-13)
    with pytest.raises(MissingDependencyError, match="accumulator='hash' needs numba"):
        spgemm(a, b, accumulator="hash")


def test_memory_limit_is_exact_and_says_the_size():
    """Oracle: the bytes of SciPy's own product. A limit it meets passes although the upper bound is above it."""
    graph = rmat(8, 4000, generator=torch.Generator().manual_seed(0))
    product = spgemm(graph, graph)
    needed = product.data.nbytes + product.indices.nbytes + product.indptr.nbytes
    assert spgemm(graph, graph, max_bytes=needed).nnz == product.nnz
    with pytest.raises(MemoryLimitError, match=f"{needed} bytes, above max_bytes"):
        spgemm(graph, graph, max_bytes=needed - 1)


def test_indices_widen_when_the_product_needs_it():
    """Oracle: the rule; more than 2³¹ - 1 entries cannot be addressed by int32."""
    a = read_csr("t", "x", scipy.sparse.eye_array(3, format="csr"))
    job = new_job(a, a, np.dtype(float), "plus_times", "auto", 1, None)
    assert _multiply.index_dtype(job, 2**31 - 1) == np.int32
    assert _multiply.index_dtype(job, 2**31) == np.int64


def test_flops_are_counted_beyond_int32():
    """Oracle: arithmetic. Sixty rows that each meet 4 · 10⁷ entries of B: 2.4 · 10⁹ products, not counted by int32."""
    columns = np.zeros(400, np.int32)
    a = scipy.sparse.csr_array((np.ones(400), columns, np.arange(401, dtype=np.int32)), shape=(400, 1))
    heavy = read_csr("t", "b", scipy.sparse.csr_array((1, 6_000_000)))
    wide = type(heavy)(np.array([0, 6_000_000]), np.zeros(1, np.int32), np.ones(1), (1, 6_000_000))
    flops = row_flops(read_csr("t", "a", a), wide)
    assert int(flops.sum()) == 400 * 6_000_000


def test_windows_cover_every_row_once():
    """Oracle: the definition; only a row above the budget stands alone."""
    flops = np.random.default_rng(0).integers(0, 50, 300)
    flops[[7, 100]] = 1000
    bounds = cut_windows(flops, 120)
    assert bounds[0] == 0
    assert bounds[-1] == 300
    assert bool((np.diff(bounds) > 0).all())
    for lo, hi in pairwise(bounds):
        assert flops[lo:hi].sum() <= 120 or hi - lo == 1


def test_a_small_table_is_an_error_not_a_wrong_answer():
    """Oracle: the check itself; by construction no product gets here."""
    with pytest.raises(NumericalError, match="smaller than twice its row"):
        require_table(-1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"b": scipy.sparse.csr_array((3, 3))}, ShapeError, "columns of a and rows of b differ"),
        ({"a": np.eye(4)}, ArgumentTypeError, "expected a as a SciPy sparse"),
        ({"a": torch.eye(4)}, ArgumentTypeError, "dense tensor"),
        ({"a": scipy.sparse.csr_array(np.eye(4, dtype=np.longdouble))}, ArgumentTypeError, "convert it to float32"),
        ({"accumulator": "heap"}, ArgumentError, "accumulator to be one of"),
        ({"semiring": "max_times"}, ArgumentError, "semiring to be one of"),
        ({"out": "numpy"}, ArgumentError, "out to be one of"),
        ({"num_threads": 0}, ArgumentError, "num_threads >= 1"),
        ({"drop_tol": -1.0}, ArgumentError, "drop_tol >= 0"),
        ({"drop_tol": float("nan")}, ArgumentError, "drop_tol >= 0"),
        ({"max_bytes": 0}, ArgumentError, "max_bytes >= 1"),
        ({"mask": scipy.sparse.csr_array((4, 5))}, ShapeError, r"mask is \(4, 5\)"),
        ({"mask": scipy.sparse.csr_array(np.eye(4) * 1j)}, ArgumentError, "convert the mask"),
        ({"a": scipy.sparse.csr_array(np.eye(4) * 1j), "semiring": "min_plus"}, ArgumentError, "an order and a sum"),
    ],
)
def test_bad_input(change, error, message):
    """Oracle: the documented error, before any work."""
    arguments = {"a": scipy.sparse.eye_array(4, format="csr"), "b": scipy.sparse.eye_array(4, format="csr")} | change
    with pytest.raises(error, match=message):
        spgemm(arguments.pop("a"), arguments.pop("b"), **arguments)


def test_bad_tensors():
    """Oracle: the documented error: half precision, batches, gradients that nothing carries."""
    eye = torch.eye(3, dtype=torch.float64).to_sparse_csr()
    with pytest.raises(ArgumentTypeError, match="use float32"):
        spgemm(torch.eye(3).half().to_sparse_coo(), eye)
    with pytest.raises(ShapeError, match="one matrix"):
        spgemm(torch.eye(3).expand(2, 3, 3).to_sparse_csr(), eye)
    leaf = eye.clone().requires_grad_()
    with pytest.raises(ArgumentError, match="SciPy cannot carry"):
        spgemm(leaf, eye, out="scipy")
    with pytest.raises(ArgumentError, match="use out='operator'"):
        spgemm(eye.to(torch.complex128).requires_grad_(), eye)
    with pytest.raises(ArgumentError, match="no gradient here"):
        spgemm(leaf, eye, semiring="min_plus")
    with pytest.raises(ArgumentError, match="mask requires gradients"):
        spgemm(eye, eye, mask=leaf)
    with pytest.raises(ShapeError, match=r"move it with \.cpu"):
        spgemm(torch.eye(3).to_sparse_coo().to("meta"), eye)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("indices", 9, "outside 0 to 3"), ("indices", -1, "outside 0 to 3"), ("indptr", 9, "row pointers")],
)
def test_damaged_arrays_never_reach_the_kernels(field, value, message):
    """Oracle: the check; a bad index in a compiled loop would read foreign memory."""
    bad = scipy.sparse.eye_array(4, format="csr").astype(float)
    getattr(bad, field)[2] = value
    with pytest.raises(ArgumentError, match=message):
        spgemm(bad, scipy.sparse.eye_array(4, format="csr"))
