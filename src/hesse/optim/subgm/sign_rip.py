"""How far measurements are from the condition under which SubGM is proved to work: a Monte-Carlo look at Sign-RIP."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.optim.subgm.measurements import MeasurementsLike, as_measurements

__all__ = ["SignRIP", "sign_rip_deviation"]


@dataclass(frozen=True, slots=True)
class SignRIP:
    """What random directions saw."""

    deviation: Tensor  # (): the largest of the samples, a lower bound of δ
    samples: Tensor  # (num_probes,)
    scale: Tensor  # (): mean of ⟨Q, D⟩, which estimates φ


def sign_rip_deviation(
    A: MeasurementsLike,
    rank: int,
    outlier_mask: Tensor | None = None,
    num_probes: int = 32,
    *,
    generator: Generator | None = None,
) -> SignRIP:
    """Estimate δ in ‖Q(D) - φ D‖ <= φ δ for symmetric D of rank r and ‖D‖_F = 1.

    Q(D) = (1/m) Σ sign(⟨A_i, D⟩ - s_i) (A_i + A_iᵀ)/2, φ its mean length along D, and the norm is the largest inner
    product with a matrix of rank r and length 1: the root of the sum of the r largest squared singular values. δ well
    below 1 means that sub-gradients point where the errors are.

    Parameters
    ----------
    A : Tensor, shape (m, d, d), LinearOperator, shape (m, d²), or Measurements
        The A_i.
    rank : int
        r >= 1.
    outlier_mask : Tensor of bool, shape (m,), optional
        Measurements whose corruption s_i outweighs everything: their sign is a fair coin. Default: none.
    num_probes : int, default 32
        Random directions D; δ is a supremum, so this gives a lower bound of it, O(m d²) each.
    generator : torch.Generator, optional
        Of the directions and coins. Default: torch's global generator.

    Returns
    -------
    SignRIP
        For Gaussian A_i, φ is √(2/π) (1 - p) with a fraction p of outliers.

    Raises
    ------
    ArgumentError
        If ``rank`` or ``num_probes`` is out of range.
    ShapeError
        If ``outlier_mask`` does not fit.
    """
    measurements = as_measurements(A)
    d, m = measurements.order, measurements.num_measurements
    dtype, device = measurements.dtype, measurements.device
    if not 1 <= rank <= d:
        raise ArgumentError(f"sign_rip_deviation: expected rank between 1 and d = {d}, got {rank}")
    if num_probes < 1:
        raise ArgumentError(f"sign_rip_deviation: expected num_probes >= 1, got {num_probes}")
    if outlier_mask is not None and (outlier_mask.dtype != torch.bool or outlier_mask.shape != (m,)):
        raise ShapeError(
            f"sign_rip_deviation: expected outlier_mask of {m} bools, got {tuple(outlier_mask.shape)} "
            f"{outlier_mask.dtype}"
        )
    home = device if generator is None else generator.device
    lengths, gaps = [], []
    for _ in range(num_probes):
        left = torch.randn(d, rank, generator=generator, dtype=dtype, device=home).to(device)
        weights = torch.randn(rank, generator=generator, dtype=dtype, device=home).to(device)
        basis = torch.linalg.qr(left).Q
        weights = weights / torch.linalg.vector_norm(weights)
        # ⟨A, D⟩ from two factors, since D has eigenvalues of both signs
        signs = (
            measurements.apply(basis * weights.clamp_min(0).sqrt())
            - measurements.apply(basis * weights.neg().clamp_min(0).sqrt())
        ).sign()
        if outlier_mask is not None:
            coins = torch.randint(2, (m,), generator=generator, device=home).to(device, dtype) * 2 - 1
            signs = torch.where(outlier_mask, coins, signs)
        Q, D = measurements.adjoint(signs / m), (basis * weights) @ basis.mT
        lengths.append((Q * D).sum())
        gaps.append((Q, D))
    scale = torch.stack(lengths).mean()
    samples = torch.stack(
        [torch.linalg.vector_norm(torch.linalg.svdvals(Q - scale * D)[:rank]) / scale for Q, D in gaps]
    )
    return SignRIP(samples.amax(), samples, scale)
