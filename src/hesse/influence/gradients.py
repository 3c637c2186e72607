"""Whole gradients of single sequences: stacked for a few, streamed a block at a time for many.

    D_n = ∇_ℓ L(z_n) = Σ_t δ_t ã_tᵀ        of every tracked layer ℓ

Shapes: Q sequences that are kept, B of a block, p outputs, m columns (bias counted).
"""

from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch import Tensor, nn

from hesse._progress import progress
from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.curvature.ekfac import sequence_gradients
from hesse.curvature.layers import Picker, select_layers
from hesse.curvature.stored_weights import floating_dtype
from hesse.errors import MemoryLimitError
from hesse.influence.examples import Examples, plan_batches, plan_units
from hesse.influence.objective import CausalLMLoss, Loss
from hesse.influence.passes import Measurement, Pass, check_model
from hesse.influence.streams import window
from hesse.linalg.memory import available_memory

__all__ = ["GradientBlock", "collated", "gradient_pass", "stacked_gradients", "stream_gradients"]

_UNIT = 256  # sequences of a data set that is read in windows

GradientBlock = Callable[[str, list[int], Tensor], None]
"""Receives a layer's name, places of B sequences, and their gradients (B, p, m)."""


def gradient_pass(model: nn.Module, modules: Picker = "mlp", loss: Loss | None = None) -> Pass:
    """Choose what gradients are taken of.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    modules : str or callable, default "mlp"
        Layers; see `select_layers`.
    loss : Loss, default CausalLMLoss()
        Summed over the tokens of a sequence.

    Returns
    -------
    Pass
        To hand to the functions here.

    Raises
    ------
    ArgumentError
        If the model is in training mode, or no layer matches.
    """
    check_model(model)
    return Pass(model, CausalLMLoss() if loss is None else loss, select_layers(model, modules))


def collated(examples: Examples, numbers: Items[int], device: torch.device) -> dict[str, Tensor]:
    """Make one batch of some sequences, also of a data set that is read in windows.

    Parameters
    ----------
    examples : Examples
        Sequences.
    numbers : sequence of int
        Which, in any order.
    device : device
        Where the tensors go.

    Returns
    -------
    dict of str to Tensor
        As the loss takes it.
    """
    batch = window(examples, numbers).batch(range(len(numbers)))
    return {key: value.to(device) for key, value in batch.items()}


def stream_gradients(
    run_pass: Pass,
    examples: Examples,
    consume_fn: GradientBlock,
    *,
    numbers: Items[int] | None = None,
    measurement: Measurement | None = None,
    batch_tokens: int = 4096,
    argument: str = "dataset",
    show_progress: bool | None = False,
) -> None:
    """Hand the gradients of all sequences over, a layer and a block of sequences at a time.

    Parameters
    ----------
    run_pass : Pass
        The model with its loss and layers.
    examples : Examples
        Sequences.
    consume_fn : callable
        (layer, places, gradients). Places count from 0 in ``numbers``.
    numbers : sequence of int, optional
        Which sequences, rising. Default: all.
    measurement : callable, optional
        (model, batch) -> (B,), differentiated instead of the loss.
    batch_tokens : int, default 4096
        Padded tokens a batch.
    argument : str, default "dataset"
        What an error calls the sequences.
    show_progress : bool, optional
        Show a bar; None if stderr is a terminal.
    """
    chosen = range(len(examples)) if numbers is None else numbers
    device = next(run_pass.model.parameters()).device
    places: list[int] = []

    def consume(rows: Captured) -> None:
        first = 0
        for block in rows.blocks(BLOCK_ENTRIES):
            gradients = sequence_gradients(block)
            consume_fn(rows.layer.name, places[first : first + len(gradients)], gradients)
            first += len(gradients)

    with (
        run_pass.open(consume, argument),
        progress("gradients", len(chosen), unit="sequences", enabled=show_progress) as advance,
    ):
        for unit in plan_units(len(chosen), _UNIT):
            part = window(examples, chosen[unit.start : unit.stop])
            for inside in plan_batches(part.lengths, range(len(unit)), batch_tokens):
                places = [unit.start + place for place in inside]
                batch = {key: value.to(device) for key, value in part.batch(inside).items()}
                if measurement is None:
                    run_pass.empirical(batch, [part.ids[place] for place in inside])
                else:
                    run_pass.measured(batch, measurement, [part.ids[place] for place in inside])
                advance(len(places))


def stacked_gradients(
    run_pass: Pass,
    examples: Examples,
    *,
    numbers: Items[int] | None = None,
    measurement: Measurement | None = None,
    batch_tokens: int = 2048,
    argument: str = "queries",
) -> dict[str, Tensor]:
    """Stack the gradients of a few sequences.

    Parameters
    ----------
    run_pass, examples, numbers, measurement, batch_tokens, argument : see `stream_gradients`
        As there.

    Returns
    -------
    dict of str to Tensor, shapes (Q, p, m)
        One a layer, in the order of ``numbers`` and the dtype of the model.

    Raises
    ------
    MemoryLimitError
        Before any work, if they would not fit in the memory that is free.
    """
    count = len(examples) if numbers is None else len(numbers)
    parameter = next(run_pass.model.parameters())
    entries = count * sum(layer.out_features * layer.columns for layer in run_pass.layers.values())
    needed, free = entries * floating_dtype(run_pass.model).itemsize, available_memory(parameter.device)
    if free is not None and needed > free:
        raise MemoryLimitError(
            f"{argument}: {count} whole gradients would take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are "
            "free; ask about fewer a call, or track fewer layers with modules="
        )
    out = {
        name: torch.zeros(count, layer.out_features, layer.columns, dtype=parameter.dtype, device=parameter.device)
        for name, layer in run_pass.layers.items()
    }

    def put(name: str, places: list[int], gradients: Tensor) -> None:
        out[name][places] = gradients

    stream_gradients(
        run_pass,
        examples,
        put,
        numbers=numbers,
        measurement=measurement,
        batch_tokens=batch_tokens,
        argument=argument,
    )
    return out
