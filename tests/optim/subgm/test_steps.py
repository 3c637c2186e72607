"""Step rules and norms against their definitions."""

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.optim.subgm.steps import StepRule, has_stalled, subgradient_norm
from tests.optim.subgm.cases import F64, seeded


@pytest.mark.parametrize("d", [5, 150])
def test_norms(d):
    """Oracle: numpy-style dense norms; power iteration on large matrices never exceeds the true one."""
    Q = torch.randn(2, d, d, generator=seeded(), dtype=F64)
    Q = Q + Q.mT
    spectral = torch.linalg.matrix_norm(Q, 2)
    found = subgradient_norm(Q)
    assert bool((found <= spectral * (1 + 1e-12)).all())
    assert bool((found >= 0.9 * spectral).all())
    if d == 5:
        torch.testing.assert_close(found, spectral, rtol=1e-12, atol=0)
    torch.testing.assert_close(subgradient_norm(Q, "frobenius"), Q.square().sum((1, 2)).sqrt())
    assert subgradient_norm(torch.zeros(d, d, dtype=F64)) == 0


def test_stalling_is_an_improvement_below_one_percent():
    """Oracle: medians by hand."""
    losses = torch.tensor([[9.0, 9.0], [2.0, 2.0], [2.0, 2.0], [2.0, 2.0], [1.97, 1.99], [0.0, 0.0], [9.0, 9.0]])
    assert has_stalled(losses, 3).tolist() == [False, True]


def test_default_decays():
    """Oracle: the table in the docstring."""
    kinds = ("plateau", "geometric", "adaptive", lambda t, loss: 0.1)
    assert [StepRule(kind).factor for kind in kinds] == [0.99, 0.995, 1.0, 1.0]
    assert StepRule("plateau", decay=0.5).factor == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "constant"}, "step 'plateau'"),
        ({"eta0": 0.0}, "eta0 > 0"),
        ({"eta0": float("inf")}, "eta0 > 0"),
        ({"decay": 1.0}, "decay between 0 and 1"),
        ({"window": 0}, "window >= 1"),
        ({"normalize": "nuclear"}, "normalize 'spectral'"),
    ],
)
def test_bad_rules_are_refused(options, message):
    """Oracle: an error that names the option."""
    with pytest.raises(ArgumentError, match=message):
        StepRule(**options)


def test_a_window_is_an_integer():
    """Oracle: the error promised."""
    with pytest.raises(ArgumentTypeError, match=r"integer window, got 2\.5"):
        StepRule(window=2.5)  # pyright: ignore[reportArgumentType]
