"""Hand a quantised model to torchao: the same whole numbers and scales, in its tensor type."""

import copy

import torch
from torch import nn

from hesse._optional import require
from hesse.compress.hawq.quantized import QuantizedModel
from hesse.errors import ArgumentError

__all__ = ["to_torchao"]


def to_torchao(model: QuantizedModel, template: nn.Module) -> nn.Module:
    """Copy the plain model and put torchao's integer tensors in place of the weights of its Linear layers.

    torchao's `IntxUnpackedToInt8Tensor` carries 2 to 8 bits with a scale a tensor or a channel, for `torch.export`
    backends to lower. It has no place for convolutions, attention's joint projection, rounded inputs or a zero point:
    a plan that asks for one of these is refused rather than carried in part.

    Parameters
    ----------
    model : QuantizedModel
        Frozen or not.
    template : nn.Module
        The model as it was before quantisation; copied.

    Returns
    -------
    nn.Module
        Of the class of ``template``; its outputs equal those of ``model`` up to rounding.

    Raises
    ------
    ArgumentError
        If the plan holds something torchao cannot.
    """
    if model.plan.activations:
        raise ArgumentError("to_torchao: rounded inputs cannot be carried over; quantise weights alone")
    torchao = require("torchao.quantization", extra="torchao", feature="to_torchao")
    exported = copy.deepcopy(template)
    exported.load_state_dict(model.dequantized_state_dict())
    integers = model.integers()
    for weight in model.weights:
        codes, grid = integers[weight.name]
        layers = [exported.get_submodule(layer) for layer, _ in weight.places]
        if not all(isinstance(layer, nn.Linear) for layer in layers) or bool(grid.zero_point.any()):
            raise ArgumentError(
                f"to_torchao: {weight.name} is not the weight of Linear layers alone on a symmetric grid; leave it "
                "out of the plan"
            )
        rows, columns = codes.shape
        block = (1, columns) if grid.scale.ndim else (rows, columns)
        scale = grid.scale.reshape(-1, 1)
        dtype = layers[0].get_parameter("weight").dtype
        carried = torchao.IntxUnpackedToInt8Tensor(
            qdata=codes.to(torch.int8),
            scale=scale.to(dtype),
            zero_point=torch.zeros_like(scale, dtype=torch.int8),
            target_dtype=getattr(torch, f"int{model.plan.weights[weight.name]}"),
            block_size=block,
            dtype=dtype,
            activation_quantization=None,
        )
        for layer in layers:
            layer.register_parameter("weight", nn.Parameter(carried, requires_grad=False))
    return exported
