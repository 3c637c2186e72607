import pytest
import torch

from hesse.errors import ArgumentError, ShapeError, SingularError
from hesse.generative.gaussian_mixture import GaussianMixture


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def full(dtype=torch.float64) -> tuple[GaussianMixture, torch.Tensor]:
    root = torch.randn(3, 4, 4, generator=seeded(0), dtype=dtype)
    covariances = root @ root.mT + 0.2 * torch.eye(4, dtype=dtype)
    means = 2 * torch.randn(3, 4, generator=seeded(1), dtype=dtype)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=dtype)
    return GaussianMixture.from_covariances(weights, means, covariances), covariances


def thin() -> GaussianMixture:
    factors = torch.randn(2, 5, 2, generator=seeded(2), dtype=torch.float64)
    means = torch.randn(2, 5, generator=seeded(3), dtype=torch.float64)
    return GaussianMixture.from_factors(torch.tensor([0.4, 0.6], dtype=torch.float64), means, factors)


def dense_log_density(mixture, covariances, x, noise_sd, signal):
    eye = torch.eye(mixture.dim, dtype=x.dtype)
    terms = [
        w.log() + torch.distributions.MultivariateNormal(signal * m, signal**2 * c + noise_sd**2 * eye).log_prob(x)
        for w, m, c in zip(mixture.weights, mixture.means, covariances, strict=True)
    ]
    return torch.stack(terms).logsumexp(0)


@pytest.mark.parametrize(("noise_sd", "signal"), [(0.0, 1.0), (0.7, 1.0), (0.6, 0.8)])
def test_density_is_that_of_torch_distributions(noise_sd, signal):
    """Oracle: torch's multivariate normals with dense covariances, full and low-rank components."""
    x = torch.randn(20, 4, generator=seeded(4), dtype=torch.float64)
    mixture, covariances = full()
    wanted = dense_log_density(mixture, covariances, x, noise_sd, signal)
    torch.testing.assert_close(mixture.log_density(x, noise_sd, signal), wanted, rtol=1e-11, atol=1e-11)
    if noise_sd:
        flat = thin()
        y = torch.randn(20, 5, generator=seeded(5), dtype=torch.float64)
        spans = (flat.directions * flat.variances.unsqueeze(1)) @ flat.directions.mT
        wanted = dense_log_density(flat, spans, y, noise_sd, signal)
        torch.testing.assert_close(flat.log_density(y, noise_sd, signal), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mixture", [full()[0], thin()], ids=["full", "thin"])
def test_score_is_the_gradient_with_a_level_for_every_row(mixture):
    """Oracle: autograd of the log density; rows one by one."""
    x = torch.randn(8, mixture.dim, generator=seeded(6), dtype=torch.float64, requires_grad=True)
    sigma = torch.linspace(0.1, 2, 8, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(mixture.log_density(x, sigma, 0.9).sum(), x)
    found = mixture.score(x, sigma, 0.9)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[3:4], mixture.score(x[3:4], float(sigma[3]), 0.9))
    assert torch.autograd.gradcheck(lambda y: mixture.score(y, sigma, 0.9), x)


def test_denoiser_is_the_posterior_mean():
    """Oracle: the regression of x_0 on x of one Gaussian, and exactness on a point mass."""
    mixture, covariances = full()
    one = GaussianMixture.from_covariances(torch.ones(1, dtype=torch.float64), mixture.means[:1], covariances[:1])
    x = torch.randn(6, 4, generator=seeded(7), dtype=torch.float64)
    gain = covariances[0] @ torch.linalg.inv(covariances[0] + 0.25 * torch.eye(4, dtype=torch.float64))
    wanted = one.means[0] + (x - one.means[0]) @ gain.T
    torch.testing.assert_close(one.denoise(x, 0.5), wanted, rtol=1e-10, atol=1e-10)
    mass = GaussianMixture.from_factors(torch.ones(1), torch.ones(1, 3), torch.zeros(1, 3, 1))
    torch.testing.assert_close(mass.denoise(torch.randn(4, 3, generator=seeded(8)), 0.3), torch.ones(4, 3))


@pytest.mark.parametrize("mixture", [full()[0], thin()], ids=["full", "thin"])
def test_samples_have_the_moments(mixture):
    """Oracle: mean and covariance of the mixture, entries within five standard errors."""
    x = mixture.sample(20000, generator=seeded(9))
    w, m = mixture.weights, mixture.means
    mean = w @ m
    inside = (mixture.directions * mixture.variances.unsqueeze(1)) @ mixture.directions.mT
    covariance = torch.einsum("k,kij->ij", w, inside) + (m - mean).T @ torch.diag(w) @ (m - mean)
    centred = x - mean
    products = centred.unsqueeze(2) * centred.unsqueeze(1)
    assert bool(((x.mean(0) - mean).abs() <= 5 * x.std(0) / 20000**0.5).all())
    assert bool(((products.mean(0) - covariance).abs() <= 5 * products.std(0) / 20000**0.5 + 1e-12).all())


def test_float32_follows_float64():
    """Oracle: the same mixture in double precision."""
    (double, _), (single, _) = full(), full(torch.float32)
    single = GaussianMixture(
        *(getattr(double, n).float() for n in ("weights", "means", "directions", "variances", "floor"))
    )
    x = torch.randn(5, 4, generator=seeded(10), dtype=torch.float64)
    found = single.score(x.float(), 0.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), double.score(x, 0.5), rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    one, eye = torch.ones(1), torch.eye(2).unsqueeze(0)
    with pytest.raises(ArgumentError, match="sum one"):
        GaussianMixture.from_covariances(2 * one, torch.zeros(1, 2), eye)
    with pytest.raises(SingularError, match="from_factors"):
        GaussianMixture.from_covariances(one, torch.zeros(1, 2), 0 * eye)
    with pytest.raises(ShapeError, match="covariances"):
        GaussianMixture.from_covariances(one, torch.zeros(1, 2), torch.ones(1, 2, 3))
    with pytest.raises(ShapeError, match="variances"):
        GaussianMixture(one, torch.zeros(1, 2), eye, torch.ones(2), one)
    with pytest.raises(ShapeError, match="R <= D"):
        GaussianMixture.from_factors(one, torch.zeros(1, 2), torch.ones(1, 2, 3))
    with pytest.raises(ShapeError, match="x of shape"):
        GaussianMixture.from_covariances(one, torch.zeros(1, 2), eye).score(torch.zeros(3))
    with pytest.raises(ArgumentError, match="flat"):
        GaussianMixture.from_factors(one, torch.zeros(1, 2), torch.ones(1, 2, 1)).log_density(torch.zeros(1, 2))
    with pytest.raises(ArgumentError, match="num_samples"):
        GaussianMixture.from_covariances(one, torch.zeros(1, 2), eye).sample(0)
