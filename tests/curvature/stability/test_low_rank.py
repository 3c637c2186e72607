"""Second moments confined to few directions."""

import pytest
import torch

from hesse.curvature.jacobian import jacobian
from hesse.curvature.stability.radius import second_moment_radius
from hesse.curvature.stability.thresholds import max_stable_learning_rate
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.basic import Dense

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("outputs", [1, 2])
def test_enough_directions_are_exact(outputs):
    """Oracle: the whole sample space."""
    features = draw(8, outputs, 12)
    flat = Dense(features.reshape(-1, 12))
    for batch_size in (1, 4, 8):
        options = {"method": "low_rank", "num_outputs": outputs, "rank": 12, "generator": seeded(0)}
        expected = max_stable_learning_rate(features, batch_size).value
        assert max_stable_learning_rate(flat, batch_size, **options).value == pytest.approx(expected, rel=1e-6)
        radius = second_moment_radius(features, 0.2, batch_size).value
        assert second_moment_radius(flat, 0.2, batch_size, **options).value == pytest.approx(radius, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_few_directions_bound_from_the_safe_side(seed):
    """Oracle: the whole sample space: radius from below, learning rate from above, both within two per cent."""
    features = draw(40, 30, seed=seed) * draw(40, 1, seed=seed + 100).exp()
    lr = 1.1 * max_stable_learning_rate(features, 2).value
    options = {"method": "low_rank", "rank": 4, "generator": seeded(seed)}
    radius, expected = (
        second_moment_radius(features, lr, 2, **options).value,
        second_moment_radius(features, lr, 2).value,
    )
    assert 0.98 * expected <= radius <= expected + 1e-9
    rate = max_stable_learning_rate(features, 2, **options).value
    assert lr / 1.1 - 1e-9 <= rate <= 1.02 * lr / 1.1


def test_products_with_a_jacobian_suffice():
    """Oracle: the dense Jacobian of a small network."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).to(F64)
    operator = jacobian(lambda model, x: model(x), net, draw(6, 3))
    dense = operator.to_dense().detach().reshape(6, 2, -1)
    found = max_stable_learning_rate(operator, 2, method="low_rank", num_outputs=2, rank=12, generator=seeded(0))
    assert found.value == pytest.approx(max_stable_learning_rate(dense, 2).value, rel=1e-6)
    assert found.converged


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ShapeError, match="multiple"):
        second_moment_radius(Dense(draw(5, 3)), 0.1, 1, method="low_rank", num_outputs=2)
    with pytest.raises(ArgumentError, match="rank"):
        second_moment_radius(Dense(draw(4, 3)), 0.1, 1, method="low_rank", rank=0)
    with pytest.raises(ArgumentTypeError, match="features"):
        second_moment_radius([1.0], 0.1, 1, method="low_rank")
    with pytest.raises(ShapeError, match="shape"):
        second_moment_radius(draw(4), 0.1, 1, method="low_rank")


def test_no_gradients_at_all():
    """Oracle: the definitions: H = 0 bounds no learning rate and moves nothing."""
    zero = Dense(torch.zeros(4, 3, dtype=F64))
    assert max_stable_learning_rate(zero, 1, method="low_rank").value == float("inf")
    assert second_moment_radius(zero, 0.1, 1, method="low_rank").value == 0
