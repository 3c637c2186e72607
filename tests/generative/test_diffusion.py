"""Schedules, and the conversions between what networks predict."""

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.generative.diffusion import (
    DiffusionPrior,
    VarianceExploding,
    VariancePreserving,
    convert_prediction,
    tweedie,
)

KINDS = ("noise", "score", "denoised", "velocity")
SCHEDULES = [VariancePreserving(), VariancePreserving(50, 1e-3, 0.1), VarianceExploding(0.02, 20.0)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_vp_is_the_product_of_its_betas():
    """Oracle: the product by a loop."""
    schedule, abar = VariancePreserving(10, 0.01, 0.2), 1.0
    for i, beta in enumerate(torch.linspace(0.01, 0.2, 10, dtype=torch.float64)):
        abar *= 1 - float(beta)
        assert float(schedule.signal(i)) == pytest.approx(abar**0.5, rel=1e-12)
        assert float(schedule.noise_sd(i)) == pytest.approx((1 - abar) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sde_belongs_to_the_marginals(schedule):
    """Oracle: central differences of log a and s², between the knots of the table."""
    t = (schedule.times(7)[1:-1] + 0.0) * (1 - 1e-3) + 0.4e-3
    h = 1e-4
    a_slope = (schedule.signal(t + h).log() - schedule.signal(t - h).log()) / (2 * h)
    s_slope = (schedule.noise_sd(t + h).square() - schedule.noise_sd(t - h).square()) / (2 * h)
    torch.testing.assert_close(schedule.drift_rate(t), a_slope, rtol=1e-5, atol=1e-9)
    expected = s_slope - 2 * a_slope * schedule.noise_sd(t).square()
    torch.testing.assert_close(schedule.diffusion_squared(t), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_and_levels_invert(schedule):
    """Oracle: the definition of the level s/a; beyond the schedule the nearest end."""
    for t in schedule.times(9).tolist():
        level = float(schedule.noise_sd(t) / schedule.signal(t))
        assert schedule.time_at(level) == pytest.approx(t, abs=1e-6)
    assert schedule.time_at(1e9) == float(schedule.times(3)[0])
    assert schedule.time_at(0.0) == 0.0


@pytest.mark.parametrize("schedule", [VariancePreserving(), VarianceExploding()])
def test_geometric_times_are_geometric_in_the_noise(schedule):
    """Oracle: the ratio of neighbouring levels s / a, read off the schedule."""
    times = schedule.geometric_times(9, 2.0, 0.02)
    levels = schedule.noise_sd(times) / schedule.signal(times)
    torch.testing.assert_close(levels, 2.0 * 0.01 ** (torch.arange(9).double() / 8), rtol=1e-3, atol=0)
    assert bool((times.diff() < 0).all())
    with pytest.raises(ArgumentError, match="lowest"):
        schedule.geometric_times(9, 0.5, 1.0)
    with pytest.raises(ArgumentError, match="highest"):
        schedule.geometric_times(9, 1e6)


def test_grid_starts_at_the_last_training_step():
    """Oracle: the definition; a number of calls that does not divide T keeps both ends."""
    grid = VariancePreserving().times(30)
    assert float(grid[0]) == 999
    assert float(grid[-1]) == 0
    assert bool((grid.diff() < 0).all())
    assert torch.equal(VariancePreserving().times(1000), torch.arange(999, -1, -1, dtype=torch.float64))
    assert VarianceExploding().times(1).tolist() == [1.0]


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_conversions_agree_with_the_definitions(source, target):
    """Oracle: all four quantities built from one ε, for one noise level a row."""
    clean, eps = (torch.randn(5, 2, 3, dtype=torch.float64, generator=seeded(s)) for s in (0, 1))
    a, s = torch.linspace(0.2, 1, 5, dtype=torch.float64), torch.linspace(3, 0.1, 5, dtype=torch.float64)
    a3, s3 = a[:, None, None], s[:, None, None]
    x = a3 * clean + s3 * eps
    known = {"noise": eps, "score": -eps / s3, "denoised": clean, "velocity": a3 * eps - s3 * clean}
    found = convert_prediction(x, known[source], a, s, source=source, target=target)
    torch.testing.assert_close(found, known[target], rtol=1e-11, atol=1e-11)


def test_tweedie_is_the_posterior_mean_of_a_gaussian():
    """Oracle: conditioning of jointly normal variables."""
    a, s, sd = 0.6, 0.8, 1.7
    x = torch.linspace(-3, 3, 9, dtype=torch.float64)
    total = a**2 * sd**2 + s**2
    torch.testing.assert_close(tweedie(x, -x / total, a, s), x * a * sd**2 / total)


def test_one_denoiser_serves_both_schedules():
    """Oracle: change of variables: ε depends on x_t / a_t and s_t / a_t alone."""

    def denoise(x, sigma):
        return torch.tanh(x) / (1 + sigma.reshape(-1, 1))

    vp = DiffusionPrior.from_denoiser(denoise, VariancePreserving(), (4,))
    ve = DiffusionPrior.from_denoiser(denoise, VarianceExploding(1e-3, 200.0), (4,))
    x, t = torch.randn(3, 4, dtype=torch.float64, generator=seeded(0)), 400.0
    a, s = vp.schedule.signal(t), vp.schedule.noise_sd(t)
    other = ve.noise(x / a, ve.schedule.time_at(float(s / a)))
    torch.testing.assert_close(vp.noise(x, t), other, rtol=1e-9, atol=1e-9)


def test_learnt_variance_is_dropped_and_dtype_kept():
    """Oracle: the first half of the channels; the network's dtype stays inside."""
    seen = []

    def predict(x, t):
        seen.append((x.dtype, t.dtype, t.shape))
        return torch.cat([x, x + 7], 1)

    prior = DiffusionPrior(predict, VariancePreserving(), (2, 3), dtype=torch.bfloat16)
    x = torch.ones(4, 2, 3)
    assert torch.equal(prior.noise(x, 3.0), x)
    assert seen == [(torch.bfloat16, torch.bfloat16, torch.Size([4]))]


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="beta_start"):
        VariancePreserving(beta_start=0.5, beta_end=0.1)
    with pytest.raises(ArgumentError, match="num_train_steps"):
        VariancePreserving(1)
    with pytest.raises(ArgumentError, match="sigma_min"):
        VarianceExploding(1.0, 0.5)
    for schedule in SCHEDULES:
        with pytest.raises(ArgumentError, match="num_steps"):
            schedule.times(0)
    x = torch.ones(2, 3)
    with pytest.raises(ArgumentError, match="source"):
        convert_prediction(x, x, 1.0, 1.0, source="magic", target="noise")
    with pytest.raises(ShapeError, match="prediction"):
        convert_prediction(x, x[:1], 1.0, 1.0, source="noise", target="score")
    with pytest.raises(ArgumentError, match="prediction"):
        DiffusionPrior(lambda x, t: x, VariancePreserving(), (3,), "magic")
    with pytest.raises(ShapeError, match="shape"):
        DiffusionPrior(lambda x, t: x, VariancePreserving(), (3,)).noise(torch.ones(2, 4), 1.0)
