"""Buffers that outlive a batch: writing a large product into memory already mapped is up to a third faster than into
fresh memory.
"""

import torch
from torch import Tensor

from hesse.curvature.block_basis import Basis

__all__ = ["Scratch"]


class Scratch:
    """One growing buffer a purpose and dtype; a request gets a view of it, valid until the next request for the same
    purpose.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, purpose: str, shape: tuple[int, ...], like: Basis) -> Tensor:
        """Return uninitialised room of a shape, in the dtype and on the device of ``like``.

        Parameters
        ----------
        purpose : str
            Requests of one purpose share memory, so the last one wins.
        shape : tuple of int
            What is needed.
        like : Tensor or BlockBasis
            Gives dtype and device.

        Returns
        -------
        Tensor
            Contiguous, of that shape.
        """
        key = (purpose, like.dtype, like.device)
        count = 1
        for size in shape:
            count *= size
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[key] = torch.empty(count, dtype=like.dtype, device=like.device)
        return buffer[:count].view(shape)
