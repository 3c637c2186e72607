"""Equations with known oscillating solutions, and the classical solvers and networks that GP-HM is compared with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pde._pinn import Network, PinnRun, laplacian, train_pinn
from hesse.pde.gp_hm import AllenCahn, Equation, Poisson

__all__ = ["PROBLEMS", "Problem", "chebyshev", "finite_differences", "network_error", "relative_error"]

TEST_POINTS = 300
sin, cos, TAU = torch.sin, torch.cos, 2 * math.pi


@dataclass(frozen=True, slots=True)
class Problem:
    """u and f = F[u] on a box, with the grid and the comb that its claim asks for."""

    solution: Callable[..., Tensor]
    source: Callable[..., Tensor]
    domain: Sequence[tuple[float, float]]
    n_grid: int
    f_max: float
    lines: tuple[float, ...]  # frequencies of u along axis 0, in periods a unit
    equation: Equation = field(default_factory=Poisson)

    def test_axes(self) -> list[Tensor]:
        """Where errors are measured."""
        return [torch.linspace(low, high, TEST_POINTS, dtype=torch.float64) for low, high in self.domain]

    def truth(self) -> Tensor:
        """The solution there."""
        return self.solution(*torch.meshgrid(*self.test_axes(), indexing="ij"))


def _added(x: Tensor) -> Tensor:
    return sin(6 * x) * cos(20 * x)


def _added_source(x: Tensor) -> Tensor:
    return -436 * sin(6 * x) * cos(20 * x) - 240 * cos(6 * x) * sin(20 * x)


PROBLEMS = {
    "single": Problem(lambda x: sin(100 * x), lambda x: -1e4 * sin(100 * x), [(0, TAU)], 400, 20.0, (100 / TAU,)),
    "mixture": Problem(
        lambda x: sin(x) + 0.1 * sin(20 * x) + 0.05 * cos(100 * x),
        lambda x: -sin(x) - 40 * sin(20 * x) - 500 * cos(100 * x),
        [(0, 1)],
        150,
        30.0,
        (1 / TAU, 20 / TAU, 100 / TAU),
    ),
    "product": Problem(
        lambda x: sin(6 * x) * cos(100 * x),
        lambda x: -10036 * sin(6 * x) * cos(100 * x) - 1200 * cos(6 * x) * sin(100 * x),
        [(0, TAU)],
        400,
        20.0,
        (94 / TAU, 106 / TAU),
    ),
    "allen-cahn": Problem(
        lambda x: sin(100 * x),
        lambda x: -1e4 * sin(100 * x) + sin(100 * x) ** 3 - sin(100 * x),
        [(0, math.pi)],
        200,
        20.0,
        (100 / TAU,),
        AllenCahn(),
    ),
    "plane": Problem(
        lambda x, y: sin(40 * x) * sin(40 * y),
        lambda x, y: -3200 * sin(40 * x) * sin(40 * y),
        [(0, 1), (0, 1)],
        32,
        12.0,
        (40 / TAU,),
    ),
    "additive": Problem(
        lambda x, y: _added(x) + _added(y),
        lambda x, y: _added_source(x) + _added_source(y),
        [(0, TAU), (0, TAU)],
        100,
        6.0,
        (14 / TAU, 26 / TAU),
    ),
}


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Relative L2."""
    return float((found - truth).norm() / truth.norm())


def network_error(
    problem: Problem,
    seed: int,
    *,
    bandwidth: float | None,
    boundary_weight: float,
    learning_rate: float,
    num_steps: int,
) -> tuple[float, PinnRun]:
    """Train a network on a one-dimensional Poisson problem's own grid; its error and cost."""
    network = Network(problem.domain, torch.Generator().manual_seed(seed), bandwidth=bandwidth)
    (low, high) = problem.domain[0]
    points = torch.linspace(low, high, problem.n_grid, dtype=torch.float64).unsqueeze(1)
    ends = points[[0, -1]]
    f = problem.source(points[:, 0])

    def residual(model: nn.Module, x: Tensor) -> Tensor:
        return laplacian(model, x)[1] - f

    run = train_pinn(
        network,
        residual,
        points,
        ends,
        problem.solution(ends[:, 0]),
        boundary_weight=boundary_weight,
        num_steps=num_steps,
        learning_rate=learning_rate,
    )
    with torch.no_grad():
        return relative_error(network(problem.test_axes()[0].unsqueeze(1)), problem.truth()), run


def finite_differences(problem: Problem) -> float:
    """Error of second-order differences for u'' = f on the problem's grid, linear between its points."""
    low, high = problem.domain[0]
    n = problem.n_grid
    x = np.linspace(low, high, n)
    h = x[1] - x[0]
    A = (np.diag(np.full(n - 3, 1.0), 1) + np.diag(np.full(n - 3, 1.0), -1) - 2 * np.eye(n - 2)) / h**2
    ends = problem.solution(torch.tensor([low, high], dtype=torch.float64)).numpy()
    b = problem.source(torch.from_numpy(x[1:-1])).numpy().copy()
    b[[0, -1]] -= ends / h**2
    u = np.concatenate([ends[:1], np.linalg.solve(A, b), ends[1:]])
    found = np.interp(problem.test_axes()[0].numpy(), x, u)
    return relative_error(torch.from_numpy(found), problem.truth())


def chebyshev(problem: Problem) -> float:
    """Error of Chebyshev collocation for u'' = f with as many points as the problem's grid."""
    low, high = problem.domain[0]
    n = problem.n_grid
    t = np.cos(np.pi * np.arange(n) / (n - 1))
    x = low + (t + 1) * (high - low) / 2
    basis = [np.polynomial.chebyshev.Chebyshev.basis(k, domain=[low, high]) for k in range(n)]
    A = np.stack([b.deriv(2)(x) for b in basis], 1)
    A[[0, -1]] = np.stack([b(x[[0, -1]]) for b in basis], 1)
    rhs = problem.source(torch.from_numpy(x)).numpy().copy()
    rhs[[0, -1]] = problem.solution(torch.from_numpy(x[[0, -1]])).numpy()
    size = np.abs(A).max(1)  # rows of very different size
    coefficients = np.linalg.solve(A / size[:, None], rhs / size)
    found = np.polynomial.chebyshev.Chebyshev(coefficients, domain=[low, high])(problem.test_axes()[0].numpy())
    return relative_error(torch.from_numpy(found), problem.truth())
