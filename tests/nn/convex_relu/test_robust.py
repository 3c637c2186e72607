"""Robust training against a grid over each ball, the plain programme, and PGD."""

import pytest
import torch

from hesse.errors import ArgumentError
from hesse.nn.convex_relu import (
    adversarial_network,
    attack,
    convex_objective,
    exact_relu,
    network_outputs,
    recover_network,
    robust_loss,
    robust_patterns,
    robust_relu,
)
from hesse.nn.convex_relu.losses import loss_value
from tests.nn.convex_relu.cases import F64, problem, seeded, wave

EPS, BETA = 0.08, 1e-3


def on_grid(X, hidden, output, side=9):
    """Outputs over each ball, (N, side²); corners are on the grid."""
    ticks = torch.linspace(-EPS, EPS, side, dtype=F64)
    shifts = torch.nn.functional.pad(torch.cartesian_prod(ticks, ticks), (0, 1))
    return network_outputs((X.unsqueeze(1) + shifts).flatten(0, 1), hidden, output).view(len(X), -1)


@pytest.mark.parametrize("loss", ["squared", "hinge", "bce"])
def test_worst_case_is_met_and_not_exceeded(loss):
    """Oracle: the network itself at the corners of each ball: patterns keep there, so the bound is exact."""
    X, y = wave()
    D = robust_patterns(X, EPS, num_hyperplanes=40, generator=seeded(0))
    found = robust_relu(X, y, D, eps=EPS, beta=BETA, loss=loss)
    assert found.converged
    value = robust_loss(found.V, X, y, D, EPS, loss)
    sizes = torch.linalg.vector_norm(found.V, dim=-1).sum()
    torch.testing.assert_close(value + BETA * sizes, torch.tensor(found.objective, dtype=F64), rtol=1e-5, atol=1e-9)
    grid = on_grid(X, *recover_network(found.V))
    each = loss_value(loss, grid.unsqueeze(-1), y[:, None, None])
    worst = each.amax(1)
    torch.testing.assert_close(worst.sum() if loss == "squared" else worst.mean(), value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("loss", ["squared", "hinge", "bce"])
def test_no_radius_is_plain_training(loss):
    """Oracle: `exact_relu`, whose Newton step is another one for the smooth losses, and the plain loss."""
    X, y, D = problem(n=12, d=3, num_patterns=6)
    y = y.sign()
    found = robust_relu(X, y, D, eps=0.0, beta=BETA, loss=loss, intercept=False)
    plain = exact_relu(X, y, D, beta=BETA, loss=loss)
    value = float(convex_objective(plain.V, X, y, D, BETA, loss))
    assert found.objective == pytest.approx(value, rel=1e-6)
    sizes = torch.linalg.vector_norm(plain.V, dim=-1).sum()
    assert float(robust_loss(plain.V, X, y, D, 0.0, loss) + BETA * sizes) == pytest.approx(value)


def test_no_other_point_is_better():
    """Oracle: random feasible mixtures with other solutions never lower the robust objective."""
    X, y = wave(1)
    D = robust_patterns(X, EPS, num_hyperplanes=30, generator=seeded(1))
    best = robust_relu(X, y, D, eps=EPS, beta=BETA)
    for beta in (1e-5, 1e-2, 1.0):
        other = robust_relu(X, y, D, eps=EPS, beta=beta).V
        for share in (0.01, 0.3, 1.0):
            V = (1 - share) * best.V + share * other
            value = robust_loss(V, X, y, D, EPS) + BETA * torch.linalg.vector_norm(V, dim=-1).sum()
            assert float(value) >= best.objective * (1 - 1e-6)


def test_all_ones_pattern_comes_first_and_is_robust_linear():
    """Oracle: at a large radius only that pattern is left, and the limit is kept."""
    X, y = wave()
    D = robust_patterns(X, 0.6, num_hyperplanes=30, generator=seeded(0))
    assert D.shape[1] >= 1
    assert bool(D[:, 0].all())
    assert bool(robust_relu(X, y, D[:, :1], eps=0.6, beta=BETA).converged)
    assert robust_patterns(X, EPS, num_hyperplanes=30, limit=2, generator=seeded(0)).shape[1] == 2


def test_attack_stays_in_the_ball_and_raises_the_loss():
    """Oracle: the definition, and the grid's worst as an upper bound."""
    X, y = wave()
    hidden, output = adversarial_network(X, y, EPS, width=20, num_steps=50, generator=seeded(0))
    moved = attack(X, y, hidden, output, EPS, generator=seeded(1))
    assert float((moved - X).abs().max()) <= EPS + 1e-12
    assert torch.equal(moved[:, -1], X[:, -1])
    plain, hit = (y * network_outputs(rows, hidden, output) for rows in (X, moved))
    assert bool((hit <= plain + 1e-9).double().mean() > 0.8)
    assert float(loss_value("hinge", y * hit, y)) >= float(loss_value("hinge", y * plain, y))


def test_adversarial_training_lowers_the_attacked_loss():
    """Oracle: the same start without training."""
    X, y = wave()
    losses = []
    for steps in (0, 200):
        network = adversarial_network(X, y, EPS, width=20, num_steps=steps, generator=seeded(0))
        moved = attack(X, y, *network, EPS, generator=seeded(1))
        losses.append(float(loss_value("hinge", network_outputs(moved, *network), y)))
    assert losses[1] < losses[0] / 2


def test_refused():
    """Oracle: the documented errors."""
    X, y = wave()
    D = torch.ones(len(X), 1, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="eps"):
        robust_relu(X, y, D, eps=-1.0)
    with pytest.raises(ArgumentError, match="eps"):
        robust_loss(torch.zeros(2, 1, 3, dtype=F64), X, y, D, -1.0)
    with pytest.raises(ArgumentError, match="limit"):
        robust_patterns(X, EPS, limit=0)
