"""Numbers that come from a caller: that they are there, and that they are numbers."""

import torch
from torch import Tensor

from hesse.errors import ArgumentError, NumericalError

__all__ = ["check_finite", "check_present"]


def check_present(call: str, name: str, tensor: Tensor) -> None:
    """Refuse a tensor on the meta device, which has a shape and no numbers.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    tensor : Tensor
        What came.

    Raises
    ------
    ArgumentError
        If it holds no numbers.
    """
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
    ArgumentError
        If it holds no numbers.
    NumericalError
        If an entry is NaN or infinite.
    """
    check_present(call, name, tensor)
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise NumericalError(f"{call}: {name} has NaN or Inf")
