"""Computed tomography by parallel beams, with the exact adjoint.   Shapes: (n, n) pictures, V views, D detectors."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import Sparse

__all__ = ["ParallelBeamCT", "filtered_back_projection"]


class ParallelBeamCT(Sparse):
    """Line integrals of a picture that is constant on each pixel: entry (ray, pixel) is the length of the ray in it.

    The picture is the unit square, so that a line integral is at most √2 times the largest value. A ray at angle θ and
    offset s is {u : u · (cos θ, sin θ) = s}, with u measured from the centre, x along columns to the right, y along
    rows *upwards*. The matrix is stored, and A^T is its transpose: <A x, y> = <x, A^T y> to rounding.

    Parameters
    ----------
    size : int
        n, the side of the picture in pixels.
    angles : sequence of float or Tensor, shape (V,)
        In degrees. Sparse view: ``torch.arange(V) * 180 / V``; limited angle: ``torch.arange(V)`` for V below 180.
    num_detectors : int, optional
        D rays a view, one pixel apart. Default: enough to cover the diagonal, of the parity of n so that they pass
        between the corners of pixels at 0 and 90 degrees.
    dtype : torch.dtype, default torch.float32
        Of the entries.

    Raises
    ------
    ArgumentError
        If a size is below one, or an angle is not finite.

    Notes
    -----
    About 2 n V D lengths are stored, and built view by view. A ray along a line between two pixels counts for one of
    them.

    References
    ----------
    R. L. Siddon (1985), Med. Phys. 12(2).
    """

    def __init__(
        self,
        size: int,
        angles: Sequence[float] | Tensor,
        *,
        num_detectors: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        degrees = torch.as_tensor(angles, dtype=torch.float64).reshape(-1)
        if num_detectors is None:
            num_detectors = size + 2 * math.ceil(size * (math.sqrt(2) - 1) / 2)
        if min(size, len(degrees), num_detectors) < 1 or not bool(degrees.isfinite().all()):
            raise ArgumentError(
                "ParallelBeamCT: expected size, num_detectors and the number of angles >= 1 and finite angles, got "
                f"{size}, {num_detectors}, {tuple(degrees.shape)}"
            )
        views = [_view(size, num_detectors, math.radians(angle)) for angle in degrees.tolist()]
        rows = np.concatenate([ray + index * num_detectors for index, (ray, _, _) in enumerate(views)])
        columns, lengths = (np.concatenate([view[part] for view in views]) for part in (1, 2))
        shape = (len(degrees) * num_detectors, size**2)
        indices = torch.from_numpy(np.stack([rows, columns]))
        entries = torch.from_numpy(lengths).to(dtype)
        super().__init__(torch.sparse_coo_tensor(indices, entries, shape, check_invariants=True))
        self.size = size
        self.angles = degrees
        self.num_detectors = num_detectors


def _view(size: int, num_detectors: int, angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # rays, pixels and lengths of one view, in units of pixels until the end
    cosine, sine = math.cos(angle), math.sin(angle)
    offsets = np.arange(num_detectors) - (num_detectors - 1) / 2
    lines = np.arange(size + 1) - size / 2
    crossings = []
    for along, across in ((-sine, cosine), (cosine, sine)):  # u(t) = s (cos, sin) + t (-sin, cos), x first, then y
        if abs(along) > 1e-12:
            crossings.append((lines - offsets[:, None] * across) / along)
    t = np.sort(np.concatenate(crossings, 1), 1)
    lengths, middles = np.diff(t, axis=1), (t[:, 1:] + t[:, :-1]) / 2
    x = offsets[:, None] * cosine - middles * sine + size / 2
    y = offsets[:, None] * sine + middles * cosine + size / 2
    column, row = np.floor(x).astype(np.int64), size - 1 - np.floor(y).astype(np.int64)
    inside = (lengths > 1e-9) & (np.minimum(column, row) >= 0) & (np.maximum(column, row) < size)
    return np.nonzero(inside)[0], (row * size + column)[inside], lengths[inside] / size


def filtered_back_projection(physics: ParallelBeamCT, y: Tensor) -> Tensor:
    """Reconstruct by the inversion formula of the Radon transform: filter every view by |frequency|, project back.

    Parameters
    ----------
    physics : ParallelBeamCT
        With evenly spaced angles; each stands for the mean spacing.
    y : Tensor, shape (V D,) or (B, V D)
        Line integrals.

    Returns
    -------
    Tensor, shape (n, n) or (B, n, n)
        Exact in the limit of many views over 180 degrees and small pixels; streaks appear with few views.

    Raises
    ------
    ShapeError
        If ``y`` does not fit.

    References
    ----------
    A. C. Kak, M. Slaney (1988), Principles of Computerized Tomographic Imaging, chapter 3.
    """
    if y.shape[-1] != physics.shape[0] or y.ndim > 2:
        raise ShapeError(
            f"filtered_back_projection: expected y of shape ({physics.shape[0]},) or (B, ...), got {tuple(y.shape)}"
        )
    count, views = physics.num_detectors, len(physics.angles)
    padded = 2 ** math.ceil(math.log2(2 * count))
    # the ramp is sampled in space, so that its mean is right: 1/4 at zero, -1/(π k)² at odd k
    place = torch.fft.fftfreq(padded, d=1 / padded, dtype=torch.float64)
    kernel = torch.where(place % 2 == 1, -1 / (math.pi * torch.where(place == 0, 1, place)).square(), 0.0)
    kernel[0] = 0.25
    ramp = torch.fft.rfft(kernel).real.to(y)
    sinogram = y.unflatten(-1, (views, count))
    filtered = torch.fft.irfft(torch.fft.rfft(sinogram, padded) * ramp, padded)[..., :count]
    span = 180.0 / views if views == 1 else float(physics.angles.max() - physics.angles.min()) / (views - 1)
    # one factor n for the filter, whose detectors are 1/n apart, one because a ray is 1/n long in a pixel
    picture = physics.rmatvec(filtered.flatten(-2)) * (math.radians(span) * physics.size**2)
    return picture.unflatten(-1, (physics.size, physics.size))
