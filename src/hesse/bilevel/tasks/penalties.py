"""Choose the penalties of a linear model on rows held out from its fit.   Shapes: n rows, d features, k outputs."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.samplers import TensorSampler
from hesse.errors import ArgumentError, ShapeError

__all__ = ["Penalty", "penalized_model"]

Penalty = Literal["per-feature", "scalar", "elastic-net"]
_NUMBERS = {"scalar": 1, "elastic-net": 2}


def penalized_model(
    X: Tensor,
    t: Tensor,
    X_valid: Tensor,
    t_valid: Tensor,
    *,
    num_outputs: int = 1,
    penalty: Penalty = "per-feature",
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    start: float = -3.0,
    rounding: float = 1e-3,
    batch_size: int | None = None,
    seed: int = 0,
) -> BilevelProblem:
    """Fit a linear model on some rows under penalties that make it do well on others.

    g = loss(X w + b, t) + R(w; x),   f = loss(X' w + b, t'),   R = Σ_j e^(x_j) ‖w_j‖² / 2, or e^x ‖w‖² / 2, or
    e^(x_1) ‖w‖² / 2 + e^(x_2) Σ (√(w² + s²) - s)

    Parameters
    ----------
    X, t : Tensor, shapes (n, d) and (n,) or (n, k)
        Rows to fit; ``t`` holds labels where it is of an integer type, else values.
    X_valid, t_valid : Tensor, shapes (n', d) and (n',) or (n', k)
        Rows to judge the fit by.
    num_outputs : int, default 1
        k: the number of classes for labels.
    penalty : {"per-feature", "scalar", "elastic-net"}, default "per-feature"
        One number a feature, one for all, or one each for squares and magnitudes.
    loss_fn : callable, optional
        (outputs, targets) -> scalar, a mean over the rows. Default: cross entropy for labels, half the mean square for
        values.
    start : float, default -3.0
        Every x at the start, the logarithm of a penalty. A penalty much above the best one stops the fit from moving,
        one much below is found slowly.
    rounding : float, default 1e-3
        s > 0 of "elastic-net", in units of a weight: below it a magnitude is nearly a square, so that the lower level
        has second derivatives everywhere.
    batch_size : int, optional
        Rows a batch of either level. Default: all rows, no samplers.
    seed : int, default 0
        Of the samplers.

    Returns
    -------
    BilevelProblem
        x is (d,), (1,) or (2,); y = {"weight": (d, k), "bias": (k,)}, without a penalty on the bias: give centred
        features, or the lower level of a fit to separable labels is only just strongly convex.

    Raises
    ------
    ShapeError
        If rows and targets do not fit together.
    ArgumentError
        If a number is out of range, the penalty is unknown, or labels are not 0 to k - 1.
    """
    if X.ndim != 2 or X_valid.ndim != 2 or X.shape[1] != X_valid.shape[1]:
        raise ShapeError(
            f"penalized_model: expected X (n, d) and X_valid (n', d), got {tuple(X.shape)} and {tuple(X_valid.shape)}"
        )
    for name, rows, targets in (("t", X, t), ("t_valid", X_valid, t_valid)):
        if targets.shape[:1] != rows.shape[:1] or targets.shape[1:] not in ((), (num_outputs,)):
            raise ShapeError(
                f"penalized_model: expected {name} ({len(rows)},) or ({len(rows)}, {num_outputs}), got "
                f"{tuple(targets.shape)}"
            )
    if penalty not in ("per-feature", "scalar", "elastic-net"):
        raise ArgumentError(f"penalized_model: penalty must be per-feature, scalar or elastic-net, got {penalty!r}")
    if num_outputs < 1 or not rounding > 0:
        raise ArgumentError(
            f"penalized_model: expected num_outputs >= 1 and rounding > 0, got {num_outputs}, {rounding}"
        )
    holds_labels = not t.is_floating_point()
    if holds_labels:
        labels = torch.cat([t.reshape(-1), t_valid.reshape(-1)])
        if int(labels.min()) < 0 or int(labels.max()) >= num_outputs:
            raise ArgumentError(f"penalized_model: expected labels from 0 to num_outputs - 1 = {num_outputs - 1}")
    measure = loss_fn or (cross_entropy if holds_labels else _half_square)

    def loss(y: dict[str, Tensor], rows: tuple[Tensor, Tensor]) -> Tensor:
        outputs = rows[0] @ y["weight"] + y["bias"]
        return measure(outputs[:, 0] if num_outputs == 1 and rows[1].ndim == 1 else outputs, rows[1])

    def size(x: Tensor, weight: Tensor) -> Tensor:
        if penalty == "elastic-net":
            magnitudes = (weight.square() + rounding**2).sqrt() - rounding
            return x[0].exp() * weight.square().sum() / 2 + x[1].exp() * magnitudes.sum()
        return (x.exp() * weight.square().sum(1)).sum() / 2

    def lower(x: Tensor, y: dict[str, Tensor], batch: Any) -> Tensor:
        return loss(y, (X, t) if batch is None else batch) + size(x, y["weight"])

    def upper(x: Tensor, y: dict[str, Tensor], batch: Any) -> Tensor:
        return loss(y, (X_valid, t_valid) if batch is None else batch)

    return BilevelProblem(
        upper=upper,
        lower=lower,
        x0=X.new_full((_NUMBERS.get(penalty, X.shape[1]),), start),
        y0={"weight": X.new_zeros(X.shape[1], num_outputs), "bias": X.new_zeros(num_outputs)},
        lower_sampler=None if batch_size is None else TensorSampler((X, t), batch_size, seed=seed),
        upper_sampler=None if batch_size is None else TensorSampler((X_valid, t_valid), batch_size, seed=seed + 1),
    )


def _half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean() / 2
