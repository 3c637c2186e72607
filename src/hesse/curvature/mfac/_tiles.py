"""Products with wide matrices that are stored in one dtype and summed in a wider one, a tile at a time.

Shapes: B blocks, M rows, S coordinates a block, K columns.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["column_tiles", "combine", "gram", "multiply", "pivots_are_rounding"]

_TILE = 1 << 18  # entries converted at once: 2 MiB in double precision
_WIDTH = 1 << 14  # coordinates to a tile where rows can be parted: long runs convert fast, and sums stay in the cache


def column_tiles(rows_BMS: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, list[slice]]]:
    """Cut the matrices into tiles with all their rows; one tile in all where nothing is to be converted.

    Parameters
    ----------
    rows_BMS : Tensor, shape (B, M, S)
        The matrices as stored.
    dtype : torch.dtype
        What they are converted to.

    Yields
    ------
    tuple of slice and list of slice
        A range of blocks, and the ranges of coordinates within them.
    """
    num_blocks, num_rows, width = rows_BMS.shape
    tile = rows_BMS.numel() if rows_BMS.dtype == dtype else _TILE
    columns = list(_ranges(width, tile // num_rows))
    for blocks in _ranges(num_blocks, tile // (num_rows * width)):
        yield blocks, columns


def gram(rows_BMS: Tensor, dtype: torch.dtype) -> Tensor:
    """G Gᵀ of every block.

    Parameters
    ----------
    rows_BMS : Tensor, shape (B, M, S)
        G.
    dtype : torch.dtype
        Of the sums and of the result.

    Returns
    -------
    Tensor, shape (B, M, M)
        O(B M² S).
    """
    found = []
    for blocks, columns in column_tiles(rows_BMS, dtype):
        total = None
        for column in columns:
            piece = rows_BMS[blocks, :, column].to(dtype)
            total = piece @ piece.mT if total is None else total + piece @ piece.mT
        found.append(total)
    return torch.cat(found)


def multiply(rows_BMS: Tensor, x_BSK: Tensor, dtype: torch.dtype) -> Tensor:
    """G X of every block.

    Parameters
    ----------
    rows_BMS : Tensor, shape (B, M, S)
        G.
    x_BSK : Tensor, shape (..., B, S, K)
        X.
    dtype : torch.dtype
        Of the sums and of the result.

    Returns
    -------
    Tensor, shape (..., B, M, K)
        O(B M S K).
    """
    if rows_BMS.dtype == dtype:
        return rows_BMS @ x_BSK.to(dtype)
    found = []
    for blocks, columns, rows in _tiles(rows_BMS):
        total = None
        for column in columns:
            x = x_BSK[..., blocks, column, :].to(dtype)
            piece = _cat([rows_BMS[blocks, row, column].to(dtype) @ x for row in rows], -2)
            total = piece if total is None else total + piece
        found.append(total)
    return _cat(found, -3)


def combine(
    rows_BMS: Tensor, weights_BMK: Tensor, dtype: torch.dtype, *, start: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Combine the rows: scale · (start + Gᵀ weights) of every block, rounded once.

    Parameters
    ----------
    rows_BMS : Tensor, shape (B, M, S)
        G.
    weights_BMK : Tensor, shape (..., B, M, K)
        In the dtype of the sums.
    dtype : torch.dtype
        Of the result.
    start : Tensor, shape (..., B, S, K), optional
        Added before scaling. Default: zero.
    scale : float, default 1.0
        Applied to the sum.

    Returns
    -------
    Tensor, shape (..., B, S, K)
        O(B M S K).
    """
    wide = weights_BMK.dtype
    if rows_BMS.dtype == wide:
        total = rows_BMS.mT @ weights_BMK
        return ((total if start is None else start.to(wide) + total) * scale).to(dtype)
    found = []
    for blocks, columns, rows in _tiles(rows_BMS):
        pieces = []
        for column in columns:
            total = weights_BMK.new_zeros(()) if start is None else start[..., blocks, column, :].to(wide)
            for row in rows:
                total = total + rows_BMS[blocks, row, column].to(wide).mT @ weights_BMK[..., blocks, row, :]
            pieces.append((total * scale).to(dtype))
        found.append(_cat(pieces, -2))
    return _cat(found, -3)


def pivots_are_rounding(factor: Tensor, matrix: Tensor) -> bool:
    """Tell whether a Cholesky factor came through by luck: a pivot is no larger than the rounding of its own sum.

    Whether LAPACK then sees a negative pivot depends on the order in which it adds.

    Parameters
    ----------
    factor : Tensor, shape (..., M, M)
        L, lower triangular.
    matrix : Tensor, shape (..., M, M)
        L Lᵀ as it was handed over.

    Returns
    -------
    bool
        True if some l_ii² <= M eps a_ii.
    """
    pivots, diagonal = (found.detach().diagonal(dim1=-2, dim2=-1) for found in (factor, matrix))
    limit = matrix.shape[-1] * torch.finfo(matrix.dtype).eps
    return not bool((pivots.square() > limit * diagonal).all())


def _tiles(rows_BMS: Tensor) -> Iterator[tuple[slice, list[slice], list[slice]]]:
    # blocks, their coordinates, and the ranges of rows to take one after the other
    num_blocks, num_rows, width = rows_BMS.shape
    step = min(width, _WIDTH)
    columns, rows = list(_ranges(width, step)), list(_ranges(num_rows, _TILE // step))
    for blocks in _ranges(num_blocks, _TILE // (num_rows * width)):
        yield blocks, columns, rows


def _ranges(length: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    for start in range(0, length, step):
        yield slice(start, start + step)


def _cat(pieces: list[Tensor], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
