import math

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.generative.gauge import SphereScore, decompose
from hesse.generative.gaussian_mixture import GaussianMixture
from hesse.generative.intrinsic_dim import intrinsic_dimension, plateau_dimension

METHODS = ["flow", "jacobian", "normal_bundle", "flipd"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotated(score: SphereScore, amount: float):
    def field(x, sigma):
        return score(x, sigma) + amount / sigma * torch.cat([-x[:, 1:2], x[:, :1], 0 * x[:, 2:]], 1)

    return field


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sphere_has_two_dimensions(method, dtype):
    """Oracle: the sphere, with its closed-form score."""
    x = SphereScore(5).sample(20, generator=seeded(0)).to(dtype)
    found = intrinsic_dimension(SphereScore(5), x, 0.02, method=method, generator=seeded(1))
    torch.testing.assert_close(found.dimension, torch.full((20,), 2.0, dtype=dtype), rtol=0, atol=0.01)
    assert found.spectrum.shape == (20, 5)
    assert found.histogram() == {2: 20}
    if method != "flipd":
        assert float(found.gap.min()) > 3


@pytest.mark.parametrize("method", METHODS)
def test_subspaces_of_two_dimensions_show_in_the_histogram(method):
    """Oracle: a line and a plane in R^4, far from each other."""
    factors = torch.zeros(2, 4, 2, dtype=torch.float64)
    factors[0, 0, 0] = factors[1, 1, 0] = factors[1, 2, 1] = 1
    means = torch.tensor([[0.0, 0, 0, 6], [0, 0, 0, -6]], dtype=torch.float64)
    mixture = GaussianMixture.from_factors(torch.tensor([0.5, 0.5], dtype=torch.float64), means, factors)
    x = torch.cat([means[:1] + 0.3 * factors[0, :, 0], means[1:] + 0.2 * factors[1, :, 0] - 0.1 * factors[1, :, 1]])
    x = x.repeat(3, 1)
    found = intrinsic_dimension(mixture.score, x, 0.02, method=method, generator=seeded(2))
    assert found.histogram() == {1: 3, 2: 3}


def test_rotation_spoils_the_readouts_and_the_decomposition_repairs_them():
    """Oracle: two, at every method that reads the field at one level."""
    score = SphereScore(5)
    field, x = rotated(score, 1.0), score.sample(100, generator=seeded(3))
    split = decompose(field, score.sample(3000, 0.05, generator=seeded(4)), 0.05, num_features=300, generator=seeded(5))
    for method in ("normal_bundle", "flipd", "jacobian"):
        repaired = intrinsic_dimension(split.conservative, x, 0.05, method=method, generator=seeded(6)).dimension
        assert abs(float(repaired.mean()) - 2) < 0.1
    spoilt = intrinsic_dimension(field, x, 0.05, method="normal_bundle", generator=seeded(6)).dimension
    assert float((spoilt == 1).double().mean()) >= 0.9
    assert float(intrinsic_dimension(field, x, 0.05, method="flipd").dimension.mean()) > 2.5


def test_symmetrised_jacobian_forgets_a_linear_rotation():
    """Oracle: the symmetric part of the Jacobian is that of the true score."""
    score = SphereScore(4)
    x = score.sample(10, generator=seeded(7))
    found = intrinsic_dimension(rotated(score, 40.0), x, 0.05, symmetrize=True)
    clean = intrinsic_dimension(score, x, 0.05)
    torch.testing.assert_close(found.spectrum, clean.spectrum, rtol=1e-9, atol=1e-10)


def test_trace_formula_is_exact_on_a_flat_law():
    """Oracle: at the mean of N(0, diag(λ)): Σ λ / (λ + σ²)."""
    values = torch.tensor([2.0, 1.0, 1e-6], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    mixture = GaussianMixture.from_covariances(one, torch.zeros(1, 3, dtype=torch.float64), values.diag().unsqueeze(0))
    found = intrinsic_dimension(mixture.score, torch.zeros(1, 3, dtype=torch.float64), 0.1, method="flipd")
    assert float(found.dimension) == pytest.approx(float((values / (values + 0.01)).sum()))
    assert math.isnan(float(found.gap))


def test_point_and_full_space_at_the_ends():
    """Oracle: zero and D, where the gap has nothing on one side."""
    point = intrinsic_dimension(lambda x, s: -x / s**2, torch.zeros(1, 3), 0.1)
    assert point.histogram() == {0: 1}
    space = intrinsic_dimension(lambda x, _: 0 * x, torch.zeros(1, 3), 0.1)
    assert space.histogram() == {3: 1}
    assert math.isinf(float(space.gap))
    assert math.isinf(float(point.gap))


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    score, x = SphereScore(), torch.ones(2, 3)
    with pytest.raises(ArgumentError, match="method"):
        intrinsic_dimension(score, x, method="magic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="num_scores"):
        intrinsic_dimension(score, x, method="normal_bundle", num_scores=2)
    with pytest.raises(ArgumentError, match="sigma_max"):
        intrinsic_dimension(score, x, 0.5, method="flow", sigma_max=2.0)
    with pytest.raises(ShapeError, match="x of shape"):
        intrinsic_dimension(score, torch.ones(3))
    with pytest.raises(ArgumentError, match="two or more"):
        plateau_dimension(score, x, (0.1, 0.1))


def test_plateau_lies_between_the_noise_of_the_data_and_their_curvature():
    """Oracle: the sphere with noise 0.02: five dimensions below it, two above, fewer beyond the radius."""
    score, x = SphereScore(5), SphereScore(5).sample(20, 0.02, generator=seeded(8))
    levels = (1.0, 0.002, 0.005, 0.03, 0.06, 0.1, 0.2, 3.0)

    def blurred(y, sigma):
        return score(y, math.hypot(sigma, 0.02))

    found = plateau_dimension(blurred, x, levels)
    assert bool((found.dimension == 2).all())
    assert bool((found.dimensions[:, 0] == 5).all() and (found.dimensions[:, -1] == 0).all())
    assert found.levels.tolist() == sorted(levels)
    torch.testing.assert_close(found.confidence, torch.full((20,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(found.sigma, torch.full((20,), (0.03 * 0.2) ** 0.5, dtype=torch.float64))
