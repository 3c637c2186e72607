import pytest
import torch

from hesse.bilevel import solve_support_vectors, support_vector_costs
from hesse.bilevel.lv_hba.lagrangian import LowerLagrangian, solve_constrained_lower
from hesse.bilevel.oracle import Oracle
from hesse.bilevel.piecewise_quadratic import minimize_hinge_squares
from hesse.errors import ArgumentError, ShapeError
from tests.bilevel.cases import seeded, signs


def small():
    X, t, X_valid, t_valid = signs(features=4)
    return X[:20], t[:20], X_valid, t_valid


def test_exact_solution_minimises():
    """Oracle: the gradient in closed form of the squared hinges, whose slacks are eliminated."""
    X, t, _, _ = small()
    costs = torch.rand(20, dtype=torch.float64, generator=seeded(0)) + 0.1
    y = solve_support_vectors(X, t, costs)
    pull = costs * y["slack"] * t
    torch.testing.assert_close(y["weight"], pull @ X, rtol=0, atol=1e-11)
    assert abs(float(pull.sum())) < 1e-11
    torch.testing.assert_close(y["slack"], (1 - t * (X @ y["weight"] + y["bias"])).clamp_min(0))


def test_one_cost_is_scikit_learn():
    """Oracle: LinearSVC with the squared hinge; its intercept is penalised, here by a constant feature as well."""
    svm = pytest.importorskip("sklearn.svm")
    X, t, _, _ = small()
    X = torch.cat([X, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    peer = svm.LinearSVC(loss="squared_hinge", C=0.35, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(X, t)
    rows = t.unsqueeze(1) * X
    ones = torch.ones(20, dtype=torch.float64)
    found = minimize_hinge_squares(rows, ones, 0.7 * ones, torch.zeros(5).double(), torch.ones(5).double())
    torch.testing.assert_close(found, torch.from_numpy(peer.coef_[0]), rtol=1e-5, atol=1e-6)


def test_problem_is_the_machine():
    """Oracle: the exact solution; the general solver of constrained lower levels reaches it."""
    problem = support_vector_costs(*small(), start=-1.0)
    oracle, x = Oracle(problem), problem.x0
    y = problem.y_layout.flatten(problem.lower_solution(x))
    lagrangian = LowerLagrangian(oracle, x, y)
    assert lagrangian.violation(x, y) < 1e-12
    start = problem.y_layout.flatten(problem.y0)
    found = solve_constrained_lower(lagrangian, x, start, torch.zeros(20).double(), tol=1e-9, max_steps=20_000)
    torch.testing.assert_close(found.theta, y, rtol=0, atol=1e-6)


def test_joint_projection_meets_the_constraint():
    """Oracle: the constraint and the bounds themselves."""
    problem = support_vector_costs(*small())
    g = seeded(1)
    y = {name: torch.randn(v.shape, dtype=torch.float64, generator=g) for name, v in problem.y0.items()}
    x, y = problem.project_joint(problem.x0 + 100, y)
    assert float(problem.constraint(x, y).max()) < 1e-12
    assert float(x.max()) == 2.5


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    X, t, X_valid, t_valid = small()
    with pytest.raises(ShapeError, match="X_valid"):
        support_vector_costs(X, t, X_valid[:, :2], t_valid)
    with pytest.raises(ArgumentError, match="t_valid"):
        support_vector_costs(X, t, X_valid, 0 * t_valid)
    with pytest.raises(ArgumentError, match="start"):
        support_vector_costs(X, t, X_valid, t_valid, start=9.0)
    with pytest.raises(ArgumentError, match="sharpness"):
        support_vector_costs(X, t, X_valid, t_valid, sharpness=0.0)
    with pytest.raises(ArgumentError, match="either label"):
        solve_support_vectors(X, t, (t > 0).double())
