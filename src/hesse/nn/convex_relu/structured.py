"""The linear system of the splitting, (I + FᵀF/δ + GᵀG) U = b, by one D x D and one N x N factor.

(2 D_i - I)² = I, so every block of GᵀG is XᵀX: B = I + GᵀG repeats one small matrix, and F adds rank N.
Shapes: X (N, D), P patterns, U (..., 2, P, D).
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from hesse.errors import ShapeError
from hesse.linalg import FunctionOperator, cg, safe_cholesky

__all__ = ["StructuredSystem"]

_DIRECT = 4000  # rows up to which the N x N core is factored; beyond, conjugate gradients


@dataclass(frozen=True, slots=True)
class StructuredSystem:
    """B⁻¹ and the core δ I + F B⁻¹ Fᵀ, of which F B⁻¹ Fᵀ = 2 (X (I + XᵀX)⁻¹ Xᵀ) ∘ (D Dᵀ)."""

    X: Tensor  # (N, D)
    gates: Tensor  # (P, N), zeros and ones
    inverse: Tensor  # (D, D), (I + XᵀX)⁻¹
    smoothed: Tensor  # (N, D), X (I + XᵀX)⁻¹
    core: Tensor | None  # (N, N) in float64, F B⁻¹ Fᵀ
    shift: float
    factor: Tensor | None  # (N, N), lower factor of core + shift · I

    @classmethod
    def build(cls, X: Tensor, D: Tensor, shift: float) -> Self:
        """Factor both matrices, in float64 whatever the data.

        Parameters
        ----------
        X : Tensor, shape (N, D)
            Rows.
        D : Tensor, shape (N, P)
            Patterns.
        shift : float
            δ, positive.

        Returns
        -------
        StructuredSystem
            O(N D² + N² (D + P) + N³/3), once. Above 4000 rows only the D x D inverse is formed.

        Raises
        ------
        ShapeError
            If X and D differ in their rows.
        """
        if X.ndim != 2 or D.ndim != 2 or len(X) != len(D):
            raise ShapeError(
                f"StructuredSystem: expected X (N, D), patterns (N, P), got {tuple(X.shape)}, {tuple(D.shape)}"
            )
        wide, gates = X.double(), D.mT.double()
        eye = torch.eye(X.shape[1], dtype=wide.dtype, device=X.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(eye + wide.mT @ wide))
        smoothed = wide @ inverse
        core = 2 * (smoothed @ wide.mT) * (gates.mT @ gates) if len(X) <= _DIRECT else None
        system = cls(X, gates.to(X), inverse.to(X), smoothed.to(X), core, shift, None)
        return system.with_shift(shift)

    def with_shift(self, shift: float) -> Self:
        """Change δ: one factorisation of the core.

        Parameters
        ----------
        shift : float
            δ, positive.

        Returns
        -------
        StructuredSystem
            A new one.
        """
        if self.core is None:
            return replace(self, shift=shift)
        shifted = self.core.clone()
        shifted.diagonal().add_(shift)
        return replace(self, shift=shift, factor=safe_cholesky(shifted, jitter=1e-14).L.to(self.X))

    def outputs(self, XU: Tensor) -> Tensor:
        """F U from the products X u_i.

        Parameters
        ----------
        XU : Tensor, shape (..., 2, P, N)
            Products.

        Returns
        -------
        Tensor, shape (..., N)
            Σ_i d_i ∘ X (v_i - w_i).
        """
        return torch.einsum("...pn,pn->...n", XU[..., 0, :, :] - XU[..., 1, :, :], self.gates)

    def spread(self, c: Tensor, rows: Tensor) -> Tensor:
        """Blocks ± rowsᵀ (d_i ∘ c); with ``rows = X`` this is Fᵀ c.

        Parameters
        ----------
        c : Tensor, shape (..., N)
            One number a row.
        rows : Tensor, shape (N, D)
            X, or ``smoothed`` for B⁻¹ Fᵀ c.

        Returns
        -------
        Tensor, shape (..., 2, P, D)
            The second half is minus the first.
        """
        half = (c.unsqueeze(-2) * self.gates) @ rows
        return torch.stack([half, -half], -3)

    def solve(self, b: Tensor) -> Tensor:
        """Solve (I + FᵀF/δ + GᵀG) U = b.

        Parameters
        ----------
        b : Tensor, shape (..., 2, P, D)
            Right-hand sides.

        Returns
        -------
        Tensor, shape (..., 2, P, D)
            Exact up to rounding; by conjugate gradients to 1e-10 (float32: 1e-6) above 4000 rows. O(N D P + N²).
        """
        z = b @ self.inverse
        right = self.outputs(z @ self.X.mT)
        flat = right.reshape(-1, right.shape[-1]).mT
        if self.factor is None:
            solution = cg(
                FunctionOperator(
                    self._core_product, (len(self.X), len(self.X)), dtype=b.dtype, device=b.device, is_psd=True
                ),
                flat,
                rtol=1e-10 if b.dtype == torch.float64 else 1e-6,
                max_steps=1000,
            ).x
        else:
            solution = torch.cholesky_solve(flat, self.factor)
        return z - self.spread(solution.mT.reshape(right.shape), self.smoothed)

    def _core_product(self, c: Tensor) -> Tensor:
        if c.ndim == 1:
            return self._core_product(c.unsqueeze(-1)).squeeze(-1)
        inner = (c.mT.unsqueeze(-2) * self.gates) @ self.smoothed  # (K, P, D)
        return (2 * ((inner @ self.X.mT) * self.gates).sum(-2)).mT + self.shift * c
