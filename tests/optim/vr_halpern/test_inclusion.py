"""Certificates: what they measure and what they cost."""

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import Box
from hesse.optim import FiniteSumOperator, halpern, inclusion_residual
from tests.optim.vr_halpern.cases import AffineSum, seeded


def test_residual_without_a_set_is_the_norm_of_the_operator():
    """Oracle: ‖F(u)‖ in closed form, for any step; zero at the solution."""
    case = AffineSum(12)
    u = torch.randn(6, dtype=torch.float64, generator=seeded(1))
    for eta in (0.1, 1.0, 7.0):
        found = inclusion_residual(case.operator, u, eta=eta)
        assert found.residual == pytest.approx(float(case.value(u).norm()))
    assert (found.cost, found.evaluations) == (12, 12)
    assert inclusion_residual(case.operator, case.solution()).residual < 1e-13


def test_residual_with_a_set_is_zero_at_the_constrained_solution():
    """Oracle: the nearest point of a box to a target, where the gradient u - target points out of the box."""
    target = torch.tensor([2.0, -3.0, 0.25], dtype=torch.float64)
    op = FiniteSumOperator(lambda u, _index: u - target, 5, 3)
    box = Box(-1.0, 1.0)
    resolvent = lambda v, _eta: box(v)  # noqa: E731
    assert inclusion_residual(op, box(target), resolvent=resolvent).residual == 0
    inside = torch.zeros(3, dtype=torch.float64)
    # the step from 0 is cut at ±1 in two entries
    wanted = torch.tensor([1.0, -1.0, 0.25]).norm()
    assert inclusion_residual(op, inside, resolvent=resolvent).residual == pytest.approx(float(wanted))


@pytest.mark.parametrize(
    ("resolvent", "error"),
    [
        (lambda v, _eta: v[:2], ShapeError),
        (lambda v, _eta: v.float(), ShapeError),
        (lambda _v, _eta: 0.0, ArgumentTypeError),
    ],
)
def test_resolvent_that_does_not_fit_is_named(resolvent, error):
    """Oracle: the documented error."""
    case = AffineSum(5)
    with pytest.raises(error, match="resolvent"):
        inclusion_residual(case.operator, case.start, resolvent=resolvent)
    with pytest.raises(error, match="resolvent"):
        halpern(case.operator, case.start, L=case.L, resolvent=resolvent)


@pytest.mark.parametrize("eta", [0.0, -1.0, float("inf"), float("nan")])
def test_step_of_the_residual_is_positive(eta):
    """Oracle: the documented error."""
    case = AffineSum(5)
    with pytest.raises(ArgumentError, match="eta"):
        inclusion_residual(case.operator, case.start, eta=eta)


def test_callback_is_not_charged():
    """Oracle: the same run without a callback."""
    case = AffineSum(20)
    plain = halpern(case.operator, case.start, L=case.L, tol=0.0, max_epochs=9)
    looked = halpern(
        case.operator,
        case.start,
        L=case.L,
        tol=0.0,
        max_epochs=9,
        callback=lambda _certificate, u: inclusion_residual(case.operator, u),
    )
    assert looked.residual_history == plain.residual_history
    assert torch.equal(looked.u, plain.u)
