"""`hesse influence serve`: the process that users start, and a question asked through its model."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from hesse.cli._scoring import question_scorer
from hesse.influence import open_run, open_scores
from tests.cli.conftest import invoke


@pytest.mark.slow
def test_it_serves_until_interrupted(run, tmp_path, monkeypatch):
    """Oracle: the address on stderr; a browser's answer is left to the tests of the application."""
    monkeypatch.setenv("HESSE_CACHE", str(tmp_path / "cache"))
    # a shell's background jobs ignore the signal, and a process inherits that: the child must hear it all the same
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from hesse.cli.main import main\nsys.argv = ['hesse', *sys.argv[1:]]\nmain()"
    )
    command = [sys.executable, "-c", code, "influence", "serve", str(run)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, _err = process.communicate(timeout=60)
    assert re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{20,}", line)
    assert out == ""
    assert process.returncode in (0, 130)


def test_bad_input_is_refused_before_work(tmp_path):
    """Oracle: the exit code and the message."""
    missing = invoke("influence", "serve", tmp_path / "none")
    assert missing.exit_code == 1
    assert "is no run" in missing.output
    (tmp_path / "empty").mkdir()
    assert "is no run" in invoke("influence", "serve", tmp_path / "empty").output
    assert invoke("influence", "serve", tmp_path, "--port", "70000").exit_code == 2


def test_a_new_question_is_scored_word_by_word(run):
    """Oracle: the same question on the command line; the words add up."""
    ask = question_scorer(run, trust_remote_code=False)
    asked = open_scores(run, ask(run, "the capital of marland is", " vesper"))
    known = open_run(run).scores
    assert known.folder == asked.folder  # the latest now
    earlier = [name for name in open_run(run).folder.manifest.stages if name.startswith("score:")]
    whole = open_scores(run, next(name for name in earlier if asked.folder not in name).removeprefix("score:"))
    np.testing.assert_allclose(asked.values[0], whole.values[0], rtol=2e-2, atol=2e-2 * np.abs(whole.values).max())
    np.testing.assert_allclose(asked.by_target(0).sum(0), asked.values[0], rtol=1e-5, atol=1e-5)
    assert asked.targets(0)
    again = ask(run, "the capital of marland is", " vesper")
    assert again == asked.folder
