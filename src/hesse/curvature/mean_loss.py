"""Mean loss over batches and its gradient, as numbers.   Shapes: P parameters."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.curvature._binding import Function, Target, bind, check_function, choose_parameters, join
from hesse.curvature.batches import as_batches, batch_size, to_device
from hesse.errors import ShapeError
from hesse.linalg.layout import ParameterLayout

__all__ = ["MeanLoss", "batch_gradient", "mean_loss"]


@dataclass(frozen=True, slots=True)
class MeanLoss:
    """A loss and its gradient; ``layout`` says which entries belong to which parameter."""

    value: float
    gradient: Tensor  # (P,), float32 at least
    num_examples: int
    layout: ParameterLayout


def mean_loss(loss_fn: Function, target: Target, batches: Any, *, names: Iterable[str] | None = None) -> MeanLoss:
    """Average a loss and its gradient over batches, each counted by its examples.

    Parameters
    ----------
    loss_fn : callable
        (model or parameters, batch) -> scalar, the mean over the examples of the batch.
    target : nn.Module or mapping of str to Tensor
        The model (its parameters that require a gradient), or named tensors.
    batches : object, list, DataLoader or BatchStream
        As in `hessian`.
    names : iterable of str, optional
        Only these parameters. Default: all.

    Returns
    -------
    MeanLoss
        Zeros for a parameter that the loss does not reach. One forward and backward pass a batch.

    Raises
    ------
    ArgumentError
        If a name is unknown, there are no batches, or a layer in training mode would draw random numbers.
    ArgumentTypeError
        If ``loss_fn`` cannot be called or ``target`` is of another kind.
    ShapeError
        If the loss is not a scalar, or the parameters differ in dtype or device.
    """
    call = "mean_loss"
    check_function(call, loss_fn)
    chosen = choose_parameters(call, target, names)
    layout, values = ParameterLayout.of(chosen), tuple(chosen.values())
    first = values[0]
    wide = torch.promote_types(first.dtype, torch.float32)
    gradient = torch.zeros(layout.size, dtype=wide, device=first.device)
    loss, examples = 0.0, 0
    for batch in as_batches(call, batches):
        here = to_device(batch, first.device)
        count = batch_size(here)
        value, slope = batch_gradient(call, bind(loss_fn, target, layout.names, here), values)
        gradient.add_(slope, alpha=count)
        loss, examples = loss + count * value, examples + count
    return MeanLoss(loss / examples, gradient / examples, examples, layout)


def batch_gradient(
    call: str, function: Callable[[tuple[Tensor, ...]], Tensor], values: Sequence[Tensor]
) -> tuple[float, Tensor]:
    """Differentiate a loss of one batch.

    Parameters
    ----------
    call : str
        The caller, for messages.
    function : callable
        From `bind`.
    values : sequence of Tensor
        Where.

    Returns
    -------
    value : float
        The loss.
    gradient : Tensor, shape (P,)
        In the dtype of the values; zeros where the loss does not reach.

    Raises
    ------
    ShapeError
        If the loss is not a scalar.
    """
    leaves = tuple(value.detach().requires_grad_() for value in values)
    with torch.enable_grad():
        loss = function(leaves)
        if loss.ndim != 0:
            raise ShapeError(f"{call}: loss_fn must return a scalar, got shape {tuple(loss.shape)}")
    if not loss.requires_grad:
        return float(loss), join(torch.zeros_like(leaf) for leaf in leaves)
    pieces = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return float(loss.detach()), join(pieces)
