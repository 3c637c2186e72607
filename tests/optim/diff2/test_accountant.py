"""The accountant against closed forms, quadrature, exact Gaussian accounting and its own inverse."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import comb
from scipy.stats import norm

from hesse.errors import ArgumentError
from hesse.optim.diff2 import (
    GaussianAccountant,
    GaussianRelease,
    gaussian_delta,
    gaussian_epsilon,
    sampled_gaussian_rdp,
)


def test_rho_and_mu_are_sums():
    """Oracle: ρ = Σ count/(2m²), μ² = 2ρ; like entries are one, in any order."""
    spent = GaussianAccountant().add(4.0, 3).add(10.0).add(4.0, 2).add(7.0, 0)
    assert spent.rho() == pytest.approx(5 / 32 + 1 / 200, rel=1e-14)
    assert spent.mu() ** 2 == pytest.approx(2 * spent.rho(), rel=1e-14)
    assert sorted(r.count for r in spent.releases) == [1, 5]


@pytest.mark.parametrize(("mu", "epsilon"), [(0.3, 0.1), (1.0, 1.0), (2.0, 5.0), (0.5, 0.0)])
def test_exact_delta_is_the_integral(mu, epsilon):
    """Oracle: δ = ∫ max(p - exp(ε) q, 0) of N(μ, 1) against N(0, 1), by quadrature."""
    cut = epsilon / mu + mu / 2
    found, _ = quad(lambda z: norm.pdf(z - mu) - math.exp(epsilon) * norm.pdf(z), cut, cut + 30, epsabs=1e-14)
    assert gaussian_delta(mu, epsilon) == pytest.approx(found, rel=1e-7)
    assert gaussian_epsilon(mu, found) == pytest.approx(epsilon, abs=1e-6)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("rho", [1e-4, 0.02, 1.0, 30.0])
def test_epsilon_lies_between_the_exact_and_the_plain_bound(rho, delta):
    """Oracle: the exact ε from below, ρ + 2√(ρ log 1/δ) from above, and the best of 200,000 orders."""
    spent = GaussianAccountant().add((1 / (2 * rho)) ** 0.5)
    found = spent.epsilon(delta)
    assert spent.epsilon(delta, method="exact") <= found <= rho + 2 * math.sqrt(rho * math.log(1 / delta))
    a = 1 + np.geomspace(1e-3, 1e6, 200_000)
    best = (rho * a + np.log1p(-1 / a) - (math.log(delta) + np.log(a)) / (a - 1)).min()
    assert found == pytest.approx(max(best, 0), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("rate", "multiplier"), [(0.01, 1.0), (0.2, 0.6), (0.5, 4.0)])
def test_sampled_divergence_is_the_binomial_sum(rate, multiplier):
    """Oracle: Σ_k C(a, k) (1-q)^(a-k) q^k exp(k(k-1)/(2m²)) at integer orders; a/(2m²) at q = 1."""
    orders = np.array([2.0, 3, 8, 20])
    sums = [
        sum(
            comb(int(a), k, exact=True)
            * (1 - rate) ** (int(a) - k)
            * rate**k
            * math.exp(k * (k - 1) / (2 * multiplier**2))
            for k in range(int(a) + 1)
        )
        for a in orders
    ]
    np.testing.assert_allclose(
        sampled_gaussian_rdp(rate, multiplier, orders), np.log(sums) / (orders - 1), rtol=1e-9, atol=1e-13
    )
    np.testing.assert_allclose(sampled_gaussian_rdp(1.0, multiplier, orders), orders / (2 * multiplier**2))


@pytest.mark.parametrize("method", ["rdp", "exact"])
@pytest.mark.parametrize("epsilon", [0.05, 1.0, 8.0])
def test_calibration_spends_the_budget(epsilon, method):
    """Oracle: the accountant itself; the proportion of the multipliers stays."""
    plan = [GaussianRelease(1.0, 3), GaussianRelease(5.0, 97)]
    found = GaussianAccountant.calibrate(epsilon, 1e-5, plan, method=method)
    assert 0.99 * epsilon <= found.epsilon(1e-5, method=method) <= epsilon
    assert found.releases[1].multiplier == pytest.approx(5 * found.releases[0].multiplier)


def test_calibration_on_samples_spends_the_budget():
    """Oracle: the accountant itself; sampling needs less noise than full batches."""
    sampled, full = (GaussianAccountant.calibrate(2.0, 1e-5, [GaussianRelease(1.0, 300, q)]) for q in (0.02, 1.0))
    assert 1.98 <= sampled.epsilon(1e-5) <= 2.0
    assert sampled.releases[0].multiplier < full.releases[0].multiplier / 5


def test_no_noise_is_no_privacy_and_no_release_is_free():
    """Oracle: the definition."""
    assert GaussianAccountant().epsilon(1e-5) == 0
    for method in ("rdp", "exact"):
        assert GaussianAccountant().add(0.0).epsilon(1e-5, method=method) == math.inf
    assert gaussian_delta(0.0, 0.5) == 0
    assert gaussian_delta(math.inf, 0.5) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: GaussianAccountant().add(-1.0),
        lambda: GaussianAccountant().add(math.nan),
        lambda: GaussianAccountant().add(1.0, -1),
        lambda: GaussianAccountant().add(1.0, 1, 0.0),
        lambda: GaussianAccountant().add(1.0).epsilon(0.0),
        lambda: GaussianAccountant().add(1.0).epsilon(0.1, method="moments"),
        lambda: GaussianAccountant().add(1.0, 1, 0.5).rho(),
        lambda: GaussianAccountant().add(1.0, 1, 0.5).epsilon(1e-5, method="exact"),
        lambda: GaussianAccountant().rdp([1.0]),
        lambda: GaussianAccountant.calibrate(0.0, 1e-5, [GaussianRelease(1.0)]),
        lambda: GaussianAccountant.calibrate(1.0, 1e-5, []),
        lambda: GaussianAccountant.calibrate(1.0, 1e-5, [GaussianRelease(0.0)]),
        lambda: gaussian_delta(-1.0, 0.0),
        lambda: gaussian_epsilon(1.0, 1.0),
    ],
)
def test_bad_input_is_refused(call):
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError):
        call()
