from dataclasses import replace

import pytest
import torch

from hesse.bilevel import BilevelProblem, degenerate_hypergradient, problems
from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import Ball, Box
from tests.bilevel.cases import central_differences, relative

CASES = {
    "full rank": lambda: problems.quadratic(5, 8, seed=1),
    "many solutions": lambda: problems.quadratic(5, 8, rank=5, seed=1),
    "box": lambda: problems.box_quadratic(5, 8, seed=1),
    "inequality that binds": lambda: problems.inequality_toy(5),
    "idle inequality": lambda: problems.inequality_toy(5, bound=5.0),
    "equality, many solutions": lambda: problems.equality_toy(4),
}


@pytest.mark.parametrize("name", list(CASES))
def test_closed_forms(name):
    """Oracle: the closed form, to 1e-8."""
    case = CASES[name]()
    x = case.problem.x0 + 0.1
    found = degenerate_hypergradient(case.problem, x, case.lower_solution(x))
    assert found.converged
    assert not found.approximate
    assert found.lower_residual < 1e-9
    assert relative(found.grad, case.hypergradient(x)) < 1e-8


def test_another_lower_solution_is_found_out():
    """Oracle: the shortest lower solution is not the one that f likes best; its gradient is wrong and says so."""
    case = CASES["many solutions"]()
    x = case.problem.x0 + 0.1
    hessian = torch.func.hessian(lambda y: case.problem.lower(x, y, None))(case.problem.y0)
    shortest = torch.linalg.pinv(hessian, rtol=1e-10) @ (hessian @ case.lower_solution(x))
    found = degenerate_hypergradient(case.problem, x, shortest)
    assert found.lower_residual < 1e-12
    assert not found.converged
    assert found.residual > 1e-2
    assert relative(found.grad, case.hypergradient(x)) > 1e-3


def test_constraint_that_moves_with_x():
    """Oracle: central differences of Φ over y* = the nearest point of {aᵀy <= ‖x‖²} to x + 1, by its formula."""
    a = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)

    def solution(x):
        target = x + 1
        return target - ((a @ target - x.square().sum()) / (a @ a)).clamp_min(0) * a

    def upper(x, y, batch=None):
        return (y.exp()).sum() + (x * y).sum()

    problem = BilevelProblem(
        upper=upper,
        lower=lambda x, y, batch: (y - x - 1).square().sum() / 2,
        x0=torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64),
        y0=torch.zeros(3, dtype=torch.float64),
        constraint=lambda x, y: torch.stack([a @ y - x.square().sum(), y.sum() - 100]),
    )
    expected = central_differences(lambda x: upper(x, solution(x)), problem.x0)
    for active in (None, torch.tensor([True, False])):
        found = degenerate_hypergradient(problem, problem.x0, solution(problem.x0), active=active)
        assert relative(found.grad, expected) < 1e-8


def test_box_over_a_tree_and_a_given_active_set():
    """Oracle: the same problem as one vector."""
    case = problems.box_quadratic(5, 8, seed=1)
    x = case.problem.x0 + 0.1
    y = case.lower_solution(x)
    held = y.abs() >= 0.5
    assert 0 < int(held.sum()) < 8
    split = replace(
        case.problem,
        upper=lambda x, y, batch: case.problem.upper(x, torch.cat(y), batch),
        lower=lambda x, y, batch: case.problem.lower(x, torch.cat(y), batch),
        y0=[torch.zeros(3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)],
        project_y=lambda y: [leaf.clamp(-0.5, 0.5) for leaf in y],
        lower_solution=None,
    )
    found = degenerate_hypergradient(split, x, [y[:3], y[3:]], active=[held[:3], held[3:]])
    assert relative(found.grad, case.hypergradient(x)) < 1e-8
    assert relative(degenerate_hypergradient(case.problem, x, y, active=held).grad, found.grad) < 1e-12


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    plain, box, toy = (CASES[name]().problem for name in ("full rank", "box", "inequality that binds"))
    with pytest.raises(ArgumentError, match="rtol"):
        degenerate_hypergradient(plain, plain.x0, plain.y0, rtol=-1.0)
    with pytest.raises(ArgumentError, match="no set"):
        degenerate_hypergradient(plain, plain.x0, plain.y0, active=plain.y0 > 0)
    with pytest.raises(ShapeError, match="booleans"):
        degenerate_hypergradient(box, box.x0, box.y0, active=box.y0)
    with pytest.raises(ShapeError, match="booleans"):
        degenerate_hypergradient(toy, toy.x0, toy.y0, active=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="no Box"):
        degenerate_hypergradient(replace(plain, project_y=Ball(1.0)), plain.x0, plain.y0)
    with pytest.raises(ArgumentError, match="project_joint"):
        degenerate_hypergradient(replace(plain, project_joint=lambda x, y: (x, y)), plain.x0, plain.y0)
    with pytest.raises(ArgumentError, match="once"):
        degenerate_hypergradient(replace(toy, project_y=Box(-1.0, 1.0)), toy.x0, toy.y0)
