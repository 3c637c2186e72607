"""Bilevel tasks on a user's own data, ready to run and to copy.   Shapes: n rows, d features, c classes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.samplers import TensorSampler
from hesse.errors import ArgumentError, ShapeError

__all__ = ["hyper_cleaning", "hyper_representation", "temperature_blocks"]


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


def hyper_representation(
    encoder: nn.Module,
    head: nn.Module,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    regularization: float = 1e-3,
    batch_size: int | None = None,
    seed: int = 0,
) -> BilevelProblem:
    """Learn an encoder whose features let a head, fitted on some rows, do well on others.

    g = loss(head(encoder(X))) + regularization ‖y‖²,   f = loss(head(encoder(X')))

    Parameters
    ----------
    encoder, head : nn.Module
        x and y are their trainable parameters; a linear head makes the lower level strongly convex.
    train, valid : tuple of Tensor
        Inputs and targets for the lower and the upper level, rows along the leading axis.
    loss_fn : callable, default cross entropy
        (outputs, targets) -> scalar, a mean over the rows.
    regularization : float, default 1e-3
        > 0.
    batch_size : int, optional
        Rows a batch of either level. Default: all rows, no samplers.
    seed : int, default 0
        Of the samplers.

    Returns
    -------
    BilevelProblem
        Variables are dictionaries by parameter name.

    Raises
    ------
    ArgumentError
        If the regularisation is not positive.
    """
    if not regularization > 0:
        raise ArgumentError(f"hyper_representation: expected regularization > 0, got {regularization}")
    names = [name for name, parameter in head.named_parameters() if parameter.requires_grad]

    def outputs(x: dict[str, Tensor], y: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return torch.func.functional_call(head, y, (torch.func.functional_call(encoder, x, (inputs,)),))

    def lower(x: dict[str, Tensor], y: dict[str, Tensor], batch: Any) -> Tensor:
        inputs, targets = train if batch is None else batch
        size = torch.stack([y[name].square().sum() for name in names]).sum()
        return loss_fn(outputs(x, y, inputs), targets) + regularization * size

    def upper(x: dict[str, Tensor], y: dict[str, Tensor], batch: Any) -> Tensor:
        inputs, targets = valid if batch is None else batch
        return loss_fn(outputs(x, y, inputs), targets)

    return BilevelProblem(
        upper=upper,
        lower=lower,
        x0={name: p for name, p in encoder.named_parameters() if p.requires_grad},
        y0={name: p for name, p in head.named_parameters() if p.requires_grad},
        lower_sampler=None if batch_size is None else TensorSampler(train, batch_size, seed=seed),
        upper_sampler=None if batch_size is None else TensorSampler(valid, batch_size, seed=seed + 1),
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
