"""Polar forms, rotations and their logarithms, with gradients that survive equal singular values."""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

__all__ = ["log_sinhc", "plane_rotation", "polar_log", "random_rotations", "rotation_log"]


def polar_log(h: Tensor) -> tuple[Tensor, Tensor]:
    """Split h = exp(X) R into its symmetric and its rotation part.

    Parameters
    ----------
    h : Tensor, shape (..., n, n)
        Matrices of positive determinant, float32 or float64.

    Returns
    -------
    tuple of Tensor, shapes (..., n, n)
        X = log (h hᵀ)^{1/2} and R = exp(-X) h. From singular values: h hᵀ would square the condition of h.
        Differentiable once.
    """
    return _PolarLog.apply(h)


class _PolarLog(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        U, sigma, Vh = torch.linalg.svd(h)
        R = U @ Vh
        ctx.save_for_backward(U, sigma, R)
        X = U * sigma.log().unsqueeze(-2) @ U.mT
        return (X + X.mT) / 2, R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_X: Tensor, grad_R: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # With M = Uᵀ dh Rᵀ U in the basis of the singular vectors: dR Rᵀ = (M - Mᵀ) / (σᵢ + σⱼ) and
        # dP = (σⱼ M + σᵢ Mᵀ) / (σᵢ + σⱼ). Sums of singular values never vanish.
        U, sigma, R = ctx.saved_tensors
        row, column = sigma.unsqueeze(-1), sigma.unsqueeze(-2)
        total = row + column
        log_row, log_column = row.log(), column.log()
        differences = torch.exp(-(log_row + log_column) / 2 - log_sinhc((log_row - log_column) / 2))
        symmetric = differences * (U.mT @ ((grad_X + grad_X.mT) / 2) @ U)
        turned = U.mT @ grad_R @ R.mT @ U
        inner = (2 * symmetric * column + turned - turned.mT) / total
        return U @ inner @ U.mT @ R


def log_sinhc(y: Tensor) -> Tensor:
    """Evaluate log(sinh(y) / y), an even function.

    Parameters
    ----------
    y : Tensor
        Any real numbers.

    Returns
    -------
    Tensor
        Of the shape of y; 0 at 0, without overflow for large y. Differentiable.
    """
    small = y.abs() < 0.1
    square = y.square()
    series = square / 6 - square.square() * (1 / 180 - square * (1 / 2835 - square * (1 / 37800 - square / 467775)))
    large = torch.where(small, torch.ones_like(y), y.abs())
    return torch.where(small, series, large + torch.log1p(-torch.exp(-2 * large)) - torch.log(2 * large))


def rotation_log(R: Tensor) -> Tensor:
    """Take the principal logarithm of rotations of the plane or of space.

    Parameters
    ----------
    R : Tensor, shape (..., n, n)
        Rotations, n = 2 or 3.

    Returns
    -------
    Tensor, shape (..., n, n)
        Skew matrices of angle up to π; a half turn has two logarithms, of which one is returned.
    """
    if R.shape[-1] == 2:
        angle = torch.atan2(R[..., 1, 0], R[..., 0, 0])
        zero = torch.zeros_like(angle)
        return torch.stack([zero, -angle, angle, zero], -1).unflatten(-1, (2, 2))
    x, y, z = _rotation_vector(R).unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def plane_rotation(angle: Tensor) -> Tensor:
    """Make rotations of the plane.

    Parameters
    ----------
    angle : Tensor, shape (...)
        In radians, from the first axis to the second.

    Returns
    -------
    Tensor, shape (..., 2, 2)
        Rotations.
    """
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))


def random_rotations(n: int, count: int, generator: Generator | None) -> Tensor:
    """Draw uniformly from SO(n): the orthogonal factor of Gaussian matrices, its signs fixed by the triangle.

    Parameters
    ----------
    n : int
        Order.
    count : int
        Number of them.
    generator : torch.Generator or None
        Source; None for torch's global generator on the CPU.

    Returns
    -------
    Tensor, shape (count, n, n)
        In float64 on the generator's device.
    """
    device = "cpu" if generator is None else generator.device
    Q, triangle = torch.linalg.qr(torch.randn(count, n, n, generator=generator, dtype=torch.float64, device=device))
    Q = Q * torch.diagonal(triangle, dim1=-2, dim2=-1).sign().unsqueeze(-2)
    flip = torch.ones(count, n, dtype=torch.float64, device=device)
    flip[:, 0] = torch.linalg.det(Q).sign()
    return Q * flip.unsqueeze(-2)


def _rotation_vector(R: Tensor) -> Tensor:
    # By the unit quaternion (w, v), of four formulas the one that divides by its largest entry: accurate at a half turn
    # too, where R - Rᵀ vanishes.
    r = [[R[..., i, j] for j in range(3)] for i in range(3)]
    trace = r[0][0] + r[1][1] + r[2][2]
    a, b, c = r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]
    d, e, f = r[1][0] + r[0][1], r[0][2] + r[2][0], r[2][1] + r[1][2]
    rows = [
        torch.stack([1 + trace, a, b, c], -1),
        torch.stack([a, 1 + 2 * r[0][0] - trace, d, e], -1),
        torch.stack([b, d, 1 + 2 * r[1][1] - trace, f], -1),
        torch.stack([c, e, f, 1 + 2 * r[2][2] - trace], -1),
    ]
    table = torch.stack(rows, -2)
    largest = torch.diagonal(table, dim1=-2, dim2=-1).argmax(-1)
    quaternion = table.take_along_dim(largest[..., None, None], -2).squeeze(-2)
    quaternion = quaternion / torch.linalg.vector_norm(quaternion, dim=-1, keepdim=True)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    w, v = quaternion[..., :1], quaternion[..., 1:]
    square = v.square().sum(-1, keepdim=True)
    tiny = square < torch.finfo(R.dtype).eps
    length = torch.where(tiny, torch.ones_like(square), square).sqrt()
    return v * torch.where(tiny, 2 / w.clamp_min(0.5), 2 * torch.atan2(length, w) / length)
