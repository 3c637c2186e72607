"""A support-vector machine with one cost a row, as a bilevel problem, and its exact lower solution.

    min_{w,b,ξ}  ‖w‖²/2 + Σ exp(x_i) ξ_i²/2   subject to   1 - ξ_i - t_i (wᵀa_i + b) <= 0

Shapes: n rows, d features.
"""

from typing import Any

import torch
from torch import Tensor

from hesse.bilevel.piecewise_quadratic import minimize_hinge_squares
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.projections import SoftMarginRows
from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.projections import Box

__all__ = ["solve_support_vectors", "support_vector_costs"]


def support_vector_costs(
    X: Tensor,
    t: Tensor,
    X_valid: Tensor,
    t_valid: Tensor,
    *,
    sharpness: float = 5.0,
    bounds: tuple[float, float] = (-8.0, 2.5),
    start: float = -5.5,
) -> BilevelProblem:
    """Learn what a margin error of each training row costs, so that trusted rows come out right.

    f = mean σ(-sharpness · t(wᵀa + b)) over the trusted rows: the fraction misclassified, made smooth.

    Parameters
    ----------
    X, t : Tensor, shapes (n, d) and (n,)
        Rows of doubtful labels -1 and 1.
    X_valid, t_valid : Tensor, shapes (n', d) and (n',)
        Rows of trusted labels.
    sharpness : float, default 5.0
        > 0; how steeply f counts.
    bounds : (float, float), default (-8, 2.5)
        Box of the log costs x. Their exponentials are curvatures of the lower level: a saddle step η needs
        η exp(high) < 2.
    start : float, default -5.5
        Every entry of x0: costs so low that all rows lie within the margin and each has a say.

    Returns
    -------
    BilevelProblem
        y = {"weight": (d,), "bias": (), "slack": (n,)}; constraint, ``project_x`` and ``project_joint`` are set.

    Raises
    ------
    ShapeError
        If rows and labels do not fit together.
    ArgumentError
        If a label is neither -1 nor 1, the start is outside the bounds, or ``sharpness <= 0``.
    """
    margins = SoftMarginRows(X, t)
    if X_valid.ndim != 2 or X_valid.shape[1] != X.shape[1] or t_valid.shape != X_valid.shape[:1]:
        raise ShapeError(
            f"support_vector_costs: expected X_valid (n', {X.shape[1]}) and t_valid (n',), got {tuple(X_valid.shape)} "
            f"and {tuple(t_valid.shape)}"
        )
    if not bool((t_valid.abs() == 1).all()):
        raise ArgumentError("support_vector_costs: expected labels -1 and 1 in t_valid")
    if not bounds[0] <= start <= bounds[1]:
        raise ArgumentError(f"support_vector_costs: expected start within bounds, got {start} and {bounds}")
    if not sharpness > 0:
        raise ArgumentError(f"support_vector_costs: expected sharpness > 0, got {sharpness}")
    box, rows = Box(*bounds), margins.signed_rows
    signs = t_valid.to(X.dtype)

    def upper(x: Tensor, y: dict[str, Tensor], batch: Any) -> Tensor:
        return (-sharpness * signs * (X_valid @ y["weight"] + y["bias"])).sigmoid().mean()

    def lower(x: Tensor, y: dict[str, Tensor], batch: Any) -> Tensor:
        return (y["weight"].square().sum() + (x.exp() * y["slack"].square()).sum()) / 2

    def constraint(x: Tensor, y: dict[str, Tensor]) -> Tensor:
        return 1 - y["slack"] - rows @ torch.cat([y["weight"], y["bias"].reshape(1)])

    def project_joint(x: Tensor, y: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        weight, bias, slack = margins(y["weight"], y["bias"], y["slack"])
        return box(x), {"weight": weight, "bias": bias, "slack": slack}

    return BilevelProblem(
        upper=upper,
        lower=lower,
        x0=X.new_full((len(X),), start),
        y0={"weight": X.new_zeros(X.shape[1]), "bias": X.new_zeros(()), "slack": X.new_ones(len(X))},
        constraint=constraint,
        project_x=box,
        project_joint=project_joint,
        lower_solution=lambda x: solve_support_vectors(X, t, x.exp()),
    )


def solve_support_vectors(X: Tensor, t: Tensor, costs: Tensor) -> dict[str, Tensor]:
    """Fit the machine exactly: eliminating ξ leaves squared hinges in (w, b), which semismooth Newton minimises.

    Parameters
    ----------
    X, t : Tensor, shapes (n, d) and (n,)
        Rows and labels -1 and 1.
    costs : Tensor, shape (n,) or ()
        > 0 for at least one row of each label; one for all if it has no axis.

    Returns
    -------
    dict of Tensor
        "weight" (d,), "bias" () and "slack" (n,), without a graph.

    Raises
    ------
    ArgumentError
        If a cost is negative, or those of one label all vanish: the bias is then not determined.
    """
    rows = SoftMarginRows(X, t).signed_rows
    costs = costs.detach().to(X.dtype).expand(len(t))
    if not bool((costs >= 0).all()) or not all(bool((costs[t == side] > 0).any()) for side in (-1, 1)):
        raise ArgumentError("solve_support_vectors: expected costs >= 0, and some > 0 for either label")
    ridge = torch.cat([X.new_ones(X.shape[1]), X.new_zeros(1)])
    solution = minimize_hinge_squares(rows, torch.ones_like(costs), costs, torch.zeros_like(ridge), ridge)
    return {"weight": solution[:-1], "bias": solution[-1], "slack": (1 - rows @ solution).clamp_min(0)}
