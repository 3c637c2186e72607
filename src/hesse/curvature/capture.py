"""Streams the inputs and output gradients of chosen layers out of one backward pass that computes no weight gradient.

A layer s = W ã has ∇W = Σ_t δ_t ã_tᵀ, so (ã, δ) is all that factors, eigenvalues and scores need. With every parameter
frozen, autograd computes activation gradients only: 4 flops a parameter and token instead of the 6 of a training step,
and no ``.grad``.
Shapes: B sequences, T positions, m inputs (bias not counted), p outputs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.autograd import Function

from hesse.curvature.layers import TrackedLayer
from hesse.errors import ArgumentError, NumericalError, ShapeError

__all__ = ["Captured", "LayerStream", "dgrad_only"]


@dataclass(frozen=True, slots=True)
class Captured:
    """What one layer saw in one batch: rows of inputs and of output gradients, zero where ``mask`` is false.

    ``shared_with`` names the first layer of the batch that received the identical input tensor (itself, as a rule): its
    input statistics serve all of them. A layer called several times in one forward pass comes once, its ``calls``
    joined along T.
    """

    layer: TrackedLayer
    inputs: Tensor  # (B, T, m)
    grads: Tensor  # (B, T, p)
    mask: Tensor | None  # (B, T) bool, None where every position counts
    shared_with: str
    calls: int = 1

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
            mask = None if self.mask is None else self.mask[cut]
            yield replace(self, inputs=self.inputs[cut], grads=self.grads[cut], mask=mask)


Consumer = Callable[[Captured], None]


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
    grads: Tensor | None = None


@dataclass(slots=True)
class _Batch:
    """Bookkeeping of the batch in flight."""

    mask: Tensor | None = None
    padding: Tensor | None = None
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
    ``use_reentrant=True`` torch itself needs an input that requires a gradient.

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
            self._handles.append(layer.module.register_forward_hook(self._forward_hook(layer)))
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

    def positions(self, mask: Tensor | None, padding: Tensor | None = None) -> None:
        """Say which positions count, between the forward and the backward pass.

        Parameters
        ----------
        mask : Tensor, shape (B, T), bool, optional
            Positions that count. Default: all.
        padding : Tensor, shape (B, T), bool, optional
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

    def _forward_hook(self, layer: TrackedLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
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
            call = _Call(x, x._version, key)
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
        pairs = [_rows(layer, call, batch) for call in calls]
        inputs, grads, masks = pairs[0] if len(pairs) == 1 else _join(pairs)
        shared = batch.shared[layer.name] if len(pairs) == 1 else layer.name
        self.consumer(Captured(layer, inputs, grads, masks, shared, len(pairs)))
        for call in calls:
            call.grads = None
            batch.owners.pop(call.key, None)  # a tensor of a later recomputation may lie at the same address


def _rows(layer: TrackedLayer, call: _Call, batch: _Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    grads = call.grads
    if grads is None:  # _finish has dropped such calls
        raise NumericalError(f"capture: layer {layer.name!r} was delivered before its gradient")
    if call.inputs._version != call.version:
        raise ArgumentError(
            f"modules: the input of {layer.name!r} was overwritten in place after the layer had read it; "
            "leave it out with modules="
        )
    mask, padding = batch.mask, batch.padding
    x, d = call.inputs, grads
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
        return x, d, None
    if padding is not None:
        d = d.masked_fill(padding[..., None], 0)
    if batch.segments is not None:
        return _unpack(x, d, mask, batch.segments)
    return x, d, mask


def _join(rows: list[tuple[Tensor, Tensor, Tensor | None]]) -> tuple[Tensor, Tensor, Tensor | None]:
    inputs, grads = torch.cat([r[0] for r in rows], 1), torch.cat([r[1] for r in rows], 1)
    masks = [r[2] for r in rows]
    if all(mask is None for mask in masks):
        return inputs, grads, None
    full = [torch.ones(r[0].shape[:2], dtype=torch.bool, device=r[0].device) if r[2] is None else r[2] for r in rows]
    return inputs, grads, torch.cat(full, 1)


def _unpack(x: Tensor, d: Tensor, mask: Tensor, segments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # give every packed document a row of its own, padded to the longest
    flat = segments.reshape(-1)
    kept = (flat >= 0).nonzero().squeeze(1)
    document = flat[kept]
    order = torch.argsort(document, stable=True)
    kept, document = kept[order], document[order]
    counts = torch.bincount(document)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(kept), device=x.device) - starts[document]
    shape = (len(counts), int(counts.max()))

    def scatter(rows: Tensor) -> Tensor:
        out = rows.new_zeros((*shape, *rows.shape[2:]))
        out[document, place] = rows.flatten(0, 1)[kept]
        return out

    return scatter(x), scatter(d), scatter(mask)


@contextmanager
def dgrad_only(model: nn.Module) -> Iterator[None]:
    """Freeze every parameter inside the block, so that a backward pass computes activation gradients only.

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
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
