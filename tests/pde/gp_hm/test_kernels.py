"""Mixture-spectrum kernels and their closed-form derivatives."""

import math

import pytest
import torch

from hesse.errors import ArgumentError
from hesse.pde.gp_hm import SpectralMixture1d


def mixture(envelope: str) -> SpectralMixture1d:
    kernel = SpectralMixture1d(4, envelope, 3.0)
    with torch.no_grad():
        kernel.log_scale.copy_(torch.tensor([0.3, -0.2, 0.1, 0.5]))
        kernel.raw_weight.add_(torch.tensor([0.5, 0.0, -0.4, 0.2]))
    return kernel


@pytest.mark.parametrize(
    ("envelope", "order"), [("matern52", 1), ("matern52", 2), *(("gaussian", p) for p in range(1, 5))]
)
def test_derivatives(envelope, order):
    """Oracle: autograd away from lag 0, on both sides of it, in float64."""
    kernel = mixture(envelope)
    lag = torch.tensor([-1.3, -0.4, 0.2, 0.9, 2.0], dtype=torch.float64, requires_grad=True)
    wanted = kernel(lag)
    for _ in range(order):
        (wanted,) = torch.autograd.grad(wanted.sum(), lag, create_graph=True)
    found = kernel(lag.detach(), order)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("envelope", ["matern52", "gaussian"])
def test_second_derivative_at_zero(envelope):
    """Oracle: -Σ w (a²/3 + ω²) or -Σ w (2b + ω²), where autograd of |lag| gives nonsense; and central differences."""
    kernel = mixture(envelope)
    rho, omega = kernel.log_scale.exp(), 2 * math.pi * kernel.frequency
    curvature = 5 * rho.square() / 3 if envelope == "matern52" else 2 * rho.square()
    wanted = -(kernel.weight * (curvature + omega.square())).sum()
    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(kernel(zero, 2), wanted, rtol=1e-12, atol=0)
    h = torch.tensor([-1e-4, 0, 1e-4], dtype=torch.float64)
    low, middle, high = kernel(h)
    torch.testing.assert_close((low - 2 * middle + high) / 1e-8, wanted, rtol=1e-3, atol=0)
    assert float(kernel(zero, 1).detach()) == 0


@pytest.mark.parametrize("order", [0, 1, 2])
def test_toeplitz_is_the_pairwise_matrix(order):
    """Oracle: all pairs, evaluated one by one."""
    kernel, grid = mixture("matern52"), torch.linspace(-1, 2, 17, dtype=torch.float64)
    found = kernel.toeplitz(grid, order).to_dense()
    torch.testing.assert_close(found, kernel.matrix(grid, grid, order), rtol=1e-11, atol=1e-11)
    with pytest.raises(ArgumentError, match="equally spaced"):
        kernel.toeplitz(grid.square() * grid.sign(), order)


@pytest.mark.parametrize("envelope", ["matern52", "gaussian"])
def test_spectral_density_is_not_negative(envelope):
    """Oracle: Bochner's theorem; the kernel matrix has no eigenvalue below rounding."""
    kernel, grid = mixture(envelope), torch.linspace(0, 3, 60, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(kernel.matrix(grid, grid).detach()).min()) > -1e-12


def test_weights_start_alike():
    """Oracle: both parametrisations begin at 1/Q."""
    for weights in ("log", "softplus"):
        torch.testing.assert_close(
            SpectralMixture1d(5, weights=weights).weight.detach(), torch.full((5,), 0.2).double()
        )


def test_bad_arguments():
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError, match="use gaussian"):
        mixture("matern52")(torch.zeros(2, dtype=torch.float64), 3)
    for options in ({"n_components": 0}, {"envelope": "box"}, {"f_max": -1.0}, {"weights": "square"}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            SpectralMixture1d(**options)
