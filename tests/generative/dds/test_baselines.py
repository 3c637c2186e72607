"""The samplers that DDS is measured against."""

import pytest
import torch

from hesse.errors import ArgumentError
from hesse.generative.dds import DDNM, DPS, MCG, DiffPIR, SamplerState
from hesse.generative.dds.loop import Moment, add_noise
from hesse.generative.diffusion import DiffusionPrior, VariancePreserving
from hesse.generative.physics import Inpainting
from hesse.linalg import Dense

VP = VariancePreserving()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


PRIOR = DiffusionPrior.from_denoiser(lambda x, sigma: x / (1 + sigma[:, None] ** 2), VP, (6,))  # N(0, I)
MASK = Inpainting(torch.arange(6) % 2 == 0, dtype=torch.float64)


def test_noise_is_put_back_with_the_posterior_variance():
    """Oracle: the posterior of x_t' given x_t and x_0 in DDPM's own letters, mean and variance."""
    now, then = (Moment(t, float(VP.signal(t)), float(VP.noise_sd(t))) for t in (500.0, 480.0))
    alpha = now.a**2 / then.a**2
    clean, x = normal(200000), normal(200000, seed=1)
    noise = (x - now.a * clean) / now.s
    found = add_noise(clean, noise, now, then, 1.0, seeded(2))
    mean = then.a * (1 - alpha) / now.s**2 * clean + alpha**0.5 * then.s**2 / now.s**2 * x
    variance = then.s**2 / now.s**2 * (1 - alpha)
    left = found - mean
    assert abs(float(left.mean())) < 4 * (variance / len(x)) ** 0.5
    assert abs(float(left.var()) / variance - 1) < 4 * (2 / len(x)) ** 0.5
    torch.testing.assert_close(add_noise(clean, noise, now, then, 0.0, None), then.a * clean + then.s * noise)
    torch.testing.assert_close(add_noise(clean, noise, now, Moment(0.0, 1.0, 0.0), 1.0, None), clean)


def test_dps_steps_along_the_gradient():
    """Oracle: the gradient of ‖y - k A x‖ in closed form, k the factor of a Gaussian prior's denoiser."""
    matrix, y, x = normal(4, 6), normal(2, 4, seed=1), normal(2, 6, seed=2)
    sampler = DPS(PRIOR, Dense(matrix), 10, step_size=0.3, eta=0.0)
    now, then = sampler.moment(3), sampler.moment(4)
    found = sampler.step(SamplerState(x, 3), sampler.prepare(y))
    noise = now.s * x  # a² + s² = 1
    k = now.a
    residual = y - k * x @ matrix.T
    slope = -k * residual @ matrix / residual.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.x, then.a * k * x + then.s * noise - 0.3 * slope)
    assert not found.x.requires_grad


def test_diffpir_takes_the_proximal_point():
    """Oracle: the closed form for seen pixels, (x̂_0 + γ y) / (1 + γ)."""
    sampler = DiffPIR(PRIOR, MASK, 10, lam=3.0, zeta=0.0)
    x, y = normal(1, 6), normal(3, seed=1)
    now, then = sampler.moment(4), sampler.moment(5)
    found = sampler.step(SamplerState(x, 4), sampler.prepare(y, sigma_y=0.2), seeded(0))
    gamma = (now.s / now.a / 0.2) ** 2 / 3.0
    clean = now.a * x
    clean[:, ::2] = (clean[:, ::2] + gamma * y) / (1 + gamma)
    torch.testing.assert_close(found.denoised, clean)
    torch.testing.assert_close(found.x, then.a * clean + then.s * (x - now.a * clean) / now.s)


@pytest.mark.parametrize("method", [MCG, DDNM, DiffPIR])
def test_noiseless_data_are_met(method):
    """Oracle: the data."""
    y = normal(2, 3, seed=1)
    found = method(PRIOR, MASK, 20).sample(y, 2, generator=seeded(0))
    torch.testing.assert_close(found[..., ::2], y.unsqueeze(1).expand(2, 2, 3), rtol=1e-6, atol=1e-6)


def test_ddnm_trusts_noisy_data_no_further_than_its_own_noise():
    """Oracle: λ_t = min(1, σ_t / (a' σ_y)) by hand."""
    sampler = DDNM(PRIOR, MASK, 10, eta=0.5)
    x, y, sigma_y = normal(1, 6), normal(3, seed=1), 5.0
    now, then = sampler.moment(2), sampler.moment(3)
    sigma = 0.5 * then.s / now.s * (1 - (now.a / then.a) ** 2) ** 0.5
    clean = now.a * x
    trust = min(1.0, sigma / (then.a * sigma_y))
    clean[:, ::2] += trust * (y - clean[:, ::2])
    assert trust < 1
    torch.testing.assert_close(sampler.step(SamplerState(x, 2), sampler.prepare(y, sigma_y=sigma_y)).denoised, clean)


@pytest.mark.parametrize("method", [DPS, MCG, DiffPIR, DDNM])
def test_all_reconstruct_a_gaussian(method):
    """Oracle: the truth: seen pixels are known far better than by the prior, whose spread is one."""
    truth = normal(200, 6)
    y = truth[:, ::2] + 0.1 * normal(200, 3, seed=1)
    found = method(PRIOR, MASK, 50).sample(y, sigma_y=0.1, generator=seeded(2)).squeeze(1)
    assert bool(found.isfinite().all())
    assert float((found - truth)[:, ::2].square().mean().sqrt()) < 0.4
    assert 0.5 < float(found[:, 1::2].std()) < 1.3  # what is not seen is drawn from the prior


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    for method, options, match in (
        (DPS, {"step_size": 0.0}, "step_size"),
        (DPS, {"eta": -0.1}, "eta"),
        (MCG, {"cg_steps": 0}, "cg_steps"),
        (DiffPIR, {"lam": 0.0}, "lam"),
        (DiffPIR, {"zeta": 2.0}, "zeta"),
        (DDNM, {"eta": 2.0}, "eta"),
        (DDNM, {"cg_steps": 0}, "cg_steps"),
    ):
        with pytest.raises(ArgumentError, match=match):
            method(PRIOR, MASK, **options)
