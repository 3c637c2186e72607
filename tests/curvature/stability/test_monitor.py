"""The monitor against what it watches."""

import pytest
import torch
from torch import nn

from hesse.curvature.stability.linearise import linearise
from hesse.curvature.stability.monitor import StabilityMonitor, batch_sharpness, optimizer_dynamics
from hesse.curvature.stability.radius import second_moment_radius
from hesse.errors import ArgumentError, ArgumentTypeError

F64 = torch.float64


def setting(n=8, outputs=1):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).to(F64)
    return net, torch.randn(n, 3, dtype=F64), torch.randn(n, outputs, dtype=F64)


def test_a_record_is_made_of_its_parts():
    """Oracle: the parts called by hand, before and after a step of the optimiser."""
    net, x, y = setting()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.5)
    monitor = StabilityMonitor(optimizer, net, generator=torch.Generator().manual_seed(0))
    for step in range(2):
        record = monitor.measure((x, y), 2)
        features = linearise(net, (x, y)).features
        H = features.flatten(0, 1).mT @ features.flatten(0, 1) / len(x)
        assert record.step == step
        assert record.lr == 0.05
        assert record.lr_trace == pytest.approx(0.05 * float(H.trace()))
        assert record.lr_lambda_max == pytest.approx(0.05 * float(torch.linalg.eigvalsh(H)[-1]))
        assert record.radius == pytest.approx(second_moment_radius(features, 0.05, 2, momentum=0.5).value)
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [r.step for r in monitor.records] == [0, 1]
    assert monitor.records[0].loss != monitor.records[1].loss
    assert monitor.measure((x, y), 2, step=40).step == 40


def test_modes_of_layers_come_back():
    """Oracle: the modes before; a frozen batch normalisation stays in evaluation mode."""
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 1)).to(F64)
    net[1].eval()
    before = [layer.training for layer in net.modules()]
    monitor = StabilityMonitor(torch.optim.SGD(net.parameters(), lr=0.1), net, num_batches=2)
    monitor.measure((torch.randn(5, 3, dtype=F64), torch.randn(5, 1, dtype=F64)), 1)
    assert [layer.training for layer in net.modules()] == before


@pytest.mark.parametrize("loss", ["mse", "half_mse"])
def test_sharpness_of_the_full_batch_is_a_rayleigh_quotient(loss):
    """Oracle: gradient and Hessian of a linear model, formed."""
    x, y = torch.randn(6, 3, dtype=F64), torch.randn(6, 1, dtype=F64)
    line = nn.Linear(3, 1, bias=False).to(F64)
    H = x.mT @ x / 6 * (2 if loss == "mse" else 1)
    g = (x.mT @ (line(x) - y)).detach().squeeze(1)
    expected = float(g @ H @ g / (g @ g))
    assert batch_sharpness(line, (x, y), 6, loss=loss, num_batches=1) == pytest.approx(expected)


def test_sharpness_averages_over_batches():
    """Oracle: all batches of one, enumerated: for a linear model ‖x_i‖²; within four standard errors of 200 draws."""
    torch.manual_seed(1)
    x, y = torch.randn(6, 3, dtype=F64), torch.randn(6, 1, dtype=F64)
    line = nn.Linear(3, 1, bias=False).to(F64)
    squares = x.square().sum(1)
    for replacement in (False, True):
        found = batch_sharpness(
            line,
            (x, y),
            1,
            loss="half_mse",
            replacement=replacement,
            num_batches=200,
            generator=torch.Generator().manual_seed(0),
        )
        assert abs(found - float(squares.mean())) < 4 * float(squares.std(unbiased=False)) / 200**0.5
    assert batch_sharpness(line, (x, line(x).detach()), 1, num_batches=2) != 0  # NaN: no gradient, no direction


def test_cross_entropy_is_torchs():
    """Oracle: the loss of torch."""
    net, x, _ = setting(outputs=3)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    monitor = StabilityMonitor(torch.optim.SGD(net.parameters(), lr=0.1), net, loss="cross_entropy", num_batches=2)
    assert monitor.measure((x, labels), 4).loss == pytest.approx(nn.functional.cross_entropy(net(x), labels).item())


@pytest.mark.parametrize("steps", [1, 5])
def test_adam_is_preconditioned_heavy_ball(steps):
    """Oracle: the step that Adam makes, from gradients collected along the way."""
    net, x, y = setting()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.8, 0.95))
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    for _ in range(steps):
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        velocity = [0.8 * v + p.grad for v, p in zip(velocity, net.parameters(), strict=True)]
        optimizer.step()
    found = optimizer_dynamics(optimizer, net)
    assert found.momentum == 0.8
    for (name, p), old, v in zip(net.named_parameters(), before, velocity, strict=True):
        torch.testing.assert_close(p.detach(), old - found.lr * v / found.preconditioner[name])
    monitor = StabilityMonitor(optimizer, net, num_batches=2)
    scaled = linearise(net, (x, y), preconditioner=found.preconditioner).features
    expected = found.lr * float(scaled.square().sum()) / len(x)
    assert monitor.measure((x, y), 2).lr_trace == pytest.approx(expected)


def test_dampening_scales_the_learning_rate():
    """Oracle: the recursion v ← β v + (1 - τ) g."""
    net, *_ = setting()
    found = optimizer_dynamics(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, dampening=0.5), net)
    assert (found.lr, found.momentum) == (pytest.approx(0.05), 0.9)
    assert optimizer_dynamics(torch.optim.SGD(net.parameters(), lr=0.1, dampening=0.5), net).lr == pytest.approx(0.1)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    net, x, y = setting()
    parameters = list(net.parameters())
    with pytest.raises(ArgumentTypeError, match="RMSprop"):
        StabilityMonitor(torch.optim.RMSprop(parameters), net)
    with pytest.raises(ArgumentError, match="nesterov"):
        StabilityMonitor(torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True), net)
    with pytest.raises(ArgumentError, match="amsgrad"):
        optimizer_dynamics(torch.optim.Adam(parameters, amsgrad=True), net)
    groups = [{"params": parameters[:1], "lr": 0.2}, {"params": parameters[1:]}]
    with pytest.raises(ArgumentError, match="different settings"):
        optimizer_dynamics(torch.optim.SGD(groups, lr=0.1), net)
    with pytest.raises(ArgumentError, match="no state"):
        optimizer_dynamics(torch.optim.Adam(parameters), net)
    with pytest.raises(ArgumentError, match="num_batches"):
        StabilityMonitor(torch.optim.SGD(parameters, lr=0.1), net, num_batches=0)
    with pytest.raises(ArgumentError, match="num_batches"):
        batch_sharpness(net, (x, y), 1, num_batches=0)
