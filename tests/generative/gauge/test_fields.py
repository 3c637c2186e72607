import pytest
import torch
from scipy.stats import norm

from hesse.errors import ArgumentError, ShapeError
from hesse.generative.diffusion import DiffusionPrior, VarianceExploding, VariancePreserving
from hesse.generative.gauge import SphereScore, asymmetry, field_jacobian, gauge_residual, score_field
from hesse.generative.gaussian_mixture import GaussianMixture


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotated(score: SphereScore, amount: float):
    def field(x, sigma):
        return score(x, sigma) + amount / sigma * torch.cat([-x[:, 1:2], x[:, :1], 0 * x[:, 2:]], 1)

    return field


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0, 20.0])
def test_sphere_score_is_the_gradient_of_its_density(sigma):
    """Oracle: autograd of the closed-form density."""
    score = SphereScore(5)
    x = score.sample(50, sigma, generator=seeded(0)).requires_grad_()
    (wanted,) = torch.autograd.grad(score.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(score(x, sigma), wanted, rtol=1e-10, atol=1e-8 / sigma)


def test_sphere_density_is_the_average_of_gaussians():
    """Oracle: the mean over many points of the sphere of the noise's density, within five standard errors."""
    score, x = SphereScore(3), torch.tensor([[0.2, -0.3, 0.6]], dtype=torch.float64)
    points = score.sample(100_000, generator=seeded(1))
    terms = torch.from_numpy(norm.pdf((x - points).numpy(), scale=0.5).prod(1))
    found = float(score.log_density(x, 0.5).exp())
    assert abs(found - float(terms.mean())) <= 5 * float(terms.std()) / 100_000**0.5


@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_sphere_score_at_the_centre(sigma):
    """Oracle: the limit -x/σ² (1 - 1/(3 σ²)), without NaN at zero itself."""
    x = 1e-8 * torch.ones(1, 3, dtype=torch.float64)
    torch.testing.assert_close(SphereScore()(x, sigma), -x / sigma**2 * (1 - 1 / (3 * sigma**2)), rtol=1e-9, atol=0)
    assert bool((SphereScore()(0 * x, sigma) == 0).all())
    assert bool(torch.isfinite(SphereScore()(x.float(), 1e-3)).all())


def test_jacobian_and_asymmetry_of_a_linear_field():
    """Oracle: the matrix itself; the estimate within five standard errors of 200 runs."""
    M = torch.randn(4, 4, generator=seeded(2), dtype=torch.float64)
    x = torch.randn(3, 4, generator=seeded(3), dtype=torch.float64)
    J = field_jacobian(lambda y, _: y @ M.T, x, 1.0)
    torch.testing.assert_close(J, M.expand(3, 4, 4))
    wanted = float((M - M.T).square().sum() / (4 * M.square().sum()))
    runs = torch.stack([asymmetry(lambda y, _: y @ M.T, x, 1.0, 50, generator=seeded(s)) for s in range(200)])
    assert abs(float(runs.mean()) - wanted) <= 5 * float(runs.std()) / 200**0.5 + 1e-3
    turn = M - M.T
    assert float(asymmetry(lambda y, _: y @ turn.T, x, 1.0)) == pytest.approx(1)
    assert float(asymmetry(lambda y, _: y @ (M + M.T), x, 1.0)) == pytest.approx(0, abs=1e-25)


def test_asymmetry_of_a_curved_field_is_that_of_dense_jacobians():
    """Oracle: dense Jacobians of every point, within five standard errors."""
    field, x = rotated(SphereScore(4), 5.0), SphereScore(4).sample(6, 0.3, generator=seeded(4))
    J = field_jacobian(field, x, 0.3)
    wanted = float((J - J.mT).square().sum() / (4 * J.square().sum()))
    runs = torch.stack([asymmetry(field, x.repeat(10, 1), 0.3, 2, generator=seeded(s)) for s in range(200)])
    assert abs(float(runs.mean()) - wanted) <= 5 * float(runs.std()) / 200**0.5 + 0.01 * wanted


def test_gauge_residual_tells_gauge_fields_from_others():
    """Oracle: a rotation keeps the sphere's law at every level; a stretch has the residual D + x · score."""
    score = SphereScore(5)
    x = score.sample(20, 0.2, generator=seeded(5))
    scale = float(score(x, 0.2).square().sum(1).max())
    assert float(gauge_residual(rotated(score, 3.0), score, x, 0.2).abs().max()) < 1e-12 * scale
    found = gauge_residual(lambda y, s: score(y, s) + y, score, x, 0.2)
    torch.testing.assert_close(found, 5 + (x * score(x, 0.2)).sum(1))


@pytest.mark.parametrize("prediction", ["noise", "score", "denoised", "velocity"])
def test_any_prediction_on_any_schedule_reads_as_one_field(prediction):
    """Oracle: the mixture's own score in variance-exploding form."""
    mixture = GaussianMixture.from_covariances(
        torch.ones(1, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64), torch.eye(3).double().unsqueeze(0)
    )
    x = torch.randn(4, 3, generator=seeded(6), dtype=torch.float64)
    for schedule in (VariancePreserving(), VarianceExploding(0.01, 10.0)):

        def predict(y, t, schedule=schedule):
            a, s = schedule.signal(t), schedule.noise_sd(t)
            score = mixture.score(y, s, a)
            a, s = a.unsqueeze(1), s.unsqueeze(1)
            noise, clean = -s * score, (y + s.square() * score) / a
            return {"noise": noise, "score": score, "denoised": clean, "velocity": a * noise - s * clean}[prediction]

        field = score_field(DiffusionPrior(predict, schedule, (3,), prediction))
        torch.testing.assert_close(field(x, 0.3), mixture.score(x, 0.3), rtol=1e-8, atol=1e-8)
        with pytest.raises(ArgumentError, match="outside the schedule"):
            field(x, 1e-4)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    x, score = torch.zeros(2, 3), SphereScore()
    with pytest.raises(ArgumentError, match="dim"):
        SphereScore(2)
    with pytest.raises(ShapeError, match="SphereScore"):
        score(torch.zeros(2, 4), 0.1)
    with pytest.raises(ArgumentError, match="sigma"):
        field_jacobian(score, x, 0.0)
    with pytest.raises(ShapeError, match="the field gave"):
        field_jacobian(lambda y, _: y[:, :2], x, 0.1)
    with pytest.raises(ArgumentError, match="num_probes"):
        asymmetry(score, x, 0.1, 0)
