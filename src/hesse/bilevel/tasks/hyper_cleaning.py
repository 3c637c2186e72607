"""Weigh training rows by what the weights do for trusted ones.   Shapes: n rows, d features, c classes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.samplers import TensorSampler
from hesse.errors import ArgumentError, ShapeError

__all__ = ["hyper_cleaning"]


def hyper_cleaning(
    X: Tensor,
    t: Tensor,
    X_valid: Tensor,
    t_valid: Tensor,
    *,
    num_classes: int,
    regularization: float = 1e-3,
    batch_size: int | None = None,
    seed: int = 0,
) -> BilevelProblem:
    """Weigh every training row, so that what is learnt from the weighted rows does well on rows that are trusted.

    g = mean_i σ(x_i) CE_i(y) + regularization ‖y‖²,   f = CE on the trusted rows;   y = softmax regression with bias

    Parameters
    ----------
    X, t : Tensor, shapes (n, d) and (n,)
        Rows of doubtful labels, 0 to c - 1.
    X_valid, t_valid : Tensor, shapes (n', d) and (n',)
        Rows of trusted labels.
    num_classes : int
        c.
    regularization : float, default 1e-3
        > 0: makes the lower level strongly convex.
    batch_size : int, optional
        Rows a batch of either level. Default: all rows, no samplers.
    seed : int, default 0
        Of the samplers.

    Returns
    -------
    BilevelProblem
        x holds one logit a row, 0 at the start: weights of 1/2. y = {"weight": (d, c), "bias": (c,)}.

    Raises
    ------
    ShapeError
        If rows and labels do not fit together.
    ArgumentError
        If the regularisation is not positive, or a label out of range.
    """
    if X.ndim != 2 or t.shape != X.shape[:1] or X_valid.ndim != 2 or t_valid.shape != X_valid.shape[:1]:
        raise ShapeError(
            f"hyper_cleaning: expected (n, d), (n,), (n', d), (n',); got {tuple(X.shape)}, {tuple(t.shape)}, "
            f"{tuple(X_valid.shape)}, {tuple(t_valid.shape)}"
        )
    if not regularization > 0:
        raise ArgumentError(f"hyper_cleaning: expected regularization > 0, got {regularization}")
    labels = torch.cat([t, t_valid])
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ArgumentError(f"hyper_cleaning: expected labels from 0 to {num_classes - 1}")
    rows = torch.arange(len(X), device=X.device)
    lower_data, upper_data = (rows, X, t), (X_valid, t_valid)

    def lower(x: Tensor, y: dict[str, Tensor], batch: Any) -> Tensor:
        index, inputs, targets = lower_data if batch is None else batch
        each = cross_entropy(inputs @ y["weight"] + y["bias"], targets, reduction="none")
        size = y["weight"].square().sum() + y["bias"].square().sum()
        return (x[index].sigmoid() * each).mean() + regularization * size

    def upper(x: Tensor, y: dict[str, Tensor], batch: Any) -> Tensor:
        inputs, targets = upper_data if batch is None else batch
        return cross_entropy(inputs @ y["weight"] + y["bias"], targets)

    return BilevelProblem(
        upper=upper,
        lower=lower,
        x0=X.new_zeros(len(X)),
        y0={"weight": X.new_zeros(X.shape[1], num_classes), "bias": X.new_zeros(num_classes)},
        lower_sampler=None if batch_size is None else TensorSampler(lower_data, batch_size, seed=seed),
        upper_sampler=None if batch_size is None else TensorSampler(upper_data, batch_size, seed=seed + 1),
    )
