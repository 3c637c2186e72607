import pytest
import scipy.optimize
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError, SingularError
from hesse.linalg.projections import AffineEquality, Ball, Box, Ellipsoid, Halfspace, HNormBall, Simplex

N = 5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


ROOT = randn(N, N, seed=7)
H = ROOT @ ROOT.T + 0.3 * torch.eye(N, dtype=torch.float64)
CENTER = 0.2 * randn(N, seed=8)
A, B = randn(2, N, seed=9), randn(2, seed=10)
EYE = torch.eye(N, dtype=torch.float64)

# set, metric, constraints for SciPy: equalities and inequalities g(x) >= 0
CASES = {
    "ball": (Ball(0.7, CENTER), EYE, [], [lambda x: 0.49 - (x - CENTER).square().sum()]),
    "halfspace": (Halfspace(A[0], -1.5), EYE, [], [lambda x: -1.5 - A[0] @ x]),
    "affine": (AffineEquality(A, B), EYE, [lambda x: A @ x - B], []),
    "box": (Box(-0.3, torch.linspace(0.1, 0.5, N).double()), EYE, [], [
        lambda x: x + 0.3, lambda x: torch.linspace(0.1, 0.5, N).double() - x
    ]),
    "simplex": (Simplex(1.5), EYE, [lambda x: x.sum().reshape(1) - 1.5], [lambda x: x]),
    "h-norm": (HNormBall(H, 0.7, CENTER), H, [], [lambda x: 0.49 - (x - CENTER).square().sum()]),
    "ellipsoid": (Ellipsoid(H, 0.7, CENTER), EYE, [], [lambda x: 0.49 - (x - CENTER) @ H @ (x - CENTER)]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_nearest_point(name):
    """Oracle: scipy's SLSQP on the quadratic program that defines the projection, to 1e-6."""
    project, metric, equalities, inequalities = CASES[name]
    y = 2 * randn(N, seed=3)

    def as_numpy(fn):
        return lambda x: fn(torch.from_numpy(x)).reshape(-1).numpy()

    constraints = [{"type": "eq", "fun": as_numpy(fn)} for fn in equalities]
    constraints += [{"type": "ineq", "fun": as_numpy(fn)} for fn in inequalities]

    def objective(x):
        gap = torch.from_numpy(x) - y
        return float(gap @ metric @ gap), (2 * metric @ gap).numpy()

    found = scipy.optimize.minimize(
        objective, y.numpy(), jac=True, method="SLSQP", constraints=constraints, options={"ftol": 1e-15, "maxiter": 500}
    )
    torch.testing.assert_close(project(y), torch.from_numpy(found.x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", list(CASES))
def test_idempotent_batched_and_differentiable(name):
    """Oracle: P(P(x)) = P(x); each row by itself; finite differences of the projection."""
    project = CASES[name][0]
    batch = 2 * randn(4, N, seed=4)
    once = project(batch)
    torch.testing.assert_close(project(once), once, rtol=0, atol=1e-12)
    for row, image in zip(batch, once, strict=True):
        torch.testing.assert_close(project(row), image, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(project, batch.clone().requires_grad_(), atol=1e-5)


def test_points_inside_do_not_move():
    """Oracle: the identity on the set."""
    inside = CENTER + 0.01 * randn(3, N)
    for name in ("ball", "h-norm", "ellipsoid"):
        torch.testing.assert_close(CASES[name][0](inside), inside, rtol=0, atol=1e-15)
    torch.testing.assert_close(Halfspace(A[0], 100.0)(inside), inside)


def test_simplex_at_the_extremes():
    """Oracle: closed form for huge entries, ties and one dimension."""
    torch.testing.assert_close(Simplex()(torch.tensor([1e30, 0.0])), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(Simplex()(torch.full((4,), -1e8)), torch.full((4,), 0.25))
    torch.testing.assert_close(Simplex(3.0)(torch.tensor([[5.0], [-2.0]])), torch.tensor([[3.0], [3.0]]))
    with pytest.raises(NumericalError, match="finite"):
        Simplex()(torch.tensor([0.0, torch.nan]))


def test_ill_conditioned_metric():
    """Oracle: the optimality conditions H(x - y) + nu x = 0 with nu >= 0 and |x| = r, for condition 1e8."""
    values = torch.logspace(-4, 4, 6, dtype=torch.float64)
    y = torch.full((6,), 10.0, dtype=torch.float64)
    x = HNormBall(torch.diag(values), 1.0)(y)
    nu = values * (y - x) / x
    assert float(x.norm()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(nu, nu.mean().expand(6), rtol=1e-9, atol=0)


def test_gradient_with_respect_to_the_metric():
    """Oracle: finite differences."""
    y = 2 * randn(3, N, seed=5)
    leaf = H.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda h: HNormBall(h, 0.5)(y), leaf, atol=1e-5)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="radius"):
        Ball(-1.0)
    with pytest.raises(ArgumentError, match="low <= high"):
        Box(1.0, 0.0)
    with pytest.raises(ArgumentError, match="total"):
        Simplex(0.0)
    with pytest.raises(ArgumentError, match="normal"):
        Halfspace(torch.zeros(3))
    with pytest.raises(SingularError, match="dependent"):
        AffineEquality(torch.ones(2, 4), torch.ones(2))
    with pytest.raises(ShapeError, match="AffineEquality"):
        AffineEquality(torch.ones(2, 4), torch.ones(3))
    with pytest.raises(SingularError, match="positive definite"):
        HNormBall(torch.diag(torch.tensor([1.0, 0.0])), 1.0)
    with pytest.raises(ShapeError, match="square"):
        Ellipsoid(torch.ones(2, 3), 1.0)
