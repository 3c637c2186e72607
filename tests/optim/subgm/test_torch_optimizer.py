"""The torch optimiser against the conformance suite, its formula, and the truth."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError
from hesse.optim.subgm import SubGMOptimizer, as_measurements
from hesse.testing import check_optimizer
from tests.optim.subgm.cases import F64, problem, relative_error, seeded


def test_the_optimiser_keeps_its_promises():
    """Oracle: the conformance suite."""
    assert len(check_optimizer(SubGMOptimizer)) == 14


def test_the_plateau_rule_keeps_them_too():
    """Oracle: the conformance suite, with a closure in each step."""

    def drive(optimizer, case):
        def closure():
            optimizer.zero_grad()
            loss = case.loss()
            loss.backward()
            return loss

        optimizer.step(closure)

    def factory(params, **options):
        return SubGMOptimizer(params, **({"step": "plateau", "window": 2, "decay": 0.97} | options))

    assert len(check_optimizer(factory, drive=drive)) == 13


def test_formulas():
    """Oracle: one step by hand, W - lr ‖W‖ G/‖G‖ and W - lr (π/4) f G."""
    start = torch.randn(3, 2, generator=seeded(), dtype=F64)
    for step in ("geometric", "adaptive"):
        W = start.clone().requires_grad_()
        optimizer = SubGMOptimizer([W], lr=0.2, step=step)

        def closure(W=W, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (W @ W.mT - 1).abs().mean()
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        G = W.grad
        expected = start - (
            0.2 * start.norm() * G / G.norm() if step == "geometric" else 0.2 * math.pi / 4 * loss.detach() * G
        )
        torch.testing.assert_close(W.detach(), expected)


@pytest.mark.parametrize("step", ["geometric", "plateau"])
def test_recovery(step):
    """Oracle: the truth, from a closure that knows nothing of Q."""
    A, y, truth = problem(outliers=0.1)
    measurements = as_measurements(A)
    U = (1e-6 * torch.randn(6, 6, generator=seeded(), dtype=F64)).requires_grad_()
    optimizer = SubGMOptimizer([U], step=step, decay=0.995 if step == "geometric" else 0.99)

    def closure():
        optimizer.zero_grad()
        loss = (measurements.apply(U) - y).abs().mean()
        loss.backward()
        return loss

    for _ in range(2500):
        optimizer.step(closure)
    assert relative_error(U.detach() @ U.detach().mT, truth) < 1e-4


def test_a_zero_parameter_can_leave_zero():
    """Oracle: the least length it is given."""
    w = torch.zeros(2, dtype=F64, requires_grad=True)
    (w - 1).abs().sum().backward()
    SubGMOptimizer([w], lr=0.5).step()
    torch.testing.assert_close(w.detach(), torch.full((2,), 0.5e-12 / 2**0.5, dtype=F64), rtol=1e-12, atol=0)


def test_bad_use_is_refused():
    """Oracle: the errors promised."""
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ArgumentError, match=r"needs step\(closure\)"):
        SubGMOptimizer([w], step="plateau").step()
    with pytest.raises(ArgumentTypeError, match="step is a name"):
        SubGMOptimizer([w], step=lambda t, loss: 0.1)  # pyright: ignore[reportArgumentType]
    w.grad = torch.tensor([1.0, math.nan])
    with pytest.raises(NumericalError, match="group 0 has NaN"):
        SubGMOptimizer([w]).step()
    assert torch.equal(w.detach(), torch.ones(2))
