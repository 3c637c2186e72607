"""Ω from the diagonal of the Fisher matrix: errors weighted entry by entry, for a gradient a batch and no product.

    Ω_i(b) = Σ_p F_pp (Q(W_i; b) - W_i)_p²,    F_pp = E_y ‖∂ log p(y | z) / ∂W_p‖²

Shapes: outputs z (..., V), N positions in all (every axis but the last), P weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from hesse._progress import progress
from hesse.compress.hawq.layers import QuantizableWeight, quantizable_weights
from hesse.compress.hawq.quantizer import UniformQuantizer
from hesse.compress.hawq.sensitivity import (
    WEIGHT_BITS,
    SensitivityTable,
    check_widths,
    rounding_error,
    with_weight_costs,
)
from hesse.curvature._binding import choose_parameters
from hesse.curvature.batches import as_batches, to_device
from hesse.curvature.fisher import Likelihood, sampled_score
from hesse.curvature.hessian import Function
from hesse.errors import ArgumentError, NumericalError
from hesse.linalg._arguments import at_least

__all__ = ["fisher_table"]


def fisher_table(
    module: nn.Module,
    outputs_fn: Function,
    batches: Any,
    bits: Sequence[int] = WEIGHT_BITS,
    quantizer: UniformQuantizer | None = None,
    *,
    likelihood: Likelihood = "categorical",
    layers: Iterable[str] | None = None,
    num_draws: int = 2,
    macs: Mapping[str, int] | None = None,
    activation_bits: int = 8,
    generator: Generator | None = None,
    show_progress: bool | None = None,
) -> SensitivityTable:
    """Weight the squared error of every entry by its own curvature, instead of all by their average.

    Labels are drawn from the model, independently at every position, so that gradients of different positions have no
    correlation: the square of a *batch's* gradient is an unbiased sample of the sum of their squares. In language
    models, whose layers see a few inputs of far larger size than the rest, entries differ in curvature by orders of
    magnitude.

    Parameters
    ----------
    module : nn.Module
        The trained model in eval mode.
    outputs_fn : callable
        (model, batch) -> outputs z, the logits of a "categorical".
    batches : object, list, DataLoader or BatchStream
        Calibration data; labels are not needed. The smaller the batches, the more samples of the diagonal.
    bits, quantizer : sequence of int and UniformQuantizer, optional
        As in `sensitivity_table`.
    likelihood : {"categorical", "bernoulli", "gaussian"}, default "categorical"
        What the outputs parametrise.
    layers : iterable of str, optional
        As in `quantizable_weights`.
    num_draws : int, default 2
        Labels drawn for every position, each a backward pass.
    macs, activation_bits : mapping and int, optional
        As in `sensitivity_table`.
    generator : torch.Generator, optional
        Source of the labels, on the CPU. Default: one seeded by torch's global generator.
    show_progress : bool, optional
        Default: whether stderr is a terminal.

    Returns
    -------
    SensitivityTable
        In units of the mean negative log-likelihood of a position. ``average`` is the unbiased, never negative estimate
        of Tr(G_i) / n_i of the Gauss-Newton matrix: ``average * error`` is the Ω of `sensitivity_table`, from one
        backward pass a draw for all layers, and without the cross terms that probes of many layers suffer from.

    Raises
    ------
    ArgumentError
        If a width is out of range, a layer unknown or without a gradient, or ``num_draws < 1``.
    NumericalError
        If a gradient holds NaN or Inf.

    Notes
    -----
    A forward and ``num_draws`` backward passes over the data, P numbers of memory. Off-diagonal curvature is left out.
    A model that is certain of nearly all its labels hardly ever draws another, and the estimate then hangs on rare
    draws: take `layer_traces` or `quadratic_table` there.
    """
    call = "fisher_table"
    at_least(call, "num_draws", num_draws, 1)
    widths = check_widths(call, bits)
    weights = quantizable_weights(module, layers)
    chosen = choose_parameters(call, module, [weight.name for weight in weights])
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    diagonals = _diagonals(module, outputs_fn, batches, chosen, likelihood, num_draws, generator, show_progress)
    error, omega = np.zeros((len(weights), len(widths))), np.zeros((len(weights), len(widths)))
    with torch.no_grad():
        for i, weight in enumerate(weights):
            for j, width in enumerate(widths):
                squares = rounding_error(chosen[weight.name], weight, width, quantizer).square()
                error[i, j] = float(squares.double().sum())
                omega[i, j] = float((diagonals[weight.name] * squares).double().sum())
    average = np.array([float(diagonals[w.name].double().mean()) for w in weights])
    numel = np.array([w.numel for w in weights], dtype=np.int64)
    table = SensitivityTable("weight", _names(weights), widths, numel, omega, error, average)
    return with_weight_costs(table, macs, activation_bits)


def _names(weights: Sequence[QuantizableWeight]) -> tuple[str, ...]:
    return tuple(weight.name for weight in weights)


def _diagonals(
    module: nn.Module,
    outputs_fn: Function,
    batches: Any,
    chosen: Mapping[str, Tensor],
    likelihood: Likelihood,
    num_draws: int,
    generator: Generator,
    show_progress: bool | None,
) -> dict[str, Tensor]:
    held = as_batches("fisher_table", batches)
    parameters = list(chosen.values())
    totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
    positions = 0
    count = len(held) if isinstance(held, list) else 1
    with progress("Fisher diagonal", count, unit="batches", enabled=show_progress) as advance, torch.enable_grad():
        for batch in held:
            outputs = outputs_fn(module, to_device(batch, parameters[0].device))
            if outputs.ndim == 0 or not outputs.requires_grad:
                raise ArgumentError("fisher_table: outputs_fn must return outputs (..., V) that depend on the weights")
            positions += outputs[..., 0].numel()
            for draw in range(num_draws):
                score = sampled_score(outputs.detach(), likelihood, generator)
                gradients = torch.autograd.grad(
                    outputs,
                    parameters,
                    score,
                    retain_graph=draw + 1 < num_draws,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for total, gradient in zip(totals, gradients, strict=True):
                    total.add_(gradient.to(total.dtype).square())
            advance(1)
    if not all(bool(total.isfinite().all()) for total in totals):
        raise NumericalError("fisher_table: a gradient holds NaN or Inf; look at the model and the data")
    return {name: total / (positions * num_draws) for name, total in zip(chosen, totals, strict=True)}
