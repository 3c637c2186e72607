"""The exact posterior of a mixture."""

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.generative.dds import mixture_posterior
from hesse.generative.gaussian_mixture import GaussianMixture
from hesse.linalg import Dense


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def mixture(rank: int) -> GaussianMixture:
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    return GaussianMixture.from_factors(weights, normal(3, 5), normal(3, 5, rank, seed=1), 0.3)


@pytest.mark.parametrize("rank", [2, 5])
def test_posterior_is_joint_conditioning(rank):
    """Oracle: conditioning of jointly normal (x, y) in the space of data, and the evidence from its density."""
    prior, matrix, y, sigma_y = mixture(rank), normal(4, 5, seed=2), normal(3, 4, seed=3), 0.4
    found = mixture_posterior(prior, Dense(matrix), y, sigma_y)
    noise = sigma_y**2 * torch.eye(4, dtype=torch.float64)
    factors = normal(3, 5, rank, seed=1)
    logs = []
    for k in range(3):
        covariance = factors[k] @ factors[k].T + 0.3 * torch.eye(5, dtype=torch.float64)
        of_y = matrix @ covariance @ matrix.T + noise
        gain = covariance @ matrix.T @ torch.linalg.inv(of_y)
        torch.testing.assert_close(found.means[:, k], prior.means[k] + (y - prior.means[k] @ matrix.T) @ gain.T)
        inverse = torch.cholesky_inverse(found.factors[k])
        torch.testing.assert_close(inverse, covariance - gain @ matrix @ covariance)
        law = torch.distributions.MultivariateNormal(matrix @ prior.means[k], of_y)
        logs.append(prior.weights[k].log() + law.log_prob(y))
    torch.testing.assert_close(found.weights, torch.stack(logs, 1).softmax(1))


def test_samples_have_the_posterior_moments():
    """Oracle: mean and covariance of the mixture, within five Monte-Carlo errors."""
    found = mixture_posterior(mixture(2), Dense(normal(1, 5, seed=2)), normal(2, 1, seed=3), 0.4)
    samples = found.sample(20000, generator=seeded(4))
    assert bool(((samples.mean(1) - found.mean).abs() < 5 * samples.std(1) / 20000**0.5).all())
    for b in range(2):
        inside = torch.einsum("k,kij->ij", found.weights[b], torch.cholesky_inverse(found.factors))
        offset = found.means[b] - found.mean[b]
        covariance = inside + torch.einsum("k,ki,kj->ij", found.weights[b], offset, offset)
        products = torch.einsum("ni,nj->nij", samples[b] - found.mean[b], samples[b] - found.mean[b])
        assert bool(((products.mean(0) - covariance).abs() < 5 * products.std(0) / 20000**0.5).all())


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    prior, physics, y = mixture(2), Dense(normal(4, 5)), normal(3, 4)
    with pytest.raises(ShapeError, match="y"):
        mixture_posterior(prior, physics, y[:, :3], 0.1)
    with pytest.raises(ArgumentError, match="sigma_y"):
        mixture_posterior(prior, physics, y, 0.0)
    flat = GaussianMixture.from_factors(prior.weights, prior.means, normal(3, 5, 2))
    with pytest.raises(ArgumentError, match="positive variances"):
        mixture_posterior(flat, physics, y, 0.1)
    with pytest.raises(ArgumentError, match="num_samples"):
        mixture_posterior(prior, physics, y, 0.1).sample(0)
