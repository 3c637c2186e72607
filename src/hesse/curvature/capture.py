"""Streams the inputs and output gradients of chosen layers out of one backward pass that computes no weight gradient.

A layer s = W ã has ∇W = Σ_t δ_t ã_tᵀ, so (ã, δ) is all that factors, eigenvalues and scores need. With every parameter
frozen, autograd computes activation gradients only: 4 flops a parameter and token instead of the 6 of a training step,
and no ``.grad``.
Shapes: B sequences, T positions, m inputs (bias not counted), p outputs.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.autograd import Function

from hesse.curvature.layers import TrackedLayer
from hesse.curvature.routed import RoutedLinear
from hesse.curvature.stored_weights import gradients_pass
from hesse.errors import ArgumentError, NumericalError, ShapeError

__all__ = ["BLOCK_ENTRIES", "Captured", "LayerStream", "dgrad_only"]

BLOCK_ENTRIES = 1 << 26
"""Entries of whole gradient matrices that are formed at a time; see `Captured.blocks`."""


@dataclass(frozen=True, slots=True)
class Captured:
    """What one layer saw in one batch: rows of inputs and of output gradients, zero where ``mask`` is false.

    ``shared_with`` names the first layer of the batch that received the identical input tensor (itself, as a rule): its
    input statistics serve all of them. A layer called several times in one forward pass comes once, its ``calls``
    joined along T. An expert of a mixture has the positions routed to it only, T the most of any sequence; ``places``
    says which of the sequence they are.
    """

    layer: TrackedLayer
    inputs: Tensor  # (B, T, m)
    grads: Tensor  # (B, T, p)
    mask: Tensor | None  # (B, T) bool, None where every position counts
    shared_with: str
    calls: int = 1
    places: Tensor | None = None  # (B, T) int64, -1 where mask is false; None where every position is there, in order

    def blocks(self, limit: int) -> "Iterator[Captured]":
        """Cut the batch into runs of sequences, as whole matrices of gradients take much more room than rows.

        Parameters
        ----------
        limit : int
            Entries that the gradients (B, p, columns) of one run may have; a run has one sequence at least.

        Yields
        ------
        Captured
            In order; views, not copies.
        """
        step = max(1, limit // (self.layer.out_features * self.layer.columns))
        for first in range(0, len(self.grads), step):
            cut = slice(first, first + step)
            mask, places = (None if part is None else part[cut] for part in (self.mask, self.places))
            yield replace(self, inputs=self.inputs[cut], grads=self.grads[cut], mask=mask, places=places)


Consumer = Callable[[Captured], None]
ForwardHook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]
Mask = Tensor | Callable[[str], Tensor | None] | None


class _Anchor(Function):
    """Copy a tensor into the graph although nothing below it needs a gradient; the backward pass stops here."""

    @staticmethod
    def forward(ctx: object, x: Tensor, _anchor: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *_grads: Tensor) -> tuple[None, None]:
        return None, None


@dataclass(slots=True)
class _Call:
    inputs: Tensor
    version: int  # of the input tensor: with frozen weights autograd does not notice that it was overwritten
    key: tuple[object, ...]  # equal for calls that read the identical rows
    routed: Tensor | None = None  # (n,) where the rows of an expert are from
    grads: Tensor | None = None


@dataclass(slots=True)
class _Batch:
    """Bookkeeping of the batch in flight."""

    mask: Mask = None
    padding: Mask = None
    segments: Tensor | None = None
    calls: dict[str, list[_Call]] = field(default_factory=dict)
    owners: dict[tuple[object, ...], str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    delivered: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)  # called with gradients disabled
    keep: bool = False
    running: bool = False  # a backward pass is under way


class LayerStream:
    """Hooks on the layers; each hands its (inputs, output gradients) over as soon as the backward pass has them.

    Activation checkpointing is followed: a layer that runs again during the backward pass counts once. With
    ``use_reentrant=True`` torch itself needs an input that requires a gradient. A compiled model (``torch.compile``)
    runs compiled between the tracked layers, whose hooks stay outside of its graphs.

    Parameters
    ----------
    layers : mapping of str to TrackedLayer
        From `select_layers`.
    consumer : callable
        Receives one `Captured` a layer and batch. A layer that is called several times in one forward pass (weight
        sharing) is handed over once, its calls joined along T, so that what is summed over T is summed over calls
        before it is squared.

    Examples
    --------
    >>> from hesse.curvature import select_layers
    >>> net = torch.nn.Linear(3, 2)
    >>> seen = []
    >>> with LayerStream(select_layers(net, "all-linear"), seen.append) as stream, stream.batch():
    ...     stream.backward(net(torch.ones(4, 3)).sum())
    >>> seen[0].grads.shape
    torch.Size([4, 1, 2])
    """

    def __init__(self, layers: Mapping[str, TrackedLayer], consumer: Consumer) -> None:
        self.layers = dict(layers)
        self.consumer = consumer
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._batch: _Batch | None = None

    def __enter__(self) -> "LayerStream":
        for layer in self.layers.values():
            self._handles.append(layer.module.register_forward_hook(_uncompiled(self._forward_hook(layer))))
        _forget_compiled()
        return self

    def __exit__(self, *_exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def batch(self, segments: Tensor | None = None) -> Iterator[None]:
        """Announce one forward pass and its backward passes (several, with ``retain_graph``, for exact Fisher factors).

        Parameters
        ----------
        segments : Tensor, shape (B, T), int64, optional
            Packed documents: the document number of each position, 0 to D - 1 over the whole batch, -1 for none. The
            consumer then sees D sequences instead of B rows.

        Yields
        ------
        None
            Run forward and backward inside the block.
        """
        self._batch = _Batch(segments=segments)
        try:
            yield
        finally:
            self._batch = None

    def positions(self, mask: Mask, padding: Mask = None) -> None:
        """Say which positions count, between the forward and the backward pass.

        Parameters
        ----------
        mask : Tensor, shape (B, T), bool, or callable, optional
            Positions that count, or a function of a layer's name that tells them, for a model that reads two texts.
            Default: all.
        padding : Tensor, shape (B, T), bool, or callable, optional
            True where a position is padding: its gradient rows are set to zero, whatever the model computed there.
        """
        batch = self._require_batch()
        batch.mask, batch.padding = mask, padding

    def backward(self, outputs: Tensor, cotangent: Tensor | None = None, *, keep: bool = False) -> None:
        """Run one backward pass and hand every layer over.

        Parameters
        ----------
        outputs : Tensor
            A scalar loss, or the logits together with ``cotangent``.
        cotangent : Tensor, optional
            Gradient with respect to ``outputs``.
        keep : bool, default False
            Whether a further backward pass follows on the same forward pass.

        Raises
        ------
        ArgumentError
            If a tracked layer was not called, or no gradient reached it.
        """
        batch = self._require_batch()
        batch.delivered.clear()
        batch.keep = keep
        if not outputs.requires_grad:
            raise ArgumentError(
                "modules: no tracked layer was called with gradients enabled in this forward pass. Under reentrant "
                "activation checkpointing the model's input must require a gradient "
                "(model.enable_input_require_grads() in transformers), or use use_reentrant=False."
            )
        batch.running = True
        torch.autograd.backward(outputs, cotangent, retain_graph=keep)
        batch.running = False
        for name in self.layers:
            if name not in batch.delivered:
                self._finish(batch, name)

    def _require_batch(self) -> _Batch:
        if self._batch is None:
            raise ArgumentError("LayerStream: call inside `with stream.batch():`")
        return self._batch

    def _forward_hook(self, layer: TrackedLayer) -> ForwardHook:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            batch = self._batch
            if batch is None:
                return None
            if not torch.is_grad_enabled():
                batch.hidden.add(layer.name)
                return None
            anchored = None
            if not output.requires_grad:  # the lowest tracked layer: nothing below needs a gradient
                output = anchored = _Anchor.apply(output, torch.zeros((), requires_grad=True))
            if not args:
                raise ArgumentError(f"modules: {layer.name!r} was called with keyword arguments only; leave it out")
            if batch.running and layer.name not in batch.hidden:
                return anchored  # recomputed for its saved tensors only: the gradient belongs to the first call
            x = args[0].detach()
            calls = batch.calls.setdefault(layer.name, [])
            # the tensor is kept alive until its layer is delivered, so that its address names it
            key = (x.data_ptr(), x.shape, x.stride(), x.dtype, len(calls), layer.reads)
            call = _Call(x, x._version, key, args[1] if isinstance(layer.module, RoutedLinear) else None)
            calls.append(call)
            batch.shared.setdefault(layer.name, batch.owners.setdefault(key, layer.name))
            output.register_hook(self._grad_hook(batch, layer, call))
            return anchored

        return hook

    def _grad_hook(self, batch: _Batch, layer: TrackedLayer, call: _Call) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            call.grads = grad.detach()
            if all(other.grads is not None for other in batch.calls[layer.name]):
                self._deliver(batch, layer)

        return hook

    def _finish(self, batch: _Batch, name: str) -> None:
        # deliver a layer some of whose calls had no part in the loss; refuse one that had none at all
        calls = batch.calls.get(name, [])
        if not calls:
            raise ArgumentError(
                f"modules: tracked layer {name!r} was not called with gradients enabled in this forward pass "
                "(is its weight used functionally, or the call under no_grad?); leave it out with modules="
            )
        if all(call.grads is None for call in calls):
            raise ArgumentError(
                f"modules: no gradient reached tracked layer {name!r}; its output does not enter the loss"
            )
        self._deliver(batch, self.layers[name])

    def _deliver(self, batch: _Batch, layer: TrackedLayer) -> None:
        every = batch.calls[layer.name] if batch.keep else batch.calls.pop(layer.name)
        calls = [call for call in every if call.grads is not None]
        if layer.name in batch.delivered:
            raise ArgumentError(
                f"modules: {layer.name!r} runs in several reentrant checkpoints of one forward pass, so its calls "
                "cannot be joined; use use_reentrant=False, or leave it out with modules="
            )
        batch.delivered.add(layer.name)
        shared = batch.shared[layer.name] if len(calls) == 1 else layer.name
        pieces = [_rows(layer, call, batch, shared) for call in calls]
        self.consumer(pieces[0] if len(pieces) == 1 else _join(pieces))
        for call in calls:
            call.grads = None
            batch.owners.pop(call.key, None)  # a tensor of a later recomputation may lie at the same address


def _uncompiled(hook: ForwardHook) -> ForwardHook:
    # the hooks note tensors and their addresses, which a graph cannot hold; nobody has compiled a model before dynamo
    # is loaded, and loading it takes seconds
    if "torch._dynamo" not in sys.modules:
        return hook
    outside: ForwardHook = torch.compiler.disable()(hook)
    return outside


def _forget_compiled() -> None:
    # code that was compiled before the hooks were there runs on without them: dynamo does not look for new ones
    # (skip_nnmodule_hook_guards), and only by luck compiles anew because a parameter has been frozen
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _mask_of(mask: Mask, layer: TrackedLayer) -> Tensor | None:
    return mask(layer.name) if callable(mask) else mask


def _rows(layer: TrackedLayer, call: _Call, batch: _Batch, shared: str) -> Captured:
    grads = call.grads
    if grads is None:  # _finish has dropped such calls
        raise NumericalError(f"capture: layer {layer.name!r} was delivered before its gradient")
    if call.inputs._version != call.version:
        raise ArgumentError(
            f"modules: the input of {layer.name!r} was overwritten in place after the layer had read it; "
            "leave it out with modules="
        )
    mask, padding = _mask_of(batch.mask, layer), _mask_of(batch.padding, layer)
    x, d = call.inputs, grads
    if call.routed is not None:
        return _routed(Captured(layer, x, d, None, shared), call.routed, batch)
    if mask is not None and x.dim() == 2 and x.shape[0] == mask.numel() != mask.shape[0]:
        x, d = x.view(*mask.shape, -1), d.view(*mask.shape, -1)  # a model that flattens (B, T) into rows
    x, d = layer.inputs(x), layer.output_grads(d)
    if x.shape[:2] != d.shape[:2]:
        raise ShapeError(
            f"capture: layer {layer.name!r} has {tuple(x.shape[:2])} input rows but {tuple(d.shape[:2])} output rows"
        )
    if mask is None or mask.shape != x.shape[:2]:
        if batch.segments is not None:
            raise ShapeError(
                f"capture: layer {layer.name!r} works on {tuple(x.shape[:2])} positions, "
                "not on those of the packed batch"
            )
        return Captured(layer, x, d, None, shared)
    if padding is not None:
        d = d.masked_fill(padding[..., None], 0)
    if batch.segments is None:
        return Captured(layer, x, d, mask, shared)
    # every packed document gets a row of its own, padded to the longest
    x, d, mask, _places = _regroup(x.flatten(0, 1), d.flatten(0, 1), mask.flatten(), batch.segments.flatten())
    return Captured(layer, x, d, mask, shared)


def _routed(rows: Captured, routed: Tensor, batch: _Batch) -> Captured:
    # rows (n, m) of one expert, from all over the batch: back to their sequences, padded to the most of any
    mask, padding, segments = _mask_of(batch.mask, rows.layer), _mask_of(batch.padding, rows.layer), batch.segments
    if mask is None:
        raise ShapeError(f"capture: {rows.layer.name!r} is an expert, and the batch has no positions to route")
    attended = torch.ones_like(mask) if padding is None else ~padding
    owners = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask) if segments is None else segments
    # where each sequence starts: a padded row after its padding, a packed document inside its row
    flat = owners.flatten()
    inside = flat.masked_fill(~attended.flatten(), -1)
    count = len(mask) if segments is None else int(segments.max()) + 1
    start = torch.full((count,), flat.numel(), device=mask.device)
    known = (inside >= 0).nonzero().squeeze(1)
    start.scatter_reduce_(0, inside[known], known, "amin")
    order = torch.argsort(routed)
    routed = routed[order]
    kept = mask.flatten()[routed]  # the rest carry no gradient, or are padding
    routed, order = routed[kept], order[kept]
    owner = flat[routed]
    x, d, counted, places = _regroup(
        rows.inputs[order], rows.grads[order], kept[kept], owner, routed - start[owner], count
    )
    return replace(rows, inputs=x, grads=d, mask=counted, places=places)


def _join(pieces: list[Captured]) -> Captured:
    first = pieces[0]
    inputs, grads = torch.cat([p.inputs for p in pieces], 1), torch.cat([p.grads for p in pieces], 1)
    masks = None
    if any(p.mask is not None for p in pieces):
        masks = torch.cat([p.grads.new_ones(p.grads.shape[:2]).bool() if p.mask is None else p.mask for p in pieces], 1)
    routed = [p.places for p in pieces if p.places is not None]
    places = torch.cat(routed, 1) if routed else None
    return replace(first, inputs=inputs, grads=grads, mask=masks, calls=len(pieces), places=places)


def _regroup(
    x: Tensor, d: Tensor, mask: Tensor, owner: Tensor, places: Tensor | None = None, count: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # rows (K, ...) that each belong to one of several sequences, -1 for none: one row of the result a sequence
    kept = (owner >= 0).nonzero().squeeze(1)
    document = owner[kept]
    order = torch.argsort(document, stable=True)
    kept, document = kept[order], document[order]
    counts = torch.bincount(document, minlength=count or 0)
    starts = counts.cumsum(0) - counts
    column = torch.arange(len(kept), device=x.device) - starts[document]
    shape = (len(counts), max(1, int(counts.max())))

    def scatter(rows: Tensor, fill: int = 0) -> Tensor:
        out = rows.new_full((*shape, *rows.shape[1:]), fill)
        out[document, column] = rows[kept]
        return out

    return scatter(x), scatter(d), scatter(mask), scatter(column if places is None else places, -1)


@contextmanager
def dgrad_only(model: nn.Module) -> Iterator[None]:
    """Freeze every parameter inside the block, so that a backward pass computes activation gradients only.

    A quantised layer that hands no gradient down is refused by the forward pass; see `gradients_pass`.

    Parameters
    ----------
    model : nn.Module
        Its ``requires_grad`` flags are put back on leaving.

    Yields
    ------
    None
        Nothing; the block runs with all parameters frozen.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _flag in flags:
        parameter.requires_grad_(False)
    try:
        with gradients_pass(model):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
