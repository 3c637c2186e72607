"""The baselines against their update rules written out, torch's SGD, and their textbook regret bounds."""

import math

import pytest
import torch

from hesse.errors import ArgumentError
from hesse.linalg import Ball, HNormBall
from hesse.optim import ONS, AdaGradNorm, Hedge, OnlineGradientDescent, regret

F64 = torch.float64
BALL = Ball(1.0)
D, G, N, RUNS, T = 2.0, 1.0, 4, 3, 60


def drawn(seed=0):
    return BALL(torch.randn(T, RUNS, N, dtype=F64, generator=torch.Generator().manual_seed(seed)))


def play(player, grads):
    state = player.init(torch.zeros_like(grads[0]))
    found = []
    for grad in grads:
        found.append(state.play)
        state = player.round(state, grad)
    return torch.stack(found)


def best_in_ball(grads):
    return -grads.sum(0) / grads.sum(0).norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("strong", [None, 0.7])
def test_ogd_is_torch_sgd_with_a_schedule(strong):
    """Oracle: torch.optim.SGD with its rate set each round, and the projection after it."""
    grads = drawn()
    found = play(OnlineGradientDescent(D, G, strong=strong, projection=BALL), grads)
    x = torch.zeros(RUNS, N, dtype=F64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=1.0)
    for t, grad in enumerate(grads, 1):
        torch.testing.assert_close(found[t - 1], x.detach(), rtol=0, atol=1e-14)
        optimizer.param_groups[0]["lr"] = D / (G * math.sqrt(t)) if strong is None else 1 / (strong * t)
        x.grad = grad
        optimizer.step()
        with torch.no_grad():
            x.copy_(BALL(x))


def test_regret_bounds_of_gradient_steps():
    """Oracle: 3/2 D G √T for OGD and √2 D √(Σ ‖g‖²) for AdaGrad-norm, linear losses, the best point known."""
    grads = drawn(1)
    for player, bound in (
        (OnlineGradientDescent(D, G, projection=BALL), 1.5 * D * G * math.sqrt(T) * torch.ones(RUNS, dtype=F64)),
        (AdaGradNorm(D, BALL), math.sqrt(2) * D * grads.square().sum((0, -1)).sqrt()),
    ):
        cost = regret(lambda x: (grads * x).sum(-1), play(player, grads), best_in_ball(grads))
        assert bool((cost <= bound).all())


def test_adagrad_norm():
    """Oracle: the rule written out; zero gradients move nothing."""
    grads = torch.cat([torch.zeros(2, RUNS, N, dtype=F64), drawn(2)])
    found = play(AdaGradNorm(D, BALL), grads)
    x, squares = torch.zeros(RUNS, N, dtype=F64), torch.zeros(RUNS, 1, dtype=F64)
    for t, grad in enumerate(grads):
        torch.testing.assert_close(found[t], x, rtol=0, atol=1e-14)
        squares = squares + grad.square().sum(-1, keepdim=True)
        x = BALL(x - D / (2 * squares).sqrt() * grad) if t >= 2 else x


@pytest.mark.parametrize("projection", [BALL, None])
def test_ons(projection):
    """Oracle: dense inverses and HNormBall, one run at a time."""
    grads, alpha = drawn(3), 0.3
    player = ONS(D, G, alpha, projection)
    beta = min(1 / (4 * G * D), alpha) / 2
    assert player.beta == beta
    found = play(player, grads)
    for run in range(RUNS):
        A, x = torch.eye(N, dtype=F64) / (beta * D) ** 2, torch.zeros(N, dtype=F64)
        for t, grad in enumerate(grads[:, run]):
            torch.testing.assert_close(found[t, run], x, rtol=0, atol=1e-11)
            A = A + torch.outer(grad, grad)
            x = x - torch.linalg.inv(A) @ grad / beta
            x = x if projection is None else HNormBall(A, 1.0)(x)


def test_hedge():
    """Oracle: exponential weights written out, and the bound 2√(T ln n / 2) + √(ln n / 8)."""
    losses = (drawn(4) + 1) / 2
    found = play(Hedge(1.0), losses)
    torch.testing.assert_close(found[0], torch.full((RUNS, N), 1 / N, dtype=F64))
    raw = (-math.sqrt(8 * math.log(N) / 11) * losses[:10].sum(0)).exp()
    torch.testing.assert_close(found[10], raw / raw.sum(-1, keepdim=True))
    best = torch.eye(N, dtype=F64)[losses.sum(0).argmin(-1)]
    cost = regret(lambda x: (losses * x).sum(-1), found, best)
    assert float(cost.max()) <= 2 * math.sqrt(T * math.log(N) / 2) + math.sqrt(math.log(N) / 8)


@pytest.mark.parametrize(
    "player", [OnlineGradientDescent(D, G, projection=BALL), AdaGradNorm(D, BALL), ONS(D, G, 0.3, BALL), Hedge(1.0)]
)
def test_float32(player):
    """Oracle: the run in float64."""
    grads = drawn(5)
    coarse = play(player, grads.float())
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse.double(), play(player, grads), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: OnlineGradientDescent(0.0, G), "diameter"),
        (lambda: OnlineGradientDescent(D, math.inf), "grad_bound"),
        (lambda: OnlineGradientDescent(D, G, strong=-1.0), "strong"),
        (lambda: AdaGradNorm(math.nan), "diameter"),
        (lambda: ONS(D, G, 0.0), "exp_concavity"),
        (lambda: Hedge(-1.0), "loss_range"),
    ],
)
def test_bad_constants(make, match):
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError, match=match):
        make()
