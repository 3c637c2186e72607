"""`hesse influence score --prefilter`, `index` and `ask` on a tiny run."""

import json

import pytest

from hesse.influence import open_scores
from hesse.influence.run import open_folder
from tests.cli.conftest import invoke


def test_a_filtered_score_says_what_it_missed(tiny, run):
    """Oracle: the scores of all rows, which the filtered ones repeat; the counts of the filter."""
    queries = tiny / "queries.jsonl"
    every = open_scores(run)
    options = ("--prefilter", "bm25", "--prefilter-top", 2, "--prefilter-random", 3, "--rank", "full", "--json")
    done = invoke("influence", "score", run, "--queries", queries, *options)
    assert done.exit_code == 0, done.output
    told, some = json.loads(done.stdout), open_scores(run)
    assert told["rows"] == len(some.train_ids) < len(every.train_ids)
    assert told["missed"]["num_drawn"] == 3
    assert told["missed"]["num_outside"] == len(every.train_ids) - (told["rows"] - 3)
    places = [every.row_places[name] for name in some.train_ids]
    assert some.values == pytest.approx(every.values[:, places], rel=1e-3, abs=1e-7)
    plain = invoke("influence", "score", run, "--queries", queries, *options[:-1])
    assert "rows were not scored" in plain.stderr
    assert invoke("verify", run).exit_code == 0
    assert invoke("influence", "top", run, "-k", 2, "--json").exit_code == 0


def test_an_index_answers_as_scoring_does(tiny, run):
    """Oracle: the full-rank scores of the run, with all directions kept."""
    scores = open_scores(run)
    built = invoke("influence", "index", run, "--k-in", 99, "--k-out", 99, "--dtype", "float32", "--json")
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["bytes_a_sequence"] > 0
    options = ("influence", "ask", run, "--queries", tiny / "queries.jsonl", "-k", 3, "--check", 8)
    done = invoke(*options, "--json")
    assert done.exit_code == 0, done.output
    for query in json.loads(done.stdout)["queries"]:
        best = scores.topk(query["id"], 3)
        assert [item["score"] for item in query["top"]] == pytest.approx([item.score for item in best], rel=1e-3)
        assert query["correlation"] == pytest.approx(1, abs=1e-4)
        assert all(item["text"] for item in query["top"])
    table = invoke(*options, "--opponents")
    assert table.exit_code == 0, table.output
    assert "correlation" in table.stderr
    assert "\x1b" not in table.stdout
    assert invoke("verify", run).exit_code == 0


def test_asking_without_an_index(tiny, run):
    """Oracle: the exit code of a missing artifact."""
    assert invoke("influence", "ask", run, "--queries", tiny / "queries.jsonl").exit_code == 3


def test_a_check_that_cannot_be_made_is_refused(tiny, run):
    """Oracle: the argument in the message, not an answer without what was asked for."""
    assert invoke("influence", "index", run).exit_code == 0
    folder = open_folder(run)
    folder.commit({"corpus": {}}, drop=[name for name in folder.manifest.files if name.startswith("corpus/")])
    options = ("influence", "ask", run, "--queries", tiny / "queries.jsonl")
    refused = invoke(*options, "--check", 8)
    assert refused.exit_code == 1
    assert "check: " in refused.stderr
    assert invoke(*options).exit_code == 0
