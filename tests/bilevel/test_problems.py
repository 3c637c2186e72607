import pytest
import torch

from hesse.bilevel import problems
from hesse.errors import ArgumentError, ShapeError
from tests.bilevel.cases import EXACT, central_differences, relative, seeded, tables

CONSTRAINED = {
    "inequality": lambda: problems.inequality_toy(6),
    "idle inequality": lambda: problems.inequality_toy(6, bound=20.0),
    "equality": lambda: problems.equality_toy(5),
    "box": lambda: problems.box_quadratic(4, 9),
    "rank deficient": lambda: problems.quadratic(5, 8, rank=4),
}


@pytest.mark.parametrize("name", [*EXACT, *CONSTRAINED])
def test_hypergradient_is_the_derivative_of_the_value(name):
    """Oracle: central differences of Φ."""
    case = {**EXACT, **CONSTRAINED}[name]()
    start = case.problem.x0
    x = start + 0.5 * torch.randn(len(start), dtype=torch.float64, generator=seeded(1))
    assert relative(case.hypergradient(x), central_differences(case.value, x)) < 1e-6


@pytest.mark.parametrize("name", [*EXACT, *CONSTRAINED])
def test_gradient_vanishes_at_the_solution(name):
    """Oracle: the first-order condition, where the solution is known."""
    case = {**EXACT, **CONSTRAINED}[name]()
    if case.solution is not None:
        assert float(case.hypergradient(case.solution).norm()) < 1e-10


@pytest.mark.parametrize("make", [problems.inequality_toy, problems.equality_toy])
def test_lower_solution_is_feasible(make):
    """Oracle: the constraint itself."""
    case = make(6)
    x = torch.randn(6, dtype=torch.float64, generator=seeded(0)) + 2
    y = case.lower_solution(x)
    if case.problem.equality is not None:
        assert float(case.problem.equality(x, y).abs().max()) < 1e-12
    else:
        assert float(case.problem.constraint(x, y).max()) < 1e-12


def test_best_of_many_lower_solutions():
    """Oracle: f along the null space of H has its least value at the solution picked."""
    case = problems.quadratic(5, 8, rank=4)
    x = torch.randn(5, dtype=torch.float64, generator=seeded(2))
    y = case.lower_solution(x).requires_grad_()
    (slope,) = torch.autograd.grad(case.problem.upper(x, y, None), y)
    H = torch.func.hessian(lambda u: case.problem.lower(x, u, None))(y.detach())
    null = torch.linalg.eigh(H).eigenvectors[:, :4]
    assert float((null.T @ slope).norm()) < 1e-10


def test_samples_average_to_the_whole():
    """Oracle: the mean of the losses over all single samples."""
    case = problems.quadratic(3, 4, num_samples=12, batch_size=3)
    p, x, y = case.problem, torch.ones(3, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for loss, sampler in ((p.lower, p.lower_sampler), (p.upper, p.upper_sampler)):
        single = torch.stack([loss(x, y, sampler.take(torch.tensor([i]))) for i in range(12)]).mean()
        torch.testing.assert_close(single, loss(x, y, sampler.full()), rtol=1e-12, atol=0)
        torch.testing.assert_close(single, loss(x, y, None), rtol=1e-12, atol=0)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    X, t, X_valid, t_valid = tables()
    with pytest.raises(ArgumentError, match="rank"):
        problems.quadratic(3, 4, rank=5)
    with pytest.raises(ShapeError, match="ridge"):
        problems.ridge(X, t[:-1], X_valid, t_valid)
    with pytest.raises(ArgumentError, match="-1 and 1"):
        problems.logistic(X, t, X_valid, t_valid)
    with pytest.raises(ArgumentError, match="radius"):
        problems.box_quadratic(2, 2, radius=0.0)
