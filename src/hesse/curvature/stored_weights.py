"""How the weights of a model are stored: as floating-point numbers, or as integers with scales beside them.

A quantised weight takes part in the forward pass and hands gradients down to its inputs, but has no gradient itself:
layers above and beside it (adapters) can be tracked, it cannot. Known by what they store, not by the library: packed
integers (bitsandbytes), tensors that wrap others (torchao), one-byte floats.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hesse.errors import ArgumentError

__all__ = [
    "floating_dtype",
    "gradients_pass",
    "holds_quantised",
    "is_quantised",
    "keep_differentiable",
    "parts_of_quantised",
]

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_PACKED = (torch.int8, torch.uint8, torch.int16, torch.int32)  # int64 holds indices
# attributes of bitsandbytes: of a layer, whether it may change its weight's order; of a weight, whether it has
_FAST_KERNEL, _CHANGED = "support_avx512bf16_for_cpu", "packing_format_for_cpu"


def is_quantised(weight: Tensor) -> bool:
    """Tell whether a weight is stored in fewer bits than it is used in.

    Parameters
    ----------
    weight : Tensor
        A parameter or buffer.

    Returns
    -------
    bool
        False of a distributed tensor, which wraps its shard.
    """
    if weight.dtype not in _FLOATING:
        return True
    return is_traceable_wrapper_subclass(weight) and not _is_distributed(weight)


def holds_quantised(module: nn.Module) -> bool:
    """Tell whether a module's own weight is quantised, as a parameter or as a matrix of integers in a buffer.

    Parameters
    ----------
    module : nn.Module
        One layer; what lies below it is not looked at.

    Returns
    -------
    bool
        Also true of a matrix of small integers that is no weight, which nobody can track either.
    """
    if any(is_quantised(parameter) for parameter in module.parameters(recurse=False)):
        return True
    return any(buffer.dim() >= 2 and buffer.dtype in _PACKED for buffer in module.buffers(recurse=False))


def parts_of_quantised(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Take a tensor that wraps others apart, down to those that have bytes of their own.

    Parameters
    ----------
    name : str
        Of the tensor.
    tensor : Tensor
        Any.

    Yields
    ------
    (str, Tensor)
        The tensor itself unless it is a wrapper; else its parts, as ``name.part``.
    """
    if not is_traceable_wrapper_subclass(tensor) or _is_distributed(tensor):
        yield name, tensor
        return
    attributes, _context = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
    for attribute in attributes:
        yield from parts_of_quantised(f"{name}.{attribute}", getattr(tensor, attribute))


def keep_differentiable(model: nn.Module) -> None:
    """Keep quantised layers from turning, in a call without gradients, to a kernel that has no backward pass.

    A 4-bit layer of bitsandbytes does so on processors with bfloat16 units, and lays its weight out anew for it, with
    scales rounded to bfloat16; it has no exact way back. That kernel is switched off, for good: a later call without
    gradients would change the model between fit and scores.

    Parameters
    ----------
    model : nn.Module
        Any; other layers are left alone.

    Raises
    ------
    ArgumentError
        Naming the first layer that has changed already.
    """
    for name, module in model.named_modules():
        if not hasattr(module, _FAST_KERNEL):
            continue
        if getattr(getattr(getattr(module, "weight", None), "quant_state", None), _CHANGED, False):
            raise ArgumentError(
                f"model: {name!r}, a {type(module).__name__}, was called without gradients and has laid its weight out "
                "for a kernel that has no backward pass. Load the model again, and hand it over before it is called"
            )
        setattr(module, _FAST_KERNEL, False)


@contextmanager
def gradients_pass(model: nn.Module) -> Iterator[None]:
    """See to it that quantised layers hand gradients down to their inputs inside the block.

    Parameters
    ----------
    model : nn.Module
        Any; see `keep_differentiable`. Without quantised layers nothing is done.

    Yields
    ------
    None
        Nothing. A forward pass inside the block raises ArgumentError, naming the layer, where a gradient would be cut.
    """
    keep_differentiable(model)
    handles = [
        module.register_forward_hook(_watch(name))
        for name, module in model.named_modules()
        if next(module.children(), None) is None and holds_quantised(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def floating_dtype(model: nn.Module) -> torch.dtype:
    """Tell what a model computes in: the dtype of its first parameter that holds floating-point numbers.

    Parameters
    ----------
    model : nn.Module
        Its base may be quantised: packed integers are passed over.

    Returns
    -------
    dtype
        float64, float32, bfloat16 or float16.

    Raises
    ------
    ArgumentError
        If it has no such parameter.
    """
    for parameter in model.parameters():
        if parameter.dtype in _FLOATING:
            return parameter.dtype
    raise ArgumentError(f"model: {type(model).__name__} has no floating-point parameter")


def _watch(name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        above = isinstance(output, Tensor) and not output.requires_grad and torch.is_grad_enabled()
        if above and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            raise ArgumentError(
                f"model: {name!r}, a {type(module).__name__} with a quantised weight, hands no gradient down to its "
                "input, so layers below it cannot be tracked; its kernel has no backward pass"
            )

    return hook


def _is_distributed(tensor: Tensor) -> bool:
    # where nobody has imported it, which takes seconds, there is no distributed tensor
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
