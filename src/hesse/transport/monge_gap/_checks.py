"""Checks of clouds of points before work starts."""

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["paired_points", "two_clouds", "weights_of"]


def two_clouds(call: str, **clouds: Tensor) -> None:
    """Refuse what are not two non-empty matrices of points of one wide dtype on one device.

    Parameters
    ----------
    call : str
        The public function, for the message.
    **clouds : Tensor
        Two of them, by the names they have there.

    Raises
    ------
    ArgumentTypeError
        If one is no tensor of float32 or float64.
    ShapeError
        If one is not a matrix with rows and columns, or dtype or device differ.
    """
    for name, points in clouds.items():
        if not isinstance(points, Tensor) or points.dtype not in (torch.float32, torch.float64):
            kind = points.dtype if isinstance(points, Tensor) else type(points).__name__
            raise ArgumentTypeError(f"{call}: expected {name} to be a tensor of float32 or float64, got {kind}")
        if points.ndim != 2 or 0 in points.shape:
            raise ShapeError(f"{call}: expected {name} of shape (rows, coordinates), got {tuple(points.shape)}")
    (left, first), (right, second) = clouds.items()
    if first.dtype != second.dtype or first.device != second.device:
        raise ShapeError(
            f"{call}: {left} is {first.dtype} on {first.device}, {right} {second.dtype} on {second.device}; "
            "convert one with .to()"
        )


def paired_points(call: str, x: Tensor, Tx: Tensor) -> None:
    """Refuse clouds that are not paired row by row.

    Parameters
    ----------
    call : str
        The public function, for the message.
    x, Tx : Tensor
        Points and their images.

    Raises
    ------
    ShapeError
        If the numbers of rows differ.
    """
    two_clouds(call, x=x, Tx=Tx)
    if len(x) != len(Tx):
        raise ShapeError(f"{call}: x and Tx are pairs, row by row, but there are {len(x)} and {len(Tx)} rows")


def weights_of(call: str, name: str, weights: Tensor | None, points: Tensor) -> Tensor:
    """Uniform weights, or those given, divided by their sum.

    Parameters
    ----------
    call, name : str
        The public function and its argument, for the message.
    weights : Tensor, shape (N,), optional
        Positive. Default: uniform.
    points : Tensor, shape (N, D)
        What they weigh.

    Returns
    -------
    Tensor, shape (N,)
        Of sum one.

    Raises
    ------
    ShapeError
        If they are not one to a point.
    ArgumentError
        If one is not positive and finite: leave out points without mass.
    """
    if weights is None:
        return points.new_full((len(points),), 1 / len(points))
    if weights.shape != points.shape[:1]:
        raise ShapeError(f"{call}: expected {name} of shape ({len(points)},), got {tuple(weights.shape)}")
    if not bool(((weights > 0) & torch.isfinite(weights)).all()):
        raise ArgumentError(f"{call}: expected positive, finite {name}; leave out points without mass")
    return (weights / weights.sum()).to(points)
