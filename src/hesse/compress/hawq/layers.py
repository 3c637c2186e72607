"""Which weights of a model can be quantised, where each is used, and how many multiplications it takes part in."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.batches import batch_size
from hesse.curvature.hessian import Function
from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = ["QuantizableWeight", "count_macs", "quantizable_weights", "tapped_layers"]

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, slots=True)
class QuantizableWeight:
    """One weight tensor, counted once however many layers share it.

    Attributes
    ----------
    name : str
        Its first name among ``module.named_parameters()``.
    places : tuple of (str, str)
        (layer, attribute) wherever it is used.
    channel_axis : int
        The axis of output channels.
    numel : int
        Entries.
    """

    name: str
    places: tuple[tuple[str, str], ...]
    channel_axis: int
    numel: int

    @property
    def layer(self) -> str:
        """The layer whose input meets this weight: the first that computes with it."""
        return self.places[0][0]


def quantizable_weights(module: nn.Module, layers: Iterable[str] | None = None) -> list[QuantizableWeight]:
    """List the weights of Linear, Conv1d/2d/3d, MultiheadAttention and transformers' Conv1D layers.

    A weight that such a layer shares with any other, as a language model's head does with its embedding, is one entry
    with all its places. Embeddings and normalisations by themselves are left alone.

    Parameters
    ----------
    module : nn.Module
        The model.
    layers : iterable of str, optional
        Only these, by the name of the weight ("fc1.weight") or of its layer ("fc1"). Default: all.

    Returns
    -------
    list of QuantizableWeight
        In the order of ``module.named_parameters()``.

    Raises
    ------
    ArgumentError
        If a name is unknown, or nothing is left.
    ArgumentTypeError
        If ``module`` is no module.
    """
    call = "quantizable_weights"
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(f"{call}: expected a module, got {type(module).__name__}")
    uses: dict[int, list[tuple[str, str, int | None]]] = {}
    for path, part in module.named_modules():
        for attribute, tensor in part.named_parameters(recurse=False):
            uses.setdefault(id(tensor), []).append((path, attribute, _channel_axis(part, attribute)))
    # named_modules and named_parameters skip what they have met; a shared layer is one place, a shared weight several
    found: list[QuantizableWeight] = []
    for name, parameter in module.named_parameters():
        places = uses[id(parameter)]
        axes = [axis for _, _, axis in places if axis is not None]
        if axes and parameter.numel():
            ordered = sorted(places, key=lambda place: place[2] is None)  # layers that multiply with it come first
            found.append(QuantizableWeight(name, tuple(p[:2] for p in ordered), axes[0], parameter.numel()))
    if layers is not None:
        found = _chosen(call, found, layers)
    if not found:
        raise ArgumentError(f"{call}: {type(module).__name__} has no Linear, Conv or MultiheadAttention layer")
    return found


def _chosen(call: str, found: list[QuantizableWeight], layers: Iterable[str]) -> list[QuantizableWeight]:
    wanted = {layers} if isinstance(layers, str) else set(layers)
    known = {name for weight in found for name in (weight.name, *(path for path, _ in weight.places))}
    if unknown := sorted(wanted - known) or ([] if wanted else ["none"]):
        raise ArgumentError(
            f"{call}: layers must be some of {', '.join(w.name for w in found)}; got {', '.join(unknown)}"
        )
    return [w for w in found if w.name in wanted or any(path in wanted for path, _ in w.places)]


def _channel_axis(part: nn.Module, attribute: str) -> int | None:
    if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and attribute == "weight":
        return 0
    if isinstance(part, nn.MultiheadAttention) and attribute in _ATTENTION_WEIGHTS:
        return 0
    if type(part).__name__ == "Conv1D" and attribute == "weight":  # transformers' GPT-2 keeps its weights transposed
        return 1
    return None


def tapped_layers(module: nn.Module, weights: Iterable[QuantizableWeight]) -> list[str]:
    """List the layers whose input can be seen: not the output projection of MultiheadAttention, which is never called.

    Parameters
    ----------
    module : nn.Module
        The model.
    weights : iterable of QuantizableWeight
        Its weights.

    Returns
    -------
    list of str
        Every layer once, in order.
    """
    inside = {
        f"{path}.out_proj" if path else "out_proj"
        for path, part in module.named_modules()
        if isinstance(part, nn.MultiheadAttention)
    }
    return list(dict.fromkeys(weight.layer for weight in weights if weight.layer not in inside))


def count_macs(
    module: nn.Module, forward_fn: Function, batch: Any, *, layers: Iterable[str] | None = None
) -> dict[str, int]:
    """Count multiplications of every weight in one forward pass, for one example.

    Parameters
    ----------
    module : nn.Module
        The model; left as it was.
    forward_fn : callable
        (model, batch) -> anything: how to run the model; a loss function serves.
    batch : object
        One batch, examples along the leading axis of its first tensor.
    layers : iterable of str, optional
        As in `quantizable_weights`.

    Returns
    -------
    dict of str to int
        By the name of the weight: entries times positions. Products without a weight, as of attention scores, are not
        counted; a layer that does not run counts 0.
    """
    weights = quantizable_weights(module, layers)
    names = {(path, attribute): weight.name for weight in weights for path, attribute in weight.places}
    counts = dict.fromkeys((weight.name for weight in weights), 0)
    handles: list[Any] = []

    def watch(path: str, part: nn.Module) -> None:
        def add(_part: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            for attribute, times in _positions(part, inputs, outputs).items():
                key = (
                    (f"{path}.out_proj" if path else "out_proj", "weight") if attribute == "out" else (path, attribute)
                )
                if key in names:
                    counts[names[key]] += times

        handles.append(part.register_forward_hook(add))

    for path, part in module.named_modules():
        watch(path, part)
    try:
        with torch.no_grad():
            forward_fn(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    examples = batch_size(batch)
    return {name: count // examples for name, count in counts.items()}


def _positions(part: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> dict[str, int]:
    # multiplications of each weight of this layer over the whole batch
    if isinstance(part, nn.MultiheadAttention):
        query, key, value = (_rows(x) for x in inputs[:3])
        e = part.embed_dim
        return {
            "in_proj_weight": (query + key + value) * e * e,
            "q_proj_weight": query * e * e,
            "k_proj_weight": key * e * (part.kdim or e),
            "v_proj_weight": value * e * (part.vdim or e),
            "out": query * e * e,
        }
    weight = getattr(part, "weight", None)
    if not isinstance(weight, Tensor) or not isinstance(outputs, Tensor) or _channel_axis(part, "weight") is None:
        return {}
    channels = weight.shape[1 if type(part).__name__ == "Conv1D" else 0]
    return {"weight": outputs.numel() // channels * weight.numel()}


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]
