"""Missing pixels and blur.   Shapes: pictures of any ``shape``, flattened row by row."""

import math

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import LinearOperator

__all__ = ["Blur", "Inpainting"]


class Inpainting(LinearOperator):
    """Keep the pixels of a mask: A A^T = I.

    Parameters
    ----------
    mask : Tensor of bool, any shape
        Pixels that are seen; data are in their order.
    dtype : torch.dtype, default torch.float32
        Of pictures and data.

    Raises
    ------
    ArgumentTypeError
        If the mask is not boolean.
    ArgumentError
        If no pixel is seen.
    """

    _fields = ("mask",)

    def __init__(self, mask: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        if mask.dtype != torch.bool:
            raise ArgumentTypeError(f"Inpainting: expected a boolean mask, got {mask.dtype}")
        index = mask.flatten().nonzero().squeeze(1)
        if not len(index):
            raise ArgumentError("Inpainting: the mask shows no pixel")
        super().__init__((len(index), mask.numel()), dtype, mask.device)
        self.mask = mask

    def _matmat(self, x: Tensor) -> Tensor:
        return x[..., self.mask.flatten(), :]

    def _rmatmat(self, y: Tensor) -> Tensor:
        x = y.new_zeros(*y.shape[:-2], self.shape[1], y.shape[-1])
        x[..., self.mask.flatten(), :] = y
        return x


class Blur(LinearOperator):
    """Circular convolution of every picture with a kernel.

    Parameters
    ----------
    kernel : Tensor, shape (h, w)
        Weights, their centre at (h // 2, w // 2); its dtype is the operator's.
    shape : tuple of int
        (H, W) of the picture, not smaller than the kernel.

    Raises
    ------
    ShapeError
        If the kernel is no matrix, or larger than the picture.

    Notes
    -----
    A product costs two real Fourier transforms, O(H W log(H W)).
    """

    _fields = ("kernel",)

    def __init__(self, kernel: Tensor, shape: tuple[int, int]) -> None:
        if kernel.ndim != 2 or kernel.shape[0] > shape[0] or kernel.shape[1] > shape[1]:
            raise ShapeError(
                f"Blur: expected a kernel (h, w) within the picture {tuple(shape)}, got {tuple(kernel.shape)}"
            )
        super().__init__((math.prod(shape), math.prod(shape)), kernel.dtype, kernel.device)
        self.kernel = kernel
        self.picture_shape = (int(shape[0]), int(shape[1]))

    def _filtered(self, x: Tensor, *, adjoint: bool) -> Tensor:
        h, w = self.kernel.shape
        wide = torch.zeros(self.picture_shape, dtype=self.dtype, device=self.device)
        wide[:h, :w] = self.kernel
        response = torch.fft.rfft2(wide.roll((-(h // 2), -(w // 2)), (0, 1)))
        spectrum = torch.fft.rfft2(x.mT.unflatten(-1, self.picture_shape))
        out = torch.fft.irfft2(spectrum * (response.conj() if adjoint else response), s=self.picture_shape)
        return out.flatten(-2).mT

    def _matmat(self, x: Tensor) -> Tensor:
        return self._filtered(x, adjoint=False)

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self._filtered(y, adjoint=True)
