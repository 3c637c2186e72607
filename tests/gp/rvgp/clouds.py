"""Clouds that several tests share."""

import math

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sphere(total: int) -> Tensor:
    order = torch.arange(total, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * order / total, math.pi * (1 + 5**0.5) * order
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)


def flat_torus(side: int) -> Tensor:
    angle = 2 * math.pi * torch.arange(side, dtype=torch.float64) / side
    a, b = torch.meshgrid(angle, angle, indexing="ij")
    return torch.stack([a.cos(), a.sin(), b.cos(), b.sin()], dim=-1).reshape(-1, 4)


def ring_torus(along: int, around: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points, and the unit vectors along either circle; rows of the grid are shifted to break ties."""
    u = 2 * math.pi * torch.arange(along, dtype=torch.float64) / along
    v = 2 * math.pi * torch.arange(around, dtype=torch.float64) / around
    u, v = (part.reshape(-1) for part in torch.meshgrid(u, v, indexing="ij"))
    u = u + v * 0.07
    radius = 1 + 0.4 * v.cos()
    points = torch.stack([radius * u.cos(), radius * u.sin(), 0.4 * v.sin()], dim=1)
    first = torch.stack([-u.sin(), u.cos(), torch.zeros_like(u)], dim=1)
    second = torch.stack([-v.sin() * u.cos(), -v.sin() * u.sin(), v.cos()], dim=1)
    return points, first, second


def swirl(points: Tensor) -> Tensor:
    """A smooth tangent field on the unit sphere: rotation about an axis, plus the gradient of a quadratic."""
    axis = torch.tensor([0.3, -0.5, 0.8], dtype=points.dtype)
    form = torch.diag(torch.tensor([1.0, -0.6, 0.2], dtype=points.dtype))
    slope = points @ form
    return torch.linalg.cross(axis.expand_as(points), points) + slope - (slope * points).sum(1, keepdim=True) * points
