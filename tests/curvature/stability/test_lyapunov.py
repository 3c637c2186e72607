"""The growth of a typical run."""

import math

import pytest
import torch

from hesse.curvature.stability.lyapunov import lyapunov_exponent
from hesse.curvature.stability.radius import second_moment_radius
from hesse.errors import ArgumentError

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("replacement", [False, True])
def test_one_parameter_is_a_mean_of_logarithms(replacement):
    """Oracle: closed form, E log |1 - η (mean of a² over a batch)|, all batches enumerated; within four errors."""
    squares = torch.tensor([0.5, 1.0, 4.0], dtype=F64)
    pairs = [(i, j) for i in range(3) for j in range(3) if replacement or i != j]
    expected = sum(math.log(abs(1 - 0.3 * float(squares[list(p)].mean()))) for p in pairs) / len(pairs)
    found = lyapunov_exponent(
        squares.sqrt().unsqueeze(1), 0.3, 2, replacement=replacement, num_runs=16, num_steps=1000, generator=seeded(0)
    )
    assert abs(found.value - expected) < 4 * found.standard_error
    assert found.standard_error < 0.05


def test_full_batch_is_gradient_descent():
    """Oracle: closed form, log of the slowest factor; no randomness beyond the start."""
    features = torch.randn(5, 3, dtype=F64, generator=seeded(1))
    values = torch.linalg.eigvalsh(features.mT @ features / 5)
    found = lyapunov_exponent(features, 0.1, 5, num_steps=400, generator=seeded(0))
    assert found.value == pytest.approx(float((1 - 0.1 * values).abs().max().log()), abs=1e-3)


def test_momentum_with_the_full_batch():
    """Oracle: closed form, log of the companion matrix's radius: all pairs are complex, hence log √β."""
    features = torch.eye(3, dtype=F64) * 3**0.5
    found = lyapunov_exponent(features, 0.5, 3, momentum=0.81, num_steps=3000, generator=seeded(0))
    assert found.value == pytest.approx(math.log(0.9), abs=2e-3)


def test_typical_runs_grow_no_faster_than_the_mean_square():
    """Oracle: Jensen's inequality, exponent <= log(radius) / 2, strictly where batches differ."""
    features = torch.randn(8, 4, dtype=F64, generator=seeded(2))
    radius = second_moment_radius(features, 0.5, 1).value
    found = lyapunov_exponent(features, 0.5, 1, num_steps=1000, generator=seeded(0))
    assert found.value + 4 * found.standard_error < math.log(radius) / 2


def test_the_reported_error_is_honest():
    """Oracle: the spread of 200 estimates about their mean; two reported errors cover most of them."""
    features = torch.randn(4, 2, dtype=F64, generator=seeded(3))
    runs = [lyapunov_exponent(features, 0.5, 1, num_steps=40, num_runs=16, generator=seeded(s)) for s in range(200)]
    mean = sum(r.value for r in runs) / 200
    hits = sum(abs(r.value - mean) <= 2.13 * r.standard_error for r in runs)  # Student's t, 15 degrees of freedom
    assert 178 <= hits <= 200


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy; a model without gradients contracts at once."""
    features = torch.ones(2, 2, dtype=F64)
    with pytest.raises(ArgumentError, match="num_steps"):
        lyapunov_exponent(features, 0.1, 1, num_steps=5)
    with pytest.raises(ArgumentError, match="num_runs"):
        lyapunov_exponent(features, 0.1, 1, num_runs=1)
    with pytest.raises(ArgumentError, match="batch_size"):
        lyapunov_exponent(features, 0.1, 3)
    assert lyapunov_exponent(torch.zeros(2, 2), 0.1, 1).value == -math.inf
