"""Conjugate directions by line search against conjugate gradients and dense algebra."""

import pytest
import torch

from hesse.errors import ConvergenceError, NumericalError
from hesse.linalg import Dense, PoissonStencil, Status, cg
from hesse.pde.dcdm import (
    DCDMNet,
    DeepConjugateDirection,
    conjugate_directions,
)
from tests.pde.dcdm.cases import Constant, Shift, identity, obstacle, random_spd, right_hand_sides, seeded


@pytest.mark.parametrize("i_orth", [1, 2, 100])
def test_identity_is_conjugate_gradients(i_orth):
    """Oracle: textbook CG written out here, iterate by iterate, in float64 at n = 100."""
    operator = random_spd(100, condition=10)  # at more, rounding drives even two codes of CG apart
    b = torch.randn(100, dtype=torch.float64, generator=seeded(1))
    seen = []
    conjugate_directions(
        operator,
        b,
        identity,
        i_orth=i_orth,
        tol=1e-10,
        fallback=None,
        callback_fn=lambda _k, x, _r: seen.append(x.clone()),
    )
    x, r = torch.zeros_like(b), b.clone()
    p = r.clone()
    assert len(seen) > 20
    for iterate in seen:
        image = operator @ p
        alpha = (r @ r) / (p @ image)
        x, fresh = x + alpha * p, r - alpha * image
        p, r = fresh + (fresh @ fresh) / (r @ r) * p, fresh
        assert (iterate[:, 0] - x).norm() <= 1e-8 * x.norm()


def test_full_window_ends_in_n_steps_for_any_function():
    """Oracle: finite termination of conjugate directions; f is a random linear map, so rounding leaves 1e-7."""
    n = 30
    operator = random_spd(n, condition=100)
    mixed = torch.randn(n, n, dtype=torch.float64, generator=seeded(2))
    b = torch.randn(n, dtype=torch.float64, generator=seeded(3))
    solution = conjugate_directions(operator, b, lambda r: mixed @ r, i_orth=n, tol=1e-6, max_steps=n, fallback=None)
    assert bool(solution.converged)
    assert solution.num_steps <= n


@pytest.mark.parametrize("case", ["pretrained", "random", "useless", "three levels"])
def test_energy_error_never_grows(case):
    """Oracle: exact line search: ‖x - x*‖_A falls, whatever the network, with and without the fallback."""
    fluid = obstacle((24, 20))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 2)
    exact = cg(operator, b, rtol=1e-13, max_steps=2000).x
    network = {
        "random": lambda: DCDMNet(2, 4, generator=seeded(0)),
        "useless": Shift,
        "three levels": lambda: DCDMNet(2, 4, levels=3, generator=seeded(0)),
    }
    errors = []

    def keep(_step, x, _r):
        gap = x - exact
        errors.append((gap * (operator @ gap)).sum(0))

    for fallback in ("cg", None):
        solver = (
            DeepConjugateDirection.pretrained() if case == "pretrained" else DeepConjugateDirection(network[case]())
        )
        solver.fallback = fallback
        errors.clear()
        solver.solve(operator, b, max_steps=60, callback_fn=keep)
        energy = torch.stack(errors)
        assert bool((energy[1:] <= energy[:-1] * (1 + 1e-9) + 1e-24).all())


def test_useless_network_costs_a_factor_over_conjugate_gradients():
    """Oracle: the number of steps of cg; with bursts that double, at most a constant factor, here within 2.5."""
    fluid = obstacle((48, 48))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 3)
    plain = cg(operator, b, rtol=1e-6, max_steps=1000).num_steps
    solver = DeepConjugateDirection(Constant(0.0), max_steps=1000)
    assert solver.solve(operator, b).require().num_steps <= plain + 2  # zero output: the residual every time
    stuck = DeepConjugateDirection(Constant(1.0), max_steps=1000).solve(operator, b).require()
    assert stuck.num_steps <= 2.5 * plain
    assert bool((stuck.fallback_steps > 0).all())


def test_without_fallback_a_useless_network_stalls():
    """Oracle: the same system with the fallback converges; so the fallback is what did it."""
    fluid = obstacle((48, 48))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 1)
    solver = DeepConjugateDirection(Shift(), fallback=None, max_steps=300)
    stalled = solver.solve(operator, b)
    assert not bool(stalled.converged.any())
    assert stalled.status == Status.MAX_STEPS
    with pytest.raises(ConvergenceError, match="dcdm"):
        stalled.require()
    solver.fallback = "cg"
    assert bool(solver.solve(operator, b).converged.all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_output_that_is_no_direction_becomes_the_residual(value):
    """Oracle: the iterates with f(r) = r."""
    operator = PoissonStencil(torch.ones(12, 12, dtype=torch.bool), dtype=torch.float64)
    b = right_hand_sides(operator.fluid, 2)
    solution = DeepConjugateDirection(Constant(value)).solve(operator, b)
    plain = conjugate_directions(operator, b, identity)
    torch.testing.assert_close(solution.x, plain.x, rtol=0, atol=1e-12)
    assert torch.equal(solution.fallback_steps, solution.steps)


def test_columns_do_not_see_each_other():
    """Oracle: each column solved by itself; they stop at different steps."""
    fluid = obstacle((20, 20))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 4)
    b[:, 1] = 0
    b[:, 2] *= 1e-30
    b[:, 3] = operator @ torch.ones(400, dtype=torch.float64).where(fluid.flatten(), 0)
    solver = DeepConjugateDirection.pretrained()
    together = solver.solve(operator, b).require()
    for j in range(4):
        alone = solver.solve(operator, b[:, j]).require()
        assert int(together.steps[j]) == alone.num_steps
        torch.testing.assert_close(together.x[:, j], alone.x, rtol=1e-6, atol=1e-9 * float(alone.x.abs().max()))
    assert int(together.steps[1]) == 0
    assert not bool(together.x[:, 1].any())


def test_indefinite_operator_is_refused_with_the_step():
    """Oracle: a matrix with one negative eigenvalue."""
    matrix = torch.diag(torch.tensor([1.0, 2.0, -3.0, 4.0], dtype=torch.float64))
    b = torch.ones(4, dtype=torch.float64)
    with pytest.raises(NumericalError, match=r"step \d+.*positive definite"):
        conjugate_directions(Dense(matrix, is_symmetric=True), b, identity)


def test_right_hand_side_outside_the_range_never_converges():
    """Oracle: the residual can not fall below the part of b in the null space."""
    operator = Dense(torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)), is_psd=True)
    solution = conjugate_directions(operator, torch.ones(3, dtype=torch.float64), identity, fallback=None)
    assert not bool(solution.converged)
    assert float(solution.residual) >= 1 - 1e-12


def test_history_starts_at_the_right_hand_side_and_ends_at_the_residual():
    """Oracle: the norms of b and of the explicit residual, and of those the callback sees."""
    fluid = obstacle((16, 16))
    operator = PoissonStencil(fluid, dtype=torch.float64)
    b = right_hand_sides(fluid, 2)
    seen = []
    solution = DeepConjugateDirection.pretrained().solve(
        operator, b, record_history=True, callback_fn=lambda _k, _x, r: seen.append(r.norm(dim=0))
    )
    torch.testing.assert_close(solution.history[0], b.norm(dim=0))
    torch.testing.assert_close(solution.history[1:], torch.stack(seen))
    torch.testing.assert_close(solution.history[-1], solution.residual, rtol=1e-6, atol=0)
