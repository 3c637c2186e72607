import pytest
import scipy.optimize
import torch

from hesse.errors import ConvergenceError, ShapeError, SingularError
from hesse.linalg import Ball, Box, HNormBall, Simplex, metric_projection

N = 5


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ROOTS = randn(3, N, N, seed=1)
H = ROOTS @ ROOTS.mT / N + torch.eye(N, dtype=torch.float64)  # SLSQP's own line search wants mild ones for 1e-8
Y = 0.6 * randn(3, N, seed=2)

SETS = {
    "ball": (Ball(0.7), [], [lambda x: 0.49 - x @ x]),
    "box": (Box(-0.3, 0.4), [], [lambda x: x + 0.3, lambda x: 0.4 - x]),
    "simplex": (Simplex(), [lambda x: x.sum() - 1], [lambda x: x]),
}


@pytest.mark.parametrize("name", list(SETS))
def test_nearest_point_in_the_metric(name):
    """Oracle: scipy's SLSQP on the quadratic program, for three metrics at once, to 1e-8."""
    projection, equalities, inequalities = SETS[name]
    found = metric_projection(H, Y, projection)
    constraints = [{"type": "eq", "fun": fn} for fn in equalities] + [
        {"type": "ineq", "fun": fn} for fn in inequalities
    ]
    for metric, y, x in zip(H.numpy(), Y.numpy(), found.numpy(), strict=True):
        best = scipy.optimize.minimize(
            lambda z, m=metric, p=y: ((z - p) @ m @ (z - p) / 2, m @ (z - p)),
            projection(torch.from_numpy(y)).numpy(),
            jac=True,
            method="SLSQP",
            constraints=constraints,
            options={"ftol": 1e-16, "maxiter": 500},
        )
        assert abs(best.x - x).max() < 1e-8


@pytest.mark.parametrize("center", [None, 0.3 * randn(N, seed=4)])
def test_ball_is_that_of_one_metric(center):
    """Oracle: HNormBall, one metric at a time; and points inside stay, bit by bit."""
    y = torch.cat([Y, 0.01 * Y + (0 if center is None else center)])
    metrics = torch.cat([H, H])
    found = metric_projection(metrics, y, Ball(0.7, center))
    wanted = torch.stack([HNormBall(m, 0.7, center)(p) for m, p in zip(metrics, y, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
    if center is None:
        assert torch.equal(found[3:], y[3:])


@pytest.mark.parametrize("projection", [Ball(0.7), Box(-0.3, 0.4)])
def test_identity_is_the_euclidean_projection(projection):
    """Oracle: the projection itself, for H = 2I, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        y = Y.to(dtype)
        found = metric_projection(2 * torch.eye(N, dtype=dtype).expand(3, N, N), y, projection)
        assert found.dtype == dtype
        torch.testing.assert_close(found, projection(y))


def test_edges():
    """Oracle: by definition, nothing to do in the whole space, and one point in a ball of radius zero."""
    assert torch.equal(metric_projection(H, Y, None), Y)
    center = randn(N, seed=5)
    torch.testing.assert_close(metric_projection(H, Y, Ball(0.0, center)), center.expand(3, N))


def test_bad_input():
    """Oracle: the documented errors."""
    with pytest.raises(ShapeError, match="metric_projection"):
        metric_projection(H, Y[0], Ball(1.0))
    for projection in (Ball(0.1), Box(-0.1, 0.1)):
        with pytest.raises(SingularError, match="positive definite"):
            metric_projection(-H, Y, projection)
    with pytest.raises(ConvergenceError, match="nearest point"):
        metric_projection(H, Y, lambda x: -1.01 * x)
