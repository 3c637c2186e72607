"""Training through the rounding, and what should happen to batch norm before it."""

import copy
from typing import Any

import torch
from torch import Generator, nn
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from hesse._progress import progress
from hesse.compress.hawq.quantized import QuantizedModel
from hesse.curvature.batches import as_batches, batch_size, to_device
from hesse.curvature.hessian import Function
from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least

__all__ = ["fine_tune", "fold_batch_norms"]


def fine_tune(
    model: QuantizedModel,
    loss_fn: Function,
    batches: Any,
    *,
    epochs: int = 3,
    learning_rate: float = 5e-4,
    generator: Generator | None = None,
    show_progress: bool | None = None,
) -> list[float]:
    """Train the weights behind the rounding with Adam, so that what is rounded fits the data (quantisation-aware).

    Grids of weights are fitted anew before every epoch, ranges of inputs stay. The mode of the layers (training or
    eval) is left as it is: batch norm is best folded beforehand (`fold_batch_norms`).

    Parameters
    ----------
    model : QuantizedModel
        Changed in place; not frozen.
    loss_fn : callable
        (model, batch) -> scalar, a mean over the examples.
    batches : object, list, DataLoader or BatchStream
        Training data. A list is gone through in a new random order every epoch, a stream in its own.
    epochs : int, default 3
        Enough for small networks at 3 bits.
    learning_rate : float, default 5e-4
        Of Adam.
    generator : torch.Generator, optional
        Source of the order. Default: torch's global generator.
    show_progress : bool, optional
        Default: whether stderr is a terminal.

    Returns
    -------
    list of float
        Mean loss of every epoch, rounded weights included.

    Raises
    ------
    ArgumentError
        If the model is frozen, or a number is out of range.
    NumericalError
        If the loss is NaN or infinite.
    """
    call = "fine_tune"
    at_least(call, "epochs", epochs, 1)
    if not learning_rate > 0:
        raise ArgumentError(f"{call}: expected learning_rate > 0, got {learning_rate}")
    if model.is_frozen:
        raise ArgumentError(f"{call}: the model is frozen: its weights are whole numbers now; train before freeze()")
    held = as_batches(call, batches)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ArgumentError(f"{call}: there are no parameters that require a gradient")
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    losses: list[float] = []
    with progress("fine-tuning", epochs, unit="epochs", enabled=show_progress) as advance, torch.enable_grad():
        for _ in range(epochs):
            model.refit()
            order = held
            if isinstance(held, list):
                order = [held[i] for i in torch.randperm(len(held), generator=generator).tolist()]
            total, examples = 0.0, 0
            for batch in order:
                here = to_device(batch, parameters[0].device)
                optimizer.zero_grad()
                loss = loss_fn(model, here)
                loss.backward()
                optimizer.step()
                count = batch_size(here)
                total, examples = total + float(loss.detach()) * count, examples + count
            losses.append(total / examples)
            if not total < float("inf"):
                raise NumericalError(f"{call}: the loss is {losses[-1]}; lower learning_rate")
            advance(1)
    model.refit()
    return losses


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Multiply every batch norm into the convolution or linear layer right before it.

    Quantisation then sees the weights that will be used. The outputs in eval mode stay the same up to rounding.

    Parameters
    ----------
    module : nn.Module
        In eval mode; `torch.fx` must be able to trace it.

    Returns
    -------
    nn.Module
        A copy, of the same class, with `nn.Identity` in place of the folded layers. Batch norms that follow something
        else stay.

    Raises
    ------
    ArgumentError
        If a batch norm is in training mode, or the model cannot be traced.
    """
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    training = [name for name, part in module.named_modules() if isinstance(part, norms) and part.training]
    if training:
        raise ArgumentError(f"fold_batch_norms: {training[0]} is in training mode; call model.eval() first")
    try:
        graph = torch.fx.Tracer().trace(module)
    except (TraceError, TypeError, RuntimeError) as error:
        raise ArgumentError(f"fold_batch_norms: torch.fx cannot trace {type(module).__name__}: {error}") from error
    folded = copy.deepcopy(module)
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        name, source = str(node.target), str(before.target)
        if calls.count(name) != 1 or calls.count(source) != 1:  # a layer that runs twice has no one batch norm
            continue
        norm, layer = folded.get_submodule(name), folded.get_submodule(source)
        if isinstance(norm, norms) and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(norm, nn.BatchNorm1d) and isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        _replace(folded, source, fused)
        _replace(folded, name, nn.Identity())
    return folded


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)
