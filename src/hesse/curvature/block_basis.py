"""Orthonormal bases that are block-diagonal, kept as their blocks; products with them, or with a basis kept whole.

Shapes: Q (n, n) of c blocks, about n/c each; x any stack (..., n) or (..., n, k).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Basis", "BlockBasis", "block_slices", "left_times", "right_times", "rows_times"]


def block_slices(order: int, blocks: int) -> list[slice]:
    """Cut 0 to n into c runs of like length.

    Parameters
    ----------
    order : int
        n.
    blocks : int
        c <= n.

    Returns
    -------
    list of slice
        In order.
    """
    edges = [round(i * order / blocks) for i in range(blocks + 1)]
    return [slice(edges[i], edges[i + 1]) for i in range(blocks)]


@dataclass(frozen=True)
class BlockBasis:
    """Q = diag(Q_1, ..., Q_c): n²/c numbers in place of n²."""

    blocks: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """That of the whole."""
        order = sum(len(block) for block in self.blocks)
        return order, order

    @property
    def dtype(self) -> torch.dtype:
        """Of all blocks."""
        return self.blocks[0].dtype

    @property
    def device(self) -> torch.device:
        """Of all blocks."""
        return self.blocks[0].device

    @property
    def slices(self) -> list[slice]:
        """Where each block stands."""
        first, out = 0, []
        for block in self.blocks:
            out.append(slice(first, first + len(block)))
            first += len(block)
        return out

    def to(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> "BlockBasis":
        """Convert every block.

        Parameters
        ----------
        dtype : dtype, optional
            Default: as it is.
        device : device, optional
            Default: where it is.

        Returns
        -------
        BlockBasis
            Of the same blocks.
        """
        return BlockBasis(tuple(block.to(dtype=dtype, device=device) for block in self.blocks))

    def dense(self) -> Tensor:
        """Write it out.

        Returns
        -------
        Tensor, shape (n, n)
            With zeros beside the blocks.
        """
        return torch.block_diag(*self.blocks)


Basis = Tensor | BlockBasis
"""A basis kept whole, or as its blocks."""


def right_times(x: Tensor, basis: Basis, *, transposed: bool = False, out: Tensor | None = None) -> Tensor:
    """X Q, or x Qᵀ.

    Parameters
    ----------
    x : Tensor, shape (..., n)
        In the dtype of the basis.
    basis : Tensor or BlockBasis, shape (n, n)
        Q.
    transposed : bool, default False
        Multiply by Qᵀ.
    out : Tensor, shape (..., n), optional
        Room for the result.

    Returns
    -------
    Tensor, shape (..., n)
        Costs n²/c products a row.
    """
    if isinstance(basis, Tensor):
        return torch.matmul(x, basis.T if transposed else basis, out=out)
    room = torch.empty_like(x) if out is None else out
    for block, place in zip(basis.blocks, basis.slices, strict=True):
        room[..., place] = x[..., place] @ (block.T if transposed else block)
    return room


def left_times(basis: Basis, x: Tensor, *, transposed: bool = False, out: Tensor | None = None) -> Tensor:
    """Q x, or Qᵀ x.

    Parameters
    ----------
    basis : Tensor or BlockBasis, shape (n, n)
        Q.
    x : Tensor, shape (..., n, k)
        In the dtype of the basis.
    transposed : bool, default False
        Multiply by Qᵀ.
    out : Tensor, shape (..., n, k), optional
        Room for the result.

    Returns
    -------
    Tensor, shape (..., n, k)
        Costs n²/c products a column.
    """
    if isinstance(basis, Tensor):
        return torch.matmul(basis.T if transposed else basis, x, out=out)
    room = torch.empty_like(x) if out is None else out
    for block, place in zip(basis.blocks, basis.slices, strict=True):
        room[..., place, :] = (block.T if transposed else block) @ x[..., place, :]
    return room


def rows_times(x: Tensor, basis: Basis, *, has_bias: bool, out: Tensor | None = None) -> Tensor:
    """(x, 1) Q, without appending the ones.

    Parameters
    ----------
    x : Tensor, shape (..., n) or (..., n - 1)
        Rows; a 1 at the end is meant if ``has_bias``.
    basis : Tensor or BlockBasis, shape (n, n)
        Q, in the dtype of the rows.
    has_bias : bool
        Whether the last row of Q belongs to the ones.
    out : Tensor, shape (..., n), optional
        Room for the result.

    Returns
    -------
    Tensor, shape (..., n)
        Rotated rows.
    """
    if not has_bias:
        return right_times(x, basis, out=out)
    if isinstance(basis, Tensor):
        return torch.matmul(x, basis[:-1], out=out).add_(basis[-1])
    room = x.new_empty(*x.shape[:-1], basis.shape[0]) if out is None else out
    _fill(room, x, basis.blocks, basis.slices)
    return room


def _fill(room: Tensor, x: Tensor, blocks: Sequence[Tensor], slices: Sequence[slice]) -> None:
    for block, place in zip(blocks[:-1], slices[:-1], strict=True):
        room[..., place] = x[..., place] @ block
    room[..., slices[-1]] = (x[..., slices[-1].start :] @ blocks[-1][:-1]).add_(blocks[-1][-1])
