"""Checks of a caller's numbers; oracle: the errors that they are for."""

import numpy as np
import pytest
import torch

from hesse._values import check_count, check_finite, check_present
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError


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


@pytest.mark.parametrize("value", [np.zeros(2), [0.0], None])
def test_what_is_no_tensor_is_named(value):
    """Oracle: the message names call, argument and what came."""
    for check in (check_finite, check_present):
        with pytest.raises(ArgumentTypeError, match=rf"^call: expected x to be a tensor, got {type(value).__name__}"):
            check("call", "x", value)


def test_counts():
    """Oracle: Python's and NumPy's integers pass; what is none, or too small, is named."""
    for value in (1, np.int64(3)):
        check_count("call", "n", value)
    check_count("call", "n", 0, low=0)
    for value in (2.0, True, "2", None):
        with pytest.raises(ArgumentTypeError, match=r"^call: expected n to be an integer"):
            check_count("call", "n", value)
    with pytest.raises(ArgumentError, match=r"^call: expected n >= 2, got 1"):
        check_count("call", "n", 1, low=2)
