"""Extreme eigenvalues of the curvature of a batch, from those of the mean curvature and the noise between examples.

    l' = l + v/(b l)   if l > √(v/b),   else the edge 2√(v/b)        1/b = 1/B - 1/N

For noise that is alike in all directions v = Pσ² in both places (the theorem of the paper). For noise that is not,
second-order perturbation theory puts the variance s² along the eigenvector itself into the first, and the norm of a sum
of independent matrices the variance s_max² of the noisiest direction into the second.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.curvature.noise import CurvatureNoise
from hesse.errors import ArgumentError

__all__ = [
    "BatchExtremes",
    "NoiseModel",
    "Spike",
    "batch_extremal_eigenvalues",
    "covariance_spike",
    "inverse_effective_batch",
    "wigner_spike",
]

NoiseModel = Literal["directional", "isotropic", "block"]
_NUM_DRAWS = 256  # batches imagined by the block model: its sampling error stays below that of s²


@dataclass(frozen=True, slots=True)
class Spike:
    """Where noise moves an eigenvalue that stands out, all in float64 and of one shape."""

    value: Tensor  # eigenvalue of the noisy matrix, or the edge of its bulk
    overlap: Tensor  # squared cosine between the noisy eigenvector and the true one
    detached: Tensor  # bool, whether the eigenvalue stands out of the bulk


@dataclass(frozen=True, slots=True)
class BatchExtremes:
    """Largest and smallest eigenvalue that batches of a size show on average; float64, of the shape of the sizes."""

    largest: Tensor  # at least zero
    smallest: Tensor  # at most zero
    overlap: Tensor  # of the batch's leading eigenvector with that of the mean curvature, squared cosine
    detached: Tensor  # bool, whether the largest stands out of the noise
    standard_error: Tensor  # of ``largest``, from the measured noise; the formula's own bias is not in it


def wigner_spike(spike: float | Tensor, radius: float | Tensor) -> Spike:
    """Largest eigenvalue of D + E: D symmetric with one eigenvalue l that stands out, E noise of independent entries.

    l + R²/(4 l) for l > R/2, else R, with overlap 1 - R²/(4 l²) or zero; exact as the order grows.

    Parameters
    ----------
    spike : float or Tensor
        l, any sign; for the smallest eigenvalue hand in -l and take the negative of the answer.
    radius : float or Tensor
        R >= 0, radius of E's own semicircle: 2σ√P for entries of variance σ² and order P.

    Returns
    -------
    Spike
        Of the broadcast shape.

    Raises
    ------
    ArgumentError
        If a radius is negative or not a number.

    Examples
    --------
    >>> wigner_spike(2.0, 2.0).value
    tensor(2.5000, dtype=torch.float64)

    References
    ----------
    F. Benaych-Georges, R. R. Nadakuditi (2011), Adv. Math. 227(1), arXiv 0910.2120.
    """
    top, half = torch.broadcast_tensors(_float64(spike), _float64(radius) / 2)
    if not bool((half >= 0).all()):
        raise ArgumentError(f"wigner_spike: expected radius >= 0, got {radius}")
    detached = top > half
    safe = torch.where(detached, top, torch.ones_like(top))
    value = torch.where(detached, safe + half.square() / safe, 2 * half)
    overlap = torch.where(detached, 1 - (half / safe).square(), torch.zeros_like(top))
    return Spike(value, overlap, detached)


def covariance_spike(spike: float | Tensor, bulk: float | Tensor, ratio: float | Tensor) -> Spike:
    """Largest eigenvalue of a sample covariance matrix whose population has one eigenvalue l above a flat rest σ².

    l (1 + qσ²/(l - σ²)) for l > σ²(1 + √q), else the edge σ²(1 + √q)²; q = P / number of samples.

    Parameters
    ----------
    spike : float or Tensor
        l.
    bulk : float or Tensor
        σ² >= 0, the variance in all other directions.
    ratio : float or Tensor
        q >= 0.

    Returns
    -------
    Spike
        Of the broadcast shape; overlap (1 - qm²)/(1 + qm) with m = σ²/(l - σ²).

    Raises
    ------
    ArgumentError
        If ``bulk`` or ``ratio`` is negative or not a number.

    References
    ----------
    J. Baik, J. W. Silverstein (2006), J. Multivar. Anal. 97(6), arXiv math/0408165. D. Paul (2007), Stat. Sinica 17(4).
    """
    top, rest, q = torch.broadcast_tensors(_float64(spike), _float64(bulk), _float64(ratio))
    if not bool(((rest >= 0) & (q >= 0)).all()):
        raise ArgumentError(f"covariance_spike: expected bulk >= 0 and ratio >= 0, got {bulk} and {ratio}")
    detached = top > rest * (1 + q.sqrt())
    m = torch.where(detached, rest / torch.where(detached, top - rest, torch.ones_like(top)), torch.zeros_like(top))
    value = torch.where(detached, top * (1 + q * m), rest * (1 + q.sqrt()).square())
    overlap = torch.where(detached, (1 - q * m.square()) / (1 + q * m), torch.zeros_like(top))
    return Spike(value, overlap, detached)


def inverse_effective_batch(call: str, batch_size: float | Tensor, num_examples: int) -> Tensor:
    """1/b = 1/B - 1/N: the variance of a mean of B examples drawn without replacement from N.

    Parameters
    ----------
    call : str
        The caller, for the message.
    batch_size : int or Tensor
        B, all examples that a step averages over: with accumulated gradients or several workers their sum.
    num_examples : int
        N.

    Returns
    -------
    Tensor of float64
        Of the shape of ``batch_size``; zero for B = N.

    Raises
    ------
    ArgumentError
        If a batch has less than one example or more than there are.
    """
    size = _float64(batch_size)
    if not bool(((size >= 1) & (size <= num_examples)).all()):
        raise ArgumentError(
            f"{call}: expected 1 <= batch_size <= {num_examples}, the number of examples; got {batch_size}"
        )
    return 1 / size - 1 / num_examples


def batch_extremal_eigenvalues(
    noise: CurvatureNoise,
    batch_size: int | Tensor,
    *,
    model: NoiseModel = "directional",
    generator: Generator | None = None,
) -> BatchExtremes:
    """Predict the extreme eigenvalues of batches of any size from one measurement of the noise.

    Parameters
    ----------
    noise : CurvatureNoise
        As `curvature_noise` measures it.
    batch_size : int or Tensor
        B, one or several sizes, 1 <= B <= N.
    model : {"directional", "isotropic", "block"}, default "directional"
        "isotropic": the theorem of the paper, one variance for all directions (for "ggn" that of a sample covariance).
        Real networks are noisier along their leading eigenvectors by two orders of magnitude, and it then says that
        batches see what the whole data sees. "directional": each of the K eigenvalues with the variance along its own
        eigenvector, and the edge with s_max². "block": the K x K block that a batch has on these directions is drawn
        from the sampled examples, the coupling to the rest enters to second order, averaged over 256 draws; the edge as
        before. The most faithful where eigenvalues lie close together.
    generator : torch.Generator, optional
        For "block". Default: torch's global generator.

    Returns
    -------
    BatchExtremes
        In units of the eigenvalues. ``smallest`` follows the lowest direction measured; zero at most, and for "ggn".

    Raises
    ------
    ArgumentError
        If a size is out of range, or the model unknown.

    References
    ----------
    D. Granziol, S. Zohren, S. Roberts (2022), JMLR 23, arXiv 2006.09092.
    """
    call = "batch_extremal_eigenvalues"
    inverse = inverse_effective_batch(call, batch_size, noise.num_examples).to(noise.eigenvalues.device)
    if model not in ("directional", "isotropic", "block"):
        raise ArgumentError(f"{call}: model must be directional, isotropic or block, got {model!r}")
    if model == "isotropic":
        return _isotropic(noise, inverse)
    spikes = wigner_spike(noise.eigenvalues, 2 * (noise.directional * inverse.unsqueeze(-1)).sqrt())  # (..., K)
    standing = torch.where(spikes.detached, spikes.value, torch.zeros_like(spikes.value))
    highest, best = standing.max(-1)
    edge = 2 * (noise.largest_variance * inverse).sqrt()
    detached = highest > edge
    largest = torch.maximum(highest, edge)
    overlap = torch.where(detached, spikes.overlap[..., 0], torch.zeros_like(edge))
    # dl'/ds² is 1/(b l) for a spike, 1/√(b s²) for the edge
    tiny = torch.finfo(edge.dtype).tiny
    of_spike = inverse * noise.directional_error[best] / noise.eigenvalues[best].clamp_min(tiny)
    of_edge = 2 * inverse * noise.largest_variance_error / edge.clamp_min(tiny)
    standard_error = torch.where(detached, of_spike, of_edge)
    below = 2 * (noise.directional[-1] * inverse).sqrt()
    smallest = torch.minimum(-wigner_spike(-noise.eigenvalues[-1], below).value, torch.zeros_like(largest))
    if noise.matrix == "ggn":
        smallest = torch.zeros_like(smallest)
    if model == "block":
        inside, smallest, spread = _block(noise, inverse, generator)
        standard_error = torch.where(inside > edge, spread, of_edge)
        largest = torch.maximum(inside, edge)
    return BatchExtremes(largest, smallest, overlap, detached, standard_error)


def _isotropic(noise: CurvatureNoise, inverse: Tensor) -> BatchExtremes:
    top, bottom = noise.eigenvalues[0], noise.eigenvalues[-1]
    if noise.matrix == "ggn":
        rest = noise.num_parameters - len(noise.eigenvalues)
        bulk = noise.bulk_trace.clamp_min(0) / rest
        spike = covariance_spike(top, bulk, noise.num_parameters * inverse)
        error = inverse * noise.bulk_trace_error * top / (top - bulk).clamp_min(torch.finfo(top.dtype).tiny)
        return BatchExtremes(spike.value, torch.zeros_like(spike.value), spike.overlap, spike.detached, error)
    radius = 2 * (noise.p_sigma2 * inverse).sqrt()
    spike = wigner_spike(top, radius)
    slope = torch.where(spike.detached, top, radius / 2).clamp_min(torch.finfo(top.dtype).tiny)
    error = inverse * noise.p_sigma2_error / slope
    return BatchExtremes(spike.value, -wigner_spike(-bottom, radius).value, spike.overlap, spike.detached, error)


def _block(noise: CurvatureNoise, inverse: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    # λ u = (Λ + E) u + C w, λ w = C u with C² = coupling / b: eliminating the directions outside, which have no
    # curvature and no noise of their own here, gives λ = eig(Λ + E + coupling / (b λ))
    k, n = len(noise.eigenvalues), noise.num_samples
    values, vectors = torch.linalg.eigh(noise.coupling)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    centred = noise.blocks - noise.blocks.mean(0)
    home = torch.device("cpu") if generator is None else generator.device
    ends: list[Tensor] = []
    for each in inverse.reshape(-1):
        size = max(1, round(1 / (float(each) + 1 / noise.num_examples)))
        picked = torch.randint(n, (_NUM_DRAWS, size), generator=generator, device=home).cpu()
        counts = torch.zeros(_NUM_DRAWS, n, dtype=torch.float64).scatter_add_(
            1, picked, torch.ones(_NUM_DRAWS, size, dtype=torch.float64)
        )
        # sampling with replacement has variance 1/B; the factor makes it 1/b
        weights = counts.to(root.device) * ((float(each) / size) ** 0.5)
        drawn = torch.einsum("dn,nkj->dkj", weights, centred)
        upper = noise.eigenvalues.diag() + drawn
        side = (root * each.sqrt()).expand(_NUM_DRAWS, k, k)
        whole = torch.cat([torch.cat([upper, side], 2), torch.cat([side, torch.zeros_like(side)], 2)], 1)
        spectrum = torch.linalg.eigvalsh(whole)
        ends.append(torch.stack([spectrum[:, -1].mean(), spectrum[:, 0].mean(), spectrum[:, -1].std()]))
    found = torch.stack(ends).reshape(*inverse.shape, 3)
    smallest = found[..., 1].clamp_max(0)
    smallest = torch.zeros_like(smallest) if noise.matrix == "ggn" else smallest
    return found[..., 0], smallest, found[..., 2] / _NUM_DRAWS**0.5


def _float64(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)
