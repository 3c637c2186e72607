"""`hesse curvature report` on a factory and on a tiny language model."""

import json

import pytest
import torch
from torch.nn import functional

from tests.cli.conftest import invoke, write_lines

FACTORY = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def make():
    torch.manual_seed(0)
    x = torch.randn(12, 3)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True).tanh()), batch_size=5)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)), nn.MSELoss(), loader

def wrong():
    return 3
"""
QUICK = ["--eigenvalues", "2", "--probes", "4", "--steps", "4", "--samples", "4", "--no-layers"]


def test_a_factory_is_measured(tmp_path, monkeypatch):
    """Oracle: the loss of that model and loader; the page beside the JSON."""
    (tmp_path / "factory_of_test.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "page.html"
    done = invoke("curvature", "report", "factory_of_test:make", "--lr", "0.1", *QUICK, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["num_examples"], found["num_parameters"], len(found["eigenvalues"])) == (12, 11, 2)
    assert found["stability"]["batch_size"] == 12
    assert out.read_text().startswith("<!doctype html>")
    spoken = invoke("curvature", "report", "factory_of_test:make", *QUICK, "--out", out)
    assert "sharpness" in spoken.stdout
    assert "wrote" in spoken.stderr


def test_a_language_model_is_measured(tiny, tmp_path):
    """Oracle: the mean over sequences of the mean loss of a token, computed sequence by sequence."""
    from hesse.influence.huggingface import load_model
    from hesse.influence.sequences import read_rows, tokenize_rows

    words = ["curvature", "report", tiny / "model", tiny / "train.jsonl", "--dtype", "float64", "--max-sequences", "3"]
    done = invoke(*words, *QUICK, "--out", tmp_path / "page.html", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    model, tokenizer = load_model(tiny / "model", dtype="float64")
    losses = []
    for sequence in tokenize_rows(read_rows(tiny / "train.jsonl"), tokenizer, 32)[:3]:
        ids = torch.from_numpy(sequence.input_ids)
        labels = torch.from_numpy(sequence.labels)[1:]
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        losses.append(float(functional.cross_entropy(logits, labels, ignore_index=-100)))
    assert found["loss"] == pytest.approx(sum(losses) / 3)
    assert found["num_examples"] == 3


def test_sequences_without_a_token_to_predict_are_left_out(tiny, tmp_path):
    """Invariance: with and without a text of one token; alone it is refused."""
    texts = [{"id": "a", "text": "the cat sat on the mat"}, {"id": "b", "text": "the capital of oster"}]
    short = {"id": "short", "text": "x"}
    found = []
    for rows in (texts, [short, *texts]):
        write_lines(tmp_path / "data.jsonl", rows)
        done = invoke(
            "curvature",
            "report",
            tiny / "model",
            tmp_path / "data.jsonl",
            *QUICK,
            "--out",
            tmp_path / "p.html",
            "--json",
        )
        assert done.exit_code == 0, done.output
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert "1 sequences hold no token" in done.stderr
    write_lines(tmp_path / "data.jsonl", [short])
    refused = invoke("curvature", "report", tiny / "model", tmp_path / "data.jsonl", *QUICK)
    assert refused.exit_code == 1
    assert "token to predict" in refused.stderr


def test_what_cannot_be_measured_is_refused(tiny, tmp_path, monkeypatch):
    """Oracle: exit code 1, a line that names the cause, and no page."""
    (tmp_path / "factory_of_test.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    for words, message in [
        (["no_such_module:make"], "no_such_module"),
        (["factory_of_test:none"], "none"),
        (["factory_of_test:wrong"], "(model, loss, loader)"),
        (["factory_of_test:make", tiny / "train.jsonl"], "data"),
        ([tiny / "model"], "data"),
        ([tiny / "model", tiny / "train.jsonl", "--max-length", "33"], "positions"),
    ]:
        done = invoke("curvature", "report", *words, *QUICK)
        assert (done.exit_code, done.stdout) == (1, ""), done.output
        assert message in done.stderr
    assert not (tmp_path / "curvature.html").exists()
