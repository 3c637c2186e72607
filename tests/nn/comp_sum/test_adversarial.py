"""The smooth adversarial loss on models whose worst input is known, and the baselines against their formulas."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.attacks import PGDAttack
from hesse.nn.comp_sum import (
    AdvCompSum,
    comp_sum_loss,
    mart_loss,
    pgd_at_loss,
    phi,
    smooth_adversarial_loss,
    theorem_nu,
    trades_loss,
    warmed_up,
)

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(d=3, n=4, rows=6):
    generator = seeded()
    model = nn.Sequential(nn.Linear(d, 8), nn.SiLU(), nn.Linear(8, n)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=F64) / 2)
    return model, torch.rand(rows, d, generator=generator, dtype=F64), torch.randint(n, (rows,), generator=generator)


def fixed(moved):
    return lambda _model, _x, _y, _loss_fn: moved


def test_value_and_gradients():
    """Oracle: the formula with margins written out, for an attack that always returns the same inputs."""
    model, x, y = problem()
    moved = x + 0.1 * torch.randn(x.shape, generator=seeded(1), dtype=F64)
    rho, nu, tau = 0.7, 0.3, 0.5

    def margins(inputs):
        h = model(inputs)
        return torch.stack([h[i, y[i]] - torch.cat([h[i, : y[i]], h[i, y[i] + 1 :]]) for i in range(len(y))])

    norms = (margins(moved) - margins(x)).norm(dim=-1)
    wanted = (phi(torch.exp(-margins(x) / rho).sum(-1), tau) + nu * norms).mean()
    found = smooth_adversarial_loss(model, x, y, attack=fixed(moved), tau=tau, rho=rho, nu=nu)
    torch.testing.assert_close(found, wanted)
    weights = tuple(model.parameters())
    for a, b in zip(*(torch.autograd.grad(loss, weights) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_no_move_is_the_clean_loss():
    """Oracle: comp_sum_loss(h/ρ), exactly, for ε = 0 in both norms, for ν = 0, and in the rows that stood still."""
    model, x, y = problem()
    wanted = comp_sum_loss(model(x) / 2, y, 0.2, reduction="none")
    for attack, nu in (
        (PGDAttack(0.0, generator=seeded()), 1.0),
        (PGDAttack(0.0, norm="l2", start="gaussian", generator=seeded()), 1.0),
        (PGDAttack(0.3, generator=seeded()), 0.0),
    ):
        found = smooth_adversarial_loss(model, x, y, attack=attack, rho=2.0, nu=nu, reduction="none")
        assert torch.equal(found, wanted)
    moved = x.clone()
    moved[0] += 0.1
    found = smooth_adversarial_loss(model, x, y, attack=fixed(moved), rho=2.0, reduction="none")
    torch.testing.assert_close(found[1:], wanted[1:], rtol=1e-13, atol=0)
    assert float((found - wanted)[0].detach()) > 0
    slopes = torch.autograd.grad(found.sum(), tuple(model.parameters()))
    assert all(bool(slope.isfinite().all()) for slope in slopes)


def test_upper_bound_for_two_classes():
    """Oracle: closed forms for linear models of two classes in both balls; Φ(1) times zero-one from below."""
    generator = seeded(2)
    for norm, dual in (("linf", 1), ("l2", 2)):
        for _ in range(50):
            W, b = (torch.randn(*shape, generator=generator, dtype=F64) for shape in ((2, 3), (2,)))
            x, gamma, rho = torch.randn(1, 3, generator=generator, dtype=F64), 0.4, 0.5
            w = W[0] - W[1]
            lowest = (x @ w + b[0] - b[1]) - gamma * w.norm(p=dual)
            direction = w.sign() if norm == "linf" else w / w.norm()
            ramp = (1 - lowest / rho).clamp(0, 1)
            for tau in (0.0, 1.0, 2.0):
                smooth = smooth_adversarial_loss(
                    lambda rows, W=W, b=b: rows @ W.T + b,
                    x,
                    torch.tensor([0]),
                    attack=fixed(x - gamma * direction),
                    tau=tau,
                    rho=rho,
                    nu=theorem_nu(2, rho),
                )
                worst = phi(ramp, tau)
                assert float(smooth) >= float(worst) - 1e-12
                assert float(worst) >= float((lowest <= 0) * phi(torch.ones(1, dtype=F64), tau)) - 1e-12


def test_attack_reaches_the_largest_norm():
    """Oracle: the corners of the cube, where the norm of a linear map is largest; ten starts find 99 % of it."""
    generator = seeded(3)
    W = torch.randn(5, 4, generator=generator, dtype=F64)
    x = torch.rand(20, 4, generator=generator, dtype=F64)
    y = torch.randint(5, (20,), generator=generator)
    attack = PGDAttack(0.1, num_restarts=10, keep_best=True, bounds=None, generator=generator)
    found = smooth_adversarial_loss(lambda v: v @ W.T, x, y, attack=attack, nu=1.0, reduction="none")
    norms = found - comp_sum_loss(x @ W.T, y, 0.2, reduction="none")
    corners = 0.1 * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=F64)
    for row, label in zip(norms, y, strict=True):
        largest = float((corners @ (W[label] - W).T).norm(dim=-1).max())
        assert float(row) <= largest + 1e-12
    bests = torch.stack([(corners @ (W[label] - W).T).norm(dim=-1).max() for label in y])
    assert float(norms.mean()) >= 0.99 * float(bests.mean())


def test_batch_statistics_are_updated_once():
    """Oracle: the counter of batch normalisation, and statistics of the joint batch; modes are given back."""
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(3, 4), norm).double()
    model[0].eval()
    _, x, y = problem()
    AdvCompSum(model, PGDAttack(0.1, num_steps=2, generator=seeded()))(x, y).backward()
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 1
    assert [model.training, model[0].training, norm.training] == [True, False, True]


def test_shift_of_all_scores_changes_nothing():
    """Oracle: the invariance of margins, for a constant that depends on the input."""
    model, x, y = problem()
    moved = x + 0.1
    plain = smooth_adversarial_loss(model, x, y, attack=fixed(moved))
    shifted = smooth_adversarial_loss(lambda v: model(v) + v.sum(-1, keepdim=True), x, y, attack=fixed(moved))
    torch.testing.assert_close(plain, shifted)


def test_baselines():
    """Oracle: each formula written with probabilities, for a fixed attack."""
    model, x, y = problem()
    moved = x + 0.2
    p, q = model(x).softmax(-1), model(moved).softmax(-1)
    index = y[:, None]
    divergence = (p * (p / q).log()).sum(-1)
    p_y, q_y = p.gather(1, index).squeeze(1), q.gather(1, index).squeeze(1)
    rival = q.scatter(1, index, 0.0).amax(-1)
    torch.testing.assert_close(pgd_at_loss(model, x, y, attack=fixed(moved)), -q_y.log().mean())
    trades = F.cross_entropy(model(x), y) + 2 * divergence.mean()
    torch.testing.assert_close(trades_loss(model, x, y, attack=fixed(moved), beta=2), trades)
    boosted = -q_y.log() - torch.log(1.0001 - rival) + 5 * (1 - p_y) * divergence
    torch.testing.assert_close(mart_loss(model, x, y, attack=fixed(moved)), boosted.mean())


def test_attacks_of_the_baselines_raise_what_they_should():
    """Oracle: the divergence and the cross-entropy at x' exceed those at random points of the ball."""
    model, x, y = problem()
    moves = []

    def recording(*arguments):
        moves.append(PGDAttack(0.2, bounds=None, generator=seeded(4))(*arguments))
        return moves[-1]

    trades_loss(model, x, y, attack=recording)
    pgd_at_loss(model, x, y, attack=recording)
    random = x + 0.2 * (2 * torch.rand(x.shape, generator=seeded(5), dtype=F64) - 1)
    held = model(x).log_softmax(-1).detach()

    def divergence(inputs):
        return F.kl_div(model(inputs).log_softmax(-1), held, reduction="sum", log_target=True)

    with torch.no_grad():
        assert float(divergence(moves[0])) > float(divergence(random))
        assert float(F.cross_entropy(model(moves[1]), y)) > float(F.cross_entropy(model(random), y))


def test_warm_up_and_theorem():
    """Oracle: the formulas."""
    assert [warmed_up(3.0, t, 30) for t in (0, 5, 10, 29)] == [0.0, 1.5, 3.0, 3.0]
    assert warmed_up(3.0, 0, 30, fraction=0) == 3.0
    assert theorem_nu(10, 0.5) == 6.0


def test_bad_input():
    """Oracle: the documented errors, before the attack begins."""
    model, x, y = problem()

    def never(*_arguments):
        raise AssertionError

    wrong: tuple[dict[str, Any], ...] = ({"tau": -1.0}, {"rho": 0.0}, {"nu": -1.0}, {"nu": math.nan})
    for options in wrong:
        with pytest.raises(ArgumentError, match=next(iter(options))):
            smooth_adversarial_loss(model, x, y, attack=never, **options)
        with pytest.raises(ArgumentError, match=next(iter(options))):
            AdvCompSum(model, never, **options)
    with pytest.raises(ArgumentError, match="labels"):
        smooth_adversarial_loss(model, x, y + 4, attack=never)
    with pytest.raises(ShapeError, match="target"):
        smooth_adversarial_loss(model, x, y[:2], attack=never)
    with pytest.raises(ArgumentError, match="2 classes"):
        smooth_adversarial_loss(lambda v: model(v)[:, :1], x, 0 * y, attack=never)
    for loss in (trades_loss, mart_loss):
        with pytest.raises(ArgumentError, match="beta"):
            loss(model, x, y, attack=never, beta=-1.0)
    for arguments in ((1.0, -1, 3), (1.0, 0, 0)):
        with pytest.raises(ArgumentError, match="warmed_up"):
            warmed_up(*arguments)
    with pytest.raises(ArgumentError, match="num_classes"):
        theorem_nu(1)
