"""Inclusions with a known solution or a known difficulty, on which the Halpern methods are compared."""

import numpy as np
import torch
from torch import Tensor

from hesse.optim import FiniteSumOperator

__all__ = ["RotatedSum", "burglar_matrix", "quadratic_game"]


class RotatedSum:
    """F_i(u) = s_i Λ R (u - c_i): s_i in [0.7, 1.3], c_i normal about (1, ..., 1), R the identity and half a turn.

    R(u) = u + (-u_2, u_1) / 2 on the two halves of u, Λ = diag(lam, lam): a game, not a gradient. All components are
    cocoercive with L = 1.25 · 1.3 · max lam on average, F itself with 1.25 · max lam.
    """

    def __init__(self, n: int, lam: Tensor, generator: torch.Generator) -> None:
        self.lam = torch.cat([lam, lam])
        d = len(self.lam)
        self._scale = 1 + 0.3 * (2 * torch.rand(n, dtype=torch.float64, generator=generator) - 1)
        self._centers = 1 + torch.randn(n, d, dtype=torch.float64, generator=generator)
        self._scaled_center = (self._scale.unsqueeze(1) * self._centers).mean(0)
        self.L = 1.25 * 1.3 * float(lam.max())
        self.L_full = 1.25 * float(lam.max())
        self.operator = FiniteSumOperator(self._mean, n, d, self._each, full_fn=self.value)
        self.start = torch.zeros(d, dtype=torch.float64)

    def value(self, u: Tensor) -> Tensor:
        """F in closed form, not counted."""
        return self._turn(self._scale.mean() * u - self._scaled_center)

    def _mean(self, u: Tensor, index: Tensor) -> Tensor:
        scale = self._scale[index]
        return self._turn((scale.unsqueeze(1) * (u - self._centers[index])).mean(0))

    def _each(self, u: Tensor, index: Tensor) -> Tensor:
        return self._turn(self._scale[index].unsqueeze(1) * (u - self._centers[index]))

    def _turn(self, u: Tensor) -> Tensor:
        first, second = u.chunk(2, dim=-1)
        return self.lam * (u + 0.5 * torch.cat([-second, first], dim=-1))


def burglar_matrix(n: int, seed: int) -> Tensor:
    """A_ij = |N_i| (1 - exp(-0.8 |i - j|)): house i holds |N_i|, and a policeman at j may be too far away."""
    wealth = np.abs(np.random.default_rng(seed).standard_normal(n))
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return torch.from_numpy(wealth[:, None] * (1 - np.exp(-0.8 * distance)))


def quadratic_game(n: int) -> FiniteSumOperator:
    """The Ouyang-Xu worst case min_x max_y ½ xᵀHx - hᵀx - yᵀ(Ax - b), one coordinate of x and y a component."""
    A = torch.zeros(n, n, dtype=torch.float64)
    rows = torch.arange(n)
    A[rows, n - 1 - rows] = 0.25
    A[rows[:-1], n - 2 - rows[:-1]] = -0.25
    H = 2 * A.T @ A
    b = torch.full((n,), 0.25, dtype=torch.float64)
    h = torch.zeros(n, dtype=torch.float64)
    h[-1] = 0.25
    constant = torch.cat([-h, -b])

    def component(u: Tensor, index: Tensor) -> Tensor:
        x, y = u.chunk(2)
        by_x = H[:, index] @ x[index] - A[index].T @ y[index]
        return torch.cat([by_x, A[:, index] @ x[index]]) * (n / len(index)) + constant

    def full(u: Tensor) -> Tensor:
        x, y = u.chunk(2)
        return torch.cat([H @ x - A.T @ y, A @ x]) + constant

    return FiniteSumOperator(component, n, 2 * n, full_fn=full)
