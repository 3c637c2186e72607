"""What the perturbed likelihood is compared with."""

from typing import Any

import pytest
import torch

from hesse.errors import ArgumentError
from hesse.generative.singular import WGANGP, kde_resample, ppca_mixture, w1_distance


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_component_is_probabilistic_pca():
    """Oracle: the closed form: leading eigenvalues as they are, the mean of the rest as floor."""
    data = torch.randn(300, 4, dtype=torch.float64, generator=seeded(0)) * torch.tensor([3.0, 2.0, 0.5, 0.4])
    values = torch.linalg.eigvalsh(torch.cov(data.mT, correction=0))
    mixture = ppca_mixture(data, 1, 2, generator=seeded(1))
    torch.testing.assert_close(mixture.variances[0], values[2:])
    torch.testing.assert_close(mixture.floor[0], values[:2].mean())
    torch.testing.assert_close(mixture.means[0], data.mean(0))


def test_mixture_gains_and_finds_two_lines():
    """Oracle: monotone likelihood of expectation maximisation, and the floor of data on two lines far apart."""
    t = torch.randn(400, 1, dtype=torch.float64, generator=seeded(2))
    data = torch.cat(
        [t[:200] @ torch.tensor([[1.0, 0, 0]]).double(), 20 + t[200:] @ torch.tensor([[0, 1.0, 0]]).double()]
    )
    values = [
        float(ppca_mixture(data, 2, 1, max_steps=steps, tol=-1.0, generator=seeded(3)).log_density(data).mean())
        for steps in (1, 2, 4, 8)
    ]
    assert values == sorted(values)
    found = ppca_mixture(data, 2, 1, generator=seeded(3))
    assert float(found.floor.max()) <= 1e-6 * float(data.var(0).mean()) * (1 + 1e-9)


def test_kernels_add_their_variance():
    """Oracle: Var = Var of the data + bandwidth², within four standard errors; no width draws rows."""
    data = torch.randn(100, 1, dtype=torch.float64, generator=seeded(4))
    drawn = kde_resample(data, 2.0, 20_000, generator=seeded(5))
    expected = float(data.var(correction=0)) + 4
    assert float(drawn.var()) == pytest.approx(expected, abs=4 * expected * (2 / 20_000) ** 0.5)
    assert bool(torch.isin(kde_resample(data, 0.0, 50), data).all())


@pytest.mark.slow
def test_gan_moves_towards_the_data():
    """Oracle: the fit's own start, twice as far from the data in W1 or more; the same seed gives the same fit."""
    data = torch.randn(500, 2, generator=seeded(6)) * 2 + torch.tensor([5.0, -3.0])
    settings: dict[str, Any] = {"hidden_sizes": (32, 32), "batch_size": 100, "one_sided": True}
    w1 = [
        w1_distance(WGANGP(max_iter=steps, **settings).fit(data).sample(500, generator=seeded(7)), data)
        for steps in (1, 300)
    ]
    assert w1[1] < w1[0] / 2
    first, second = (WGANGP(max_iter=2, **settings).fit(data).sample(4, generator=seeded(8)) for _ in range(2))
    assert torch.equal(first, second)


def test_refusals():
    """Oracle: the documented errors."""
    data = torch.randn(20, 3, generator=seeded(9))
    wrong: dict[str, Any] = {"max_iter": 0, "num_critic": 0, "learning_rate": 0.0, "penalty": -1.0}
    for name, value in wrong.items():
        with pytest.raises(ArgumentError, match=name):
            WGANGP(**{name: value}).fit(data)
    with pytest.raises(ArgumentError, match="not fitted"):
        WGANGP().sample(3)
    with pytest.raises(ArgumentError, match="bandwidth"):
        kde_resample(data, -1.0, 3)
    with pytest.raises(ArgumentError, match="rank"):
        ppca_mixture(data, 2, 3)
