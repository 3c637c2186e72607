"""`hesse influence fit --strategy source`: the commands on a run that follows a recorded training."""

import json

import numpy as np
import pytest

from tests.cli.conftest import invoke

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def record(tiny, tmp_path_factory):
    """Four steps that end in the tiny model, its training texts known to the record."""
    from hesse.influence import load_model, read_rows, tokenize_rows
    from hesse.influence.trajectory import SGD, Recorder

    model, tokenizer = load_model(str(tiny / "model"))
    last = {name: value.detach().clone() for name, value in model.named_parameters()}
    noise = {name: torch.randn_like(value) for name, value in last.items()}
    train = tokenize_rows(read_rows(str(tiny / "train.jsonl")), tokenizer, 24)
    folder = tmp_path_factory.mktemp("recorded") / "record"

    def put(share):
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(last[name] + share * noise[name])

    put(0.02)
    recorder = Recorder(folder, model, SGD(), every=1, per="tokens", dataset=train)
    for step in range(4):
        put(0.02 * (3 - step))
        recorder.step([step], learning_rate=0.1)
    recorder.finish()
    return folder


def test_fit_score_top_report_export(tiny, record, tmp_path):
    """Oracle: the function `source` on the same texts; what every command prints of it; a second fit returns."""
    from hesse.influence import load_model, open_record, open_run, read_queries, read_rows, source, tokenize_rows
    from hesse.influence.query import tokenize_query

    run, queries = tmp_path / "run", tiny / "queries.jsonl"
    words = ["influence", "fit", tiny / "model", "--data", tiny / "train.jsonl", "--run", run, "--max-length", 24]
    words += ["--strategy", "source", "--record", record, "--segments", 2]
    fitted = invoke(*words, "--json")
    assert fitted.exit_code == 0, fitted.output
    assert json.loads(fitted.stdout)["strategy"] == "source"
    assert "in 2 segments" in invoke(*words).stderr
    scored = invoke("influence", "score", run, "--queries", queries, "--rank", "full", "--per-layer", "--json")
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)["strategy"] == "source"

    model, tokenizer = load_model(str(tiny / "model"))
    train = tokenize_rows(read_rows(str(tiny / "train.jsonl")), tokenizer, 24)
    asked = [tokenize_query(query, tokenizer, 24) for query in read_queries(queries)]
    wanted = source(model, asked, train, open_record(record), tmp_path / "s", segments=2, progress=False)
    opened = open_run(run)
    by_row = np.zeros(opened.scores.values.shape)
    for column, sequence in enumerate(train):
        by_row[:, opened.scores.row_places[sequence.row]] += wanted.values[:, column].numpy()
    np.testing.assert_allclose(opened.scores.values, by_row, rtol=0, atol=1e-4 * np.abs(by_row).max())
    assert {name.split(".")[0] for name in opened.scores.layer_names} == {"segment-0", "segment-1"}

    listed = json.loads(invoke("influence", "top", run, "-k", 3, "--json").stdout)["queries"][0]["top"]
    assert [entry["id"] for entry in listed] == [row.id for row in opened.top(3)]
    page = tmp_path / "page.html"
    assert invoke("influence", "report", run, "--out", page).exit_code == 0
    text = page.read_text()
    assert "Training in segments" in text
    assert "knows nothing of the path" not in text
    table = tmp_path / "scores.npz"
    assert invoke("influence", "export", run, "--out", table).exit_code == 0
    with np.load(table) as exported:
        np.testing.assert_array_equal(exported["score"], np.array(opened.scores.values))
    assert invoke("verify", run).exit_code == 0


def test_what_does_not_go_together_is_refused(tiny, record, tmp_path):
    """Oracle: one line that names the argument, and no run; another cut of a run that is there."""
    words = ["influence", "fit", tiny / "model", "--data", tiny / "train.jsonl", "--run", tmp_path / "run"]
    words += ["--max-length", 24]
    for more, told in (
        (["--strategy", "source"], "record: --strategy source follows a recorded training run"),
        (["--record", record], "record: --strategy source follows a recorded training run"),
        (["--strategy", "source", "--record", record, "--damping", "0.2"], "damping: Source needs none"),
        (["--strategy", "source", "--record", record, "--segments", 9], "segments: expected 1 to 4"),
        (["--strategy", "source", "--record", record, "--dtype", "bfloat16", "--max-length", 20], "other data"),
    ):
        refused = invoke(*words, *more)
        assert refused.exit_code != 0
        assert told in " ".join(refused.stderr.split()), refused.stderr
        assert not (tmp_path / "run").exists()
    follow = ["--strategy", "source", "--record", record]
    assert invoke(*words, *follow, "--segments", 1).exit_code == 0
    refused = invoke(*words, *follow, "--segments", 2)
    assert refused.exit_code != 0
    assert "segments" in refused.stderr
    own = invoke("influence", "self", tmp_path / "run")
    assert own.exit_code != 0
    assert "self_influence is about one set of weights" in " ".join(own.stderr.split())
