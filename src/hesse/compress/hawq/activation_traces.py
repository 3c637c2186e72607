"""Hessian trace of the loss in every layer's input, averaged over examples.

    t_j = (1/B) Σ_b Tr(∂²ℓ_b/∂a_jb²) / dim(a_j)

Shapes: B examples, K probes, taps a_j of shape (B, ...).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesse._progress import progress
from hesse.compress.hawq.layers import quantizable_weights, tapped_layers
from hesse.compress.hawq.traces import LayerTraces
from hesse.curvature._binding import choose_parameters
from hesse.curvature.batches import as_batches, batch_size, to_device
from hesse.curvature.hessian import Function
from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least
from hesse.linalg._random import sign_columns

__all__ = ["activation_traces", "capture_inputs"]


@contextmanager
def capture_inputs(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep the input of each layer, in the graph, while the block runs.

    Parameters
    ----------
    module : nn.Module
        The model.
    names : sequence of str
        Layers; each reads its input through a view of its own, so that a derivative by it is that of this layer's
        input alone, whoever else reads the same tensor.

    Yields
    ------
    dict of str to Tensor
        Filled by the next forward pass; requires a gradient.

    Raises
    ------
    ArgumentError
        If a layer is called twice in a pass, or without a floating tensor as first positional argument.
    """
    taken: dict[str, Tensor] = {}
    handles: list[Any] = []

    def tap(name: str) -> Any:
        def hook(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
                raise ArgumentError(f"capture_inputs: {name} is not called with a floating tensor as first argument")
            if name in taken:
                raise ArgumentError(f"capture_inputs: {name} is called twice in a pass, so it has no one input")
            first = inputs[0]
            taken[name] = first.view_as(first) if first.requires_grad else first.detach().requires_grad_()
            # self-attention hands over the same tensor three times
            return tuple(taken[name] if x is first else x for x in inputs)

        return hook

    try:
        for name in names:
            handles.append(module.get_submodule(name).register_forward_pre_hook(tap(name)))
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def activation_traces(
    module: nn.Module,
    loss_fn: Function,
    batches: Any,
    *,
    layers: Iterable[str] | None = None,
    num_probes: int = 20,
    generator: Generator | None = None,
    show_progress: bool | None = None,
) -> LayerTraces:
    """Estimate the mean over examples of Tr(∂²ℓ/∂a²) for the input a of every quantisable layer.

    Examples do not touch each other, so that the Hessian over a batch is block diagonal, and one sign vector of the
    batch's shape probes all of them: no loop over examples.

    Parameters
    ----------
    module : nn.Module
        The trained model in eval mode; batch norm in training mode would couple the examples, and is refused.
    loss_fn : callable
        (model, batch) -> scalar, the *mean* over the examples of a batch.
    batches : object, list, DataLoader or BatchStream
        Calibration data.
    layers : iterable of str, optional
        As in `quantizable_weights`. Default: all. The output projection of a MultiheadAttention has no input to tap.
    num_probes : int, default 20
        K >= 2 sign vectors for every batch; the batches average too.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.
    show_progress : bool, optional
        Default: whether stderr is a terminal.

    Returns
    -------
    LayerTraces
        Named by layer; ``numel`` is the size of the input of one example, ``gradient_norm`` that of the mean loss over
        the inputs of a batch, averaged.

    Raises
    ------
    ArgumentError
        If a number is out of range, a layer is unknown, called twice or not at all, or in training mode.
    NumericalError
        If a product holds NaN or Inf.

    Notes
    -----
    All layers share a probe: a probe costs one second-order backward pass a batch, in the memory of its graph, which
    holds every activation. In-place operations on a tapped input break that graph; torch says so.
    """
    call = "activation_traces"
    at_least(call, "num_probes", num_probes, 2)
    choose_parameters(call, module, None)  # refuses dropout and batch norm in training mode
    names = tapped_layers(module, quantizable_weights(module, layers))
    device = next(module.parameters()).device
    sums = torch.zeros(len(names), num_probes, dtype=torch.float64)
    norms = torch.zeros(len(names), dtype=torch.float64)
    sizes: tuple[int, ...] = ()
    examples = 0
    held = as_batches(call, batches)
    total = len(held) * num_probes if isinstance(held, list) else num_probes
    with progress("activation traces", total, unit="products", enabled=show_progress) as advance:
        for batch in held:
            here = to_device(batch, device)
            weight = batch_size(here)
            values, gradient_norms, dims = _batch_samples(module, loss_fn, here, names, num_probes, generator, advance)
            if sizes and dims != sizes:
                raise ArgumentError(f"{call}: inputs differ in size between batches; pad the examples to one length")
            sizes = dims
            sums += weight * values
            norms += weight * gradient_norms
            examples += weight
    samples_LK = sums / examples
    return LayerTraces(
        tuple(names),
        sizes,
        samples_LK.mean(1),
        samples_LK.std(1) / num_probes**0.5,
        (num_probes,) * len(names),
        norms / examples,
    )


def _batch_samples(
    module: nn.Module,
    loss_fn: Function,
    batch: Any,
    names: Sequence[str],
    num_probes: int,
    generator: Generator | None,
    advance: Any,
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    # the loss is a mean over B examples, and so is its Hessian's trace over the batch: no further factor
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), capture_inputs(module, names) as taken:
        loss = loss_fn(module, batch)
        if missing := [name for name in names if name not in taken]:
            raise ArgumentError(
                f"activation_traces: not run in a forward pass: {', '.join(missing)}; leave out of layers"
            )
        taps = [taken[name] for name in names]
        gradients = torch.autograd.grad(loss, taps, create_graph=True, allow_unused=True, materialize_grads=True)
        live = [i for i, gradient in enumerate(gradients) if gradient.requires_grad]
        samples = torch.zeros(len(names), num_probes, dtype=torch.float64)
        for k in range(num_probes):
            signs = [_signs_like(tap, generator) for tap in taps]
            if live:
                inner = [(gradients[i] * signs[i]).sum() for i in live]
                products = torch.autograd.grad(
                    torch.stack(inner).sum(), taps, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for i, (product, sign) in enumerate(zip(products, signs, strict=True)):
                    samples[i, k] = (product.double() * sign.double()).sum()
            advance(1)
    if not bool(samples.isfinite().all()):
        raise NumericalError("activation_traces: a product with the curvature holds NaN or Inf")
    norms = torch.tensor([float(g.detach().norm()) for g in gradients], dtype=torch.float64)
    return samples, norms, tuple(tap[0].numel() for tap in taps)


def _signs_like(tap: Tensor, generator: Generator | None) -> Tensor:
    signs = sign_columns(tap.numel(), 1, dtype=tap.dtype, device=tap.device, generator=generator)
    return signs.reshape(tap.shape)
