import math

import pytest
import torch

from hesse.bilevel import (
    AID,
    ITD,
    MASOBA,
    SABA,
    SOBA,
    TTSA,
    AmIGO,
    BilevelProblem,
    Budget,
    StocBiO,
    plot_traces,
    problems,
    solve_lower,
    tasks,
)
from hesse.bilevel.oracle import Oracle
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import Box
from tests.bilevel.cases import EXACT, relative


def smooth(**options):
    """g_yy between 2/3 and 1; ∇Φ is 6-Lipschitz."""
    return problems.quadratic(6, 10, seed=5, condition=1.5, **options)


SOLVERS = {
    "AID": AID,
    "ITD": lambda p: ITD(p, lr=0.15, lr_lower=0.9),
    "StocBiO": lambda p: StocBiO(p, lr=0.15, lr_lower=0.9),
    "AmIGO": lambda p: AmIGO(p, lr=0.15, lr_lower=0.9, lower_steps=5, linear_steps=5),
    "TTSA": lambda p: TTSA(p, lr=0.15, lr_lower=0.9, linear_steps=8),
    "SOBA": lambda p: SOBA(p, lr=0.1, lr_lower=0.9),
    "MASOBA": lambda p: MASOBA(p, lr=0.02, lr_lower=0.9),
    "SABA": lambda p: SABA(p, lr=0.05, lr_lower=0.5),
}


def sampled(name):
    return smooth(num_samples=32, batch_size=8, noise=0.3) if name == "SABA" else smooth()


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "TTSA"])
def test_converges_on_a_quadratic(name):
    """Oracle: the closed form; ‖∇Φ‖ falls to a thousandth, and x is then as near its solution as that says."""
    case = sampled(name)
    first = float(case.hypergradient(case.problem.x0).norm())
    result = SOLVERS[name](case.problem).run(
        Budget(iterations=1500), lambda row: row.exact_norm <= 1e-3 * first, trace_every=5
    )
    assert result.trace[-1].exact_norm <= 1e-3 * first
    assert result.message == "stopped by the callback"
    assert float((result.x - case.solution).norm()) <= 1e-3 * first / 0.5


def test_random_lengths_are_unbiased():
    """Oracle: TTSA's mean estimate is the truncated series, within four of its standard errors over 400 draws."""
    case, Q, a = smooth(), 8, 0.9
    drawn = []
    for seed in range(400):
        solver = TTSA(case.problem, lr=1e-12, lr_lower=1e-12, lr_linear=a, linear_steps=Q, seed=seed)
        drawn.append(solver.step())
    drawn = torch.stack(drawn)
    oracle = Oracle(case.problem)
    x, y = case.problem.x0, case.problem.y0
    upper_x, term = oracle.upper_gradients(x, y)
    v = a * term
    for _ in range(Q - 1):
        term = term - a * (oracle.lower_hessian(x, y) @ term)
        v = v + a * term
    expected = upper_x - oracle.jacobian_product(x, y, v)
    error = drawn.std(0) / 400**0.5
    assert bool(((drawn.mean(0) - expected).abs() <= 4 * error).all())


def test_soba_moves_all_three_from_the_old_triple():
    """Oracle: the three formulas written out in closed form."""
    case = smooth()
    solver = SOBA(case.problem, lr=0.1, lr_lower=0.5, decay=0.5)
    for _ in range(3):
        x, y, v, k = solver.x, solver.y, solver.v, solver.iteration
        yy = torch.func.hessian(lambda u, x=x: case.problem.lower(x, u, None))(y)
        xy = torch.func.jacrev(lambda w, y=y: torch.func.grad(lambda u: case.problem.lower(w, u, None))(y))(x).T
        f_x, f_y = torch.func.grad(lambda a, b: case.problem.upper(a, b, None), argnums=(0, 1))(x, y)
        g_y = torch.func.grad(lambda u, x=x: case.problem.lower(x, u, None))(y)
        solver.run(Budget(iterations=k + 1))
        shrink = (k + 1) ** -0.5
        torch.testing.assert_close(solver.y, y - 0.5 * shrink * g_y)
        torch.testing.assert_close(solver.v, v - 0.5 * shrink * (yy @ v - f_y))
        torch.testing.assert_close(solver.x, x - 0.1 * shrink * (f_x - xy @ v))


def test_saba_has_no_noise_left_where_soba_has():
    """Oracle: the closed form, on a finite sum with batches of 8 out of 32."""
    ends = {}
    for solver_class in (SABA, SOBA):
        case = sampled("SABA")
        solver = solver_class(case.problem, lr=0.05, lr_lower=0.5, decay=0.0)
        ends[solver_class] = solver.run(Budget(iterations=1500), trace_every=1500).trace[-1].exact_norm
    assert ends[SABA] < 1e-8
    assert ends[SOBA] > 1e-2


def test_blocks_and_trees_are_solved_too():
    """Oracle: the closed form of ridge over blocks at the point reached; Φ falls."""
    case = problems.multi_ridge(4, 30, 6, seed=1)
    result = AID(case.problem).run(Budget(iterations=15))
    assert float(case.value(result.x)) < float(case.value(case.problem.x0))
    assert relative(result.y, case.lower_solution(result.x)) < 1e-2


def test_projected_upper_step():
    """Oracle: first-order condition of a box: the projected gradient step rests."""
    case = smooth()
    problem = BilevelProblem(
        upper=case.problem.upper,
        lower=case.problem.lower,
        x0=case.problem.x0,
        y0=case.problem.y0,
        project_x=Box(-0.1, 0.1),
    )
    result = AID(problem).run(Budget(iterations=60))
    rest = Box(-0.1, 0.1)(result.x - case.hypergradient(result.x)) - result.x
    assert float(rest.norm()) < 1e-4
    assert float(result.x.abs().max()) <= 0.1


@pytest.mark.parametrize("name", list(SOLVERS))
def test_resume_is_exact(name, tmp_path):
    """Oracle: the uninterrupted run, bit for bit, from a checkpoint loaded into a solver of another seed."""
    options = {"num_samples": 32, "batch_size": 8, "noise": 0.3}
    whole = SOLVERS[name](smooth(**options).problem)
    whole.run(Budget(iterations=4))
    whole.save(tmp_path / "half.safetensors")
    expected = whole.run(Budget(iterations=9))
    other = SOLVERS[name](smooth(**options).problem)
    other.generator.manual_seed(77)
    other.load(tmp_path / "half.safetensors")
    found = other.run(Budget(iterations=9))
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=0)
    torch.testing.assert_close(found.y, expected.y, rtol=0, atol=0)
    assert found.counts == expected.counts


def test_budgets_stop():
    """Oracle: the limits themselves; a step under way is finished, so that calls overshoot by less than one step."""
    case = smooth()
    assert SOBA(case.problem, lr=0.1, lr_lower=0.9).run(Budget(iterations=7)).trace[-1].iteration == 7
    result = SOBA(case.problem, lr=0.1, lr_lower=0.9).run(Budget(oracle_calls=20))
    assert 20 <= result.counts.calls < 26  # a step is two gradients and two products
    assert "oracle_calls" in result.message
    result = SOBA(case.problem, lr=0.1, lr_lower=0.9).run(Budget(seconds=0.05), trace_every=10)
    assert 0.05 <= result.trace[-1].seconds < 1
    result = AID(case.problem).run(Budget(iterations=100), tol=1e-3)
    assert result.converged
    assert result.trace[-1].estimate_norm <= 1e-3


def test_nan_leaves_the_last_finite_state():
    """Oracle: a step size that overflows; what comes back is finite and the message says why."""
    case = EXACT["logistic"]()
    result = ITD(case.problem, lr=1e5, lr_lower=1.0).run(Budget(iterations=500), trace_every=500)
    assert bool(torch.isfinite(result.x).all() and torch.isfinite(result.y).all())
    assert "NaN" in result.message or "failed" in result.message


def test_trace_columns_csv_and_plot(tmp_path):
    """Oracle: the rows themselves."""
    case = smooth()
    results = {"SOBA": SOBA(case.problem, lr=0.1, lr_lower=0.9).run(Budget(iterations=4))}
    trace = results["SOBA"]
    assert trace.column("iteration") == [0, 1, 2, 3, 4]
    assert trace.column("calls") == [0, 6, 12, 18, 24]
    assert math.isnan(trace.column("estimate_norm")[0])
    trace.write_csv(tmp_path / "trace.csv")
    lines = (tmp_path / "trace.csv").read_text().splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("iteration,seconds,calls,upper_gradients")
    figure = plot_traces(results)
    assert len(figure.axes[0].lines) == 1
    with pytest.raises(ArgumentError, match="no figure"):
        trace.column("magic")
    with pytest.raises(ArgumentError, match="against"):
        plot_traces(results, against="magic")


@pytest.mark.parametrize("name", list(EXACT))
def test_lower_solver_reaches_the_closed_form(name):
    """Oracle: the closed form of y*."""
    case = EXACT[name]()
    oracle, x = Oracle(case.problem), case.problem.x_layout.flatten(case.problem.x0)
    found = solve_lower(oracle, x, case.problem.y_layout.flatten(case.problem.y0), tol=1e-11)
    assert found.converged
    assert relative(found.y, case.lower_solution(case.problem.x0).flatten()) < 1e-8


def test_lower_solver_on_a_hard_function():
    """Oracle: Rosenbrock's minimum, which is not convex on the way."""
    problem = BilevelProblem(
        upper=lambda x, y, batch: y.sum(),
        lower=lambda x, y, batch: (1 - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2,
        x0=torch.zeros(1, dtype=torch.float64),
        y0=torch.tensor([-1.2, 1.0], dtype=torch.float64),
    )
    found = solve_lower(Oracle(problem), problem.x0, problem.y0, tol=1e-9)
    assert found.converged
    torch.testing.assert_close(found.y, torch.ones(2, dtype=torch.float64), rtol=1e-6, atol=0)


def test_hyper_cleaning_finds_the_spoilt_rows():
    """Oracle: which labels were flipped; two Gaussian classes, two fifths of the labels wrong."""
    g = torch.Generator().manual_seed(0)
    t = torch.randint(2, (300,), generator=g)
    X = torch.randn(300, 4, dtype=torch.float64, generator=g) + 2.0 * t[:, None]
    spoilt = torch.rand(200, generator=g) < 0.4
    noisy = torch.where(spoilt, 1 - t[:200], t[:200])
    problem = tasks.hyper_cleaning(X[:200], noisy, X[200:], t[200:], num_classes=2, regularization=1e-2)
    weights = AID(problem, lr=100.0).run(Budget(iterations=20)).x.sigmoid()
    clean, dirty = weights[~spoilt], weights[spoilt]
    auroc = float((clean[:, None] > dirty[None]).double().mean())
    assert auroc > 0.9


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    p = smooth().problem
    with pytest.raises(ArgumentError, match="at least one"):
        Budget()
    with pytest.raises(ArgumentError, match=">= 0"):
        Budget(iterations=-1)
    with pytest.raises(ArgumentError, match="SOBA: expected lr > 0"):
        SOBA(p, lr=0.0, lr_lower=1.0)
    with pytest.raises(ArgumentError, match="averaging"):
        MASOBA(p, lr=1.0, lr_lower=1.0, averaging=2.0)
    with pytest.raises(ArgumentTypeError, match="TensorSampler"):
        SABA(p, lr=1.0, lr_lower=1.0)
    with pytest.raises(ArgumentError, match="of ITD"):
        SOBA(p, lr=1.0, lr_lower=1.0).load_state_dict(ITD(p, lr=1.0, lr_lower=1.0).state_dict())
    other = problems.quadratic(3, 4).problem
    with pytest.raises(ShapeError, match="x has shape"):
        SOBA(p, lr=1.0, lr_lower=1.0).load_state_dict(SOBA(other, lr=1.0, lr_lower=1.0).state_dict())
    with pytest.raises(ArgumentError, match="constrained"):
        solve_lower(Oracle(problems.inequality_toy(3).problem), torch.zeros(3).double(), torch.zeros(3).double())
    with pytest.raises(ArgumentError, match="trace_every"):
        SOBA(p, lr=1.0, lr_lower=1.0).run(Budget(iterations=1), trace_every=0)
