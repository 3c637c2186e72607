"""Mixtures of experts: what transformers keeps in one tensor, as layers that can be tracked."""

from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.routed import RoutedLinear
from hesse.errors import ArgumentError

__all__ = ["has_fused_experts", "split_experts"]


def split_experts(model: nn.Module) -> nn.Module:
    """Give every expert of a mixture its own two layers, in place; the model computes the same.

    transformers keeps the matrices of a block's experts in one tensor (E, 2 d_ff, d), which no module applies: there is
    nothing to track. Afterwards they are layers ``...experts.up.7`` and ``...experts.down.7``, each with factors of its
    own, from the positions that the router sends there. The weights are views of the old ones, not copies; the names in
    the state dict change.

    Cost: one product an expert instead of a grouped one, which on a GPU is slower where many experts see few positions.

    Parameters
    ----------
    model : nn.Module
        Any; one without fused experts is left as it is.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    ArgumentError
        If its experts do more than two products and a gate.

    Examples
    --------
    >>> split_experts(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    for parent, name, child in found:
        if _is_fused(child):
            if getattr(child, "has_post_expert_norm", False):
                raise ArgumentError(f"model: the experts of {type(child).__name__} are normalised, and cannot be split")
            setattr(parent, name, _SplitExperts(child).train(child.training))
    return model


def has_fused_experts(model: nn.Module) -> bool:
    """Tell whether `split_experts` would change a model.

    Parameters
    ----------
    model : nn.Module
        Any.

    Returns
    -------
    bool
        True if some module holds its experts in one tensor.
    """
    return any(_is_fused(module) for module in model.modules())


def _is_fused(module: nn.Module) -> bool:
    # by what transformers says of such a module, so that transformers stays optional
    down = getattr(module, "down_proj", None)
    return isinstance(down, nn.Parameter) and down.dim() == 3 and hasattr(module, "has_gate")


class _SplitExperts(nn.Module):
    """Experts one after the other: y = Σ_e w_e down_e(gate(up_e(x))), over those that the router chose."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        first = "gate_up_proj" if fused.has_gate else "up_proj"
        self.up = _layers(fused, first)
        self.down = _layers(fused, "down_proj")
        # the gate is a method of the fused module, which must not be a child: its weights would count twice
        self._gate = [fused._apply_gate if fused.has_gate else fused.act_fn]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Mix the outputs of the chosen experts.

        Parameters
        ----------
        hidden_states : Tensor, shape (B T, d)
            Flattened batch.
        top_k_index, top_k_weights : Tensor, shape (B T, k)
            Experts of every position, and their weights.

        Returns
        -------
        Tensor, shape (B T, d)
            In the dtype of ``hidden_states``.
        """
        out = torch.zeros_like(hidden_states)
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            rows, choice = torch.where(top_k_index == number)  # none: the products are empty, and still recorded
            inner = self._gate[0](up(hidden_states[rows], rows))
            mixed = down(inner, rows) * top_k_weights[rows, choice, None]
            out = out.index_add(0, rows, mixed.to(out.dtype))
        return out


def _layers(fused: Any, name: str) -> nn.ModuleList:
    weights: Tensor = getattr(fused, name).data
    biases = getattr(fused, f"{name}_bias").data if fused.has_bias else None
    layers = []
    for number, weight in enumerate(weights):
        matrix = weight.T if fused.is_transposed else weight
        with torch.device("meta"):
            layer = RoutedLinear(matrix.shape[1], matrix.shape[0], bias=biases is not None, dtype=matrix.dtype)
        layer.weight = nn.Parameter(matrix, requires_grad=getattr(fused, name).requires_grad)
        if biases is not None:
            layer.bias = nn.Parameter(biases[number])
        layers.append(layer)
    return nn.ModuleList(layers)
