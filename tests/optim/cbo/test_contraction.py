"""Rates of contraction against simulated steps."""

import math

import pytest
import torch

from hesse.errors import ArgumentError
from hesse.optim import cloud_contraction


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize(("dt", "drift", "sigma"), [(0.1, 1.0, 1.0), (0.01, 1.0, 5.1), (0.5, 3.0, 0.3)])
def test_rates_are_those_of_steps(isotropic, dt, drift, sigma):
    """Oracle: 200,000 steps of the equation, within four of their standard errors."""
    generator = torch.Generator().manual_seed(0)
    deviation = torch.ones(200_000, 3, dtype=torch.float64)
    z = torch.randn(deviation.shape, generator=generator, dtype=torch.float64)
    reach = deviation.norm(dim=-1, keepdim=True) if isotropic else deviation
    moved = (1 - drift * dt) * deviation + sigma * math.sqrt(dt) * reach * z
    ratio = moved.norm(dim=-1) / 3**0.5 if isotropic else moved.abs().flatten()
    rates = cloud_contraction(dt=dt, drift=drift, sigma=sigma, dim=3, isotropic=isotropic)
    for sample, exact in ((ratio.square(), rates.mean_square), (ratio.log(), rates.log_rate)):
        assert abs(float(sample.mean()) - exact) < 4 * float(sample.std()) / len(sample) ** 0.5


def test_faint_noise_tends_to_none():
    """Oracle: log(1 - λ dt); for faint noise log a - b²/(2a²) and more, by the series of the logarithm."""
    still = cloud_contraction(dt=0.1, drift=1.0, sigma=0.0, dim=5, isotropic=False)
    assert still.log_rate == math.log(0.9)
    assert still.mean_square == pytest.approx(0.81)
    faint = cloud_contraction(dt=0.1, drift=1.0, sigma=1e-2, dim=5, isotropic=False)
    assert faint.log_rate == pytest.approx(math.log(0.9) - 1e-5 / (2 * 0.81), abs=1e-9)
    assert cloud_contraction(dt=1.0, drift=1.0, sigma=0.0, dim=1, isotropic=True).log_rate == -math.inf


def test_refuses():
    """Oracle: the documented error."""
    with pytest.raises(ArgumentError, match="dt > 0"):
        cloud_contraction(dt=0.0, drift=1.0, sigma=1.0, dim=1, isotropic=True)
