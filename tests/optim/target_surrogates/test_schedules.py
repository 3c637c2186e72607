"""Target steps: schedules and the search along the outputs."""

import pytest
import torch

from hesse.optim.target_surrogates.schedules import CLIP, EtaSearch, eta_factor

Z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_factors():
    """Oracle: closed forms."""
    assert [eta_factor("sqrt", t, None) for t in (1, 4, 16)] == [1, 0.5, 0.25]
    assert eta_factor("exponential", 50, 100) == pytest.approx(0.1)
    assert eta_factor("exponential", 100, 100) == eta_factor("exponential", 300, 100) == pytest.approx(0.01)
    assert eta_factor("constant", 9, None) == 1


@pytest.mark.parametrize("smoothness", [0.1, 1.0, 25.0])
@pytest.mark.parametrize("previous", [None, 0.01, 3.0])
def test_search_finds_the_smoothness_of_a_quadratic(smoothness, previous):
    """Oracle: Armijo's rule with c = ½ holds exactly for η <= 1/L; trials are a factor 0.9 apart, or 1.8 from below."""
    search = EtaSearch(lambda z: smoothness * z.square().sum(1).mean() / 2, previous)
    search.value = search.loss_at(Z)
    eta = search.along_outputs(Z, smoothness * Z, "euclidean")
    assert eta <= 1 / smoothness * (1 + 1e-12)
    reachable = 1 / smoothness if previous is None else min(1 / smoothness, 1.8 * previous)
    assert eta >= 0.9 * reachable * (1 - 1e-12)
    assert search.num_values >= 2


@pytest.mark.parametrize("divergence", ["kl", torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))], ids=str)
def test_search_lowers_the_loss_in_other_geometries(divergence):
    """Oracle: the loss itself, and the slope by a finite difference of the path."""
    z = Z.softmax(-1)

    def loss(z):
        return (z - 0.2).square().sum(1).mean() / 2

    search = EtaSearch(loss, None)
    search.value = search.loss_at(z)
    slopes = []
    search.run = lambda value_fn, value, slope: slopes.append((slope, (value_fn(1e-5) - value) / 1e-5)) or 1.0
    search.along_outputs(z, z - 0.2, divergence)
    assert slopes[0][0] == pytest.approx(slopes[0][1], rel=1e-3)
    again = EtaSearch(loss, None)
    again.value = search.value
    assert again.along_outputs(z, z - 0.2, divergence) > CLIP[0]


def test_search_is_clipped():
    """Oracle: the ends of the interval, for a loss that only rises and one that only falls."""
    rising = EtaSearch(lambda z: -z.sum(1).mean(), 1.0)
    rising.value = rising.loss_at(Z)
    assert rising.along_outputs(Z, torch.ones_like(Z), "euclidean") == CLIP[0]
    falling = EtaSearch(lambda z: z.sum(1).mean(), None)
    falling.value = falling.loss_at(Z)
    assert falling.along_outputs(Z, torch.ones_like(Z), "euclidean") == pytest.approx(CLIP[1])


def test_a_gradient_that_moves_no_probabilities_keeps_eta():
    """Oracle: the last η; a constant gradient is orthogonal to the simplex."""
    search = EtaSearch(lambda z: z.sum(1).mean(), 0.3)
    search.value = 1.0
    assert (
        search.along_outputs(torch.full((2, 4), 0.25, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64), "kl")
        == 0.3
    )
