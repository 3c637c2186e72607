from itertools import pairwise

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.sparse import _twin, rmat, spgemm, spgemm_model
from hesse.linalg.sparse._csr import read_csr
from tests.linalg.sparse.cases import random_pair, without_numba


def graph(scale=8, edges=2000, permute=False, seed=0):
    return rmat(scale, edges, permute=permute, generator=torch.Generator().manual_seed(seed))


def test_traffic_by_looping():
    """Oracle: three loops over the entries, written as the dataflows are defined."""
    for seed in range(6):
        a, b = random_pair(seed)
        product = spgemm(a, b)
        rows = [a.indices[a.indptr[i] : a.indptr[i + 1]] for i in range(a.shape[0])]
        lengths, columns = np.diff(b.indptr), np.bincount(b.indices, minlength=b.shape[1])
        inner = sum(len(row) + int(column) for row in rows for column in columns)
        skipping = sum(len(row) + int(column) for row in rows for column in columns if len(row) and column)
        partial = sum(int(lengths[k]) for row in rows for k in row)
        found = spgemm_model(a, b, "inner")
        assert (found.input_reads, found.output_writes, found.partial_writes) == (inner, product.nnz, 0)
        assert spgemm_model(a, b, "inner", skip_empty=True).input_reads == skipping
        outer = spgemm_model(a, b, "outer")
        assert (outer.input_reads, outer.partial_writes, outer.partial_reads) == (a.nnz + b.nnz, partial, partial)
        by_row = spgemm_model(a, b, "row_wise", index_bytes=8, value_bytes=4)
        assert (by_row.input_reads, by_row.flops) == (a.nnz + partial, partial)
        assert by_row.total == a.nnz + partial + product.nnz
        assert by_row.total_bytes == 12 * by_row.total


def test_cache_between_none_and_all():
    """Oracle: three limits; a tiny cache saves nothing, a huge one reads each used row once, else a loop's."""
    matrix = graph()
    lengths = np.diff(matrix.indptr)
    reads = {c: spgemm_model(matrix, matrix, cache_numbers=c).input_reads - matrix.nnz for c in (1, 400, 10**6)}
    assert reads[10**6] == int(lengths[np.unique(matrix.indices)].sum())
    used: list[int] = []
    misses = 0
    for k in matrix.indices.tolist():
        if k in used:
            used.remove(k)
        else:
            misses += int(lengths[k])
        if lengths[k] <= 400:
            used.append(k)
        while sum(lengths[used]) > 400:
            used.pop(0)
    assert reads[400] == misses
    assert reads[10**6] <= reads[400] <= reads[1] <= int(lengths[matrix.indices].sum())


@pytest.mark.parametrize("kind", ["low", "high", "multiplicative"])
@pytest.mark.parametrize("permute", [False, True])
def test_probes_match_a_table_of_plain_python(kind, permute):
    """Oracle: one insertion after the other into a list, in every window, for every entry of A."""
    matrix = graph(7, 600, permute)
    found = spgemm_model(matrix, matrix, window_flops=700, hash_kind=kind).windows
    a = read_csr("t", "a", matrix)
    number = {"low": 0, "high": 1, "multiplicative": 2}[kind]
    entry, probes, longest, claims = _twin.probe_windows(found.rows, a, a, found.table_size, number)
    assert np.array_equal(found.entry_probes, entry)
    assert np.array_equal(found.probes, probes)
    assert np.array_equal(found.longest_probe, longest)
    assert np.array_equal(found.claims, claims)
    assert int(found.claims.sum()) == spgemm(matrix, matrix).nnz
    assert int((found.claims + found.fetch_adds).sum()) == int(found.flops.sum())
    assert float(found.load_factor.max()) <= 0.5


def test_schedules():
    """Oracle: bounds that any schedule keeps, and a loop over the threads of the static one."""
    counts = spgemm_model(graph(), graph(), window_flops=2000)
    probes = counts.windows.entry_probes
    for threads in (1, 4, 64):
        tokens, static = (counts.schedule(threads, tokens=t) for t in (True, False))
        assert tokens.ideal <= tokens.makespan <= tokens.ideal + probes.max()
        assert static.makespan >= tokens.ideal
        assert tokens.imbalance == pytest.approx(tokens.makespan * threads / probes.sum())
    starts = graph().indptr
    bounds = np.linspace(0, graph().shape[0], 5).round().astype(int)
    shares = [probes[starts[lo] : starts[hi]].sum() for lo, hi in pairwise(bounds)]
    assert counts.schedule(4, tokens=False).makespan == max(shares)
    assert counts.schedule(1).makespan == int(probes.sum())


def test_tokens_keep_all_work():
    """Oracle: the sum; cutting long rows of B loses nothing and shortens the longest token."""
    counts = spgemm_model(graph(), graph())
    one = [counts.schedule(1, token_size=size).makespan for size in (1, 7, 10**6)]
    assert len(set(one)) == 1
    assert counts.schedule(64, token_size=4).makespan <= counts.schedule(64, token_size=10**6).makespan


def test_transfers_add_or_hide():
    """Oracle: the definition, max or sum of the two."""
    counts = spgemm_model(graph(), graph())
    for speed in (0.5, 50.0):
        apart, together = (counts.schedule(8, overlap=o, bytes_per_unit=speed) for o in (False, True))
        assert apart.transfer_time == pytest.approx(counts.total_bytes / speed)
        assert apart.time == pytest.approx(apart.makespan + apart.transfer_time)
        assert together.time == pytest.approx(max(apart.makespan, apart.transfer_time))


def test_table_shows_numbers_and_bytes():
    """Oracle: the counts."""
    counts = spgemm_model(graph(), graph())
    text = counts.table()
    for figure in (counts.total, counts.total_bytes, counts.input_reads, counts.output_writes):
        assert f"{figure:,}" in text
    assert "probes an insertion" in text
    assert "probes" not in spgemm_model(graph(), graph(), "outer").table()


def test_empty_product():
    """Oracle: nothing."""
    nothing = rmat(3, 0)
    counts = spgemm_model(nothing, nothing)
    assert (counts.total, counts.windows.probes_per_insertion) == (0, 1.0)
    assert counts.schedule(4).makespan == 0
    assert counts.schedule(4).imbalance == 1.0
    assert "fullest table" in counts.table()


def test_without_numba_the_same_counts(monkeypatch):
    """Oracle: the compiled count."""
    matrix = graph(6, 200)
    compiled = spgemm_model(matrix, matrix, window_flops=300)
    without_numba(monkeypatch)
    with pytest.warns(UserWarning, match="needs numba"):
        plain = spgemm_model(matrix, matrix, window_flops=300)
    assert plain.total == compiled.total
    assert np.array_equal(plain.windows.probes, compiled.windows.probes)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dataflow": "column_wise"}, "dataflow inner, outer or row_wise"),
        ({"hash_kind": "sha"}, "hash_kind in"),
        ({"window_flops": 0}, "window_flops >= 1"),
        ({"index_bytes": 0}, "index_bytes >= 1"),
        ({"cache_numbers": 0}, "cache_numbers >= 1"),
        ({"num_threads": 0}, "num_threads >= 1"),
    ],
)
def test_bad_options(option, message):
    """Oracle: the documented error."""
    with pytest.raises(ArgumentError, match=message):
        spgemm_model(graph(), graph(), **option)


def test_bad_shapes_and_schedules():
    """Oracle: the documented error."""
    a, _ = random_pair(1)
    with pytest.raises(ShapeError, match="rows of b differ"):
        spgemm_model(a, graph())
    with pytest.raises(ArgumentError, match="only row_wise"):
        spgemm_model(graph(), graph(), "outer").schedule()
    for option in ({"num_threads": 0}, {"token_size": 0}, {"bytes_per_unit": 0.0}):
        with pytest.raises(ArgumentError, match="above zero"):
            spgemm_model(graph(), graph()).schedule(**option)
