import math
from dataclasses import replace

import pytest
import torch

from hesse.bilevel import BilevelProblem, hypergradient, penalty_hypergradient, problems
from hesse.bilevel.oracle import Oracle
from hesse.bilevel.penalty.hypergradient import gradient_lipschitz, minimise_penalty
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg import Box
from tests.bilevel.cases import relative, seeded


def sharp():
    """Curvatures of f and g within a factor of five, so that s = 0.1 is small already."""
    return problems.quadratic(5, 8, condition=3.0, seed=1)


CASES = {
    "full rank": sharp,
    "many solutions": lambda: problems.quadratic(5, 8, rank=5, condition=3.0, seed=1),
    "box": lambda: problems.box_quadratic(5, 8, seed=1),
}


def slope(errors):
    (s1, e1), (s2, e2) = errors.items()
    return math.log(e1 / e2) / math.log(s1 / s2)


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize(("richardson", "order"), [(False, 1), (True, 2)])
def test_error_falls_with_sigma(name, richardson, order):
    """Oracle: the closed form; the error is of first order in s, and of second by Richardson's combination."""
    case = CASES[name]()
    x = case.problem.x0 + 0.1
    errors = {}
    for sigma in (1e-2, 1e-3):
        found = penalty_hypergradient(case.problem, x, sigma, richardson=richardson, tol=1e-14)
        assert found.converged
        assert found.approximate
        errors[sigma] = relative(found.grad, case.hypergradient(x))
    assert abs(slope(errors) - order) <= 0.1 * order
    assert errors[1e-3] < 0.01


def test_inner_solver_may_be_passed_in():
    """Oracle: the own descent, and the closed form of y_s that the passed solver uses."""
    case = sharp()
    x = case.problem.x0 + 0.1

    def solver(x, s):
        def gradient(y):
            total = case.problem.lower(x, y, None) + s * case.problem.upper(x, y, None)
            return torch.autograd.grad(total, y)[0]

        zero = torch.zeros(8, dtype=torch.float64)
        base = gradient(zero.clone().requires_grad_())
        matrix = torch.stack([gradient(e.requires_grad_()) - base for e in torch.eye(8, dtype=torch.float64)])
        return torch.linalg.solve(matrix, -base)

    closed = penalty_hypergradient(case.problem, x, 1e-2, lower_solver=solver)
    own = penalty_hypergradient(case.problem, x, 1e-2, tol=1e-14)
    assert closed.converged
    assert closed.num_steps == 0
    torch.testing.assert_close(closed.grad, own.grad, rtol=1e-8, atol=1e-9)


def test_quotient_of_the_copies_is_the_adjoint():
    """Oracle: v of g_yy v = f_y by dense factorisation; and the residual is that of this system."""
    case = sharp()
    x = case.problem.x0 + 0.1
    found = penalty_hypergradient(case.problem, x, 1e-4, tol=1e-14)
    exact = hypergradient(case.problem, x, case.lower_solution(x), method="dense")
    assert relative(found.adjoint, exact.adjoint) < 1e-5
    assert found.residual < 1e-9
    assert found.lower_residual < 1e-13


def test_hypergradient_offers_it():
    """Oracle: the direct call."""
    case = sharp()
    x = case.problem.x0
    direct = penalty_hypergradient(case.problem, x, 1e-2, generator=seeded(0))
    found = hypergradient(case.problem, x, method="penalty", sigma=1e-2, generator=seeded(0))
    torch.testing.assert_close(found.grad, direct.grad, rtol=0, atol=0)
    assert found.method == "penalty"
    with pytest.raises(ArgumentError, match="sigma"):
        hypergradient(case.problem, x, method="penalty")
    with pytest.raises(ArgumentError, match="sigma"):
        hypergradient(case.problem, x, sigma=0.1)


def test_warm_starts_save_steps():
    """Oracle: the count from the problem's start."""
    case = CASES["many solutions"]()
    cold = penalty_hypergradient(case.problem, case.problem.x0, 1e-2, richardson=False)
    warm = penalty_hypergradient(
        case.problem, case.problem.x0, 1e-2, richardson=False, y0=cold.y, z0=case.lower_solution(case.problem.x0)
    )
    assert warm.num_steps < cold.num_steps / 10
    assert relative(warm.grad, cold.grad) < 1e-7


def test_single_precision_and_trees():
    """Oracle: the same problem in double precision, as one vector."""
    case = sharp()
    exact = case.hypergradient(case.problem.x0)
    problem = BilevelProblem(
        upper=lambda x, y, batch: case.problem.upper(x["x"].double(), torch.cat(y).double(), None),
        lower=lambda x, y, batch: case.problem.lower(x["x"].double(), torch.cat(y).double(), None),
        x0={"x": torch.zeros(5)},
        y0=[torch.zeros(3), torch.zeros(5)],
    )
    found = penalty_hypergradient(problem, problem.x0, 2e-2, tol=1e-6)
    assert found.grad["x"].dtype == torch.float32
    assert relative(found.grad["x"].double(), exact) < 0.05
    with pytest.warns(UserWarning, match="too fine"):
        penalty_hypergradient(problem, problem.x0, 1e-4, max_steps=1)


def test_curvature_estimate():
    """Oracle: the largest eigenvalue; the estimate is twenty per cent above it, and 1 without curvature."""
    values = torch.linspace(0.1, 3, 20, dtype=torch.float64)
    start = torch.zeros(20, dtype=torch.float64)
    found = gradient_lipschitz(lambda y: values * y, start, seeded(0))
    assert 0.9 * 3 <= found <= 1.2 * 3 + 1e-9
    assert gradient_lipschitz(torch.ones_like, start, seeded(0)) == 1


def test_curvature_that_grows_away_from_the_start():
    """Oracle: the minimiser 2 of (y - 2)⁴/4 + (y - 2)²/2 and its proximal point, where a first step is too long."""
    problem = BilevelProblem(
        upper=lambda x, y, batch: y.sum(),
        lower=lambda x, y, batch: ((1 + (y - 2) ** 2).square() / 4).sum(),
        x0=torch.zeros(1, dtype=torch.float64),
        y0=torch.full((1,), 2.01, dtype=torch.float64),
    )
    start = torch.full((1,), 2.001, dtype=torch.float64)
    found = minimise_penalty(Oracle(problem), problem.x0, start, 0.0, step_size=5.0, tol=1e-12)
    assert abs(float(found.y) - 2) < 1e-9
    center = torch.full((1,), 3.0, dtype=torch.float64)
    near = minimise_penalty(Oracle(problem), problem.x0, center, 0.0, center=center, rho=0.5, tol=1e-12).y
    stationary = (1 + (near - 2) ** 2) * (near - 2) + (near - 3) / 0.5
    assert abs(float(stationary)) < 1e-9


def test_unbounded_sums_are_found_out():
    """Oracle: f = -‖y‖² outweighs g = 0.1 ‖y‖² at s = 1 and not at s = 0.01; a box bounds it again."""
    options = {
        "upper": lambda x, y, batch: -y.square().sum() + (x * y).sum(),
        "lower": lambda x, y, batch: 0.1 * (y - x).square().sum(),
        "x0": torch.ones(2, dtype=torch.float64),
        "y0": torch.zeros(2, dtype=torch.float64),
    }
    problem = BilevelProblem(**options)
    with pytest.raises(NumericalError, match="unbounded"):
        penalty_hypergradient(problem, problem.x0, 1.0, max_steps=200)
    assert penalty_hypergradient(problem, problem.x0, 0.01).converged
    boxed = BilevelProblem(**options, project_y=Box(-1.0, 1.0))
    assert penalty_hypergradient(boxed, boxed.x0, 1.0).converged


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    problem = sharp().problem
    x = problem.x0
    with pytest.raises(ArgumentError, match="sigma"):
        penalty_hypergradient(problem, x, 0.0)
    with pytest.raises(ArgumentError, match="tol"):
        penalty_hypergradient(problem, x, 0.1, tol=-1.0)
    with pytest.raises(ArgumentError, match="max_steps"):
        penalty_hypergradient(problem, x, 0.1, max_steps=0)
    with pytest.raises(ArgumentError, match="step_size"):
        penalty_hypergradient(problem, x, 0.1, step_size=-1.0)
    with pytest.raises(ShapeError):
        penalty_hypergradient(problem, x[:2], 0.1)
    for name in ("constraint", "equality"):
        with pytest.raises(ArgumentError, match=name):
            penalty_hypergradient(replace(problem, **{name: lambda x, y: y[:1]}), x, 0.1)
    with pytest.raises(ArgumentError, match="project_joint"):
        penalty_hypergradient(replace(problem, project_joint=lambda x, y: (x, y)), x, 0.1)
