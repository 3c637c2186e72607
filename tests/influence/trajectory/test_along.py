"""SOURCE behind `Influence`: the function `source` is the oracle of what it computes, one process that of the rest."""

import os
import signal
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.influence._reliability import memory_folder
from benchmarks.influence._two_processes import finish_ranks, ranks_started, relative_difference
from hesse.errors import ArgumentError, ArtifactError
from hesse.influence import ClassificationLoss, Influence, Source, open_run
from hesse.influence.distributed import ALONE
from hesse.influence.report import collect
from hesse.influence.scores import open_scores
from hesse.influence.trajectory import SGD, open_record, source
from hesse.io import calls, verify_run
from tests.influence._tiny import classifier, gpt2, points, tokens
from tests.influence.trajectory.test_source import adam_record, recorded

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

OPTIONS = {"loss": ClassificationLoss(), "modules": "all-linear", "fisher": "exact"}
QUIET = {"progress": False, "checkpoint_seconds": 0.0}


@pytest.fixture
def tmp_path():
    """A folder in memory where there is one: numbers are tested here, not disks."""
    with memory_folder() as folder:
        yield folder


def divisors(name, parameter):
    return 1 + parameter.abs() + (name == "0.weight")


def run_of(folder, kind="SGD"):
    models = [classifier(seed=s) for s in range(5)]
    rates = [0.3, 0.2, 0.4, 0.1]
    if kind == "AdamW":
        adam_record(folder, [classifier(), *models[1:]], rates, divisors)
    else:
        recorded(folder, [classifier(), *models[1:]], rates, optimizer=SGD(0.5, weight_decay=0.05))
    return models[4]


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_scores_are_those_of_source(kind, tmp_path):
    """Oracle: `source` on the same record; layers add up; refined at rank 1 and the best rows alone are the same."""
    model, data, asked = run_of(tmp_path / "record", kind), points(9), points(3, seed=6)
    wanted = source(
        model, asked, data, open_record(tmp_path / "record"), tmp_path / "s", segments=2, progress=False, **OPTIONS
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    influence = Influence(model, strategy=Source(tmp_path / "record", 2), **OPTIONS)
    factors = influence.fit(data, tmp_path / "run", **QUIET)
    assert list(factors.layers) == [f"segment-{i}.{name}" for i in (0, 1) for name in influence.layers]
    scores = influence.score(asked, data, tmp_path / "run", rank=None, per_layer=True, per_token=True, **QUIET)
    assert relative_difference(np.array(scores.values), wanted.values.numpy()) <= 1e-10
    assert scores.layer_names == list(factors.layers)
    assert relative_difference(np.array(scores.layers).sum(-1), np.array(scores.values)) <= 1e-10
    refined = influence.score(asked, data, tmp_path / "run", rank=1, **QUIET)
    assert relative_difference(np.array(refined.values), wanted.values.numpy()) <= 1e-10
    coarse = influence.score(asked, data, tmp_path / "run", rank=1, refine_topk=0, **QUIET)
    assert relative_difference(np.array(coarse.values), wanted.values.numpy()) > 1e-4
    best = influence.score(asked, data, tmp_path / "run", rank=None, top_k=3, unit_size=4, **QUIET)
    assert [row.id for row in best.topk(1, 3)] == [row.id for row in wanted.topk(1, 3)]
    assert verify_run(tmp_path / "run") == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_measurements_and_tokens_of_a_language_model(tmp_path):
    """Oracles: `source`, of a record whose losses are means over tokens; a measurement that is twice the
    log-probability; the sum over a completion's tokens; a report of the run."""
    from hesse.influence import CausalLMLoss

    model, data, asked = gpt2(seed=2), tokens(6), tokens(2, seed=9)
    record = recorded(tmp_path / "record", [gpt2(), gpt2(seed=1), gpt2(seed=2)], [0.3, 0.2], per="tokens")
    wanted = source(model, asked, data, record, tmp_path / "s", segments=2, progress=False).values.numpy()
    influence = Influence(model, strategy=Source(str(tmp_path / "record"), (1,)))
    influence.fit(data, tmp_path / "run", **QUIET)

    def doubled(model, batch):
        return -2 * CausalLMLoss()(model, batch).per_token.sum(1)

    ask = partial(influence.score, asked, data, tmp_path / "run", rank=None, **QUIET)
    twice = ask(measurement=doubled, measurement_name="twice")
    assert relative_difference(np.array(twice.values), 2 * wanted) <= 1e-9
    each = ask(per_query_token=True, per_token=True)
    assert relative_difference(np.array(each.values), wanted) <= 1e-9
    by_token = [[each.tokens(q, name).sum() for name in each.sequence_ids] for q in range(2)]
    assert relative_difference(np.array(by_token), wanted) <= 1e-9
    assert [entry.id for entry in collect(tmp_path / "run", k=2).queries[0].proponents] == [
        row.id for row in open_run(tmp_path / "run").top(2)
    ]


def work(team, folder, record, data, asked, **question):
    influence = Influence(classifier(seed=4), strategy=Source(record, 2), **OPTIONS)
    steps = QUIET | {"team": team}
    influence.fit(data, folder, **steps)
    influence.score(asked, data, folder, unit_size=4, **(question or {"rank": None}), **steps)


def test_two_processes_and_restarts(tmp_path):
    """Oracle: one process, to 1e-10; killed before a manifest of a fit or of the scores, and taken up by two."""
    run_of(tmp_path / "record")
    task = partial(work, record=tmp_path / "record", data=points(11), asked=points(3, seed=6))
    task(ALONE, tmp_path / "one")
    wanted = np.array(open_scores(tmp_path / "one").values)
    finish_ranks(2, lambda team: task(team, tmp_path / "two"))
    assert relative_difference(np.array(open_scores(tmp_path / "two").values), wanted) <= 1e-10
    assert verify_run(tmp_path / "two") == []
    for index in (4, 12, 18):
        folder = tmp_path / f"run-{index}"

        def dying(team, folder=folder, index=index):
            real, seen = calls.rename, 0

            def rename(origin, target):
                nonlocal seen
                if target.name == "manifest.json":
                    if seen == index:
                        os.kill(os.getpid(), signal.SIGKILL)
                    seen += 1
                return real(origin, target)

            calls.rename = rename  # in the child only
            task(team, folder)

        with ranks_started(1, dying) as (pids, _):
            assert os.WIFSIGNALED(os.waitpid(pids[0], 0)[1]), index  # it did not get to the end
        finish_ranks(2, lambda team, folder=folder: task(team, folder))
        assert relative_difference(np.array(open_scores(folder).values), wanted) <= 1e-10, index
        assert verify_run(folder) == []


def test_foreign_settings_are_refused(tmp_path):
    """Oracle: the documented errors, before any work; a lost file is computed anew."""
    model, data = run_of(tmp_path / "record"), points(9)
    influence = Influence(model, strategy=Source(tmp_path / "record", 2), **OPTIONS)
    influence.fit(data, tmp_path / "run", **QUIET)
    with pytest.raises(ArgumentError, match="strategy: it follows a recorded training run"):
        Influence(model, strategy="source", **OPTIONS)
    with pytest.raises(ArgumentError, match="damping: Source needs none"):
        Influence(model, strategy=Source(tmp_path / "record"), damping=0.2, **OPTIONS)
    with pytest.raises(ArgumentError, match="segments: expected >= 1"):
        Source(tmp_path / "record", 0)
    with pytest.raises(ArgumentError, match="segments: expected 1 to 4"):
        Influence(model, strategy=Source(tmp_path / "record", 5), **OPTIONS)
    with pytest.raises(ArgumentError, match="ended in other weights than the model's"):
        Influence(classifier(seed=3), strategy=Source(tmp_path / "record"), **OPTIONS)
    with pytest.raises(ArtifactError):
        Influence(model, strategy=Source(tmp_path / "nothing"), **OPTIONS)
    other = Influence(model, strategy=Source(tmp_path / "record", (1,)), **OPTIONS)
    with pytest.raises(ArgumentError, match="segments"):
        other.fit(data, tmp_path / "run", **QUIET)
    with pytest.raises(ArgumentError, match="segments"):
        other.score(data, data, tmp_path / "run", **QUIET)
    with pytest.raises(ArgumentError, match="strategy"):
        Influence(model, **OPTIONS).score(data, data, tmp_path / "run", **QUIET)
    for call in (influence.self_influence, influence.index):
        with pytest.raises(ArgumentError, match=f"strategy: {call.__name__} is about one set of weights"):
            call(data, tmp_path / "run")
    with pytest.raises(ArgumentError, match="strategy: ask is"):
        influence.ask(data, tmp_path / "run")
    other.fit(data, tmp_path / "run", overwrite=True, **QUIET)
    first = np.array(other.score(data, data, tmp_path / "run", rank=None, **QUIET).values)
    next((tmp_path / "run" / "segment-1" / "lam").iterdir()).unlink()
    other.fit(data, tmp_path / "run", **QUIET)
    assert verify_run(tmp_path / "run") == []
    again = np.array(other.score(data, data, tmp_path / "run", rank=None, **QUIET).values)
    assert relative_difference(again, first) <= 1e-12


def test_half_precision_follows_too(tmp_path):
    """Oracle: the float32 run, as close as bfloat16 gradients are; the strongest are refined in float32."""
    record = recorded(tmp_path / "record", [gpt2(torch.float32, seed=s) for s in range(3)], [0.3, 0.2])
    last, found = record.weights(2), {}
    for dtype in (torch.float32, torch.bfloat16):
        model = gpt2(torch.float32)
        model.load_state_dict(last, strict=False)
        influence = Influence(model.to(dtype), strategy=Source(tmp_path / "record", 2))
        influence.fit(tokens(6), tmp_path / str(dtype), **QUIET)
        found[dtype] = np.array(influence.score(tokens(2, seed=9), tokens(6), tmp_path / str(dtype), **QUIET).values)
    assert found[torch.bfloat16].dtype == np.float32
    for a, b in zip(found[torch.float32], found[torch.bfloat16], strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.99
