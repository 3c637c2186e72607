"""Logistic regression whose penalties are chosen on held-out rows.   Shapes: n rows, d features.

g = mean log(1 + exp(-t Xy)) + Σ_j exp(x_j) y_j²/2,   f = mean log(1 + exp(-t' X'y)),   t = ±1
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.problems.exact import ExactProblem
from hesse.errors import ArgumentError, ConvergenceError, ShapeError

__all__ = ["logistic"]

_NEWTON_STEPS = 100


def logistic(X: Tensor, t: Tensor, X_valid: Tensor, t_valid: Tensor, *, scalar: bool = False) -> ExactProblem:
    """Pose the choice of log penalties as a bilevel problem.

    Parameters
    ----------
    X, t : Tensor, shapes (n, d) and (n,)
        Rows the coefficients are fitted on, and their labels, -1 or 1.
    X_valid, t_valid : Tensor, shapes (n', d) and (n',)
        Rows the penalties are judged on.
    scalar : bool, default False
        One penalty for all features instead of one for each.

    Returns
    -------
    ExactProblem
        Its oracle is Newton's method with dense factorisations: for small d. Start: penalties 0.01.

    Raises
    ------
    ShapeError
        If the tables do not fit together.
    ArgumentError
        If a label is neither -1 nor 1.
    """
    n, d = X.shape
    if X_valid.shape[1] != d or t.shape != (n,) or t_valid.shape != (len(X_valid),):
        raise ShapeError(
            f"logistic: expected (n, {d}), (n,), (n', {d}), (n',); got {tuple(X.shape)}, {tuple(t.shape)}, "
            f"{tuple(X_valid.shape)}, {tuple(t_valid.shape)}"
        )
    if not bool((t.abs() == 1).all() and (t_valid.abs() == 1).all()):
        raise ArgumentError("logistic: expected labels of -1 and 1")

    def lower(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return softplus(-t * (X @ y)).mean() + (x.exp() * y.square()).sum() / 2

    def upper(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return softplus(-t_valid * (X_valid @ y)).mean()

    def derivatives(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        wrong = torch.sigmoid(-t * (X @ y))
        penalty = x.exp().expand(d)
        gradient = -X.T @ (t * wrong) / n + penalty * y
        return gradient, (X.T * (wrong * (1 - wrong))) @ X / n + torch.diag(penalty)

    def lower_solution(x: Tensor) -> Tensor:
        y = torch.zeros(d, dtype=X.dtype, device=X.device)
        gradient, matrix = derivatives(x, y)
        for _ in range(_NEWTON_STEPS):
            step = torch.linalg.solve(matrix, gradient)
            # damped by 1 / (1 + decrement), and whole steps near the end: Newton's method for self-concordant losses
            decrement = (gradient @ step).clamp_min(0).sqrt()
            if float(gradient.norm()) <= 50 * torch.finfo(X.dtype).eps:
                return y
            y = y - step / (1 + decrement) if float(decrement) > 0.1 else y - step
            gradient, matrix = derivatives(x, y)
        if float(gradient.norm()) <= 1e4 * torch.finfo(X.dtype).eps:
            return y
        raise ConvergenceError(f"logistic: Newton's method left a gradient of {float(gradient.norm()):.1e}")

    def hypergradient(x: Tensor) -> Tensor:
        y = lower_solution(x)
        matrix = derivatives(x, y)[1]
        wrong = torch.sigmoid(-t_valid * (X_valid @ y))
        v = torch.linalg.solve(matrix, -X_valid.T @ (t_valid * wrong) / len(t_valid))
        each = -x.exp() * y * v
        return each.sum(0, keepdim=True) if scalar else each

    def value(x: Tensor) -> Tensor:
        return upper(x, lower_solution(x), None)

    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x0=torch.full((1 if scalar else d,), 0.01, dtype=X.dtype, device=X.device).log(),
        y0=torch.zeros(d, dtype=X.dtype, device=X.device),
        lower_solution=lower_solution,
        exact_hypergradient=hypergradient,
    )
    return ExactProblem(problem, lower_solution, hypergradient, value)
