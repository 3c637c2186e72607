"""A module as a graph of ATen operators, with the names of its parameters and the norms it hides."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hesse.compress.graph.norms import CountedLayerNorm, CountedRMSNorm
from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = ["Trace", "call_arguments", "rms_norm_eps", "shadow_copy", "trace", "unfused_attention"]


@dataclass(frozen=True, slots=True)
class Trace:
    """What `trace` found."""

    graph: fx.Graph
    parameters: dict[str, str]  # placeholder -> name; tied parameters have one name
    buffers: dict[str, str]
    submodules: nn.Module  # holds the constants that the graph refers to


class _PlainLayerNorm(nn.Module):
    # stands in for a layer norm that counts what was cut before
    def __init__(self, norm: CountedLayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class _PlainRMSNorm(nn.Module):
    # stands in for a class that spells RMS norm in many operators, so that the graph shows one
    def __init__(self, weight: nn.Parameter | None, eps: float | None) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # positional and keyword arguments of a call, from a tensor, a tuple or list, or a mapping of names
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    raise ArgumentTypeError(
        "DependencyGraph: example_inputs must be a tensor, a tuple of arguments or a mapping of keyword arguments; "
        f"got {type(example_inputs).__name__}"
    )


def shadow_copy(module: nn.Module) -> nn.Module:
    # copy the tree of modules, whose parameters and buffers are the very tensors of the original
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def rms_norm_eps(module: nn.Module) -> float | None:
    # the ε of a module that is an RMS norm in all but class, found by trying it; None for any other
    names = [name for name, _ in module.named_parameters()]
    if isinstance(module, nn.RMSNorm | nn.LayerNorm | CountedRMSNorm) or names != ["weight"] or list(module.children()):
        return None
    weight = module.get_parameter("weight").detach()
    eps = next((e for name in ("eps", "variance_epsilon") if isinstance(e := getattr(module, name, None), float)), None)
    if weight.ndim != 1 or eps is None or weight.device.type == "meta":
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, len(weight), generator=generator).to(weight)
    # a weight of ones would hide a norm that scales by 1 + w, or after rounding
    try:
        with torch.no_grad():
            found = module(x)
    except (TypeError, RuntimeError, ValueError, NotImplementedError):
        return None  # takes other arguments than one tensor: not a norm
    wanted = F.rms_norm(x.double(), weight.shape, weight.double(), eps)
    close = isinstance(found, Tensor) and found.shape == x.shape
    return eps if close and torch.allclose(found.double(), wanted, rtol=1e-2, atol=1e-3) else None


def _plain_norm(module: nn.Module) -> nn.Module | None:
    if isinstance(module, CountedLayerNorm):
        return _PlainLayerNorm(module)
    if isinstance(module, CountedRMSNorm):
        return _PlainRMSNorm(module.weight, module.eps)
    eps = rms_norm_eps(module)
    return None if eps is None else _PlainRMSNorm(module.get_parameter("weight"), eps)


@contextmanager
def unfused_attention() -> Iterator[None]:
    # keep nn.TransformerEncoderLayer from the one fused operator that hides its layers
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def trace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    # export a copy of the module with torch.export; the module itself, its mode and its buffers stay as they are
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(f"DependencyGraph: expected a torch.nn.Module, got {type(module).__name__}")
    shadow = shadow_copy(module)
    for path, child in list(shadow.named_modules()):
        plain = _plain_norm(child)
        if plain is not None and path:
            shadow.set_submodule(path, plain)
    try:
        with torch.no_grad(), unfused_attention():
            program = torch.export.export(shadow, args, kwargs, strict=False)
    except Exception as error:  # torch.export has no base class of its own for what it cannot trace
        raise ArgumentError(
            "DependencyGraph: torch.export could not trace the module; control flow that depends on data must be moved "
            f"out of it, or the part that has it pruned by itself. It said: {error}"
        ) from error
    names: dict[int, str] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        names.setdefault(id(tensor), name)
    tensors = dict(shadow.named_parameters(remove_duplicate=False)) | dict(shadow.named_buffers(remove_duplicate=False))
    signature = program.graph_signature
    parameters = {k: names[id(tensors[v])] for k, v in signature.inputs_to_parameters.items()}
    buffers = {k: names[id(tensors[v])] for k, v in signature.inputs_to_buffers.items()}
    return Trace(program.graph, parameters, buffers, program.graph_module)
