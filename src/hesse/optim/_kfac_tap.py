"""What layers see in ordinary training passes: their inputs, and gradients of the loss or of scores of the model's own.

`LayerStream` freezes the weights; here they are trained in the same pass, by whatever calls the user makes.
Shapes: B examples, T positions, m inputs (bias not counted), p outputs.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hesse.curvature import Captured, TrackedLayer
from hesse.errors import ArgumentError

__all__ = ["LayerTap"]

Consume = Callable[[Captured, bool], None]
"""(rows, whether their positions are new: false for a second cotangent on the same pass)."""
Scores = Callable[[Tensor, int], Iterator[Tensor]]
"""Outputs (..., V) and the number of the pass -> cotangents of the same shape."""


@dataclass(slots=True)
class _Call:
    layer: TrackedLayer
    inputs: Tensor
    version: int  # of the input tensor: a later in-place change would go unnoticed
    edge: GradientEdge  # of the output before any in-place activation
    grads: Tensor | None = None


@dataclass(slots=True)
class _Pass:
    layers: Mapping[str, TrackedLayer]  # those that are read
    calls: dict[str, list[_Call]] = field(default_factory=dict)
    num_terms: int = 0
    reached: bool = False


class LayerTap:
    """Hooks on a model and some of its layers that hand over (inputs, output gradients) of passes with gradients.

    Parameters
    ----------
    model : nn.Module
        Called as a whole; a pass is one call of it.
    layers : mapping of str to TrackedLayer
        Whose modules are hooked.
    consume : callable
        Receives every layer's rows: in the backward pass of the loss, or at the end of the forward pass with scores.
    outputs_fn : callable
        What the model returned -> outputs (B, ..., V).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, TrackedLayer],
        consume: Consume,
        outputs_fn: Callable[[Any], Tensor],
    ) -> None:
        self.num_terms = 0  # rows of the outputs, over the passes since the last plan
        self._consume, self._outputs_fn = consume, outputs_fn
        self._due: Mapping[str, TrackedLayer] = {}
        self._scores: Scores | None = None
        self._num_passes = 0
        self._open: _Pass | None = None
        self._waiting: list[_Pass] = []
        handles = _install(weakref.ref(self), weakref.ref(model), model, layers)
        self._finalizer = weakref.finalize(self, _remove, handles)

    def plan(self, due: Mapping[str, TrackedLayer], scores: Scores | None) -> None:
        """Forget the passes so far and say what is read in those to come.

        Parameters
        ----------
        due : mapping of str to TrackedLayer
            Layers to read, by the names of those hooked; they may leave the bias out.
        scores : callable, optional
            Cotangents to backpropagate at the end of every forward pass, through activations only. Default: none; the
            gradients are those of the user's own backward pass.
        """
        self.num_terms = self._num_passes = 0
        self._due, self._scores = due, scores
        self._open = None
        self._waiting.clear()

    def forget_backward_passes(self) -> None:
        """Forget passes that a gradient has reached; those whose backward pass is still to come stay."""
        self.num_terms = 0
        self._waiting = [waiting for waiting in self._waiting if not waiting.reached]

    def remove(self) -> None:
        """Take the hooks off the model."""
        self.plan({}, None)
        self._finalizer()

    def flush(self) -> None:
        """Hand over layers some of whose calls had no part in the loss."""
        for waiting in self._waiting:
            for calls in waiting.calls.values():
                reached = [call for call in calls if call.grads is not None]
                if reached:
                    self._deliver(reached, new=True)
        self._waiting.clear()

    # what the hooks do ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open a pass, if gradients are enabled and any layer is due."""
        self._open = _Pass(self._due) if self._due and torch.is_grad_enabled() else None

    def record(self, name: str, args: tuple[Any, ...], output: Tensor) -> None:
        """Note one call of a layer.

        Parameters
        ----------
        name : str
            Of the layer.
        args : tuple
            What the module was called with.
        output : Tensor
            What it returned.

        Raises
        ------
        ArgumentError
            If there is no positional argument.
        """
        current = self._open
        if current is None or not output.requires_grad or name not in current.layers:
            return  # recomputation by activation checkpointing comes after the pass was closed
        if not args:
            raise ArgumentError(
                f"KFAC: layer {name!r} was called with keyword arguments only; leave it out with layers="
            )
        x = args[0].detach()
        call = _Call(current.layers[name], x, x._version, get_gradient_edge(output))
        current.calls.setdefault(name, []).append(call)
        if self._scores is None:
            output.register_hook(self._hook(current, name, call))

    def end(self, result: Any) -> None:
        """Close the pass; with scores, backpropagate them to the outputs of the layers.

        Parameters
        ----------
        result : object
            What the model returned.
        """
        current, self._open = self._open, None
        if current is None or not current.calls:
            return
        outputs = self._outputs_fn(result)
        if not outputs.requires_grad:
            return
        current.num_terms = len(outputs) if outputs.ndim == 1 else outputs[..., 0].numel()
        if self._scores is None:
            self._waiting.append(current)
            return
        self.num_terms += current.num_terms
        calls = [call for of_layer in current.calls.values() for call in of_layer]
        rows = outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs
        for number, cotangent in enumerate(self._scores(rows.detach(), self._num_passes)):
            grads = torch.autograd.grad(
                rows, [call.edge for call in calls], cotangent, retain_graph=True, allow_unused=True
            )
            for call, grad in zip(calls, grads, strict=True):
                call.grads = grad
            for of_layer in current.calls.values():
                reached = [call for call in of_layer if call.grads is not None]
                if reached:
                    self._deliver(reached, new=number == 0)
        self._num_passes += 1

    def _hook(self, current: _Pass, name: str, call: _Call) -> Callable[[Tensor], None]:
        here = weakref.ref(self)

        def hook(grad: Tensor) -> None:
            tap = here()
            if tap is None or all(current is not waiting for waiting in tap._waiting):
                return  # of a pass that was forgotten
            if call.grads is not None or name not in current.calls:
                raise ArgumentError(
                    "KFAC: two backward passes went through one forward pass, and the empirical Fisher matrix needs "
                    'the gradients of their sum; add the losses, or use fisher="sampled"'
                )
            call.grads = grad.detach()
            if not current.reached:
                current.reached = True
                tap.num_terms += current.num_terms
            if all(other.grads is not None for other in current.calls[name]):
                tap._deliver(current.calls.pop(name), new=True)

        return hook

    def _deliver(self, calls: list[_Call], *, new: bool) -> None:
        layer = calls[0].layer
        pairs = [_rows(call) for call in calls]
        if len({len(inputs) for inputs, _ in pairs}) == 1:  # one example's calls add up before they are squared
            pairs = [(torch.cat([x for x, _ in pairs], 1), torch.cat([d for _, d in pairs], 1))]
        for inputs, grads in pairs:
            self._consume(Captured(layer, inputs, grads, None, layer.name, len(calls)), new)


def _rows(call: _Call) -> tuple[Tensor, Tensor]:
    layer, grads = call.layer, call.grads
    if grads is None:
        raise ArgumentError(f"KFAC: no gradient reached layer {layer.name!r}")
    if call.inputs._version != call.version:
        raise ArgumentError(
            f"KFAC: the input of layer {layer.name!r} was overwritten in place after the layer had read it; leave it "
            "out with layers="
        )
    wide = torch.float64 if grads.dtype == torch.float64 else torch.float32
    return layer.inputs(call.inputs.to(wide)), layer.output_grads(grads.to(wide))


def _install(
    tap: "weakref.ref[LayerTap]",
    root: "weakref.ref[nn.Module]",
    model: nn.Module,
    layers: Mapping[str, TrackedLayer],
) -> list[torch.utils.hooks.RemovableHandle]:
    # plain functions: a deep copy of the model keeps them as they are, and they tell the copy by its identity
    def layer_hook(name: str, owner: "weakref.ref[nn.Module]") -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            found = tap()
            if found is not None and module is owner():
                found.record(name, args, output)

        return hook

    def before(module: nn.Module, _args: tuple[Any, ...]) -> None:
        found = tap()
        if found is not None and module is root():
            found.begin()

    def after(module: nn.Module, _args: tuple[Any, ...], result: Any) -> None:
        found = tap()
        if found is not None and module is root():
            found.end(result)

    handles = [model.register_forward_pre_hook(before)]
    handles += [
        layer.module.register_forward_hook(layer_hook(name, weakref.ref(layer.module)))
        for name, layer in layers.items()
    ]
    return [*handles, model.register_forward_hook(after)]


def _remove(handles: list[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
