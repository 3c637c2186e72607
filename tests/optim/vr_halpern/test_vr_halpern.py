"""Variance-reduced Halpern: its limits are known iterations, its certificates are true, its counts exact."""

import itertools
import math

import pytest
import torch

from benchmarks.optim._halpern_problems import quadratic_game
from hesse.errors import ArgumentError, ArgumentTypeError, ConvergenceError, ShapeError
from hesse.linalg import Ball
from hesse.optim import FiniteSumOperator, halpern, inclusion_residual, inexact_halpern, vr_halpern
from tests.optim.vr_halpern.cases import AffineSum, seeded


def anchored_loop(F, u, eta, num_steps):
    anchor = u
    for k in range(num_steps):
        weight = 2 / (k + 4)
        u = weight * anchor + (1 - weight) * u - eta * F(u)
    return u


@pytest.mark.parametrize("estimator", ["page", "svrg", "saga"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_always_refreshed_is_the_deterministic_iteration(estimator, dtype):
    """Oracle: the anchored iteration as a loop over the closed form."""
    case = AffineSum(30, dtype=dtype)
    result = vr_halpern(
        case.operator,
        case.start,
        L=case.L,
        estimator=estimator,
        refresh_probability=1.0,
        tol=0.0,
        max_epochs=21,
    )
    assert result.num_steps == 20
    assert result.u.dtype == dtype
    torch.testing.assert_close(result.u, anchored_loop(case.value, case.start, 1 / case.L, 20))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_few_components_need_no_samples(n):
    """Oracle: the same loop; where 2 ⌈√n⌉ >= n no random number is drawn."""
    case = AffineSum(n)
    generator = seeded(0)
    before = generator.get_state()
    result = vr_halpern(case.operator, case.start, L=case.L, tol=0.0, max_epochs=16, generator=generator)
    torch.testing.assert_close(result.u, anchored_loop(case.value, case.start, 1 / case.L, 15), rtol=1e-12, atol=1e-13)
    assert torch.equal(generator.get_state(), before)


def test_steps_are_the_recursion():
    """Oracle: the algorithm written out with the same draws: schedule of p_k and λ_k, batches, and the budget."""
    case = AffineSum(100)
    result = vr_halpern(case.operator, case.start, L=case.L, tol=0.0, max_epochs=12, generator=seeded(5))
    g = seeded(5)
    u = anchor = case.start
    spent = k = 0
    value = previous = u
    refreshed = []
    while True:
        p = 1.0 if k < 2 else 4 / (min(k, 10) + 5)
        refresh = p == 1 or float(torch.rand((), generator=g)) < p
        if spent + (100 if refresh else 20) + 100 > 1200:
            break
        if refresh:
            value = case.value(u)
            refreshed.append(float(value.norm()))
            spent += 100
        else:
            index = torch.randint(100, (10,), generator=g)
            value = value + case.mean(u, index) - case.mean(previous, index)
            spent += 20
        previous = u
        u = 2 / (k + 4) * anchor + (1 - 2 / (k + 4)) * u - value / case.L
        k += 1
    torch.testing.assert_close(result.u, u, rtol=1e-11, atol=1e-12)
    assert result.num_steps == k
    assert result.evaluations == case.operator.evaluations == spent + 100 <= 1200
    assert [c.residual for c in result.residual_history[:-1]] == pytest.approx(refreshed)
    assert result.residual == pytest.approx(float(case.value(u).norm()))
    assert 0 < len(refreshed) < k


@pytest.mark.parametrize("estimator", ["page", "svrg", "saga"])
@pytest.mark.parametrize("restart", ["residual-halving", 40])
def test_finds_the_solution(estimator, restart):
    """Oracle: the linear solve; strong monotonicity (mean of s > 0.9) bounds the distance by the residual."""
    case = AffineSum(400)
    result = vr_halpern(
        case.operator,
        case.start,
        L=case.L,
        estimator=estimator,
        restart=restart,
        tol=1e-6,
        max_epochs=400,
        generator=seeded(0),
    )
    assert result.converged
    assert result.num_restarts > 3
    assert float((result.u - case.solution()).norm()) <= result.residual / 0.9 <= 1e-6 / 0.9


def test_beats_full_passes_on_many_components():
    """Oracle: deterministic Halpern at the same number of evaluations, on 20,000 components with a tail of lam."""
    n = 20_000
    g = seeded(0)
    lam = torch.logspace(-4, 0, 10, dtype=torch.float64)
    s = 1 + 0.3 * (2 * torch.rand(n, dtype=torch.float64, generator=g) - 1)
    c = 1 + torch.randn(n, 10, dtype=torch.float64, generator=g)
    center = (s.unsqueeze(1) * c).mean(0)
    op = FiniteSumOperator(
        lambda u, i: lam * (s[i].unsqueeze(1) * (u - c[i])).mean(0),
        n,
        10,
        full_fn=lambda u: lam * (s.mean() * u - center),
    )
    u0 = torch.zeros(10, dtype=torch.float64)
    ours = [vr_halpern(op, u0, L=1.3, tol=0.0, max_epochs=31, generator=seeded(i)).residual for i in range(4)]
    theirs = halpern(op, u0, L=1.0, tol=0.0, max_epochs=31).residual
    assert math.exp(sum(map(math.log, ours)) / 4) < theirs / 1.4


def test_constrained_solution_is_certified():
    """Oracle: the projection of the mean target on a ball, where F is the gradient of the mean squared distance."""
    targets = 2 + torch.randn(400, 3, dtype=torch.float64, generator=seeded(1))
    ball = Ball(1.0)
    op = FiniteSumOperator(lambda u, i: u - targets[i].mean(0), 400, 3)
    result = vr_halpern(
        op,
        torch.zeros(3, dtype=torch.float64),
        L=1.0,
        resolvent=lambda v, _eta: ball(v),
        restart="residual-halving",
        tol=1e-8,
        generator=seeded(0),
    )
    assert result.converged
    torch.testing.assert_close(result.u, ball(targets.mean(0)), rtol=0, atol=1e-7)
    certificate = inclusion_residual(op, result.u, resolvent=lambda v, _eta: ball(v), eta=1.0)
    assert certificate.residual == pytest.approx(result.residual, rel=1e-6)


@pytest.mark.parametrize("estimator", ["page", "svrg", "saga"])
@pytest.mark.parametrize("weighted", [False, True])
def test_continued_run_is_the_same_run(estimator, weighted):
    """Oracle: the run that was not interrupted, bit for bit, three budgets further on; a state may be used twice."""
    case = AffineSum(200)
    options = {
        "estimator": estimator,
        "importance": case.s if weighted else None,
        "restart": "residual-halving",
        "tol": 0.0,
    }
    whole = vr_halpern(case.operator, case.start, L=case.L, max_epochs=24, generator=seeded(2), **options)
    part = vr_halpern(case.operator, case.start, L=case.L, max_epochs=7, generator=seeded(2), **options)
    for _ in range(2):
        middle = vr_halpern(case.operator, part.state, max_epochs=15, generator=seeded(9), **options)
        again = vr_halpern(case.operator, middle.state, max_epochs=24, generator=seeded(8), **options)
        assert torch.equal(again.u, whole.u)
        assert again.residual_history == whole.residual_history
        assert (again.num_steps, again.num_restarts) == (whole.num_steps, whole.num_restarts)


def test_forced_refreshes_bound_the_gap_between_certificates():
    """Oracle: the evaluations written on the certificates; no two are further apart than asked, plus one step."""
    case = AffineSum(900)
    result = vr_halpern(
        case.operator,
        case.start,
        L=case.L,
        refresh_probability=1e-6,
        certify_every=2.0,
        tol=0.0,
        max_epochs=20,
        generator=seeded(0),
    )
    at = [c.evaluations for c in result.residual_history]
    assert len(at) >= 6
    assert max(b - a for a, b in itertools.pairwise(at)) <= 2 * 900 + 2 * 30 + 900


def test_importance_sampling_gains_where_components_differ():
    """Oracle: uniform sampling with its own, larger L, over eight seeds: a tenth of the components is large."""
    n = 900
    s = torch.ones(n, dtype=torch.float64)
    s[: n // 10] = 20
    c = torch.randn(n, 4, dtype=torch.float64, generator=seeded(1)) + 1
    lam = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)

    def each(u, i):
        return lam * s[i].unsqueeze(1) * (u - c[i])

    op = FiniteSumOperator(lambda u, i: each(u, i).mean(0), n, 4, each)
    u0 = torch.zeros(4, dtype=torch.float64)
    # cocoercivity on average: E s_i² / E s_i uniformly; the mean of s with weights
    uniform_L, weighted_L = float(s.square().mean() / s.mean()), float(s.mean())

    def log_residual(L, seed, importance):
        run = vr_halpern(op, u0, L=L, importance=importance, tol=0.0, max_epochs=40, generator=seeded(seed))
        return math.log(run.residual)

    gains = [log_residual(uniform_L, i, None) - log_residual(weighted_L, i, s) for i in range(8)]
    mean = sum(gains) / 8
    error = (sum((g - mean) ** 2 for g in gains) / 7 / 8) ** 0.5
    assert mean > 4 * error > 0


def test_missing_constant_is_guessed_and_paid_for():
    """Oracle: the constant in closed form; its evaluations stand in the result."""
    case = AffineSum(400)
    result = vr_halpern(case.operator, case.start, tol=0.0, max_epochs=20, generator=seeded(0))
    exact = float(torch.linalg.matrix_norm(case.M, 2) * case.s.square().mean().sqrt())
    assert 1 / (1.6 * exact) <= result.state.eta <= 1 / exact
    assert result.evaluations == case.operator.evaluations <= 20 * 400
    assert result.residual_history[0].evaluations == 17 * 256 + 400


@pytest.mark.parametrize(("step", "eta"), [("practical", 0.5), ("theory", 0.125), (0.3, 0.3)])
def test_named_steps(step, eta):
    """Oracle: 1/L, 1/(4L), or the number itself."""
    case = AffineSum(20)
    assert vr_halpern(case.operator, case.start, L=2.0, step=step, max_epochs=3).state.eta == eta


def test_guard_against_divergence():
    """Oracle: the Ouyang-Xu quadratic game with n = 200; step 0.3 stays bounded, step 0.4 does not."""
    op = quadratic_game(200)
    u0 = torch.full((400,), 1 / 200, dtype=torch.float64)
    fine = vr_halpern(op, u0, step=0.3, max_epochs=400, generator=seeded(0))
    assert fine.residual < 2 * fine.residual_history[0].residual
    with pytest.raises(ConvergenceError, match="Lower the step"):
        vr_halpern(op, u0, step=0.4, max_epochs=3000, generator=seeded(0))


def test_converged_start_costs_one_pass():
    """Oracle: the solution itself: certified, returned, no step made."""
    case = AffineSum(50)
    result = vr_halpern(case.operator, case.solution(), L=case.L, tol=1e-10)
    assert result.converged
    assert (result.num_steps, result.evaluations) == (0, 50)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"L": 0.0}, "L > 0"),
        ({"L": -1.0}, "L > 0"),
        ({"L": float("nan")}, "L > 0"),
        ({"step": 0.0}, "step"),
        ({"step": "brave"}, "step"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 21}, "batch_size"),
        ({"refresh_probability": 0.0}, "refresh_probability"),
        ({"refresh_probability": 1.5}, "refresh_probability"),
        ({"restart": 0}, "restart"),
        ({"restart": "often"}, "restart"),
        ({"certify_every": 0.0}, "certify_every"),
        ({"estimator": "sarah"}, "estimator"),
        ({"importance": torch.zeros(20)}, "importance"),
        ({"tol": -1.0}, "tol"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"max_epochs": float("inf")}, "max_epochs"),
    ],
)
def test_bad_options_are_refused_before_work(options, name):
    """Oracle: the documented error, raised with no evaluation made."""
    case = AffineSum(20)
    with pytest.raises(ArgumentError, match=name):
        vr_halpern(case.operator, case.start, **({"L": 1.0} | options))
    assert case.operator.evaluations == 0


def test_batches_are_counted_in_integers():
    """Oracle: the documented error, raised with no evaluation made, by both solvers with batches."""
    case = AffineSum(20)
    for solver in (vr_halpern, inexact_halpern):
        with pytest.raises(ArgumentTypeError, match="batch_size to be an integer"):
            solver(case.operator, case.start, L=1.0, batch_size=3.5)
    assert case.operator.evaluations == 0


def test_state_must_fit():
    """Oracle: the documented errors for a state of another estimator or another operator."""
    case = AffineSum(20)
    state = vr_halpern(case.operator, case.start, L=case.L, max_epochs=3).state
    with pytest.raises(ArgumentError, match="another estimator"):
        vr_halpern(case.operator, state, estimator="svrg")
    with pytest.raises(ShapeError, match="u0"):
        vr_halpern(AffineSum(20, dim=4).operator, state)
