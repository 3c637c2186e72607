"""Tangent planes of a cloud from its graph, parallel transport between them, and the Laplacians they make.

Shapes: N points in D coordinates, tangent dimension d, E directed edges.
"""

import math

import numpy as np
import torch
from torch import Tensor

from hesse.gp.rvgp.graph import NeighbourGraph
from hesse.linalg import Sparse

__all__ = ["block_laplacian", "estimate_dimension", "parallel_transport", "principal_directions", "surroundings"]

PLANE_FACTOR = 1.5  # points to a tangent plane, in units of the graph's K: the choice of the paper's code


def surroundings(graph: NeighbourGraph) -> tuple[Tensor, Tensor]:
    """For each node itself and the 1.5 K nodes nearest along the graph: fewest hops first, then distance.

    Hops keep a point of another sheet, close in space but far along the surface, out of the tangent plane.

    Parameters
    ----------
    graph : NeighbourGraph
        The graph.

    Returns
    -------
    members : Tensor of int64, shape (N, P + 1)
        P = ceil(1.5 K), at most N - 1; the node itself comes first, and fills up the row in a small component.
    present : Tensor of bool, shape (N, P + 1)
        False where a row was filled up.
    """
    points, cols = graph.points.numpy(), graph.cols.numpy()
    total = len(points)
    count = min(math.ceil(PLANE_FACTOR * graph.num_neighbors), total - 1)
    starts = np.searchsorted(graph.rows.numpy(), np.arange(total + 1))
    lists = [cols[starts[i] : starts[i + 1]] for i in range(total)]
    members = np.repeat(np.arange(total)[:, None], count + 1, axis=1)
    present = np.zeros_like(members, dtype=bool)
    seen = np.zeros(total, dtype=bool)
    for i in range(total):
        chosen, front = [], np.array([i])
        seen[i] = True
        missing = count
        while missing > 0:
            reached = np.concatenate([lists[j] for j in front])
            front = np.unique(reached[~seen[reached]])
            if len(front) == 0:
                break
            seen[front] = True
            order = np.square(points[front] - points[i]).sum(1).argsort(kind="stable")
            chosen.append(front[order][:missing])
            missing -= len(chosen[-1])
        row = np.concatenate([[i], *chosen])
        members[i, : len(row)], present[i, : len(row)] = row, True
        seen[:] = False
    return torch.from_numpy(members), torch.from_numpy(present)


def principal_directions(points: Tensor, members: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of largest spread around each node, by singular value decomposition of the centred neighbourhood.

    Parameters
    ----------
    points : Tensor, shape (N, D)
        The cloud.
    members, present : Tensor, shape (Q, P)
        Neighbourhoods, as `surroundings` gives them.

    Returns
    -------
    directions : Tensor, shape (Q, D, R)
        Orthonormal columns, R = min(D, P), largest spread first. Their signs mean nothing.
    spreads : Tensor, shape (Q, R)
        Singular values, falling.
    """
    mask = present.to(points.dtype)[..., None]
    cloud = points[members]
    centred = (cloud - (cloud * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)) * mask
    _, spreads, directions = torch.linalg.svd(centred, full_matrices=False)
    return directions.mT, spreads


def estimate_dimension(spreads: Tensor, explained_variance: float) -> int:
    """Find the smallest d whose share of the variance, mean over nodes minus one standard deviation, is large enough.

    Parameters
    ----------
    spreads : Tensor, shape (N, R)
        Singular values of the neighbourhoods.
    explained_variance : float
        Share that the tangent plane must carry; 0.8 to 0.9.

    Returns
    -------
    int
        1 to R.
    """
    shares = spreads.square() / spreads.square().sum(1, keepdim=True)
    cumulated = shares.cumsum(1)
    lower = cumulated.mean(0) - cumulated.std(0)
    enough = (lower >= explained_variance).nonzero()
    return int(enough[0]) + 1 if len(enough) else spreads.shape[1]


def parallel_transport(frames_to: Tensor, frames_from: Tensor) -> tuple[Tensor, Tensor]:
    """O = U Vᵀ with T_toᵀ T_from = U S Vᵀ: the orthogonal map nearest to projecting one tangent plane on the other.

    Parameters
    ----------
    frames_to, frames_from : Tensor, shape (..., D, d)
        Orthonormal frames.

    Returns
    -------
    blocks : Tensor, shape (..., d, d)
        Take coordinates in the second frame to coordinates in the first.
    alignment : Tensor, shape (...)
        Smallest singular value, the cosine of the largest angle between the planes.
    """
    U, S, Vh = torch.linalg.svd(frames_to.mT @ frames_from)
    return U @ Vh, S[..., -1]


def block_laplacian(graph: NeighbourGraph, blocks: Tensor) -> Sparse:
    """M^-½ (D ⊗ I - [w_ij O_ij]) M^-½, symmetric and positive semi-definite.

    Parameters
    ----------
    graph : NeighbourGraph
        Weights w, degrees D and masses M.
    blocks : Tensor, shape (E, d, d)
        O_ij, with O_ji = O_ijᵀ; ones of shape (E, 1, 1) make it the Laplacian of functions.

    Returns
    -------
    Sparse
        Order N d, node by node.
    """
    total, d = len(graph.degrees), blocks.shape[-1]
    half = graph.masses.rsqrt()
    scaled = -blocks * (graph.weights * half[graph.rows] * half[graph.cols])[:, None, None]
    axis = torch.arange(d)
    rows = (graph.rows[:, None, None] * d + axis[:, None]).expand_as(blocks)
    cols = (graph.cols[:, None, None] * d + axis).expand_as(blocks)
    every = torch.arange(total * d)
    diagonal = (graph.degrees / graph.masses).repeat_interleave(d)
    index = torch.stack([torch.cat([rows.reshape(-1), every]), torch.cat([cols.reshape(-1), every])])
    values = torch.cat([scaled.reshape(-1), diagonal])
    matrix = torch.sparse_coo_tensor(index, values, (total * d, total * d), check_invariants=True)
    return Sparse(matrix, is_symmetric=True, is_psd=True)
