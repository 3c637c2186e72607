"""Tests of hesse.influence.trajectory.source."""

import pytest
import torch
from torch import nn

from hesse.curvature.ekfac import Absolute
from hesse.errors import ArgumentError, ArtifactError
from hesse.influence import ClassificationLoss, Influence, RegressionLoss, open_run
from hesse.influence.trajectory import (
    SGD,
    AdamW,
    Recorder,
    TrainingSchedule,
    magic,
    open_record,
    replay,
    source,
    split_segments,
)
from tests.influence._tiny import F64, classifier, loss_gradients, points

LOSS = ClassificationLoss()
OPTIONS = {"loss": LOSS, "modules": "all-linear", "fisher": "exact"}


def recorded(folder, models, rates, *, optimizer=None, **options):
    """A record whose weights before step t, for every t it has a rate for and the last, are those of models[t]."""
    spec = optimizer or SGD()
    model = models[0]
    recorder = Recorder(folder, model, spec, every=1, **options)
    for t, rate in enumerate(rates):
        model.load_state_dict({k: v.clone() for k, v in models[t + 1].state_dict().items()})
        recorder.step([0], learning_rate=rate)
    return recorder.finish()


def test_a_long_segment_is_undamped_influence(tmp_path):
    """Oracle: `Influence.score` without damping at the last weights: the limit of one segment with large τσ."""
    data, asked, last = points(40), points(3, seed=6), classifier(seed=2)
    options = OPTIONS | {"modules": "^0$"}  # a softmax leaves one direction of the last layer without curvature
    record = recorded(tmp_path / "r", [classifier(), last], [1e12])
    got = source(classifier(seed=9), asked, data, record, tmp_path / "s", segments=1, **options)
    engine = Influence(last, damping=Absolute(0.0), **options)
    engine.fit(data, tmp_path / "i")
    expected = torch.tensor(engine.score(asked, data, tmp_path / "i", rank=None).values)
    torch.testing.assert_close(got.values, expected, rtol=1e-6, atol=1e-10)


def test_a_short_segment_is_the_gradient_dot_product(tmp_path):
    """Oracle: `Influence(strategy="identity")`, times τ: the limit of small τ; momentum lengthens τ by 1 / (1 - β)."""
    data, asked, last = points(12), points(3, seed=6), classifier(seed=2)
    engine = Influence(last, strategy="identity", loss=LOSS, modules="all-linear")
    engine.fit(data, tmp_path / "i")
    expected = torch.tensor(engine.score(asked, data, tmp_path / "i", rank=None).values)
    record = recorded(tmp_path / "r", [classifier(), last], [1e-9], optimizer=SGD(0.75))
    got = source(last, asked, data, record, tmp_path / "s", segments=1, **OPTIONS)
    torch.testing.assert_close(got.values, 4e-9 * expected, rtol=1e-6, atol=1e-22)
    still = recorded(tmp_path / "z", [classifier(), last], [0.0])
    assert not bool(source(last, asked, data, still, tmp_path / "s0", segments=1, **OPTIONS).values.any())


def test_segments_match_dense_matrix_functions(tmp_path):
    """Oracle: the formula with dense matrix exponentials of the fitted blocks, and gradients by a loop, float64."""
    data, asked = points(9), points(2, seed=6)
    models = [classifier(seed=s) for s in range(5)]
    optimizer = SGD(0.5, weight_decay=0.05)
    record = recorded(tmp_path / "r", [classifier(seed=0), *models[1:]], [0.3, 0.2, 0.4, 0.1], optimizer=optimizer)
    got = source(models[0], asked, data, record, tmp_path / "s", segments=2, **OPTIONS)
    queries, per_model = loss_gradients(models[4], asked), [loss_gradients(model, data) for model in models]
    expected = torch.zeros(2, 9, dtype=F64)
    times, members = [1.0, 1.0], [(1, 2), (3, 4)]
    for name in queries:
        vector = queries[name].flatten(1).double()
        for part in (1, 0):
            factors = open_run(tmp_path / "s" / f"segment-{part}").factors
            left, right, table = factors[name].left, factors[name].right, factors.eigenvalues(name)
            basis = torch.kron(left, right)
            rates = basis @ torch.diag(table.flatten()) @ basis.T + 0.05 * torch.eye(len(basis), dtype=F64)
            fade = torch.linalg.matrix_exp(-times[part] * rates)
            settle = torch.linalg.solve(rates, torch.eye(len(basis), dtype=F64) - fade)
            mean = sum(per_model[k][name].flatten(1) for k in members[part]) / 2
            expected += (vector @ settle) @ mean.T / 9
            vector = vector @ fade
    torch.testing.assert_close(got.values, expected, rtol=1e-8, atol=1e-12)
    again = source(models[1], asked, data, record, tmp_path / "s", segments=[2], **OPTIONS)
    assert torch.equal(again.values, got.values)  # the fits were taken up


def test_many_segments_approach_the_exact_derivative(tmp_path):
    """Oracle: `magic`, where SOURCE's curvature is exact: linear regression (G = I ⊗ A), full batches, small steps."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 4, generator=generator, dtype=F64) * torch.tensor([2.0, 1.0, 0.5, 0.1], dtype=F64)
    data = (x, torch.randn(12, 2, generator=generator, dtype=F64))
    asked = (torch.randn(3, 4, generator=generator, dtype=F64), torch.randn(3, 2, generator=generator, dtype=F64))
    model = nn.Linear(4, 2).double().eval()
    schedule = TrainingSchedule(SGD(), (0.02,) * 64, (tuple(range(12)),) * 64)
    loss = RegressionLoss()
    recorder = Recorder(tmp_path / "r", model, SGD(), every=2)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for t in range(64):
        part = TrainingSchedule(SGD(), (0.02,), schedule.batches[:1])
        model.load_state_dict(replay(model, data, part, loss=loss))
        recorder.step(schedule.batches[t], learning_rate=0.02)
    record = recorder.finish()
    exact = magic(model, asked, data, record.schedule(), initial=start, loss=loss)
    errors = []
    for segments in (1, 8):
        options = {"loss": loss, "modules": "all-linear", "fisher": "exact", "segments": segments}
        got = source(model, asked, data, record, tmp_path / f"s{segments}", **options)
        errors.append(float((got.values - exact.values).norm() / exact.values.norm()))
        torch.testing.assert_close(got.measured, exact.measured, rtol=1e-10, atol=1e-12)
    assert errors[1] < errors[0] / 4, errors
    assert errors[1] < 0.03


def adam_record(folder, models, rates, divisor):
    """As `recorded`, of an AdamW whose √v̂ + ε is ``divisor`` of a parameter's name and value at every step."""
    model = models[0]
    optimizer = torch.optim.AdamW(model.parameters(), 1.0, betas=(0.9, 0.5), eps=1e-12, weight_decay=0.0)
    for name, parameter in model.named_parameters():
        square = (divisor(name, parameter) - 1e-12).square() * 0.5  # with the bias of one step
        moments = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": square}
        optimizer.state[parameter] = {"step": torch.tensor(1.0)} | moments
    recorder = Recorder(folder, model, optimizer, every=1)
    for t, rate in enumerate(rates):
        model.load_state_dict({k: v.clone() for k, v in models[t + 1].state_dict().items()})
        recorder.step([0], learning_rate=rate)
    return recorder.finish()


def test_adam_with_one_divisor_is_sgd(tmp_path):
    """Oracle: SGD with its rates divided by D, where D is the same for all weights."""
    data, asked = points(9), points(2, seed=6)
    models = [classifier(seed=s) for s in range(3)]
    adam = adam_record(tmp_path / "a", [classifier(), *models[1:]], [0.6, 0.4], lambda _n, p: torch.full_like(p, 2.0))
    sgd = recorded(tmp_path / "b", [classifier(), *models[1:]], [0.3, 0.2])
    got = source(models[0], asked, data, adam, tmp_path / "sa", segments=2, **OPTIONS).values
    expected = source(models[0], asked, data, sgd, tmp_path / "sb", segments=2, **OPTIONS).values
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_adam_is_sgd_in_other_coordinates(tmp_path):
    """Oracle: SGD on a linear model of scaled inputs: W x = (W / c)(c ∘ x), D^-½ = 1 cᵀ."""
    scale = torch.tensor([0.5, 2.0, 1.5, 3.0], dtype=F64)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8, n, generator=generator, dtype=F64) for n in (4, 2))
    loss = {"loss": RegressionLoss(), "modules": "all-linear", "fisher": "exact", "segments": 2}
    weights = [torch.randn(2, 5, generator=generator, dtype=F64) for _ in range(3)]

    def linear(matrix, columns):
        model = nn.Linear(4, 2).double().eval()
        with torch.no_grad():
            model.weight.copy_(matrix[:, :4] / columns)
            model.bias.copy_(matrix[:, 4])
        return model

    adam = adam_record(
        tmp_path / "a",
        [linear(w, 1) for w in weights],
        [0.2, 0.3],
        lambda name, p: (scale**-2).expand_as(p).clone() if name == "weight" else torch.ones_like(p),
    )
    sgd = recorded(tmp_path / "b", [linear(w, scale) for w in weights], [0.2, 0.3])
    model = linear(weights[0], 1)
    got = source(model, (x[:2], y[:2]), (x, y), adam, tmp_path / "sa", **loss).values
    expected = source(model, (x[:2] * scale, y[:2]), (x * scale, y), sgd, tmp_path / "sb", **loss).values
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_mean_over_tokens_and_measurement(tmp_path):
    """Oracles: a loss divided by tokens is one divided by sequences with rates over the mean number of tokens; a
    measurement that is twice the log-probability doubles the scores."""
    from tests.influence._tiny import gpt2, tokens

    data, asked = tokens(6), tokens(2, seed=9)
    mean = sum(len(row["input_ids"]) - 1 for row in data) / 6
    scores = []
    for number, (per, scale) in enumerate((("tokens", 1.0), ("sequences", 1 / mean))):
        record = recorded(tmp_path / str(number), [gpt2(), gpt2(seed=1)], [0.3 * scale], per=per)
        scores.append(source(gpt2(), asked, data, record, tmp_path / f"s{number}", segments=1))
    torch.testing.assert_close(scores[0].values, scores[1].values, rtol=1e-9, atol=1e-15)
    from hesse.influence import CausalLMLoss

    def doubled(model, batch):
        return -2 * CausalLMLoss()(model, batch).per_token.sum(1)

    twice = source(gpt2(), asked, data, record, tmp_path / "s1", segments=1, measurement=doubled)
    torch.testing.assert_close(twice.values, 2 * scores[1].values, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(twice.measured, 2 * scores[1].measured, rtol=1e-12, atol=1e-15)


def test_splitting_and_refusals(tmp_path):
    """Oracle: borders and times by hand; the documented errors."""
    record = recorded(tmp_path / "r", [classifier(seed=s) for s in range(7)], [1.0, 2, 3, 4, 5, 6], dataset=points(5))
    thirds = split_segments(record, 3)
    assert [(s.first, s.stop, s.checkpoints, s.time) for s in thirds] == [
        (0, 2, (1, 2), 3.0),
        (2, 4, (3, 4), 7.0),
        (4, 6, (5, 6), 11.0),
    ]
    assert [s.time for s in split_segments(record, [1, 5])] == [1.0, 14.0, 6.0]
    with pytest.raises(ArgumentError, match="rising"):
        split_segments(record, [5, 1])
    with pytest.raises(ArgumentError, match="1 to 6"):
        split_segments(record, 7)
    with pytest.raises(ArtifactError, match="other data"):
        source(classifier(), points(2), points(6), record, tmp_path / "s", **OPTIONS)
    adam = Recorder(tmp_path / "a", classifier(), AdamW())
    for _ in range(3):
        adam.step([0], learning_rate=0.1)
    with pytest.raises(ArgumentError, match="no running means"):
        source(classifier(), points(2), points(5), adam.finish(), tmp_path / "s", segments=1, **OPTIONS)
    sparse = Recorder(tmp_path / "b", classifier(), SGD(), at=[1])
    for _ in range(6):
        sparse.step([0], learning_rate=0.1)
    sparse.flush()
    with pytest.raises(ArgumentError, match="no weights were kept in steps 2 to 4"):
        split_segments(open_record(tmp_path / "b"), 3)
