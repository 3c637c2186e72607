import pytest
import torch

from hesse.errors import ArgumentError
from hesse.generative.gauge import SphereScore, flow_jacobian, flow_log_density, probability_flow
from hesse.generative.gaussian_mixture import GaussianMixture

EYE = torch.eye(3, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian() -> tuple[GaussianMixture, torch.Tensor]:
    S = torch.diag(torch.tensor([1.0, 0.25, 1e-4], dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    return GaussianMixture.from_covariances(one, torch.zeros(1, 3, dtype=torch.float64), S.unsqueeze(0)), S


def test_flow_of_a_gaussian_scales_each_axis():
    """Oracle: x(σ) = x(σ₀) √((λ + σ²) / (λ + σ₀²)), there and back, and the same for its Jacobian."""
    mixture, S = gaussian()
    x = torch.randn(5, 3, generator=seeded(0), dtype=torch.float64)
    shrink = ((S.diagonal() + 0.01**2) / (S.diagonal() + 100)).sqrt()
    down = probability_flow(mixture.score, x, 10.0, 0.01)
    torch.testing.assert_close(down, x * shrink, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(probability_flow(mixture.score, down, 0.01, 10.0), x, rtol=1e-4, atol=1e-5)
    path = flow_jacobian(mixture.score, x, 10.0, 0.01)
    torch.testing.assert_close(path.singular_values[:, -1], (10 * shrink).expand(5, 3), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(path.x, down, rtol=1e-9, atol=1e-12)
    assert len(path.levels) == 61


@pytest.mark.parametrize("amount", [0.0, 1.0])
def test_log_density_does_not_see_a_rotation(amount):
    """Oracle: the closed-form density of the noised sphere."""
    score = SphereScore(4)
    x = score.sample(10, 0.1, generator=seeded(1))

    def field(y, sigma):
        return score(y, sigma) + amount / sigma * torch.cat([-y[:, 1:2], y[:, :1], 0 * y[:, 2:]], 1)

    found = flow_log_density(field, x, 0.1, 2.0, terminal_fn=lambda y: score.log_density(y, 2.0), num_steps=80)
    torch.testing.assert_close(found, score.log_density(x, 0.1), rtol=1e-4, atol=1e-4)
    # from the default end, a normal law, what is wrong is of the size of (spread / sigma_max)²
    whole = flow_log_density(score, x, 0.1, 30.0)
    torch.testing.assert_close(whole, score.log_density(x, 0.1), rtol=0, atol=0.01)


@pytest.mark.parametrize("divergence", ["hutchinson", "hutch++"])
def test_estimated_divergences_are_unbiased(divergence):
    """Oracle: the exact divergence's answer; the mean of 200 runs, as rows, within five of its standard errors."""
    W = torch.randn(6, 6, generator=seeded(2), dtype=torch.float64) / 6
    x = torch.randn(1, 6, generator=seeded(3), dtype=torch.float64)
    exact = flow_log_density(lambda y, _: y @ W.T, x, 0.1, 1.0, num_steps=10)
    rows = flow_log_density(
        lambda y, _: y @ W.T, x.expand(200, 6), 0.1, 1.0, divergence=divergence, num_steps=10, num_probes=6,
        generator=seeded(4),
    )  # fmt: skip
    assert abs(float(rows.mean() - exact)) <= 5 * float(rows.std()) / 200**0.5
    assert float(rows.std()) > 0


def test_hutchpp_is_exact_on_low_rank():
    """Oracle: the exact divergence; a sketch as wide as the rank leaves nothing to sample."""
    left, right = torch.randn(2, 8, 2, generator=seeded(5), dtype=torch.float64)
    x = torch.randn(3, 8, generator=seeded(6), dtype=torch.float64)
    found = flow_log_density(
        lambda y, _: y @ right @ left.T / 20, x, 0.1, 1.0, divergence="hutch++", num_steps=10, generator=seeded(7)
    )
    exact = flow_log_density(lambda y, _: y @ right @ left.T / 20, x, 0.1, 1.0, num_steps=10)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


def test_flow_is_differentiable():
    """Oracle: finite differences."""
    mixture, _ = gaussian()
    x = torch.randn(2, 3, generator=seeded(8), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: probability_flow(mixture.score, y, 2.0, 0.5, num_steps=3), x)
    assert torch.autograd.gradcheck(lambda y: flow_log_density(mixture.score, y, 0.5, 2.0, num_steps=2), x)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    score, x = SphereScore(), torch.zeros(1, 3)
    with pytest.raises(ArgumentError, match="noise levels"):
        probability_flow(score, x, 1.0, 1.0)
    with pytest.raises(ArgumentError, match="num_steps"):
        probability_flow(score, x, 1.0, 0.1, num_steps=0)
    with pytest.raises(ArgumentError, match="divergence"):
        flow_log_density(score, x, divergence="magic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="num_probes"):
        flow_log_density(score, x, divergence="hutch++", num_probes=2)


def test_many_dimensions_are_estimated_with_a_warning():
    """Oracle: the exact answer in one dimension, times D: signs are exact on diagonal Jacobians."""
    x = torch.zeros(1, 2001, dtype=torch.float64)
    with pytest.warns(UserWarning, match="hutchinson"):
        found = flow_log_density(lambda y, s: -y / s**2, x, 0.5, 1.0, num_steps=2, num_probes=1)
    wanted = flow_log_density(lambda y, s: -y / s**2, x[:, :1], 0.5, 1.0, num_steps=2)
    torch.testing.assert_close(found, 2001 * wanted)
