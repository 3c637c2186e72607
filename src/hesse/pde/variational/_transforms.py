"""Discrete sine and cosine transforms of type I along all axes, by FFT.   Shapes: K modes and M intervals an axis."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["analyse", "synthesise"]


def synthesise(coefs: Tensor, sines: Sequence[bool], intervals: int) -> Tensor:
    """Evaluate Σ_w c_w Π s_i(π w_i x_i) at x = 0, 1/M, ..., 1 in each axis.

    Parameters
    ----------
    coefs : Tensor, shape (K, ..., K)
        Frequencies 1..K in each axis.
    sines : sequence of bool
        Which axes carry sines; the others carry cosines.
    intervals : int
        M > K.

    Returns
    -------
    Tensor, shape (M + 1, ..., M + 1)
        O(M^D log M) time.
    """
    for axis, sine in enumerate(sines):
        moved = coefs.movedim(axis, -1)
        spectrum = torch.nn.functional.pad(moved, (1, intervals - moved.shape[-1])) * intervals
        wave = torch.fft.irfft(spectrum * (-1j if sine else 1.0), n=2 * intervals)
        coefs = wave[..., : intervals + 1].movedim(-1, axis)
    return coefs


def analyse(values: Tensor, sines: Sequence[bool]) -> Tensor:
    """Inverse of `synthesise`: trapezoidal inner products with the basis, times 2 an axis.

    Parameters
    ----------
    values : Tensor, shape (M + 1, ..., M + 1)
        At x = 0, 1/M, ..., 1.
    sines : sequence of bool
        Which axes are projected on sines.

    Returns
    -------
    Tensor, shape (M - 1, ..., M - 1)
        Frequencies 1..M-1; the constant of a cosine axis is left out.
    """
    for axis, sine in enumerate(sines):
        moved = values.movedim(axis, -1)
        intervals = moved.shape[-1] - 1
        inner = moved[..., 1:-1].flip(-1)
        if sine:
            zeros = torch.zeros_like(moved[..., :1])
            extended = torch.cat([zeros, moved[..., 1:-1], zeros, -inner], dim=-1)
            found = -torch.fft.rfft(extended).imag
        else:
            found = torch.fft.rfft(torch.cat([moved, inner], dim=-1)).real
        values = (found[..., 1:intervals] / intervals).movedim(-1, axis)
    return values
