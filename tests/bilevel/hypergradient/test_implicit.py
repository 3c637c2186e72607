import dataclasses
import math

import pytest
import torch
from torch import nn

from hesse.bilevel import BilevelProblem, hypergradient, problems, tasks, unrolled_hypergradient
from hesse.curvature import eigendecompose
from hesse.errors import ArgumentError, ConvergenceError, NumericalError, ShapeError
from hesse.linalg import EighKronecker, InverseOperator, as_linear_operator
from tests.bilevel.cases import EXACT, relative, seeded, signs, tables

TIGHT = {"dense": {}, "cg": {"rtol": 1e-13}, "minres": {"rtol": 1e-13}}


@pytest.mark.parametrize("method", list(TIGHT))
@pytest.mark.parametrize("name", list(EXACT))
def test_exact_methods_match_the_closed_form(name, method):
    """Oracle: the closed form at y*(x), to 1e-9 relative in float64."""
    case = EXACT[name]()
    x = case.problem.x0 + 0.1
    found = hypergradient(case.problem, x, case.lower_solution(x), method=method, **TIGHT[method])
    assert relative(found.grad, case.hypergradient(x)) < 1e-9
    assert found.converged
    assert not found.approximate


@pytest.mark.parametrize("name", list(EXACT))
def test_lower_level_is_solved_where_no_y_is_given(name):
    """Oracle: the closed form; the lower residual is the tolerance asked for."""
    case = EXACT[name]()
    x = case.problem.x0 + 0.1
    found = hypergradient(case.problem, x, lower_tol=1e-11, rtol=1e-12).require()
    assert found.lower_residual <= 1.01e-11
    assert relative(found.grad, case.hypergradient(x)) < 1e-8


@pytest.mark.parametrize("name", ["quadratic", "ridge", "multi_ridge", "logistic"])
def test_nystrom_at_full_rank_errs_by_the_damping(name):
    """Oracle: the closed form; error of order damping, and <= 1e-4 at a millionth of the smallest eigenvalue."""
    case = EXACT[name]()
    x = case.problem.x0 + 0.1
    y = case.lower_solution(x)
    H = torch.func.hessian(lambda u: case.problem.lower(x, u.reshape(y.shape), None))(y.flatten())
    smallest = float(torch.linalg.eigvalsh(H)[0])
    errors = []
    for factor in (1e-3, 1e-4, 1e-6):
        found = hypergradient(
            case.problem, x, y, method="nystrom", damping=factor * smallest, rank=y.numel(), generator=seeded(0)
        )
        errors.append(relative(found.grad, case.hypergradient(x)))
        assert found.approximate
    assert errors[2] <= 1e-4
    assert 8 < errors[0] / errors[1] < 12


def slope(errors, start, stop):
    return (math.log(errors[stop]) - math.log(errors[start])) / (stop - start)


@pytest.mark.parametrize("method", ["neumann", "unroll"])
def test_series_fall_at_the_predicted_rate(method):
    """Oracle: log(1 - a μ) a step, within 10 %, on a quadratic whose error lies along the last eigenvector."""
    case = problems.quadratic(7, 11, seed=3)
    x = case.problem.x0 + 0.1
    a, counts = 0.9, (80, 100, 120, 140)  # largest eigenvalue 1, smallest 0.1
    errors = {}
    for steps in counts:  # from y*, where the unrolled loop rests, its gradient is the series too
        found = hypergradient(
            case.problem, x, case.lower_solution(x), method=method, max_steps=steps, step_size=a, rtol=0.0
        )
        errors[steps] = relative(found.grad, case.hypergradient(x))
    assert abs(slope(errors, 80, 140) / math.log(1 - a * 0.1) - 1) < 0.1


def test_unrolled_gradient_is_autograds():
    """Oracle: the loop written out and differentiated by autograd, and cut off for the truncated one."""
    case = EXACT["logistic"]()
    x, y, a = case.problem.x0.clone().requires_grad_(), case.problem.y0, 0.3
    for truncation in (None, 3):
        state = y.clone().requires_grad_()
        for step in range(8):
            if truncation is not None and step == 8 - truncation:
                state = state.detach().requires_grad_()
            loss = case.problem.lower(x, state, None)
            state = state - a * torch.autograd.grad(loss, state, create_graph=True)[0]
        (expected,) = torch.autograd.grad(case.problem.upper(x, state, None), x)
        found = unrolled_hypergradient(case.problem, x, num_steps=8, step_size=a, truncation=truncation)
        torch.testing.assert_close(found.grad, expected, rtol=1e-12, atol=1e-15)
        assert found.counts.lower_gradients == 8 + (truncation or 8) + 1


def test_given_inverse_from_kronecker_factors():
    """Oracle: dense. For a linear map under squared error K-FAC's A ⊗ I is g_yy, and its inverse the exact answer."""
    g = seeded(0)
    X, T = torch.randn(40, 5, dtype=torch.float64, generator=g), torch.randn(40, 3, dtype=torch.float64, generator=g)
    problem = BilevelProblem(
        upper=lambda x, y, batch: (X @ y.T - 2 * T).square().mean(),
        lower=lambda x, y, batch: (X @ y.T - T * x).square().sum() / 80,
        x0=torch.ones(3, dtype=torch.float64),
        y0=torch.zeros(3, 5, dtype=torch.float64),
    )
    inputs = eigendecompose(X.T @ X, 40, name="inputs")
    outputs = torch.eye(3, dtype=torch.float64)
    factors = EighKronecker((outputs, inputs.vectors), inputs.values.expand(3, 5).contiguous())
    inverse = InverseOperator(factors)
    given = hypergradient(problem, problem.x0, method="inverse", preconditioner=inverse)
    exact = hypergradient(problem, problem.x0, method="dense")
    assert relative(given.grad, exact.grad) < 1e-9
    assert given.approximate
    helped = hypergradient(problem, problem.x0, given.y, method="cg", preconditioner=inverse)
    assert helped.num_steps <= 2


def test_rank_deficient_lower_level_by_minres():
    """Oracle: the closed form with the pseudo-inverse, at the lower solution that f likes best."""
    case = problems.quadratic(5, 8, rank=4)
    x = case.problem.x0 + 0.1
    found = hypergradient(case.problem, x, case.lower_solution(x), method="minres", rtol=1e-12)
    assert relative(found.grad, case.hypergradient(x)) < 1e-9


def test_negative_curvature_is_named():
    """Oracle: a lower level whose Hessian is diag(1, -2)."""
    problem = BilevelProblem(
        upper=lambda x, y, batch: y.sum(),
        lower=lambda x, y, batch: (y[0] ** 2 - 2 * y[1] ** 2) / 2 + x @ y,
        x0=torch.ones(2, dtype=torch.float64),
        y0=torch.zeros(2, dtype=torch.float64),
    )
    with pytest.raises(NumericalError, match=r"curvature -\d.*minres"):
        hypergradient(problem, problem.x0, problem.y0)
    found = hypergradient(problem, problem.x0, problem.y0, method="minres")
    torch.testing.assert_close(found.grad, torch.tensor([-1.0, 0.5], dtype=torch.float64), rtol=1e-7, atol=0)


def test_warm_start_and_batches():
    """Oracle: a solved start needs no step; a batch of all rows is the whole."""
    case = EXACT["finite_sum"]()
    x = case.problem.x0 + 0.1
    cold = hypergradient(case.problem, x, rtol=1e-9)
    warm = hypergradient(case.problem, x, cold.y, v0=cold.adjoint, rtol=1e-8)
    assert warm.num_steps == 0
    upper, lower = case.problem.full_batches()
    whole = hypergradient(case.problem, x, cold.y, upper_batch=upper, lower_batch=lower, rtol=1e-9)
    torch.testing.assert_close(whole.grad, cold.grad, rtol=1e-7, atol=1e-10)


def test_modules_and_trees_as_variables():
    """Oracle: central differences of the value, solved anew at each end; every variable an ordinary module."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()
    head = nn.Linear(3, 2).double()
    X, t = torch.randn(20, 4).double(), torch.randn(20, 2).double()

    def lower(features, head_call, batch):
        penalty = head_call(torch.eye(3).double()).square().sum() + head_call(torch.zeros(1, 3).double()).square().sum()
        return (head_call(features(X)) - t).square().mean() + 0.05 * penalty

    problem = BilevelProblem.from_modules(
        encoder, head, lambda f, h, batch: (h(f(X.flip(0))) - t).square().mean(), lower
    )
    found = hypergradient(problem, problem.x0, rtol=1e-12).require()
    flat = problem.x_layout.flatten(problem.x0)
    direction = torch.randn(len(flat), generator=seeded(3), dtype=torch.float64)

    def value(step):
        x = problem.x_layout.unflatten(flat + step * direction)
        return problem.upper(x, hypergradient(problem, x).y, None)

    expected = float(value(1e-5) - value(-1e-5)) / 2e-5
    assert abs(float(problem.x_layout.flatten(found.grad) @ direction) / expected - 1) < 1e-6
    assert set(found.grad) == {"0.weight", "0.bias"}


def test_single_precision():
    """Oracle: float64, to the precision of float32."""
    double = EXACT["ridge"]()
    single = problems.ridge(*(part.float() for part in tables()))
    found = hypergradient(single.problem, single.problem.x0, rtol=1e-5, lower_tol=1e-5)
    assert found.grad.dtype == torch.float32
    assert relative(found.grad.double(), double.hypergradient(double.problem.x0)) < 1e-3


def test_given_curvature_takes_the_place_of_the_hessian():
    """Oracle: dense. A ridge's Gauss-Newton matrix is its Hessian; one of another order is refused."""
    case = EXACT["ridge"]()
    p = case.problem
    matrix = torch.func.hessian(lambda y: p.lower(p.x0, y, None))(p.y0)
    given = dataclasses.replace(p, lower_curvature=lambda x, y, batch: as_linear_operator(matrix, is_psd=True))
    found = hypergradient(given, p.x0, case.lower_solution(p.x0), rtol=1e-12)
    assert relative(found.grad, case.hypergradient(p.x0)) < 1e-9
    wrong = dataclasses.replace(p, lower_curvature=lambda x, y, batch: as_linear_operator(matrix[1:, 1:]))
    with pytest.raises(ShapeError, match="order 12"):
        hypergradient(wrong, p.x0, p.y0)


def test_learned_representation():
    """Oracle: central differences of the value along a random direction, the head solved anew at each end."""
    torch.manual_seed(0)
    X, t = torch.randn(30, 4).double(), torch.randint(3, (30,))
    encoder, head = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double(), nn.Linear(3, 3).double()
    problem = tasks.hyper_representation(encoder, head, (X[:20], t[:20]), (X[20:], t[20:]), regularization=1e-2)
    flat = problem.x_layout.flatten(problem.x0)
    direction = torch.randn(len(flat), generator=seeded(1), dtype=torch.float64)

    def value(step):
        x = problem.x_layout.unflatten(flat + step * direction)
        return problem.upper(x, hypergradient(problem, x).y, None)

    slope = float(value(1e-5) - value(-1e-5)) / 2e-5
    found = problem.x_layout.flatten(hypergradient(problem, problem.x0, rtol=1e-12).grad)
    assert abs(float(found @ direction) / slope - 1) < 1e-6


def test_failure_is_a_value_then_an_error():
    """Oracle: one step of ten is not enough."""
    case = EXACT["quadratic"]()
    found = hypergradient(case.problem, case.problem.x0 + 1, max_steps=1)
    assert not found.converged
    with pytest.raises(ConvergenceError, match="max_steps"):
        found.require()


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    case = EXACT["quadratic"]()
    p, x = case.problem, case.problem.x0
    with pytest.raises(ArgumentError, match="method"):
        hypergradient(p, x, method="magic")
    with pytest.raises(ArgumentError, match="damping"):
        hypergradient(p, x, method="nystrom")
    with pytest.raises(ArgumentError, match="preconditioner"):
        hypergradient(p, x, method="inverse")
    with pytest.raises(ArgumentError, match="rank"):
        hypergradient(p, x, rank=3)
    with pytest.raises(ArgumentError, match="rtol"):
        hypergradient(p, x, rtol=-1.0)
    with pytest.raises(ArgumentError, match="step_size"):
        unrolled_hypergradient(p, x, num_steps=2, step_size=0.0)
    with pytest.raises(ShapeError, match="x: expected"):
        hypergradient(p, x[:-1])
    logistic = problems.logistic(*signs())
    with pytest.raises(ShapeError, match="float64"):
        hypergradient(logistic.problem, logistic.problem.x0.float())
