"""Magnetic resonance imaging with several coils.   Shapes: C coils, (H, W) pictures, P sampled frequencies."""

import math
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import LinearOperator

__all__ = ["MaskKind", "MultiCoilMRI", "NormalMRI", "coil_maps", "sampling_mask"]

MaskKind = Literal["uniform1d", "gaussian1d", "gaussian2d"]


class MultiCoilMRI(LinearOperator):
    """(A x)_c = mask · F(S_c x): Fourier coefficients of the picture as every coil sees it, those that were sampled.

    F is the orthonormal Fourier transform with frequency zero in the middle, A^H k = Σ_c conj(S_c) F⁻¹(mask k). Where
    Σ_c |S_c|² = 1, ‖A‖ <= 1. The operator is complex, (C P, H W); `RealView` makes it one of real pictures or of two
    real channels, and `DDS` does so by itself. Noise of standard deviation σ is σ in the real and in the imaginary
    part each. A^H y is the zero-filled reconstruction.

    Parameters
    ----------
    maps : Tensor, complex, shape (C, H, W)
        Sensitivities S_c. One map of ones: a single coil, where A A^H = I.
    mask : Tensor of bool, shape (H, W)
        Sampled frequencies, zero in the middle; data are ordered coil by coil, row by row.

    Raises
    ------
    ArgumentTypeError
        If the maps are not complex, or the mask is not boolean.
    ShapeError
        If the shapes do not fit.
    ArgumentError
        If nothing is sampled.

    Notes
    -----
    A product costs C transforms, O(C H W log(H W)).
    """

    _fields = ("maps", "mask", "_turned", "_index")

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        if not maps.is_complex() or mask.dtype != torch.bool:
            raise ArgumentTypeError(
                f"MultiCoilMRI: expected complex maps and a boolean mask, got {maps.dtype} and {mask.dtype}"
            )
        if maps.ndim != 3 or mask.shape != maps.shape[1:]:
            raise ShapeError(
                f"MultiCoilMRI: expected maps (C, H, W) and mask (H, W), got {tuple(maps.shape)}, {tuple(mask.shape)}"
            )
        rows, columns = mask.nonzero(as_tuple=True)
        if not len(rows):
            raise ArgumentError("MultiCoilMRI: the mask samples nothing")
        height, width = mask.shape
        super().__init__((len(maps) * len(rows), height * width), maps.dtype, maps.device)
        self.maps = maps
        self.mask = mask
        self._turned = torch.fft.ifftshift(maps, (-2, -1))  # turned once, so that a product turns pictures only
        # where a centred frequency stands in the order of torch.fft
        self._index = ((rows - height // 2) % height * width + (columns - width // 2) % width).to(maps.device)

    def _matmat(self, x: Tensor) -> Tensor:
        pictures = torch.fft.ifftshift(x.mT.unflatten(-1, self.mask.shape), (-2, -1))
        spectrum = torch.fft.fft2(self._turned * pictures.unsqueeze(-3), norm="ortho").flatten(-2)
        return spectrum.index_select(-1, self._index).flatten(-2).mT

    def _rmatmat(self, y: Tensor) -> Tensor:
        samples = y.mT.unflatten(-1, (len(self.maps), -1))
        spectrum = samples.new_zeros(*samples.shape[:-1], self.mask.numel()).index_copy(-1, self._index, samples)
        seen = torch.fft.ifft2(spectrum.unflatten(-1, self.mask.shape), norm="ortho")
        pictures = (self._turned.conj() * seen).sum(-3)
        return torch.fft.fftshift(pictures, (-2, -1)).flatten(-2).mT


class NormalMRI(LinearOperator):
    """Re(A^H A) of `MultiCoilMRI` on real pictures, without the detour over the samples.

    Parameters
    ----------
    physics : MultiCoilMRI
        A.
    """

    _fields = ("_turned", "_sampled")

    def __init__(self, physics: MultiCoilMRI) -> None:
        pixels = physics.shape[1]
        super().__init__((pixels, pixels), physics.dtype.to_real(), physics.device, is_psd=True)
        self._turned = torch.fft.ifftshift(physics.maps, (-2, -1))
        self._sampled = torch.fft.ifftshift(physics.mask, (-2, -1)).to(dtype=self.dtype, device=self.device)

    def _matmat(self, x: Tensor) -> Tensor:
        pictures = torch.fft.ifftshift(x.mT.unflatten(-1, self._sampled.shape), (-2, -1)).unsqueeze(-3)
        seen = torch.fft.ifft2(torch.fft.fft2(self._turned * pictures) * self._sampled)
        pictures = (self._turned.conj() * seen).real.sum(-3)
        return torch.fft.fftshift(pictures, (-2, -1)).flatten(-2).mT


def sampling_mask(
    shape: tuple[int, int],
    kind: MaskKind = "uniform1d",
    acceleration: float = 4.0,
    center_fraction: float = 0.08,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Choose frequencies at random around a centre that is always sampled.

    Parameters
    ----------
    shape : tuple of int
        (H, W).
    kind : {"uniform1d", "gaussian1d", "gaussian2d"}, default "uniform1d"
        Whole columns, all alike; whole columns, those near the centre more often (standard deviation W / 6); single
        frequencies likewise.
    acceleration : float, default 4.0
        H W over the number of samples, to the rounding of columns.
    center_fraction : float, default 0.08
        Fraction of columns (in two dimensions: of either side) that is always sampled; it fixes contrast.
    generator : torch.Generator, optional
        Source of the choice. Default: torch's global generator.

    Returns
    -------
    Tensor of bool, shape (H, W)
        Frequency zero stands at (H // 2, W // 2).

    Raises
    ------
    ArgumentError
        If the kind is unknown, ``acceleration < 1``, or the fraction is outside [0, 1].
    """
    if kind not in get_args(MaskKind):
        raise ArgumentError(f"sampling_mask: kind must be one of {get_args(MaskKind)}, got {kind!r}")
    if not acceleration >= 1 or not 0 <= center_fraction <= 1 or min(shape) < 1:
        raise ArgumentError(
            "sampling_mask: expected sides >= 1, acceleration >= 1 and 0 <= center_fraction <= 1, got "
            f"{shape}, {acceleration}, {center_fraction}"
        )
    sides = shape if kind == "gaussian2d" else (1, shape[1])
    weights, center = torch.ones(sides), torch.ones(sides, dtype=torch.bool)
    for axis, side in enumerate(sides):
        place = torch.arange(side).reshape(-1, 1) if axis == 0 else torch.arange(side)
        offset = place - side // 2
        if kind != "uniform1d" and side > 1:
            weights = weights * torch.exp(-offset.square() / (2 * (side / 6) ** 2))
        if side > 1:
            half = round(center_fraction * side)
            center = center & (offset >= -(half // 2)) & (offset < half - half // 2)
    wanted = round(weights.numel() / acceleration) - int(center.sum())
    mask = center.flatten()
    if wanted > 0:
        weights = torch.where(mask, 0, weights.flatten() + 1e-12)
        mask[torch.multinomial(weights, wanted, generator=generator)] = True
    return mask.reshape(sides).expand(shape).clone()


def coil_maps(num_coils: int, shape: tuple[int, int], *, dtype: torch.dtype = torch.complex64) -> Tensor:
    """Make smooth sensitivities of coils on a circle around the picture, with Σ_c |S_c|² = 1 everywhere.

    Parameters
    ----------
    num_coils : int
        C.
    shape : tuple of int
        (H, W).
    dtype : torch.dtype, default torch.complex64
        complex64 or complex128.

    Returns
    -------
    Tensor, shape (C, H, W)
        Gaussian bells as wide as the picture, each with a slowly turning phase.

    Raises
    ------
    ArgumentError
        If a size is below one.
    """
    if min(num_coils, *shape) < 1:
        raise ArgumentError(f"coil_maps: expected num_coils and sides >= 1, got {num_coils}, {shape}")
    y = torch.linspace(-1, 1, shape[0], dtype=torch.float64).unsqueeze(1)
    x = torch.linspace(-1, 1, shape[1], dtype=torch.float64)
    maps = []
    for coil in range(num_coils):
        angle = 2 * math.pi * coil / num_coils
        across, along = x - math.cos(angle), y - math.sin(angle)
        bell = torch.exp(-(across.square() + along.square()) / 2)
        maps.append(torch.polar(bell, (across + along).expand(shape) * (math.pi / 4) + angle))
    stack = torch.stack(maps)
    return (stack / stack.abs().square().sum(0).sqrt()).to(dtype)
