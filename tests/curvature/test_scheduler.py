"""The learner of rate and momentum."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hesse.curvature.learning_rate import stable_learning_rate
from hesse.curvature.scheduler import CurvatureScheduler, RateMeasurement, polyak_parameters, resolved_range
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Quadratic(nn.Module):
    """Loss Σ h_k x_k² / 2, the same for every example."""

    def __init__(self, curvature):
        super().__init__()
        self.x = nn.Parameter(torch.ones(len(curvature), dtype=F64))
        self.curvature = torch.tensor(curvature, dtype=F64)

    def forward(self, rows):
        return self.x * self.curvature.sqrt() + 0 * rows


def quadratic_loss(model, rows):
    return model(rows).square().sum(1).mean() / 2


def quadratic(curvature=(4.0, 1.0, 0.25), *, momentum=0.5, count=32, **options):
    model = Quadratic(curvature)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=momentum)
    rows = torch.zeros(count, len(curvature), dtype=F64)
    options = {"batch_size": 8, "num_steps": 3, "warmup": 0, "safety": 1.0, "generator": seeded(0)} | options
    return model, optimizer, CurvatureScheduler(optimizer, model, quadratic_loss, rows, **options)


@pytest.mark.parametrize("cap", [0.95, 0.04])
def test_polyak_parameters_contract_as_promised(cap):
    """Oracle: spectral radius of heavy ball's 2 x 2 recurrence, √ρ at the top; without a cap at both ends."""
    rate, momentum = polyak_parameters(4.0, 0.25, max_momentum=cap)

    def radius(h):
        return np.abs(np.linalg.eigvals([[1 + momentum - rate * h, -momentum], [1, 0]])).max()

    assert momentum == pytest.approx(min(cap, 0.36))
    assert radius(4.0) == pytest.approx(momentum**0.5, abs=1e-6)
    assert radius(4.4) > momentum**0.5 + 0.05
    if cap > 0.36:
        assert radius(0.25) == pytest.approx(momentum**0.5, abs=1e-6)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_polyak_rule_on_a_quadratic(matrix):
    """Oracle: closed form with h = 4, l = 1/4: α = 0.64, ρ = 0.36; there is no noise, so nothing else enters."""
    _, optimizer, scheduler = quadratic(matrix=matrix)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.64)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.36)
    (entry,) = scheduler.history
    assert entry.largest == pytest.approx(4.0)
    assert entry.smallest == pytest.approx(0.25)
    assert entry.limit == pytest.approx(2 * 1.36 / 4)
    assert entry.num_products == (3 + 5) * 32 + 3 * 32


def test_other_rules_on_a_quadratic():
    """Oracle: 2/(h + l) without momentum; 2(1 + ρ)/h; gᵀg/gᵀHg times 1 - ρ; each times safety."""
    _, optimizer, scheduler = quadratic(momentum=0.0, safety=0.5)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.5 * 2 / 4.25)
    assert optimizer.param_groups[0]["momentum"] == 0
    assert quadratic(rule="stable")[2].get_last_lr()[0] == pytest.approx(2 * 1.5 / 4)
    h = np.array([4.0, 1.0, 0.25])
    cauchy = (h**2).sum() / (h**3).sum()  # g = h at x = 1
    assert quadratic(rule="cauchy")[2].get_last_lr()[0] == pytest.approx(0.5 * cauchy)


def test_noise_of_the_subsample_enters_the_limit():
    """Oracle: closed form for losses a_i x²/2, the subsample being everything: l = mean a, s² = var a."""
    a = torch.rand(40, 1, dtype=F64, generator=seeded(1)) * 3
    model = Quadratic([1.0])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)

    def loss_fn(net, rows):
        return (rows * net(rows) ** 2).sum(1).mean() / 2

    scheduler = CurvatureScheduler(
        optimizer, model, loss_fn, a, batch_size=4, rule="stable", warmup=0, safety=0.5, generator=seeded(0)
    )
    inverse = 1 / 4 - 1 / 40
    limit = float(stable_learning_rate(a.mean(), a.var(), inverse, momentum=0.5))
    assert scheduler.get_last_lr()[0] == pytest.approx(0.5 * limit)
    assert scheduler.history[0].largest == pytest.approx(float(a.mean() + a.var() * inverse / a.mean()))
    assert scheduler.history[0].variance == pytest.approx(float(a.var()))


def test_changes_are_smoothed_and_growth_is_capped():
    """Oracle: the recursion by hand, after the curvature falls a hundredfold, and after it rises."""
    model, _, scheduler = quadratic(rule="stable", momentum=0.0)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.5)
    model.curvature *= 0.01
    scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(1.0)  # 0.5 · 100^0.3 = 1.99 is more than twice
    model.curvature *= 400
    scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(1.0**0.7 * 0.125**0.3)


def test_warmup_and_refresh_count_steps():
    """Oracle: the schedule by hand."""
    _, _, scheduler = quadratic(warmup=2, refresh=3, warmup_lr=0.01)
    assert scheduler.get_last_lr() == [0.01]
    for _ in range(8):
        scheduler.step()
    assert [entry.step for entry in scheduler.history] == [2, 5, 8]


def test_no_positive_curvature_leaves_the_rate():
    """Oracle: the invariance that is documented."""
    _, _, scheduler = quadratic((0.0, 0.0, 0.0))
    assert scheduler.get_last_lr() == [0.1]
    assert scheduler.history[0].limit == float("inf")


def test_a_network_trains_and_resumes_to_the_bit():
    """Oracle: an uninterrupted run; and the loss, which must fall. Dropout stays on in training only."""
    x = torch.randn(64, 5, generator=seeded(1), dtype=F64)
    y = (x[:, 0] > 0).long()

    def start():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 2)).to(F64)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        scheduler = CurvatureScheduler(
            optimizer, model, loss_fn, (x, y), batch_size=16, num_steps=6, num_samples=16, generator=seeded(2)
        )
        return model, optimizer, scheduler

    def loss_fn(net, batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    def epochs(model, optimizer, scheduler, count):
        for _ in range(count):
            for rows in torch.arange(64).split(16):
                optimizer.zero_grad()
                loss_fn(model, (x[rows], y[rows])).backward()
                optimizer.step()
            scheduler.step()

    model, optimizer, scheduler = start()
    epochs(model, optimizer, scheduler, 2)
    assert model[1].training
    saved = copy.deepcopy([part.state_dict() for part in (model, optimizer, scheduler)])
    again = start()
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    noise = torch.get_rng_state()  # dropout draws from the global generator
    epochs(model, optimizer, scheduler, 3)
    torch.set_rng_state(noise)
    epochs(*again, 3)
    assert scheduler.history == again[2].history
    assert len(scheduler.history) == 5
    assert all(isinstance(entry, RateMeasurement) for entry in again[2].history)
    model.eval()
    assert float(loss_fn(model, (x, y)).detach()) < 0.5


def test_resolved_range():
    """Oracle: by hand. Nodes of rounding and noise are left out; the weighted median stands in if nothing is left."""
    values = torch.tensor([-1.0, 0.1, 0.5, 2.0, 3.0], dtype=F64)
    weights = torch.tensor([0.1, 0.6, 0.2, 1e-14, 0.1], dtype=F64)
    assert resolved_range(values, weights, 0.3) == (3.0, 0.5)
    assert resolved_range(values, weights, 1.0) == (3.0, 0.1)
    assert resolved_range(-values.abs(), weights, 0.0) == (0.0, 0.0)


def test_bad_input_is_named():
    """Oracle: the error taxonomy."""
    model = Quadratic([1.0, 2.0])
    rows = torch.zeros(6, 2, dtype=F64)
    sgd = torch.optim.SGD(model.parameters(), 0.1)

    def make(optimizer=sgd, data=rows, loss_fn=quadratic_loss, **options):
        return CurvatureScheduler(optimizer, model, loss_fn, data, **{"batch_size": 2} | options)

    with pytest.raises(ArgumentTypeError, match="scales its steps"):
        make(torch.optim.Adam(model.parameters()))
    with pytest.raises(ArgumentError, match="dampening"):
        make(torch.optim.SGD(model.parameters(), 0.1, momentum=0.5, dampening=0.1))
    with pytest.raises(ArgumentError, match="rule"):
        make(rule="magic")
    with pytest.raises(ArgumentError, match="matrix"):
        make(matrix="fisher")
    for option, value in (("refresh", 0), ("num_steps", 0), ("num_samples", 1), ("warmup", -1), ("max_growth", 0.5)):
        with pytest.raises(ArgumentError, match=option):
            make(**{option: value})
    for option, value in (("safety", 0.0), ("smoothing", 1.0), ("max_momentum", 1.0), ("warmup_lr", 0.0)):
        with pytest.raises(ArgumentError, match=option):
            make(**{option: value})
    for size in (0, 7):
        with pytest.raises(ArgumentError, match="batch_size <= 6"):
            make(batch_size=size)
    with pytest.raises(NumericalError, match="NaN"):
        make(rule="cauchy", warmup=0, loss_fn=lambda net, b: (net(b) * torch.nan).square().sum(1).mean())
    with pytest.raises(ArgumentError, match="smallest"):
        polyak_parameters(1.0, 2.0)
    with pytest.raises(ArgumentError, match="max_momentum"):
        polyak_parameters(2.0, 1.0, max_momentum=1.0)
