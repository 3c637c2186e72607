"""Regret, path length and variation against sums written as loops."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import Box
from hesse.optim import (
    OOMDRules,
    gradient_variation,
    online_to_batch_bound,
    oomd_init,
    oomd_round,
    path_length,
    regret,
)

F64 = torch.float64
POINTS = torch.randn(5, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
SLOPES = torch.randn(5, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (5, 2, 3)])
def test_regret(shape):
    """Oracle: a loop over rounds and runs, for fixed and moving comparators."""
    comparator = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    found = regret(lambda x: (SLOPES * x).sum(-1), POINTS, comparator)
    u = comparator.expand_as(POINTS)
    for run in range(2):
        wanted = sum(float(SLOPES[t, run] @ (POINTS[t, run] - u[t, run])) for t in range(5))
        assert float(found[run]) == pytest.approx(wanted, abs=1e-13)


def test_path_length_and_variation():
    """Oracle: loops."""
    for run in range(2):
        steps = [float((POINTS[t, run] - POINTS[t - 1, run]).norm()) for t in range(1, 5)]
        assert float(path_length(POINTS)[run]) == pytest.approx(sum(steps))
        V = float(POINTS[0, run].square().sum()) + sum(step**2 for step in steps)
        assert float(gradient_variation(POINTS)[run]) == pytest.approx(V)


def test_online_to_batch_bound_covers():
    """Oracle: the true risk of the average play, over 400 runs on coin tosses: missed in 10 % of them at most."""
    runs, rounds, confidence = 400, 100, 0.9
    tosses = (torch.rand(rounds, runs, 1, generator=torch.Generator().manual_seed(3)) < 0.7).to(F64)
    rules = OOMDRules(1.0, projection=Box(0.0, 1.0))
    state, plays = oomd_init(rules, torch.full((runs, 1), 0.5, dtype=F64)), []
    for toss in tosses:
        plays.append(state.play)
        state = oomd_round(rules, state, (state.play - toss).sign())
    losses = (torch.stack(plays) - tosses).abs().squeeze(-1)
    bound = online_to_batch_bound(losses, loss_range=1.0, confidence=confidence)
    average = torch.stack(plays).mean(0).squeeze(-1)
    risk = 0.7 * (1 - average) + 0.3 * average
    spread = (0.1 * 0.9 / runs) ** 0.5
    assert float((risk > bound).double().mean()) <= 1 - confidence + 3 * spread
    torch.testing.assert_close(bound - losses.mean(0), torch.full((runs,), math.sqrt(math.log(10) / 200), dtype=F64))
    for options, name in (({"loss_range": 0.0}, "loss_range"), ({"loss_range": 1.0, "confidence": 1.0}, "confidence")):
        with pytest.raises(ArgumentError, match=name):
            online_to_batch_bound(losses, **options)
    with pytest.raises(ShapeError, match="losses"):
        online_to_batch_bound(torch.zeros(0), loss_range=1.0)


def test_bad_shapes():
    """Oracle: the documented errors."""
    with pytest.raises(ShapeError, match="plays"):
        regret(lambda x: x, torch.zeros(3), torch.zeros(3))
    with pytest.raises(ShapeError, match="comparator"):
        regret(lambda x: x.sum(-1), POINTS, torch.zeros(4))
    with pytest.raises(ShapeError, match="losses of shape"):
        regret(lambda x: x, POINTS, torch.zeros(3))
    for function in (path_length, gradient_variation):
        with pytest.raises(ShapeError, match=function.__name__):
            function(torch.zeros(3))
