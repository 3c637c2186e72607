"""Leaving out what a method points at."""

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.influence.evaluate import cosine_rates, qld, removal_curve, tail_patch
from hesse.influence.objective import ClassificationLoss
from hesse.influence.trajectory import SGD, TrainingSchedule, replay
from tests.influence._tiny import classifier, llama, points, tokens

F64 = torch.float64
LOSS = ClassificationLoss()
STEPS = TrainingSchedule.shuffled(9, 3, SGD(0.9), cosine_rates(0.1, 6), seed=1)


def asked_after(data, asked, counts):
    net = classifier()
    net.load_state_dict(replay(net, data, STEPS, loss=LOSS, counts=torch.as_tensor(counts), progress=False))
    return net(asked[0]).log_softmax(1)[torch.arange(len(asked[1])), asked[1]].detach().numpy()


def test_curve_is_that_of_a_loop():
    """Oracle: one `replay` for each query and count, without that query's top rows; random rows likewise."""
    data, asked = points(9), points(2, seed=4)
    scores = np.random.default_rng(0).normal(size=(2, 9))
    found = removal_curve(
        scores, classifier(), data, asked, STEPS, [1, 3], loss=LOSS, random_draws=2, seed=7, at_once=4, progress=False
    )
    base = asked_after(data, asked, np.ones(9))
    np.testing.assert_allclose(found.base, base, rtol=1e-9)
    for q in range(2):
        for c, count in enumerate([1, 3]):
            kept = np.ones(9)
            kept[np.argsort(-scores[q])[:count]] = 0
            np.testing.assert_allclose(found.fall[q, c], base[q] - asked_after(data, asked, kept)[q], rtol=1e-7)
    rng = np.random.default_rng(7)
    for c, count in enumerate([1, 3]):
        falls = []
        for _ in range(2):
            kept = np.ones(9)
            kept[rng.choice(9, count, replace=False)] = 0
            falls.append(base - asked_after(data, asked, kept))
        np.testing.assert_allclose(found.random_fall[:, c], np.mean(falls, axis=0), rtol=1e-7, atol=1e-12)


def test_qld_is_the_curve_at_one_count():
    """Oracle: `removal_curve`; nats a token are nats over all supervised tokens."""
    data, asked, net = tokens(8), tokens(2, seed=5), llama()
    steps = TrainingSchedule.shuffled(8, 4, SGD(), [0.01, 0.01], seed=0)
    scores = np.random.default_rng(1).normal(size=(2, 8))
    found = qld(scores, net, data, asked, steps, share=0.25, random_draws=1, progress=False)
    curve = removal_curve(scores, net, data, asked, steps, [2], random_draws=1, progress=False)
    gained = (curve.fall - curve.random_fall)[:, 0]
    np.testing.assert_allclose(found.per_query, gained)
    supervised = sum(len(row["input_ids"]) - 1 for row in asked)
    assert found.per_token == pytest.approx(gained.sum() / supervised)
    assert found.removed == 2
    assert qld(scores, net, data, asked, steps, share=0.001, random_draws=1, progress=False).removed == 1


def test_tail_patch_is_one_step():
    """Oracle: torch.optim.SGD on the mean loss of the top rows."""
    (x, y), asked = points(9), points(2, seed=4)
    scores = np.random.default_rng(0).normal(size=(2, 9))
    found = tail_patch(scores, classifier(), (x, y), asked, top=3, learning_rate=0.2, loss=LOSS)
    for q in range(2):
        net = classifier()
        rest = net(asked[0]).log_softmax(1)[q, asked[1][q]].item()
        top = np.argsort(-scores[q])[:3].tolist()
        torch.nn.functional.cross_entropy(net(x[top]), y[top]).backward()
        torch.optim.SGD(net.parameters(), 0.2).step()
        after = net(asked[0]).log_softmax(1)[q, asked[1][q]].item()
        assert found.per_query[q] == pytest.approx(after - rest, rel=1e-9)
    assert found.value == pytest.approx(found.per_query.mean())


def test_bad_input_is_named():
    """Oracle: the argument that each message names."""
    data, asked, net = points(9), points(2, seed=4), classifier()
    scores = np.zeros((2, 9))
    for call, error, message in [
        (lambda: removal_curve(scores, net, data, asked, STEPS, [9], loss=LOSS), ArgumentError, "counts"),
        (lambda: removal_curve(scores, net, data, asked, STEPS, [], loss=LOSS), ArgumentError, "counts"),
        (lambda: removal_curve(scores.T, net, data, asked, STEPS, [1], loss=LOSS), ShapeError, "scores"),
        (lambda: qld(scores, net, data, asked, STEPS, share=1.0, loss=LOSS), ArgumentError, "share"),
        (lambda: tail_patch(scores, net, data, asked, top=0, loss=LOSS), ArgumentError, "top"),
    ]:
        with pytest.raises(error, match=message):
            call()
