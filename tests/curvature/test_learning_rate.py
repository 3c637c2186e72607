"""Largest stable rates, scaling rules and damping."""

import numpy as np
import pytest
import torch

from hesse.curvature.learning_rate import (
    critical_batch_size,
    max_learning_rate,
    min_damping,
    scale_learning_rate,
    stable_learning_rate,
)
from hesse.curvature.noise import curvature_noise
from hesse.errors import ArgumentError

F64 = torch.float64


def noise_of_a_quadratic(count=40):
    """Examples with loss a_i x² / 2 in one coordinate of two; s² is the variance of a."""
    a = torch.rand(count, 1, dtype=F64, generator=torch.Generator().manual_seed(0)) * 3
    parameters = {"x": torch.ones(2, dtype=F64)}

    def loss_fn(p, batch):
        return (batch * p["x"][0] ** 2 + 0.01 * p["x"][1] ** 2).mean() / 2

    noise = curvature_noise(loss_fn, parameters, a, num_directions=1, tol=1e-12)
    return noise, a[:, 0]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_limit_is_where_the_second_moments_start_to_grow(momentum):
    """Oracle: spectral radius of the 3 x 3 recurrence of E[x²], E[x x₋], E[x₋²]; one at the limit, more above it."""
    mean, variance = 1.7, 5.0
    limit = float(stable_learning_rate(mean, variance, 1.0, momentum=momentum))

    def radius(rate):
        a, r = 1 + momentum - rate * mean, momentum
        recurrence = np.array([[a**2 + rate**2 * variance, -2 * r * a, r**2], [a, -r, 0], [1, 0, 0]])
        return np.abs(np.linalg.eigvals(recurrence)).max()

    assert radius(limit) == pytest.approx(1, abs=1e-7)
    assert radius(0.98 * limit) < 1 < radius(1.02 * limit)


def test_limit_without_noise_is_that_of_heavy_ball():
    """Oracle: 2(1 + ρ)/l."""
    assert float(stable_learning_rate(4.0, 0.0, 1.0, momentum=0.9)) == pytest.approx(2 * 1.9 / 4)


def test_limit_of_a_network_is_where_one_step_stops_contracting():
    """Oracle: E‖(I - αH_B) v‖² over all single examples, one at the limit for B = 1."""
    noise, a = noise_of_a_quadratic()
    limit = max_learning_rate(noise, 1)
    # drawn from N with 1/b = 1/B - 1/N and the unbiased variance: for B = 1 just the mean over examples
    torch.testing.assert_close((1 - limit * a).square().mean(), torch.tensor(1.0, dtype=F64))


def test_rates_rise_linearly_then_saturate():
    """Oracle: limits of the formula; the critical batch size is where the whole-data rate has halved."""
    noise, a = noise_of_a_quadratic()
    mean, variance = a.mean(), a.var()
    torch.testing.assert_close(max_learning_rate(noise, 40), 2 / mean)
    critical = critical_batch_size(noise)
    torch.testing.assert_close(1 / critical - 1 / 40, mean.square() / variance)
    with_momentum = critical_batch_size(noise, momentum=0.5)
    torch.testing.assert_close(1 / with_momentum - 1 / 40, mean.square() / variance / 3)
    isotropic = max_learning_rate(noise, 1, model="isotropic")
    torch.testing.assert_close(isotropic, 2 / (mean + noise.p_sigma2 * (1 - 1 / 40) / mean))


def test_adaptive_rate_rises_as_the_square_root():
    """Oracle: κ/√(Pσ²/b), no limit for the whole data."""
    noise, _ = noise_of_a_quadratic()
    rates = max_learning_rate(noise, torch.tensor([1, 8, 40]), optimizer="adaptive", kappa=2.0)
    torch.testing.assert_close(rates[0], 2 / (noise.p_sigma2 * (1 - 1 / 40)).sqrt())
    torch.testing.assert_close(rates[1] / rates[0], torch.tensor(((1 - 1 / 40) / (1 / 8 - 1 / 40)) ** 0.5, dtype=F64))
    assert bool(torch.isinf(rates[2]))


def test_scaling_rules():
    """Oracle: ratios of the limits, B/B₀, and √(B/B₀); there and back is the identity."""
    noise, _ = noise_of_a_quadratic()
    ratio = max_learning_rate(noise, 20) / max_learning_rate(noise, 2)
    torch.testing.assert_close(scale_learning_rate(0.3, 2, 20, noise=noise), 0.3 * ratio)
    assert float(scale_learning_rate(0.3, 2, 20, rule="linear")) == pytest.approx(3.0)
    assert float(scale_learning_rate(0.3, 2, 8, rule="sqrt")) == pytest.approx(0.6)
    exact = scale_learning_rate(0.3, 2, 8, rule="sqrt", noise=noise)
    assert float(exact) == pytest.approx(0.3 * ((1 / 2 - 1 / 40) / (1 / 8 - 1 / 40)) ** 0.5)
    for rule in ("sgd", "linear", "sqrt"):
        there = scale_learning_rate(0.3, 2, 20, rule=rule, noise=noise)
        assert float(scale_learning_rate(float(there), 20, 2, rule=rule, noise=noise)) == pytest.approx(0.3)
    sizes = torch.tensor([2, 5, 20])
    assert scale_learning_rate(0.3, 2, sizes, noise=noise).shape == (3,)


def test_minimal_damping():
    """Oracle: both formulas; in proportion to the rate, and the spike's part to 1/b."""
    noise, a = noise_of_a_quadratic()
    found = min_damping(0.1, noise, torch.tensor([2, 40]))
    inverse = 1 / 2 - 1 / 40
    torch.testing.assert_close(found.spike[0], 0.05 * inverse * a.var() / a.mean())
    torch.testing.assert_close(found.bulk[0], 0.1 * (noise.p_sigma2 * inverse).sqrt())
    assert found.value.tolist() == [max(float(found.spike[0]), float(found.bulk[0])), 0.0]


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    noise, _ = noise_of_a_quadratic()
    parameters = {"x": torch.ones(2, dtype=F64)}
    hill = curvature_noise(
        lambda p, b: -(b * p["x"] ** 2).mean(), parameters, torch.rand(9, 1, dtype=F64), num_directions=1
    )
    with pytest.raises(ArgumentError, match="positive curvature"):
        max_learning_rate(hill, 2)
    with pytest.raises(ArgumentError, match="positive curvature"):
        critical_batch_size(hill)
    with pytest.raises(ArgumentError, match="eigenvalue > 0"):
        stable_learning_rate(0.0, 1.0, 1.0)
    with pytest.raises(ArgumentError, match="variance >= 0"):
        stable_learning_rate(1.0, -1.0, 1.0)
    for momentum in (-0.1, 1.0):
        with pytest.raises(ArgumentError, match="momentum"):
            stable_learning_rate(1.0, 1.0, 1.0, momentum=momentum)
    with pytest.raises(ArgumentError, match="batch_size <= 40"):
        max_learning_rate(noise, 41)
    with pytest.raises(ArgumentError, match="optimizer"):
        max_learning_rate(noise, 4, optimizer="adam")
    with pytest.raises(ArgumentError, match="model"):
        max_learning_rate(noise, 4, model="block")
    with pytest.raises(ArgumentError, match="kappa"):
        max_learning_rate(noise, 4, optimizer="adaptive", kappa=0.0)
    with pytest.raises(ArgumentError, match="needs noise"):
        scale_learning_rate(0.1, 2, 4)
    with pytest.raises(ArgumentError, match="rule"):
        scale_learning_rate(0.1, 2, 4, rule="cube")
    with pytest.raises(ArgumentError, match="no limit"):
        scale_learning_rate(0.1, 2, 40, rule="sqrt", noise=noise)
    with pytest.raises(ArgumentError, match="batch sizes"):
        scale_learning_rate(0.1, 0, 4, rule="linear")
    with pytest.raises(ArgumentError, match="lr > 0"):
        min_damping(0.0, noise, 4)
