"""Models whose parameters are sharded over the ranks (``fully_shard``): read whole, one parameter at a time.

The hooks sit on inner modules and see whole activations; only the weights between two uses are in shards.
"""

import sys
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from hesse.curvature.stored_weights import holds_quantised, parts_of_quantised

__all__ = ["is_sharded", "whole_tensors"]


class _Whole(Mapping[str, Tensor]):
    """Parameters and buffers by name, each brought together only when it is asked for, by all ranks at once."""

    def __init__(self, model: nn.Module) -> None:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **dict(_scales(model))}
        self._tensors = dict(part for name, tensor in tensors.items() for part in parts_of_quantised(name, tensor))

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name].detach()
        return tensor.full_tensor() if _is_shard(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def is_sharded(model: nn.Module) -> bool:
    """Tell whether the ranks hold shards of a model, so that they must run it in step.

    Parameters
    ----------
    model : nn.Module
        Any.

    Returns
    -------
    bool
        Whether a parameter is a distributed tensor.
    """
    return any(_is_shard(parameter) for parameter in model.parameters())


def whole_tensors(model: nn.Module) -> Mapping[str, Tensor]:
    """Read parameters and buffers as on one process.

    Parameters
    ----------
    model : nn.Module
        Any. Of a sharded one all ranks must ask for the same names in the same order.

    Returns
    -------
    mapping of str to Tensor
        Detached; a sharded one is whole only while the caller holds it.
    """
    return _Whole(model)


def _scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    # what a quantised layer saves beside its parameters and buffers: integers alone do not say what the weight is
    for prefix, module in model.named_modules():
        if next(module.children(), None) is None and holds_quantised(module):
            for name, tensor in module.state_dict(prefix=f"{prefix}." if prefix else "").items():
                if isinstance(tensor, Tensor):
                    yield name, tensor


def _is_shard(tensor: Tensor) -> bool:
    # where nobody has imported it, which takes seconds, there is no distributed tensor
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
