"""The two-layer ensemble against its definition written out, one run and one player at a time."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import Ball
from hesse.optim import OOMDRules, dynamic_init, dynamic_round, dynamic_step_sizes

F64 = torch.float64
BALL = Ball(1.0)
D, G, N, RUNS, T = 2.0, 2.0, 3, 2, 30


def drawn(seed=0):
    noise = torch.randn(T, RUNS, N, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return BALL(noise / 2) * G


def play(rules, grads, horizon=T):
    state = dynamic_init(rules, torch.zeros_like(grads[0]), horizon)
    found, weights = [], []
    for grad in grads:
        found.append(state.play)
        weights.append(state.weights)
        state = dynamic_round(rules, state, grad)
    return torch.stack(found), torch.stack(weights)


def written_out(grads, smoothness):
    """The formulas with Python sums; grads (T, N)."""
    etas = dynamic_step_sizes(T, diameter=D, grad_bound=G, smoothness=smoothness)
    centers = [torch.zeros(N, dtype=F64) for _ in etas]
    before, hint, V = None, torch.zeros(N, dtype=F64), 0.0
    totals, plays, weights = [0.0] * len(etas), [], []
    for grad in grads:
        points = [BALL(c - eta * hint) for c, eta in zip(centers, etas, strict=True)]
        before = points if before is None else before
        moves = [2 * smoothness * float((x - y).square().sum()) for x, y in zip(points, before, strict=True)]
        rate = math.sqrt(math.log(len(etas)) / (D**2 * (1 + V)))
        if smoothness:
            rate = min(rate, 1 / (8 * D**2 * smoothness))
        scores = [rate * (s + float(hint @ x) + m) for s, x, m in zip(totals, points, moves, strict=True)]
        raw = [math.exp(min(scores) - s) for s in scores]
        p = [value / sum(raw) for value in raw]
        plays.append(sum(w * x for w, x in zip(p, points, strict=True)))
        weights.append(torch.tensor(p, dtype=F64))
        totals = [s + float(grad @ x) + m for s, x, m in zip(totals, points, moves, strict=True)]
        centers = [BALL(c - eta * grad) for c, eta in zip(centers, etas, strict=True)]
        V += float((grad - hint).square().sum())
        before, hint = points, grad
    return torch.stack(plays), torch.stack(weights)


@pytest.mark.parametrize("smoothness", [0.0, 0.05, 0.3])
def test_rounds(smoothness):
    """Oracle: the definition, run by run."""
    grads = drawn()
    found, weights = play(OOMDRules(D, G, smoothness, projection=BALL), grads)
    for run in range(RUNS):
        plays, p = written_out(grads[:, run], smoothness)
        torch.testing.assert_close(found[:, run], plays, rtol=0, atol=1e-13)
        torch.testing.assert_close(weights[:, run], p, rtol=1e-12, atol=1e-14)


def test_step_sizes():
    """Oracle: the formula by hand for T=4000, D=G=2, L=1: six steps, the last at the cap; the pool's edges."""
    sizes = dynamic_step_sizes(4000, diameter=2.0, grad_bound=2.0, smoothness=1.0)
    least = 1 / math.sqrt(8 * 4000)
    assert sizes == pytest.approx([least * 2**i for i in range(5)] + [1 / 8])
    # G²T < 8L²D²: nothing between the smallest step and the cap, one player is left
    assert dynamic_step_sizes(3, diameter=2.0, grad_bound=1.0, smoothness=1.0) == (1 / 8,)
    linear = dynamic_step_sizes(1023, diameter=3.0, grad_bound=0.5)
    assert len(linear) == 6
    assert 0.3 * 6 < linear[-1] < 6  # about D/G
    assert len(dynamic_step_sizes(1, diameter=1.0, grad_bound=1.0)) == 2


def test_a_single_player_is_projected_optimistic_descent():
    """Oracle: two projected steps of the one size there is."""
    rules, grads = OOMDRules(D, 0.2, 1.0, projection=BALL), drawn(1)
    found, weights = play(rules, grads, horizon=10)
    center, hint = torch.zeros(RUNS, N, dtype=F64), torch.zeros(RUNS, N, dtype=F64)
    assert bool((weights == 1).all())
    for t, grad in enumerate(grads):
        torch.testing.assert_close(found[t], BALL(center - hint / 8), rtol=0, atol=1e-15)
        center, hint = BALL(center - grad / 8), grad


def test_follows_the_better_player():
    """Oracle: by construction; a target far off at every jump favours long steps, and the weights say so."""
    rules, target, weights = OOMDRules(D, G, 0.0, projection=BALL), torch.tensor([0.9], dtype=F64), []
    state = dynamic_init(rules, torch.zeros(1, dtype=F64), 400)
    for t in range(400):
        weights.append(state.weights)
        state = dynamic_round(rules, state, state.play - target * (1 if t // 40 % 2 else -1))
    assert float(weights[-1][-3:].sum()) > 0.6 > float(weights[0][-3:].sum())


def test_vmap_and_float32():
    """Oracle: the batched call in float64."""
    rules, grads = OOMDRules(D, G, 0.1, projection=BALL), drawn(2)
    state = mapped = dynamic_init(rules, torch.zeros(RUNS, N, dtype=F64), T)
    for grad in grads[:5]:
        state = dynamic_round(rules, state, grad)
        mapped = torch.vmap(lambda s, g: dynamic_round(rules, s, g))(mapped, grad)
    for one, other in zip(state, mapped, strict=True):
        torch.testing.assert_close(one, other)
    fine, _ = play(rules, grads)
    coarse, weights = play(rules, grads.float())
    assert (coarse.dtype, weights.dtype) == (torch.float32, F64)
    torch.testing.assert_close(coarse.double(), fine, rtol=0, atol=1e-5)


def test_bad_input():
    """Oracle: the documented errors."""
    for options in (
        {"horizon": 0},
        {"horizon": 2.5},
        {"horizon": True},
        {"diameter": 0.0},
        {"grad_bound": math.nan},
        {"smoothness": -1.0},
    ):
        name = next(iter(options))
        with pytest.raises(ArgumentError, match=name):
            dynamic_step_sizes(**{"horizon": 10, "diameter": 1.0, "grad_bound": 1.0, **options})
    start = torch.zeros(N)
    for rules in (
        OOMDRules(1.0),
        OOMDRules(1.0, 1.0, prox=lambda y, eta: y),
        OOMDRules(1.0, 1.0, geometry="entropic"),
    ):
        with pytest.raises(ArgumentError, match="dynamic_init"):
            dynamic_init(rules, start, 10)
    with pytest.raises(ShapeError, match="dynamic_init"):
        dynamic_init(OOMDRules(1.0, 1.0), torch.tensor(0.0), 10)
