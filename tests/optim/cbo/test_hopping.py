"""Consensus hopping: a hop is the consensus of fresh samples, and a gradient step to first order."""

from functools import partial

import pytest
import torch

from benchmarks.optim._cbo_problems import Quadratic, rastrigin, wavy
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.optim import ConsensusHopping, consensus_point, hop_shift, minimize_consensus_hopping


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def quadratic(seed, slope=5.0):
    return Quadratic.draw(5, slope, partial(torch.randn, generator=seeded(seed), dtype=torch.float64))


def test_a_hop_is_the_consensus_of_its_samples():
    """Oracle: the consensus of the cloud left behind; the cloud keeps no memory of the one before."""
    hopping = ConsensusHopping(rastrigin, torch.ones(2), alpha=3.0, num_runs=4, generator=seeded(0))
    for _ in range(3):
        before = hopping.consensus
        hopping.step()
        torch.testing.assert_close(hopping.consensus, consensus_point(hopping.x, rastrigin(hopping.x), 3.0))
        assert bool(((hopping.x - before[:, None]) / 0.7).abs().max() < 5)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
def test_mean_of_a_hop_in_closed_form(alpha):
    """Oracle: a Gaussian times a Gaussian; 200 repeats, judged by the spread of their standardised errors."""
    problem = quadratic(1)
    exact = problem.exact_hop(0.05, alpha)
    source = seeded(2)
    errors = []
    for _ in range(200):
        hop = hop_shift(problem, problem.point, sigma=0.05, alpha=alpha, num_samples=4000, generator=source)
        errors.append((hop.shift - exact) / hop.standard_error)
    standardised = torch.stack(errors)
    assert bool((standardised.mean(0).abs() < 4 / 200**0.5).all())
    assert 0.85 < float(standardised.square().mean().sqrt()) < 1.15
    assert hop.learning_rate == pytest.approx(alpha * 0.05**2)


def test_chunks_do_not_change_the_sum():
    """Oracle: the same pairs of samples summed at once."""
    problem, z = quadratic(3), torch.randn(50, 5, generator=seeded(4), dtype=torch.float64)
    hop = hop_shift(problem, problem.point, sigma=0.3, alpha=2.0, num_samples=100, chunk_size=14, generator=seeded(4))
    generator, parts = seeded(4), []
    for count in [7] * 7 + [1]:
        parts.append(torch.randn(count, 5, generator=generator, dtype=torch.float64))
    z = torch.cat(parts)
    both = 0.3 * torch.cat([z, -z])
    energy = problem(problem.point + both)
    torch.testing.assert_close(hop.shift, consensus_point(both, energy, 2.0))
    weights = torch.exp(-2.0 * (energy - energy.min()))
    assert hop.effective_size == pytest.approx(float(weights.sum() ** 2 / weights.square().sum()))
    left, right = weights.chunk(2)
    terms = 0.3 * (left - right)[:, None] * z - hop.shift * (left + right)[:, None]
    torch.testing.assert_close(hop.standard_error, terms.square().sum(0).sqrt() / weights.sum())


def test_a_hop_goes_down_the_gradient():
    """Oracle: autograd's gradient of a smooth function, by the cosine; to first order also its length."""
    x = torch.randn(5, generator=seeded(5), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(wavy(x), x)
    hop = hop_shift(wavy, x.detach(), sigma=0.02, alpha=1.0, num_samples=200_000, generator=seeded(6))
    assert float(torch.cosine_similarity(hop.shift, -gradient, dim=0)) > 0.999
    torch.testing.assert_close(hop.shift, -hop.learning_rate * gradient, rtol=0.05, atol=1e-6)


def test_sigma_decays():
    """Oracle: 0.98 every hundred steps, or not at all."""
    hopping = ConsensusHopping(rastrigin, dim=2, generator=seeded(0))
    hopping.run(250, tol=0)
    assert hopping.sigma == pytest.approx(0.7 * 0.98**2)
    plain = ConsensusHopping(rastrigin, dim=2, decay=None, generator=seeded(0))
    plain.run(250, tol=0)
    assert plain.sigma == 0.7


def test_resumes_bit_for_bit():
    """Oracle: the run that was not interrupted."""
    whole = ConsensusHopping(rastrigin, torch.ones(3), decay=(4, 0.5), generator=seeded(1))
    expected = whole.run(20, tol=0)
    first = ConsensusHopping(rastrigin, torch.ones(3), decay=(4, 0.5), generator=seeded(1))
    for _ in range(7):
        first.step()
    second = ConsensusHopping(rastrigin, torch.zeros(3), decay=(4, 0.5), generator=seeded(0))
    second.load_state_dict(first.state_dict())
    result = second.run(13, tol=0)
    assert torch.equal(result.x, expected.x)
    assert torch.equal(result.best_x, expected.best_x)


def test_starts_and_stops():
    """Oracle: the residual is the change of the consensus; starts of each run, of all, within bounds."""
    result = minimize_consensus_hopping(
        lambda x: x.square().sum(-1), torch.ones(2), sigma=0.01, tol=1.0, max_steps=10, generator=seeded(0)
    )
    assert result.num_steps == 1
    assert bool(result.converged)
    starts = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    assert torch.equal(ConsensusHopping(rastrigin, starts, num_runs=2).consensus, starts)
    inside = ConsensusHopping(rastrigin, dim=2, num_runs=50, bounds=(2.0, 3.0), generator=seeded(0)).consensus
    assert bool(((inside >= 2) & (inside <= 3)).all())
    with pytest.raises(ShapeError, match="expected x0"):
        ConsensusHopping(rastrigin, torch.zeros(3, 2), num_runs=2)
    with pytest.raises(ArgumentError, match="sigma > 0"):
        ConsensusHopping(rastrigin, dim=2, sigma=0.0)


def test_hop_shift_refuses():
    """Oracle: the documented errors."""
    x = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="sigma > 0"):
        hop_shift(rastrigin, x, sigma=0.0, alpha=1.0)
    with pytest.raises(ShapeError, match="x of shape"):
        hop_shift(rastrigin, x[None], sigma=1.0, alpha=1.0)
    with pytest.raises(ShapeError, match="must return"):
        hop_shift(lambda v: v, x, sigma=1.0, alpha=1.0, num_samples=10)
    with pytest.raises(NumericalError, match="NaN"):
        hop_shift(lambda v: v.sum(-1) * float("nan"), x, sigma=1.0, alpha=1.0, num_samples=10)
