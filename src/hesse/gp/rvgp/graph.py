"""Neighbour graphs of a cloud of points, and a thinning of the cloud that evens it out.

Shapes: N points in D coordinates, E directed edges, K neighbours.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

from hesse._points import points_of
from hesse.errors import ArgumentError

__all__ = [
    "GraphKind",
    "NeighbourGraph",
    "attach",
    "furthest_point_sampling",
    "neighbour_graph",
]

GraphKind = Literal["gaussian", "paper"]


@dataclass(frozen=True, slots=True)
class NeighbourGraph:
    """A symmetric weighted graph as a list of directed edges, each edge both ways, sorted by its first node."""

    points: Tensor  # (N, D)
    rows: Tensor  # (E,) int64
    cols: Tensor  # (E,) int64
    weights: Tensor  # (E,), after the density correction if there is one
    degrees: Tensor  # (N,), sums of the weights
    bandwidths: Tensor  # (N,), h; ones for the paper's graph
    density: Tensor  # (N,), degrees before the correction; ones for the paper's graph
    components: Tensor  # (N,) int64, number of the connected component
    kind: GraphKind
    num_neighbors: int

    @property
    def masses(self) -> Tensor:
        """M of L u = λ M u, shape (N,): the degrees for the Gaussian graph (random walk), ones for the paper's."""
        return self.degrees if self.kind == "gaussian" else torch.ones_like(self.degrees)


def furthest_point_sampling(
    X: Tensor | np.ndarray, num_points: int | None = None, *, spacing: float | None = None, start: int = 0
) -> Tensor:
    """Thin a cloud greedily: the next point is the one furthest from all points chosen so far.

    Parameters
    ----------
    X : array or Tensor, shape (N, D)
        The cloud.
    num_points : int, optional
        Stop at so many, at most N. Default: no limit.
    spacing : float, optional
        Stop when the next point would be nearer than ``spacing`` times the diameter of the cloud (the largest distance
        between two corners of its box); 0.015 to 0.05 leaves some hundreds to thousands on a surface. Default: none.
    start : int, default 0
        The first point chosen.

    Returns
    -------
    Tensor of int64, shape (M,)
        Rows of X in the order chosen: a prefix of it is a coarser choice.

    Raises
    ------
    ShapeError
        If X is no cloud.
    NumericalError
        If X has NaN or Inf.
    ArgumentError
        If neither or an impossible limit is given.

    Notes
    -----
    O(N M D). Every point of X is within the last distance of a chosen one, and no two chosen ones are nearer than that.

    Examples
    --------
    >>> furthest_point_sampling(torch.tensor([[0.0], [0.1], [1.0], [0.6]]), 3).tolist()
    [0, 2, 3]
    """
    points = points_of("furthest_point_sampling", "X", X, dtype=torch.float64).cpu()
    total = len(points)
    if num_points is None and spacing is None:
        raise ArgumentError("furthest_point_sampling: give num_points, spacing, or both")
    if num_points is not None and not 1 <= num_points <= total:
        raise ArgumentError(f"furthest_point_sampling: expected 1 <= num_points <= {total}, got {num_points}")
    if spacing is not None and not spacing > 0:
        raise ArgumentError(f"furthest_point_sampling: expected spacing > 0, got {spacing}")
    if not 0 <= start < total:
        raise ArgumentError(f"furthest_point_sampling: expected 0 <= start < {total}, got {start}")
    limit = total if num_points is None else num_points
    diameter = float(torch.linalg.vector_norm(points.amax(0) - points.amin(0)))
    least = 0.0 if spacing is None else spacing * diameter
    chosen, gaps = [start], torch.linalg.vector_norm(points - points[start], dim=1)
    while len(chosen) < limit:
        furthest = int(gaps.argmax())
        if float(gaps[furthest]) < least or float(gaps[furthest]) == 0:
            break
        chosen.append(furthest)
        gaps = torch.minimum(gaps, torch.linalg.vector_norm(points - points[furthest], dim=1))
    return torch.tensor(chosen)


def neighbour_graph(points: Tensor, num_neighbors: int, kind: GraphKind) -> NeighbourGraph:
    """Join each point with its K nearest, both ways, and weigh the edges.

    "paper": weights 1. "gaussian": w_ij = exp(-|x_i - x_j|² / (h_i h_j)), h_i the distance to neighbour K/2, then
    W ← Q⁻¹ W Q⁻¹ with Q the degrees, which takes the density of the sampling out of the operator.

    Parameters
    ----------
    points : Tensor, shape (N, D)
        Distinct points, in float64.
    num_neighbors : int
        2 <= K < N.
    kind : {"gaussian", "paper"}
        The weights.

    Returns
    -------
    NeighbourGraph
        On the CPU; O(N K) memory.
    """
    total = len(points)
    nearest = KDTree(points.numpy()).query(points.numpy(), k=num_neighbors + 1)
    distances, found = (np.asarray(part) for part in nearest)
    # the first column is the point itself: duplicates have been merged
    pairs = coo_array(
        (np.ones(total * num_neighbors), (np.repeat(np.arange(total), num_neighbors), found[:, 1:].ravel())),
        shape=(total, total),
    ).tocsr()
    union = ((pairs + pairs.T) > 0).tocsr()
    union.sort_indices()
    components = torch.from_numpy(connected_components(union, directed=False)[1].astype(np.int64))
    rows = torch.from_numpy(np.repeat(np.arange(total), np.diff(union.indptr)))
    cols = torch.from_numpy(union.indices.astype(np.int64))
    ones = torch.ones(total, dtype=torch.float64)
    weights, bandwidths, density = torch.ones(len(rows), dtype=torch.float64), ones, ones
    if kind == "gaussian":
        bandwidths = torch.from_numpy(distances[:, max(1, num_neighbors // 2)].copy())
        squares = (points[rows] - points[cols]).square().sum(1)
        weights = torch.exp(-squares / (bandwidths[rows] * bandwidths[cols]))
        density = torch.zeros_like(ones).index_add(0, rows, weights)
        weights = weights / (density[rows] * density[cols])
    degrees = torch.zeros_like(ones).index_add(0, rows, weights)
    return NeighbourGraph(points, rows, cols, weights, degrees, bandwidths, density, components, kind, num_neighbors)


def attach(graph: NeighbourGraph, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights that new points would have towards their nearest nodes, up to a factor of their own.

    Parameters
    ----------
    graph : NeighbourGraph
        The graph, which is not changed.
    new : Tensor, shape (Q, D)
        New points, in float64.

    Returns
    -------
    neighbours : Tensor of int64, shape (Q, K)
        Nearest nodes, nearest first.
    distances : Tensor, shape (Q, K)
        To them.
    weights : Tensor, shape (Q, K)
        Of the same kind as the graph's, density corrected on the nodes' side; the factor cancels in a weighted mean.
    """
    distances, found = KDTree(graph.points.numpy()).query(new.numpy(), k=graph.num_neighbors)
    distances, neighbours = torch.from_numpy(distances), torch.from_numpy(found.astype(np.int64))
    if graph.kind == "paper":
        return neighbours, distances, torch.ones_like(distances)
    own = distances[:, max(0, graph.num_neighbors // 2 - 1)].clamp_min(torch.finfo(torch.float64).tiny)
    weights = torch.exp(-distances.square() / (own[:, None] * graph.bandwidths[neighbours]))
    return neighbours, distances, weights / graph.density[neighbours]
