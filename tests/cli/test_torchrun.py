"""The commands under a launcher that starts several processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.cli.conftest import invoke

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hesse")


def launched(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *TORCHRUN, *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)


@pytest.mark.slow
def test_fit_and_score_by_two_processes(tiny, tmp_path):
    """Oracle: the same commands in one process: scores, one JSON object on stdout; lines say whose they are."""
    from hesse.influence.scores import open_scores

    queries = tiny / "queries.jsonl"
    fit = ["influence", "fit", tiny / "model", "--data", tiny / "train.jsonl", "--max-length", 24, "--json"]
    score = ["--queries", queries, "--rank", 4, "--refine-topk", 3, "--json"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert invoke(*fit, "--run", one).exit_code == 0
    assert invoke("influence", "score", one, *score).exit_code == 0
    fitted = launched(*fit, "--run-dir", two)  # torchrun would read --run as the beginning of its --run-path
    assert fitted.returncode == 0, fitted.stderr
    assert json.loads(fitted.stdout)["fitted_on"] == 13
    assert "[rank 0] 11 rows" in fitted.stderr
    assert "[rank 1] 11 rows" in fitted.stderr
    scored = launched("influence", "score", two, *score)
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["rows"] == 11
    wanted, found = (np.array(open_scores(folder).values) for folder in (one, two))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert invoke("verify", two).exit_code == 0


def test_top_k_on_the_command_line(tiny, run):
    """Oracle: the list of all scores, from the run that kept them."""
    words = ["influence", "top", run, "--count", 1, "--json"]
    whole = json.loads(invoke(*words).stdout)
    scored = invoke("influence", "score", run, "--queries", tiny / "queries.jsonl", "--rank", "full", "--top-k", 9)
    assert scored.exit_code == 0, scored.output
    assert "kept 9 rows of each sign" in scored.stderr
    kept = json.loads(invoke(*words).stdout)
    assert ids(kept) == ids(whole)


def ids(found):
    return [[entry["id"] for entry in query["top"]] for query in found["queries"]]
