"""Local dimension of data from a score field: flow Jacobian, local Jacobian, normal bundle, trace formula.

Shapes: B points of D coordinates, K noised copies, T noise levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError
from hesse.generative.gauge import Field, field_jacobian, flow_jacobian, probability_flow
from hesse.generative.gauge.fields import check_points

__all__ = ["DimensionEstimate", "DimensionMethod", "PlateauEstimate", "intrinsic_dimension", "plateau_dimension"]

DimensionMethod = Literal["flow", "jacobian", "normal_bundle", "flipd"]


@dataclass(frozen=True, slots=True, eq=False)
class DimensionEstimate:
    """One dimension a point; data of several dimensions show in the histogram, not in the mean."""

    dimension: Tensor  # (B,), whole numbers except for "flipd"
    spectrum: Tensor  # (B, D): singular values, falling; for "flipd" those of I + σ² J
    gap: Tensor  # (B,): ratio of the last value counted to the next, infinite where there is none; NaN for "flipd"

    def histogram(self) -> dict[int, int]:
        """Count the points of each dimension, rounded.

        Returns
        -------
        dict of int to int
            Sorted by dimension.
        """
        values, counts = self.dimension.round().long().unique(return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))


def intrinsic_dimension(
    field: Field,
    x: Tensor,
    sigma: float = 0.05,
    *,
    method: DimensionMethod = "jacobian",
    symmetrize: bool = False,
    num_scores: int | None = None,
    sigma_max: float = 10.0,
    num_steps: int = 60,
    slope_threshold: float = 0.5,
    generator: Generator | None = None,
) -> DimensionEstimate:
    """Estimate the dimension of the data around each point.

    - "jacobian": the number of singular values of the denoiser's Jacobian I + σ² J above 1/2: near 1 along the data,
      near 0 across.
    - "flow": encode x up to ``sigma_max`` and come back with the Jacobian of the flow; a direction counts if its
      singular value falls slower than σ^slope_threshold over the last decade down to ``sigma``.
    - "normal_bundle": scores at K points x + σ z span the normal space; the dimension is D minus the place of the
      largest drop between neighbouring singular values of the K × D stack.
    - "flipd": D + σ² (tr J + |v|²), real-valued.

    Parameters
    ----------
    field : Field
        v. A gauge part that no sample shows still spoils all four; `decompose` removes it.
    x : Tensor, shape (B, D)
        Points on, or near, the data.
    sigma : float, default 0.05
        Noise level of the read-out, in units of the data: above the data's own noise, below its radius of curvature;
        for "flow" ten times it must be below that radius too.
    method : {"flow", "jacobian", "normal_bundle", "flipd"}, default "jacobian"
        The cheapest that gives whole numbers: D products a point.
    symmetrize : bool, default False
        Use (J + Jᵀ)/2, a cheap repair of "jacobian". The other methods do not look at it: tr J is that of the
        symmetric part anyway, and |v|² needs `decompose`.
    num_scores : int, optional
        K >= D. Default: 8 D.
    sigma_max : float, default 10.0
        Start of "flow": it must drown the data.
    num_steps : int, default 60
        Runge-Kutta steps of "flow", each way.
    slope_threshold : float, default 0.5
        Between 0 along the data and 1 across.
    generator : torch.Generator, optional
        Source of the noise of "normal_bundle". Default: torch's global generator.

    Returns
    -------
    DimensionEstimate
        Per point.

    Raises
    ------
    ArgumentError
        If an argument is out of range or unknown.
    ShapeError
        If x is not (B, D).

    References
    ----------
    C. Horvat, J.-P. Pfister (2024), ICLR, arXiv 2402.03845 ("flow"); J. Stanczuk, G. Batzolis, T. Deveney, C.-B.
    Schönlieb (2024), ICML, arXiv 2212.12611 ("normal_bundle"); H. Kamkari et al. (2024), NeurIPS, arXiv 2406.03537
    ("flipd").

    Notes
    -----
    "jacobian" and "flipd" take D products a point and hold a D × D matrix of each; "normal_bundle" takes K evaluations,
    "flow" some 4 (D + 2) ``num_steps`` of them.
    """
    check_points("intrinsic_dimension", x, sigma)
    if method not in get_args(DimensionMethod):
        raise ArgumentError(f"intrinsic_dimension: method must be one of {get_args(DimensionMethod)}, got {method!r}")
    dim = x.shape[1]
    if method == "normal_bundle":
        count = 8 * dim if num_scores is None else num_scores
        if count < dim:
            raise ArgumentError(f"intrinsic_dimension: expected num_scores >= D = {dim}, got {count}")
        return _normal_bundle(field, x, sigma, count, generator)
    if method == "flow":
        if not 10 * sigma < sigma_max:
            raise ArgumentError(f"intrinsic_dimension: expected sigma_max > 10 sigma = {10 * sigma}, got {sigma_max}")
        return _flow(field, x, sigma, sigma_max, num_steps, slope_threshold)
    J = field_jacobian(field, x, sigma)
    eye = torch.eye(dim, dtype=x.dtype, device=x.device)
    spectrum = torch.linalg.svdvals(eye + sigma**2 * ((J + J.mT) / 2 if symmetrize else J))
    if method == "flipd":
        trace = J.diagonal(dim1=1, dim2=2).sum(1)
        dimension = dim + sigma**2 * (trace + field(x, sigma).square().sum(1))
        return DimensionEstimate(dimension, spectrum, torch.full_like(dimension, math.nan))
    return _counted((spectrum > 0.5).sum(1), spectrum)


@dataclass(frozen=True, slots=True, eq=False)
class PlateauEstimate:
    """The dimension that lasts over the widest range of noise levels, one a point."""

    dimension: Tensor  # (B,), whole
    confidence: Tensor  # (B,): share of the levels that the plateau covers
    sigma: Tensor  # (B,): the plateau's middle, geometric
    levels: Tensor  # (T,), rising
    dimensions: Tensor  # (B, T): the estimates that it was read from


def plateau_dimension(
    field: Field,
    x: Tensor,
    sigmas: Sequence[float] = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2),
    *,
    method: DimensionMethod = "jacobian",
    symmetrize: bool = False,
    generator: Generator | None = None,
) -> PlateauEstimate:
    """Choose the noise level point by point: take the rounded estimate that most neighbouring levels agree on.

    Below the data's own noise every direction counts, beyond the radius of curvature none does; between them the
    estimate stands still. Of plateaus of one length the one at less noise wins.

    Parameters
    ----------
    field : Field
        v.
    x : Tensor, shape (B, D)
        Points on, or near, the data.
    sigmas : sequence of float, default from 0.02 to 0.2
        T >= 2 different levels, about evenly spaced in their logarithm, in units of the data.
    method : {"flow", "jacobian", "normal_bundle", "flipd"}, default "jacobian"
        As in `intrinsic_dimension`.
    symmetrize : bool, default False
        As in `intrinsic_dimension`.
    generator : torch.Generator, optional
        As in `intrinsic_dimension`.

    Returns
    -------
    PlateauEstimate
        At the cost of T estimates.

    Raises
    ------
    ArgumentError
        If there are fewer than two different levels, or an argument is out of range.
    """
    levels = sorted({float(sigma) for sigma in sigmas})
    if len(levels) < 2:
        raise ArgumentError(f"plateau_dimension: expected two or more different sigmas, got {tuple(sigmas)}")
    found = [
        intrinsic_dimension(field, x, sigma, method=method, symmetrize=symmetrize, generator=generator).dimension
        for sigma in levels
    ]
    dimensions = torch.stack(found, 1)
    counts = dimensions.round()
    length = torch.ones_like(counts[:, 0])
    longest, last = length, torch.zeros_like(length, dtype=torch.long)
    for t in range(1, len(levels)):
        length = torch.where(counts[:, t] == counts[:, t - 1], length + 1, 1)
        longer = length > longest
        longest, last = torch.where(longer, length, longest), torch.where(longer, t, last)
    positions = x.new_tensor(levels)
    first = last - longest.long() + 1
    return PlateauEstimate(
        dimension=counts.gather(1, last.unsqueeze(1)).squeeze(1),
        confidence=longest / len(levels),
        sigma=(positions[first] * positions[last]).sqrt(),
        levels=positions,
        dimensions=dimensions,
    )


def _counted(count: Tensor, spectrum: Tensor) -> DimensionEstimate:
    # `count` values are taken as along the data
    above = torch.cat([torch.full_like(spectrum[:, :1], math.inf), spectrum], 1).gather(1, count.unsqueeze(1))
    below = torch.cat([spectrum, torch.zeros_like(spectrum[:, :1])], 1).gather(1, count.unsqueeze(1))
    return DimensionEstimate(count.to(spectrum.dtype), spectrum, (above / below).squeeze(1))


def _normal_bundle(field: Field, x: Tensor, sigma: float, count: int, generator: Generator | None) -> DimensionEstimate:
    noise = torch.randn(len(x), count, x.shape[1], generator=generator, dtype=x.dtype, device=x.device)
    scores = field((x.unsqueeze(1) + sigma * noise).flatten(0, 1), sigma).reshape(noise.shape)
    spectrum = torch.linalg.svdvals(scores)
    tiny = torch.finfo(x.dtype).tiny
    drop, place = (spectrum[:, :-1] / spectrum[:, 1:].clamp_min(tiny)).max(1)
    return DimensionEstimate((x.shape[1] - 1 - place).to(x.dtype), spectrum, drop)


def _flow(
    field: Field, x: Tensor, sigma: float, sigma_max: float, num_steps: int, slope_threshold: float
) -> DimensionEstimate:
    encoded = probability_flow(field, x, sigma, sigma_max, num_steps=num_steps)
    path = flow_jacobian(field, encoded, sigma_max, sigma, num_steps=num_steps)
    last = path.levels <= 10 * sigma * (1 + 1e-6)
    logs = path.singular_values[:, last].clamp_min(torch.finfo(x.dtype).tiny).log()
    positions = path.levels[last].log()
    centred = positions - positions.mean()
    slopes = torch.einsum("t,btd->bd", centred, logs) / centred.square().sum()
    return _counted((slopes < slope_threshold).sum(1), path.singular_values[:, -1])
