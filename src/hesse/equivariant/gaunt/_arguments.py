"""What every operation of this package checks before it starts."""

from typing import Literal, get_args

import torch
from torch import Tensor

from hesse.equivariant._arguments import check_choice
from hesse.errors import ArgumentTypeError, ShapeError

__all__ = ["Normalization", "check_features", "check_normalization", "compute_dtype"]

Normalization = Literal["integral", "component", "norm"]
_NORMALIZATIONS = get_args(Normalization)


def check_normalization(call: str, normalization: str) -> None:
    """Refuse an unknown name.

    Parameters
    ----------
    call : str
        The function, for the message.
    normalization : str
        What came.

    Raises
    ------
    ArgumentError
        If it is none of the three.
    """
    check_choice(call, "normalization", normalization, _NORMALIZATIONS)


def check_features(call: str, name: str, features: Tensor, degree: int) -> None:
    """Refuse anything but real floating coefficients of degrees 0 to ``degree``.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    features : Tensor, shape (..., (degree + 1)²)
        What came.
    degree : int
        The largest degree.

    Raises
    ------
    ArgumentTypeError
        If it is not a tensor of real floating-point numbers.
    ShapeError
        If the last dimension has another length.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        found = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise ArgumentTypeError(f"{call}: expected {name} to be a real floating-point tensor, got {found}")
    if features.ndim == 0 or features.shape[-1] != (degree + 1) ** 2:
        raise ShapeError(
            f"{call}: expected the last dimension of {name} to be ({degree} + 1)² = {(degree + 1) ** 2}, "
            f"got shape {tuple(features.shape)}"
        )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic of half precision is done in float32, of anything else in its own type.

    Parameters
    ----------
    dtype : torch.dtype
        Of the input.

    Returns
    -------
    torch.dtype
        Of the tables and of what is computed with them.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
