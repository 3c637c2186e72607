"""The operator of second moments, and where residuals leave it."""

import pytest
import torch

from hesse.curvature.stability.coordinates import batch_noise_factor, range_coordinates
from hesse.curvature.stability.second_moment import largest_eigenvalue, second_moment_operator, stationary_moment
from hesse.curvature.stability.thresholds import max_stable_learning_rate

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_the_operator_is_self_adjoint_and_keeps_the_cone():
    """Oracle: the identities <X, T Y> = <T X, Y> and x ᵀT(M)x >= 0 for M of rank one."""
    coordinates = range_coordinates(draw(7, 5))
    T = second_moment_operator(coordinates, 0.3, 0.6)
    X, Y = (m + m.mT for m in (draw(5, 5, seed=1), draw(5, 5, seed=2)))
    torch.testing.assert_close((X * T(Y)).sum(), (T(X) * Y).sum())
    x = draw(5, 1, seed=3)
    assert float(torch.linalg.eigvalsh(T(x @ x.mT))[0]) > -1e-12


def test_the_eigenmatrix_is_positive_semi_definite():
    """Oracle: Perron and Frobenius, for maps of the cone of positive semi-definite matrices."""
    coordinates = range_coordinates(draw(7, 5))
    T = second_moment_operator(coordinates, 0.3, 0.6)
    radius, X = largest_eigenvalue(T, coordinates, 1e-10, 1000)
    torch.testing.assert_close(T(X), radius.value * X, rtol=0, atol=1e-8)
    assert float(torch.linalg.eigvalsh(X)[0]) > -1e-8


def test_stationary_moment_is_that_of_long_runs():
    """Oracle: the fixed point, and 4,000 runs with residuals: the loss that noise adds, within four standard errors."""
    features, residuals, batch_size, runs = draw(8, 3), draw(8, seed=1), 2, 4000
    A = features
    residuals = residuals - A @ torch.linalg.lstsq(A, residuals.unsqueeze(1)).solution.squeeze(1)  # a minimum
    coordinates = range_coordinates(A)
    lr = 0.5 * float(max_stable_learning_rate(A, batch_size))
    f = batch_noise_factor(8, batch_size)
    gradients = coordinates.rows.squeeze(1) * residuals.unsqueeze(1)
    covariance = gradients.mT @ gradients / 8
    M = stationary_moment(coordinates, lr, f, covariance)
    T = second_moment_operator(coordinates, lr, f)
    generator = torch.Generator().manual_seed(2)
    state = torch.zeros(runs, 3, dtype=F64)
    for _ in range(150):
        index = torch.rand(runs, 8, generator=generator).topk(batch_size, dim=1).indices
        a = A[index]
        slope = a @ state.unsqueeze(2) + residuals[index].unsqueeze(2)
        state = state - lr / batch_size * (a.mT @ slope).squeeze(2)
    added = (state @ A.mT).square().mean(1) / 2
    expected = float((coordinates.eigenvalues * M.diagonal()).sum()) / 2
    assert abs(float(added.mean()) - expected) < 4 * float(added.std()) / runs**0.5
    # the runs' first moments do not enter T: their residuals are orthogonal to the features only on average
    torch.testing.assert_close(M, T(M) + lr**2 * f * covariance, rtol=1e-6, atol=1e-10)


def test_nothing_settles_without_noise():
    """Oracle: zero covariance gives zero."""
    coordinates = range_coordinates(draw(6, 3))
    assert float(stationary_moment(coordinates, 0.05, 0.5, torch.zeros(3, 3, dtype=F64)).abs().max()) == pytest.approx(
        0
    )
