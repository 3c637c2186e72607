from itertools import combinations

import pytest
import torch

from hesse.bilevel import BilevelProblem, problems, proximal_lagrangian_value
from hesse.bilevel.lv_hba.lagrangian import LowerLagrangian, solve_constrained_lower
from hesse.bilevel.oracle import Oracle
from hesse.errors import ArgumentError, ConvergenceError, ShapeError
from tests.bilevel.cases import central_differences, relative, seeded

N, P = 5, 3


def affine_problem(seed=0, equality=False):
    """g = yᵀQy/2 + (q + Rx)ᵀy subject to Ay + Bx <= b; and its exact solution by trying every active set."""
    g = seeded(seed)
    Q, R, A, B = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((N, N), (N, N), (P, N), (P, N)))
    q, b = torch.randn(N, dtype=torch.float64, generator=g), torch.rand(P, dtype=torch.float64, generator=g)
    Q = Q @ Q.T / N + torch.eye(N, dtype=torch.float64)

    def rows(x, y):
        return A @ y + B @ x - b

    def exact(x):
        for size in range(P + 1):
            for active in combinations(range(P), size):
                C = A[list(active)]
                system = torch.cat([torch.cat([Q, C.T], 1), torch.cat([C, torch.zeros(size, size)], 1)])
                both = torch.linalg.solve(system, torch.cat([-q - R @ x, (b - B @ x)[list(active)]]))
                y, lam = both[:N], torch.zeros(P, dtype=torch.float64)
                lam[list(active)] = both[N:]
                if float(rows(x, y).max()) < 1e-9 and float(lam.min()) > -1e-9:
                    return y, lam
        raise AssertionError

    problem = BilevelProblem(
        upper=lambda x, y, batch: y.sum(),
        lower=lambda x, y, batch: y @ Q @ y / 2 + (q + R @ x) @ y,
        x0=torch.zeros(N, dtype=torch.float64),
        y0=torch.zeros(N, dtype=torch.float64),
        constraint=None if equality else rows,
        equality=rows if equality else None,
    )
    return problem, exact


def point(seed=1):
    g = seeded(seed)
    x, y, z = (torch.randn(s, dtype=torch.float64, generator=g) for s in (N, N, P))
    return x, y, z.abs()


@pytest.mark.parametrize("equality", [False, True])
def test_gradients_of_v(equality):
    """Oracle: central differences of v, and autograd of the value handed out."""
    problem, _ = affine_problem(equality=equality)
    x, y, z = point()
    options = {"gamma": (0.7, 1.6), "tol": 1e-13}
    found = proximal_lagrangian_value(problem, x, y, z, **options)

    def value(u, v, w):
        return proximal_lagrangian_value(problem, u, v, w, **options).value

    assert relative(found.grad_x, central_differences(lambda u: value(u, y, z), x)) < 1e-6
    assert relative(found.grad_y, central_differences(lambda u: value(x, u, z), y)) < 1e-6
    assert relative(found.grad_z, central_differences(lambda u: value(x, y, u), z)) < 1e-6
    leaves = [t.clone().requires_grad_() for t in (x, y, z)]
    grads = torch.autograd.grad(proximal_lagrangian_value(problem, *leaves, **options).value, leaves)
    for own, expected in zip(grads, (found.grad_x, found.grad_y, found.grad_z), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


def test_gap_is_never_negative_and_vanishes_at_solutions():
    """Oracle: the inequality v <= g on feasible points, and a solution found by trying every active set."""
    problem, exact = affine_problem()
    for seed in range(10):
        x, _, z = point(seed)
        y, lam = exact(x)
        at_solution = problem.lower(x, y, None) - proximal_lagrangian_value(problem, x, y, lam, tol=1e-12).value
        assert abs(float(at_solution)) < 1e-10
        A = torch.func.jacrev(lambda u, x=x: problem.constraint(x, u))(y)
        moved = y - 0.3 * torch.linalg.lstsq(A, z + 0.1).solution  # every row falls
        assert float(problem.constraint(x, moved).max()) < 1e-9
        assert float(problem.lower(x, moved, None) - proximal_lagrangian_value(problem, x, moved, z).value) > 1e-6


def test_lower_level_is_solved():
    """Oracle: a solution and multipliers found by trying every active set; scaling rows changes neither."""
    problem, exact = affine_problem()
    for scale_rows in (False, True):
        x, y, z = point(3)
        lagrangian = LowerLagrangian(Oracle(problem), x, y, scale_rows=scale_rows)
        found = solve_constrained_lower(lagrangian, x, y, z, tol=1e-11, max_steps=20_000)
        expected, multipliers = exact(x)
        assert found.converged
        torch.testing.assert_close(found.theta, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.lam * lagrangian.scale, multipliers, rtol=0, atol=1e-9)


def test_rows_are_scaled_to_unit_gradients():
    """Oracle: the Jacobian by `torch.func`; violations stay in the user's units."""
    problem, _ = affine_problem()
    x, y, _ = point()
    lagrangian = LowerLagrangian(Oracle(problem), x, y)
    both = torch.func.jacrev(lambda u: lagrangian.rows(u[:N], u[N:]))(torch.cat([x, y]))
    torch.testing.assert_close(both.norm(dim=1), torch.ones(P, dtype=torch.float64))
    assert lagrangian.violation(x, y) == pytest.approx(float(problem.constraint(x, y).clamp_min(0).max()))


def test_field_and_gradient_x():
    """Oracle: autograd of the function whose saddle point is sought; counts are a gradient and a product each."""
    problem, _ = affine_problem()
    oracle = Oracle(problem)
    x, y, z = point()
    theta, lam, gamma = y + 1, z + 1, (0.7, 1.6)
    lagrangian = LowerLagrangian(oracle, x, y, scale_rows=False)
    d_theta, d_lam = lagrangian.field(x, y, z, theta, lam, gamma)
    d_x = lagrangian.gradient_x(x, theta, lam)
    assert (oracle.counts.lower_gradients, oracle.counts.constraint_products, oracle.counts.calls) == (2, 2, 4)
    u, v, w = (t.clone().requires_grad_() for t in (x, theta, lam))
    expected = torch.autograd.grad(lagrangian.proximal(u, y, z, v, w, gamma), (u, v, w))
    torch.testing.assert_close(d_x, expected[0])
    torch.testing.assert_close(d_theta, expected[1])
    torch.testing.assert_close(d_lam, -expected[2])


def test_without_constraints_it_is_the_moreau_envelope():
    """Oracle: the envelope of a quadratic in closed form."""
    case = problems.quadratic(4, 6, seed=2)
    x, y = case.problem.x0 + 1, case.problem.y0 + 1
    found = proximal_lagrangian_value(case.problem, x, y, y.new_zeros(0), gamma=(0.5, 1.0), tol=1e-12)
    hessian = torch.func.hessian(lambda u: case.problem.lower(x, u, None))(y)
    slope = torch.func.grad(lambda u: case.problem.lower(x, u, None))(y)
    step = torch.linalg.solve(hessian + 2 * torch.eye(6, dtype=torch.float64), slope)
    torch.testing.assert_close(found.theta, y - step, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.value, case.problem.lower(x, y, None) - slope @ step / 2, rtol=1e-10, atol=1e-10)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    problem, _ = affine_problem()
    x, y, z = point()
    with pytest.raises(ArgumentError, match="gamma"):
        proximal_lagrangian_value(problem, x, y, z, gamma=(0.0, 1.0))
    with pytest.raises(ShapeError, match="z of shape"):
        proximal_lagrangian_value(problem, x, y, z[:1])
    with pytest.raises(ConvergenceError, match="after 3 steps"):
        proximal_lagrangian_value(problem, x, y, z, max_steps=3)

    def with_rows(constraint):
        return Oracle(BilevelProblem(upper=problem.upper, lower=problem.lower, x0=x, y0=y, constraint=constraint))

    with pytest.raises(ArgumentError, match="row 0"):
        LowerLagrangian(with_rows(lambda u, v: 0 * v[:1] - 1), x, y)
    with pytest.raises(ArgumentError, match="row 0"):
        LowerLagrangian(with_rows(lambda u, v: torch.ones(1, dtype=torch.float64)), x, y)
    with pytest.raises(ShapeError, match="vector of rows"):
        LowerLagrangian(with_rows(lambda u, v: v.sum()), x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_far_from_the_origin_rounding_ends_the_search(size, dtype):
    """Oracle: the solution in closed form, x moved along (1, ..., 1); no tolerance below rounding is waited for."""
    x = size * torch.linspace(1, 2, 4, dtype=dtype)
    problem = BilevelProblem(
        upper=lambda x, y, batch: y.sum(),
        lower=lambda x, y, batch: (y - x).square().sum() / 2,
        x0=x,
        y0=torch.zeros(4, dtype=dtype),
        equality=lambda x, y: y.sum().reshape(1) - size,
    )
    multiplier = (x.sum() - size) / 4
    found = proximal_lagrangian_value(problem, x, x - multiplier, multiplier.reshape(1), r=1e9, tol=1e-30)
    assert found.num_steps < 2000
    assert relative(found.theta, x - multiplier) < 100 * torch.finfo(dtype).eps
    assert relative(found.lam, multiplier.reshape(1)) < 100 * torch.finfo(dtype).eps
