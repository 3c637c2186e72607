"""The descent against a plain loop, autograd, gradient descent on the ideal loss, and the truth."""

import math
from dataclasses import replace

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim.subgm import StepRule, l1_subgradient, numerical_rank, recover_psd
from hesse.optim.subgm.measurements import as_measurements
from tests.optim.subgm.cases import F64, problem, relative_error, seeded

GEOMETRIC = StepRule("geometric")


def test_subgradient_is_the_gradient():
    """Oracle: autograd of half the mean absolute residual, and of Huber's loss over its width."""
    A, y, _ = problem(outliers=0.2)
    U = torch.randn(6, 4, generator=seeded(1), dtype=F64).requires_grad_()
    residual = torch.einsum("mij,ik,jk->m", A, U, U) - y
    (sharp,) = torch.autograd.grad(residual.abs().mean() / 2, U, retain_graph=True)
    huber = torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), delta=3.0) / 3
    (smooth,) = torch.autograd.grad(huber / 2, U)
    with torch.no_grad():
        loss, Q = l1_subgradient(as_measurements(A), U, y)
        assert float(loss) == pytest.approx(float(residual.abs().mean()), rel=1e-13)
        torch.testing.assert_close(Q @ U, sharp, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(l1_subgradient(as_measurements(A), U, y, 3.0)[1] @ U, smooth, rtol=1e-12, atol=1e-12)


def test_ties_have_sign_zero():
    """Oracle: at the truth every residual is zero, and 0 lies in the sub-differential."""
    A = torch.ones(3, 1, 1, dtype=F64)
    _, Q = l1_subgradient(as_measurements(A), torch.ones(1, 1, dtype=F64), torch.ones(3, dtype=F64))
    assert Q.item() == 0


def plain_loop(A, y, alpha, rule, steps):
    """Run U ← U - η_t QU with dense products, from the leading eigenvectors of (1/m) Σ sign(y_i) A_i."""
    symmetric = (A + A.mT) / 2
    values, vectors = torch.linalg.eigh(torch.einsum("m,mij->ij", y.sign(), symmetric) / len(y))
    B = vectors * values.clamp_min(0).sqrt()
    U = alpha * B / torch.linalg.matrix_norm(B, 2)
    for t in range(steps):
        e = torch.einsum("mij,ij->m", symmetric, U @ U.mT) - y
        Q = torch.einsum("m,mij->ij", e.sign(), symmetric) / len(y)
        if rule.kind == "adaptive":
            eta = rule.eta0 * math.pi / 2 * e.abs().mean()
        else:
            eta = rule.eta0 * rule.factor**t / torch.linalg.matrix_norm(Q, 2)
        U = U - eta * Q @ U
    return U @ U.mT


@pytest.mark.parametrize("rule", [GEOMETRIC, StepRule("adaptive")])
def test_against_a_plain_loop(rule):
    """Oracle: the algorithm as a loop; median |y|/0.6745 is within a factor of two of one here, so the unit is one."""
    A, y, _ = problem(3)
    assert 0.5 < float(y.abs().median()) / 0.6745 < 2
    found = recover_psd(A, y, init_scale=1e-3, rule=rule, max_steps=60, tol=0.0)
    torch.testing.assert_close(found.matrix, plain_loop(A, y, 1e-3, rule, 60), rtol=1e-8, atol=1e-10)
    assert found.num_steps == 60


def test_the_adaptive_step_is_gradient_descent_in_the_limit():
    """Oracle: η (UUᵀ - X)U; the gap falls with 1/√m and is below 3 % at m = 2 · 10⁵, d = 5."""
    A, y, truth = problem(1, m=200_000, d=5)
    U = torch.randn(5, 5, generator=seeded(2), dtype=F64) / 2
    loss, Q = l1_subgradient(as_measurements(A), U, y)
    ideal = (U @ U.mT - truth) @ U
    assert relative_error(math.pi / 2 * loss * Q @ U, ideal) < 0.03


@pytest.mark.parametrize("rule", [StepRule(), GEOMETRIC])
@pytest.mark.parametrize("rank", [2, 6])
def test_recovery_in_spite_of_outliers(rule, rank):
    """Oracle: the truth; a tenth of the targets are off by ten."""
    A, y, truth = problem(outliers=0.1)
    found = recover_psd(A, y, rank=rank, rule=rule, generator=seeded())
    assert relative_error(found.matrix, truth) < 1e-6
    assert numerical_rank(found.factor) == 2


def test_a_small_start_matters():
    """Oracle: the truth; noiseless, adaptive steps, the error grows with the scale of the start."""
    A, y, truth = problem()
    errors = [
        relative_error(recover_psd(A, y, init_scale=a, rule=StepRule("adaptive"), max_steps=400).matrix, truth)
        for a in (1e-6, 1e-2, 1.0)
    ]
    assert errors[0] < 1e-7
    assert errors[0] < errors[1] < errors[2]


def test_too_fast_a_decay_stalls_and_the_plateau_rule_does_not():
    """Oracle: the truth; the total length of all steps, 0.3/(1 - 0.97) = 10, is below the growth of log 10⁶ · √2."""
    A, y, truth = problem(outliers=0.1)
    stalled = recover_psd(A, y, rule=StepRule("geometric", decay=0.97), max_steps=600)
    assert relative_error(stalled.matrix, truth) > 0.1
    found = recover_psd(A, y, max_steps=2500)
    assert bool(found.decaying)
    assert relative_error(found.matrix, truth) < 1e-6


def test_a_slow_start_does_not_trigger_the_plateau():
    """Oracle: the loss is flat while U is tiny; the windows are counted from ‖U‖_F > 0.01 only."""
    A, y, truth = problem()
    found = recover_psd(A, y, init_scale=1e-60, max_steps=2500)
    flat = int((found.losses > 0.99 * found.losses[0]).sum())
    assert flat > 400
    assert int(found.awake_steps) <= 2500 - flat + 10
    assert relative_error(found.matrix, truth) < 1e-6


def test_stacks_are_problems_of_their_own():
    """Oracle: one call a problem."""
    A, y, _ = problem(outliers=0.1)
    other = problem(outliers=0.3)[1] * 16  # another unit
    options = {"rule": StepRule(window=20), "max_steps": 150, "tol": 0.0, "init_scale": 1e-3}
    together = recover_psd(A, torch.stack([y, other]), **options)
    for i, single in enumerate((y, other)):
        alone = recover_psd(A, single, **options)
        torch.testing.assert_close(together.matrix[i], alone.matrix, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(together.losses[:, i], alone.losses, rtol=1e-6, atol=1e-8)
        assert together.awake_steps[i] == alone.awake_steps


@pytest.mark.parametrize("rule", [StepRule(window=20), GEOMETRIC, StepRule("adaptive")])
@pytest.mark.parametrize("held", [False, True])
def test_resuming_is_going_on(rule, held):
    """Oracle: one run without a break, bit by bit."""
    A, y, _ = problem(outliers=0.1)
    mask = (torch.arange(len(y)) % 10 == 0) if held else None
    options = {"rule": rule, "tol": 0.0, "holdout": mask, "init_scale": 1e-3}
    whole = recover_psd(A, y, max_steps=160, **options)
    part = recover_psd(A, y, max_steps=70, **options)
    again = recover_psd(A, y, max_steps=160, resume=part, **options)
    for name in ("factor", "last_factor", "losses", "multiplier", "awake_steps", "best_step", "held_out_losses"):
        a, b = getattr(whole, name), getattr(again, name)
        assert (a is None and b is None) or torch.equal(a, b), name


def test_units_are_those_of_the_data():
    """Oracle: four times the targets, twice the factor, exactly."""
    A, y, _ = problem(outliers=0.1)
    one, four = (recover_psd(A, scale * y, rule=StepRule("adaptive"), max_steps=50) for scale in (1, 4))
    assert torch.equal(2 * one.factor, four.factor)
    assert torch.equal(4 * one.losses, four.losses)


def test_asymmetric_matrices_are_symmetrised():
    """Oracle: the symmetric parts."""
    A, y, _ = problem()
    left, right = (recover_psd(B, y, max_steps=30).matrix for B in (A, (A + A.mT) / 2))
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-15)


def test_a_hold_out_picks_the_least_held_out_loss():
    """Oracle: the history; the factor returned has the least loss on measurements that took no part."""
    A, y, _ = problem(noise=1.0, m=120)
    mask = torch.arange(120) % 5 == 0
    found = recover_psd(A, y, rule=GEOMETRIC, max_steps=400, holdout=mask)
    assert found.held_out_losses is not None
    assert found.best_step is not None
    assert int(found.best_step) == int(found.held_out_losses.argmin())
    held = l1_subgradient(as_measurements(A[mask]), found.factor, y[mask])[0]
    assert float(held) == pytest.approx(float(found.held_out_losses.min()), rel=1e-12)


def test_batches_of_measurements():
    """Oracle: the truth; a step sees an eighth of the measurements."""
    A, y, truth = problem(outliers=0.1, m=800)
    found = recover_psd(A, y, batch_size=100, max_steps=2000, generator=seeded())
    assert relative_error(found.matrix, truth) < 1e-5


def test_float32():
    """Oracle: the truth, to rounding, also from a start whose square is far below the rounding of the targets."""
    A, y, truth = problem(outliers=0.1)
    for alpha in (1e-6, 1e-12):
        found = recover_psd(A.float(), y.float(), init_scale=alpha)
        assert found.factor.dtype == torch.float32
        assert relative_error(found.matrix.double(), truth) < 1e-5


def test_a_function_as_rule():
    """Oracle: the geometric rule written as a function."""
    A, y, _ = problem()
    rule = StepRule(lambda t, loss: 0.3 * 0.995**t)
    left, right = (recover_psd(A, y, rule=r, max_steps=100).matrix for r in (rule, GEOMETRIC))
    torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-12)


def test_a_zero_matrix_is_found():
    """Oracle: zero targets: U shrinks to nothing and Q with it."""
    A, y, _ = problem()
    found = recover_psd(A, torch.zeros_like(y), init="random", generator=seeded())
    assert bool(found.converged)
    assert float(found.matrix.abs().max()) < 1e-15
    assert numerical_rank(torch.zeros(4, 3)) == 0


def test_no_positive_eigenvalue_turns_to_a_random_start():
    """Oracle: negative targets have the spectral start 0; U is driven to zero from random columns."""
    A = torch.ones(3, 1, 1, dtype=F64)
    found = recover_psd(A, torch.full((3,), -1.0, dtype=F64), max_steps=5, tol=0.0, generator=seeded())
    assert 0 < float(found.factor.abs()) < 1e-6


def test_numerical_rank_by_hand():
    """Oracle: singular values given."""
    factor = torch.diag(torch.tensor([1.0, 0.5, 1e-4, 5e-5], dtype=F64))
    assert numerical_rank(factor) == 2
    assert numerical_rank(factor, min_gap=1e5) == 4
    assert numerical_rank(torch.ones(3, 1)) == 1
    assert numerical_rank(torch.diag(torch.tensor([1.0, 1.0, 1e-30, 0.0], dtype=F64))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 7}, "rank <= d = 6, got 7"),
        ({"rank": 0}, "rank >= 1, got 0"),
        ({"init_scale": 0.0}, "init_scale > 0"),
        ({"init_scale": 1e-160}, "init_scale 1e-160 is lost in torch.float64"),
        ({"max_steps": 0}, "max_steps >= 1"),
        ({"tol": -1.0}, "tol >= 0"),
        ({"smoothing": math.nan}, "smoothing >= 0"),
        ({"init": "zeros"}, "init 'spectral'"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"holdout": torch.ones(400, dtype=torch.bool)}, "both parts must have some"),
        ({"holdout": torch.ones(3, dtype=torch.bool)}, "holdout of 400 bools"),
    ],
)
def test_bad_options_are_refused(options, message):
    """Oracle: an error that names the option."""
    A, y, _ = problem()
    with pytest.raises(ArgumentError, match=message):
        recover_psd(A, y, **options)


@pytest.mark.parametrize("option", ["rank", "max_steps", "batch_size"])
def test_counts_must_be_integers(option):
    """Oracle: an error that names the option."""
    A, y, _ = problem()
    with pytest.raises(ArgumentTypeError, match=f"{option} to be an integer, got 2.5"):
        recover_psd(A, y, **{option: 2.5})


def test_no_start_vanishes_in_single_precision():
    """Oracle: the truth from the least start allowed; below, where UUᵀ is rounded to zero, the promised error."""
    A, y, truth = problem()
    found = recover_psd(A.float(), y.float(), init_scale=1.2e-19)
    assert relative_error(found.matrix, truth.float()) < 1e-5
    with pytest.raises(ArgumentError, match=r"init_scale 1e-24 is lost in torch\.float32"):
        recover_psd(A.float(), y.float(), init_scale=1e-24)


def test_bad_targets_are_refused():
    """Oracle: the errors promised; huge finite targets are welcome."""
    A, y, truth = problem()
    for bad in (math.nan, math.inf):
        with pytest.raises(ArgumentError, match="targets have NaN or Inf"):
            recover_psd(A, torch.cat([y[:-1], torch.tensor([bad], dtype=F64)]))
    with pytest.raises(ShapeError, match=r"expected targets \(..., 400\)"):
        recover_psd(A, y[:-1])
    with pytest.raises(ShapeError, match=r"got \(400,\) torch\.float32"):
        recover_psd(A, y.float())
    found = recover_psd(A, torch.cat([torch.tensor([1e200], dtype=F64), y[1:]]))
    assert relative_error(found.matrix, truth) < 1e-6


def test_a_foreign_resume_is_refused():
    """Oracle: the errors promised."""
    A, y, _ = problem()
    part = recover_psd(A, y, rank=3, max_steps=5)
    with pytest.raises(ShapeError, match=r"resume has a factor of shape \(6, 3\), expected \(6, 6\)"):
        recover_psd(A, y, resume=part)
    with pytest.raises(ShapeError, match="a hold-out exactly if"):
        recover_psd(A, y, rank=3, resume=replace(part, held_out_losses=part.losses))


def test_divergence_is_an_error():
    """Oracle: the adaptive rule beyond 2/σ₁ overflows."""
    A, y, _ = problem()
    with pytest.raises(NumericalError, match="overflowed at step"):
        recover_psd(A, y, rule=StepRule("adaptive", eta0=50.0))
