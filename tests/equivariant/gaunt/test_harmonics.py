"""Spherical harmonics: values, normalization, derivatives, high degrees."""

import math

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from hesse.equivariant.gaunt import spherical_harmonics
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

F64 = torch.float64


def _vectors(count, *, seed=0, dtype=F64):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def test_closed_forms_of_the_first_three_degrees():
    """Oracle: the polynomials of degrees 0 to 2 with the polar axis y, as printed in textbooks for z."""
    r = _vectors(20)
    x, y, z = (r / r.norm(dim=-1, keepdim=True)).unbind(-1)
    wanted = [torch.ones_like(x), *(3**0.5 * part for part in (x, y, z))]
    wanted += [15**0.5 * x * z, 15**0.5 * x * y, 5**0.5 * (3 * y**2 - 1) / 2, 15**0.5 * y * z]
    wanted += [15**0.5 * (z**2 - x**2) / 2]
    torch.testing.assert_close(spherical_harmonics(2, 5 * r, "component"), torch.stack(wanted, -1))


@pytest.mark.parametrize("degree", [1, 7, 40])
def test_agrees_with_scipy(degree):
    """Oracle: scipy's complex harmonics, whose sign (-1)^m and whose polar axis z differ from ours."""
    r = _vectors(10)
    x, y, z = (r / r.norm(dim=-1, keepdim=True)).numpy().T
    polar, azimuth = np.arccos(y), np.arctan2(x, z)
    found = spherical_harmonics(degree, r)[:, degree**2 :].numpy()
    for m in range(1, degree + 1):
        value = (-1) ** m * 2**0.5 * sph_harm_y(degree, m, polar, azimuth)
        np.testing.assert_allclose(found[:, degree + m], value.real, atol=1e-12)
        np.testing.assert_allclose(found[:, degree - m], value.imag, atol=1e-12)
    np.testing.assert_allclose(found[:, degree], sph_harm_y(degree, 0, polar, azimuth).real, atol=1e-12)


@pytest.mark.parametrize(("dtype", "degree", "tol"), [(F64, 200, 1e-11), (torch.float32, 100, 2e-4)])
def test_addition_theorem_at_high_degree(dtype, degree, tol):
    """Oracle: Σ_m Y_lm² = (2 l + 1) / 4π in every direction, near a pole as well; nothing overflows."""
    r = torch.cat([_vectors(20), torch.tensor([[1e-9, 1.0, 0.0], [0.0, -1.0, 0.0]], dtype=F64)]).to(dtype)
    last = spherical_harmonics(degree, r)[:, degree**2 :]
    torch.testing.assert_close(
        last.square().sum(-1), torch.full((22,), (2 * degree + 1) / (4 * math.pi), dtype=dtype), rtol=tol, atol=0
    )


def test_normalizations_differ_by_known_factors():
    """Oracle: their definitions."""
    r = _vectors(5)
    integral, component, norm = (spherical_harmonics(3, r, name) for name in ("integral", "component", "norm"))
    torch.testing.assert_close(component, integral * (4 * math.pi) ** 0.5)
    torch.testing.assert_close(norm[:, 9:].norm(dim=-1), torch.ones(5, dtype=F64))


def test_derivatives_at_the_poles():
    """Oracle: finite differences, first and second order, at and near both poles."""
    r = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [1e-6, 1.0, 0.0]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: spherical_harmonics(5, v), (r,))
    assert torch.autograd.gradgradcheck(lambda v: spherical_harmonics(3, v), (r,))


def test_length_does_not_matter():
    """Invariance: vectors whose squares would leave the range of float32 have the direction they have."""
    r = _vectors(5, dtype=torch.float32)
    for size in (1e-30, 1e30):
        torch.testing.assert_close(spherical_harmonics(4, r * size), spherical_harmonics(4, r))


def test_half_precision_is_rounded_once():
    """Oracle: float32 of the same numbers."""
    r = _vectors(5).to(torch.bfloat16)
    assert torch.equal(spherical_harmonics(3, r), spherical_harmonics(3, r.float()).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((2, torch.zeros(4, 3)), ArgumentError, "zero or not finite"),
        ((2, torch.full((4, 3), math.nan)), ArgumentError, "zero or not finite"),
        ((2, torch.ones(4, 2)), ShapeError, "xyz"),
        ((2, torch.ones(4, 3, dtype=torch.int64)), ArgumentTypeError, "xyz"),
        ((-1, torch.ones(4, 3)), ArgumentError, "l_max"),
        ((2.0, torch.ones(4, 3)), ArgumentTypeError, "l_max"),
        ((2, torch.ones(4, 3), "4pi"), ArgumentError, "normalization"),
    ],
)
def test_refuses(arguments, error, match):
    """Oracle: what the docstring raises, by name of the argument."""
    with pytest.raises(error, match=match):
        spherical_harmonics(*arguments)
