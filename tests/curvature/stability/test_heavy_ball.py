"""Heavy ball against its dense second-moment operator on (θ_t, θ_{t-1})."""

import itertools

import pytest
import torch

from hesse.curvature.stability.coordinates import batch_noise_factor, range_coordinates
from hesse.curvature.stability.heavy_ball import full_batch_radius, heavy_ball_radius, noise_gain
from hesse.curvature.stability.radius import second_moment_radius
from hesse.curvature.stability.thresholds import max_stable_learning_rate, min_stable_batch_size
from hesse.errors import ConvergenceError

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def enumerated_radius(features, lr, batch_size, momentum):
    """Radius of E[G ⊗ G] over all batches, G the 2P x 2P step on (θ_t, θ_{t-1})."""
    n, p = features.shape
    eye, zero = torch.eye(p, dtype=F64), torch.zeros(p, p, dtype=F64)
    total = torch.zeros(4 * p * p, 4 * p * p, dtype=F64)
    batches = list(itertools.combinations(range(n), batch_size))
    for batch in batches:
        a = features[list(batch)]
        G = torch.cat(
            [
                torch.cat([(1 + momentum) * eye - lr * a.mT @ a / batch_size, -momentum * eye], dim=1),
                torch.cat([eye, zero], dim=1),
            ]
        )
        total += torch.kron(G, G)
    return float(torch.linalg.eigvals(total / len(batches)).abs().max())


@pytest.mark.parametrize("momentum", [0.3, 0.9])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_radius_is_that_of_all_batches_enumerated(momentum, batch_size, factor):
    """Oracle: eigenvalues of E[G ⊗ G] over all batches; below, at and above the threshold."""
    features = draw(6, 3)
    threshold = float(max_stable_learning_rate(features, batch_size, momentum=momentum))
    found = second_moment_radius(features, factor * threshold, batch_size, momentum=momentum).value
    expected = enumerated_radius(features, factor * threshold, batch_size, momentum)
    assert found == pytest.approx(expected, abs=1e-7)
    if factor == 1:
        assert expected == pytest.approx(1, abs=1e-7)


def test_vanishing_momentum_is_plain_sgd():
    """Oracle: the self-adjoint operator of plain SGD."""
    features = draw(6, 3)
    plain = second_moment_radius(features, 0.2, 2).value
    coordinates, f = range_coordinates(features), batch_noise_factor(6, 2)
    assert heavy_ball_radius(coordinates, 0.2, f, 0.0, tol=1e-10, max_steps=4000)[0] == pytest.approx(plain, abs=1e-7)


def test_full_batch_radius_reaches_one_at_its_bound():
    """Oracle: closed form, η λ₁ = 2 (1 + β)."""
    values = torch.tensor([4.0, 1.0], dtype=F64)
    assert full_batch_radius(values, 2 * 1.9 / 4, 0.9) == pytest.approx(1)
    assert full_batch_radius(values, 2 * 1.9 / 4 * 0.99, 0.9) < 1
    assert second_moment_radius(draw(4, 3), 0.01, 4, momentum=0.5).value == pytest.approx(
        full_batch_radius(range_coordinates(draw(4, 3)).eigenvalues, 0.01, 0.5) ** 2
    )


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.99])
def test_gain_is_the_radius_of_the_round_trip(momentum, share):
    """Oracle: the dense map of matrices, 𝓖 summed over time; its radius, of whatever sign."""
    coordinates = range_coordinates(draw(6, 3, seed=4))
    lr = share * 2 * (1 + momentum) / float(coordinates.eigenvalues[0])
    r = coordinates.rank
    steps = torch.eye(2, dtype=F64).expand(r, 2, 2)
    F = torch.zeros(r, 2, 2, dtype=F64)
    F[:, 0, 0], F[:, 0, 1], F[:, 1, 0] = 1 + momentum - lr * coordinates.eigenvalues, -momentum, 1
    scale, response = 1.05, torch.zeros(r, r, dtype=F64)
    for t in range(3000):
        response += lr**2 * 0.4 * torch.outer(steps[:, 0, 0], steps[:, 0, 0]) / scale ** (t + 1)
        steps = F @ steps
    units = torch.eye(r * r, dtype=F64).reshape(-1, r, r)
    columns = torch.stack([(response * coordinates.gradient_noise(unit)).flatten() for unit in units], dim=1)
    expected = float(torch.linalg.eigvals(columns).abs().max())
    assert noise_gain(coordinates, lr, 0.4, momentum, scale=scale) == pytest.approx(expected, rel=1e-7)


def test_gain_is_proportional_to_the_noise():
    """Oracle: linearity; and identical samples make none."""
    coordinates = range_coordinates(draw(6, 3))
    assert noise_gain(coordinates, 0.1, 0.4, 0.5) == pytest.approx(4 * noise_gain(coordinates, 0.1, 0.1, 0.5))
    assert noise_gain(range_coordinates(torch.ones(4, 3, dtype=F64)), 0.1, 1.0, 0.5) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_sample_or_equal_ones_make_no_noise(momentum):
    """Oracle: without a spread between samples every batch is the full batch, and the gain is zero."""
    features = draw(1, 5).expand(4, 5)
    for few in (features[:1], features):
        assert noise_gain(range_coordinates(few.clone()), 0.1, 1.0, momentum) == 0.0
    assert min_stable_batch_size(features.clone(), 0.1, momentum=momentum) == 1


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("seed", range(4))
def test_two_samples_whose_noise_turns_about(seed, momentum):
    """Oracle: the radius over all batches enumerated. H_1 - H = -(H_2 - H): equal eigenvalues of both signs."""
    features = torch.nn.functional.normalize(draw(2, 3, seed=seed), dim=1)
    lr = 0.9 * float(max_stable_learning_rate(features, 1, momentum=momentum))
    found = second_moment_radius(features, lr, 1, momentum=momentum).value
    # directions that no sample sees stay where they are, a radius of one that is not of range(H)
    seen = features @ torch.linalg.svd(features).Vh[:2].mT
    assert found == pytest.approx(enumerated_radius(seen, lr, 1, momentum), abs=1e-7)
    gain = noise_gain(range_coordinates(features), lr, batch_noise_factor(2, 1), momentum)
    assert 0 < gain < 1


def test_too_few_steps_are_an_error():
    """Oracle: the error taxonomy."""
    with pytest.raises(ConvergenceError, match="max_steps"):
        noise_gain(range_coordinates(draw(40, 12)), 0.05, 0.4, 0.5, max_steps=3)
