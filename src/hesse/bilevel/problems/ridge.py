"""Ridge regression whose penalties are chosen on held-out rows.   Shapes: n rows, d features, p penalties, m tasks.

g = ‖Xy - t‖²/(2n) + Σ_j exp(x_j) y_j²/2,   f = ‖X'y - t'‖²/(2n')
∇_j Φ = -exp(x_j) y_j v_j,   (XᵀX/n + diag exp x) v = X'ᵀ(X'y - t')/n'
"""

from typing import Any

import torch
from torch import Generator, Tensor

from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.problems.exact import ExactProblem
from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.projections import Box

__all__ = ["multi_ridge", "ridge"]


def ridge(
    X: Tensor, t: Tensor, X_valid: Tensor, t_valid: Tensor, *, groups: Tensor | None = None, x0: float = 0.0
) -> ExactProblem:
    """Pose the choice of log penalties as a bilevel problem.

    Parameters
    ----------
    X, t : Tensor, shapes (n, d) and (n,)
        Rows the coefficients y are fitted on. No intercept: centre the targets.
    X_valid, t_valid : Tensor, shapes (n', d) and (n',)
        Rows the penalties are judged on.
    groups : Tensor of int64, shape (d,), optional
        Number of the penalty of each feature, from 0: all zeros for one penalty. Default: one for each feature.
    x0 : float, default 0.0
        Logarithm of every penalty at the start.

    Returns
    -------
    ExactProblem
        Its oracle solves in the precision of the data; no closed form of the best penalties.

    Raises
    ------
    ShapeError
        If the tables do not fit together.
    """
    n, d = X.shape
    if X_valid.shape[1] != d or t.shape != (n,) or t_valid.shape != (len(X_valid),):
        raise ShapeError(
            f"ridge: expected (n, {d}), (n,), (n', {d}), (n',); got {tuple(X.shape)}, {tuple(t.shape)}, "
            f"{tuple(X_valid.shape)}, {tuple(t_valid.shape)}"
        )
    groups = torch.arange(d, device=X.device) if groups is None else groups
    if groups.shape != (d,):
        raise ShapeError(f"ridge: expected groups of shape ({d},), got {tuple(groups.shape)}")
    num_groups = int(groups.max()) + 1

    def lower(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return (X @ y - t).square().sum() / (2 * n) + (x.exp()[groups] * y.square()).sum() / 2

    def upper(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return (X_valid @ y - t_valid).square().mean() / 2

    def matrix(x: Tensor) -> Tensor:
        return X.T @ X / n + torch.diag(x.exp()[groups])

    def lower_solution(x: Tensor) -> Tensor:
        return torch.linalg.solve(matrix(x), X.T @ t / n)

    def hypergradient(x: Tensor) -> Tensor:
        y = lower_solution(x)
        v = torch.linalg.solve(matrix(x), X_valid.T @ (X_valid @ y - t_valid) / len(t_valid))
        return torch.zeros_like(x).index_add(0, groups, -x.exp()[groups] * y * v)

    def value(x: Tensor) -> Tensor:
        return upper(x, lower_solution(x), None)

    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x0=torch.full((num_groups,), x0, dtype=X.dtype, device=X.device),
        y0=torch.zeros(d, dtype=X.dtype, device=X.device),
        lower_solution=lower_solution,
        exact_hypergradient=hypergradient,
    )
    return ExactProblem(problem, lower_solution, hypergradient, value)


def multi_ridge(
    num_tasks: int,
    num_rows: int,
    num_features: int,
    *,
    noise: float = 0.5,
    weak: float = 0.0,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> ExactProblem:
    """Draw m regressions that share one log penalty a feature: a problem of blocks, in float64.

    Parameters
    ----------
    num_tasks : int
        m.
    num_rows : int
        n, for fitting and again for judging, in every task.
    num_features : int
        d; the first half has coefficients of standard deviation 1.
    noise : float, default 0.5
        Standard deviation of the targets around the line.
    weak : float, default 0.0
        Standard deviation of the second half's coefficients. Default: they are zero.
    bounds : (float, float), optional
        Box that x is projected on. Default: none.
    seed : int, default 0
        Of everything random.

    Returns
    -------
    ExactProblem
        y is (m, d); the block losses take numbers of rows as their batch.

    Raises
    ------
    ArgumentError
        If a size is below 1.
    """
    if min(num_tasks, num_rows, num_features) < 1:
        raise ArgumentError(f"multi_ridge: expected sizes >= 1, got {num_tasks}, {num_rows}, {num_features}")
    generator = Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    tables = normal(num_tasks, 2, num_rows, num_features)
    weights = normal(num_tasks, num_features)
    weights[:, num_features // 2 :] *= weak
    targets = torch.einsum("mknd,md->mkn", tables, weights) + noise * normal(num_tasks, 2, num_rows)
    x0 = torch.zeros(num_features, dtype=torch.float64)

    def residual(level: int, y: Tensor, i: Tensor, batch: Any) -> Tensor:
        if batch is None:
            return tables[i, level] @ y - targets[i, level]
        return tables[i, level, batch] @ y - targets[i, level, batch]

    def block_lower(x: Tensor, y: Tensor, i: Tensor, batch: Any) -> Tensor:
        return residual(0, y, i, batch).square().mean() / 2 + (x.exp() * y.square()).sum() / 2

    def block_upper(x: Tensor, y: Tensor, i: Tensor, batch: Any) -> Tensor:
        return residual(1, y, i, batch).square().mean() / 2

    (fit, judge), (t, t_judge) = tables.unbind(1), targets.unbind(1)
    gram, moment = fit.mT @ fit / num_rows, torch.einsum("mnd,mn->md", fit, t) / num_rows

    def lower_solution(x: Tensor) -> Tensor:
        return torch.linalg.solve(gram + torch.diag(x.exp()), moment)

    def misfit(y: Tensor) -> Tensor:
        return torch.einsum("mnd,md->mn", judge, y) - t_judge

    def hypergradient(x: Tensor) -> Tensor:
        y = lower_solution(x)
        slope = torch.einsum("mnd,mn->md", judge, misfit(y)) / num_rows
        v = torch.linalg.solve(gram + torch.diag(x.exp()), slope)
        return -x.exp() * (y * v).mean(0)

    def value(x: Tensor) -> Tensor:
        return misfit(lower_solution(x)).square().mean() / 2

    problem = BilevelProblem.from_blocks(
        block_upper,
        block_lower,
        x0,
        torch.zeros(num_tasks, num_features, dtype=torch.float64),
        upper_rows=num_rows,
        lower_rows=num_rows,
        project_x=None if bounds is None else Box(*bounds),
        lower_solution=lower_solution,
        exact_hypergradient=hypergradient,
    )
    return ExactProblem(problem, lower_solution, hypergradient, value)
