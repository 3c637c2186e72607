"""Problems of the adasketch tests, in whichever dtype is asked for."""

import torch
from torch import Tensor

__all__ = ["circle", "curved", "quadratic", "seeded"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def circle(x: Tensor) -> Tensor:
    """‖x‖² = 2; with f = Σ x the solution is -1 in two dimensions, with multiplier 1/2."""
    return (x @ x).reshape(1) - 2


def curved(dtype: torch.dtype = torch.float64, n: int = 7, m: int = 3):
    """A nonconvex f and quadratic constraints whose Hessians matter, with a point to start from."""
    draw = torch.randn(m + 1, n, n, dtype=torch.float64, generator=seeded(0)).to(dtype) / n**0.5

    def fun(x: Tensor) -> Tensor:
        return torch.sin(draw[-1] @ x).sum() + 0.2 * (x @ x) ** 2

    def con(x: Tensor) -> Tensor:
        return torch.einsum("i,mij,j->m", x, draw[:m], x) + draw[:m, 0] @ x - 0.1

    return fun, con, torch.linspace(-1, 1, n, dtype=dtype)


def quadratic(dtype: torch.dtype = torch.float64, n: int = 12, m: int = 5):
    """½ xᵀPx - qᵀx subject to A x = b, and its solution by a dense solve in float64."""
    g = seeded(1)
    root = torch.randn(n, n, dtype=torch.float64, generator=g)
    P = root @ root.T / n + torch.eye(n, dtype=torch.float64)
    q = torch.randn(n, dtype=torch.float64, generator=g)
    A = torch.randn(m, n, dtype=torch.float64, generator=g)
    b = torch.randn(m, dtype=torch.float64, generator=g)
    top = torch.cat([torch.cat([P, A.T], 1), torch.cat([A, torch.zeros(m, m, dtype=torch.float64)], 1)])
    answer = torch.linalg.solve(top, torch.cat([q, b]))
    P, q, A, b = (t.to(dtype) for t in (P, q, A, b))
    return lambda x: 0.5 * x @ P @ x - q @ x, lambda x: A @ x - b, answer[:n], answer[n:]
