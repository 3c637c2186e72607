"""What every layer loses at every bit width, and what it costs: the table that an allocation is chosen from.

    Ω_i(b) = t_i ‖Q(W_i; b) - W_i‖²        t_i = Tr(H_i) / n_i

Ω/2 is the rise of the loss to second order for errors without a preferred direction. Shapes: L layers, M options.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hesse.compress.hawq.layers import QuantizableWeight, quantizable_weights
from hesse.compress.hawq.quantizer import UniformQuantizer, check_bits
from hesse.compress.hawq.traces import LayerTraces
from hesse.curvature.hessian import Function
from hesse.curvature.of_loss import Matrix, loss_curvature
from hesse.errors import ArgumentError, ShapeError

__all__ = [
    "WEIGHT_BITS",
    "Bits",
    "SensitivityTable",
    "TableKind",
    "check_widths",
    "clipped_average",
    "quadratic_table",
    "rounding_error",
    "sensitivity_table",
    "with_weight_costs",
]

Bits = int | tuple[int, int]
"""Of a weight, of an activation, or of both in this order."""
TableKind = Literal["weight", "activation", "joint"]

WEIGHT_BITS = (2, 3, 4, 6, 8)


@dataclass(frozen=True, slots=True)
class SensitivityTable:
    """Ω and costs of every layer at every option.

    Attributes
    ----------
    kind : {"weight", "activation", "joint"}
        What the bits are of.
    names : tuple of str
        L weights (by parameter), or layers whose input is meant.
    options : tuple of int, or of (int, int)
        M bit widths; pairs (weight, input) for "joint".
    numel : ndarray, shape (L,)
        Entries of each weight, or of one example's input.
    omega : ndarray, shape (L, M)
        In units of the loss, twice the predicted rise.
    error : ndarray, shape (L, M)
        ‖Q(W) - W‖², or its mean over examples; of the weights for "joint".
    average : ndarray, shape (L,)
        t_i, clipped at 0.
    costs : mapping of str to ndarray, shape (L, M)
        "size" in bits, "bitops" (multiplications times bits of both factors) where multiplications are known, and
        whatever `with_cost` added. Costs of layers add up.
    inputs : tuple of (str, int)
        For "joint": the layer whose input each weight meets, and the entries of one example's; else empty.
    """

    kind: TableKind
    names: tuple[str, ...]
    options: tuple[Bits, ...]
    numel: NDArray[np.int64]
    omega: NDArray[np.float64]
    error: NDArray[np.float64]
    average: NDArray[np.float64]
    costs: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    inputs: tuple[tuple[str, int], ...] = ()

    def with_cost(self, name: str, values: Any) -> "SensitivityTable":
        """Add a cost to choose or limit by, as a latency measured for every layer and width.

        Parameters
        ----------
        name : str
            What to call it.
        values : array_like, shape (L, M)
            Not negative, finite.

        Returns
        -------
        SensitivityTable
            A copy.

        Raises
        ------
        ShapeError
            If the shape is another.
        ArgumentError
            If a cost is negative, NaN or infinite.
        """
        costs = np.asarray(values, dtype=np.float64)
        if costs.shape != self.omega.shape:
            raise ShapeError(f"with_cost: {name} must have shape {self.omega.shape}, got {costs.shape}")
        if not np.all(np.isfinite(costs) & (costs >= 0)):
            raise ArgumentError(f"with_cost: {name} must be finite and not negative")
        return replace(self, costs={**self.costs, name: costs})

    def with_omega(self, omega: Any) -> "SensitivityTable":
        """Choose by another loss estimate: the squared error alone, top eigenvalues, a measurement.

        Parameters
        ----------
        omega : array_like, shape (L, M)
            The lower the better; finite.

        Returns
        -------
        SensitivityTable
            A copy.

        Raises
        ------
        ShapeError
            If the shape is another.
        ArgumentError
            If an entry is NaN or infinite.
        """
        values = np.asarray(omega, dtype=np.float64)
        if values.shape != self.omega.shape:
            raise ShapeError(f"with_omega: expected shape {self.omega.shape}, got {values.shape}")
        if not np.all(np.isfinite(values)):
            raise ArgumentError("with_omega: every entry must be finite")
        return replace(self, omega=values)

    def column(self, option: Bits) -> int:
        """Find an option.

        Parameters
        ----------
        option : int or (int, int)
            One of ``options``.

        Returns
        -------
        int
            Its column.

        Raises
        ------
        ArgumentError
            If the table does not have it.
        """
        if option not in self.options:
            raise ArgumentError(f"SensitivityTable: no column for {option} bits; there are {self.options}")
        return self.options.index(option)


def sensitivity_table(
    module: nn.Module,
    traces: LayerTraces,
    bits: Sequence[int] = WEIGHT_BITS,
    quantizer: UniformQuantizer | None = None,
    *,
    macs: Mapping[str, int] | None = None,
    activation_bits: int = 8,
) -> SensitivityTable:
    """Multiply average traces by the squared errors that quantisation makes.

    Parameters
    ----------
    module : nn.Module
        The model the traces are of.
    traces : LayerTraces
        From `layer_traces`.
    bits : sequence of int, default (2, 3, 4, 6, 8)
        Widths to choose from.
    quantizer : UniformQuantizer, optional
        How weights are rounded; its own width is not used. Default: ``UniformQuantizer()``, symmetric, one scale a
        tensor.
    macs : mapping of str to int, optional
        From `count_macs`: adds the cost "bitops".
    activation_bits : int, default 8
        Of the other factor in "bitops".

    Returns
    -------
    SensitivityTable
        Of the weights that ``traces`` names.

    Raises
    ------
    ArgumentError
        If a width is out of range or there is none, or the traces are of another model.

    Warns
    -----
    UserWarning
        If a trace is negative (it is taken as 0): the model is not at a minimum, or the trace is not known well
        enough; true "ggn" traces are never negative. If the gradient, which Ω leaves out, would move the loss more
        than the curvature in most layers at the fewest bits.
    """
    call = "sensitivity_table"
    weights = _weights_of(call, module, traces.names)
    widths = check_widths(call, bits)
    average = clipped_average(call, traces)
    error = np.array([[_squared_error(p, w, b, quantizer) for b in widths] for w, p in weights])
    numel = np.array([w.numel for w, _ in weights], dtype=np.int64)
    table = SensitivityTable("weight", traces.names, widths, numel, average[:, None] * error, error, average)
    _warn_of_gradient(call, table, traces)
    return with_weight_costs(table, macs, activation_bits)


def quadratic_table(
    module: nn.Module,
    loss_fn: Function,
    batches: Any,
    bits: Sequence[int] = WEIGHT_BITS,
    quantizer: UniformQuantizer | None = None,
    *,
    layers: Iterable[str] | None = None,
    matrix: Matrix = "hessian",
    macs: Mapping[str, int] | None = None,
    activation_bits: int = 8,
) -> SensitivityTable:
    """Ω_i(b) = ΔWᵀ H_i ΔW with the rounding errors themselves: the second-order prediction without the trace's average.

    Parameters
    ----------
    module : nn.Module
        The trained model.
    loss_fn : callable
        (model, batch) -> scalar, the mean over the examples.
    batches : object, list, DataLoader or BatchStream
        Calibration data.
    bits, quantizer : sequence of int and UniformQuantizer, optional
        As in `sensitivity_table`.
    layers : iterable of str, optional
        As in `quantizable_weights`.
    matrix : {"hessian", "ggn"}, default "hessian"
        Negative products of a Hessian are taken as 0.
    macs, activation_bits : mapping and int, optional
        As in `sensitivity_table`.

    Returns
    -------
    SensitivityTable
        ``average`` is Ω over the squared error at the fewest bits.

    Raises
    ------
    ArgumentError
        If a width is out of range, or a layer unknown.

    Notes
    -----
    L M products with blocks of the matrix, against K with the whole for traces.
    """
    call = "quadratic_table"
    widths = check_widths(call, bits)
    names = [w.name for w in quantizable_weights(module, layers)]
    weights = _weights_of(call, module, names)
    operator = loss_curvature(
        loss_fn, module, batches, matrix=matrix, names=names, reduction="weighted_mean", block_size=len(widths)
    )
    error, omega = np.zeros((len(names), len(widths))), np.zeros((len(names), len(widths)))
    with torch.no_grad():
        for i, (weight, parameter) in enumerate(weights):
            deltas = torch.stack([rounding_error(parameter, weight, b, quantizer).reshape(-1) for b in widths], dim=1)
            products = operator.block([weight.name]).matmat(deltas)
            omega[i] = (deltas.double() * products.double()).sum(0).clamp_min(0).cpu().numpy()
            error[i] = deltas.double().square().sum(0).cpu().numpy()
    numel = np.array([w.numel for w, _ in weights], dtype=np.int64)
    average = np.divide(omega[:, 0], error[:, 0], out=np.zeros(len(names)), where=error[:, 0] > 0)
    table = SensitivityTable("weight", tuple(names), widths, numel, omega, error, average)
    return with_weight_costs(table, macs, activation_bits)


def check_widths(call: str, bits: Sequence[int]) -> tuple[int, ...]:
    """Refuse widths that cannot head the columns of a table.

    Parameters
    ----------
    call : str
        The caller, for the message.
    bits : sequence of int
        What came.

    Returns
    -------
    tuple of int
        Rising.

    Raises
    ------
    ArgumentError
        If a width is out of range or there twice, or there is none.
    """
    for width in bits:
        check_bits(call, width)
    if not bits or len(set(bits)) != len(bits):
        raise ArgumentError(f"{call}: bits must be different widths, at least one; got {tuple(bits)}")
    return tuple(sorted(bits))


def _weights_of(call: str, module: nn.Module, names: Sequence[str]) -> list[tuple[QuantizableWeight, Tensor]]:
    known = {w.name: w for w in quantizable_weights(module)}
    if unknown := [name for name in names if name not in known]:
        raise ArgumentError(
            f"{call}: the model has no quantisable weight {', '.join(unknown)}; are the traces its own?"
        )
    parameters = dict(module.named_parameters())
    return [(known[name], parameters[name]) for name in names]


def rounding_error(
    parameter: Tensor, weight: QuantizableWeight, bits: int, quantizer: UniformQuantizer | None
) -> Tensor:
    """Compute Q(W; b) - W.

    Parameters
    ----------
    parameter : Tensor
        W.
    weight : QuantizableWeight
        What it is.
    bits : int
        b.
    quantizer : UniformQuantizer, optional
        The rule. Default: ``UniformQuantizer()``.

    Returns
    -------
    Tensor
        Shaped like W.
    """
    grid = (quantizer or UniformQuantizer()).with_bits(bits).grid(parameter, axis=weight.channel_axis)
    return grid.round_trip(parameter.detach()) - parameter.detach()


def _squared_error(
    parameter: Tensor, weight: QuantizableWeight, bits: int, quantizer: UniformQuantizer | None
) -> float:
    return float(rounding_error(parameter, weight, bits, quantizer).double().square().sum())


def clipped_average(call: str, traces: LayerTraces) -> NDArray[np.float64]:
    """Take negative average traces as 0, and say so.

    Parameters
    ----------
    call : str
        The caller, for the warning.
    traces : LayerTraces
        Of a Hessian, where they may be negative.

    Returns
    -------
    ndarray, shape (L,)
        Not negative.
    """
    average = traces.average.numpy()
    negative = [name for name, value in zip(traces.names, average.tolist(), strict=True) if value < 0]
    if negative:
        warnings.warn(
            f"{call}: negative traces are taken as 0: {', '.join(negative)}; train to a minimum, take matrix='ggn', or "
            "more probes",
            stacklevel=3,
        )
    return np.maximum(average, 0.0)


def _warn_of_gradient(call: str, table: SensitivityTable, traces: LayerTraces) -> None:
    # an error of random direction moves the loss by ± ‖g‖ √(error / n) to first order, and by Ω/2 to second
    first = traces.gradient_norm.numpy() * np.sqrt(table.error[:, 0] / table.numel)
    if np.mean(first > table.omega[:, 0] / 2) > 0.5:
        warnings.warn(
            f"{call}: the gradient moves the loss more than the curvature in most layers, even at {table.options[0]} "
            "bits; the model is far from a minimum of this loss, and the plan will mean little",
            stacklevel=3,
        )


def with_weight_costs(
    table: SensitivityTable, macs: Mapping[str, int] | None, activation_bits: int
) -> SensitivityTable:
    """Add "size", and "bitops" where multiplications are known.

    Parameters
    ----------
    table : SensitivityTable
        Of weights.
    macs : mapping of str to int, optional
        From `count_macs`.
    activation_bits : int
        Of the other factor.

    Returns
    -------
    SensitivityTable
        A copy.

    Raises
    ------
    ArgumentError
        If ``macs`` leaves a weight out, or the width is out of range.
    """
    widths = np.array(table.options, dtype=np.float64)
    found = table.with_cost("size", table.numel[:, None] * widths)
    if macs is None:
        return found
    check_bits("sensitivity_table", activation_bits, "activation_bits")
    if missing := [name for name in table.names if name not in macs]:
        raise ArgumentError(f"sensitivity_table: macs says nothing of {', '.join(missing)}")
    times = np.array([macs[name] for name in table.names], dtype=np.float64)
    return found.with_cost("bitops", times[:, None] * widths * activation_bits)
