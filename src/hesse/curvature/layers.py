"""Which layers of a model are tracked, and how each is read as one matrix acting on rows of inputs.

Every tracked layer computes s = W ã with W of shape (p, m), where ã is the input, with a 1 appended if there is a bias.
Shapes: B sequences, T positions, m inputs (bias not counted), p outputs.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesse.curvature.routed import RoutedLinear
from hesse.curvature.stored_weights import holds_quantised
from hesse.errors import ArgumentError, ShapeError

__all__ = ["TrackedLayer", "output_embedding", "select_layers"]

Picker = str | Callable[[str, nn.Module], bool]

_MLP = re.compile(
    r"(^|[._])(mlp|ffn|feed_forward|feedforward|intermediate|output|dense_act|DenseReluDense|experts?|fc1|fc2)([._]|$)"
)
_ADAPTER = re.compile(r"\.lora_[AB]\.")
_ATTENTION = re.compile(r"(^|[._])(\w*attn\w*|\w*attention\w*|SelfAttention|EncDecAttention)([._]|$)")


@dataclass(frozen=True, slots=True)
class TrackedLayer:
    """One weight matrix of the model, with the reshaping that turns its inputs and output gradients into rows.

    ``in_features`` does not count the bias; ``columns`` does, and is the m of every factor, gradient and table.
    """

    name: str
    module: nn.Module
    in_features: int
    out_features: int
    has_bias: bool

    @property
    def columns(self) -> int:
        """Columns of the gradient matrix: inputs, and one more for the bias."""
        return self.in_features + self.has_bias

    @property
    def reads(self) -> tuple[object, ...]:
        """Equal for two layers if and only if they make the same rows of the same input."""
        if isinstance(self.module, (nn.Conv1d, nn.Conv2d)):
            window = self.module
            return (self.columns, window.kernel_size, window.stride, window.padding, window.dilation)
        # an expert's rows are its own, although tensors of no rows all have the same address
        return (self.columns, self.name) if isinstance(self.module, RoutedLinear) else (self.columns,)

    def inputs(self, x: Tensor) -> Tensor:
        """Read the module's input as rows.

        Parameters
        ----------
        x : Tensor, shape (B, m), (B, ..., m), or (B, channels, ...) of a convolution
            What the module received.

        Returns
        -------
        Tensor, shape (B, T, m)
            T is 1 without further dimensions; a convolution has one position for every place of its kernel.
        """
        if isinstance(self.module, (nn.Conv1d, nn.Conv2d)):
            return _unfold(self.module, x)
        return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)

    def output_grads(self, grad: Tensor) -> Tensor:
        """Read the gradient of the module's output as rows.

        Parameters
        ----------
        grad : Tensor, shape (B, p), (B, ..., p), or (B, channels, ...) of a convolution
            Shaped like the module's output.

        Returns
        -------
        Tensor, shape (B, T, p)
            Position by position as in `inputs`.
        """
        if isinstance(self.module, (nn.Conv1d, nn.Conv2d)):
            return grad.flatten(2).transpose(1, 2)
        return grad.unsqueeze(1) if grad.dim() == 2 else grad.flatten(1, -2)

    def matrix_from_grads(self, grads: Mapping[str, Tensor]) -> Tensor:
        """Join the gradients of weight and bias into one matrix.

        Parameters
        ----------
        grads : mapping of str to Tensor
            By the model's parameter names; others are passed over.

        Returns
        -------
        Tensor, shape (p, columns)
            Bias in the last column.

        Raises
        ------
        ArgumentError
            If the weight or the bias is missing.
        """
        names = self._parameter_names()
        missing = [name for name in names if name not in grads]
        if missing:
            raise ArgumentError(f"grads: no gradient named {missing[0]!r}, which the tracked layer {self.name!r} has")
        weight = grads[names[0]]
        weight = weight.T if _is_transposed(self.module) else weight.flatten(1)
        return torch.cat([weight, grads[names[1]][:, None]], 1) if self.has_bias else weight

    def grads_from_matrix(self, matrix: Tensor) -> dict[str, Tensor]:
        """Split a matrix into tensors shaped like weight and bias; the inverse of `matrix_from_grads`.

        Parameters
        ----------
        matrix : Tensor, shape (p, columns)
            Bias in the last column.

        Returns
        -------
        dict of str to Tensor
            By the model's parameter names.
        """
        names = self._parameter_names()
        weight = matrix[:, : self.in_features]
        shape = getattr(self.module, "weight").shape  # noqa: B009  (nn.Module's stub has no such attribute)
        out = {names[0]: weight.T if _is_transposed(self.module) else weight.reshape(shape)}
        if self.has_bias:
            out[names[1]] = matrix[:, self.in_features]
        return out

    def _parameter_names(self) -> list[str]:
        prefix = f"{self.name}." if self.name else ""  # the model itself may be the layer
        return [f"{prefix}weight", f"{prefix}bias"] if self.has_bias else [f"{prefix}weight"]


def select_layers(model: nn.Module, modules: Picker = "mlp", *, allow_head: bool = False) -> dict[str, TrackedLayer]:
    """Pick the layers to track, in the order in which the model lists them.

    Parameters
    ----------
    model : nn.Module
        Any module. In a transformer (it has ``config.model_type``), "mlp" and "attention" go by the usual names of
        submodules; in any other module "mlp" means every supported layer.
    modules : str or callable, default "mlp"
        "mlp" (the paper's choice), "attention", "all-linear", a regular expression searched in the dotted name,
        or ``(name, module) -> bool``. Of a model with LoRA adapters the first three mean the adapters' matrices: the
        weights beneath were not trained.
    allow_head : bool, default False
        Whether the output embedding of a language model may be tracked: its S factor is vocabulary squared.

    Returns
    -------
    dict[str, TrackedLayer]
        Name to layer.

    Raises
    ------
    ArgumentError
        If nothing matches, if a picked module is of a kind that cannot be tracked or its weight is quantised, if it is
        the output embedding (with the size that its factors would have), or if two picked modules share one weight.
    """
    is_transformer = hasattr(getattr(model, "config", None), "model_type")
    pick = _picker(modules, is_transformer)
    head = output_embedding(model)
    named_kind = modules in ("mlp", "attention", "all-linear")
    adapters = named_kind and any(_ADAPTER.search(name) for name, _module in model.named_modules())
    layers: dict[str, TrackedLayer] = {}
    for name, module in model.named_modules():
        if next(module.children(), None) is not None or not pick(name, module):
            continue
        if adapters and not _ADAPTER.search(name):
            continue
        if module is head and not allow_head:
            if named_kind:
                continue
            vocab = getattr(module, "weight").shape[0]  # noqa: B009
            raise ArgumentError(
                f"modules: {name!r} is the output embedding; its S factor alone would take {vocab**2 * 4 / 2**30:.1f} "
                "GiB "
                f"({vocab} x {vocab}). Leave it out, or pass allow_head=True if that fits."
            )
        if holds_quantised(module) and (_is_supported(module) or not named_kind):
            raise ArgumentError(
                f"modules: {name!r} is a {type(module).__name__} with a quantised weight, which has no gradient to "
                "track. Track adapters over it (every named choice of modules means them where there are any), or load "
                "the model unquantised"
            )
        if _is_supported(module):
            layers[name] = _track(name, module)
        elif not named_kind and next(module.parameters(recurse=False), None) is not None:
            raise ArgumentError(
                f"modules: {name!r} is a {type(module).__name__}, which cannot be tracked (only Linear, Conv1D, "
                "Conv1d, Conv2d)"
            )
    if not layers:
        raise ArgumentError(
            f"modules: {modules!r} matches no Linear, Conv1D, Conv1d or Conv2d layer of {type(model).__name__}"
            + ("; try 'all-linear'" if modules in ("mlp", "attention") else "")
        )
    _refuse_shared_weights(layers)
    return layers


def _picker(modules: Picker, is_transformer: bool) -> Callable[[str, nn.Module], bool]:
    if callable(modules):
        return modules
    if modules == "all-linear" or (modules == "mlp" and not is_transformer):
        return lambda _name, module: _is_supported(module)
    if modules == "attention":
        return lambda name, module: _is_supported(module) and bool(_ATTENTION.search(name))
    if modules == "mlp":
        return lambda name, module: _is_supported(module) and bool(_MLP.search(name)) and not _ATTENTION.search(name)
    try:
        pattern = re.compile(modules)
    except re.error as error:
        raise ArgumentError(
            f"modules: {modules!r} is neither mlp, attention, all-linear nor a regular expression ({error})"
        ) from error
    return lambda name, _module: bool(name) and bool(pattern.search(name))


def output_embedding(model: nn.Module) -> nn.Module | None:
    """Find the layer whose outputs are the logits of a vocabulary.

    Parameters
    ----------
    model : nn.Module
        Any.

    Returns
    -------
    nn.Module or None
        As a model of transformers tells; None of any other.
    """
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return head if isinstance(head, nn.Module) else None


def _is_transposed(module: nn.Module) -> bool:
    # transformers' Conv1D is a Linear that keeps its weight as (in, out); known by name so that transformers stays
    # optional
    return type(module).__name__ == "Conv1D"


def _is_supported(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) or _is_transposed(module)


def _track(name: str, module: nn.Module) -> TrackedLayer:
    weight: Tensor = getattr(module, "weight")  # noqa: B009
    has_bias = getattr(module, "bias", None) is not None
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise ArgumentError(
                f"modules: {name!r} has groups, padding by name, or a padding mode other than zeros, which cannot be "
                "tracked"
            )
        return TrackedLayer(name, module, weight[0].numel(), weight.shape[0], has_bias)
    rows, columns = weight.shape
    if _is_transposed(module):
        return TrackedLayer(name, module, rows, columns, has_bias)
    return TrackedLayer(name, module, columns, rows, has_bias)


def _refuse_shared_weights(layers: Mapping[str, TrackedLayer]) -> None:
    owner: dict[int, str] = {}
    for name, layer in layers.items():
        first = owner.setdefault(id(getattr(layer.module, "weight")), name)  # noqa: B009
        if first != name:
            raise ArgumentError(f"modules: {first!r} and {name!r} share one weight; track it under one name only")


def _unfold(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    pair = [
        (1, value[0]) if len(value) == 1 else value for value in (module.kernel_size, module.dilation, module.stride)
    ]
    if isinstance(module.padding, str):
        raise ArgumentError(f"modules: a {type(module).__name__} with padding={module.padding!r} cannot be tracked")
    padding = (0, module.padding[0]) if len(module.padding) == 1 else module.padding
    image = x.unsqueeze(-2) if isinstance(module, nn.Conv1d) else x
    if image.dim() != 4:
        raise ShapeError(
            f"capture: a {type(module).__name__} received an input of shape {tuple(x.shape)}; a batch dimension is "
            "needed"
        )
    return F.unfold(image, pair[0], pair[1], padding, pair[2]).transpose(1, 2)
