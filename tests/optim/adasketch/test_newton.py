"""AdaSketch-Newton: KKT points of known problems, its steps against a loop, stops that say why."""

import math

import pytest
import scipy.optimize
import torch

from benchmarks.optim._adasketch_problems import TEST_PROBLEMS, laplacian_problem
from hesse.errors import ArgumentError, ArgumentTypeError, ConvergenceError, NumericalError, ShapeError, SingularError
from hesse.optim.adasketch import AugmentedLagrangianMerit, adasketch_newton
from tests.optim.adasketch.cases import circle, curved, quadratic, seeded

SOLVERS = ["block-gaussian", "gaussian", "kaczmarz", "block-kaczmarz", "countsketch", "srht", "minres", "exact"]
PROBLEMS = {case.name: case for case in TEST_PROBLEMS}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quadratic_problem_is_solved(solver, dtype):
    """Oracle: the dense float64 KKT system, whatever solves it here."""
    fun, con, x, lam = quadratic(dtype)
    result = adasketch_newton(
        fun, con, torch.zeros(12, dtype=dtype), solver=solver, block_size=6, generator=seeded(2)
    ).require()
    assert result.x.dtype == dtype
    assert result.kkt <= 1e-4
    torch.testing.assert_close(result.x.double(), x, rtol=0, atol=1e-3)
    torch.testing.assert_close(result.lam.double(), lam, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "steps"), [("HS6", 9), ("HS7", 10)])
def test_exact_steps_are_those_of_the_prototype(name, steps):
    """Oracle: step counts and objectives of an independent NumPy prototype, and the printed solutions."""
    case = PROBLEMS[name]
    result = adasketch_newton(case.fun, case.con, case.x0, solver="exact")
    assert result.num_steps == steps
    assert result.fun == pytest.approx(case.value, abs=1e-6)


@pytest.mark.parametrize("name", ["HS40", "HS42", "HS77", "HS78", "HS79", "BT4"])
@pytest.mark.parametrize("solver", ["kaczmarz", "block-gaussian"])
def test_collection_objectives(name, solver):
    """Oracle: the objectives printed in the Hock-Schittkowski and Boggs-Tolle collections."""
    case = PROBLEMS[name]
    result = adasketch_newton(case.fun, case.con, case.x0, solver=solver, block_size=4, tol=1e-6, generator=seeded(0))
    assert result.require().fun == pytest.approx(case.value, rel=1e-4)


def test_a_nonconvex_problem_ends_where_scipy_does():
    """Oracle: SLSQP from the point that was found, which must not move it."""
    fun, con, x0 = curved()
    result = adasketch_newton(fun, con, x0, tol=1e-8, generator=seeded(0)).require()
    found = scipy.optimize.minimize(
        lambda v: float(fun(torch.as_tensor(v))),
        result.x.numpy(),
        jac=lambda v: torch.func.grad(fun)(torch.as_tensor(v)).numpy(),
        constraints={"type": "eq", "fun": lambda v: con(torch.as_tensor(v)).numpy()},
        method="SLSQP",
    )
    assert float(found.fun) == pytest.approx(result.fun, rel=1e-6)


def test_first_step_is_the_algorithm_written_out():
    """Oracle: one step by hand: dense KKT solve, weights tightened until descent, Armijo by halving."""
    fun, con, x = curved()
    n, m = 7, 3
    lam = torch.linspace(-1, 1, m, dtype=torch.float64)
    result = adasketch_newton(fun, con, x, lam, solver="exact", max_steps=1)
    G = torch.func.jacrev(con)(x)
    H = torch.func.hessian(lambda v: fun(v) + lam @ con(v))(x)
    slope_x = torch.func.grad(fun)(x) + G.T @ lam
    null = torch.linalg.qr(G.T, mode="complete").Q[:, m:]
    B = H
    if float(torch.linalg.eigvalsh(null.T @ H @ null)[0]) < 1e-6:
        B = H + (0.1 + H.norm()) * torch.eye(n, dtype=torch.float64)
    system = torch.cat([torch.cat([B, G.T], 1), torch.cat([G, torch.zeros(m, m, dtype=torch.float64)], 1)])
    b = -torch.cat([slope_x, con(x)])
    z = torch.linalg.solve(system, b)
    eta1, eta2 = 1.0, 0.1
    while True:
        merit = AugmentedLagrangianMerit(fun, con, eta1, eta2)
        slope = float(merit.directional_derivative(x, lam, z[:n], z[n:]))
        if slope <= -eta2 / 2 * float(b @ b):
            break
        eta1, eta2 = eta1 * 1.5**2, eta2 / 1.5
    alpha = 1.0
    while merit.value(x + alpha * z[:n], lam + alpha * z[n:]) > merit.value(x, lam) + alpha * 0.1 * slope:
        alpha /= 2
    step = result.history[0]
    assert (step.step_size, step.eta1, step.eta2) == (alpha, pytest.approx(eta1), pytest.approx(eta2))
    torch.testing.assert_close(result.x, x + alpha * z[:n])
    torch.testing.assert_close(result.lam, lam + alpha * z[n:])
    assert result.status == "max_steps"


def test_accepted_steps_descend_on_their_merit():
    """Oracle: the merit evaluated anew before and after each step, with the weights the history names."""
    fun, con, x0 = curved()
    path = [(x0, torch.zeros(3, dtype=torch.float64))]
    result = adasketch_newton(
        fun,
        con,
        x0,
        solver="kaczmarz",
        generator=seeded(1),
        callback=lambda _step, x, lam: path.append((x, lam)),
    )
    assert len(path) == result.num_steps + 1
    for step, before, after in zip(result.history, path[:-1], path[1:], strict=True):
        merit = AugmentedLagrangianMerit(fun, con, step.eta1, step.eta2)
        assert float(merit.value(*after)) < float(merit.value(*before))


def test_theory_accuracy_is_reached_and_its_floor_kept():
    """Oracle: the inequality of the paper with its constants, recomputed from the last point."""
    fun, con, _, _ = quadratic(n=4, m=2)
    result = adasketch_newton(fun, con, torch.zeros(4, dtype=torch.float64), solver="kaczmarz", accuracy="theory",
                              generator=seeded(3))  # fmt: skip
    step = result.require().history[0]
    assert step.accurate
    assert step.delta == 1e-6
    practical = adasketch_newton(fun, con, torch.zeros(4, dtype=torch.float64), solver="kaczmarz", generator=seeded(3))
    assert practical.num_inner_steps < result.num_inner_steps


def test_products_agree_with_the_dense_form():
    """Oracle: the same run with Γ formed; a convex Hessian needs no shift, so only the solver's tolerance differs."""
    case = laplacian_problem(4)
    options = {"solver": "minres", "kappa": 1e-9, "tol": 1e-7}
    dense = adasketch_newton(case.fun, case.con, case.x0, **options)
    products = adasketch_newton(case.fun, case.con, case.x0, hessian="products", generator=seeded(0), **options)
    assert products.converged
    torch.testing.assert_close(products.x, dense.x, rtol=1e-6, atol=1e-8)


def test_supplied_derivatives_change_nothing():
    """Oracle: the run with torch.func's."""
    fun, con, x0 = curved()

    def hvp(x, lam, v):
        return torch.func.jvp(torch.func.grad(lambda u: fun(u) + lam @ con(u)), (x,), (v,))[1]

    own = adasketch_newton(fun, con, x0, solver="exact")
    given = adasketch_newton(
        fun, con, x0, solver="exact", grad=torch.func.grad(fun), jac=torch.func.jacrev(con), hvp=hvp
    )
    assert given.num_steps == own.num_steps
    torch.testing.assert_close(given.x, own.x)
    assert given.evaluations["grad"] == own.evaluations["grad"]
    assert "vjp" not in given.evaluations


def test_a_state_continues_the_run():
    """Oracle: the uninterrupted run, bit for bit."""
    case = PROBLEMS["HS7"]
    options = {"solver": "kaczmarz", "tol": 1e-6}
    whole = adasketch_newton(case.fun, case.con, case.x0, generator=seeded(5), **options)
    first = adasketch_newton(case.fun, case.con, case.x0, generator=seeded(5), max_steps=3, **options)
    rest = adasketch_newton(case.fun, case.con, first.state, generator=seeded(77), **options)
    assert rest.num_steps == whole.num_steps
    assert torch.equal(rest.x, whole.x)


def test_superlinear_rate():
    """Oracle: the order estimated from the last three errors, on HS7 with inexact blocks."""
    case = PROBLEMS["HS7"]
    result = adasketch_newton(
        case.fun, case.con, case.x0, block_size=2, theta="superlinear", tol=1e-12, generator=seeded(0)
    )
    errors = [step.kkt for step in result.history if 1e-13 <= step.kkt <= 0.5][-3:]
    assert math.log(errors[2] / errors[1]) / math.log(errors[1] / errors[0]) > 1.5


def test_least_squares_multipliers():
    """Oracle: at a solution they are the multipliers, so that no step is needed."""
    fun, con, x, _ = quadratic()
    result = adasketch_newton(fun, con, x, "least-squares")
    assert result.converged
    assert result.num_steps == 0


def test_no_constraints_is_newton():
    """Oracle: the minimum of Rosenbrock's function."""
    result = adasketch_newton(
        lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, None, torch.tensor([-1.2, 1.0]).double()
    )
    torch.testing.assert_close(result.require().x, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-3)
    assert result.lam.shape == (0,)


def test_as_many_constraints_as_variables():
    """Oracle: BT10, whose constraints leave the point (1, 1) alone."""
    case = PROBLEMS["BT10"]
    result = adasketch_newton(case.fun, case.con, case.x0)
    torch.testing.assert_close(result.require().x, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-3)


def test_dependent_constraints_are_named():
    """Oracle: the third constraint is the sum of the first two, so one of the three is to blame."""
    A = torch.eye(3, 5, dtype=torch.float64)
    A[2] = A[0] + A[1]
    with pytest.raises(SingularError, match=r"rows [012] \(from 0\)"):
        adasketch_newton(lambda x: x @ x, lambda x: A @ x - 1, torch.ones(5, dtype=torch.float64))


def test_contradictory_constraints():
    """Oracle: x² + 1 = 0 has no real solution, and violates least at 0."""
    result = adasketch_newton(
        lambda x: x[0], lambda x: x[:1] ** 2 + 1, torch.tensor([0.5]).double(), max_steps=200, generator=seeded(0)
    )
    assert not result.converged
    stuck = adasketch_newton(lambda x: x @ x, circle, torch.zeros(2, dtype=torch.float64))
    assert stuck.status == "infeasible_stationary"
    with pytest.raises(ConvergenceError, match="contradict"):
        stuck.require()


def test_inner_cap_is_reported():
    """Oracle: three row steps cannot solve a system of 17 unknowns."""
    fun, con, _, _ = quadratic()
    result = adasketch_newton(
        fun,
        con,
        torch.zeros(12, dtype=torch.float64),
        solver="kaczmarz",
        max_inner_steps=3,
        max_steps=2,
        generator=seeded(0),
    )
    assert not result.converged
    assert result.status == "no_descent" or not all(step.accurate for step in result.history)


def test_the_line_search_steps_back_from_nan():
    """Oracle: log x is NaN left of zero, where the first full step leads; the minimum of x - log x is at 1."""
    result = adasketch_newton(lambda x: (x - x.log()).sum(), None, torch.tensor([3.0]).double())
    assert result.require().x.item() == pytest.approx(1.0, abs=1e-3)
    assert result.history[0].step_size < 1


def test_float32_cannot_have_theory_accuracy():
    """Oracle: the warning, and the practical run it promises."""
    x0 = torch.tensor([-2.0, -0.5])
    with pytest.warns(UserWarning, match="practical"):
        warned = adasketch_newton(lambda x: x.sum(), circle, x0, accuracy="theory", generator=seeded(0))
    plain = adasketch_newton(lambda x: x.sum(), circle, x0, generator=seeded(0))
    assert torch.equal(warned.x, plain.x)


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (ArgumentError, {"solver": "cholesky"}),
        (ArgumentError, {"accuracy": "best"}),
        (ArgumentError, {"theta": "quadratic"}),
        (ArgumentError, {"hessian": "sparse"}),
        (ArgumentError, {"shift": "none"}),
        (ArgumentError, {"row_sampling": "cyclic"}),
        (ArgumentError, {"eta1": 0.0}),
        (ArgumentError, {"eta2": -1.0}),
        (ArgumentError, {"beta": 0.5}),
        (ArgumentError, {"nu": 1.0}),
        (ArgumentError, {"kappa": 1.0}),
        (ArgumentError, {"tol": -1.0}),
        (ArgumentError, {"max_steps": 0}),
        (ArgumentError, {"block_size": 0}),
        (ShapeError, {"lam0": torch.zeros(2)}),
        (ShapeError, {"x0": torch.zeros(2, 2)}),
        (ShapeError, {"x0": torch.zeros(2, dtype=torch.float16)}),
        (ShapeError, {"fun": lambda x: x}),
        (ShapeError, {"con": lambda x: x.sum()}),
        (ShapeError, {"jac": lambda x: x}),
        (ArgumentError, {"con": lambda x: torch.cat([x, x])}),
        (ArgumentError, {"lam0": "zeros"}),
        (NumericalError, {"fun": lambda x: x.sum().log() * torch.nan}),
        (ArgumentTypeError, {"x0": [-2.0, -0.5]}),
        (ArgumentTypeError, {"lam0": [0.0]}),
        (ArgumentTypeError, {"block_size": 2.5}),
        (ArgumentTypeError, {"max_steps": "many"}),
    ],
)
def test_bad_arguments(error, changes):
    """Oracle: the error class; every message names the argument."""
    arguments = {"fun": lambda x: x.sum(), "con": circle, "x0": torch.tensor([-2.0, -0.5])} | changes
    with pytest.raises(error, match=next(iter(changes)) if "con" not in changes else "con") as caught:
        adasketch_newton(**arguments)
    assert isinstance(caught.value, ValueError | ArithmeticError | TypeError)
