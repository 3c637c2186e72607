"""Maps trained with the Monge gap."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.transport import Euclidean, Geodesic, MongeMap, PNorm, optimality_ratio


@pytest.fixture(scope="module")
def clouds():
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(1500, 2, generator=generator) for _ in range(2))
    return x, y * torch.tensor([0.5, 2.0]) + torch.tensor([1.0, -1.0])


@pytest.mark.slow
def test_recovers_the_map_between_gaussians(clouds):
    """Oracle: the closed form, here diag(0.5, 2) x + (1, -1), within five per cent of the target's variance."""
    x, y = clouds
    model = MongeMap(max_iter=200, batch_size=128).fit(x, y)
    fresh = torch.randn(1000, 2, generator=torch.Generator().manual_seed(9))
    expected = fresh * torch.tensor([0.5, 2.0]) + torch.tensor([1.0, -1.0])
    assert float((model.transform(fresh) - expected).square().sum(1).mean()) < 0.05 * 4.25
    assert optimality_ratio(fresh, model.transform(fresh)).ratio < 0.02
    assert model.score(x, y) > 10 * MongeMap(max_iter=1, batch_size=32).fit(x, y).score(x, y)


@pytest.mark.parametrize(("form", "cost"), [("structured", PNorm(1.5)), ("direct", "euclidean"), (None, "sqeuclidean")])
def test_units_do_not_matter(clouds, form, cost):
    """Oracle: invariance; a hundredfold of all coordinates gives a hundredfold of the images."""
    x, y = clouds
    settings: dict[str, Any] = {"form": form, "cost": cost, "max_iter": 3, "batch_size": 32}
    small = MongeMap(**settings).fit(x.double(), y.double()).transform(x.double())
    large = MongeMap(**settings).fit(100 * x.double(), 100 * y.double()).transform(100 * x.double())
    torch.testing.assert_close(large, 100 * small, rtol=1e-3, atol=1e-2)


def test_starts_from_the_identity_and_repeats(clouds):
    """Oracle: by definition T = Id at a learning rate of nearly zero; and the same seed gives the same map."""
    x, y = clouds
    still = MongeMap(max_iter=1, batch_size=32, learning_rate=1e-12).fit(x, y)
    torch.testing.assert_close(still.transform(x), x, atol=1e-5, rtol=0)
    assert still.monge_gap_ == pytest.approx(0, abs=1e-5)
    settings: dict[str, Any] = {"max_iter": 3, "batch_size": 32, "random_state": 4}
    first, second = (MongeMap(**settings).fit(x, y).transform(x) for _ in range(2))
    assert torch.equal(first, second)
    assert len(still.history_["fit"]) == len(still.history_["gap"]) == 1


def test_sphere_form_stays_on_the_sphere():
    """Oracle: the length of every image, one."""
    x = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    images = MongeMap(cost=Geodesic(), max_iter=3, batch_size=32).fit(x, x.flip(0)[:150]).transform(x)
    assert float((images.norm(dim=1) - 1).abs().max()) < 1e-6


def test_weights_decide_what_is_drawn(clouds):
    """Oracle: a target with nearly all weight on one half is the target that consists of that half."""
    x, y = clouds
    weight = torch.where(y[:, 1] > 0, 1.0, 1e-9)
    model = MongeMap(max_iter=120, batch_size=64).fit(x, y, target_weight=weight)
    assert float(model.transform(x)[:, 1].mean()) == pytest.approx(float(y[y[:, 1] > 0, 1].mean()), abs=0.3)


def test_reference_fit_loss_and_network_of_ones_own(clouds):
    """Oracle: the calls they get: reference points by number, both batches, and a network that is copied."""
    x, y = clouds
    asked = []

    def sampler(count, generator):
        asked.append(count)
        return torch.rand(count, 2, generator=generator)

    def means(mapped, target):
        return (mapped.mean(0) - target.mean(0)).square().sum()

    network = torch.nn.Linear(2, 2)
    before = network.weight.detach().clone()
    model = MongeMap(network=network, reference=sampler, fit_loss=means, max_iter=2, batch_size=40).fit(x, y)
    assert asked == [40, 40]
    assert torch.equal(network.weight, before)
    assert not torch.equal(next(model.module_.network.parameters()), before)
    MongeMap(reference=x.numpy(), max_iter=1, batch_size=32).fit(x, y)


def test_dimensions_may_differ_where_the_cost_is_defined(clouds):
    """Oracle: the shape of the target; a cost on the first coordinate only knows both."""
    x, y = clouds
    line = y[:, :1]
    model = MongeMap(cost=lambda a, b: (a[..., 0] - b[..., 0]).square(), max_iter=2, batch_size=32).fit(x, line)
    assert model.transform(x).shape == (1500, 1)
    with pytest.raises(ShapeError, match="residual"):
        MongeMap(form="residual", max_iter=1).fit(x, line)


def test_scikit_learn_can_clone_it(clouds):
    """Oracle: sklearn.base.clone and get_params; arrays in, arrays out."""
    model = MongeMap(cost="euclidean", lam=0.5, max_iter=1, batch_size=32)
    twin: Any = clone(model)
    assert twin.get_params() == model.get_params()
    x, y = (points.double().numpy() for points in clouds)
    images = twin.set_params(max_iter=2).fit(x, y).predict(x)
    assert isinstance(images, np.ndarray)
    assert images.dtype == np.float64


def test_refusals(clouds):
    """Oracle: the documented errors and the one warning."""
    x, y = clouds
    with pytest.raises(ArgumentError, match="not fitted"):
        MongeMap().transform(x)
    with pytest.raises(ArgumentError, match="no parameter"):
        MongeMap().set_params(steps=3)
    wrong: dict[str, Any] = {"lam": -1, "max_iter": 0, "eps_gap": 0.0, "fit_loss": "mmd", "conservative": 1.0}
    for name, value in wrong.items():
        with pytest.raises(ArgumentError, match=name):
            MongeMap(**{name: value}).fit(x, y)
    with pytest.raises(ArgumentError, match="strictly convex"):
        MongeMap(cost=Euclidean(), form="structured").fit(x, y)
    with pytest.raises(NumericalError, match="Y has NaN"):
        MongeMap().fit(x, y / 0)
    with pytest.raises(ShapeError, match="X of shape"):
        MongeMap().fit(x[:, 0], y)
    with pytest.warns(UserWarning, match="batch_size"):
        MongeMap(max_iter=1, batch_size=8).fit(x, y)
