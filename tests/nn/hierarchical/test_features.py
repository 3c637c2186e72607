"""Hermite polynomials, frozen features and targets against quadrature and Monte Carlo."""

import math

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.hierarchical import hermite, hierarchical_target, inner_features

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hermite_polynomials_are_orthonormal():
    """Oracle: Gauss-Hermite quadrature of 60 points; degree 3 by hand."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    basis = torch.stack([hermite(torch.as_tensor(nodes), k) for k in range(12)])
    gram = (basis * torch.as_tensor(weights / math.sqrt(2 * math.pi))) @ basis.T
    torch.testing.assert_close(gram, torch.eye(12, dtype=F64), rtol=0, atol=1e-12)
    t = torch.linspace(-3, 3, 7, dtype=F64)
    torch.testing.assert_close(hermite(t, 3), (t**3 - 3 * t) / math.sqrt(6))
    assert torch.autograd.gradcheck(lambda s: hermite(s, 4), t.requires_grad_())


@pytest.mark.parametrize(("degree", "spectrum"), [(1, "flat"), (2, "flat"), (2, "goe"), (3, "flat")])
def test_targets_are_standardised(degree, spectrum):
    """Oracle: mean 0 and variance 1 of p over 200,000 draws of N(0, I); those of the link for nearly normal p."""
    target = hierarchical_target(40, degree, spectrum=spectrum, generator=seeded(1))
    x = torch.randn(200_000, 40, generator=seeded(2), dtype=F64)
    p = target.polynomial(x)
    assert abs(float(p.mean())) < 0.02
    assert float(p.var()) == pytest.approx(1, abs=0.05)
    z = torch.randn(200_000, generator=seeded(3), dtype=F64)
    assert float(target.link(z).var()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("degree", [1, 2])
def test_exact_features_span_the_polynomials(degree):
    """Oracle: least squares reproduces p to rounding; orthonormal over N(0, I) to Monte Carlo error."""
    target = hierarchical_target(5, degree, generator=seeded(4))
    x = torch.randn(100_000, 5, generator=seeded(5), dtype=F64)
    H = inner_features(x, x[:0], degree, "exact")
    p = target.polynomial(x)
    torch.testing.assert_close(H @ torch.linalg.lstsq(H, p[:, None]).solution[:, 0], p, rtol=0, atol=1e-9)
    torch.testing.assert_close(H.T @ H / len(x), torch.eye(H.shape[1], dtype=F64), rtol=0, atol=0.05)


@pytest.mark.parametrize("inner", ["hermite", "mixed", "relu", "softplus"])
def test_inner_layers_act_on_directions(inner):
    """Oracle: the activation applied to V x by hand."""
    x, V = torch.randn(6, 3, generator=seeded(6), dtype=F64), torch.eye(3, dtype=F64)
    by_hand = {
        "hermite": (x**2 - 1) / math.sqrt(2),
        "mixed": (x + (x**2 - 1) / math.sqrt(2)) / math.sqrt(2),
        "relu": x.clamp(min=0),
        "softplus": torch.log1p(x.exp()),
    }
    torch.testing.assert_close(inner_features(x, V, 2, inner), by_hand[inner])


def test_refused():
    """Oracle: errors that name the bad argument."""
    x = torch.randn(3, 4)
    with pytest.raises(ArgumentError, match="degree"):
        hermite(x, -1)
    with pytest.raises(ArgumentError, match="degree"):
        inner_features(x, x, 0)
    with pytest.raises(ArgumentError, match="inner"):
        inner_features(x, x, 2, "tanh")
    with pytest.raises(ArgumentError, match="exact"):
        inner_features(x, x, 3, "exact")
    with pytest.raises(ArgumentError, match="degree"):
        hierarchical_target(3, 4)
    with pytest.raises(ArgumentError, match="link"):
        hierarchical_target(3, 2, "odd")
    with pytest.raises(ArgumentError, match="spectrum"):
        hierarchical_target(3, 2, spectrum="wigner")
    with pytest.raises(ShapeError, match="x"):
        hierarchical_target(5, 2)(x)
