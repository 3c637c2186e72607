"""Peers: how a missing one is told from a broken one, and the exchange with another interpreter."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import PeerMissing, has_peer, peer_python, require_peer, run_peer

SCRIPT = """
import numpy as np

def prepare(arrays):
    return arrays["x"] * 2

def measured(state):
    return {"doubled": state, "threads": np.array(__import__("os").environ["OMP_NUM_THREADS"])}
"""


def test_missing_and_present():
    """Oracle: numpy is there, the made-up name is not."""
    assert require_peer("numpy") is np
    assert has_peer("numpy")
    assert not has_peer("a_peer_that_is_not_there")
    with pytest.raises(PeerMissing, match="make peers"):
        require_peer("a_peer_that_is_not_there")
    with pytest.raises(PeerMissing, match=r"\.venv-nobody"):
        peer_python("nobody")


def test_broken_peer_is_not_called_missing(tmp_path, monkeypatch):
    """Oracle: a package that is there and fails on an import of its own raises that error unchanged."""
    (tmp_path / "half_a_peer.py").write_text("import something_it_forgot")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="something_it_forgot"):
        require_peer("half_a_peer")


def test_arrays_go_there_and_back(tmp_path):
    """Oracle: doubling, bit for bit, with the thread count that was asked for."""
    script = tmp_path / "peer.py"
    script.write_text(SCRIPT)
    x = np.random.default_rng(0).normal(size=(5, 3))
    run = run_peer("doubler", script, {"x": x}, threads=2, python=Path(sys.executable))
    np.testing.assert_array_equal(run.arrays["doubled"], 2 * x)
    assert str(run.arrays["threads"]) == "2"
    assert run.wall_seconds >= 0
    assert run.cpu_seconds >= 0
    assert run.rss_growth_bytes >= 0


def test_failing_peer_shows_its_last_words(tmp_path):
    """Oracle: the text the script raised with."""
    script = tmp_path / "peer.py"
    script.write_text("def measured(state):\n    raise ValueError('out of cheese')\n")
    with pytest.raises(RuntimeError, match="out of cheese"):
        run_peer("mouse", script, {"x": np.zeros(1)}, python=Path(sys.executable))
    script.write_text("import time\ndef measured(state):\n    time.sleep(60)\n")
    with pytest.raises(RuntimeError, match="not finished after"):
        run_peer("snail", script, {"x": np.zeros(1)}, python=Path(sys.executable), timeout=0.5)
