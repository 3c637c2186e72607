"""What fitting and using a Laplace posterior share: names of weights, shapes of outputs, checks of hyper-parameters."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesse.curvature.layers import TrackedLayer
from hesse.errors import ArgumentError, ShapeError

__all__ = ["OutputsFn", "Structure", "call_model", "matrix_outputs", "parameter_names", "positive"]

OutputsFn = Callable[[nn.Module, Any], Tensor]
"""(model, inputs) -> outputs (B, C) or (B,)."""
Structure = Literal["kron", "full", "diag"]


def call_model(model: nn.Module, inputs: Any) -> Tensor:
    """Call the model, where nothing else was asked for.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs : object
        Its one argument.

    Returns
    -------
    Tensor
        Its outputs.
    """
    return model(inputs)


def matrix_outputs(outputs: Tensor) -> Tensor:
    """Read outputs as a matrix.

    Parameters
    ----------
    outputs : Tensor, shape (B, C) or (B,)
        What the model gave.

    Returns
    -------
    Tensor, shape (B, C)
        C is 1 for a vector.

    Raises
    ------
    ShapeError
        If they are something else.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim not in (1, 2):
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ShapeError(f"laplace: expected outputs of shape (B, C), got {found}; see outputs_fn=")
    return outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs


def parameter_names(layer: TrackedLayer) -> list[str]:
    """Name the weight and the bias of a layer as the model does.

    Parameters
    ----------
    layer : TrackedLayer
        Perhaps without its bias.

    Returns
    -------
    list of str
        One or two names.
    """
    prefix = f"{layer.name}." if layer.name else ""
    return [f"{prefix}weight", f"{prefix}bias"] if layer.has_bias else [f"{prefix}weight"]


def positive(name: str, value: Tensor | float, like: Tensor) -> Tensor:
    """Read a hyper-parameter.

    Parameters
    ----------
    name : str
        Its name, for the message.
    value : Tensor or float
        What came.
    like : Tensor
        Gives dtype and device.

    Returns
    -------
    Tensor
        Differentiable with respect to ``value``.

    Raises
    ------
    ArgumentError
        If it is not finite and positive.
    """
    found = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if not bool((torch.isfinite(found) & (found > 0)).all()):
        raise ArgumentError(f"{name}: expected finite numbers > 0, got {value}")
    return found
