"""R-MAT graphs: edges drawn quadrant by quadrant, with the skewed degrees of real networks."""

import math

import numpy as np
import scipy.sparse
import torch
from torch import Generator

from hesse.errors import ArgumentError

__all__ = ["rmat"]


def rmat(
    scale: int,
    num_edges: int,
    *,
    probs: tuple[float, float, float, float] = (0.57, 0.19, 0.19, 0.05),
    permute: bool = False,
    generator: Generator | None = None,
) -> scipy.sparse.csr_array:
    """Draw a random graph by recursive halving of its adjacency matrix.

    Parameters
    ----------
    scale : int
        The graph has 2^scale vertices; 0 to 31.
    num_edges : int
        Edges drawn; those drawn twice are merged, so that the matrix has fewer entries.
    probs : tuple of float, default (0.57, 0.19, 0.19, 0.05)
        Chances of the upper left, upper right, lower left and lower right quadrant; the default is Graph500's.
    permute : bool, default False
        Give the vertices new numbers at random, rows and columns alike. Without it the heavy vertices come first, and
        the columns of every row crowd at small numbers.
    generator : torch.Generator, optional
        Source of the numbers, on the CPU. Default: torch's global generator.

    Returns
    -------
    scipy.sparse.csr_array, shape (2^scale, 2^scale)
        float64 weights, uniform in [0, 1) and summed where edges coincide; rows sorted.

    Raises
    ------
    ArgumentError
        If ``scale`` or ``num_edges`` is out of range, or the chances are negative or do not sum to one.

    References
    ----------
    D. Chakrabarti, Y. Zhan, C. Faloutsos (2004), SIAM Int. Conf. Data Mining.
    """
    if not 0 <= scale <= 31:
        raise ArgumentError(f"rmat: expected scale from 0 to 31, got {scale}")
    if num_edges < 0:
        raise ArgumentError(f"rmat: expected num_edges >= 0, got {num_edges}")
    if len(probs) != 4 or min(probs) < 0 or not math.isclose(sum(probs), 1.0, abs_tol=1e-9):
        raise ArgumentError(f"rmat: expected four chances that sum to one, got {probs}")
    n = 1 << scale
    row, column = torch.zeros(num_edges, dtype=torch.int64), torch.zeros(num_edges, dtype=torch.int64)
    first, second, third, _ = probs
    for _level in range(scale):
        drawn = torch.rand(num_edges, dtype=torch.float64, generator=generator)
        right = ((drawn >= first) & (drawn < first + second)) | (drawn >= first + second + third)
        row = 2 * row + (drawn >= first + second)
        column = 2 * column + right
    weights = torch.rand(num_edges, dtype=torch.float64, generator=generator)
    if permute:
        labels = torch.randperm(n, generator=generator)
        row, column = labels[row], labels[column]
    index = np.int32 if n <= np.iinfo(np.int32).max else np.int64
    places = (row.numpy().astype(index), column.numpy().astype(index))
    matrix = scipy.sparse.coo_array((weights.numpy(), places), shape=(n, n)).tocsr()
    matrix.sum_duplicates()
    return matrix
