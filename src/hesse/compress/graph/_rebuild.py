"""A module without the places that were cut: parameters, sizes kept as attributes, norms that count."""

import re
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hesse.compress.graph._attention import CutMultiheadAttention
from hesse.compress.graph._trace import rms_norm_eps, shadow_copy
from hesse.compress.graph.dependency import DependencyGraph
from hesse.compress.graph.norms import CountedLayerNorm, CountedRMSNorm
from hesse.errors import ArgumentError

__all__ = ["AttributeChoice", "rebuild"]

AttributeChoice = Literal["all", "counts", "widths"]
# attributes that may hold a number of channels; others of the same value (a layer's index, a seed) are let alone
_SIZE_NAMES = re.compile(r"head|dim|channel|chan|embd|embed|size|width|feature|hidden|planes|inner|units")
_WIDTH_NAMES = re.compile(r"dim|size|width")
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_NORMS = (nn.modules.batchnorm._NormBase,)


def rebuild(
    graph: DependencyGraph, kept: Mapping[str, Mapping[int, Tensor]], cut: Tensor, choice: AttributeChoice
) -> nn.Module:
    """Copy a module without the places that were cut.

    Parameters
    ----------
    graph : DependencyGraph
        Of the module.
    kept : mapping
        Parameter or buffer -> dimension -> places that stay.
    cut : Tensor, shape (G,)
        bool.
    choice : {"all", "counts", "widths"}
        Where attributes of equal value could hold a size that shrank: all of them, those whose names speak of a
        number, or those whose names speak of a width.

    Returns
    -------
    nn.Module
        It shares no memory with the original.
    """
    names = {id(t): n for n, t in [*graph.module.named_parameters(), *graph.module.named_buffers()]}
    module = shadow_copy(graph.module)
    made: dict[int, Tensor] = {}
    for owner in list(module.modules()):
        for store in (owner._parameters, owner._buffers):
            for key, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _cut_tensor(tensor, kept.get(names.get(id(tensor), ""), {}))
                cast("dict[str, Tensor]", store)[key] = made[id(tensor)]
    old_sizes = dict(graph.module.named_modules())
    for path, owner in list(module.named_modules()):
        _update_sizes(owner, old_sizes[path])
    _update_moved(graph, module, cut, choice)
    for path, owner in list(module.named_modules()):
        replacement = _replacement(owner, old_sizes[path], path, graph, kept, cut)
        if replacement is not None:
            replacement.train(owner.training)
            module.set_submodule(path, replacement)
    return module


def _cut_tensor(tensor: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    found = tensor.detach()
    for dim, index in places.items():
        found = found.index_select(dim, index.to(found.device))
    found = found.clone()
    return nn.Parameter(found, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found


def _update_sizes(new: nn.Module, old: nn.Module) -> None:
    # set the attributes of a module by the shapes of its own parameters
    weight, before = (m._parameters.get("weight") for m in (new, old))
    own: Any = new
    if isinstance(new, CountedLayerNorm | CountedRMSNorm):
        return  # the count is that of the uncut vector
    if weight is not None and before is not None and weight.shape == before.shape:
        return
    if isinstance(new, nn.Linear) and weight is not None:
        own.out_features, own.in_features = weight.shape
    elif isinstance(new, _CONVOLUTIONS) and weight is not None and before is not None:
        if own.groups > 1:
            own.groups = own.groups * weight.shape[0] // before.shape[0]
        first, second = weight.shape[0], weight.shape[1] * own.groups
        own.in_channels, own.out_channels = (first, second) if new.transposed else (second, first)
    elif isinstance(new, _NORMS) and weight is not None:
        own.num_features = len(weight)
    elif isinstance(new, nn.GroupNorm) and weight is not None:
        own.num_groups, own.num_channels = own.num_groups * len(weight) // own.num_channels, len(weight)
    elif isinstance(new, nn.Embedding) and weight is not None:
        own.embedding_dim = weight.shape[1]
    elif isinstance(new, nn.PReLU) and weight is not None:
        own.num_parameters = len(weight)
    else:
        for key, tensor in new._parameters.items():
            earlier = old._parameters.get(key)
            if tensor is not None and earlier is not None:
                for was, now in zip(earlier.shape, tensor.shape, strict=True):
                    _replace(new, [k for k, v in vars(old).items() if type(v) is int and v == was], now)


def _update_moved(graph: DependencyGraph, module: nn.Module, cut: Tensor, choice: AttributeChoice) -> None:
    # set attributes that code uses as a size where a tensor is reshaped or split
    originals = dict(graph.module.named_modules())
    for owner, roots, numbers in graph._moved:
        gone = _gone(roots, numbers, cut)
        if owner not in originals or not bool(gone.any()):
            continue
        for dim, size in enumerate(roots.shape):
            others = [d for d in range(roots.ndim) if d != dim]
            left = int((~gone.amin(others) if others else ~gone).sum())
            if left != size:
                _replace(module.get_submodule(owner), _size_names(originals[owner], size, choice), left)


def _gone(roots: Tensor, numbers: Mapping[int, int], cut: Tensor) -> Tensor:
    values, inverse = torch.unique(roots, return_inverse=True)
    flags = torch.tensor([int(v) in numbers and bool(cut[numbers[int(v)]]) for v in values])
    return flags[inverse].reshape(roots.shape)


def _replacement(
    new: nn.Module,
    old: nn.Module,
    path: str,
    graph: DependencyGraph,
    kept: Mapping[str, Mapping[int, Tensor]],
    cut: Tensor,
) -> nn.Module | None:
    if isinstance(new, nn.MultiheadAttention):
        name = f"{path}.in_proj_weight" if path else "in_proj_weight"
        return _cut_attention(new, old, kept.get(name, {}).get(0))
    if isinstance(new, nn.LayerNorm) and isinstance(old, nn.LayerNorm) and len(new.normalized_shape) == 1:
        weight = new.weight
        if weight is None or len(weight) == old.normalized_shape[0]:
            return None
        bias = None if new.bias is None else new.bias.detach()
        return _like(CountedLayerNorm(weight.detach(), bias, old.normalized_shape[0], new.eps), new)
    lost = next((int(_gone(r, n, cut).sum()) for owner, r, n in graph._norms if owner == path), 0)
    if not lost or isinstance(old, CountedLayerNorm | CountedRMSNorm):
        return None
    if isinstance(old, nn.RMSNorm):
        weight = None if new._parameters["weight"] is None else new.get_parameter("weight").detach()
        return _like(CountedRMSNorm(weight, old.normalized_shape[0], old.eps), new)
    eps = rms_norm_eps(old)
    if eps is not None:
        return _like(CountedRMSNorm(new.get_parameter("weight").detach(), len(old.get_parameter("weight")), eps), new)
    raise ArgumentError(
        f"slim: {path or 'the module'} ({type(old).__name__}) norms channels that were cut in code of its own; leave "
        "them out with skip=, or norm by torch.nn.LayerNorm or RMSNorm"
    )


def _like(replacement: nn.Module, source: nn.Module) -> nn.Module:
    # the parameters of the cut module itself, which may be tied or frozen
    for name, parameter in source.named_parameters(recurse=False):
        replacement.register_parameter(name, parameter)
    return replacement


def _cut_attention(new: nn.MultiheadAttention, old: nn.Module, rows: Tensor | None) -> nn.Module | None:
    if not isinstance(old, nn.MultiheadAttention) or new.in_proj_weight is None:
        return None
    if new.in_proj_weight.shape == old.in_proj_weight.shape:
        return None
    if new.bias_k is not None or new.add_zero_attn:
        raise ArgumentError("slim: nn.MultiheadAttention with bias_k or add_zero_attn cannot be cut; use skip=")
    heads = old.num_heads
    if rows is not None:
        left = torch.zeros(len(old.in_proj_weight), dtype=torch.bool)
        left[rows] = True
        heads = int(left.reshape(3, old.num_heads, -1)[0].any(1).sum())
    bias = None if new.in_proj_bias is None else new.in_proj_bias.detach()
    made = CutMultiheadAttention(
        new.in_proj_weight.detach(), bias, new.out_proj, heads, old.head_dim**-0.5, new.dropout, new.batch_first
    )
    return _like(made, new)


def _size_names(old: nn.Module, size: int, choice: AttributeChoice) -> list[str]:
    # attributes that may hold this size; a number of heads can equal their width, then the choice decides
    names = [k for k, v in vars(old).items() if type(v) is int and v == size and _SIZE_NAMES.search(k.lower())]
    if len(names) < 2 or choice == "all":
        return names
    return [name for name in names if bool(_WIDTH_NAMES.search(name.lower())) == (choice == "widths")]


def _replace(new: nn.Module, names: list[str], value: int) -> None:
    for name in names:
        setattr(new, name, value)
