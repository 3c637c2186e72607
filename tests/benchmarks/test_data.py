"""Shared data sets and measurements of the benchmarks."""

import importlib
import time

import pytest
import torch

from benchmarks.data import (
    breast_cancer,
    diabetes,
    digits,
    flip_labels,
    interleave,
    interleave_clocks,
    peak_rss_growth,
    pydoc_rows,
    pydoc_topics,
)
from hesse.errors import ArgumentError


@pytest.mark.parametrize(
    ("load", "rows", "features"), [(digits, 1797, 64), (breast_cancer, 569, 30), (diabetes, 442, 10)]
)
def test_splits(load, rows, features):
    """Oracle: the published sizes of the tables, and that a seed decides the split and nothing else does."""
    pytest.importorskip("sklearn")
    split, again, other = load(seed=3), load(seed=3), load(seed=4)
    assert split.train_x.shape[1] == split.test_x.shape[1] == features
    assert len(split.train_x) + len(split.test_x) == len(split.train_y) + len(split.test_y) == rows
    assert torch.equal(split.train_x, again.train_x)
    assert not torch.equal(split.train_x, other.train_x)
    if load is not digits:
        torch.testing.assert_close(
            split.train_x.mean(0), torch.zeros(features, dtype=torch.float64), atol=1e-12, rtol=0
        )


def test_split_needs_rows_on_both_sides():
    """Oracle: the table has 442 rows."""
    pytest.importorskip("sklearn")
    with pytest.raises(ArgumentError, match="1 to 441"):
        diabetes(442)


def test_flipped_labels_are_wrong_ones():
    """Oracle: counting. Exactly the fraction asked for changes, and every changed label really differs."""
    labels = torch.arange(1000) % 10
    noisy, flipped = flip_labels(labels, 0.1, 10, seed=1)
    assert int(flipped.sum()) == 100
    assert torch.equal(noisy != labels, flipped)
    assert int(noisy.min()) >= 0
    assert int(noisy.max()) <= 9


def test_text_rows_are_disjoint_stretches():
    """Oracle: the text itself; every row stands in it, and no row is drawn twice."""
    text = pydoc_topics()
    rows = pydoc_rows(200, 50, seed=5)
    assert len(text) > 300_000
    assert len(set(rows)) == len(rows) == 50
    assert all(len(row) == 200 and row in text for row in rows)
    assert rows == pydoc_rows(200, 50, seed=5)
    with pytest.raises(ArgumentError, match="num_rows"):
        pydoc_rows(200, 10**6)


def test_interleaving_takes_turns():
    """Oracle: the order of calls, written down by the arms: each round starts one arm further on."""
    calls: list[str] = []
    arms = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = interleave(arms, 3, warmup=1)
    assert "".join(calls) == "cab" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    with pytest.raises(ArgumentError, match="repeats"):
        interleave(arms, 0)


def test_clocks_differ_on_sleep():
    """Oracle: sleeping costs wall time and no CPU time."""
    timing = interleave_clocks({"sleep": lambda: time.sleep(0.05)}, 2, warmup=0)["sleep"]
    assert min(timing.wall) >= 0.05
    assert max(timing.cpu) < 0.04


ARMS = """
import torch

def prepare(megabytes):
    big = torch.ones(2 * megabytes * 2**18)  # a peak in preparation, which must not count
    return megabytes

def measured(megabytes):
    return torch.ones(megabytes * 2**18)

def breaks(megabytes):
    raise ValueError
"""


@pytest.fixture
def arms(tmp_path, monkeypatch):
    """A module that a fresh process can import."""
    (tmp_path / "made_up_arms.py").write_text(ARMS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("made_up_arms")


def test_peak_memory_is_that_of_the_measured_part(arms):
    """Oracle: the bytes the function allocates: 96 MiB, although its preparation held 192 MiB for a moment."""
    growth = peak_rss_growth(arms.measured, arms.prepare, 96)
    assert 94 <= growth / 2**20 <= 110


def test_a_child_that_dies_is_reported(arms):
    """Oracle: the function raises; the message names it."""
    with pytest.raises(RuntimeError, match="running breaks died"):
        peak_rss_growth(arms.breaks, arms.prepare, 1)
