"""Small problems of robust matrix recovery that the tests of SubGM share."""

import torch
from torch import Tensor

F64 = torch.float64

__all__ = ["F64", "problem", "relative_error", "seeded"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(
    seed: int = 0, *, m: int = 400, d: int = 6, rank: int = 2, outliers: float = 0.0, noise: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian A (m, d, d), targets with a fraction of errors N(0, 10²), and the truth, of eigenvalues one."""
    g = seeded(seed)
    basis = torch.linalg.qr(torch.randn(d, rank, generator=g, dtype=F64)).Q
    truth = basis @ basis.mT
    A = torch.randn(m, d, d, generator=g, dtype=F64)
    bad = torch.rand(m, generator=g, dtype=F64) < outliers
    gross, dense = torch.randn(2, m, generator=g, dtype=F64)
    return A, (A * truth).sum((1, 2)) + 10 * bad * gross + noise * dense, truth


def relative_error(matrix: Tensor, truth: Tensor) -> float:
    return float((matrix - truth).norm() / truth.norm())
