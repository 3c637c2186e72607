"""Kronecker factors of which only the c diagonal blocks are summed: a c-th of the memory, a c-th of the products.

    A ≈ diag(A_1, ..., A_c),   A_i = (1/M) Σ_t ã_t[i] ã_t[i]ᵀ      ã[i]: the i-th run of the columns

Eigendecomposing takes 1/c² of the time. Shapes: n order, M rows, c blocks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.curvature.block_basis import Basis, BlockBasis, block_slices
from hesse.curvature.capture import Captured
from hesse.curvature.kfac import (
    add_gram_,
    add_gram_with_ones_,
    eigendecompose,
    kept_rows,
    mirror_,
    num_positions,
)

__all__ = ["FactorBlocks"]


@dataclass(slots=True)
class FactorBlocks:
    """Running sums of x xᵀ within each block, upper triangles only; ``count`` rows so far."""

    totals: list[Tensor]  # c of them, (n_i, n_i)
    count: int = 0

    @classmethod
    def zeros(cls, order: int, blocks: int, *, dtype: torch.dtype, device: torch.device) -> "FactorBlocks":
        """Start empty sums.

        Parameters
        ----------
        order : int
            n.
        blocks : int
            c; 1 keeps the whole factor.
        dtype : dtype
            Of the accumulation: float32 or wider.
        device : device
            Of the accumulation.

        Returns
        -------
        FactorBlocks
            With no rows.
        """
        sizes = [place.stop - place.start for place in block_slices(order, blocks)]
        return cls([torch.zeros(size, size, dtype=dtype, device=device) for size in sizes])

    @property
    def slices(self) -> list[slice]:
        """Where each block stands."""
        return block_slices(sum(len(total) for total in self.totals), len(self.totals))

    def add_inputs_(self, rows: Captured) -> None:
        """Add the input ã of every position of one batch, a 1 at its end where the layer has a bias."""
        x = kept_rows(rows.inputs, rows.mask)
        for total, place in zip(self.totals, self.slices, strict=True):
            add_gram_with_ones_(total, x[:, place])  # the part of the last block lacks the ones
        self.count += len(x)

    def add_grads_(self, rows: Captured, *, count: bool = True) -> None:
        """Add the gradient δ of every position; ``count=False`` for a further draw of labels on the same positions."""
        d = rows.grads.flatten(0, 1)  # positions outside the mask are zero rows
        for total, place in zip(self.totals, self.slices, strict=True):
            add_gram_(total, d[:, place])
        if count:
            self.count += num_positions(rows)

    def eigendecompose(self, count: int, *, name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Basis]:
        """Eigendecompose every block; the sums are completed below the diagonal in place.

        Parameters
        ----------
        count : int
            M.
        name : str
            Of the layer and factor, for messages.
        dtype : dtype, default float64
            To compute in. float32 takes half the time, and is enough for sums of bfloat16 rows.

        Returns
        -------
        values : Tensor, shape (n,)
            In ``dtype``, ascending within a block, clipped at zero.
        vectors : Tensor or BlockBasis, shape (n, n)
            In ``dtype``; a tensor if there is one block.
        """
        parts = [eigendecompose(mirror_(total), count, name=name, dtype=dtype) for total in self.totals]
        vectors = [part.vectors for part in parts]
        return torch.cat([part.values for part in parts]), vectors[0] if len(parts) == 1 else BlockBasis(tuple(vectors))
