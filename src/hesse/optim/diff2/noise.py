"""Gaussian noise that is added to a release: from a seeded generator for research, else from the operating system."""

import math
import os

import numpy as np
import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError

__all__ = ["gaussian_noise"]


def gaussian_noise(like: Tensor, std: float, generator: Generator | None = None) -> Tensor:
    """Draw N(0, std² I).

    Parameters
    ----------
    like : Tensor
        Gives shape, dtype and device; its values are not read.
    std : float
        Standard deviation of an entry, in the units of ``like``.
    generator : torch.Generator, optional
        For repeatable experiments; whoever knows its seed can take the noise away again. Default: bits of the operating
        system's cryptographic generator, four draws to a number.

    Returns
    -------
    Tensor
        Zeros for ``std=0``, and then nothing is drawn.

    Raises
    ------
    ArgumentError
        If ``std`` is negative or not finite.

    Notes
    -----
    The sum of four normal numbers, halved, is one again, and its low bits no longer tell which of the gaps between
    floating-point numbers the noiseless value lies in. That defeats the known attack on a single draw; noise of finite
    precision is still an approximation to the mechanism that the accounting is about. The draws are made in float64 on
    the CPU, some 60 ns a number, and rounded to the dtype of ``like``.

    References
    ----------
    N. Holohan, S. Braghin (2021), ESORICS, arXiv 2107.10138.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ArgumentError(f"gaussian_noise: expected a finite std >= 0, got {std}")
    if std == 0:
        return torch.zeros_like(like)
    if generator is not None:
        draws = torch.randn(like.shape, generator=generator, dtype=_wide(like.dtype), device=generator.device)
    else:
        draws = torch.from_numpy(_secure_normals(like.numel())).reshape(like.shape)
    return (draws * std).to(like)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _secure_normals(count: int) -> np.ndarray:
    words = np.frombuffer(os.urandom(32 * count), dtype=np.uint64).reshape(2, 2, count) >> np.uint64(11)
    uniforms = (words + 0.5) * 2.0**-53  # strictly between 0 and 1
    radius, angle = np.sqrt(-2 * np.log(uniforms[0])), 2 * np.pi * uniforms[1]
    return (radius * np.cos(angle) + radius * np.sin(angle)).sum(0) / 2
