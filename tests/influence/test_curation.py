"""Rows chosen by their scores, each with its reason."""

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.influence import Influence, mean_scores, open_scores, select_rows
from tests.influence._tiny import gpt2, tokens

IDS = [f"r{i}" for i in range(10)]
VALUES = np.array([3.0, -1.0, 0.0, 2.0, -5.0, 1.0, -2.0, 4.0, -0.5, 0.5])


@pytest.mark.parametrize(("percent", "gone"), [(10, {"r4"}), (30, {"r4", "r6", "r1"}), (90, {"r4", "r6", "r1", "r8"})])
def test_what_harms_most_is_dropped_and_nothing_that_helps(percent, gone):
    """Oracle: the sorted scores; a row that does no harm stays, whatever the percentage."""
    chosen = select_rows(IDS, VALUES, rule="drop-opponents", percent=percent)
    assert {name for name, kept in zip(IDS, chosen.kept, strict=True) if not kept} == gone
    assert chosen.rank[4] == 1
    assert chosen.reason(4) == f"dropped by drop-opponents {percent}: -5 nats, place 1 of 10"
    assert chosen.reason(0).startswith("kept")


def test_what_helps_most_is_kept():
    """Oracle: the sorted scores; at least one row, whatever the percentage."""
    chosen = select_rows(IDS, VALUES, rule="keep-top", percent=20)
    assert [name for name, kept in zip(IDS, chosen.kept, strict=True) if kept] == ["r0", "r7"]
    assert select_rows(IDS, VALUES, rule="keep-top", percent=0.01).kept.sum() == 1


@pytest.mark.parametrize(
    ("scores", "percent", "words"),
    [
        (VALUES, 0, "percentage"),
        (VALUES, 100, "percentage"),
        (VALUES, float("nan"), "percentage"),
        (VALUES[:-1], 5, "10 numbers"),
        (np.where(VALUES > 2, np.nan, VALUES), 5, "NaN"),
    ],
)
def test_bad_choices_are_named(scores, percent, words):
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match=words):
        select_rows(IDS, scores, rule="keep-top", percent=percent)


def test_runs_are_averaged_row_by_row(tmp_path):
    """Oracle: numpy on the matrices, the second run's rows in another order."""
    rows, queries = tokens(9), tokens(3, seed=9)
    found = []
    for i, data in enumerate((rows, rows[::-1], rows[:-1])):
        influence = Influence(gpt2(seed=i % 2), fisher="empirical")
        influence.fit(data, tmp_path / str(i), progress=False)
        influence.score(queries, data, tmp_path / str(i), rank=None, progress=False)
        found.append(open_scores(tmp_path / str(i)))
    ids, values = mean_scores(found[:2])
    assert ids == found[0].train_ids
    wanted = (found[0].values.mean(0) + found[1].values.mean(0)[::-1]) / 2
    np.testing.assert_allclose(values, wanted, rtol=1e-10)
    np.testing.assert_allclose(mean_scores(found[:1], queries=["s1"])[1], found[0].values[1])
    with pytest.raises(ArgumentError, match="other rows"):
        mean_scores([found[0], found[2]])
    with pytest.raises(ArgumentError, match="no 'nobody'"):
        mean_scores(found[:1], queries=["nobody"])
    with pytest.raises(ArgumentError, match="at least one"):
        mean_scores([])
