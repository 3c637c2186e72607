"""`hesse influence validate` on a tiny real model."""

import json

import pytest

from hesse.errors import ArgumentError
from hesse.influence.evaluate import validation
from hesse.influence.evaluate.validation import affordable
from tests.cli.conftest import QUERIES, invoke


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """However quick the machine: the budgets here are wide, and the numbers small."""
    monkeypatch.setattr(validation, "_MOST", 6)


def ask(kind, tiny, run, *more):
    queries = tiny / "queries.jsonl"
    return invoke(
        "influence", "validate", kind, run, "--queries", queries, "--steps", 2, "--batch-size", 4, "--json", *more
    )


def test_lds_is_that_of_the_library(tiny, run):
    """Oracle: `retrain` and `lds` called by hand with the number of subsets that the command says it afforded."""
    from hesse.influence.corpus import open_corpus
    from hesse.influence.evaluate import FineTuning, draw_masks, lds, retrain
    from hesse.influence.huggingface import load_model
    from hesse.influence.query import Query, tokenize_query
    from hesse.influence.scores import open_scores

    latest = open_scores(run).folder
    done = ask("lds", tiny, run, "--budget", 5, "--runs", 2)
    assert done.exit_code == 0, done.output
    assert open_scores(run).folder == latest  # what was asked before is still what `top` and `report` show
    result = json.loads(done.stdout)
    model, tokenizer = load_model(tiny / "model", device="cpu")
    data = open_corpus(run, "train").sequences()
    queries = [tokenize_query(Query(**query), tokenizer, 24) for query in QUERIES]
    scores = open_scores(run)
    masks = draw_masks(result["subsets"], len(scores.train_ids))
    columns = [scores.train_ids.index(sequence.row) for sequence in data]
    assert len(columns) > len(scores.train_ids)  # a long row is left out with all of its chunks
    schedules = [FineTuning(2, batch_size=4).schedule(len(data), r) for r in range(2)]
    outcomes = retrain(model, data, queries, masks[:, columns], schedules, at_once=4, progress=False)
    expected = lds(scores, masks, outcomes)
    assert result["subsets"] == 6
    assert result["lds"] == pytest.approx(expected.value, abs=1e-3)
    assert result["interval"] == pytest.approx(expected.interval, abs=1e-3)
    assert result["ceiling"] == pytest.approx(expected.reliability.ceiling, abs=1e-3)


@pytest.mark.slow
def test_responses_and_gaps_name_their_parts(tiny, run):
    """Oracle: the fields others script against; the linear answer follows the response where theory says so."""
    result = json.loads(ask("pbrf", tiny, run, "--budget", 20, "--at-once", 16).stdout)
    assert result["sequences"] >= 3
    assert result["linear answer"]["correlation"] > 0.9
    done = ask("loo", tiny, run, "--budget", 20, "--runs", 1, "--at-once", 16)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert list(result["gap, nats"]) == ["warm start", "proximity", "non-convergence", "linearisation", "solver"]


def test_budget_decides_how_much_is_done(tiny, run):
    """Oracle: the arithmetic of seconds, and a refusal that says what it would take."""
    assert affordable(1000, 1.0, "lds") == 100
    assert affordable(7.5, 1.0, "pbrf") == 7
    assert affordable(3, 1.0, "loo", most=2) == 2
    with pytest.raises(ArgumentError, match=r"budget: .* allow"):
        affordable(4, 1.0, "lds")
    refused = ask("lds", tiny, run, "--budget", "0.01", "--steps", 100000)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "budget" in refused.stderr


def test_table_has_a_line_for_each_figure(tiny, run):
    """Oracle: the words of the JSON, one to a line."""
    done = invoke("influence", "validate", "lds", run, "--queries", tiny / "queries.jsonl", "--steps", 1, "--budget", 5)
    assert done.exit_code == 0, done.output
    for word in ("lds", "ceiling", "split_half", "subsets", " to "):
        assert word in done.stdout
