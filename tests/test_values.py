"""Checks of a caller's numbers; oracle: the errors that they are for."""

import pytest
import torch

from hesse._values import check_finite, check_present
from hesse.errors import ArgumentError, NumericalError


def test_numbers_pass():
    """Oracle: nothing is raised, whatever the kind of number."""
    for tensor in (torch.zeros(0), torch.ones(2, requires_grad=True), torch.arange(3), torch.ones(2).bfloat16()):
        check_finite("call", "x", tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_named(value):
    """Oracle: the message names call and argument."""
    with pytest.raises(NumericalError, match=r"^call: x has NaN or Inf"):
        check_finite("call", "x", torch.tensor([1.0, value]))


def test_nothing_is_named():
    """Oracle: the meta device holds shapes only."""
    for check in (check_finite, check_present):
        with pytest.raises(ArgumentError, match=r"^call: x is on the meta device"):
            check("call", "x", torch.zeros(2, device="meta"))
