"""Likelihood engines and their gradients."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.generative.singular import exact_log_likelihood, importance_log_likelihood
from hesse.generative.singular.likelihood import latent_nodes


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def linear():
    """Points, A and σ of x = A z + σ ε, the exact log density, and the exact posterior of z."""
    A = torch.randn(4, 2, dtype=torch.float64, generator=seeded(0))
    sigma = 0.6
    x = torch.randn(40, 4, dtype=torch.float64, generator=seeded(1))
    eye = torch.eye(4, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=x.dtype), A @ A.mT + sigma**2 * eye)
    posterior = torch.linalg.inv(torch.eye(2, dtype=x.dtype) + A.mT @ A / sigma**2)
    return x, A, sigma, law.log_prob(x), x @ A @ posterior / sigma**2, posterior.diagonal()


def test_grid_meets_the_gaussian(linear):
    """Oracle: the closed form of a linear f, to 1e-2 nats."""
    x, A, sigma, truth, _, _ = linear
    found = exact_log_likelihood(x, lambda z: z @ A.mT, sigma, 2, num_nodes=10_000, generator=seeded(2))
    assert float((found - truth).abs().mean()) < 1e-2
    with torch.no_grad():
        streamed = exact_log_likelihood(
            x.repeat(20, 1), lambda z: z @ A.mT, sigma, 2, num_nodes=10_000, generator=seeded(2)
        )
    torch.testing.assert_close(streamed, found.repeat(20))


def test_importance_samples_meet_the_gaussian(linear):
    """Oracle: the closed form; the mean over points within 1e-2 nats from a proposal half as wide again."""
    x, A, sigma, truth, mean, variance = linear
    found = importance_log_likelihood(
        x, lambda z: z @ A.mT, sigma, mean, (1.5 * variance).log().expand(40, 2), num_samples=1000, generator=seeded(3)
    ).log_likelihood
    assert float((found - truth).mean().abs()) < 1e-2


def test_one_sample_is_the_evidence_lower_bound(linear):
    """Oracle: the bound in closed form for linear f, log p minus the divergence of q from the posterior."""
    x, A, sigma, _, mean, variance = linear
    q_mean, q_variance = mean + 0.3, 0.7 * variance
    fits = x - q_mean @ A.mT
    spread = (A.square() * q_variance).sum()
    expected = -(fits.square().sum(1) + spread) / (2 * sigma**2) - 4 * math.log(sigma) - 2 * math.log(2 * math.pi)
    expected = expected - (q_mean.square() + q_variance - q_variance.log() - 1).sum(1) / 2
    runs = torch.stack(
        [
            importance_log_likelihood(
                x, lambda z: z @ A.mT, sigma, q_mean, q_variance.log().expand(40, 2), num_samples=1, generator=seeded(s)
            ).log_likelihood
            for s in range(400)
        ]
    )
    error = runs.mean(1).std() / 400**0.5
    assert float((runs.mean() - expected.mean()).abs()) < 4 * float(error)


def test_gradients_of_the_surrogate():
    """Oracle: in f and σ autograd of the bound itself; in the encoder the same in expectation, with less noise."""
    x = torch.randn(1, 3, dtype=torch.float64, generator=seeded(4))
    A = torch.randn(3, 1, dtype=torch.float64, generator=seeded(5), requires_grad=True)
    mean = torch.tensor([[0.4]], dtype=torch.float64, requires_grad=True)
    log_variance = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def gradients(seed: int, inputs: tuple[torch.Tensor, ...], which: str) -> tuple[torch.Tensor, ...]:
        if which == "surrogate":
            found = importance_log_likelihood(
                x, lambda z: z @ A.mT, sigma, mean, log_variance, num_samples=16, generator=seeded(seed)
            )
            return torch.autograd.grad(found.surrogate.sum(), inputs)
        noise = torch.randn(16, 1, 1, dtype=torch.float64, generator=seeded(seed))  # the bound, written out
        z = mean + (log_variance / 2).exp() * noise
        terms = -(x - z @ A.mT).square().sum(2) / (2 * sigma.square()) - 3 * sigma.log()
        terms = terms - z.square().sum(2) / 2 + (noise.square().sum(2) + log_variance.sum(1)) / 2
        return torch.autograd.grad(terms.logsumexp(0).sum(), inputs)

    for ours, plain in zip(gradients(7, (A, sigma), "surrogate"), gradients(7, (A, sigma), "bound"), strict=True):
        torch.testing.assert_close(ours, plain)
    encoder = (mean, log_variance)
    ours, plain = (
        torch.stack([torch.cat([g.flatten() for g in gradients(s, encoder, which)]) for s in range(600)])
        for which in ("surrogate", "bound")
    )
    error = ((ours.var(0) + plain.var(0)) / 600).sqrt()
    assert bool(((ours.mean(0) - plain.mean(0)).abs() < 4 * error).all())
    assert bool((ours.std(0) < plain.std(0)).all())


def test_likelihood_of_a_line_is_unbounded_without_noise():
    """Oracle: theory; log p grows as -(D - 1) log σ on a line, and noise s puts the best σ at no less than 0.8 s."""
    direction = torch.tensor([[1.0, 2.0, -1.0, 0.5, 1.0]], dtype=torch.float64)
    x = torch.randn(300, 1, dtype=torch.float64, generator=seeded(6)) @ direction

    def value(points: torch.Tensor, sigma: float) -> float:
        found = exact_log_likelihood(points, lambda z: z @ direction, sigma, 1, num_nodes=20_000, generator=seeded(7))
        return float(found.mean())

    slope = (value(x, 0.02) - value(x, 0.04)) / math.log(2)
    assert slope == pytest.approx(4, abs=0.05)
    noisy = x + 0.1 * torch.randn(x.shape, dtype=x.dtype, generator=seeded(8))
    levels = [0.05, 0.07, 0.08, 0.09, 0.1, 0.11, 0.12, 0.15]
    assert max(levels, key=lambda sigma: value(noisy, sigma)) >= 0.08


@pytest.mark.parametrize("dim", [1, 2])
def test_nodes_are_normal(dim):
    """Oracle: the normal law: one node to a cell, hence quantiles within 1/side."""
    nodes = latent_nodes(900, dim, like=torch.zeros((), dtype=torch.float64), generator=seeded(9))
    assert nodes.shape == (900, dim)
    uniform = torch.special.ndtr(nodes[:, 0]).sort().values
    side = 900 if dim == 1 else 30
    assert float((uniform - (torch.arange(900) + 0.5) / 900).abs().max()) < 1 / side


def test_refusals():
    """Oracle: the documented errors."""
    x = torch.zeros(5, 3)
    with pytest.raises(ArgumentError, match="iwae"):
        exact_log_likelihood(x, lambda z: z, 1.0, 3)
    with pytest.raises(ArgumentError, match="num_nodes"):
        exact_log_likelihood(x, lambda z: z, 1.0, 1, num_nodes=0)
    with pytest.raises(ShapeError, match="must map"):
        exact_log_likelihood(x, lambda z: z, 1.0, 2)
    with pytest.raises(ArgumentError, match="num_samples"):
        importance_log_likelihood(x, lambda z: z, 1.0, x, x, num_samples=0)
