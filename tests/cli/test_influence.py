"""fit, score, top, report, export and verify on a tiny real model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.cli.conftest import EVIL, QUERIES, invoke, write_lines


def test_fit_resumes_and_refuses_other_settings(tiny, tmp_path):
    """Oracle: the manifest: unchanged by the same command, kept on refusal, replaced with --overwrite."""
    run = tmp_path / "run"
    words = ["influence", "fit", tiny / "model", "--data", tiny / "train.jsonl", "--run", run, "--json"]
    first = invoke(*words)
    assert first.exit_code == 0, first.output
    result = json.loads(first.stdout)
    assert (result["rows"], result["strategy"]) == (11, "ekfac")
    assert result["layers"] == ["transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"]
    before = (run / "manifest.json").read_bytes()
    assert json.loads(invoke(*words).stdout) == result
    assert (run / "manifest.json").read_bytes() == before
    refused = invoke(*words, "--damping", "abs:0.5")
    assert refused.exit_code == 1
    assert "damping" in refused.stderr
    assert (run / "manifest.json").read_bytes() == before
    assert invoke(*words, "--damping", "abs:0.5", "--overwrite").exit_code == 0
    assert json.loads((run / "manifest.json").read_text())["config"]["damping"] == "abs:0.5"
    assert invoke("verify", run).exit_code == 0


def test_bad_input_is_refused_before_work(tiny, tmp_path):
    """Oracle: exit code 1, a line that names the cause, and no run."""
    run = tmp_path / "run"
    write_lines(tmp_path / "twice.jsonl", [{"id": "a", "text": "x"}] * 2)
    write_lines(tmp_path / "unknown.jsonl", [{"id": "a", "input_ids": [1, 300]}])
    (tmp_path / "noise.parquet").write_bytes(b"PAR1 noise")
    for model, data, more, message in [
        (tiny / "model", tmp_path / "none.jsonl", [], "none.jsonl"),
        (tiny / "model", tmp_path / "twice.jsonl", [], "twice.jsonl:2"),
        (tmp_path / "nothing" / "here" / "at all", tiny / "train.jsonl", [], "at all"),
        (tiny / "model", tiny / "train.jsonl", ["--damping", "much"], "damping"),
        (tiny / "model", tiny / "train.jsonl", ["--modules", "no-such-layer"], "no-such-layer"),
        (tiny / "model", tiny / "train.jsonl", ["--trust-remote-code"], "full commit"),
        (tiny / "model", tiny / "train.jsonl", ["--max-length", "33"], "max_length: the model has 32 positions"),
        (tiny / "model", tmp_path / "unknown.jsonl", [], "'a' holds token 300"),
        (tiny / "model", tmp_path / "noise.parquet", [], "noise.parquet"),
    ]:
        done = invoke("influence", "fit", model, "--data", data, "--run", run, *more)
        assert (done.exit_code, done.stdout) == (1, ""), done.output
        assert message in done.stderr
        assert not run.exists()


def test_scores_are_those_of_the_library(tiny, run):
    """Oracle: `Influence.score` called by hand on the same texts."""
    from hesse.influence.corpus import open_corpus
    from hesse.influence.engine import Influence
    from hesse.influence.huggingface import load_model
    from hesse.influence.query import Query, tokenize_query
    from hesse.influence.scores import open_scores

    model, tokenizer = load_model(tiny / "model", device="cpu")
    kept = open_scores(run)
    queries = [tokenize_query(Query(**query), tokenizer, 24) for query in QUERIES]
    expected = Influence(model).score(queries, open_corpus(run, "train").sequences(), run, rank=None)
    np.testing.assert_allclose(kept.values, expected.values, rtol=1e-4, atol=1e-7)
    assert kept.query_ids == ["q1", "q2"]
    assert len(kept.train_ids) == 11  # rows: the long one's chunks are summed


def test_top_prints_the_contract(run):
    """Oracle: the fields others script against, and the scores as stored, sorted."""
    from hesse.influence.scores import open_scores

    result = json.loads(invoke("influence", "top", run, "-k", 3, "--json").stdout)
    assert list(result) == ["run", "units", "queries"]
    assert result["units"] == "nats"
    scores = open_scores(run)
    for number, query in enumerate(result["queries"]):
        assert {key: query[key] for key in ("id", "prompt", "completion")} == QUERIES[number]
        best = sorted(np.asarray(scores.values[number]).tolist(), reverse=True)[:3]
        np.testing.assert_allclose([row["score"] for row in query["top"]], [v for v in best if v > 0], rtol=1e-6)
        assert [row["rank"] for row in query["top"]] == list(range(1, len(query["top"]) + 1))
    one = json.loads(invoke("influence", "top", run, "--query", "q2", "--opponents", "--json").stdout)
    (query,) = one["queries"]
    assert query["id"] == "q2"
    assert all(row["score"] < 0 for row in query["top"])
    unknown = invoke("influence", "top", run, "--query", "q9")
    assert unknown.exit_code == 1
    assert "'q9'" in unknown.stderr


def test_training_text_cannot_act_on_the_terminal(run, monkeypatch):
    """Oracle: no control character but newline on stdout, markup shown as it stands, even where colours are forced."""
    monkeypatch.setenv("NO_COLOR", "1")
    found = ""
    for sign in ([], ["--opponents"]):
        done = invoke("influence", "top", run, "-k", 11, *sign)
        assert done.exit_code == 0, done.output
        found += done.stdout
    assert not [c for c in found if (ord(c) < 32 and c != "\n") or c in "\x7f\u202e"]
    assert "[bold red]x[/]" in found
    assert "␛" in found
    assert "⟨202E⟩" in found


def test_tokens_are_coloured_only_when_colours_are_wanted(run):
    """Oracle: escape codes in a forced-colour process, none under NO_COLOR, and the same words."""
    words = [sys.executable, "-m", "hesse.cli.main", "influence", "top", str(run), "--query", "q1", "-k", "2"]

    def out(**more):
        env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | more
        return subprocess.run(words, capture_output=True, text=True, env=env, check=True).stdout

    coloured, plain = out(FORCE_COLOR="1", TERM="xterm-256color"), out(NO_COLOR="1")
    assert "\x1b[" in coloured
    assert "\x1b" not in plain
    assert "marland" in plain


def test_the_report_shows_the_run(run, tmp_path):
    """Oracle: the JSON inside the page against `top`, and the token terms against the score."""
    out = tmp_path / "report.html"
    done = invoke("influence", "report", run, "--out", out, "-k", 5, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bytes"] == out.stat().st_size
    text = out.read_text("utf-8")
    content = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [query["id"] for query in content["queries"]] == ["q1", "q2"]
    assert content["layer_names"] == ["transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"]
    for query in content["queries"]:
        for row in (*query["proponents"], *query["opponents"]):
            assert sum(row["values"]) == pytest.approx(row["score"], rel=0.01, abs=1e-6)
            assert sum(row["layers"]) == pytest.approx(row["score"], rel=0.01, abs=1e-6)
    copies = [len(row["copies"]) for query in content["queries"] for row in query["proponents"]]
    assert max(copies) >= 1  # the training data repeats some sentences
    assert content["title"] == "Influence on model"
    assert str(run.parent) not in text
    redacted = tmp_path / "redacted.html"
    assert invoke("influence", "report", run, "--out", redacted, "--redact").exit_code == 0
    inside = redacted.read_text("utf-8").split('id="data">')[1].split("</script>")[0]
    assert not any(word in inside for word in ("marland", "vesper", EVIL[:5]))


def test_the_report_goes_beside_the_run(run):
    """Oracle: the file's place; inside the run it would be a file that the manifest does not name."""
    done = invoke("influence", "report", run, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["out"] == str(run.resolve().parent / "run.html")
    assert (run.parent / "run.html").is_file()
    assert invoke("verify", run).exit_code == 0


def test_what_is_refined_and_what_has_no_curvature_is_said(tiny, tmp_path):
    """Oracle: the number in the JSON: 500 where the rank is below that of the matrices, 0 where terms are kept."""
    run = tmp_path / "run"
    words = ["--data", tiny / "train.jsonl", "--run", run, "--strategy", "identity"]
    assert invoke("influence", "fit", tiny / "model", *words).exit_code == 0
    ask = ["influence", "score", run, "--queries", tiny / "queries.jsonl", "--rank", "2", "--json"]
    for more, wanted in (([], 500), (["--refine-topk", "3"], 3), (["--per-layer"], 0), (["--per-token"], 0)):
        assert json.loads(invoke(*ask, *more).stdout)["refine_topk"] == wanted
    shown = invoke("influence", "top", run)
    assert "one gradient step" in shown.stderr
    assert "one gradient step" not in shown.stdout


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_export_holds_every_score(run, tmp_path, suffix):
    """Oracle: the stored matrix."""
    from hesse.influence.scores import open_scores

    out = tmp_path / f"scores{suffix}"
    done = invoke("influence", "export", run, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    scores = open_scores(run)
    assert json.loads(done.stdout)["pairs"] == scores.values.size
    if suffix == ".npz":
        with np.load(out, allow_pickle=False) as found:
            np.testing.assert_array_equal(found["score"], scores.values)
            assert found["query_id"].tolist() == scores.query_ids
            assert found["train_id"].tolist() == scores.train_ids
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        assert table.column_names == ["query_id", "train_id", "score"]
        assert table["train_id"].to_pylist() == scores.train_ids * 2
        np.testing.assert_array_equal(table["score"].to_numpy(), np.asarray(scores.values).ravel())
    assert invoke("influence", "export", run, "--out", tmp_path / "no" / f"s{suffix}").exit_code == 1


def test_other_texts_can_be_scored(tiny, run, tmp_path):
    """Oracle: a training row offered again under another id has the training row's score."""
    from hesse.influence.scores import open_scores

    before = open_scores(run)
    rows = [json.loads(line) for line in (tiny / "train.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "other.jsonl", [{"id": "again", "text": rows[0]["text"]}])
    words = ["influence", "score", run, "--queries", tiny / "queries.jsonl", "--rank", "full"]
    done = invoke(*words, "--data", tmp_path / "other.jsonl", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == 1
    np.testing.assert_allclose(open_scores(run).values[:, 0], before.values[:, 0], rtol=1e-4, atol=1e-7)
    (first, _) = json.loads(invoke("influence", "top", run, "--json").stdout)["queries"]
    assert {row["text"] for row in first["top"]} <= {rows[0]["text"]}
    assert invoke("verify", run).exit_code == 0


def test_another_model_is_refused(tiny, run, tmp_path):
    """Oracle: exit code 3 for factors of other weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import shutil

    shutil.copytree(tiny / "model", tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    from hesse.influence.run import open_folder
    from hesse.io import Manifest, write_manifest

    model.save_pretrained(tmp_path / "model")
    found = open_folder(run).manifest
    config = found.config | {"info": found.config["info"] | {"model": str(tmp_path / "model")}}
    write_manifest(run, Manifest(found.kind, config, found.parents, found.stages, found.files))
    # another rank than the run's own, or its finished scores would answer
    done = invoke("influence", "score", run, "--queries", tiny / "queries.jsonl", "--rank", "4")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "another model" in done.stderr


def test_another_tokenizer_is_refused(tiny, run, tmp_path):
    """Oracle: exit code 3 for a tokenizer with one merge less, the weights unchanged."""
    import shutil

    from hesse.influence.run import open_folder
    from hesse.io import Manifest, write_manifest

    shutil.copytree(tiny / "model", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    found = open_folder(run).manifest
    config = found.config | {"info": found.config["info"] | {"model": str(tmp_path / "model")}}
    write_manifest(run, Manifest(found.kind, config, found.parents, found.stages, found.files))
    done = invoke("influence", "score", run, "--queries", tiny / "queries.jsonl")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "tokenizer" in done.stderr


def test_verify_names_what_is_damaged(run):
    """Oracle: one flipped byte in one file."""
    assert json.loads(invoke("verify", run, "--json").stdout) == {"run": str(run), "ok": True, "problems": []}
    (victim,) = (run / "corpus" / "train").glob("texts-*.jsonl")
    data = bytearray(victim.read_bytes())
    data[5] ^= 1
    victim.write_bytes(data)
    done = invoke("verify", run, "--json")
    assert done.exit_code == 3
    assert [problem["path"] for problem in json.loads(done.stdout)["problems"]] == [f"corpus/train/{victim.name}"]
    assert invoke("influence", "top", run).exit_code == 3


def test_commands_out_of_order_say_what_is_missing(tiny, tmp_path):
    """Oracle: exit codes and a line that names the missing step."""
    nothing = invoke("influence", "top", tmp_path / "nothing")
    assert nothing.exit_code == 3
    assert "manifest.json" in nothing.stderr
    run = tmp_path / "run"
    fitted = invoke("influence", "fit", tiny / "model", "--data", tiny / "train.jsonl", "--run", run)
    assert fitted.exit_code == 0
    early = invoke("influence", "report", run, "--out", tmp_path / "r.html")
    assert early.exit_code == 1
    assert "score" in early.stderr


def test_an_interrupt_ends_in_130(tiny, tmp_path):
    """Oracle: SIGINT to a real process while it works; the same command then finishes."""
    run = tmp_path / "run"
    words = ["influence", "fit", str(tiny / "model"), "--data", str(tiny / "train.jsonl"), "--run", str(run)]
    # the signal comes from inside, at the first checkpoint, so that the test does not depend on the machine's speed;
    # its handler is set anew, as a shell's background jobs ignore it and hand that on
    code = (
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import hesse.influence.fit as fit\n"
        "fit.fit_factors.__globals__['save_tensors'] = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
        "from hesse.cli.main import main\nsys.argv = ['hesse', *sys.argv[1:]]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted; the same command again resumes"
    assert invoke(*words).exit_code == 0


def test_score_solves_where_asked(tiny, run):
    """Oracle: `Influence` with the same solver on the same texts; the residual is printed and kept."""
    from hesse.influence import PCG, Influence, open_corpus, open_scores, tokenize_query
    from hesse.influence.huggingface import load_model
    from hesse.influence.query import Query

    words = ["influence", "score", run, "--queries", tiny / "queries.jsonl", "--rank", "full"]
    done = invoke(*words, "--strategy", "pcg", "--steps", 3, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    kept = open_scores(run)
    assert (result["strategy"], result["residual"]) == ("pcg", max(kept.state["residual"]))
    model, tokenizer = load_model(tiny / "model", device="cpu")
    queries = [tokenize_query(Query(**query), tokenizer, 24) for query in QUERIES]
    texts = open_corpus(run, "train").sequences()
    expected = Influence(model, strategy=PCG(steps=3)).score(queries, texts, run, rank=None)
    np.testing.assert_allclose(kept.values, expected.values, rtol=1e-4, atol=1e-7)
    assert "relative residual of the solves" in invoke(*words, "--strategy", "cg", "--steps", 2).stderr
    refused = invoke(*words, "--steps", 3)
    assert refused.exit_code == 1
    assert "steps: they are those of a solver" in refused.stderr
    report = invoke("influence", "report", run)
    assert report.exit_code == 0, report.output
    assert "Each query solved by CG, 2 steps at most" in run.with_suffix(".html").read_text("utf-8")
