"""The expensive part: a loss on model outputs. Asking it, judging what it answers, and counting how often.

Shapes: outputs z (b, ...), one row a datum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError

__all__ = ["Answer", "OracleCounter", "Reduction", "TargetGradient", "TargetLoss", "ask_oracle", "check_scaling"]

Reduction = Literal["none", "sum", "mean"]
TargetGradient = Callable[[Tensor], Any]
"""z (b, ...), detached -> dl_i/dz_i of the same shape; a tensor, an array or nested lists."""
TargetLoss = Callable[[Tensor], Any]
"""z (b, ...) -> the mean of l_i(z_i), a scalar."""


class OracleCounter:
    """An expensive loss with two counters: how often a gradient was asked for, and how often a value alone.

    Parameters
    ----------
    loss : callable
        z (b, ...) -> the mean of l_i(z_i), a scalar tensor.
    gradient : callable, optional
        z -> dl_i/dz_i, shape (b, ...), not divided by b; for a loss that autograd cannot see through. Default: b times
        the derivative of ``loss``.

    Attributes
    ----------
    num_gradients, num_values : int
        Calls so far. A call of the object counts as a gradient if autograd could follow it, as a value otherwise.

    Raises
    ------
    ArgumentTypeError
        If the loss cannot be called.

    Examples
    --------
    >>> oracle = OracleCounter(lambda z: z.square().mean())
    >>> oracle.gradient(torch.tensor([1.0, 3.0]))
    tensor([2., 6.])
    >>> oracle.num_gradients, oracle.num_values
    (1, 0)
    """

    def __init__(self, loss: TargetLoss, gradient: TargetGradient | None = None) -> None:
        if not callable(loss):
            raise ArgumentTypeError(f"OracleCounter: loss must be callable, got {type(loss).__name__}")
        self.loss, self._gradient = loss, gradient
        self.num_gradients = self.num_values = 0

    def __call__(self, z: Tensor) -> Any:
        """Evaluate the loss and count the call.

        Returns
        -------
        Tensor, shape ()
            The mean loss.
        """
        if z.requires_grad and torch.is_grad_enabled():
            self.num_gradients += 1
        else:
            self.num_values += 1
        return self.loss(z)

    def gradient(self, z: Tensor) -> Any:
        """Ask for the gradient of every datum's loss.

        Parameters
        ----------
        z : Tensor, shape (b, ...)
            Outputs.

        Returns
        -------
        Tensor, shape (b, ...)
            dl_i/dz_i in row i.
        """
        self.num_gradients += 1
        return differentiate(self.loss, z)[0] if self._gradient is None else self._gradient(z.detach())


@dataclass(frozen=True, slots=True)
class Answer:
    """What one gradient call of the oracle brought."""

    gradient: Tensor  # G, of the shape of z: a derivative of the sum of the l_i
    loss: float | None  # the mean of l_i at z, if it came along


def differentiate(loss: TargetLoss, z: Tensor) -> tuple[Tensor, float]:
    """Differentiate a mean over b data, and undo the division by b.

    Parameters
    ----------
    loss : callable
        z -> scalar mean.
    z : Tensor, shape (b, ...)
        Outputs.

    Returns
    -------
    tuple of (Tensor, float)
        G of the shape of z, and the loss.

    Raises
    ------
    ShapeError
        If the loss is no scalar.
    ArgumentTypeError
        If it is no tensor that depends on z.
    """
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        value = loss(leaf)
        if not (isinstance(value, Tensor) and value.requires_grad):
            raise ArgumentTypeError(
                "SSO: target_loss must return a tensor that autograd can follow back to z; "
                "give target_gradient beside it if it cannot"
            )
        if value.numel() != 1:
            raise ShapeError(f"SSO: target_loss must return the mean over data, a scalar; got {tuple(value.shape)}")
        (slope,) = torch.autograd.grad(value.reshape(()), leaf)
    return slope * len(z), float(value.detach())


def ask_oracle(
    z: Tensor, target_gradient: TargetGradient | None, target_loss: TargetLoss | None, reduction: Reduction
) -> Answer:
    """Take the gradient with respect to the outputs, once, from whichever function gives it.

    Parameters
    ----------
    z : Tensor, shape (b, ...)
        Outputs, detached.
    target_gradient : callable, optional
        Asked if given.
    target_loss : callable, optional
        Differentiated if ``target_gradient`` is None.
    reduction : {"none", "sum", "mean"}
        Of the loss that ``target_gradient`` is the gradient of.

    Returns
    -------
    Answer
        Gradient in the dtype and on the device of z.

    Raises
    ------
    ShapeError
        If the gradient is not of the shape of z.
    NumericalError
        If it, or the loss that came with it, has NaN or Inf.
    ArgumentTypeError
        If there is no oracle at all.
    """
    loss = None
    if target_gradient is not None:
        # a copy: the oracle of a simulator may hand out a buffer that it writes to again, or change z in place
        found = torch.as_tensor(target_gradient(z.clone())).detach()
        gradient = found.to(dtype=z.dtype, device=z.device, copy=True)
    elif target_loss is not None:
        gradient, loss = differentiate(target_loss, z)
    else:
        raise ArgumentTypeError("SSO: step needs target_gradient or target_loss, got neither")
    if gradient.shape != z.shape:
        raise ShapeError(
            f"SSO: the oracle's gradient has shape {tuple(gradient.shape)} for outputs {tuple(z.shape)}: it needs one "
            "row a datum, dl_i/dz_i, not reduced over the batch (if rows are divided by b, say reduction='mean')"
        )
    if not bool(torch.isfinite(gradient).all()):
        raise NumericalError("SSO: the oracle's gradient has NaN or Inf; nothing has moved")
    if loss is not None and not math.isfinite(loss):
        raise NumericalError(f"SSO: target_loss is {loss} at the present outputs; nothing has moved")
    if target_gradient is not None and reduction == "mean":
        gradient = gradient * len(z)
    return Answer(gradient, loss)


def check_scaling(z: Tensor, gradient: Tensor, target_loss: TargetLoss) -> int:
    """Compare the gradient with a difference of the loss, and refuse one that is off by a factor b.

    Parameters
    ----------
    z : Tensor, shape (b, ...)
        Outputs, detached.
    gradient : Tensor, shape (b, ...)
        G as it will be used.
    target_loss : callable
        The mean.

    Returns
    -------
    int
        Values taken: two, or none where b < 8 is too small to tell a mean from a sum by.

    Raises
    ------
    ArgumentError
        If the loss changes about b times as fast along G as it should.
    """
    b, size = len(z), float(gradient.abs().max())
    if b < 8 or size == 0:
        return 0
    scale = torch.finfo(z.dtype).eps ** (1 / 3) * max(1.0, float(z.abs().max())) / size
    with torch.no_grad():
        rise = float(target_loss(z + scale * gradient)) - float(target_loss(z - scale * gradient))
    ratio = rise / (2 * scale) / (float(gradient.double().square().sum()) / b)
    if b / 2 <= ratio <= 2 * b:
        raise ArgumentError(
            f"SSO: target_loss rises {ratio:.3g} times as fast along the oracle's gradient as a mean over {b} data "
            "should: the gradient is divided by b already (say reduction='mean'), or target_loss is a sum"
        )
    return 2
