"""Local dimension of data from a score field: flow Jacobian, local Jacobian, normal bundle, trace formula.

Shapes: B points of D coordinates, K noised copies.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError
from hesse.generative.gauge import Field, field_jacobian, flow, flow_jacobian
from hesse.generative.gauge.fields import check_points

__all__ = ["DimensionEstimate", "DimensionMethod", "intrinsic_dimension"]

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
        Noise level of the read-out, in units of the data: above the data's own noise, below its radius of curvature.
    method : {"flow", "jacobian", "normal_bundle", "flipd"}, default "jacobian"
        The cheapest that gives whole numbers: D products a point.
    symmetrize : bool, default False
        Use (J + Jᵀ)/2, a cheap repair of "jacobian"; "flipd" is not changed by it.
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
    encoded = flow(field, x, sigma, sigma_max, num_steps=num_steps)
    path = flow_jacobian(field, encoded, sigma_max, sigma, num_steps=num_steps)
    last = path.levels <= 10 * sigma * (1 + 1e-6)
    logs = path.singular_values[:, last].clamp_min(torch.finfo(x.dtype).tiny).log()
    positions = path.levels[last].log()
    centred = positions - positions.mean()
    slopes = torch.einsum("t,btd->bd", centred, logs) / centred.square().sum()
    return _counted((slopes < slope_threshold).sum(1), path.singular_values[:, -1])
