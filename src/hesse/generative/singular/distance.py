"""Wasserstein-1 distance of two clouds.   Shapes: N, M points of D coordinates."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from hesse.errors import ArgumentError, MemoryLimitError, ShapeError

__all__ = ["w1_distance"]

MAX_ASSIGNED = 2000  # points a side; the assignment is cubic


def w1_distance(
    X: np.ndarray | Tensor,
    Y: np.ndarray | Tensor,
    method: str = "exact",
    *,
    num_projections: int = 200,
    generator: Generator | None = None,
) -> float:
    """W1 = min over pairings of mean |x_i - y_π(i)|, or its mean over projections to random lines.

    Parameters
    ----------
    X, Y : array or Tensor, shapes (N, D) and (M, D)
        For the exact distance one of N, M must be a multiple of the other: its points are repeated.
    method : {"exact", "sliced"}, default "exact"
        The assignment, up to 2000 points; or W1 of sorted projections, any N and M.
    num_projections : int, default 200
        Lines of the sliced distance, whose error falls as 1/√num_projections.
    generator : torch.Generator, optional
        Source of the lines, on the CPU. Default: torch's global generator.

    Returns
    -------
    float
        In the units of the points. The sliced distance is the smaller, by E|θ_1| if Y is X moved. Not differentiable.

    Raises
    ------
    ArgumentError
        If the method is unknown, or there is no projection.
    ShapeError
        If the clouds are empty, differ in D, or N and M are no multiples for the exact distance.
    MemoryLimitError
        If the exact distance would pair more than 2000 points: use "sliced".

    Notes
    -----
    Exact O(max(N, M)³), 0.1 s for 1000 points; sliced O(num_projections · N (D + log N)).
    """
    if method not in ("exact", "sliced"):
        raise ArgumentError(f'w1_distance: expected method "exact" or "sliced", got {method!r}')
    x, y = (torch.as_tensor(points).detach().cpu().double() for points in (X, Y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (*x.shape, *y.shape):
        raise ShapeError(f"w1_distance: expected (N, D) and (M, D), got {tuple(x.shape)} and {tuple(y.shape)}")
    if method == "sliced":
        return _sliced(x, y, num_projections, generator)
    size = max(len(x), len(y))
    if size > MAX_ASSIGNED:
        raise MemoryLimitError(f'w1_distance: {size} points; above {MAX_ASSIGNED} use method="sliced"')
    if size % len(x) or size % len(y):
        raise ShapeError(f"w1_distance: {len(x)} and {len(y)} points: one number must be a multiple of the other")
    cost = torch.cdist(x.repeat(size // len(x), 1), y.repeat(size // len(y), 1)).numpy()
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean())


def _sliced(x: Tensor, y: Tensor, num_projections: int, generator: Generator | None) -> float:
    if num_projections < 1:
        raise ArgumentError(f"w1_distance: expected num_projections >= 1, got {num_projections}")
    lines = torch.randn(x.shape[1], num_projections, dtype=x.dtype, generator=generator)
    lines = lines / lines.norm(dim=0)
    left, right = (x @ lines).sort(0).values, (y @ lines).sort(0).values
    # both quantile functions are steps: integrate their difference between all jumps of either
    jumps = torch.cat([torch.arange(1, len(x)) / len(x), torch.arange(1, len(y)) / len(y)]).double()
    edges = torch.cat([torch.zeros(1), jumps.sort().values, torch.ones(1)]).double()
    middles, widths = (edges[1:] + edges[:-1]) / 2, edges.diff()
    rows = [(middles * len(side)).long().clamp_max(len(side) - 1) for side in (x, y)]
    return float((widths @ (left[rows[0]] - right[rows[1]]).abs()).mean())
