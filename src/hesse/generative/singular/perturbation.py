"""How much noise to add to data on a thin set: what theory suggests, and what the data forbid."""

import numpy as np
from scipy.cluster.hierarchy import linkage
from torch import Tensor

from hesse.errors import ArgumentError

__all__ = ["cluster_gap", "quantisation_step", "suggested_perturbation"]

MAX_LINKED = 1000  # points; single linkage is quadratic


def suggested_perturbation(num_points: int, smoothness: float = 1.0, dim: float = 1.0, *, scale: float = 1.0) -> float:
    """S = scale · n^(-β / (2 (β + t))), which balances the estimation error against the noise.

    W1(Q̂, Q*) is at most the Hellinger error, about n^(-(β - t a) / (2 β + t)) for noise n^(-a), plus the noise, up to
    constants and logarithms. At this s it falls as n^(-β / (2 (β + t))) whatever the ambient dimension.

    Parameters
    ----------
    num_points : int
        n.
    smoothness : float, default 1.0
        β of the true f.
    dim : float, default 1.0
        t, the effective dimension of f: that of the structure, or less if f is a composition.
    scale : float, default 1.0
        Of the data along the structure; see `PerturbedGenerativeMLE`.

    Returns
    -------
    float
        A first guess, in the units of scale; constants are unknown, so a ladder around it is better.

    Raises
    ------
    ArgumentError
        If an argument is not positive.

    References
    ----------
    M. Chae, D. Kim, Y. Kim, L. Lin (2023), JMLR 24, arXiv 2105.04046.

    Examples
    --------
    >>> round(suggested_perturbation(1000), 2)
    0.18
    """
    if num_points < 1 or not min(smoothness, dim, scale) > 0:
        raise ArgumentError(
            "suggested_perturbation: expected num_points, smoothness, dim and scale > 0, got "
            f"{num_points}, {smoothness}, {dim}, {scale}"
        )
    return scale * num_points ** (-smoothness / (2 * (smoothness + dim)))


def quantisation_step(points: Tensor) -> float:
    """Smallest step between the values of discrete data, zero for continuous data.

    Parameters
    ----------
    points : Tensor, shape (N, D)
        Taken for discrete if there are at most 256 values and a quarter as many as entries.

    Returns
    -------
    float
        In the units of the points.
    """
    values = points.unique()
    if len(values) < 2 or len(values) > min(256, points.numel() // 4):
        return 0.0
    return float(values.diff().min())


def cluster_gap(points: Tensor) -> float:
    """Distance between the nearest two clusters that single linkage finds, infinite if there is one cluster.

    A merge counts if it joins at least a twentieth of the points on either side and is three times as long as the
    longest merge that does not: a heuristic, on the first thousand points.

    Parameters
    ----------
    points : Tensor, shape (N, D)
        In random order.

    Returns
    -------
    float
        In the units of the points; infinite for fewer than three points.
    """
    table = points[:MAX_LINKED].double().cpu().numpy()
    if len(table) < 3:
        return float("inf")
    merges = linkage(table, method="single")
    sizes = np.concatenate([np.ones(len(table)), merges[:, 3]])
    smaller = sizes[merges[:, :2].astype(int)].min(1)
    large = smaller >= len(table) / 20
    within = merges[~large, 2].max() if not large.all() else 0.0
    apart = large & (merges[:, 2] > 3 * within)
    return float(merges[apart, 2].min()) if apart.any() else float("inf")
