"""Small problems with known solutions: constrained lower levels, and an upper level of unbounded smoothness.

Shapes: n entries of x, M of y.
"""

from typing import Any

import torch
from torch import Generator, Tensor

from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.problems.exact import ExactProblem
from hesse.bilevel.projections import stacked
from hesse.bilevel.samplers import NoiseSampler
from hesse.errors import ArgumentError, ConvergenceError
from hesse.linalg.projections import AffineEquality, Box, Halfspace

__all__ = ["box_quadratic", "cosh_upper", "equality_toy", "inequality_toy"]

_ACTIVE_SET_STEPS = 100


def inequality_toy(size: int, *, bound: float | None = None, seed: int = 0) -> ExactProblem:
    """y* = argmin ‖y - x‖²/2 subject to 1ᵀy <= bound;  f = ‖x - a‖²/2 + ‖y - d‖²/2 with mean(a) = 1.

    Parameters
    ----------
    size : int
        n, of x and of y.
    bound : float, optional
        Default: n/5, active at the solution with multiplier 4/5; from n on it is idle where mean(d) is 1 too.
    seed : int, default 0
        Of a and d.

    Returns
    -------
    ExactProblem
        In float64. y* = x - max(mean(x) - bound/n, 0).

    Raises
    ------
    ArgumentError
        If ``size < 1``.
    """
    generator = _seeded("inequality_toy", size, seed)
    a = torch.randn(size, dtype=torch.float64, generator=generator)
    d = torch.randn(size, dtype=torch.float64, generator=generator)
    a, d = a - a.mean() + 1, d - d.mean() + 1
    level = 0.2 if bound is None else bound / size
    budget = Halfspace(torch.ones(size, dtype=torch.float64), level * size)

    def excess(x: Tensor) -> Tensor:
        return (x.mean() - level).clamp_min(0)

    def lower_solution(x: Tensor) -> Tensor:
        return x - excess(x)

    def hypergradient(x: Tensor) -> Tensor:
        gap = lower_solution(x) - d
        return x - a + (gap - gap.mean() if float(excess(x)) > 0 else gap)

    def upper(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return (x - a).square().sum() / 2 + (y - d).square().sum() / 2

    free = (a + d) / 2  # the solution where the bound is idle; else only its mean moves, to that of a
    solution = free if float(free.mean()) <= level else free - free.mean() + max(1.0, level)
    problem = BilevelProblem(
        upper=upper,
        lower=lambda x, y, batch: (y - x).square().sum() / 2,
        x0=torch.zeros(size, dtype=torch.float64),
        y0=torch.zeros(size, dtype=torch.float64),
        constraint=lambda x, y: (y.sum() - level * size).reshape(1),
        project_joint=lambda x, y: (x, budget(y)),
        lower_solution=lower_solution,
        exact_hypergradient=hypergradient,
    )
    return ExactProblem(problem, lower_solution, hypergradient, lambda x: upper(x, lower_solution(x), None), solution)


def equality_toy(size: int) -> ExactProblem:
    """y* in argmin ‖y₁‖²/2 - xᵀy₁ + 1ᵀy₂ subject to 1ᵀ(x + y₁ + y₂) = 0;  f = ‖x - y₂‖²/2 + ‖y₁ - 1‖²/2.

    The lower level is convex, not strongly: only the sum of y₂ is determined, and f decides the rest.

    Parameters
    ----------
    size : int
        n; y = (y₁, y₂) has 2n entries.

    Returns
    -------
    ExactProblem
        In float64. Solution x = -0.3, y₁ = 0.7, y₂ = -0.4, multiplier -1.

    Raises
    ------
    ArgumentError
        If ``size < 1``.
    """
    _seeded("equality_toy", size, 0)

    def upper(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return (x - y[size:]).square().sum() / 2 + (y[:size] - 1).square().sum() / 2

    def lower_solution(x: Tensor) -> Tensor:
        return torch.cat([x + 1, x - 3 * x.mean() - 1])

    problem = BilevelProblem(
        upper=upper,
        lower=lambda x, y, batch: y[:size].square().sum() / 2 - x @ y[:size] + y[size:].sum(),
        x0=torch.full((size,), 10.0, dtype=torch.float64),
        y0=torch.full((2 * size,), 10.0, dtype=torch.float64),
        equality=lambda x, y: (x.sum() + y.sum()).reshape(1),
        project_joint=stacked(AffineEquality(torch.ones(1, 3 * size).double(), torch.zeros(1).double())),
        lower_solution=lower_solution,
        exact_hypergradient=lambda x: x + 3 * (3 * x.mean() + 1),
    )
    return ExactProblem(
        problem,
        lower_solution,
        lambda x: x + 3 * (3 * x.mean() + 1),
        lambda x: upper(x, lower_solution(x), None),
        torch.full((size,), -0.3, dtype=torch.float64),
    )


def box_quadratic(x_size: int, y_size: int, *, radius: float = 0.5, seed: int = 0) -> ExactProblem:
    """y* = argmin yᵀHy/2 - (Bx + b)ᵀy over |y_j| <= radius;  f = ‖y - t‖²/2 + ‖x‖²/4.

    On the coordinates F that are free at y*:  ∇Φ = x/2 + B_Fᵀ H_FF⁻¹ (y* - t)_F.

    Parameters
    ----------
    x_size, y_size : int
        n and M.
    radius : float, default 0.5
        Half the width of the box.
    seed : int, default 0
        Of everything random.

    Returns
    -------
    ExactProblem
        In float64. Its oracle is a primal-dual active-set iteration, which H, diagonally dominant, lets converge. Φ has
        kinks where a coordinate changes sides. No closed form of the best x.

    Raises
    ------
    ArgumentError
        If a size is below 1 or the radius is not positive.
    """
    generator = _seeded("box_quadratic", min(x_size, y_size), seed)
    if not radius > 0:
        raise ArgumentError(f"box_quadratic: expected radius > 0, got {radius}")
    mixing = torch.randn(y_size, y_size, dtype=torch.float64, generator=generator) / (4 * y_size)
    H = torch.eye(y_size, dtype=torch.float64) + mixing + mixing.T
    B = torch.randn(y_size, x_size, dtype=torch.float64, generator=generator) / x_size**0.5
    b = torch.randn(y_size, dtype=torch.float64, generator=generator)
    t = torch.randn(y_size, dtype=torch.float64, generator=generator)

    def solved(x: Tensor) -> tuple[Tensor, Tensor]:
        target = B @ x + b
        side = torch.zeros(y_size, dtype=torch.int64)  # -1, 0, 1: at the low end, free, at the high end
        for _ in range(_ACTIVE_SET_STEPS):
            free = side == 0
            y = radius * side.double()
            y[free] = torch.linalg.solve(H[free][:, free], (target - H @ y)[free])
            pull = y + (target - H @ y)  # beyond an end where the multiplier pushes outwards
            moved = (pull > radius).long() - (pull < -radius).long()
            if bool((moved == side).all()):
                return y, free
            side = moved
        raise ConvergenceError("box_quadratic: the active sets cycle at this x; no exact solution")

    def hypergradient(x: Tensor) -> Tensor:
        y, free = solved(x)
        return x / 2 + B[free].T @ torch.linalg.solve(H[free][:, free], (y - t)[free])

    def upper(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return (y - t).square().sum() / 2 + x.square().sum() / 4

    problem = BilevelProblem(
        upper=upper,
        lower=lambda x, y, batch: y @ H @ y / 2 - (B @ x + b) @ y,
        x0=torch.zeros(x_size, dtype=torch.float64),
        y0=torch.zeros(y_size, dtype=torch.float64),
        project_y=Box(-radius, radius),
        lower_solution=lambda x: solved(x)[0],
        exact_hypergradient=hypergradient,
    )
    return ExactProblem(problem, lambda x: solved(x)[0], hypergradient, lambda x: upper(x, solved(x)[0], None), None)


def cosh_upper(
    size: int, *, start: float = 1.0, noise: float = 0.0, relative_noise: float = 0.0, seed: int = 0
) -> ExactProblem:
    """y* = argmin yᵀHy/2 - xᵀy;  f = Σ cosh(x_i) + ‖y - t‖²/2, whose curvature grows with its gradient.

    Parameters
    ----------
    size : int
        n, of x and of y. H has eigenvalues from 1/5 to 1.
    start : float, default 1.0
        Every entry of x0; the gradient there is about sinh(start) an entry.
    noise : float, default 0.0
        Standard deviation added to each entry of g_y and f_y by the samplers' batches.
    relative_noise : float, default 0.0
        Standard deviation of a factor around 1 on each entry of sinh(x).
    seed : int, default 0
        Of everything random.

    Returns
    -------
    ExactProblem
        In float64.  ∇Φ = sinh(x) + H⁻¹(H⁻¹x - t).

    Raises
    ------
    ArgumentError
        If ``size < 1``.
    """
    generator = _seeded("cosh_upper", size, seed)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
    values = torch.linspace(0.2, 1, size, dtype=torch.float64)
    H, inverse = (basis * values) @ basis.T, (basis / values) @ basis.T
    t = torch.randn(size, dtype=torch.float64, generator=generator)

    def upper(x: Tensor, y: Tensor, batch: tuple[Tensor, Tensor] | None) -> Tensor:
        value = x.cosh().sum() + (y - t).square().sum() / 2
        if batch is None:
            return value
        on_y, on_x = batch
        return value + noise * (on_y.mean(0) @ y) + relative_noise * (on_x.mean(0) @ x.cosh())

    def lower(x: Tensor, y: Tensor, batch: tuple[Tensor] | None) -> Tensor:
        value = y @ H @ y / 2 - x @ y
        return value if batch is None else value + noise * (batch[0].mean(0) @ y)

    def hypergradient(x: Tensor) -> Tensor:
        return x.sinh() + inverse @ (inverse @ x - t)

    solution = torch.zeros(size, dtype=torch.float64)
    for _ in range(50):  # Newton on a strongly convex function from its middle
        solution = solution - torch.linalg.solve(
            torch.diag(solution.cosh()) + inverse @ inverse, hypergradient(solution)
        )
    noisy = noise > 0 or relative_noise > 0
    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x0=torch.full((size,), start, dtype=torch.float64),
        y0=torch.zeros(size, dtype=torch.float64),
        upper_sampler=NoiseSampler((size, size), seed=seed + 1) if noisy else None,
        lower_sampler=NoiseSampler((size,), seed=seed + 2) if noisy else None,
        lower_solution=lambda x: inverse @ x,
        exact_hypergradient=hypergradient,
    )
    return ExactProblem(problem, lambda x: inverse @ x, hypergradient, lambda x: upper(x, inverse @ x, None), solution)


def _seeded(call: str, size: int, seed: int) -> Generator:
    if size < 1:
        raise ArgumentError(f"{call}: expected size >= 1, got {size}")
    return Generator().manual_seed(seed)
