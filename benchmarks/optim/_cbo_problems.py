"""Objectives of the claims on consensus-based optimisation, for torch tensors and numpy arrays alike."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Quadratic", "canyon", "canyon_start", "rastrigin", "rastrigin_numpy", "wavy"]


def canyon(point: Tensor) -> Tensor:
    """A curved canyon with walls and dips, (..., 2) to (...); its only global minimum is E(0, 0) = 0.

    As sign(0) = 0, the wall b = 0 itself is open.
    """
    x, y = point[..., 0], point[..., 1]
    q = y - ((x - 1) * (x - 4).square() / 8 + 2)
    b = -x - 1.6 * y
    walls = 25 * (1 - torch.exp(-1.4 * q.square() * torch.exp(-0.002 * x**4)))
    bowl = 0.4 * x.square() + 0.2 * y.square()
    ripples = 1.1625 * (1 - torch.cos(0.75 * torch.pi * point)).sum(-1)
    ridge = 4 * torch.exp(1 - 2 * q**4) * (torch.sign(b) * (1 - torch.exp(-9 * b.square()))).clamp(min=0)
    return walls + bowl + ripples + ridge


def canyon_start() -> Tensor:
    """Where the valley begins."""
    return torch.full((2,), 8.0, dtype=torch.float64)


def rastrigin(v: Tensor) -> Tensor:
    """Σ v² + 2.5 (1 - cos 2πv), (..., d) to (...)."""
    return (v.square() + 2.5 * (1 - torch.cos(2 * torch.pi * v))).sum(-1)


def rastrigin_numpy(v: np.ndarray) -> np.ndarray:
    """The same."""
    return (v**2 + 2.5 * (1 - np.cos(2 * np.pi * v))).sum(-1)


def wavy(v: Tensor) -> Tensor:
    """A smooth objective that is no quadratic: quartic growth, waves, and coupled neighbours, (..., d) to (...)."""
    return (v**4 / 4 + torch.cos(2 * v)).sum(-1) + 0.3 * (v[..., 1:] * v[..., :-1]).sum(-1)


@dataclass(frozen=True, slots=True)
class Quadratic:
    """½ xᵀHx + bᵀx with H symmetric positive definite, and a point whose gradient has the length asked for."""

    hessian: Tensor  # (d, d)
    linear: Tensor  # (d,)
    point: Tensor  # (d,)

    @classmethod
    def draw(cls, dim: int, slope: float, draw: Callable[..., Tensor]) -> "Quadratic":
        """Random H, x and b, with ‖Hx + b‖ = slope."""
        root, point, gradient = draw(dim, dim), draw(dim), draw(dim)
        hessian = root @ root.T / dim + 0.5 * torch.eye(dim, dtype=root.dtype)
        return cls(hessian, slope * gradient / gradient.norm() - hessian @ point, point)

    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * (x @ self.hessian * x).sum(-1) + x @ self.linear

    def exact_hop(self, sigma: float, alpha: float) -> Tensor:
        """Mean shift of a hop: a Gaussian times a Gaussian, -α σ² (I + α σ² H)⁻¹ ∇E(x)."""
        rate = alpha * sigma**2
        gradient = self.hessian @ self.point + self.linear
        return -rate * torch.linalg.solve(
            torch.eye(len(self.point), dtype=gradient.dtype) + rate * self.hessian, gradient
        )
