"""Arrays in, scaled coordinates out: what is checked, dropped, merged and brought to the unit interval."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse._values import check_present
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["Scaling", "as_points", "as_values", "distinct", "merge_into"]

_MERGE = 1e-9  # coordinates closer than this part of the range are one


@dataclass(frozen=True, slots=True)
class Scaling:
    """How coordinates come to [0, 1] and values to mean square 1; fixed by the first entries."""

    low: Tensor  # (K,)
    span: Tensor  # (K,), 1 for a mode with one coordinate
    center: Tensor  # ()
    scale: Tensor  # ()

    @classmethod
    def of(cls, points: Tensor, values: Tensor, center: bool | None) -> "Scaling":
        """Make these entries standard.

        Parameters
        ----------
        points : Tensor, shape (N, K)
            Coordinates.
        values : Tensor, shape (N,)
            Values.
        center : bool or None
            Whether to subtract their mean; None: only if it outweighs their spread.

        Returns
        -------
        Scaling
            Fixed from here on.
        """
        low = points.amin(0)
        span = points.amax(0) - low
        mean, spread = values.mean(), values.std(correction=0)
        moved = mean if (bool(mean.abs() > spread) if center is None else center) else torch.zeros_like(mean)
        size = (values - moved).square().mean().sqrt()
        flat = size <= 1e-12 * values.abs().amax()  # a constant: what is left of it is rounding
        return cls(
            low,
            torch.where(span > 0, span, torch.ones_like(span)),
            moved,
            torch.where(flat, torch.ones_like(size), size),
        )

    def points(self, points: Tensor) -> Tensor:
        """Bring coordinates to units of the range.

        Parameters
        ----------
        points : Tensor, shape (N, K)
            As given.

        Returns
        -------
        Tensor, shape (N, K)
            In [0, 1] where the first entries were.
        """
        return (points - self.low) / self.span

    def values(self, values: Tensor) -> Tensor:
        """Bring values to units of their root mean square.

        Parameters
        ----------
        values : Tensor, shape (N,)
            As given.

        Returns
        -------
        Tensor, shape (N,)
            Without the mean, if it is subtracted.
        """
        return (values - self.center) / self.scale


def as_points(call: str, X: Any) -> Tensor:
    """Read coordinates as a finite float64 matrix; tensors stay on their device, other arrays go by way of NumPy.

    Parameters
    ----------
    call : str
        Who asks, for messages.
    X : array or Tensor, shape (N, K)
        What the user gave.

    Returns
    -------
    Tensor, shape (N, K)
        Detached.

    Raises
    ------
    ArgumentError
        If X has NaN, infinity, complex numbers, or what is no number.
    ShapeError
        If X is not a matrix, or is empty.
    ArgumentTypeError
        If X is sparse, or of objects that are no numbers.
    """
    if isinstance(X, Tensor):
        found = X
    else:
        if hasattr(X, "toarray") and hasattr(X, "nnz"):
            raise ArgumentTypeError(f"{call}: expected dense coordinates, got a sparse matrix; use X.toarray()")
        array = np.asarray(X)
        if array.dtype.kind == "c":
            raise ArgumentError(f"{call}: Complex data not supported; expected real coordinates X")
        try:
            found = torch.as_tensor(np.array(array, dtype=np.float64))  # a copy: writable, of one type
        except TypeError as error:
            raise ArgumentTypeError(f"{call}: expected numbers in X, got {array.dtype} ({error})") from error
        except ValueError as error:
            raise ArgumentError(f"{call}: expected numbers in X, got {array.dtype} ({error})") from error
    if found.is_complex():
        raise ArgumentError(f"{call}: Complex data not supported; expected real coordinates X")
    if found.ndim != 2:
        raise ShapeError(
            f"{call}: Expected 2D array of coordinates (N, K), got {tuple(found.shape)}. Reshape your data either "
            "using X.reshape(-1, 1) for one mode or X.reshape(1, -1) for one entry"
        )
    if found.shape[0] == 0 or found.shape[1] == 0:
        part = "sample" if found.shape[0] == 0 else "feature"
        raise ShapeError(f"{call}: 0 {part}(s) (shape={tuple(found.shape)}) while a minimum of 1 is required.")
    check_present(call, "X", found)
    found = found.detach().to(torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise ArgumentError(f"{call}: X has NaN or infinity; drop those entries, a coordinate cannot be guessed")
    return found


def as_values(call: str, y: Any, like: Tensor) -> Tensor:
    """Read one value an entry, float64 on the device of the coordinates; NaN are let through.

    Parameters
    ----------
    call : str
        Who asks, for messages.
    y : array or Tensor, shape (N,)
        What the user gave.
    like : Tensor, shape (N, K)
        The coordinates.

    Returns
    -------
    Tensor, shape (N,)
        Detached.

    Raises
    ------
    ArgumentError
        If y is missing, infinite or no number.
    ShapeError
        If its length is another.
    """
    if y is None:
        raise ArgumentError(f"{call}: requires y to be passed, but the target y is None")
    try:
        array = y.detach() if isinstance(y, Tensor) else torch.as_tensor(np.array(y, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{call}: expected numbers in y ({error})") from error
    if array.ndim == 2 and array.shape[1] == 1:
        warnings.warn(
            f"{call}: a column-vector y was passed when a 1d array was expected; its only column is taken",
            UserWarning,
            stacklevel=4,
        )
        array = array[:, 0]
    if tuple(array.shape) != (len(like),):
        raise ShapeError(
            f"{call}: inconsistent numbers of samples: expected y of shape ({len(like)},), got {tuple(array.shape)}"
        )
    array = array.to(torch.float64).to(like.device)
    if bool(torch.isinf(array).any()):
        raise ArgumentError(f"{call}: y has infinity")
    return array


def distinct(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Sort coordinates and merge those closer than 1e-9 into the lowest of them.

    Parameters
    ----------
    coordinates : Tensor, shape (N,)
        In units of the range.

    Returns
    -------
    tuple of Tensor, shapes (T,) and (N,)
        Distinct ones, increasing, and the place of each entry among them.
    """
    ordered, order = coordinates.sort()
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered.diff() > _MERGE
    place = torch.empty_like(order)
    place[order] = new.cumsum(0) - 1
    return ordered[new], place


def merge_into(times: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add new coordinates to known ones.

    Parameters
    ----------
    times : Tensor, shape (T,)
        Known, distinct and increasing.
    coordinates : Tensor, shape (N,)
        New ones, among which may be known ones.

    Returns
    -------
    tuple of Tensor, shapes (T',), (T,) and (N,)
        All of them, the places of the known ones, and those of the new entries.
    """
    together, place = distinct(torch.cat([times, coordinates]))
    return together, place[: len(times)], place[len(times) :]
