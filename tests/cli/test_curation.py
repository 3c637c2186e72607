"""`hesse influence self` and `hesse influence select`."""

import json
import math

import numpy as np
import pytest

from hesse.influence import open_scores
from tests.cli.conftest import invoke


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_self_lists_every_sequence(run, tmp_path):
    """Oracle: the scores of each sequence as a query of its own text would have them: positive, and sorted."""
    done = invoke("influence", "self", run, "-k", 3, "--out", tmp_path / "self.jsonl", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    rows = lines(tmp_path / "self.jsonl")
    assert found["sequences"] == len(rows) == len(open_scores(run).sequence_ids)
    values = [row["score"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert all(value > 0 and math.isfinite(value) for value in values)
    assert [item["id"] for item in found["top"]] == [row["id"] for row in rows[:3]]
    table = invoke("influence", "self", run, "-k", 30)
    assert "\x1b[31m" not in table.stdout


def test_select_writes_the_rows_as_they_were_given(tiny, run, tmp_path):
    """Oracle: the scores, and the data file; every row has its reason."""
    out = tmp_path / "kept.jsonl"
    done = invoke("influence", "select", run, "--drop-opponents", 20, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    scores = open_scores(run)
    mean = dict(zip(scores.train_ids, np.asarray(scores.values).mean(0), strict=True))
    worst = [name for name in sorted(mean, key=mean.get)[:2] if mean[name] < 0]
    given = {row["id"]: row for row in lines(tiny / "train.jsonl")}
    assert lines(out) == [row for name, row in given.items() if name not in worst]
    reasons = {item["id"]: item for item in lines(tmp_path / "kept.jsonl.reasons.jsonl")}
    assert {name for name, item in reasons.items() if not item["kept"]} == set(worst)
    assert all(reasons[name]["score"] == pytest.approx(mean[name], rel=1e-5, abs=1e-9) for name in mean)
    assert json.loads(done.stdout)["kept"] == len(given) - len(worst)
    again = invoke("influence", "select", run, "--keep-top", 10, "--query", "q2", "--out", out)
    assert again.exit_code == 1
    assert "--overwrite" in again.output
    invoke("influence", "select", run, "--keep-top", 10, "--query", "q2", "--out", out, "--overwrite")
    assert [row["id"] for row in lines(out)] == [scores.topk("q2", 1)[0].id]


def test_bad_choices_are_refused_before_work(tiny, run, tmp_path):
    """Oracle: the exit code, the message, and no file."""
    out = tmp_path / "kept.jsonl"
    (tmp_path / "other.jsonl").write_text(json.dumps({"id": "x", "text": "y"}))
    for words, arguments in (
        ("either", ()),
        ("either", ("--keep-top", 5, "--drop-opponents", 5)),
        ("percentage", ("--keep-top", 0)),
        ("no row", ("--keep-top", 5, "--data", tmp_path / "other.jsonl")),
        ("no 'nobody'", ("--keep-top", 5, "--query", "nobody")),
        ("not a run", ("--keep-top", 5, "--ensemble", tmp_path)),
    ):
        done = invoke("influence", "select", run, "--out", out, *arguments)
        assert done.exit_code != 0
        assert words in done.output
    assert not out.exists()
    assert invoke("influence", "select", run, "--keep-top", 5, "--out", tmp_path / "no" / "x").exit_code == 1
    assert "no folder" in invoke("influence", "self", run, "--out", tmp_path / "no" / "x").output
