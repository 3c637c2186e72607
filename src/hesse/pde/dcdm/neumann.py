"""Fluid regions without any outlet: there A annihilates constants, so b must have mean zero and x is free up to one.

Shapes: N cells, C enclosed regions, K right-hand sides.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.linalg.stencil import PoissonStencil

__all__ = ["EnclosedRegions"]


class EnclosedRegions:
    """The connected fluid regions of a stencil that touch solid walls only; an isolated cell may be one.

    Parameters
    ----------
    operator : PoissonStencil, shape (N, N)
        Its flow of constants decides: A 1 = 0 on such a region.
    """

    def __init__(self, operator: PoissonStencil) -> None:
        n, kind = operator.shape[0], torch.float64
        fluid = operator.fluid.flatten().to(kind)
        outflow = (operator.to(dtype=kind) @ fluid.unsqueeze(1)).squeeze(1)
        labels = np.zeros(operator.grid, dtype=np.int64)
        ndimage.label(operator.fluid.cpu().numpy(), output=labels)
        count = int(labels.max(initial=0))
        region = torch.from_numpy(labels).to(operator.device).reshape(n)
        total = torch.zeros(count + 1, dtype=kind, device=operator.device).index_add_(0, region, outflow)
        # each outlet contributes 1/h², far above what rounding leaves of the cancelling rest
        enclosed = total < 0.5 * min(1 / h**2 for h in operator.spacing)
        enclosed[0] = False  # label 0 is what is not fluid
        self.count = int(enclosed.sum())
        number = torch.cumsum(enclosed.long(), 0) * enclosed
        self.region = number[region]  # (N,): 0 elsewhere, 1 … C inside
        self.sizes = torch.bincount(self.region, minlength=self.count + 1).clamp_min(1)

    def means(self, block: Tensor) -> Tensor:
        """Average over each region.

        Parameters
        ----------
        block : Tensor, shape (N, K)
            Any columns.

        Returns
        -------
        Tensor, shape (C + 1, K)
            The first row, of all other cells, is zero.
        """
        sums = block.new_zeros(self.count + 1, block.shape[1]).index_add_(0, self.region, block)
        averages = sums / self.sizes.unsqueeze(1).to(block.dtype)
        averages[0] = 0
        return averages

    def without_means(self, block: Tensor) -> Tensor:
        """Subtract the average over each region.

        Parameters
        ----------
        block : Tensor, shape (N, K)
            Any columns.

        Returns
        -------
        Tensor, shape (N, K)
            The nearest columns in the range of A.
        """
        return block if self.count == 0 else block - self.means(block)[self.region]

    def require_range(self, b: Tensor) -> None:
        """Refuse right-hand sides that no x reaches.

        Parameters
        ----------
        b : Tensor, shape (N, K)
            Right-hand sides.

        Raises
        ------
        ArgumentError
            If the means make up more than the square root of the rounding unit of a column's norm.
        """
        if self.count == 0:
            return
        lost = torch.linalg.vector_norm(self.means(b)[self.region], dim=0)
        share = lost / torch.linalg.vector_norm(b, dim=0).clamp_min(torch.finfo(b.dtype).tiny)
        if float(share.max()) > torch.finfo(b.dtype).eps ** 0.5:
            raise ArgumentError(
                f"solve: b has a mean on the {self.count} fluid region(s) between solid walls, where A x always has "
                f"mean zero ({float(share.max()):.1e} of its norm); pass project=True for the least-squares solution"
            )
