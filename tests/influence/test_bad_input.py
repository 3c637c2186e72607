"""What goes in wrong comes out as an error that names it, and never as a run that is half written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.influence._reliability import TRACKED, TinyLanguageModel, content, tiny_model, tiny_sequences
from hesse.curvature.ekfac import Absolute, Relative
from hesse.errors import (
    ArgumentError,
    ArgumentTypeError,
    ArtifactError,
    HesseError,
    MemoryLimitError,
    NumericalError,
    ShapeError,
)
from hesse.influence.engine import Influence
from hesse.influence.objective import CausalLMLoss, LossOutput
from hesse.influence.query import Query
from hesse.influence.run import open_folder
from hesse.influence.sequences import Sequence
from hesse.io import manifest_exists, verify_run

QUIET = {"progress": False, "checkpoint_seconds": 0.0, "unit_size": 4}
POISON = 12  # the last token of the vocabulary


class Spare(TinyLanguageModel):
    """With a layer that no forward pass calls."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(4, 4)


class Blind(TinyLanguageModel):
    """With a block called under no_grad."""

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        with torch.no_grad():
            x = x + self.blocks[0](x)
        return self.head(x + self.blocks[1](x))


class Dead(TinyLanguageModel):
    """With a block that no gradient reaches."""

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        return self.head(x + self.blocks[0](x) + 0 * self.blocks[1](x))


class WithHead(TinyLanguageModel):
    """Saying which layer is its output embedding, as transformers do."""

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@dataclass(frozen=True)
class Rescaled:
    """c times the loss, as a mean over tokens would be; its output Hessian is c times as large as well."""

    factor: float
    inner: CausalLMLoss = field(default_factory=CausalLMLoss)

    def __call__(self, model: nn.Module, batch: Any, labels: Any = None) -> LossOutput:
        per_token, logits, valid = self.inner(model, batch, labels)
        return LossOutput(self.factor * per_token, logits, valid)

    def cotangents(self, logits: Tensor, valid: Tensor) -> Any:
        for column in self.inner.cotangents(logits, valid):
            yield self.factor**0.5 * column

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def seeded(kind: type[TinyLanguageModel]) -> TinyLanguageModel:
    torch.manual_seed(0)
    return kind().eval()


def sequence(name: str, tokens: list[int], labels: list[int] | None = None) -> Sequence:
    ids = np.array(tokens, dtype=np.int64)
    return Sequence(name, name, ids, ids.copy() if labels is None else np.array(labels, dtype=np.int64))


def clean_data() -> list[Sequence]:
    """None of them holds the poisonous token."""
    return [sequence(s.id, (s.input_ids % POISON).tolist()) for s in tiny_sequences(12)]


def poisoned(name: str) -> Sequence:
    return sequence(name, [1, 2, POISON, 3, 4])


def poisoned_model() -> TinyLanguageModel:
    model = tiny_model()
    with torch.no_grad():
        model.embedding.weight[POISON] = float("nan")
    return model


def tied_model() -> TinyLanguageModel:
    model = tiny_model()
    layers = dict(model.named_modules())
    layers["blocks.1.0"].weight = layers["blocks.0.0"].weight
    return model


def half_double() -> TinyLanguageModel:
    model = tiny_model()
    model.blocks[0].double()
    return model


def model_in_training(name: str = "") -> TinyLanguageModel:
    model = tiny_model()
    model.get_submodule(name).train()
    return model


def influence(model: nn.Module | None = None, **options: Any) -> Influence:
    settings: dict[str, Any] = {"modules": TRACKED, **options}
    return Influence(tiny_model() if model is None else model, **settings)


def fit(folder: Path, model: nn.Module | None = None, data: Any = None, batching: Any = None, **options: Any) -> None:
    influence(model, **options).fit(clean_data() if data is None else data, folder, **(QUIET | (batching or {})))


def score(folder: Path, queries: Any = None, data: Any = None, **question: Any) -> Any:
    asked = tiny_sequences(2, 1, prompt=2) if queries is None else queries
    return influence().score(asked, clean_data() if data is None else data, folder, **(QUIET | question))


MODELS_AND_OPTIONS: dict[str, tuple[Callable[[Path], Any], type[HesseError], str]] = {
    "training mode": (
        lambda folder: fit(folder, model_in_training()),
        ArgumentError,
        r"model: 'TinyLanguageModel' is in train\(\)",
    ),
    "a submodule in training mode": (
        lambda folder: fit(folder, model_in_training("blocks.1")),
        ArgumentError,
        r"model: 'blocks\.1' is in train\(\)",
    ),
    "a layer that is never called": (
        lambda folder: fit(folder, seeded(Spare), modules=r"^(blocks|spare)"),
        ArgumentError,
        "modules: .*'spare'",
    ),
    "a layer under no_grad": (
        lambda folder: fit(folder, seeded(Blind)),
        ArgumentError,
        r"modules: .*'blocks\.0\.0'",
    ),
    "every layer under no_grad": (
        lambda folder: fit(folder, seeded(Blind), modules=r"^blocks\.0"),
        ArgumentError,
        "modules: .*gradients enabled",
    ),
    "tied weights": (
        lambda folder: fit(folder, tied_model()),
        ArgumentError,
        r"modules: 'blocks\.0\.0' and 'blocks\.1\.0' share one weight",
    ),
    "the output embedding": (
        lambda folder: fit(folder, seeded(WithHead), modules="head"),
        ArgumentError,
        "modules: 'head' is the output embedding.*GiB",
    ),
    "no layer matches": (lambda folder: fit(folder, modules="attn"), ArgumentError, "modules: 'attn' matches no"),
    "no regular expression": (lambda folder: fit(folder, modules="("), ArgumentError, r"modules: '\(' is neither"),
    "an embedding picked": (
        lambda folder: fit(folder, modules="embedding"),
        ArgumentError,
        "modules: 'embedding' is a Embedding",
    ),
    "unknown strategy": (lambda folder: fit(folder, strategy="bfgs"), ArgumentError, "strategy: .*'bfgs'"),
    "unknown fisher": (lambda folder: fit(folder, fisher="true"), ArgumentError, "fisher: .*'true'"),
    "unknown positions": (lambda folder: fit(folder, positions="all"), ArgumentError, "positions: .*'all'"),
    "negative damping": (lambda folder: fit(folder, damping=-0.1), ArgumentError, "damping: .*-0.1"),
    "NaN damping": (lambda folder: fit(folder, damping=Absolute(float("nan"))), ArgumentError, "damping: .*nan"),
    "zero damping with a dead layer": (
        lambda folder: fit(folder, seeded(Dead), damping=0.0),
        ArgumentError,
        r"damping: layer 'blocks\.1\.0' has zero eigenvalues",
    ),
    "relative damping with a dead layer": (
        lambda folder: fit(folder, seeded(Dead), damping=Relative(0.1)),
        ArgumentError,
        r"damping: layer 'blocks\.1\.0' has zero eigenvalues",
    ),
    "no block": (lambda folder: fit(folder, blocks=0), ArgumentError, "blocks: .*0"),
    "more blocks than outputs": (
        lambda folder: fit(folder, blocks=17),
        ArgumentError,
        r"blocks: expected 1 to 16 for layer 'blocks\.0\.2'",
    ),
    "negative seed": (lambda folder: fit(folder, seed=-1), ArgumentError, "seed: .*-1"),
    "half precision": (lambda folder: fit(folder, tiny_model().half()), ArgumentError, "model: .*float16"),
    "two precisions": (
        lambda folder: fit(folder, half_double()),
        ArgumentError,
        r"model: 'blocks\.0\.0' is in torch\.float64",
    ),
    "no model": (lambda folder: Influence("gpt2"), ArgumentTypeError, "model: .*str"),  # pyright: ignore[reportArgumentType]
    "no picker": (lambda folder: fit(folder, modules=None), ArgumentTypeError, "modules: .*NoneType"),
    "no loss": (lambda folder: fit(folder, loss="mse"), ArgumentTypeError, "loss: .*str"),
    "a loss that draws no labels": (
        lambda folder: fit(folder, loss=lambda model, batch, labels=None: None),
        ArgumentTypeError,
        "loss: .*function, which has no positions",
    ),
    "damping as text": (lambda folder: fit(folder, damping="0.1"), ArgumentTypeError, "damping: .*str"),
    "a fraction as seed": (lambda folder: fit(folder, seed=0.5), ArgumentTypeError, "seed: .*float"),
    "a rescaled loss": (
        lambda folder: fit(folder, loss=Rescaled(0.25)),
        ArgumentError,
        "loss: .*negative log-likelihood.*fisher='exact'",
    ),
}

DATA: dict[str, tuple[Callable[[Path], Any], type[HesseError], str]] = {
    "NaN loss": (
        lambda folder: fit(folder, poisoned_model(), [*clean_data(), poisoned("bad one")]),
        NumericalError,
        "dataset: .*'bad one' is NaN",
    ),
    "NaN loss, empirical": (
        lambda folder: fit(folder, poisoned_model(), [*clean_data(), poisoned("bad one")], fisher="empirical"),
        NumericalError,
        "dataset: .*'bad one' is NaN",
    ),
    "no data": (lambda folder: fit(folder, data=[]), ArgumentError, "dataset: it holds no sequence"),
    "an empty sequence": (
        lambda folder: fit(folder, data=[*clean_data(), sequence("void", [])]),
        ArgumentError,
        "dataset: sequence 'void' is empty",
    ),
    "one id twice": (
        lambda folder: fit(folder, data=[*clean_data(), sequence("s3", [1, 2])]),
        ArgumentError,
        "dataset: the id 's3' occurs twice",
    ),
    "fewer labels than tokens": (
        lambda folder: fit(folder, data=[sequence("short", [1, 2, 3], [-100, 2])]),
        ShapeError,
        "dataset: sequence 'short' has 3 tokens but 2 labels",
    ),
    "not data at all": (lambda folder: fit(folder, data=[1, 2]), ArgumentTypeError, "dataset: .*int"),
    "nothing supervised anywhere": (
        lambda folder: fit(folder, data=[sequence("a", [1, 2, 3], [-100] * 3)]),
        ArgumentError,
        r"fit: blocks.* no position",
    ),
    "no sequence to fit on": (
        lambda folder: fit(folder, batching={"max_sequences": 0}),
        ArgumentError,
        "max_sequences: .*0",
    ),
    "no token a batch": (lambda folder: fit(folder, batching={"batch_tokens": 0}), ArgumentError, "batch_tokens.* 0"),
    "no sequence a batch": (lambda folder: fit(folder, batching={"batch_size": 0}), ArgumentError, "batch_size.* 0"),
    "no sequence a unit": (lambda folder: fit(folder, batching={"unit_size": 0}), ArgumentError, "unit_size.* 0"),
}

QUESTIONS: dict[str, tuple[Callable[[Path], Any], type[HesseError], str]] = {
    "rank 0": (lambda folder: score(folder, rank=0), ArgumentError, "rank: .*0"),
    "a fraction as rank": (lambda folder: score(folder, rank=0.5), ArgumentTypeError, "rank: .*float"),
    "negative refine_topk": (lambda folder: score(folder, refine_topk=-1), ArgumentError, "refine_topk: .*-1"),
    "unknown units": (lambda folder: score(folder, units="bits"), ArgumentError, "units: .*'bits'"),
    "no token a batch": (lambda folder: score(folder, batch_tokens=0), ArgumentError, "batch_tokens.* 0"),
    "a nameless measurement": (
        lambda folder: score(folder, measurement=lambda model, batch: model(batch["input_ids"]).sum((1, 2))),
        ArgumentError,
        "measurement_name",
    ),
    "a measurement of the wrong shape": (
        lambda folder: score(
            folder, measurement=lambda model, batch: model(batch["input_ids"]).sum(), measurement_name="sum"
        ),
        ArgumentError,
        r"measurement: .*shape \(2,\)",
    ),
    "queries too large": (lambda folder: score(folder, query_memory=100), MemoryLimitError, "query_memory"),
    "refined queries too large": (
        lambda folder: score(folder, rank=1, query_memory=2000),
        MemoryLimitError,
        "query_memory.*refine_topk=0",
    ),
    "no query": (lambda folder: score(folder, queries=[]), ArgumentError, "queries: it holds no sequence"),
    "an empty query": (
        lambda folder: score(folder, [sequence("void", [])]),
        ArgumentError,
        "queries: sequence 'void' is empty",
    ),
    "one query twice": (
        lambda folder: score(folder, [sequence("q", [1, 2])] * 2),
        ArgumentError,
        "queries: the id 'q' occurs twice",
    ),
    "no candidate": (lambda folder: score(folder, data=[]), ArgumentError, "dataset: it holds no sequence"),
    "an empty completion": (
        lambda folder: score(folder, [sequence("mute", [1, 2, 3], [-100] * 3)]),
        ArgumentError,
        "queries: 'mute' has no supervised token",
    ),
    "a completion without context": (
        lambda folder: score(folder, [sequence("lone", [1])]),
        ArgumentError,
        "queries: 'lone' has no supervised token",
    ),
    "other settings": (
        lambda folder: influence(damping=0.5).score(tiny_sequences(1, 1, prompt=2), clean_data(), folder, **QUIET),
        ArgumentError,
        r"run: .*damping \('0.1' there, '0.5' now\)",
    ),
    "other layers": (
        lambda folder: influence(modules=r"^blocks\.0").score(tiny_sequences(1), clean_data(), folder, **QUIET),
        ArtifactError,
        "run: .*other layers",
    ),
    "factors of another shape": (
        lambda folder: influence(wide_model()).score(tiny_sequences(1, 1, prompt=2), clean_data(), folder, **QUIET),
        ArtifactError,
        "run: .*another model",
    ),
    "self-influence without tokens": (
        lambda folder: influence().self_influence(clean_data(), folder, batch_tokens=0),
        ArgumentError,
        "batch_tokens.* 0",
    ),
    "self-influence on another model": (
        lambda folder: influence(wide_model()).self_influence(clean_data(), folder),
        ArtifactError,
        "run: .*another model",
    ),
}


def wide_model() -> TinyLanguageModel:
    model = tiny_model()
    model.blocks[0] = nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16)).eval()
    return model


@pytest.mark.parametrize("row", MODELS_AND_OPTIONS | {f"data: {name}": row for name, row in DATA.items()})
def test_bad_input_to_fit(row, tmp_path):
    """Oracle: the error's class and the name in its message; no folder, or one with every file as its manifest says."""
    call, kind, message = (MODELS_AND_OPTIONS | {f"data: {name}": value for name, value in DATA.items()})[row]
    with pytest.raises(kind, match=message):
        call(tmp_path / "run")
    if manifest_exists(tmp_path / "run"):
        assert verify_run(tmp_path / "run") == []
    else:
        assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "run"
    fit(folder)
    return folder


@pytest.mark.parametrize("row", QUESTIONS)
def test_bad_input_to_score(row, fitted):
    """Oracle: the error's class and the name in its message; the bytes of the run, unchanged: nothing had begun."""
    call, kind, message = QUESTIONS[row]
    before = content(fitted)
    with pytest.raises(kind, match=message):
        call(fitted)
    assert content(fitted) == before
    assert verify_run(fitted) == []


def test_an_empty_completion_as_text():
    """Oracle: the error names the query."""
    with pytest.raises(ArgumentError, match="query 'mute': the completion is empty"):
        Query("mute", "prompt", "")


def test_nan_in_what_is_scored(tmp_path):
    """Oracle: the id in the message; finished shards stay, and the call without the bad sequence succeeds."""
    engine = influence(poisoned_model())
    engine.fit(clean_data(), tmp_path, **QUIET)
    queries = [sequence("q", [1, 2, 3, 4])]
    with pytest.raises(NumericalError, match=r"^dataset: the loss of sequence 'bad one' is NaN"):
        engine.score(queries, [*clean_data(), poisoned("bad one")], tmp_path, **QUIET)
    assert verify_run(tmp_path) == []
    with pytest.raises(NumericalError, match=r"^queries: the loss of sequence 'bad query' is NaN"):
        engine.score([poisoned("bad query")], clean_data(), tmp_path, **QUIET)
    assert verify_run(tmp_path) == []
    assert np.isfinite(engine.score(queries, clean_data(), tmp_path, **QUIET).values).all()


def test_scoring_before_the_fit_has_finished(tmp_path):
    """Oracle: the advice in the message; and where there is no run at all, no folder afterwards."""
    engine = influence(poisoned_model())
    queries = [sequence("q", [1, 2, 3, 4])]
    with pytest.raises(NumericalError):
        engine.fit([*clean_data(), poisoned("bad one")], tmp_path / "run", **QUIET)
    assert open_folder(tmp_path / "run").stage("fit")["sequences"] == 12
    before = content(tmp_path / "run")
    with pytest.raises(ArgumentError, match="has not finished; run fit again"):
        engine.score(queries, clean_data(), tmp_path / "run", **QUIET)
    assert content(tmp_path / "run") == before
    with pytest.raises(ArtifactError, match="not a run"):
        engine.score(queries, clean_data(), tmp_path / "none", **QUIET)
    assert not (tmp_path / "none").exists()


def test_a_failure_leaves_the_model_as_it_was(tmp_path):
    """Oracle: flags and hooks before; a frozen parameter stays frozen, the others not."""
    model = poisoned_model()
    model.head.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(NumericalError):
        influence(model).fit([poisoned("bad one")], tmp_path / "run", **QUIET)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("batching", [{}, {"batch_size": 1}], ids=["batched", "one at a time"])
def test_a_sequence_with_nothing_supervised(batching, tmp_path):
    """Oracle: its score is exactly 0; it counts in N, which under relative damping leaves the other scores alone."""
    silent = [sequence("masked", [1, 2, 3, 4], [-100] * 4), sequence("single", [5])]
    queries, settings = tiny_sequences(2, 1, prompt=2), QUIET | batching
    options = {"rank": None, "per_token": True}
    engine = influence(fisher="empirical")
    factors = engine.fit([*clean_data(), *silent], tmp_path / "with", **settings)
    assert factors.num_sequences == 14
    scores = engine.score(queries, [*clean_data(), *silent], tmp_path / "with", **options, **settings)
    assert np.array_equal(scores.values[:, 12:], np.zeros((2, 2)))
    tokens = scores.tokens(0, "masked")
    assert tokens is not None
    assert np.array_equal(tokens, np.zeros(4))
    raw = engine.score(queries, [*clean_data(), *silent], tmp_path / "with", units="raw", **options, **settings)
    np.testing.assert_allclose(raw.values, 14 * np.asarray(scores.values), rtol=1e-5)
    engine.fit(clean_data(), tmp_path / "without", **settings)
    without = engine.score(queries, clean_data(), tmp_path / "without", **options, **settings)
    np.testing.assert_allclose(scores.values[:, :12], without.values, rtol=1e-4, atol=1e-6)


def test_the_scale_of_the_loss_with_exact_labels(tmp_path):
    """Oracle: an invariance. With f fixed, cL and cG give the score of L and G, under damping relative to G."""
    data, queries = clean_data()[:6], tiny_sequences(2, 1, prompt=2)

    def log_probability(model: nn.Module, batch: Any) -> Tensor:
        return -CausalLMLoss()(model, batch).per_token.sum(1)

    values = []
    for factor in (1.0, 0.25):
        model = tiny_model(torch.float64)
        engine = influence(model, loss=Rescaled(factor), fisher="exact")
        folder = tmp_path / str(factor)
        engine.fit(data, folder, **QUIET)
        question = {"measurement": log_probability, "measurement_name": "log p", "rank": None}
        values.append(np.array(engine.score(queries, data, folder, **question, **QUIET).values))
    np.testing.assert_allclose(values[1], values[0], rtol=1e-8)
