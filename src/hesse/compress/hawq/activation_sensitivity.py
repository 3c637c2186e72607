"""The table for the inputs of layers, and for weights and inputs together.   Shapes: L layers, M options."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesse.compress.hawq.activation_traces import capture_inputs
from hesse.compress.hawq.layers import quantizable_weights
from hesse.compress.hawq.quantizer import UniformQuantizer
from hesse.compress.hawq.sensitivity import SensitivityTable, check_widths, clipped_average
from hesse.compress.hawq.traces import LayerTraces
from hesse.curvature.batches import as_batches, batch_size, to_device
from hesse.curvature.hessian import Function
from hesse.errors import ArgumentError

__all__ = ["ACTIVATION_QUANTIZER", "activation_table", "joint_table"]

ACTIVATION_BITS = (4, 6, 8)
ACTIVATION_QUANTIZER = UniformQuantizer(symmetric=False, scale="max")


def activation_table(
    module: nn.Module,
    forward_fn: Function,
    batches: Any,
    traces: LayerTraces,
    bits: Sequence[int] = ACTIVATION_BITS,
    quantizer: UniformQuantizer = ACTIVATION_QUANTIZER,
) -> SensitivityTable:
    """Ω_j(b) = t_j · mean over examples of ‖Q(a_j; b) - a_j‖², for the input a_j of every layer.

    Parameters
    ----------
    module : nn.Module
        The model in eval mode.
    forward_fn : callable
        (model, batch) -> anything: how to run the model; a loss function serves.
    batches : object, list, DataLoader or BatchStream
        Calibration data.
    traces : LayerTraces
        From `activation_traces`.
    bits : sequence of int, default (4, 6, 8)
        Widths to choose from.
    quantizer : UniformQuantizer, default asymmetric, from the smallest to the largest entry
        Fitted to the inputs of the first batch, one scale for the whole tensor.

    Returns
    -------
    SensitivityTable
        ``numel`` and "size" are of one example's input.

    Raises
    ------
    ArgumentError
        If a width is out of range, or ``quantizer`` is per channel.

    Warns
    -----
    UserWarning
        If a trace is negative; it is taken as 0.
    """
    call = "activation_table"
    widths = check_widths(call, bits)
    if quantizer.per_channel:
        raise ArgumentError(f"{call}: inputs are quantised with one scale for the whole tensor; use per_channel=False")
    average = clipped_average(call, traces)
    device = next(module.parameters()).device
    error, examples = np.zeros((len(traces.names), len(widths))), 0
    grids: dict[tuple[str, int], Any] = {}
    for batch in as_batches(call, batches):
        here = to_device(batch, device)
        with torch.no_grad(), capture_inputs(module, traces.names) as taken:
            forward_fn(module, here)
        for i, name in enumerate(traces.names):
            x = taken[name].detach()
            for j, width in enumerate(widths):
                grid = grids.setdefault((name, width), quantizer.with_bits(width).grid(x))
                error[i, j] += float((grid.round_trip(x) - x).double().square().sum())
        examples += batch_size(here)
    error /= examples
    numel = np.array(traces.numel, dtype=np.int64)
    size = numel[:, None] * np.array(widths, dtype=np.float64)
    return SensitivityTable(
        "activation", traces.names, widths, numel, average[:, None] * error, error, average, {"size": size}
    )


def joint_table(
    module: nn.Module, weights: SensitivityTable, activations: SensitivityTable, macs: Mapping[str, int]
) -> SensitivityTable:
    """Pair every width of a weight with every width of its layer's input.

    Parameters
    ----------
    module : nn.Module
        The model.
    weights, activations : SensitivityTable
        From `sensitivity_table` or `quadratic_table`, and `activation_table`.
    macs : mapping of str to int
        From `count_macs`.

    Returns
    -------
    SensitivityTable
        Ω is the sum of both, "bitops" multiplications times both widths, "size" that of the weights.

    Raises
    ------
    ArgumentError
        If a table is of the wrong kind, or a weight has no input or no multiplications counted.
    """
    if weights.kind != "weight" or activations.kind != "activation":
        raise ArgumentError(
            f"joint_table: expected a weight and an activation table, got {weights.kind} and {activations.kind}"
        )
    layer_of = {w.name: w.layer for w in quantizable_weights(module)}
    lost = [n for n in weights.names if layer_of.get(n) not in activations.names or n not in macs]
    if lost:
        raise ArgumentError(f"joint_table: no input or no multiplications known for {', '.join(lost)}")
    rows = [activations.names.index(layer_of[name]) for name in weights.names]
    m = len(activations.options)

    def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.repeat(values, m, axis=1)

    options = [
        (w, a) for w in weights.options for a in activations.options if isinstance(w, int) and isinstance(a, int)
    ]
    omega = spread(weights.omega) + np.tile(activations.omega[rows], (1, len(weights.options)))
    products = np.array([w * a for w, a in options], dtype=np.float64)
    bitops = np.array([macs[name] for name in weights.names], dtype=np.float64)[:, None] * products
    return SensitivityTable(
        "joint",
        weights.names,
        tuple(options),
        weights.numel,
        omega,
        spread(weights.error),
        weights.average,
        {"size": spread(weights.costs["size"]), "bitops": bitops},
        tuple((activations.names[row], int(activations.numel[row])) for row in rows),
    )
