"""Small inclusions whose solution is known, shared by the tests of the Halpern methods."""

import torch
from torch import Tensor

from hesse.optim import FiniteSumOperator


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class AffineSum:
    """F_i(u) = s_i M u - c_i with M = I plus a rotation: strongly monotone, cocoercive with L <= 1.25 max s."""

    def __init__(self, n: int, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        g = seeded(seed)
        turn = torch.zeros(dim, dim)
        turn[: dim // 2, dim // 2 :] = -0.5 * torch.eye(dim // 2)
        self.M = (torch.eye(dim) + turn - turn.T).to(dtype)
        self.s = (1 + 0.3 * (2 * torch.rand(n, generator=g) - 1)).to(dtype)
        self.c = (1 + torch.randn(n, dim, generator=g)).to(dtype)
        self.operator = FiniteSumOperator(self.mean, n, dim, self.each)
        self.start = torch.zeros(dim, dtype=dtype)
        self.L = 1.25 * 1.3

    def each(self, u: Tensor, index: Tensor) -> Tensor:
        return self.s[index].unsqueeze(1) * (self.M @ u) - self.c[index]

    def mean(self, u: Tensor, index: Tensor) -> Tensor:
        return self.each(u, index).mean(0)

    def value(self, u: Tensor) -> Tensor:
        return self.s.mean() * (self.M @ u) - self.c.mean(0)

    def solution(self) -> Tensor:
        return torch.linalg.solve(self.s.mean() * self.M, self.c.mean(0))
