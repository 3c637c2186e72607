import math

import pytest
import torch

from hesse.bilevel import (
    BOREP,
    BilevelProblem,
    Budget,
    NormalizedMomentum,
    epoch_sgd,
    hypergradient,
    problems,
    relaxed_smoothness,
    tasks,
)
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.linalg import Ball
from hesse.testing import check_optimizer
from tests.bilevel.cases import relative, seeded


def smooth(**options):
    """g_yy between 2/3 and 1."""
    return problems.quadratic(6, 10, seed=5, condition=1.5, **options)


FIXED = {"lr_lower": 0.9, "lr_linear": 0.1}


def test_direction_is_the_hypergradient_and_steps_have_length_eta():
    """Oracle: the closed form, where y is refreshed by a hundred steps and v is solved for; the length is exact."""
    case = smooth()
    solver = BOREP(case.problem, lr=0.05, momentum=0.0, period=1, lower_steps=100, lr_decay=None, **FIXED)
    for k in range(6):
        x, truth = solver.x, case.hypergradient(solver.x)
        solver.v = hypergradient(case.problem, x, case.lower_solution(x), rtol=1e-13).adjoint
        solver.run(Budget(iterations=k + 1))
        assert float((solver.x - x).norm()) == pytest.approx(0.05, rel=1e-12)
        if k:  # before the first step comes the refinement
            assert relative(solver.average, truth) < 1e-8


def test_an_iteration_written_out():
    """Oracle: the formulas with dense derivatives, over five iterations with two refreshes."""
    case, beta, eta = smooth(), 0.9, 0.05
    problem = case.problem
    solver = BOREP(problem, lr=eta, momentum=beta, lr_decay=None, **FIXED)
    solver.run(Budget(iterations=1))
    m = solver.average
    for t in range(1, 6):
        x, y, v = solver.x, solver.y, solver.v
        if t % 2 == 0:
            inner = [y]
            for _ in range(3):
                g_y = torch.func.grad(lambda u, x=x: problem.lower(x, u, None))(inner[-1])
                inner.append(inner[-1] - 0.9 * g_y)
            y = (inner[2] + inner[3]) / 2
        yy = torch.func.hessian(lambda u, x=x: problem.lower(x, u, None))(y)
        xy = torch.func.jacrev(lambda w, y=y: torch.func.grad(lambda u: problem.lower(w, u, None))(y))(x).T
        f_x, f_y = torch.func.grad(lambda a, b: problem.upper(a, b, None), argnums=(0, 1))(x, y)
        m = beta * m + (1 - beta) * (f_x - xy @ v)
        solver.run(Budget(iterations=t + 1))
        torch.testing.assert_close(solver.y, y)
        torch.testing.assert_close(solver.v, v - 0.1 * (yy @ v - f_y))
        torch.testing.assert_close(solver.x, x - eta * m / m.norm())


@pytest.mark.parametrize(
    "options", [{}, {"recursive": True}, {"period": "adaptive"}, {"refinement": "newton"}, {"refine_epochs": 0}]
)
def test_converges_on_a_quadratic(options):
    """Oracle: the closed form; with linear decay the gradient falls far below what a constant length leaves."""
    worst = {}
    for decay in ("linear", None):
        case = smooth()
        solver = BOREP(case.problem, lr_decay=decay, **options)
        norms = solver.run(Budget(iterations=600), trace_every=5).column("exact_norm")
        worst[decay] = max(norms[-4:]) / norms[0]
    assert worst["linear"] < 0.03
    assert worst["linear"] < worst[None]


def test_one_length_serves_near_and_far_starts():
    """Oracle: the closed form; the gradients of the two starts differ by a factor of 10^4."""
    ends = []
    for start in (1.0, 10.0):
        case = problems.cosh_upper(5, start=start, noise=0.1, relative_noise=0.15)
        trace = BOREP(case.problem).run(Budget(iterations=1500), trace_every=50).column("exact_norm")
        ends.append(sorted(trace[-5:])[2])
    assert trace[0] > 1e4
    assert max(ends) < 2e-4 * trace[0]
    assert max(ends) < 2 * min(ends)


def test_steps_are_chosen_by_the_curvature():
    """Oracle: the largest eigenvalue of H, which is 1."""
    solver = BOREP(smooth().problem)
    solver.run(Budget(iterations=2))
    assert float(solver.lipschitz) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("options", [{}, {"recursive": True}, {"period": "adaptive"}, {"radius": 0.1}])
def test_resume_is_exact(options, tmp_path):
    """Oracle: the uninterrupted run, bit for bit, across a fresh estimate of the curvature."""
    sampled = {"num_samples": 32, "batch_size": 8, "noise": 0.3}
    whole = BOREP(smooth(**sampled).problem, horizon=Budget(iterations=120), **options)
    whole.run(Budget(iterations=97), trace_every=97)
    whole.save(tmp_path / "part.safetensors")
    expected = whole.run(Budget(iterations=104), trace_every=104)
    other = BOREP(smooth(**sampled).problem, horizon=Budget(iterations=120), seed=77, **options)
    other.load(tmp_path / "part.safetensors")
    found = other.run(Budget(iterations=104), trace_every=104)
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=0)
    torch.testing.assert_close(found.y, expected.y, rtol=0, atol=0)
    assert found.counts == expected.counts


def test_the_length_falls_with_the_budget():
    """Oracle: 1 - t / T, for iterations and for calls; a bare step has no budget and full length."""
    lengths = []
    solver = BOREP(smooth().problem, horizon=Budget(iterations=4))
    for k in range(4):
        x = solver.x
        solver.run(Budget(iterations=k + 1))
        lengths.append(float((solver.x - x).norm()) / 0.05)
    assert lengths == pytest.approx([1, 0.75, 0.5, 0.25])
    solver = BOREP(smooth().problem)
    x = solver.x
    solver.step()
    assert float((solver.x - x).norm()) == pytest.approx(0.05)
    assert Budget(oracle_calls=10, seconds=4.0).fraction(99, 5, 1.0) == 0.5
    assert Budget(oracle_calls=10, seconds=4.0).fraction(99, 5, 5.0) == 1.0
    assert Budget(iterations=0).fraction(0, 0, 0.0) == 1.0


def test_recursive_momentum_has_less_variance():
    """Oracle: the closed form; the mean error of the followed average over the later half of the run, four seeds."""
    errors = {False: [], True: []}
    for recursive, found in errors.items():
        for seed in range(4):
            case = smooth(num_samples=64, batch_size=4, noise=1.0)
            solver = BOREP(case.problem, recursive=recursive, momentum=0.95, lr=0.01, lr_decay=None, seed=seed)
            before = [solver.x]

            def look(row, solver=solver, case=case, before=before, found=found):
                if row.iteration > 150:
                    found.append(float((solver.average - case.hypergradient(before.pop())).norm()))
                before[:] = [solver.x]

            solver.run(Budget(iterations=300), look)
    assert sum(errors[True]) < 0.9 * sum(errors[False])


def test_an_adaptive_period_waits_while_y_is_good():
    """Oracle: counting; a still x needs no refresh before the tenth iteration, a moving one does."""
    refreshes = {}
    for lr, noise in ((1e-9, 0.3), (0.2, 0.001)):
        case = smooth(num_samples=64, batch_size=16, noise=noise)
        solver = BOREP(case.problem, lr=lr, period="adaptive", lr_decay=None, **FIXED)
        solver.run(Budget(iterations=1))
        before = solver.oracle.counts.lower_gradients
        solver.run(Budget(iterations=101), trace_every=101)
        refreshes[lr] = ((solver.oracle.counts.lower_gradients - before) // 16 - 100) // 3
    assert refreshes[1e-9] == 10
    assert refreshes[0.2] > 20


def test_a_diverging_adjoint_is_caught():
    """Oracle: the limit 2 / ‖g_yy‖ = 2; a step of 7 is halved twice, and then the closed form is approached."""
    case = smooth()
    solver = BOREP(case.problem, lr_lower=0.9, lr_linear=7.0)
    with pytest.warns(RuntimeWarning, match="lr_linear"):
        result = solver.run(Budget(iterations=600), trace_every=600)
    assert float(solver.shrink_linear) == 0.25
    assert result.trace[-1].exact_norm < 0.1 * result.trace[0].exact_norm


def test_refresh_stays_in_its_ball():
    """Oracle: the radius; the average of points of a ball lies in it."""
    solver = BOREP(smooth().problem, radius=1e-3, refine_epochs=0, lr=0.5, period=1, lr_decay=None, **FIXED)
    solver.run(Budget(iterations=1))
    for k in range(5):
        y = solver.y
        solver.run(Budget(iterations=k + 2))
        assert 0 < float((solver.y - y).norm()) <= 1e-3 * (1 + 1e-12)


def test_sets_are_obeyed():
    """Oracle: the projections."""
    case = smooth()
    problem = BilevelProblem(
        upper=case.problem.upper,
        lower=case.problem.lower,
        x0=case.problem.x0,
        y0=case.problem.y0,
        project_x=Ball(0.2),
        project_y=Ball(0.3),
    )
    result = BOREP(problem).run(Budget(iterations=50))
    assert float(result.x.norm()) <= 0.2 * (1 + 1e-12)
    assert float(result.y.norm()) <= 0.3 * (1 + 1e-12)


def test_blocks_and_upper_losses_without_x():
    """Oracle: the closed form of ridge over blocks; in cleaning f is free of x, and what was flipped is known."""
    case = problems.multi_ridge(4, 30, 6, seed=1)
    result = BOREP(case.problem, lower_steps=10).run(Budget(iterations=150), trace_every=150)
    assert float(case.value(result.x)) < float(case.value(case.problem.x0))
    g = seeded(0)
    t = torch.randint(2, (300,), generator=g)
    X = torch.randn(300, 4, generator=g) + 2.0 * t[:, None]
    spoilt = torch.rand(200, generator=g) < 0.4
    noisy = torch.where(spoilt, 1 - t[:200], t[:200])
    problem = tasks.hyper_cleaning(
        X[:200], noisy, X[200:], t[200:], num_classes=2, regularization=1e-2, batch_size=50, seed=0
    )
    x = BOREP(problem, lr=0.5, lower_steps=5).run(Budget(iterations=600), trace_every=600).x
    assert float((x[~spoilt][:, None] > x[spoilt][None]).double().mean()) > 0.9
    assert x.dtype == torch.float32


def still(x, y, batch):
    return (y - 1).square().sum()


def test_a_zero_average_does_not_move_and_warns():
    """Oracle: losses that do not reach x."""
    one = torch.ones(2, dtype=torch.float64)
    problem = BilevelProblem(upper=still, lower=lambda x, y, batch: y.square().sum(), x0=one, y0=2 * one)
    solver = BOREP(problem)
    with pytest.warns(RuntimeWarning, match="exactly zero"):
        solver.step()
    assert torch.equal(solver.x, one)


def test_a_lower_level_that_is_not_convex_warns():
    """Oracle: a saddle, whose curvature at the start is known."""
    one = torch.ones(2, dtype=torch.float64)
    problem = BilevelProblem(
        upper=lambda x, y, batch: (y - x).square().sum(),
        lower=lambda x, y, batch: (y[0] - x[0]) ** 2 - y[1] ** 2 / 100,
        x0=one,
        y0=0.1 * one,
    )
    with pytest.warns(RuntimeWarning, match="negative curvature"):
        BOREP(problem).step()


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    p = smooth().problem
    for options, match in (
        ({"lr": 0.0}, "lr > 0"),
        ({"lr_lower": -1.0}, "lr_lower > 0"),
        ({"lr_linear": math.inf}, "lr_linear > 0"),
        ({"momentum": 1.0}, "momentum < 1"),
        ({"period": 0}, "period >= 1"),
        ({"lower_steps": 0}, "lower_steps >= 1"),
        ({"radius": 0.0}, "radius > 0"),
        ({"refine_epochs": -1}, "refine_epochs >= 0"),
        ({"refine_steps": 0}, "refine_steps >= 1"),
        ({"lr_decay": "cosine"}, "lr_decay"),
        ({"refinement": "magic"}, "refinement"),
        ({"period": "never"}, "period"),
    ):
        with pytest.raises(ArgumentError, match=match):
            BOREP(p, **options)
    with pytest.raises(ArgumentError, match="without constraints"):
        BOREP(problems.box_quadratic(3, 4, seed=0).problem, refinement="newton")
    linear = BilevelProblem(upper=still, lower=lambda x, y, batch: (x * y).sum(), x0=torch.ones(2), y0=torch.zeros(2))
    with pytest.raises(NumericalError, match="g_yy is zero"):
        BOREP(linear).step()
    with pytest.raises(ShapeError, match="x has shape"):
        BOREP(p).load_state_dict(BOREP(problems.quadratic(3, 4).problem).state_dict())


@pytest.mark.parametrize("extra", [{}, {"momentum": 0.0}])
def test_the_optimiser_keeps_its_promises(extra):
    """Oracle: the conformance suite of optimisers."""
    ran = check_optimizer(lambda params, **options: NormalizedMomentum(params, **({"lr": 0.02} | extra | options)))
    assert len(ran) == 14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_is_over_all_parameters(dtype):
    """Oracle: the formula on the concatenated vector; three steps, two groups, gradients whose squares overflow."""
    grads = 1e25 * torch.randn(3, 7, dtype=dtype, generator=seeded(3))
    a, b = torch.zeros(2, 2, dtype=dtype, requires_grad=True), torch.zeros(3, dtype=dtype, requires_grad=True)
    optimizer = NormalizedMomentum([{"params": [a]}, {"params": [b]}], lr=0.1, momentum=0.8)
    w, m = torch.zeros(7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    for g in grads:
        a.grad, b.grad = g[:4].reshape(2, 2).clone(), g[4:].clone()
        optimizer.step()
        m = 0.8 * m + 0.2 * g.double()
        w = w - 0.1 * m / m.norm()
    torch.testing.assert_close(torch.cat([a.detach().reshape(-1), b.detach()]).double(), w, rtol=1e-5, atol=1e-6)


def test_bad_gradients_leave_everything_as_it_was():
    """Oracle: the values before."""
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = NormalizedMomentum([a, b], lr=0.1)
    optimizer.step()  # no gradient anywhere
    a.grad, b.grad = torch.ones(2), torch.tensor([1.0, math.nan])
    with pytest.raises(NumericalError, match="NaN"):
        optimizer.step()
    assert torch.equal(torch.cat([a, b]).detach(), torch.ones(4))
    assert not optimizer.state
    b.grad = torch.ones(2).to_sparse()
    with pytest.raises(ArgumentTypeError, match="sparse"):
        optimizer.step()
    a.grad, b.grad = torch.zeros(2), None
    optimizer.step()
    assert torch.equal(a.detach(), torch.ones(2))


def noisy_epochs(epochs, repeats=300):
    g = seeded(1)
    values = torch.linspace(0.2, 1, 8, dtype=torch.float64)

    def gradient(y):
        noise = torch.randn(repeats, 8, dtype=torch.float64, generator=g)
        return (values * y.view(repeats, 8) + noise).reshape(-1)

    y = epoch_sgd(gradient, torch.ones(repeats * 8).double(), step=0.5, epochs=epochs, steps0=20)
    squares = y.view(repeats, 8).square().sum(1)
    return float(squares.mean()), float(squares.std()) / repeats**0.5


def test_epochs_of_sgd_err_as_one_over_steps():
    """Oracle: the rate; five times the doubling of steps, within the standard errors and a fifth of the slope."""
    (early, early_error), (late, late_error) = noisy_epochs(2), noisy_epochs(7)
    slope = math.log(late / early) / math.log((2**7 - 1) / (2**2 - 1))
    spread = 2 * (early_error / early + late_error / late) / math.log(127 / 3)
    assert -1.2 - spread < slope < -0.8 + spread


def test_epochs_of_sgd_keep_to_their_balls():
    """Oracle: the sum of the radii, D (1 + 1/√2 + 1/2), and the projection."""
    y = epoch_sgd(lambda y: -torch.ones(3), torch.zeros(3), step=1.0, epochs=3, radius=0.1, steps0=50)
    assert 0.1 < float(y.norm()) <= 0.1 * (1 + 0.5**0.5 + 0.5)
    y = epoch_sgd(lambda y: -torch.ones(3), torch.zeros(3), step=1.0, epochs=3, steps0=5, project=Ball(0.5))
    assert float(y.norm()) <= 0.5 * (1 + 1e-6)
    start = torch.ones(3)
    assert torch.equal(epoch_sgd(lambda y: y, start, step=1.0, epochs=0, steps0=5), start)
    for bad in ({"step": 0.0}, {"epochs": -1}, {"radius": 0.0}, {"steps0": 0}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            epoch_sgd(lambda y: y, start, **({"step": 1.0, "epochs": 1, "steps0": 1} | bad))


def test_relaxed_smoothness_of_known_functions():
    """Oracle: d/dx sinh = cosh = √(1 + sinh²), so that L1 = 1 in one dimension; a quadratic has L1 = 0, L0 its norm."""
    case = problems.cosh_upper(1)
    points = [torch.tensor([float(a)], dtype=torch.float64) for a in range(6, 12)]
    found = relaxed_smoothness(case.problem, points, 1e-4, generator=seeded(2))
    assert found.x.slope == pytest.approx(1.0, rel=0.02)
    assert found.y.slope == pytest.approx(0.0, abs=1e-3)
    assert found.y.constant <= 1 + 1e-6
    case = smooth()
    points = [case.problem.x0 + k for k in range(4)]
    ys = [case.lower_solution(x) for x in points]
    found = relaxed_smoothness(case.problem, points, 1e-2, y=ys, generator=seeded(2))
    assert found.x.constant <= 0.5 + 1e-9  # C = I / 2
    assert found.x.slope < 0.05
    again = relaxed_smoothness(case.problem, points, 1e-2, generator=seeded(2))
    torch.testing.assert_close(again.x.quotients, found.x.quotients, rtol=1e-6, atol=0)
    with pytest.raises(ArgumentError, match="radius"):
        relaxed_smoothness(case.problem, points, 0.0)
    with pytest.raises(ArgumentError, match="points"):
        relaxed_smoothness(case.problem, points[:1], 1.0)
    with pytest.raises(ArgumentError, match="as many points"):
        relaxed_smoothness(case.problem, points, 1.0, y=ys[:2])
    far = [torch.full((1,), a, dtype=torch.float64) for a in (1.0, 800.0)]
    with pytest.raises(NumericalError, match="NaN or Inf"):
        relaxed_smoothness(problems.cosh_upper(1).problem, far, 1.0)
