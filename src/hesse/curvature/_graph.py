"""Second derivatives as plain numbers: many products through one recorded graph, or one in little memory.

Shapes: K columns, P parameters.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hesse.linalg.layout import ParameterLayout

__all__ = ["gradient_map", "join_columns", "leaves_of", "pull_once", "push_gradient", "push_once", "split_columns"]

Block = list[Tensor]
"""One tensor (K, *shape) for each of several tensors of that shape."""


def leaves_of(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Make tensors that share the values' memory and nothing of their history.

    Parameters
    ----------
    values : sequence of Tensor
        Parameters.

    Returns
    -------
    tuple of Tensor
        Leaves that require a gradient.
    """
    return tuple(value.detach().requires_grad_() for value in values)


def gradient_map(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Callable[[Block, bool], Block]:
    """Turn a recorded graph into the linear map u ↦ Σ u · ∂outputs/∂inputs.

    Parameters
    ----------
    outputs : sequence of Tensor
        Some may not depend on the inputs: they add nothing.
    inputs : sequence of Tensor
        Leaves that require a gradient.

    Returns
    -------
    callable
        (K cotangents of each output, whether this is the last call) -> K gradients of each input, in one vectorised
        pass if K > 1. The graph stays for the next call, or is freed as the last one goes along.
    """
    live = [i for i, output in enumerate(outputs) if output.requires_grad]
    tensors = [outputs[i] for i in live]

    def pull(block: Block, last: bool) -> Block:
        width = block[0].shape[0]
        if not tensors:
            return [tensor.new_zeros(width, *tensor.shape) for tensor in inputs]
        cotangents = [block[i] if width > 1 else block[i][0] for i in live]
        found = torch.autograd.grad(
            tensors, inputs, cotangents, retain_graph=not last, allow_unused=True, is_grads_batched=width > 1
        )
        return [
            tensor.new_zeros(width, *tensor.shape) if gradient is None else gradient.reshape(width, *tensor.shape)
            for tensor, gradient in zip(inputs, found, strict=True)
        ]

    return pull


def push_once(
    function: Callable[[tuple[Tensor, ...]], Tensor], values: Sequence[Tensor], tangents: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute f and J t in forward mode, keeping nothing of the pass.

    Parameters
    ----------
    function : callable
        f of the values.
    values, tangents : sequence of Tensor
        Where, and in which direction.

    Returns
    -------
    outputs, tangent : Tensor
        f and its derivative along the tangents, of equal shape, without a graph.
    """
    with torch.no_grad(), forward_ad.dual_level():
        duals = tuple(forward_ad.make_dual(v.detach(), t) for v, t in zip(values, tangents, strict=True))
        outputs, tangent = forward_ad.unpack_dual(function(duals))
    return outputs, torch.zeros_like(outputs) if tangent is None else tangent


def pull_once(
    function: Callable[[tuple[Tensor, ...]], Tensor], values: Sequence[Tensor], cotangent: Tensor
) -> tuple[Tensor, ...]:
    """Compute Jᵀ u by one backward pass whose graph is freed as it goes.

    Parameters
    ----------
    function : callable
        f of the values.
    values : sequence of Tensor
        Where.
    cotangent : Tensor
        u, shaped like f.

    Returns
    -------
    tuple of Tensor
        One gradient a value.
    """
    leaves = leaves_of(values)
    with torch.enable_grad():
        outputs = function(leaves)
    if not outputs.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(outputs, leaves, cotangent, allow_unused=True, materialize_grads=True)


def push_gradient(
    function: Callable[[tuple[Tensor, ...]], Tensor], values: Sequence[Tensor], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Compute H t in forward mode over one backward pass whose graph is freed as it goes.

    Parameters
    ----------
    function : callable
        A scalar of the values.
    values, tangents : sequence of Tensor
        Where, and in which direction.

    Returns
    -------
    tuple of Tensor
        The derivative of each gradient along the tangents, without a graph.
    """

    def gradient(at: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        value, pull = torch.func.vjp(function, at)[:2]
        # not torch.func.grad, which records the backward pass too and so keeps all of it
        return pull(torch.ones_like(value), retain_graph=False, create_graph=False)[0]

    with torch.no_grad():
        return torch.func.jvp(gradient, (tuple(value.detach() for value in values),), (tangents,))[1]


def split_columns(layout: ParameterLayout, columns: Tensor) -> Block:
    """Cut K flat vectors into the shapes of the parameters.

    Parameters
    ----------
    layout : ParameterLayout
        Names, shapes and offsets.
    columns : Tensor, shape (K, P)
        One vector a row.

    Returns
    -------
    list of Tensor, shapes (K, *shape)
        In the layout's order.
    """
    k = len(columns)
    return [columns[:, layout.slice(n)].reshape(k, *s) for n, s in zip(layout.names, layout.shapes, strict=True)]


def join_columns(block: Block) -> Tensor:
    """Lay K tensors of each kind end to end; the inverse of `split_columns`.

    Parameters
    ----------
    block : list of Tensor, shapes (K, *shape)
        In the layout's order.

    Returns
    -------
    Tensor, shape (K, P)
        A copy.
    """
    return torch.cat([part.flatten(1) if part.ndim > 1 else part.unsqueeze(1) for part in block], dim=1)
