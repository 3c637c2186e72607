"""Networks against the series that they are, Maurey's bounds, and the descent simulated by products."""

import math
from typing import Any

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.pde.barron import (
    PlaneWaveSeries,
    SineSeries,
    barron_certificate,
    barron_path_norm,
    growth_exponent,
    simulate_network,
)
from hesse.pde.variational import EllipticEnergy, PreconditionedDescent


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def sample(dim=3):
    generator = seeded(1)
    freqs = torch.randint(1, 4, (5, dim), generator=generator)
    return SineSeries(freqs, torch.randn(5, dtype=torch.float64, generator=generator))


def wave_sample():
    generator = seeded(2)
    freqs = torch.randint(-3, 4, (20, 4), generator=generator)
    return PlaneWaveSeries.cosines(freqs, torch.randn(20, dtype=torch.float64, generator=generator))


def points(dim):
    return torch.rand(60, dim, dtype=torch.float64, generator=seeded(3))


@pytest.mark.parametrize("series", [sample(), wave_sample()])
def test_exact_network_equals_series(series):
    """Oracle: the series, to 1e-12; broken lines within their tolerance."""
    x = points(series.dim)
    assert torch.allclose(series.to_network()(x).detach(), series(x), rtol=0, atol=1e-12)
    relu = series.to_network(activation="relu", tol=1e-3)
    assert float((relu(x) - series(x)).detach().abs().max()) <= 1e-3 * float(series.l1_norm()) + 1e-12
    assert float(barron_path_norm(relu).detach()) > float(series.l1_norm())


@pytest.mark.parametrize(("sampling", "shift", "gradient"), [("l2", 0.0, False), ("h1", 1.0, True)])
def test_maurey_is_unbiased_and_bounded(sampling, shift, gradient):
    """Oracle: Maurey's bound on the mean square error, and a mean within four standard errors, over 200 draws."""
    u, m, generator = wave_sample(), 32, seeded(4)
    x = points(4)
    squares, values = [], []
    for _ in range(200):
        network = u.to_network(m, sampling=sampling, generator=generator)
        freqs = (network.weights.detach() / (2 * math.pi)).round().long()
        drawn = PlaneWaveSeries.cosines(freqs, network.amplitudes.detach(), network.biases.detach())
        gap = drawn - u
        squares.append(float(gap.inner(gap, shift=shift, gradient=gradient)))
        values.append(network(x).detach())
    size = float(u.l1_norm()) if sampling == "l2" else float(u.barron_norm())
    assert sum(squares) / 200 <= size**2 / m
    stacked = torch.stack(values)
    assert float(((stacked.mean(0) - u(x)).abs() / (stacked.std(0) / 200**0.5)).max()) <= 4


@pytest.mark.parametrize("boundary", ["dirichlet", "periodic"])
def test_simulated_network_equals_the_iterate(boundary):
    """Oracle: u_t of the descent itself, at random points."""
    if boundary == "dirichlet":
        solution = SineSeries(torch.tensor([[1, 1], [2, 2]]), torch.tensor([1.0, 0.5], dtype=torch.float64))
        potential = [0, 0, 0, 0, 0.25]
    else:
        solution = PlaneWaveSeries.cosines(torch.tensor([[1, 0], [0, 1]]), torch.ones(2, dtype=torch.float64))
        potential = [0, 0, 0.5, 0, 0.25]
    energy = EllipticEnergy(2, potential=potential, source=solution.zero(), boundary=boundary).with_solution(solution)
    seen = []
    PreconditionedDescent(energy, step=0.5, max_steps=3, truncation=1e-5).fit(observe_fn=lambda _t, u: seen.append(u))
    network, weights = simulate_network(seen)
    x = points(2)
    assert torch.allclose(network(x).squeeze(1), seen[-1](x), rtol=0, atol=1e-11)
    assert weights > seen[-1].num_terms


def test_certificate_by_hand():
    """Oracle: the recursion written out for V = u⁴/4, and its exponent p = 3."""
    logs = barron_certificate([0.5] * 6, [0, 0, 0, 0, 0.25], 100.0, lowest=10.0)
    b = 0.0
    for log in logs:
        assert log == pytest.approx(math.log(b), rel=1e-12) if b else log == -math.inf
        b = max(0.5, 1 - 0.5 * 10 / 11) * b + 0.5 * (b**3 + 100) / 11
    assert growth_exponent(logs) == pytest.approx(3, abs=0.2)


def test_linear_certificate_stays_bounded():
    """Oracle: the fixed point F / ((1 + s₀) · s₀/(1 + s₀)) of the linear recursion."""
    logs = barron_certificate([1.0] * 60, [], 7.0, lowest=9.0)
    assert math.exp(logs[-1]) == pytest.approx(7 / 9, rel=1e-9)


def test_bad_input():
    """Oracle: the error classes that the docstrings promise."""
    unknown: Any = "tanh"
    with pytest.raises(ArgumentError, match="width >= 1"):
        sample().to_network(0)
    with pytest.raises(ArgumentError, match="activation"):
        sample().to_network(activation=unknown)
    with pytest.raises(ArgumentTypeError, match="ReLU"):
        barron_path_norm(sample().to_network())
    with pytest.raises(ArgumentError, match="positive steps"):
        barron_certificate([0.0], [], 1.0, lowest=1.0)
    with pytest.raises(ArgumentError, match="no iterate"):
        simulate_network([sample().zero()])
