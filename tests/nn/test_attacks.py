"""Attacks against closed forms for linear models, against torchattacks, and their promises about ball and bounds."""

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.attacks import PGDAttack, attack_loss, ensemble_attack, pgd

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(n=3, d=4, rows=30, dtype=F64):
    generator = seeded()
    W = torch.randn(n, d, generator=generator, dtype=dtype)
    x = torch.randn(rows, d, generator=generator, dtype=dtype)
    return W, x, (x @ W.T).argmax(-1)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_worst_margin_of_two_classes(norm, dual):
    """Oracle: the closed form, margin less ε times the dual norm of the difference of the weights."""
    W, x, _ = linear(n=2)
    y = (x @ W.T).argmax(-1)
    eps = torch.linspace(0.01, 1, len(x), dtype=F64)
    options = {
        "eps": eps,
        "norm": norm,
        "bounds": None,
        "num_steps": 40,
        "step_size": 1.0,
    }  # a constant slope wants long steps
    moved = pgd(lambda v: v @ W.T, x, y, "margin", **options, generator=seeded())
    found = attack_loss("margin")(moved @ W.T, y)
    wanted = attack_loss("margin")(x @ W.T, y) + eps * (W[0] - W[1]).norm(p=dual)
    torch.testing.assert_close(found, wanted)
    result = ensemble_attack(lambda v: v @ W.T, x, y, **options, generator=seeded())
    assert torch.equal(result.robust, wanted < 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["uniform", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_inside_ball_and_bounds(norm, start, dtype):
    """Oracle: the two constraints, with ε of its own for each picture; ε = 0 moves nothing."""
    pictures = torch.rand(6, 1, 3, 3, generator=seeded(), dtype=dtype)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).to(dtype)
    eps = torch.tensor([0.0, 0.01, 0.1, 0.2, 0.5, 2.0], dtype=dtype)
    y = torch.arange(6) % 4
    moved = pgd(net, pictures, y, eps=eps, norm=norm, start=start, num_restarts=3, generator=seeded())
    distance = (moved - pictures).flatten(1).norm(p=float("inf") if norm == "linf" else 2, dim=1)
    assert bool((distance <= eps * (1 + 1e-5) + 1e-7).all())
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert torch.equal(moved[0], pictures[0])
    assert moved.dtype == dtype
    assert all(parameter.grad is None for parameter in net.parameters())


def test_best_iterate_and_restarts_only_help():
    """Oracle: the loss with ``keep_best`` is at least that of the last iterate; one start is the first of several."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 3)).double()
    _, x, y = linear()
    options = {"eps": 0.5, "bounds": None, "num_steps": 5}

    def reached(**more):
        return attack_loss("ce")(net(pgd(net, x, y, **options, **more, generator=seeded())), y).detach()

    assert bool((reached() >= reached(keep_best=False) - 1e-12).all())
    assert float(reached(num_restarts=5).mean()) >= float(reached().mean())
    attack = PGDAttack(0.5, num_steps=5, bounds=None, keep_best=True, generator=seeded())
    torch.testing.assert_close(attack_loss("ce")(net(attack(net, x, y)), y).detach(), reached())


def test_losses():
    """Oracle: torch's cross-entropy and the definitions, by hand."""
    h, y = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), torch.tensor([0, 1])
    torch.testing.assert_close(attack_loss("ce")(h, y), nn.functional.cross_entropy(h, y, reduction="none"))
    torch.testing.assert_close(attack_loss("margin")(h, y), torch.tensor([-2.0, 2.0]))
    torch.testing.assert_close(attack_loss("dlr")(h, y), torch.tensor([-2 / 3, 2 / 3]))


def test_ensemble_is_the_worst_of_its_attacks():
    """Oracle: the inputs returned, right where called robust, wrong where broken; one attack alone breaks no more."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 4)).double()
    _, x, _ = linear(n=4)
    y = net(x).argmax(-1)
    y[0] = (y[0] + 1) % 4
    result = ensemble_attack(net, x, y, eps=0.15, bounds=None, generator=seeded())
    assert torch.equal(net(result.adversarial).argmax(-1) == y, result.robust)
    assert not result.correct[0]
    assert int(result.correct.sum() - result.robust.sum()) == sum(result.num_broken.values())
    assert 0 < result.robust_accuracy < result.clean_accuracy < 1
    alone = ensemble_attack(net, x, y, eps=0.15, bounds=None, attacks=["ce"], generator=seeded())
    assert result.robust_accuracy <= alone.robust_accuracy


def test_as_strong_as_torchattacks():
    """Oracle: torchattacks' PGD at the same budget breaks no more than one input in twenty beyond ours."""
    torchattacks = pytest.importorskip("torchattacks")
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 4))
    pictures = torch.rand(100, 1, 3, 3, generator=seeded())
    y = net(pictures).argmax(-1)
    peer = torchattacks.PGD(net, eps=0.05, alpha=0.05 / 8, steps=20)(pictures, y)
    ours = pgd(net, pictures, y, eps=0.05, generator=seeded())
    assert int((net(ours).argmax(-1) == y).sum()) <= int((net(peer).argmax(-1) == y).sum()) + 5


def test_bad_input():
    """Oracle: the documented errors."""
    W, x, y = linear()

    def net(v):
        return v @ W.T

    good = {"eps": 0.1, "bounds": None}
    for wrong in (
        {"eps": -0.1},
        {"eps": float("nan")},
        {"norm": "l1"},
        {"num_steps": 0},
        {"num_restarts": 0},
        {"step_size": 0.0},
        {"start": "clean"},
        {"bounds": (1.0, 0.0)},
        {"bounds": (0.0, 1.0)},  # the inputs are outside
        {"loss_fn": "hinge"},
    ):
        with pytest.raises(ArgumentError):
            pgd(net, x, y, **{**good, **wrong})
    with pytest.raises(ArgumentError, match="labels 0 to 2"):
        pgd(net, x, y + 3, **good)
    with pytest.raises(ArgumentError, match="labels 0 to 2"):
        ensemble_attack(net, x, y + 3, **good)
    for arguments in ((x[0], y), (x, y[:2]), (x, y.double()), (x.long(), y)):
        with pytest.raises(ShapeError):
            pgd(net, *arguments, **good)
    with pytest.raises(ShapeError, match="eps"):
        pgd(net, x, y, eps=torch.ones(2), bounds=None)
    with pytest.raises(ShapeError, match="logits"):
        pgd(lambda v: v.sum(-1), x, y, **good)
    with pytest.raises(ArgumentError, match="expected ce"):
        ensemble_attack(net, x, y, attacks=["square"], **good)
    with pytest.raises(ArgumentError, match="3 classes"):
        ensemble_attack(lambda v: net(v)[:, :2], x, 0 * y, attacks=["dlr"], **good)
    with pytest.raises(ArgumentError, match="num_targets"):
        ensemble_attack(net, x, y, num_targets=0, **good)
