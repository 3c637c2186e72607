"""Many lower problems under one upper variable.   Shapes: m blocks, n rows, d features."""

from typing import Any

from torch import Tensor
from torch.nn.functional import softplus

from hesse.bilevel.problem import BilevelProblem
from hesse.errors import ArgumentError, ShapeError

__all__ = ["auc_blocks", "temperature_blocks"]


def auc_blocks(X: Tensor, t: Tensor, *, regularization: float = 1e-4) -> BilevelProblem:
    """Learn to rank for many labels at once, each by the area under its curve, with a dual number as lower variable.

    F_i = (1 - p)(h - a_i)² 1₊ + p (h - b_i)² 1₋ + 2 (1 + α_i)(p h 1₋ - (1 - p) h 1₊) - p (1 - p) α_i²,   h = w_iᵀX_j,
    f_i = mean_j F_i + regularization ‖w_i‖² / 2 and g_i = -mean_j F_i.   At the best a, b and α the mean of F_i is
    p (1 - p) (E (1 - h₊ + h₋)² - 1): the square loss of all pairs, from sums over single rows.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Rows; append a column of ones only if scores shall compare between labels.
    t : Tensor, shape (n, m)
        Labels -1 or 1, one column a task; both occur in each.
    regularization : float, default 1e-4
        >= 0.

    Returns
    -------
    BilevelProblem
        Of m blocks; x = {"weight": (m, d), "a": (m,), "b": (m,)} of zeros, y = α (m,). The curvature of g_i is
        2 p_i (1 - p_i), p_i the share of its positives. Batches are numbers of rows.

    Raises
    ------
    ShapeError
        If rows and labels do not fit together.
    ArgumentError
        If the regularisation is negative, or a task has labels other than -1 and 1, or only one of them.

    References
    ----------
    Y. Ying, L. Wen, S. Lyu (2016), NeurIPS, Stochastic online AUC maximization.
    """
    if X.ndim != 2 or t.ndim != 2 or len(t) != len(X):
        raise ShapeError(f"auc_blocks: expected X (n, d) and t (n, m), got {tuple(X.shape)} and {tuple(t.shape)}")
    if not bool((t.abs() == 1).all()) or not bool((t.amin(0) < t.amax(0)).all()):
        raise ArgumentError("auc_blocks: expected labels -1 and 1, and both of them in every column of t")
    if not regularization >= 0:
        raise ArgumentError(f"auc_blocks: expected regularization >= 0, got {regularization}")
    positive = (t > 0).to(X.dtype)
    shares = positive.mean(0)

    def saddle(x: dict[str, Tensor], alpha: Tensor, i: Tensor, batch: Any) -> Tensor:
        rows, ones = (X, positive) if batch is None else (X[batch], positive[batch])
        scores, p, plus = rows @ x["weight"][i], shares[i], ones[:, i]
        minus = 1 - plus
        spread = (1 - p) * (scores - x["a"][i]).square() * plus + p * (scores - x["b"][i]).square() * minus
        order = 2 * (1 + alpha) * (p * scores * minus - (1 - p) * scores * plus)
        return (spread + order).mean() - p * (1 - p) * alpha.square()

    def block_upper(x: dict[str, Tensor], y: Tensor, i: Tensor, batch: Any) -> Tensor:
        return saddle(x, y, i, batch) + regularization * x["weight"][i].square().sum() / 2

    def block_lower(x: dict[str, Tensor], y: Tensor, i: Tensor, batch: Any) -> Tensor:
        return -saddle(x, y, i, batch)

    m = t.shape[1]
    return BilevelProblem.from_blocks(
        block_upper,
        block_lower,
        {"weight": X.new_zeros(m, X.shape[1]), "a": X.new_zeros(m), "b": X.new_zeros(m)},
        X.new_zeros(m),
        upper_rows=len(X),
        lower_rows=len(X),
    )


def temperature_blocks(
    X: Tensor,
    t: Tensor,
    X_valid: Tensor,
    t_valid: Tensor,
    temperatures: Tensor,
    *,
    regularization: float = 1e-2,
) -> BilevelProblem:
    """Weigh training rows for many classifiers at once, which differ in the temperature of their loss.

    g_i = mean_j σ(x_j) ℓ(t_j yᵢᵀX_j / T_i) + regularization ‖y_i‖² / 2,   f_i = mean_j ℓ(t'_j yᵢᵀX'_j / T_i),
    ℓ(z) = log(1 + exp(-z))

    Parameters
    ----------
    X, t : Tensor, shapes (n, d) and (n,)
        Rows of doubtful labels, -1 or 1; append a column of ones for an intercept.
    X_valid, t_valid : Tensor, shapes (n', d) and (n',)
        Rows of trusted labels.
    temperatures : Tensor, shape (m,)
        T_i > 0: low ones punish margins below about T_i, high ones look at the mean margin.
    regularization : float, default 1e-2
        > 0: makes every block strongly convex.

    Returns
    -------
    BilevelProblem
        Of m blocks; x (n,) holds one logit a row, 0 at the start; y is (m, d). Batches are numbers of rows.

    Raises
    ------
    ShapeError
        If rows, labels and temperatures do not fit together.
    ArgumentError
        If the regularisation or a temperature is not positive.
    """
    if X.ndim != 2 or t.shape != X.shape[:1] or X_valid.ndim != 2 or t_valid.shape != X_valid.shape[:1]:
        raise ShapeError(
            f"temperature_blocks: expected (n, d), (n,), (n', d), (n',); got {tuple(X.shape)}, {tuple(t.shape)}, "
            f"{tuple(X_valid.shape)}, {tuple(t_valid.shape)}"
        )
    if temperatures.ndim != 1 or not bool((temperatures > 0).all()) or not regularization > 0:
        raise ArgumentError("temperature_blocks: expected regularization > 0 and a vector of temperatures > 0")
    signed, signed_valid = X * t.unsqueeze(1), X_valid * t_valid.unsqueeze(1)

    def block_lower(x: Tensor, y: Tensor, i: Tensor, batch: Any) -> Tensor:
        rows, weights = (signed, x) if batch is None else (signed[batch], x[batch])
        each = softplus(-(rows @ y) / temperatures[i])
        return (weights.sigmoid() * each).mean() + regularization * y.square().sum() / 2

    def block_upper(x: Tensor, y: Tensor, i: Tensor, batch: Any) -> Tensor:
        rows = signed_valid if batch is None else signed_valid[batch]
        return softplus(-(rows @ y) / temperatures[i]).mean()

    return BilevelProblem.from_blocks(
        block_upper,
        block_lower,
        X.new_zeros(len(X)),
        X.new_zeros(len(temperatures), X.shape[1]),
        upper_rows=len(X_valid),
        lower_rows=len(X),
    )
