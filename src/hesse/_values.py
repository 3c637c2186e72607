"""Numbers that come from a caller: that they are there, and that they are numbers."""

from numbers import Integral

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError

__all__ = ["check_count", "check_finite", "check_present"]


def check_count(call: str, name: str, count: int, low: int = 1) -> None:
    """Refuse what is not an integer >= low.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    count : int
        What came; NumPy's integers are welcome.
    low : int, default 1
        The least that is allowed.

    Raises
    ------
    ArgumentTypeError
        If it is not an integer.
    ArgumentError
        If it is too small.
    """
    if not isinstance(count, Integral) or isinstance(count, bool):
        raise ArgumentTypeError(f"{call}: expected {name} to be an integer, got {count!r}")
    if count < low:
        raise ArgumentError(f"{call}: expected {name} >= {low}, got {count}")


def check_present(call: str, name: str, tensor: Tensor) -> None:
    """Refuse what is no tensor, and a tensor on the meta device, which has a shape and no numbers.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    tensor : Tensor
        What came.

    Raises
    ------
    ArgumentTypeError
        If it is not a tensor.
    ArgumentError
        If it holds no numbers.
    """
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(f"{call}: expected {name} to be a tensor, got {type(tensor).__name__}")
    if tensor.device.type == "meta":
        raise ArgumentError(f"{call}: {name} is on the meta device and holds no numbers")


def check_finite(call: str, name: str, tensor: Tensor) -> None:
    """Refuse a tensor without numbers, or with NaN or infinity among them.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    tensor : Tensor
        What came.

    Raises
    ------
    ArgumentTypeError
        If it is not a tensor.
    ArgumentError
        If it holds no numbers.
    NumericalError
        If an entry is NaN or infinite.
    """
    check_present(call, name, tensor)
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise NumericalError(f"{call}: {name} has NaN or Inf")
