"""Learn an encoder through the head that is fitted on it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.samplers import TensorSampler
from hesse.errors import ArgumentError

__all__ = ["hyper_representation"]


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
