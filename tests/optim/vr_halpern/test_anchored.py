"""Halpern, extragradient and anchored extragradient with full passes."""

import pytest
import torch

from hesse.errors import ArgumentError, ConvergenceError
from hesse.linalg import Simplex
from hesse.optim import FiniteSumOperator, extra_anchored_gradient, extragradient, halpern
from tests.optim.vr_halpern.cases import AffineSum, seeded

METHODS = [halpern, extragradient, extra_anchored_gradient]


def by_hand(method, F, u, eta, project, num_steps):
    """The three iterations as they are written in their papers."""
    anchor = u
    for k in range(num_steps):
        weight = 1 / (k + 2)
        if method is halpern:
            u = weight * anchor + (1 - weight) * project(u - eta * F(u))
        else:
            base = u if method is extragradient else weight * anchor + (1 - weight) * u
            u = project(base - eta * F(project(base - eta * F(u))))
    return u


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constrained", [False, True])
def test_iterates_are_those_of_the_papers(method, dtype, constrained):
    """Oracle: the iteration written as a loop; and the epochs spent, counted by hand."""
    case = AffineSum(10, dtype=dtype)
    project = Simplex() if constrained else (lambda v: v)
    passes = 1 if method is halpern else 2
    result = method(
        case.operator,
        case.start,
        step=0.4,
        resolvent=(lambda v, _eta: project(v)) if constrained else None,
        tol=0.0,
        max_epochs=12 * passes + 1,
    )
    torch.testing.assert_close(result.u, by_hand(method, case.value, case.start, 0.4, project, 12))
    assert result.u.dtype == dtype
    assert result.num_steps == 12
    assert result.evaluations == case.operator.evaluations == (12 * passes + 1) * 10
    assert result.epochs == 12 * passes + 1
    assert len(result.residual_history) == 13
    assert [c.cost for c in result.residual_history] == [0] * 12 + [10]


@pytest.mark.parametrize(("method", "rate"), [(halpern, 1.0), (extragradient, 0.5), (extra_anchored_gradient, 1.0)])
def test_residual_obeys_its_rate_on_a_rotation(method, rate):
    """Oracle: the theorems, residual <= C L ‖u_0 - u*‖ k^-rate, on the hardest monotone operator, a quarter turn.

    Halpern needs cocoercivity: there the turn is by less, F = u + turn(u).
    """
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    matrix = turn + torch.eye(2, dtype=torch.float64) if method is halpern else turn
    op = FiniteSumOperator(lambda u, _index: matrix @ u, 1, 2)
    L = 2.0 if method is halpern else 1.0
    u0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for steps in (10, 100, 1000):
        result = method(op, u0, L=L, tol=0.0, max_epochs=2 * steps + 1)
        assert result.residual <= 5 * L * steps**-rate


@pytest.mark.parametrize("method", METHODS)
def test_stops_at_the_tolerance(method):
    """Oracle: the solution in closed form; strong monotonicity (1 - 0.3) bounds the distance by the residual."""
    case = AffineSum(10)
    seen = []
    result = method(
        case.operator, case.start, L=case.L, tol=1e-2, max_epochs=2000, callback=lambda c, u: seen.append((c, u))
    )
    assert result.converged
    assert result.residual <= 1e-2
    assert float((result.u - case.solution()).norm()) <= 1e-2 / 0.7
    assert result.evaluations == case.operator.evaluations < 20_000
    assert tuple(c for c, _ in seen) == result.residual_history
    assert torch.equal(seen[-1][1], result.u)
    assert seen[-1][0].residual <= 1e-2 < seen[-2][0].residual


@pytest.mark.parametrize("method", METHODS)
def test_one_epoch_certifies_the_start(method):
    """Oracle: the closed form at u0; one epoch pays for a certificate and no step."""
    case = AffineSum(10)
    result = method(case.operator, case.start, L=case.L, max_epochs=1)
    assert result.num_steps == 0
    assert torch.equal(result.u, case.start)
    assert result.residual == pytest.approx(float(case.value(case.start).norm()))
    assert not result.converged


@pytest.mark.parametrize("method", METHODS)
def test_divergence_is_an_error_with_advice(method):
    """Oracle: a step of fifty times the bound, which stretches every error."""
    case = AffineSum(10)
    with pytest.raises(ConvergenceError, match="Lower the step"):
        method(case.operator, case.start, step=50.0, max_epochs=200)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "L or step"),
        ({"L": 0.0}, "L > 0"),
        ({"L": float("nan")}, "L > 0"),
        ({"step": -1.0}, "step"),
        ({"L": 1.0, "tol": -1.0}, "tol"),
        ({"L": 1.0, "max_epochs": 0.5}, "max_epochs"),
    ],
)
def test_bad_numbers_are_refused_before_work(method, options, name):
    """Oracle: the documented error, raised with no evaluation made."""
    case = AffineSum(10)
    with pytest.raises(ArgumentError, match=name):
        method(case.operator, case.start, **options)
    assert case.operator.evaluations == 0


def test_nan_is_found_at_the_next_certificate():
    """Oracle: an operator that turns to NaN after two calls."""
    calls = []

    def component(u, _index):
        calls.append(1)
        return u if len(calls) < 3 else u * float("nan")

    op = FiniteSumOperator(component, 1, 2)
    with pytest.raises(ConvergenceError, match="nan"):
        halpern(op, torch.randn(2, generator=seeded(0)), step=0.1)
