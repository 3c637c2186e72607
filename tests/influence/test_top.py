"""The best rows kept while scores stream past; the oracle is the whole matrix."""

import tracemalloc

import numpy as np
import pytest

from benchmarks.influence._reliability import TRACKED, tiny_model, tiny_sequences
from hesse.errors import ArgumentError
from hesse.influence.engine import Influence
from hesse.influence.examples import TokenExamples
from hesse.influence.report import write_report
from hesse.influence.sequences import tokenize_rows
from hesse.influence.top import TopRows, plan_row_units, row_starts, strongest, with_refined
from hesse.io import verify_run

STEPS = {"batch_tokens": 24, "unit_size": 4, "checkpoint_seconds": 0.0, "progress": False}


def best_of(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.stack([np.argsort(-scores, axis=1, kind="stable"), np.argsort(scores, axis=1, kind="stable")], 1)
    order = order[:, :, :count]
    return np.take_along_axis(scores[:, None], order, 2), order


@pytest.mark.parametrize("ties", [False, True])
def test_the_best_do_not_depend_on_the_order(ties):
    """Oracle: a stable sort of the whole matrix; blocks in any order, in one heap or in two that are merged."""
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (5, 40)).astype(np.float32) if ties else rng.standard_normal((5, 40))
    values, numbers = best_of(scores, 6)
    for seed in range(5):
        blocks = [np.arange(first, first + 8) for first in range(0, 40, 8)]
        np.random.default_rng(seed).shuffle(blocks)
        heaps = [TopRows.empty(5, 6, scores.dtype.type) for _ in range(2)]
        for i, block in enumerate(blocks):
            heaps[i % 2].add(scores[:, block], block)
        heaps[0].merge(heaps[1])
        np.testing.assert_array_equal(heaps[0].values, values)
        np.testing.assert_array_equal(heaps[0].numbers, numbers)
        again = TopRows.of(heaps[0].tensors())
        np.testing.assert_array_equal(again.numbers, numbers)


def test_fewer_rows_than_places():
    """Oracle: by hand; places without a row say so."""
    top = TopRows.empty(1, 3, np.float64)
    top.add(np.array([[1.0, -2.0]]), np.array([0, 1]))
    assert top.numbers.tolist() == [[[0, 1, -1], [1, 0, -1]]]
    assert {q: numbers.tolist() for q, numbers in strongest(top, None, 2, 3).items()} == {0: [0, 1]}
    refined = with_refined(top, None, [(0, np.array([0]), np.array([-3.0]))], 2)
    assert refined.numbers.tolist() == [[[1, 0], [0, 1]]]
    assert refined.values.tolist() == [[[-2.0, -3.0], [-3.0, -2.0]]]


def test_units_end_where_rows_end():
    """Oracle: by hand; without long rows they are those of always, whatever was done before."""
    starts = np.array([0, 3, 4, 9, 10])
    assert plan_row_units(12, 4, 0, starts) == [range(4), range(4, 9), range(9, 12)]
    assert plan_row_units(12, 4, 4, starts) == [range(4, 9), range(9, 12)]
    assert plan_row_units(10, 4, 4, None) == [range(4, 8), range(8, 10)]


def test_units_of_another_size_leave_nothing_out():
    """Oracle: all that is left to do, after a start that is no multiple of the new size."""
    starts = np.array([0, 3, 4, 9, 10])
    assert plan_row_units(10, 3, 4, None) == [range(4, 6), range(6, 9), range(9, 10)]
    assert plan_row_units(12, 3, 4, starts) == [range(4, 9), range(9, 12)]
    assert plan_row_units(12, 3, 12, starts) == []


def test_rows_need_not_be_listed_in_a_list(fitted):
    """Oracle: the starts of the same rows in a list."""
    _influence, data, _folder = fitted

    class Rows(TokenExamples):
        @property
        def rows(self):
            return tuple(super().rows)

    np.testing.assert_array_equal(row_starts(Rows(data.sequences)), row_starts(data))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A fitted run, and data in which two rows in three were cut into several sequences."""
    rows = [{"id": f"r{i}", "input_ids": list(s.input_ids) * (1 + i % 3)} for i, s in enumerate(tiny_sequences(24))]
    data = TokenExamples(tokenize_rows(rows, None, 9))
    influence, folder = Influence(tiny_model(), modules=TRACKED), tmp_path_factory.mktemp("top") / "run"
    influence.fit(data, folder, **STEPS)
    return influence, data, folder


@pytest.mark.parametrize("question", [{"rank": None}, {"rank": 3, "refine_topk": 0}, {"rank": 3, "refine_topk": 60}])
def test_best_rows_are_those_of_the_matrix(fitted, question):
    """Oracle: the whole matrix, rows' chunks summed: the same ids in the same order, the same scores."""
    influence, data, folder = fitted
    queries = tiny_sequences(4, 1, prompt=2)
    whole = influence.score(queries, data, folder, **question, **STEPS)
    kept = influence.score(queries, data, folder, top_k=5, **question, **STEPS)
    assert row_starts(data) is not None
    assert verify_run(folder) == []
    for query in range(4):
        for sign in (1, -1):
            a, b = whole.topk(query, 5, sign), kept.topk(query, 5, sign)
            assert [(row.rank, row.id) for row in a] == [(row.rank, row.id) for row in b]
            np.testing.assert_allclose([row.score for row in b], [row.score for row in a], rtol=2e-5)
    assert set(kept.train_ids) < set(whole.train_ids)
    assert kept.layers is None
    files = [name for name in kept.run.manifest.files if name.startswith(kept.folder)]
    assert sorted(name.rpartition("/")[2] for name in files) == ["index.jsonl", "top.safetensors"]
    with pytest.raises(ArgumentError, match="only the 5 strongest rows"):
        kept.values  # noqa: B018
    with pytest.raises(ArgumentError, match="only 5 rows of each sign were kept, got k=6"):
        kept.topk(0, 6)


def test_a_report_of_the_best_rows(fitted, tmp_path):
    """Oracle: the ids of the proponents, in the page."""
    influence, data, folder = fitted
    scores = influence.score(tiny_sequences(2, 1, prompt=2), data, folder, top_k=8, rank=None, **STEPS)
    write_report(folder, tmp_path / "page.html", k=3)
    page = (tmp_path / "page.html").read_text()
    assert all(row.id in page for row in scores.topk(0, 2))


def test_memory_does_not_grow_with_the_rows():
    """Oracle: what Python allocates for ten times the rows."""
    rng, peaks = np.random.default_rng(0), []
    for count in (4_000, 40_000):
        tracemalloc.start()
        top = TopRows.empty(16, 50, np.float32)
        for first in range(0, count, 250):
            top.add(rng.standard_normal((16, 250)).astype(np.float32), np.arange(first, first + 250))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.02 * peaks[0] < 16 * 4_000 * 4


def test_what_is_refused(fitted):
    """Oracle: the argument that the message names."""
    influence, data, folder = fitted
    queries = tiny_sequences(2, 1, prompt=2)
    with pytest.raises(ArgumentError, match="top_k: expected >= 1"):
        influence.score(queries, data, folder, top_k=0, **STEPS)
    with pytest.raises(ArgumentError, match="top_k: shares"):
        influence.score(queries, data, folder, top_k=3, per_token=True, **STEPS)
    apart = TokenExamples([*data.sequences[1::2], *data.sequences[::2]])
    with pytest.raises(ArgumentError, match=r"top_k: the sequences of row 'r\d+' do not stand together"):
        influence.score(queries, apart, folder, top_k=3, **STEPS)
