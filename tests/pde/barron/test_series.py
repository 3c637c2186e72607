"""Series against evaluation at points, closed forms of norms, and the closure rules of the Barron norm."""

from math import pi

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.pde.barron import PlaneWaveSeries, SineSeries

KINDS = [(True, True, True), (True, False, True), (False, False, False)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def sines(kinds, generator, count=6):
    freqs = torch.randint(1, 5, (count, len(kinds)), generator=generator)
    return SineSeries(freqs, torch.randn(count, dtype=torch.float64, generator=generator), kinds)


def waves(generator, dim=3, count=5):
    freqs = torch.randint(-3, 4, (count, dim), generator=generator)
    draw = torch.randn(2, count, dtype=torch.float64, generator=generator)
    return PlaneWaveSeries.cosines(freqs, draw[0], draw[1])


def points(dim=3, count=40):
    return torch.rand(count, dim, dtype=torch.float64, generator=seeded(9))


@pytest.mark.parametrize("left", KINDS)
@pytest.mark.parametrize("right", KINDS)
def test_products_of_sines_are_pointwise(left, right):
    """Oracle: values multiplied at random points; and the norm is submultiplicative."""
    generator = seeded(1)
    a, b, x = sines(left, generator), sines(right, generator), points()
    assert torch.allclose((a * b)(x), a(x) * b(x), rtol=0, atol=1e-12)
    assert (a * b).barron_norm() <= a.barron_norm() * b.barron_norm() * (1 + 1e-14)


def test_products_of_waves_are_pointwise():
    """Oracle: values multiplied at random points, also through blocks; the closure rules on 50 random pairs."""
    generator, x = seeded(2), points()
    for _ in range(50):
        a, b = waves(generator), waves(generator)
        assert torch.allclose((a * b)(x), a(x) * b(x), rtol=0, atol=1e-12)
        assert (a * b).barron_norm() <= a.barron_norm() * b.barron_norm() * (1 + 1e-14)
        assert (a * 2.0 + b).barron_norm() <= 2 * a.barron_norm() + b.barron_norm() + 1e-12
        assert (a * b).is_real()


def test_product_in_blocks_is_the_same(monkeypatch):
    """Oracle: the product with all pairs at once."""
    a, b = sines((True, False), seeded(3), 9), sines((True, True), seeded(4), 7)
    whole = a * b
    monkeypatch.setattr("hesse.pde.barron.series._PAIRS", 30)
    gap = a * b - whole
    assert float(gap.coef.abs().max()) <= 1e-14


@pytest.mark.parametrize("make", [lambda g: sines(KINDS[0], g), waves])
def test_helmholtz_rules(make):
    """Oracle: (I - Δ) of the inverse gives u back; bounds 1/(1 + dπ²) and 1/2 Σ‖G_i‖ of the method."""
    u = make(seeded(5))
    v = u.inv_helmholtz()
    assert float((v + v.neg_laplacian() - u).coef.abs().max()) <= 1e-12
    floor = 1 + 3 * pi**2 if isinstance(u, SineSeries) else 1.0
    assert float(v.barron_norm()) <= float(u.barron_norm()) / floor * (1 + 1e-14)
    for part in u.grad():
        assert float(part.inv_helmholtz().barron_norm()) <= float(u.barron_norm()) / 2 * (1 + 1e-12)


def test_lowest_sine_is_the_equality_case():
    """Oracle: for Π sin(πx) the bound 1/(1 + dπ²) is attained."""
    u = SineSeries(torch.ones(1, 3, dtype=torch.int64), torch.ones(1, dtype=torch.float64))
    assert torch.isclose(u.inv_helmholtz().barron_norm() * (1 + 3 * pi**2), u.barron_norm(), rtol=1e-14)


@pytest.mark.parametrize("kinds", KINDS)
def test_gradient_and_norms(kinds):
    """Oracle: autograd at random points, and Parseval's sum over the gradient's own norms."""
    u = sines(kinds, seeded(6))
    x = points().requires_grad_()
    (exact,) = torch.autograd.grad(u(x).sum(), x)
    found = torch.stack([part(x.detach()) for part in u.grad()], dim=1)
    assert torch.allclose(found, exact, rtol=0, atol=1e-11)
    parts = sum(float(part.l2_norm()) ** 2 for part in u.grad())
    assert float(u.h1_norm()) ** 2 == pytest.approx(float(u.l2_norm()) ** 2 + parts, rel=1e-12)


def test_wave_gradient():
    """Oracle: autograd at random points."""
    u = waves(seeded(7))
    x = points().requires_grad_()
    (exact,) = torch.autograd.grad(u(x).sum(), x)
    assert torch.allclose(torch.stack([p(x.detach()) for p in u.grad()], 1), exact, rtol=0, atol=1e-11)


def test_many_axes_do_not_overflow_keys():
    """Oracle: a cosine squared is (1 + cos 2·)/2, with entries near 2³⁰ in 40 axes."""
    freqs = torch.randint(1, 2**30, (1, 40), generator=seeded(8))
    u = PlaneWaveSeries.cosines(freqs, torch.ones(1, dtype=torch.float64))
    square = u * u
    assert square.num_terms == 3
    assert float(square.mean()) == 0.5


def test_truncation_keeps_its_promise():
    """Oracle: the H¹ norm of the difference; pairs of waves stay together."""
    u = waves(seeded(10), dim=4, count=60)
    for tol in (0.0, 5.0, 50.0):
        assert float((u - u.truncate(tol)).h1_norm()) <= tol + 1e-12
    short = u.truncate(k=31)
    assert short.num_terms == 30
    assert short.is_real()


def test_coefficients_are_differentiable():
    """Oracle: finite differences of the norm of a product."""
    freqs = torch.tensor([[1, 2], [3, 1]])
    coef = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)

    def norm(c):
        u = SineSeries(freqs, c)
        return (u * u).barron_norm()

    assert torch.autograd.gradcheck(norm, coef)


def test_single_precision_is_kept():
    """Oracle: the float64 value."""
    u = sines(KINDS[0], seeded(11))
    low = SineSeries(u.freqs, u.coef.float())
    assert (low * low).coef.dtype == torch.float32
    assert float((low * low).barron_norm()) == pytest.approx(float((u * u).barron_norm()), rel=1e-5)


def test_bad_input():
    """Oracle: the error classes that the docstrings promise."""
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ShapeError, match="expected freqs"):
        SineSeries(torch.ones(2, 1, dtype=torch.int64), one)
    with pytest.raises(ArgumentTypeError, match="int64"):
        SineSeries(torch.ones(1, 1), one)
    with pytest.raises(ArgumentTypeError, match="complex"):
        PlaneWaveSeries(torch.ones(1, 1, dtype=torch.int64), one)
    with pytest.raises(ArgumentError, match="frequencies >= 1"):
        SineSeries(torch.zeros(1, 1, dtype=torch.int64), one)
    u = SineSeries(torch.ones(1, 1, dtype=torch.int64), one)
    with pytest.raises(ShapeError, match="even power"):
        _ = u * u + u
    with pytest.raises(ArgumentError, match="tol >= 0"):
        u.truncate(-1.0)
    with pytest.raises(ArgumentError, match="not real"):
        PlaneWaveSeries(torch.ones(1, 1, dtype=torch.int64), one.to(torch.complex128)).to_network()
