import pytest
import torch

from hesse.bilevel import LVHBA, BilevelProblem, Budget, problems, stacked
from hesse.bilevel.lv_hba.lagrangian import LowerLagrangian, solve_saddle
from hesse.bilevel.lv_hba.saddle_steps import lv_steps, saddle_operator
from hesse.bilevel.oracle import Oracle
from hesse.errors import ArgumentError
from hesse.linalg import AffineEquality, Halfspace
from tests.bilevel.cases import relative, seeded

SADDLES = ("jacobi", "optimistic", "extragradient")


@pytest.mark.parametrize("saddle", SADDLES)
def test_many_lower_solutions(saddle):
    """Oracle: the closed form of a lower level that is convex, not strongly; the extrapolated pair is nearer."""
    case = problems.equality_toy(10)
    result = LVHBA(case.problem, saddle=saddle).run(Budget(iterations=1500), trace_every=500)
    certificate = result.extra["certificate"]
    assert relative(result.x, case.solution) < 0.03
    assert relative(result.y, case.lower_solution(case.solution)) < 0.02
    assert float(certificate.multipliers) == pytest.approx(-1, abs=0.01)
    assert relative(certificate.extrapolated[0], case.solution) < relative(result.x, case.solution) / 3
    assert 0 <= certificate.gap < 0.01
    assert certificate.violation < 1e-12


def test_active_and_idle_inequality():
    """Oracle: the closed form with the multiplier 4/5, and 0 where the bound is out of reach."""
    for bound, multiplier in ((None, 0.8), (100.0, 0.0)):
        case = problems.inequality_toy(6, bound=bound)
        result = LVHBA(case.problem).run(Budget(iterations=4000), trace_every=4000)
        certificate = result.extra["certificate"]
        assert relative(result.x, case.solution) < 0.03
        assert float(certificate.multipliers) == pytest.approx(multiplier, abs=1e-3)
        polished = case.lower_solution(result.x)
        assert certificate.polished_residual < 1e-7
        torch.testing.assert_close(certificate.polished_y, polished, rtol=0, atol=1e-6)
        expected = float(case.problem.upper(result.x, polished, None))
        assert certificate.polished_upper_value == pytest.approx(expected, rel=1e-6)


def test_no_constraint():
    """Oracle: the closed form; and with a set for y alone, the first-order condition of the active-set oracle."""
    case = problems.quadratic(5, 7, seed=5, condition=1.5)
    result = LVHBA(case.problem).run(Budget(iterations=4000), trace_every=4000)
    assert relative(result.extra["certificate"].extrapolated[0], case.solution) < 0.01
    boxed = problems.box_quadratic(4, 6)
    result = LVHBA(boxed.problem).run(Budget(iterations=4000), trace_every=4000)
    assert float(result.trace[-1].exact_norm) < 0.05 * float(result.trace[0].exact_norm)
    assert float(result.y.abs().max()) <= 0.5


def test_nonconvex_upper_level():
    """Oracle: y*(x) = x - A⁺(Ax + Hx) of an equality-constrained projection; the upper gradient along x vanishes."""
    g = seeded(0)
    A, H, B = (torch.randn(2, 6, dtype=torch.float64, generator=g) for _ in range(3))
    c, d = (torch.randn(6, dtype=torch.float64, generator=g) for _ in range(2))
    rows = torch.cat([torch.cat([H, A], 1), torch.cat([B, torch.zeros_like(B)], 1)])
    pseudo, null = torch.linalg.pinv(A), torch.eye(6, dtype=torch.float64) - torch.linalg.pinv(B) @ B
    inverse = torch.linalg.pinv(rows)

    def upper(x, y, batch):
        return (c @ x + d @ y).sin() + ((x + y).square().sum() + 1).log()

    problem = BilevelProblem(
        upper=upper,
        lower=lambda x, y, batch: (x - y).square().sum() / 2,
        x0=torch.ones(6, dtype=torch.float64),
        y0=torch.zeros(6, dtype=torch.float64),
        equality=lambda x, y: A @ y + H @ x,
        project_joint=stacked(lambda u: u - inverse @ (rows @ u)),
    )
    result = LVHBA(problem).run(Budget(iterations=6000), trace_every=6000)
    x = result.x.clone().requires_grad_()
    y = x - pseudo @ ((A + H) @ x)
    assert relative(result.extra["certificate"].polished_y, y.detach()) < 1e-5
    first = torch.autograd.grad(upper(x, y, None), x)[0]
    assert float((null @ first).norm()) < 0.05 * float(first.norm())


def test_step_is_the_published_one():
    """Oracle: the formulas written out for a problem with constant Jacobians."""
    case = problems.inequality_toy(4)
    options = {"gamma": (2.0, 3.0), "lr_x": 0.1, "lr_saddle": 0.05, "lr_z": 0.2, "c0": 2.0, "p": 0.3}
    solver = LVHBA(case.problem, scale_rows=False, **options)
    zero = torch.zeros(4, dtype=torch.float64)
    slopes = torch.func.grad(lambda u, v: case.problem.upper(u, v, None), argnums=(0, 1))(zero, zero)
    a, d = -slopes[0], -slopes[1]
    for k in range(4):
        x, y, z, theta, lam = solver.x, solver.y, solver.z, solver.theta, solver.lam
        solver.run(Budget(iterations=k + 1))
        new_theta = theta - 0.05 * (theta - x + lam + (theta - y) / 2)
        new_lam = (lam - 0.05 * (-(theta.sum() - 0.8) + (lam - z) / 3)).clamp_min(0)
        c = 2 * (k + 1) ** 0.3
        d_x = (x - a) / c + (x - y) - (x - new_theta)
        d_y = (y - d) / c + (y - x) - (y - new_theta) / 2
        moved = y - 0.1 * d_y
        torch.testing.assert_close(solver.theta, new_theta)
        torch.testing.assert_close(solver.lam, new_lam)
        torch.testing.assert_close(solver.x, x - 0.1 * d_x)
        torch.testing.assert_close(solver.y, moved - (moved.sum() - 0.8).clamp_min(0) / 4)
        torch.testing.assert_close(solver.z, (z - 0.2 * (z - new_lam) / 3).clamp_min(0))


def test_trace_and_counts():
    """Oracle: the rows themselves; a jacobi step is one upper and three lower gradients and two products."""
    solver = LVHBA(problems.equality_toy(5).problem, lr_x=0.2, lr_saddle=0.2, lr_z=0.3)
    before = solver.oracle.counts.copy()
    result = solver.run(Budget(iterations=3))
    assert result.counts.upper_gradients - before.upper_gradients == 3
    assert result.counts.lower_gradients - before.lower_gradients == 9
    assert result.counts.constraint_products - before.constraint_products == 6
    assert result.column("penalty") == pytest.approx([(k + 1) ** 0.49 for k in range(4)])
    assert max(result.column("violation")) < 1e-10
    assert len(result.column("gap")) == 4


@pytest.mark.parametrize("saddle", SADDLES)
def test_resume_is_exact(saddle, tmp_path):
    """Oracle: the uninterrupted run, bit for bit."""
    options = {"saddle": saddle, "lr_x": 0.1, "lr_saddle": 0.1, "lr_z": 0.3}
    whole = LVHBA(problems.inequality_toy(6).problem, **options)
    whole.run(Budget(iterations=4))
    whole.save(tmp_path / "half.safetensors")
    expected = whole.run(Budget(iterations=9))
    other = LVHBA(problems.inequality_toy(6).problem, **options, seed=7)
    other.load(tmp_path / "half.safetensors")
    found = other.run(Budget(iterations=9))
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=0)
    torch.testing.assert_close(found.y, expected.y, rtol=0, atol=0)
    assert found.counts == expected.counts


def test_batches_are_drawn():
    """Oracle: the closed form, from batches of 8 of 32 samples; steps that do not shrink leave noise of their size."""
    case = problems.quadratic(5, 7, seed=5, condition=1.5, num_samples=32, batch_size=8, noise=0.1)
    result = LVHBA(case.problem, lr_x=0.02, lr_saddle=0.1).run(Budget(iterations=4000), trace_every=4000)
    assert result.counts.samples == 4000 * 16
    assert relative(result.x, case.solution) < 0.3


def test_single_precision():
    """Oracle: the run in double precision."""

    def run(dtype):
        case = problems.inequality_toy(6).problem
        a = case.upper

        def upper(x, y, batch):
            return a(x.double(), y.double(), None).to(dtype)

        budget = Halfspace(torch.ones(6, dtype=dtype), 1.2)
        problem = BilevelProblem(
            upper=upper,
            lower=lambda x, y, batch: (y - x).square().sum() / 2,
            x0=case.x0.to(dtype),
            y0=case.y0.to(dtype),
            constraint=lambda x, y: (y.sum() - 1.2).reshape(1),
            project_joint=lambda x, y: (x, budget(y)),
        )
        return LVHBA(problem, lr_x=0.2, lr_saddle=0.2, lr_z=0.3).run(Budget(iterations=200), trace_every=200)

    single = run(torch.float32)
    assert single.x.dtype == torch.float32
    torch.testing.assert_close(single.x.double(), run(torch.float64).x, rtol=1e-3, atol=1e-4)


def test_operator_of_the_saddle():
    """Oracle: the Jacobian of the field by `torch.func`, and its transpose; the rule for "auto" from its norm."""
    problem = problems.equality_toy(3).problem
    oracle = Oracle(problem)
    x, y = problem.x0, problem.y0
    lagrangian = LowerLagrangian(oracle, x, y)
    operator = saddle_operator(lagrangian, x, y, (2.0, 3.0))
    eye = torch.eye(7, dtype=torch.float64)

    def field(u):
        return torch.cat(lagrangian.field(x, y, torch.zeros(1).double(), u[:6], u[6:], (2.0, 3.0)))

    origin = torch.cat([y, torch.zeros(1).double()])
    dense = torch.stack([field(origin + e) - field(origin) for e in eye], dim=1)
    torch.testing.assert_close(operator @ eye, dense)
    torch.testing.assert_close(operator.rmatmat(eye), dense.T)
    options = {"lr_x": 0.1, "lr_saddle": "auto", "lr_z": "auto", "generator": seeded(0)}
    _, eta, beta = lv_steps(lagrangian, x, y, (2.0, 3.0), 1.0, method="jacobi", **options)
    exact = (1 / 3) / float(torch.linalg.matrix_norm(dense, 2)) ** 2
    assert 0.8 * exact <= eta <= 1.1 * exact
    assert beta == pytest.approx(0.9)


def test_saddle_steps_stand_different_lengths():
    """Oracle: the saddle point; with η = 1/(2L) far above 2ρ/L², jacobi runs away from it and the others reach it."""
    row = torch.tensor([[-1.0, 1, 1, 1]], dtype=torch.float64)
    problem = BilevelProblem(
        upper=lambda x, y, batch: y.square().sum(),
        lower=lambda x, y, batch: y.sum(),  # the saddle turns: no curvature but that of the proximal terms
        x0=torch.ones(1, dtype=torch.float64),
        y0=torch.zeros(3, dtype=torch.float64),
        equality=lambda x, y: y.sum().reshape(1) - x,
        project_joint=stacked(AffineEquality(row, torch.zeros(1, dtype=torch.float64))),
    )
    for saddle in SADDLES:
        solver = LVHBA(problem, gamma=(100.0, 100.0), lr_x=1e-12, lr_z=1e-12, lr_saddle=0.35, saddle=saddle, r=1e12)
        found = solve_saddle(solver.lagrangian, solver.x, solver.y, solver.z, solver.gamma, tol=1e-11)
        assert found.converged
        solver.run(Budget(iterations=300), trace_every=300)
        away = float((solver.theta - found.theta).norm())
        assert away > 10 if saddle == "jacobi" else away < 0.01


def test_divergence_leaves_the_last_finite_state():
    """Oracle: a step size far too large; what comes back is finite and the message says why."""
    solver = LVHBA(problems.quadratic(3, 4).problem, lr_saddle=1e6, polish_steps=0)
    result = solver.run(Budget(iterations=500), trace_every=500)
    assert bool(torch.isfinite(result.x).all() and torch.isfinite(result.y).all())
    assert "lower the step sizes" in result.message


def test_multiplier_at_its_bound():
    """Oracle: a bound below the true multiplier."""
    solver = LVHBA(problems.equality_toy(4).problem, r=0.1)
    with pytest.warns(UserWarning, match="raise r"):
        result = solver.run(Budget(iterations=200), trace_every=200)
    assert result.extra["certificate"].at_bound


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    problem = problems.inequality_toy(4).problem
    for name, value in {"gamma": (0.0, 1.0), "p": 0.6, "c0": 0.0, "r": -1.0, "polish_steps": -1, "lr_x": 0.0}.items():
        with pytest.raises(ArgumentError, match=name):
            LVHBA(problem, **{name: value})
    with pytest.raises(ArgumentError, match="saddle must be"):
        LVHBA(problem, saddle="newton")
    with pytest.raises(ArgumentError, match="'auto'"):
        LVHBA(problem, lr_z="automatic")
    with pytest.warns(UserWarning, match="1/2"):
        LVHBA(problem, p=0.5)
    fields = {"upper": problem.upper, "lower": problem.lower, "x0": problem.x0, "y0": problem.y0}
    fields["constraint"] = problem.constraint
    with pytest.raises(ArgumentError, match="no project_joint"):
        LVHBA(BilevelProblem(**fields))
    with pytest.raises(ArgumentError, match="does not give points"):
        LVHBA(BilevelProblem(**fields, project_joint=lambda x, y: (x, y + 5)))
    shell = {**fields, "constraint": lambda x, y: 100 - y.square().sum().reshape(1), "y0": problem.y0 + 1}
    with pytest.raises(ArgumentError, match="not convex"):
        LVHBA(BilevelProblem(**shell, project_joint=lambda x, y: (x, y * (10 / y.norm()).clamp_min(1))))
