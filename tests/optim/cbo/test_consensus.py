"""Consensus points: Gibbs means at any scale of energies, and the α at which half of the particles count."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.optim import consensus_point, ess_alpha, polarized_consensus


def cloud(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype), torch.rand(
        *shape[:-1], generator=generator, dtype=dtype
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 7.0])
def test_is_the_weighted_mean(dtype, alpha):
    """Oracle: the formula as a loop over particles in Python's own floats."""
    x, energy = cloud(9, 3, dtype=dtype)
    weights = [math.exp(-alpha * e) for e in energy.tolist()]
    expected = [sum(w * p[j] for w, p in zip(weights, x.tolist(), strict=True)) / sum(weights) for j in range(3)]
    found = consensus_point(x, energy, alpha)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype))


@given(shift=st.floats(-1e6, 1e6), alpha=st.floats(0, 100))
def test_a_common_shift_of_energies_cancels(shift, alpha):
    """Oracle: invariance. Energies on a grid, so that the shift rounds nothing away."""
    x, energy = cloud(8, 2)
    energy = (64 * energy).round()
    torch.testing.assert_close(consensus_point(x, energy + round(shift), alpha), consensus_point(x, energy, alpha))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1e15, 1e38, 1e300, math.inf])
def test_large_alpha_is_the_best_particle(dtype, alpha):
    """Oracle: argmin. 1e300 is infinite in float32."""
    x, energy = cloud(50, 4, dtype=dtype)
    torch.testing.assert_close(consensus_point(x, energy, alpha), x[energy.argmin()])


def test_energies_of_any_size_are_safe():
    """Oracle: argmin, where differences of energies overflow; ties share."""
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    huge = torch.tensor([1.7e308, -1.7e308, 0.0], dtype=torch.float64)
    assert consensus_point(x, huge, 1e5).item() == 2.0
    assert consensus_point(x, torch.tensor([0.0, 0.0, math.inf], dtype=torch.float64), 0.0).item() == 1.5
    assert consensus_point(x, torch.tensor([-math.inf, 0.0, 1.0], dtype=torch.float64), 1.0).item() == 1.0
    assert consensus_point(x, torch.tensor([math.nan, 0.0, 0.0], dtype=torch.float64), math.inf).item() == 2.5


def test_runs_are_independent_and_have_their_own_alpha():
    """Oracle: a loop over runs."""
    x, energy = cloud(3, 10, 2)
    alpha = torch.tensor([0.0, 1.0, math.inf], dtype=torch.float64)
    expected = torch.stack([consensus_point(x[i], energy[i], float(alpha[i])) for i in range(3)])
    torch.testing.assert_close(consensus_point(x, energy, alpha), expected)


def test_is_differentiable():
    """Oracle: finite differences (gradcheck), in particles and energies, the best one among them."""
    x, energy = cloud(5, 2)
    args = (x.requires_grad_(), energy.requires_grad_(), 3.0)
    assert torch.autograd.gradcheck(consensus_point, args)


def test_refuses_what_has_no_consensus():
    """Oracle: the documented errors."""
    x, energy = cloud(5, 2)
    with pytest.raises(NumericalError, match="all energies"):
        consensus_point(x, torch.full((5,), math.nan, dtype=torch.float64), 1.0)
    with pytest.raises(ArgumentError, match="alpha >= 0"):
        consensus_point(x, energy, -1.0)
    with pytest.raises(ShapeError, match=r"\(5,\)"):
        consensus_point(x, energy[:4], 1.0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_half_of_the_particles_count(scale):
    """Oracle: the effective size itself, for energies of any unit."""
    _, energy = cloud(4, 100, 1, seed=3)
    alpha = ess_alpha(scale * energy + 5 * scale)
    weights = torch.exp(-alpha[:, None] * scale * (energy - energy.amin(-1, keepdim=True)))
    size = weights.sum(-1).square() / weights.square().sum(-1)
    torch.testing.assert_close(size, torch.full_like(size, 50.0), rtol=1e-6, atol=0)


def test_effective_size_counts_finite_energies_and_survives_ties():
    """Oracle: the same energies without their walls; equal energies leave any α right, and it is finite."""
    energy = torch.tensor([0.0, 1.0, 2.0, 3.0, math.inf, math.nan], dtype=torch.float64)
    torch.testing.assert_close(ess_alpha(energy), ess_alpha(energy[:4]))
    assert bool(torch.isfinite(ess_alpha(torch.zeros(5))))
    with pytest.raises(ArgumentError):
        ess_alpha(energy, 1.0)


def test_polarized_is_a_loop_and_widens_to_the_plain_one():
    """Oracle: the kernel written out for each asking point; a bandwidth of 1e6 hears everyone."""
    x, energy = cloud(2, 12, 3)
    at = x[:, :5]
    for run in range(2):
        for i in range(5):
            kernel = torch.exp(-(at[run, i] - x[run]).square().sum(-1) / (2 * 0.7**2))
            weights = kernel * torch.exp(-2.0 * energy[run])
            expected = (weights[:, None] * x[run]).sum(0) / weights.sum()
            torch.testing.assert_close(polarized_consensus(at, x, energy, 2.0, bandwidth=0.7)[run, i], expected)
    wide = polarized_consensus(at, x, energy, 2.0, bandwidth=1e6)
    torch.testing.assert_close(wide, consensus_point(x, energy, 2.0)[:, None].expand_as(wide))


def test_polarized_takes_an_alpha_of_each_run():
    """Oracle: a loop over runs."""
    x, energy = cloud(2, 12, 3)
    alpha = torch.tensor([1.0, 5.0], dtype=torch.float64)
    both = polarized_consensus(x, x, energy, alpha, bandwidth=0.5)
    for run in range(2):
        single = polarized_consensus(x[run], x[run], energy[run], float(alpha[run]), bandwidth=0.5)
        torch.testing.assert_close(both[run], single)


def test_polarized_refuses():
    """Oracle: the documented errors."""
    x, energy = cloud(4, 2)
    with pytest.raises(ArgumentError, match="bandwidth"):
        polarized_consensus(x, x, energy, 1.0, bandwidth=0.0)
    with pytest.raises(ArgumentError, match="finite alpha"):
        polarized_consensus(x, x, energy, math.inf, bandwidth=1.0)
    with pytest.raises(ShapeError):
        polarized_consensus(x[:, :1], x, energy, 1.0, bandwidth=1.0)
