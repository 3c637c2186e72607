"""The range of A Ω and, for each column of Ω, the direction that only this column sees (shared by XTrace and XDiag)."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ProbedRange", "probe_range"]


@dataclass(frozen=True, slots=True)
class ProbedRange:
    """Q R = A Ω and the unit vectors s_i with s_i ⟂ r_j for all j ≠ i, so that range(A Ω₋ᵢ) = Q (I - s_i s_iᴴ) Qᴴ."""

    Q: Tensor  # (N, K), or (N, rank) if the columns of A Ω are dependent
    R: Tensor  # (K, K)
    S: Tensor | None  # (K, K); None if the columns are dependent: then no column has a direction of its own


def probe_range(images: Tensor) -> ProbedRange:
    """Factor a block of images and find the direction each column adds to the others.

    Parameters
    ----------
    images : Tensor, shape (N, K)
        A Ω, with N >= K.

    Returns
    -------
    ProbedRange
        With ``S=None`` and an orthonormal basis of the numerical range (singular values above 8 K eps times the
        largest) if the columns are dependent.
    """
    Q, R = torch.linalg.qr(images)
    k = images.shape[1]
    left, values, _ = torch.linalg.svd(R)
    resolved = values > 8 * k * torch.finfo(images.dtype).eps * values[0]
    if not bool(resolved.all()):
        return ProbedRange(Q @ left[:, resolved], R, None)
    identity = torch.eye(k, dtype=R.dtype, device=R.device)
    inverse_h = torch.linalg.solve_triangular(R, identity, upper=True).mH
    return ProbedRange(Q, R, inverse_h / torch.linalg.vector_norm(inverse_h, dim=0))
