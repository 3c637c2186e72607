"""Tests of hesse.influence.trajectory.magic, against finite differences of real retraining."""

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.influence import CausalLMLoss, ClassificationLoss, as_examples
from hesse.influence.trajectory import SGD, AdamW, TrainingSchedule, magic, replay
from tests.influence._tiny import F64, classifier, gpt2, llama, points, tokens

OPTIMIZERS = {
    "sgd": SGD(),
    "momentum, decay, clipped": SGD(0.9, 0.01, clip_norm=0.8),
    "nesterov": SGD(0.8, nesterov=True),
    "adamw": AdamW(weight_decay=0.1),
    "adamw, clipped, some decay": AdamW((0.8, 0.95), weight_decay=0.2, no_decay=("0.bias", "2.bias"), clip_norm=0.5),
    "adamw with a root": AdamW(eps_root=1e-6),
}


def rates(steps: int, peak: float) -> list[float]:
    return [peak * min(1, (t + 1) / 3) * (1 - t / steps) for t in range(steps)]


def retrained(model, queries, data, schedule, loss, *, step=1e-5):
    """d f / d w by central differences of whole training runs, (Q, N)."""
    asked, examples = as_examples(queries), as_examples(data)

    def measured(counts):
        weights = replay(model, data, schedule, loss=loss, counts=counts)
        batch = asked.batch(range(len(asked)))

        class Bound(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self):
                return loss(self.model, batch).per_token.sum(1)

        with torch.no_grad():
            return -torch.func.functional_call(Bound(), {f"model.{k}": v for k, v in weights.items()}, ())

    columns = []
    for n in range(len(examples)):
        shift = torch.zeros(len(examples), dtype=F64)
        shift[n] = step
        columns.append((measured(1 + shift) - measured(1 - shift)) / (2 * step))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_classifier_matches_retraining(name):
    """Oracle: central differences of retraining, float64, relative 1e-5; no sequence is left out of the comparison."""
    data, asked, loss = points(12), points(4, seed=5), ClassificationLoss()
    schedule = TrainingSchedule.shuffled(12, 5, OPTIMIZERS[name], rates(14, 0.1 if "adam" in name else 0.3), seed=3)
    got = magic(classifier(), asked, data, schedule, loss=loss).values
    expected = retrained(classifier(), asked, data, schedule, loss)
    assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("build", [gpt2, llama])
def test_language_model_matches_retraining(build):
    """Oracle: central differences of retraining a transformer on ragged rows, loss per token, AdamW, float64."""
    data, asked, loss = tokens(7), tokens(2, seed=4), CausalLMLoss()
    optimizer = AdamW(weight_decay=0.1, clip_norm=1.0, eps=1e-6)
    schedule = TrainingSchedule.shuffled(7, 3, optimizer, rates(6, 0.01), per="tokens")
    got = magic(build(), asked, data, schedule).values
    expected = retrained(build(), asked, data, schedule, loss)
    assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("checkpoints", [1, 2, 4, 11])
def test_memory_changes_nothing(checkpoints):
    """Oracle: every state kept; the result is the same to the last bit, and so it is query by query to rounding."""
    data, asked = points(9), points(5, seed=2)
    schedule = TrainingSchedule.shuffled(9, 4, AdamW(), rates(11, 0.05))
    options = {"loss": ClassificationLoss()}
    everything = magic(classifier(), asked, data, schedule, checkpoints=11, **options)
    few = magic(classifier(), asked, data, schedule, checkpoints=checkpoints, **options)
    assert torch.equal(few.values, everything.values)
    single = magic(classifier(), asked, data, schedule, query_batch=1, **options)
    torch.testing.assert_close(single.values, everything.values, rtol=1e-10, atol=1e-14)


def test_one_step_is_the_gradient_dot_product():
    """Oracle: closed form. After one SGD step, df/dw_n = -(η/B) ∇f(θ₁)·∇L_n(θ₀); others score exactly zero."""
    data, asked, model = points(5), points(2, seed=8), classifier()
    schedule = TrainingSchedule(SGD(), (0.2,), ((1, 3),))
    got = magic(model, asked, data, schedule, loss=ClassificationLoss())
    after = classifier()
    after.load_state_dict(replay(model, data, schedule, loss=ClassificationLoss()))

    def gradient(net, x, y):
        value = torch.nn.functional.cross_entropy(net(x[None]), y[None])
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net.parameters()))])

    expected = torch.zeros(2, 5, dtype=F64)
    for q in range(2):
        for n in (1, 3):
            dot = gradient(after, asked[0][q], asked[1][q]) @ gradient(model, data[0][n], data[1][n])
            expected[q, n] = 0.2 / 2 * dot
    torch.testing.assert_close(got.values, expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(got.values[:, [0, 2, 4]], torch.zeros(2, 3, dtype=F64))


def test_a_sequence_that_comes_twice_counts_twice():
    """Oracle: the same sequence entered under two numbers: its score is the sum of theirs."""
    x, y = points(4)
    loss = {"loss": ClassificationLoss()}
    twice = TrainingSchedule(SGD(0.5), (0.1, 0.2), ((0, 1), (2, 0)))
    apart = TrainingSchedule(SGD(0.5), (0.1, 0.2), ((0, 1), (2, 4)))
    asked = points(2, seed=3)
    one = magic(classifier(), asked, (x, y), twice, **loss).values
    two = magic(classifier(), asked, (torch.cat([x, x[:1]]), torch.cat([y, y[:1]])), apart, **loss).values
    torch.testing.assert_close(one[:, 0], two[:, 0] + two[:, 4], rtol=1e-12, atol=1e-15)


def test_first_weights_frozen_parameters_and_measurement(tmp_path):
    """Oracles: a model that holds the first weights; finite differences with a layer frozen, for a user's quantity."""
    data, asked = points(6), points(2, seed=3)
    loss = ClassificationLoss()
    schedule = TrainingSchedule.shuffled(6, 3, SGD(0.9), [0.1] * 6)
    given, other = classifier(seed=1), classifier(seed=0)
    expected = magic(given, asked, data, schedule, loss=loss).values
    got = magic(other, asked, data, schedule, loss=loss, initial=dict(given.named_parameters())).values
    assert torch.equal(got, expected)
    given[0].requires_grad_(False)
    frozen = magic(given, asked, data, schedule, loss=loss)
    difference = retrained(given, asked, data, schedule, loss)
    assert (frozen.values - difference).norm() <= 1e-5 * difference.norm()

    def doubled(model, batch):
        return -2 * loss(model, batch).per_token.sum(1)

    double = magic(given, asked, data, schedule, loss=loss, measurement=doubled)
    torch.testing.assert_close(double.values, 2 * frozen.values, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(double.measured, 2 * frozen.measured, rtol=1e-12, atol=1e-15)
    best = frozen.topk("0", 2)
    assert best[0].score == float(frozen.values[0].max())
    frozen.to_npz(tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz", allow_pickle=False) as kept:
        assert kept["train_id"].tolist() == frozen.train_ids
        assert np.array_equal(kept["score"], frozen.values.numpy())


def test_float32_agrees_with_float64():
    """Oracle: the same run in float64."""
    data, asked = points(9, dtype=torch.float32), points(3, seed=2, dtype=torch.float32)
    schedule = TrainingSchedule.shuffled(9, 4, AdamW(eps=1e-6), rates(10, 0.05))
    narrow = magic(classifier(torch.float32), asked, data, schedule, loss=ClassificationLoss()).values
    wide = magic(
        classifier(), (asked[0].double(), asked[1]), (data[0].double(), data[1]), schedule, loss=ClassificationLoss()
    ).values
    assert narrow.dtype == torch.float32
    assert (narrow - wide).norm() <= 1e-3 * wide.norm()


def test_bad_input():
    """Oracle: the documented errors, raised before any step is made."""
    data, asked, loss = points(4), points(2, seed=3), ClassificationLoss()
    schedule = TrainingSchedule(SGD(), (0.1,), ((0, 1),))
    with pytest.raises(ArgumentError, match="train\\(\\) mode"):
        magic(classifier().train(), asked, data, schedule, loss=loss)
    with pytest.raises(ArgumentError, match="step 0 of the schedule used number 9"):
        magic(classifier(), asked, data, TrainingSchedule(SGD(), (0.1,), ((0, 9),)), loss=loss)
    with pytest.raises(ArgumentError, match="query_batch"):
        magic(classifier(), asked, data, schedule, loss=loss, query_batch=0)
    with pytest.raises(ArgumentError, match=r"no '0\.weight'"):
        magic(classifier(), asked, data, schedule, loss=loss, initial={})
    with pytest.raises(ShapeError, match="counts"):
        magic(classifier(), asked, data, schedule, loss=loss, counts=torch.ones(3))
    with pytest.raises(ArgumentError, match="float32 or in float64"):
        magic(classifier(torch.bfloat16), asked, data, schedule, loss=loss)
    unknown = TrainingSchedule(SGD(no_decay=("w",), weight_decay=0.1), (0.1,), ((0,),))
    with pytest.raises(ArgumentError, match="no_decay"):
        magic(classifier(), asked, data, unknown, loss=loss)
    broken = {name: torch.full_like(p, torch.nan) for name, p in classifier().named_parameters()}
    with pytest.raises(NumericalError, match="diverged"):
        magic(classifier(), asked, data, schedule, loss=loss, initial=broken)
