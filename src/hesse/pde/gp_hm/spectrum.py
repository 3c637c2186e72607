"""Frequencies of a kernel: those it has learned, and first guesses from the source's periodogram.

Shapes: Q components, frequencies in periods a unit of length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.pde.gp_hm.kernels import SpectralMixture1d

__all__ = ["Spectrum", "fft_frequencies", "spectrum_of"]

_PADDING = 4  # the periodogram is interpolated this finely between the frequencies of the grid


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Components of one axis's kernel, the heaviest first."""

    weights: Tensor  # (Q,)
    frequencies: Tensor  # (Q,), >= 0
    scales: Tensor  # (Q,), inverse length scales ρ


@torch.no_grad()
def spectrum_of(kernel: SpectralMixture1d) -> Spectrum:
    """Read the components of a kernel; a negative frequency is the same as its opposite.

    Parameters
    ----------
    kernel : SpectralMixture1d
        Q components.

    Returns
    -------
    Spectrum
        Sorted by weight.
    """
    weights, order = kernel.weight.sort(descending=True)
    return Spectrum(weights, kernel.frequency.abs()[order], kernel.log_scale.exp()[order])


def fft_frequencies(source: Tensor, grid: Tensor, axis: int, count: int, f_max: float) -> Tensor:
    """Place a comb on the peaks of the source's periodogram along one axis, and the rest of it evenly.

    Parameters
    ----------
    source : Tensor, shape (N_1, …, N_d)
        f on the grid; an uneven axis is read as if it were even.
    grid : Tensor, shape (N_axis,)
        Its points.
    axis : int
        Which.
    count : int
        Q.
    f_max : float
        Upper end of the comb.

    Returns
    -------
    Tensor, shape (Q,)
        Up to Q/2 peaks, the highest first, then ``linspace(0, f_max)``. Lines of u that F hardly shows (slow ones,
        under second derivatives) have low peaks: hence the comb.
    """
    f = source.movedim(axis, -1).reshape(-1, len(grid))
    window = torch.hann_window(len(grid), periodic=False, dtype=f.dtype)
    length = _PADDING * len(grid)
    power = torch.fft.rfft((f - f.mean(-1, keepdim=True)) * window, n=length).abs().square().mean(0)
    step = (grid[-1] - grid[0]) / (len(grid) - 1)
    frequencies = torch.arange(len(power), dtype=f.dtype) / (length * step)
    inner = power[1:-1]
    is_peak = (inner >= power[:-2]) & (inner > power[2:]) & (frequencies[1:-1] <= f_max) & (inner > 1e-8 * power.max())
    where = is_peak.nonzero().squeeze(-1) + 1
    best = where[power[where].argsort(descending=True)][: count // 2]
    rest = torch.linspace(0, f_max, count - len(best), dtype=f.dtype)
    return torch.cat([frequencies[best], rest])
