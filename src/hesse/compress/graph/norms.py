"""Layer and RMS norms over channels of which some were cut: the missing ones still count as zeros."""

import torch
from torch import Tensor, nn

from hesse.errors import ArgumentError

__all__ = ["CountedLayerNorm", "CountedRMSNorm"]


def _check_count(name: str, width: int, count: int) -> None:
    if count < width:
        raise ArgumentError(f"{name}: expected count >= {width}, the entries kept; got {count}")


class CountedLayerNorm(nn.Module):
    """Layer norm of a vector of ``count`` entries, of which only those that are not zero are given.

    mean = Σ x / count,   var = (Σ (x - mean)² + (count - D) mean²) / count

    Parameters
    ----------
    weight : Tensor, shape (D,)
        Scale of the entries kept.
    bias : Tensor, shape (D,), optional
        Shift of the entries kept. Default: none.
    count : int
        Entries of the vector before the cut, at least D.
    eps : float
        Added to the variance.

    Raises
    ------
    ArgumentError
        If ``count < D``.

    Notes
    -----
    Statistics are taken in float32 for half-precision input, as torch does.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, count: int, eps: float) -> None:
        super().__init__()
        _check_count("CountedLayerNorm", len(weight), count)
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.count, self.eps = count, eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last dimension.

        Parameters
        ----------
        x : Tensor, shape (..., D)
            The entries kept.

        Returns
        -------
        Tensor, shape (..., D)
            In the dtype of ``x``.
        """
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = wide.sum(-1, keepdim=True) / self.count
        centred = wide - mean
        missing = self.count - x.shape[-1]
        variance = (centred.square().sum(-1, keepdim=True) + missing * mean.square()) / self.count
        out = centred * torch.rsqrt(variance + self.eps) * self.weight
        return (out if self.bias is None else out + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        """Say how many entries are left of how many.

        Returns
        -------
        str
            For ``repr``.
        """
        return f"{len(self.weight)} of {self.count}, eps={self.eps}"


class CountedRMSNorm(nn.Module):
    """RMS norm of a vector of ``count`` entries, of which only those that are not zero are given.

    y = w · x / sqrt(Σ x² / count + eps)

    Parameters
    ----------
    weight : Tensor, shape (D,), optional
        Scale of the entries kept. None: no scale.
    count : int
        Entries of the vector before the cut, at least D.
    eps : float, optional
        Added to the mean square. None: the machine epsilon of the statistics' dtype, as in torch.

    Raises
    ------
    ArgumentError
        If ``count < D``.

    Notes
    -----
    Statistics are taken in float32 for half-precision input, which is then rounded before the scale is applied.
    """

    def __init__(self, weight: Tensor | None, count: int, eps: float | None) -> None:
        super().__init__()
        if weight is not None:
            _check_count("CountedRMSNorm", len(weight), count)
        self.weight = None if weight is None else nn.Parameter(weight)
        self.count, self.eps = count, eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last dimension.

        Parameters
        ----------
        x : Tensor, shape (..., D)
            The entries kept.

        Returns
        -------
        Tensor, shape (..., D)
            In the dtype of ``x``.
        """
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        eps = torch.finfo(wide.dtype).eps if self.eps is None else self.eps
        out = (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) / self.count + eps)).to(x.dtype)
        return out if self.weight is None else out * self.weight

    def extra_repr(self) -> str:
        """Say how many entries are left of how many.

        Returns
        -------
        str
            For ``repr``.
        """
        kept = self.count if self.weight is None else len(self.weight)
        return f"{kept} of {self.count}, eps={self.eps}"
