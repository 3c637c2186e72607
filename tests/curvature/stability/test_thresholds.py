"""Learning rates and batch sizes at the edge of stability."""

import math

import pytest
import scipy.optimize
import torch

from hesse.curvature.stability.coordinates import range_coordinates
from hesse.curvature.stability.radius import second_moment_radius
from hesse.curvature.stability.thresholds import (
    learning_rate_bracket,
    loss_scaled_margin,
    max_stable_learning_rate,
    min_stable_batch_size,
)
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.basic import Dense

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 2, 6)])
def test_threshold_is_where_the_radius_crosses_one(shape, replacement):
    """Oracle: bisection on the radius of the dense operator."""
    features = draw(*shape)
    top = 4 / float(range_coordinates(features).eigenvalues[0])
    for batch_size in (1, 2):
        expected = scipy.optimize.brentq(
            lambda lr, b=batch_size: (
                second_moment_radius(features, lr, b, method="dense", replacement=replacement).value - 1
            ),
            1e-3 * top,
            top,
            xtol=1e-12,
        )
        found = max_stable_learning_rate(features, batch_size, replacement=replacement)
        assert found.converged
        assert found.value == pytest.approx(expected, rel=1e-8)


def test_full_batch_leaves_gradient_descent():
    """Oracle: closed form, 2 / λ₁, with and without momentum."""
    features = draw(6, 4)
    largest = float(range_coordinates(features).eigenvalues[0])
    assert max_stable_learning_rate(features, 6).value == pytest.approx(2 / largest, rel=1e-10)
    assert max_stable_learning_rate(features, 6, momentum=0.5).value == pytest.approx(3 / largest, rel=1e-10)
    bracket = learning_rate_bracket(features, 6)
    assert bracket.sufficient == pytest.approx(bracket.gradient_descent)
    assert bracket.trace_bound == math.inf


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("seed", range(10))
def test_bracket_holds_the_threshold(seed, outputs):
    """Oracle: the exact threshold; and Tr(H) <= 2C/η there for a batch of one."""
    features = draw(8, outputs, 6, seed=seed) * draw(8, 1, 1, seed=seed + 50).exp()
    for batch_size in (1, 2, 5, 8):
        bracket = learning_rate_bracket(features, batch_size)
        exact = max_stable_learning_rate(features, batch_size).value
        assert bracket.sufficient <= exact * (1 + 1e-9)
        assert exact <= bracket.upper * (1 + 1e-9)
        assert bracket.necessary <= bracket.trace_bound * (1 + 1e-9)
    trace = float(features.square().sum()) / 8
    assert max_stable_learning_rate(features, 1).value * trace <= 2 * outputs + 1e-9


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("replacement", [False, True])
def test_smallest_batch_is_the_first_stable_one(momentum, replacement):
    """Oracle: the radius of every batch size."""
    features = draw(12, 5)
    for factor in (0.3, 0.7, 1.0):
        lr = factor * max_stable_learning_rate(features, 5, momentum=momentum, replacement=replacement).value
        radii = [
            second_moment_radius(features, lr, b, momentum=momentum, replacement=replacement).value
            for b in range(1, 13)
        ]
        expected = next(b for b, radius in enumerate(radii, start=1) if radius <= 1 + 1e-7)
        assert min_stable_batch_size(features, lr, momentum=momentum, replacement=replacement) == expected


def test_no_batch_is_large_enough_beyond_gradient_descent():
    """Oracle: closed form, 2 / λ₁, from both sides and on it."""
    features = draw(12, 5)
    edge = 2 / float(range_coordinates(features).eigenvalues[0])
    assert min_stable_batch_size(features, 1.01 * edge) is None
    assert min_stable_batch_size(features, edge) == 12
    assert min_stable_batch_size(features, 0.9999 * edge) == 12
    assert min_stable_batch_size(features, 0.0) == 1
    assert min_stable_batch_size(torch.ones(4, 2, dtype=F64), 0.5) == 1  # no spread, no noise
    assert min_stable_batch_size(draw(1, 3), 0.1) == 1


def test_almost_flat_directions_do_not_look_like_the_edge():
    """Oracle: the same samples without the flat direction, which SGD hardly moves along."""
    features = draw(12, 5)
    flat = torch.cat([features, 1e-6 * draw(12, 1, seed=1)], dim=1)
    lr = 0.7 * max_stable_learning_rate(features, 5).value
    assert min_stable_batch_size(flat, lr) == min_stable_batch_size(features, lr) < 12


@pytest.mark.parametrize("batch_size", [1, 4])
def test_loss_scaled_threshold_is_that_of_the_dense_operator(batch_size):
    """Oracle: (I - ηH) M (I - ηH) + (η²/B) tr(HM) H, whose radius is one there; norms as promised."""
    features = draw(10, 5)
    values = range_coordinates(features).eigenvalues
    found = max_stable_learning_rate(features, batch_size, noise="loss_scaled").value
    H = torch.diag(values)
    step = torch.eye(5, dtype=F64) - found * H
    T = torch.kron(step, step) + found**2 / batch_size * torch.outer(H.reshape(-1), H.reshape(-1))
    assert float(torch.linalg.eigvalsh(T)[-1]) == pytest.approx(1, abs=1e-12)
    assert loss_scaled_margin(values, found, batch_size) == pytest.approx(0, abs=1e-12)
    assert found * float(values.sum()) <= 2 * batch_size
    assert found * float(values.norm()) <= batch_size**0.5 + 1e-12


def test_margin_by_hand():
    """Oracle: closed form."""
    values = torch.tensor([1.0, 0.5])
    assert loss_scaled_margin(values, 1.0, 1) == pytest.approx(1 - 1 - 1 / 3)
    assert loss_scaled_margin(values, 1.0, 2) == pytest.approx(1 - 2 / 3)
    assert loss_scaled_margin(values, 2.0, 100) == -math.inf
    assert loss_scaled_margin(torch.zeros(0), 5.0, 1) == 1


def test_no_curvature_has_no_bound():
    """Oracle: the definition."""
    flat = torch.zeros(3, 4)
    for options in ({}, {"momentum": 0.5}, {"noise": "loss_scaled"}):
        assert max_stable_learning_rate(flat, 1, **options).value == math.inf
    assert learning_rate_bracket(flat, 1).upper == math.inf


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    features = draw(4, 3)
    with pytest.raises(ArgumentError, match="noise"):
        max_stable_learning_rate(features, 1, noise="magic")
    with pytest.raises(ArgumentError, match="go together"):
        max_stable_learning_rate(features, 1, momentum=0.5, noise="loss_scaled")
    with pytest.raises(ArgumentTypeError, match="low_rank"):
        max_stable_learning_rate(Dense(features), 1)
    with pytest.raises(ArgumentError, match="eigenvalue"):
        loss_scaled_margin(torch.tensor([-1.0]), 0.1, 1)
    with pytest.raises(ShapeError, match="vector"):
        loss_scaled_margin(torch.eye(2), 0.1, 1)
    with pytest.raises(ArgumentError, match="batch_size"):
        loss_scaled_margin(torch.ones(2), 0.1, 0)
