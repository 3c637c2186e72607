"""The inexact resolvent: VR-FoRB against dense solves, and Halpern on it for operators that are monotone only."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ConvergenceError
from hesse.linalg import Ball
from hesse.optim import FiniteSumOperator, inexact_halpern, matrix_game, vr_forb
from tests.optim.vr_halpern.cases import AffineSum, seeded


class SkewSum:
    """F_i(u) = S_i u - c_i with random skew S_i: monotone, nowhere cocoercive."""

    def __init__(self, n: int, dim: int = 6) -> None:
        g = seeded(2)
        base = torch.randn(dim, dim, dtype=torch.float64, generator=g)
        rows = 0.3 * torch.randn(n, dim, dim, dtype=torch.float64, generator=g)
        parts = base + rows
        self.S = (parts - parts.mT) / 2
        self.c = torch.randn(n, dim, dtype=torch.float64, generator=g)
        self.operator = FiniteSumOperator(self.mean, n, dim)
        self.L = float(torch.linalg.matrix_norm((self.S.mT @ self.S).mean(0), 2) ** 0.5)
        self.start = torch.ones(dim, dtype=torch.float64)

    def mean(self, u, index):
        return self.S[index].mean(0) @ u - self.c[index].mean(0)

    def matrix(self):
        return self.S.mean(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_component_is_forward_reflected_backward(dtype):
    """Oracle: the deterministic method as a loop, v - γ (2 Φ(v) - Φ(v before)), with a projection."""
    case = AffineSum(1, dtype=dtype)
    ball = Ball(1.2)
    scale, strong, L, steps = 0.7, 1.0, 1.5, 25
    found = vr_forb(
        case.operator,
        case.start,
        L=L,
        scale=scale,
        strong=strong,
        resolvent=lambda v, _eta: ball(v),
        num_steps=steps,
    )
    gamma = 0.45 / (scale * L + strong)
    v = before = case.start
    for _ in range(steps):
        phi, phi_before = (scale * case.value(w) + strong * (w - case.start) for w in (v, before))
        v, before = ball(v - gamma * (2 * phi - phi_before)), v
    torch.testing.assert_close(found, v)


@pytest.mark.parametrize(("batch_size", "weighted"), [(1, False), (8, False), (1, True)])
def test_inner_solver_finds_the_resolvent(batch_size, weighted):
    """Oracle: the dense solve of (I + c F) z = u_0."""
    case = AffineSum(64)
    u0 = torch.linspace(-1, 1, 6, dtype=torch.float64)
    c = 0.8
    found = vr_forb(
        case.operator,
        u0,
        L=case.L,
        scale=c,
        batch_size=batch_size,
        importance=case.s if weighted else None,
        num_steps=6000 // batch_size,
        generator=seeded(0),
    )
    matrix = torch.eye(6, dtype=torch.float64) + c * case.s.mean() * case.M
    wanted = torch.linalg.solve(matrix, u0 + c * case.c.mean(0))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_inner_solver_converges_linearly():
    """Oracle: the dense solve; twice as many steps square the error, over 20 seeds."""
    case = AffineSum(50)
    matrix = torch.eye(6, dtype=torch.float64) + case.s.mean() * case.M
    wanted = torch.linalg.solve(matrix, case.start + case.c.mean(0))

    def log_error(steps):
        runs = [vr_forb(case.operator, case.start, L=case.L, num_steps=steps, generator=seeded(i)) for i in range(20)]
        return sum(math.log(float((run - wanted).norm())) for run in runs) / 20

    start, middle, end = math.log(float(wanted.norm())), log_error(700), log_error(1400)
    assert middle - start < -1
    assert end - middle == pytest.approx(middle - start, rel=0.5)


def test_evaluations_of_the_inner_solver():
    """Oracle: counting: a first pass, 2 B a step, and n for each snapshot, of which there are p a step in the mean."""
    case = AffineSum(40)
    vr_forb(case.operator, case.start, L=case.L, num_steps=4000, generator=seeded(0))
    snapshots = (case.operator.evaluations - 40 - 8000) / 40
    assert snapshots == int(snapshots)
    assert abs(snapshots - 100) <= 4 * 100**0.5


def test_solves_what_is_monotone_only():
    """Oracle: the dense solve of a skew system, on which a forward step diverges."""
    case = SkewSum(50)
    result = inexact_halpern(
        case.operator, case.start, L=case.L, inner_constant=0.3, tol=2e-2, max_epochs=3000, generator=seeded(0)
    )
    assert result.converged
    solution = torch.linalg.solve(case.matrix(), case.c.mean(0))
    weakest = float(torch.linalg.svdvals(case.matrix())[-1])
    assert float((result.u - solution).norm()) <= 2e-2 / weakest * 1.000001
    assert result.evaluations == case.operator.evaluations


def test_solves_a_game_of_mixed_strategies():
    """Oracle: rock, paper, scissors with unequal stakes, whose equilibrium is (0.25, 0.25, 0.5)."""
    A = torch.tensor([[0.0, -2.0, 1.0], [2.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], dtype=torch.float64)
    game = matrix_game(A)
    u0 = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    result = inexact_halpern(
        game.operator, u0, L=4.0, resolvent=game.resolvent, tol=2e-2, max_epochs=20_000, generator=seeded(0)
    )
    assert result.converged
    wanted = torch.tensor([0.25, 0.25, 0.5] * 2, dtype=torch.float64)
    torch.testing.assert_close(result.u, wanted, rtol=0, atol=0.05)
    assert game.duality_gap(result.u) < 0.1


def test_budget_and_certificates():
    """Oracle: counting: within the budget to the last evaluation, certificates free but for the closing one."""
    case = AffineSum(60)
    result = inexact_halpern(case.operator, case.start, L=case.L, tol=0.0, max_epochs=12.5, generator=seeded(0))
    assert result.evaluations == case.operator.evaluations <= 12.5 * 60
    assert result.evaluations > 11 * 60
    assert [c.cost for c in result.residual_history] == [0] * result.num_steps + [60]
    assert result.residual == pytest.approx(float(case.value(result.u).norm()))
    assert result.residual < result.residual_history[0].residual


def test_divergence_is_an_error_with_advice():
    """Oracle: an inner step a hundred times the stable one."""
    case = AffineSum(60)
    with pytest.raises(ConvergenceError, match="Lower the step"):
        inexact_halpern(case.operator, case.start, L=case.L, inner_step=20.0, generator=seeded(0))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"L": 0.0}, "L"),
        ({"scale": 0.0}, "scale"),
        ({"inner_constant": 0.0}, "inner_constant"),
        ({"inner_step": -1.0}, "inner_step"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 9}, "batch_size"),
        ({"residual_step": 0.0}, "residual_step"),
        ({"tol": float("nan")}, "tol"),
        ({"max_epochs": 0.0}, "max_epochs"),
        ({"importance": torch.ones(3)}, "importance"),
    ],
)
def test_bad_options_are_refused_before_work(options, name):
    """Oracle: the documented error, raised with no evaluation made."""
    case = AffineSum(8)
    with pytest.raises(ArgumentError, match=name):
        inexact_halpern(case.operator, case.start, **({"L": 1.0} | options))
    assert case.operator.evaluations == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"scale": -1.0}, "scale"),
        ({"strong": -1.0}, "strong"),
        ({"num_steps": -1}, "num_steps"),
        ({"step": 0.0}, "step"),
    ],
)
def test_bad_options_of_the_inner_solver(options, name):
    """Oracle: the documented error, raised with no evaluation made."""
    case = AffineSum(8)
    with pytest.raises(ArgumentError, match=name):
        vr_forb(case.operator, case.start, L=1.0, **options)
    assert case.operator.evaluations == 0
