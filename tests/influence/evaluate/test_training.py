"""Many trainings at once: each is the one that a loop would make."""

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.influence.evaluate import cosine_rates, retrain, train_many, train_model
from hesse.influence.objective import CausalLMLoss, ClassificationLoss, RegressionLoss
from hesse.influence.trajectory import SGD, AdamW, TrainingSchedule, replay
from tests.influence._tiny import classifier, llama, points, tokens

F64 = torch.float64
LOSS = ClassificationLoss()


def schedule(total, steps=4, optimizer=None, batch=3, rate=0.05):
    return TrainingSchedule.shuffled(total, batch, optimizer or SGD(0.9), cosine_rates(rate, steps), seed=3)


@pytest.mark.parametrize(
    "optimizer", [SGD(0.9, 0.01), AdamW(weight_decay=0.1), SGD(0.5, clip_norm=0.1)], ids=["sgd", "adamw", "clipped"]
)
def test_each_training_is_a_replay(optimizer):
    """Oracle: `replay`, one training after the other, with the same counts."""
    data, net = points(8), classifier()
    weights = torch.tensor([[1.0] * 8, [0, 1] * 4, [2.0, 0.5] * 4], dtype=F64)
    steps = schedule(8, optimizer=optimizer)
    found = train_many(net, data, weights, steps, loss=LOSS, progress=False)
    for k, counts in enumerate(weights):
        alone = replay(net, data, steps, loss=LOSS, counts=counts, progress=False)
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name][k], tensor, rtol=1e-12, atol=1e-14)


def test_language_model_and_tokens_as_divisor():
    """Oracle: `replay` of a ragged, padded Llama whose loss is a mean over tokens."""
    data, net = tokens(5), llama()
    steps = TrainingSchedule.shuffled(5, 2, SGD(), [0.01, 0.01], seed=0, per="tokens")
    weights = torch.tensor([[1.0, 1, 0, 1, 1], [0, 1, 1, 1, 1]], dtype=F64)
    found = train_many(net, data, weights, steps, progress=False)
    for k, counts in enumerate(weights):
        for name, tensor in replay(net, data, steps, counts=counts, progress=False).items():
            torch.testing.assert_close(found[name][k], tensor, rtol=1e-10, atol=1e-12)


def test_weight_zero_is_absence():
    """Oracle: full-batch training on the others alone, the learning rate scaled to their share of the divisor."""
    x, y = points(6)
    net = classifier()
    weights = torch.ones(1, 6, dtype=F64)
    weights[0, 4:] = 0
    whole = TrainingSchedule(SGD(), (0.2, 0.1), (tuple(range(6)),) * 2)
    part = TrainingSchedule(SGD(), (0.2 * 4 / 6, 0.1 * 4 / 6), (tuple(range(4)),) * 2)
    found = train_many(net, (x, y), weights, whole, loss=LOSS, progress=False)
    alone = replay(net, (x[:4], y[:4]), part, loss=LOSS, progress=False)
    for name, tensor in alone.items():
        torch.testing.assert_close(found[name][0], tensor, rtol=1e-12, atol=1e-14)


def test_outcomes_are_log_probabilities_of_the_trained_models():
    """Oracle: each training replayed, its model asked by hand; a run for each start and schedule."""
    data, asked = points(8), points(3, seed=5)
    starts = [classifier(seed=0), classifier(seed=1)]
    steps = schedule(8)
    weights = np.array([[1.0] * 8, [0, 1.0] * 4])
    found = retrain(starts, data, asked, weights, [steps, steps], loss=LOSS, at_once=1, progress=False)
    assert found.shape == (2, 2, 3)
    for r, start in enumerate(starts):
        for k, counts in enumerate(torch.from_numpy(weights)):
            state = replay(start, data, steps, loss=LOSS, counts=counts, progress=False)
            net = classifier()
            net.load_state_dict(state)
            expected = net(asked[0]).log_softmax(1)[torch.arange(3), asked[1]]
            torch.testing.assert_close(found[r, k], expected.detach(), rtol=1e-10, atol=1e-12)
    trained = train_model(starts[0], data, steps, loss=LOSS, progress=False)
    own = retrain(starts[0], data, asked, np.ones((1, 8)), steps, loss=LOSS, progress=False)
    expected = trained(asked[0]).log_softmax(1)[torch.arange(3), asked[1]]
    torch.testing.assert_close(own[0, 0], expected.detach(), rtol=1e-10, atol=1e-12)


def test_measurement_replaces_the_log_probability():
    """Oracle: the measurement called on the replayed model."""
    data, asked, net = points(6), points(2, seed=5), classifier()
    found = retrain(
        net, data, asked, np.ones((1, 6)), schedule(6), loss=LOSS, progress=False,
        measurement=lambda model, batch: model(batch["inputs"])[:, 0],
    )  # fmt: skip
    trained = train_model(net, data, schedule(6), loss=LOSS, progress=False)
    torch.testing.assert_close(found[0, 0], trained(asked[0])[:, 0].detach(), rtol=1e-10, atol=1e-12)


def test_pull_holds_weights_near_their_start():
    """Oracle: the minimum of a ridge regression around the start, in closed form."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, dtype=F64), torch.randn(12, 1, dtype=F64)
    net = torch.nn.Linear(3, 1, bias=False).to(F64).eval()
    pull = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    steps = TrainingSchedule(SGD(), (0.2,) * 400, (tuple(range(12)),) * 400)
    found = train_many(net, (x, y), torch.ones(1, 12), steps, loss=RegressionLoss(), pull=pull, progress=False)
    start = net.weight.detach()[0]
    gram = x.T @ x / 12 + torch.diag(pull)
    wanted = torch.linalg.solve(gram, x.T @ y[:, 0] / 12 + pull * start)
    torch.testing.assert_close(found["weight"][0, 0], wanted, rtol=1e-8, atol=1e-10)


def test_bad_input_is_named():
    """Oracle: the argument that each message starts with."""
    data, net, steps = points(4), classifier(), schedule(4)
    for call, error, message in [
        (lambda: train_many(net, data, torch.ones(2, 5), steps, loss=LOSS), ShapeError, "weights"),
        (lambda: train_many(net, data, torch.ones(4), steps, loss=LOSS), ShapeError, "weights"),
        (lambda: train_many(net, data, torch.ones(1, 4), steps, loss=LOSS, pull=torch.ones(2)), ShapeError, "pull"),
        (lambda: train_many(net, data, torch.ones(1, 4), schedule(9), loss=LOSS), ArgumentError, "dataset"),
        (lambda: retrain([net], data, data, torch.ones(1, 4), [steps] * 2, loss=LOSS), ArgumentError, "schedules"),
        (lambda: retrain(net, data, data, torch.ones(1, 4), steps, loss=LOSS, at_once=0), ArgumentError, "schedules"),
        (lambda: cosine_rates(0.1, 0), ArgumentError, "cosine_rates"),
    ]:
        with pytest.raises(error, match=message):
            call()
    net.train()
    with pytest.raises(ArgumentError, match="model"):
        train_many(net, data, torch.ones(1, 4), steps, loss=LOSS)


def test_divergence_is_an_error():
    """Oracle: a learning rate of 1e200 on a regression overflows, and the message says which training."""
    x, y = torch.ones(2, 1, dtype=F64), torch.zeros(2, 1, dtype=F64)
    net = torch.nn.Linear(1, 1).to(F64).eval()
    steps = TrainingSchedule(SGD(), (1e200, 1e200, 1e200), ((0, 1),) * 3)
    with pytest.raises(NumericalError, match="number 1 diverged"):
        train_many(net, (x, y), torch.tensor([[0.0, 0.0], [1.0, 1.0]]), steps, loss=RegressionLoss(), progress=False)


def test_default_loss_is_that_of_language_models():
    """Oracle: the same call with the loss spelled out."""
    net, data = llama(), tokens(4)
    steps = TrainingSchedule.shuffled(4, 2, SGD(), [0.01], seed=0)
    a, b = (
        train_many(net, data, torch.ones(1, 4), steps, loss=loss, progress=False) for loss in (None, CausalLMLoss())
    )
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name])
