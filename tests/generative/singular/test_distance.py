"""Wasserstein-1 distances and hints on the perturbation."""

import pytest
import scipy.stats
import torch

from hesse.errors import ArgumentError, MemoryLimitError, ShapeError
from hesse.generative.singular import suggested_perturbation, w1_distance
from hesse.generative.singular.perturbation import cluster_gap, quantisation_step


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_exact_distance_against_pot():
    """Oracle: ot.emd2, for clouds of equal size and one twice as large."""
    ot = pytest.importorskip("ot")
    x, y = (torch.randn(n, 3, generator=seeded(n)).double() for n in (60, 120))
    for left, right in ((x, y[:60]), (x, y), (y, x)):
        expected = ot.emd2([], [], torch.cdist(left, right).numpy())
        assert w1_distance(left, right) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 70), (30, 120)])
def test_sliced_distance_of_one_dimension(n, m):
    """Oracle: scipy.stats.wasserstein_distance; every line through R^1 is the same."""
    x, y = torch.randn(n, 1, generator=seeded(1)), 1 + 2 * torch.randn(m, 1, generator=seeded(2))
    expected = scipy.stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert w1_distance(x, y, "sliced", num_projections=3) == pytest.approx(expected, rel=1e-6)
    if n == m:
        assert w1_distance(x.numpy(), y.numpy()) == pytest.approx(expected, rel=1e-6)


def test_sliced_distance_of_a_shift():
    """Oracle: E|θ_1| = 1/2 of a unit vector in R^3, for a cloud and its translate, within its standard error."""
    x = torch.randn(40, 3, generator=seeded(3))
    runs = torch.tensor(
        [w1_distance(x, x + torch.tensor([0.0, 2.0, 0.0]), "sliced", generator=seeded(s)) for s in range(200)]
    )
    assert abs(float(runs.mean()) - 1) < 4 * float(runs.std()) / 200**0.5


def test_suggested_perturbation_is_the_balance():
    """Oracle: n^(-1/4) and n^(-1/3), the exponents for β = 1, 2 and t = 1."""
    assert suggested_perturbation(10_000) == pytest.approx(0.1)
    assert suggested_perturbation(1000, 2, 1, scale=3) == pytest.approx(0.3)
    with pytest.raises(ArgumentError, match="smoothness"):
        suggested_perturbation(100, 0)


def test_steps_and_gaps_of_data():
    """Oracle: data made with a known step and a known gap."""
    pixels = torch.randint(17, (300, 8), generator=seeded(4)) / 16
    assert quantisation_step(pixels) == pytest.approx(1 / 16)
    cloud = torch.rand(300, 2, generator=seeded(5))
    assert quantisation_step(cloud) == 0
    assert cluster_gap(cloud) == float("inf")
    apart = cloud + torch.where(torch.arange(300) % 3 == 0, 4.0, 0.0).unsqueeze(1)
    assert cluster_gap(apart) == pytest.approx(float(torch.cdist(apart[::3], apart[1::3]).min()), abs=0.3)
    assert cluster_gap(cloud[:2]) == float("inf")


def test_refusals():
    """Oracle: the documented errors."""
    x = torch.zeros(10, 2)
    with pytest.raises(ArgumentError, match="method"):
        w1_distance(x, x, "emd")
    with pytest.raises(ArgumentError, match="num_projections"):
        w1_distance(x, x, "sliced", num_projections=0)
    with pytest.raises(ShapeError, match="multiple"):
        w1_distance(x, x[:7])
    with pytest.raises(ShapeError, match="expected"):
        w1_distance(x, x[:, :1])
    with pytest.raises(MemoryLimitError, match="sliced"):
        w1_distance(torch.zeros(2001, 1), torch.zeros(2001, 1))
