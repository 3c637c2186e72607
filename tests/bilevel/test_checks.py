import torch

from hesse.bilevel import BilevelProblem, check_problem, problems
from hesse.linalg import Ball
from tests.bilevel.cases import seeded


def test_sound_problem_passes():
    """Oracle: the spectrum the quadratic was built with."""
    case = problems.quadratic(4, 9, condition=20)
    report = check_problem(case.problem, generator=seeded(0))
    assert max(report.upper_gradient_error, report.lower_gradient_error) < 1e-7
    assert abs(report.smallest_eigenvalue / 0.05 - 1) < 1e-8
    assert abs(report.largest_eigenvalue - 1) < 1e-8
    assert report.is_strongly_convex
    assert report.projection_error == 0


def test_many_lower_solutions_are_seen():
    """Oracle: a Hessian of rank 4 of 9."""
    report = check_problem(problems.quadratic(4, 9, rank=4).problem, generator=seeded(0))
    assert not report.is_strongly_convex


def test_faults_are_seen():
    """Oracle: a loss that detaches, and a map that is no projection."""
    problem = BilevelProblem(
        upper=lambda x, y, batch: (x * x.detach()).sum() + y.sum(),
        lower=lambda x, y, batch: ((y - x) ** 2).sum(),
        x0=torch.ones(3, dtype=torch.float64),
        y0=torch.zeros(3, dtype=torch.float64),
        project_x=lambda x: x / 2,
        project_y=Ball(1.0),
    )
    report = check_problem(problem, generator=seeded(0))
    assert report.upper_gradient_error > 1e-2
    assert report.lower_gradient_error < 1e-7
    assert report.projection_error > 0.1
