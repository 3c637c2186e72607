"""Calculus of tangent fields on a cloud: diffusion, derivatives, winding numbers and zeros.

Fields are in the coordinates of each node's own frame. Shapes: N nodes in D coordinates, tangent dimension d, E edges.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import ive
from torch import Tensor

from hesse.gp.rvgp.graph import NeighbourGraph
from hesse.linalg import Sparse

__all__ = ["Singularities", "covariant_jacobian", "heat", "singularities", "winding_numbers"]

RING = 8  # nodes around a node whose vectors are followed: about the first ring of an even cloud
OPEN_ANGLE = 2 * math.pi / 3  # a ring with a wider gap does not enclose its node: the cloud ends there


@dataclass(frozen=True, slots=True)
class Singularities:
    """Zeros of a tangent field on a surface; K of them."""

    index: Tensor  # (K,) int64: +1 source, sink, vortex; -1 saddle
    location: Tensor  # (K, D), from the linear field at the node nearest to the zero
    node: Tensor  # (K,) int64, that node
    size: Tensor  # (K,) int64, nodes whose ring the field winds around


def heat(operator: Sparse, block: Tensor, time: float) -> Tensor:
    """exp(-t A) applied to columns, by a Chebyshev expansion over [0, bound of the spectrum].

    Parameters
    ----------
    operator : Sparse, shape (R, R)
        A, symmetric and positive semi-definite.
    block : Tensor, shape (R, B)
        Columns.
    time : float
        t >= 0.

    Returns
    -------
    Tensor, shape (R, B)
        To about 1e-14 of the columns' length. About 6 sqrt(t · bound) products for large t.
    """
    rows = torch.repeat_interleave(torch.arange(operator.shape[0]), operator.crow.diff())
    sums = torch.zeros(operator.shape[0], dtype=torch.float64).index_add(0, rows, operator.values.abs())
    radius = float(sums.max()) / 2  # Gershgorin: the spectrum lies in [0, 2 radius]
    if radius == 0 or time == 0:
        return block.clone()
    reach = time * radius
    orders = np.arange(int(8.5 * math.sqrt(reach)) + 20)  # weights fall as exp(-k² / 2 reach)
    weights = ive(orders, reach) * np.where(orders == 0, 1.0, 2.0) * (-1.0) ** orders
    before, present = block, (operator @ block) / radius - block
    total = weights[0] * before + weights[1] * present
    for weight in weights[2:]:
        before, present = present, 2 * ((operator @ present) / radius - present) - before
        total = total + weight * present
    return total


def covariant_jacobian(graph: NeighbourGraph, frames: Tensor, blocks: Tensor, field: Tensor) -> Tensor:
    """J_i of the least-squares fit O_ij f_j - f_i ≈ J_i T_iᵀ(x_j - x_i) over the neighbours of each node.

    Parameters
    ----------
    graph : NeighbourGraph
        Neighbours; they all weigh the same.
    frames : Tensor, shape (N, D, d)
        T.
    blocks : Tensor, shape (E, d, d)
        O.
    field : Tensor, shape (N, d)
        f.

    Returns
    -------
    Tensor, shape (N, d, d)
        Exact for linear fields on flat pieces; tr J is the divergence, J₂₁ - J₁₂ the curl.
    """
    total, d = field.shape
    steps = _steps(graph, frames)
    changes = torch.einsum("eab,eb->ea", blocks, field[graph.cols]) - field[graph.rows]
    empty = torch.zeros(total, d, d, dtype=field.dtype)
    spread = empty.index_add(0, graph.rows, steps[:, :, None] * steps[:, None, :])
    crossed = empty.index_add(0, graph.rows, changes[:, :, None] * steps[:, None, :])
    return crossed @ torch.linalg.pinv(spread, hermitian=True)


def winding_numbers(graph: NeighbourGraph, frames: Tensor, blocks: Tensor, field: Tensor) -> Tensor:
    """Count turns of the field, carried into the frame of a node, around the ring of its eight nearest neighbours.

    Parameters
    ----------
    graph : NeighbourGraph
        Neighbours.
    frames : Tensor, shape (N, D, 2)
        T.
    blocks : Tensor, shape (E, 2, 2)
        O.
    field : Tensor, shape (N, 2)
        f.

    Returns
    -------
    Tensor of int64, shape (N,)
        The same for either orientation of a frame; 0 where the ring is open, at the edge of the cloud.
    """
    steps = _steps(graph, frames).numpy()
    carried = torch.einsum("eab,eb->ea", blocks, field[graph.cols]).numpy()
    starts = np.searchsorted(graph.rows.numpy(), np.arange(len(field) + 1))
    turns = np.zeros(len(field), dtype=np.int64)
    for i in range(len(field)):
        edges = np.arange(starts[i], starts[i + 1])
        ring = edges[np.square(steps[edges]).sum(1).argsort(kind="stable")[:RING]]
        bearing = np.arctan2(steps[ring, 1], steps[ring, 0])
        order = bearing.argsort()
        if len(ring) < 3 or np.diff(bearing[order], append=bearing[order[0]] + 2 * math.pi).max() > OPEN_ANGLE:
            continue
        angle = np.arctan2(carried[ring[order], 1], carried[ring[order], 0])
        change = np.diff(angle, append=angle[0])
        change -= 2 * math.pi * np.round(change / (2 * math.pi))
        turns[i] = round(change.sum() / (2 * math.pi))
    return torch.from_numpy(turns)


def singularities(graph: NeighbourGraph, frames: Tensor, blocks: Tensor, field: Tensor) -> Singularities:
    """Group neighbouring nodes of equal non-zero index, and find the zero of the linear field in each group.

    Parameters
    ----------
    graph : NeighbourGraph
        Neighbours.
    frames : Tensor, shape (N, D, 2)
        T.
    blocks : Tensor, shape (E, 2, 2)
        O.
    field : Tensor, shape (N, 2)
        f.

    Returns
    -------
    Singularities
        Zeros nearer to each other than about two rings are seen as one, or, of opposite index, not at all.
    """
    turns = winding_numbers(graph, frames, blocks, field)
    rows, cols = graph.rows.numpy(), graph.cols.numpy()
    joined = ((turns[graph.rows] == turns[graph.cols]) & (turns[graph.rows] != 0)).numpy()
    links = coo_array((np.ones(int(joined.sum())), (rows[joined], cols[joined])), shape=(len(turns), len(turns)))
    groups = torch.from_numpy(connected_components(links, directed=False)[1].astype(np.int64))
    lengths = torch.linalg.vector_norm(field, dim=1)
    jacobian = covariant_jacobian(graph, frames, blocks, field)
    index, location, node, size = [], [], [], []
    for group in groups[turns != 0].unique():
        nodes = (groups == group).nonzero()[:, 0]
        centre = nodes[lengths[nodes].argmin()]
        step = -torch.linalg.pinv(jacobian[centre]) @ field[centre]
        reach = _steps_of(graph, frames, centre).norm(dim=1).median()
        step = step * (reach / step.norm().clamp_min(torch.finfo(step.dtype).tiny)).clamp_max(1.0)
        index.append(turns[centre])
        location.append(graph.points[centre] + frames[centre] @ step)
        node.append(centre)
        size.append(torch.tensor(len(nodes)))
    if not index:
        none = torch.zeros(0, dtype=torch.int64)
        return Singularities(none, graph.points[:0], none, none)
    return Singularities(torch.stack(index), torch.stack(location), torch.stack(node), torch.stack(size))


def _steps(graph: NeighbourGraph, frames: Tensor) -> Tensor:
    # T_iᵀ(x_j - x_i) of every edge, (E, d)
    return torch.einsum("eka,ek->ea", frames[graph.rows], graph.points[graph.cols] - graph.points[graph.rows])


def _steps_of(graph: NeighbourGraph, frames: Tensor, node: Tensor) -> Tensor:
    neighbours = graph.cols[graph.rows == node]
    return (graph.points[neighbours] - graph.points[node]) @ frames[node]
