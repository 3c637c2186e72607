import pytest
import torch

from hesse.bilevel import BilevelProblem, proximal_error_bound
from hesse.errors import ArgumentError
from hesse.linalg import Box
from tests.bilevel.cases import seeded

ZERO = torch.zeros(1, dtype=torch.float64)


def diagonal(values, **options):
    values = torch.tensor(values, dtype=torch.float64)
    return BilevelProblem(
        upper=lambda x, y, batch: y.sum(),
        lower=lambda x, y, batch: (values * y.square()).sum() / 2 + 0 * x.sum(),
        x0=ZERO,
        y0=torch.zeros(len(values), dtype=torch.float64),
        **options,
    )


def test_quadratics():
    """Oracle: along an eigenvector of h with eigenvalue m the ratio is m/(1 + ρm); no sample goes below the least."""
    problem = diagonal([0.25, 1.0, 4.0])
    unit = list(torch.eye(3, dtype=torch.float64))
    found = proximal_error_bound(problem, ZERO, unit, rho=0.5, generator=seeded(0))
    assert found.converged
    expected = torch.tensor([m / (1 + 0.5 * m) for m in (0.25, 1.0, 4.0)], dtype=torch.float64)
    torch.testing.assert_close(found.residuals / found.distances, expected, rtol=1e-6, atol=0)
    assert found.mu == pytest.approx(0.25 / 1.125, rel=1e-6)
    assert found.delta == pytest.approx(4 / 3, rel=1e-6)
    random = list(torch.randn(10, 3, dtype=torch.float64, generator=seeded(1)))
    assert proximal_error_bound(problem, ZERO, random, rho=0.5).mu >= 0.25 / 1.125 - 1e-6


def test_many_solutions_keep_the_bound_but_quartics_lose_it():
    """Oracle: a flat direction does not count; for g = y⁴ the ratio has no lower bound."""
    flat = diagonal([0.0, 2.0])
    samples = list(torch.randn(10, 2, dtype=torch.float64, generator=seeded(1)))
    assert proximal_error_bound(flat, ZERO, samples).mu == pytest.approx(2 / 3, rel=1e-5)
    quartic = BilevelProblem(
        upper=lambda x, y, batch: y.sum(),
        lower=lambda x, y, batch: (y**4).sum() + 0 * x.sum(),
        x0=ZERO,
        y0=torch.zeros(1, dtype=torch.float64),
    )
    mus = [proximal_error_bound(quartic, ZERO, [ZERO + y], max_steps=500).mu for y in (1.0, 0.3, 0.1)]
    assert mus[0] > 2 * mus[1] > 8 * mus[2]


def test_constraint_and_penalty():
    """Oracle: min over [1, 2] of s y + y²/2 is 1; the proximal point of 2 is where y + s + (y - 2)/ρ vanishes."""
    problem = diagonal([1.0], project_y=Box(1.0, 2.0))
    found = proximal_error_bound(problem, ZERO, [ZERO + 2], sigma=0.1, rho=1.0)
    assert found.mu == pytest.approx((2 - 1.0) / 1.0, rel=1e-6)  # 0.95 lies outside
    found = proximal_error_bound(problem, ZERO, [ZERO + 2], sigma=0.1, rho=0.1)
    assert found.mu == pytest.approx((2 - (20 - 0.1) / 11) / 0.1, rel=1e-6)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    problem = diagonal([1.0])
    with pytest.raises(ArgumentError, match="sample"):
        proximal_error_bound(problem, ZERO, [])
    with pytest.raises(ArgumentError, match="rho"):
        proximal_error_bound(problem, ZERO, [ZERO], rho=0.0)
    with pytest.raises(ArgumentError, match="sigma"):
        proximal_error_bound(problem, ZERO, [ZERO], sigma=-1.0)
    with pytest.raises(ArgumentError, match="already"):
        proximal_error_bound(problem, ZERO, [ZERO])
    with pytest.raises(ArgumentError, match="constraint"):
        proximal_error_bound(diagonal([1.0], constraint=lambda x, y: y), ZERO, [ZERO + 1])
