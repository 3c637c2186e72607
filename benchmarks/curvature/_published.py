"""The two algorithms as published, row by row, to be compared with: no other precision than that of the gradients.

Shapes: m gradients in R^d are the rows of G (m, d).
"""

import torch
from torch import Tensor

__all__ = ["dynamic_coefficients", "dynamic_product", "static_product", "static_rows"]


def static_rows(G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """v_i = F_{i-1}⁻¹ g_i and q_i = m + g_iᵀv_i, one row after the other."""
    m = len(G)
    V, q = torch.empty_like(G), G.new_empty(m)
    for i in range(m):
        V[i] = G[i] / damping - ((V[:i] @ G[i]) / q[:i]) @ V[:i]
        q[i] = m + G[i] @ V[i]
    return V, q


def static_product(V: Tensor, q: Tensor, damping: float, x: Tensor) -> Tensor:
    """F⁻¹x = x/λ - Σ v_j (v_jᵀx) / q_j."""
    return x / damping - ((V @ x) / q) @ V


def dynamic_coefficients(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """D, upper triangular with D_ij = v_iᵀg_j, and B, lower triangular with V = B G, from GGᵀ alone."""
    m = len(gram)
    D, B = gram / damping, torch.eye(m, dtype=gram.dtype) / damping
    for i in range(m):
        D[i + 1 :, i + 1 :] -= torch.outer(D[i, i + 1 :], D[i, i + 1 :]) / (m + D[i, i])
    for i in range(1, m):
        B[i] -= (D[:i, i] / (m + D.diagonal()[:i])) @ B[:i]
    return D.triu(), B


def dynamic_product(G: Tensor, D: Tensor, B: Tensor, damping: float, x: Tensor) -> Tensor:
    """F⁻¹x = x/λ - Gᵀ Bᵀ (y/q) with y = Vx by forward substitution from Gx."""
    m = len(G)
    q = m + D.diagonal()
    y = (G @ x) / damping
    for i in range(1, m):
        y[i] -= D[:i, i] @ (y[:i] / q[:i])
    return x / damping - G.mT @ (B.mT @ (y / q))
