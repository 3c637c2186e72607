"""Data of the estimators that work on clouds of points."""

import numpy as np
import torch
from torch import Tensor

from hesse._values import check_finite
from hesse.errors import ArgumentTypeError, ShapeError

__all__ = ["Array", "points_of"]

Array = np.ndarray | Tensor


def points_of(call: str, name: str, points: Array, *, min_rows: int = 1, dtype: torch.dtype | None = None) -> Tensor:
    """Turn an array or tensor into finite points of float32 or float64.

    Parameters
    ----------
    call, name : str
        The public function and its argument, for the message.
    points : array or Tensor, shape (N, D)
        Of any real dtype; what is neither float32 nor float64 becomes float32.
    min_rows : int, default 1
        Fewest rows.
    dtype : dtype, optional
        Of the result. Default: as it is, or float32.

    Returns
    -------
    Tensor, shape (N, D)
        Without a graph.

    Raises
    ------
    ArgumentTypeError
        If it is neither, or not of real numbers.
    ShapeError
        If it is not a matrix, or has no columns or too few rows.
    NumericalError
        If an entry is NaN or infinite.
    """
    if not isinstance(points, np.ndarray | Tensor):
        raise ArgumentTypeError(f"{call}: expected {name} to be an array or a tensor, got {type(points).__name__}")
    try:
        found = torch.as_tensor(points).detach()
    except TypeError as error:
        raise ArgumentTypeError(f"{call}: expected {name} to be an array of numbers ({error})") from error
    if found.is_complex():
        raise ArgumentTypeError(f"{call}: expected {name} to be real, got {found.dtype}")
    wide = found.dtype if found.dtype in (torch.float32, torch.float64) else torch.float32
    found = found.to(wide if dtype is None else dtype)
    if found.ndim != 2 or found.shape[1] == 0 or len(found) < min_rows:
        raise ShapeError(f"{call}: expected {name} of shape (N >= {min_rows}, D >= 1), got {tuple(found.shape)}")
    check_finite(call, name, found)
    return found
