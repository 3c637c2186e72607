"""Evidence and posterior in a basis of eigenfields, against the dense process."""

import pytest
import torch

from hesse.errors import NumericalError
from hesse.gp.rvgp.spectral import SpectralPrior, fit_evidence, log_evidence, moments_of, posterior
from tests.gp.rvgp.clouds import seeded


def problem(rows: int = 50, fields: int = 12, batch: int = 3):
    features = torch.randn(rows, fields, dtype=torch.float64, generator=seeded(0))
    targets = torch.randn(rows, batch, dtype=torch.float64, generator=seeded(1))
    values = torch.linspace(0.1, 4, fields, dtype=torch.float64)
    return features, targets, values


def prior_of(values, kind="matern", shift=0.0):
    return SpectralPrior(values, torch.ones_like(values), kind, 1.5, shift)


THETA = torch.tensor([0.4, 0.2, -1.5], dtype=torch.float64)


@pytest.mark.parametrize("rows", [5, 50])
@pytest.mark.parametrize("kind", ["matern", "se"])
def test_evidence_is_that_of_the_dense_process(kind, rows):
    """Oracle: the multivariate normal density with covariance Φ S Φᵀ + s² I, to 1e-9."""
    features, targets, values = problem(rows)
    S, noise = prior_of(values, kind).variances(THETA), THETA[2].exp()
    covariance = (features * S) @ features.T + noise * torch.eye(rows, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(rows, dtype=torch.float64), covariance)
    found = log_evidence(moments_of(features, targets), S, noise)
    torch.testing.assert_close(found, normal.log_prob(targets.T).sum(), rtol=1e-9, atol=0)


def test_posterior_is_that_of_the_dense_process():
    """Oracle: K_*ᵀ (K + s² I)⁻¹ y and its covariance, by dense algebra."""
    features, targets, values = problem()
    S, noise = prior_of(values).variances(THETA), THETA[2].exp()
    mean, root = posterior(moments_of(features, targets), S, noise)
    K = (features * S) @ features.T
    system = K + noise * torch.eye(50, dtype=torch.float64)
    torch.testing.assert_close(features @ mean, K @ torch.linalg.solve(system, targets), rtol=1e-9, atol=1e-11)
    expected = K - K @ torch.linalg.solve(system, K)
    torch.testing.assert_close(features @ root @ root.T @ features.T, expected, rtol=1e-8, atol=1e-10)


def test_moments_add_up():
    """Oracle: all rows at once."""
    features, targets, _ = problem()
    whole, parts = moments_of(features, targets), moments_of(features[:20], targets[:20])
    parts = parts + moments_of(features[20:], targets[20:])
    for name in ("gram", "projected", "square", "num_rows"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name))


@pytest.mark.parametrize("theta", [THETA, torch.tensor([0.4, 0.2, -1.5, 0.7], dtype=torch.float64)])
def test_gradients_of_the_evidence(theta):
    """Oracle: finite differences."""
    features, targets, values = problem()
    moments, prior = moments_of(features, targets), prior_of(values, shift=1.0)
    assert torch.autograd.gradcheck(
        lambda t: log_evidence(moments, prior.variances(t), t[2].exp()), theta.clone().requires_grad_()
    )


def test_variances_are_the_formula():
    """Oracle: the closed form, normalised to mean marginal variance σ_f."""
    values = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    squares = torch.tensor([1.2, 0.9, 1.1], dtype=torch.float64)
    found = SpectralPrior(values, squares, "matern", 1.5, 1.0).variances(THETA)
    shape = (3 / THETA[0].exp() ** 2 + values) ** -2.5
    torch.testing.assert_close(found, THETA[1].exp() * shape / (shape * squares).sum())
    assert float((found * squares).sum()) == pytest.approx(float(THETA[1].exp()))


def test_fit_ends_at_a_maximum_and_finds_the_noise():
    """Oracle: the gradient vanishes; the noise that was added, within four of its standard errors."""
    rows, batch = 400, 20
    features, _, values = problem(rows, 12)
    prior = prior_of(values)
    weights = prior.variances(THETA).sqrt()[:, None] * torch.randn(12, batch, dtype=torch.float64, generator=seeded(3))
    noise = 0.3 * torch.randn(rows, batch, dtype=torch.float64, generator=seeded(4))
    moments = moments_of(features, features @ weights + noise)
    found = fit_evidence(moments, prior, torch.zeros(1, 3, dtype=torch.float64), max_iter=200)
    assert found.converged
    assert float(found.theta[2].exp()) == pytest.approx(0.09, rel=4 * (2 / (rows * batch)) ** 0.5)
    theta = found.theta.clone().requires_grad_()
    value = log_evidence(moments, prior.variances(theta), theta[2].exp())
    (slope,) = torch.autograd.grad(value, theta)
    assert float(value.detach()) == pytest.approx(found.value)
    assert float(slope.abs().max()) < 1e-3 * rows * batch


def test_hopeless_noise_is_an_error():
    """Oracle: the error taxonomy; NaN in the system cannot be factored."""
    features, targets, values = problem()
    moments = moments_of(features * float("nan"), targets)
    with pytest.raises(NumericalError, match="order 12"):
        log_evidence(moments, prior_of(values).variances(THETA), THETA[2].exp())
