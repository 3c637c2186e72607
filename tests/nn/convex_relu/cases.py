"""Problems that the tests of this folder share."""

import torch
from torch import Tensor

from hesse.nn.convex_relu import sample_patterns

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(seed: int = 0, n: int = 24, d: int = 4, num_patterns: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian rows and targets, and sampled patterns."""
    source = seeded(seed)
    X = torch.randn(n, d, generator=source, dtype=F64) / d**0.5
    y = torch.randn(n, generator=source, dtype=F64)
    return X, y, sample_patterns(X, num_patterns, generator=source)


def wave(seed: int = 0, n: int = 10, eps: float = 0.08) -> tuple[Tensor, Tensor]:
    """Points of the plane over 2 eps apart with a bias column, labelled by a wave."""
    source = seeded(seed)
    points: list[Tensor] = []
    while len(points) < n:
        point = 2 * torch.rand(2, generator=source, dtype=F64) - 1
        if all(float((point - other).abs().max()) >= 2.2 * eps for other in points):
            points.append(point)
    X = torch.stack(points)
    y = torch.where(0.9 * torch.sin(6 * X[:, 0]) + X[:, 1] >= 0, 1.0, -1.0).to(F64)
    return torch.cat([X, torch.ones(n, 1, dtype=F64)], 1), y
