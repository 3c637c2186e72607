"""A model whose weights and inputs are rounded as a plan says: to measure it, to train it on, and to store it small.

The layers stay what they are (Linear, Conv, MultiheadAttention); their weights become parametrised, their inputs pass
through a hook. Gradients go straight through the rounding.
"""

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hesse.compress.hawq.activation_sensitivity import ACTIVATION_QUANTIZER
from hesse.compress.hawq.layers import QuantizableWeight, quantizable_weights, tapped_layers
from hesse.compress.hawq.packing import pack_integers
from hesse.compress.hawq.plan import BitPlan
from hesse.compress.hawq.quantizer import QuantizationGrid, UniformQuantizer
from hesse.compress.hawq.rounding import ActivationQuantizer, PackedWeight, RoundedWeight
from hesse.curvature.batches import as_batches, to_device
from hesse.curvature.hessian import Function
from hesse.errors import ArgumentError

__all__ = ["QuantizedModel", "quantize_model"]


class QuantizedModel(nn.Module):
    """A model under a plan; called like the model. `quantize_model` makes it.

    Parameters
    ----------
    module : nn.Module
        The model, changed in place.
    plan : BitPlan
        Bits of weights, and of inputs of layers.
    quantizer, activation_quantizer : UniformQuantizer
        How they are rounded; their own widths are not used.

    Raises
    ------
    ArgumentError
        If the plan names what the model does not have, or a weight is quantised already.
    """

    def __init__(
        self, module: nn.Module, plan: BitPlan, quantizer: UniformQuantizer, activation_quantizer: UniformQuantizer
    ) -> None:
        super().__init__()
        weights = {w.name: w for w in quantizable_weights(module)}
        if unknown := [name for name in plan.weights if name not in weights]:
            raise ArgumentError(f"quantize_model: no quantisable weight {', '.join(unknown)}; see quantizable_weights")
        tapped = tapped_layers(module, weights.values())
        if unknown := [name for name in plan.activations if name not in tapped]:
            raise ArgumentError(f"quantize_model: the input of {', '.join(unknown)} cannot be quantised")
        self.module = module
        self.plan = plan
        self.weights: tuple[QuantizableWeight, ...] = tuple(weights[name] for name in plan.weights)
        self.is_frozen = False
        parameters = dict(module.named_parameters())
        for weight in self.weights:
            rule = quantizer.with_bits(plan.weights[weight.name])
            rounded = RoundedWeight(parameters[weight.name], rule, weight.channel_axis)
            for layer, attribute in weight.places:
                parametrize.register_parametrization(module.get_submodule(layer), attribute, rounded)
        self.is_calibrated = not plan.activations
        self.register_load_state_dict_post_hook(_ranges_loaded)
        self.activations = nn.ModuleDict()
        device = next(module.parameters()).device
        for layer, bits in plan.activations.items():
            rounding = ActivationQuantizer(activation_quantizer.with_bits(bits), device=device)
            self.activations[f"input of {layer.replace('.', '/')}"] = rounding  # torch allows no dot, nor nothing
            module.get_submodule(layer).register_forward_pre_hook(rounding.round_inputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model.

        Parameters
        ----------
        *args, **kwargs
            Handed on.

        Returns
        -------
        object
            What the model returns.

        Raises
        ------
        ArgumentError
            If inputs are to be quantised and no data have set their ranges.
        """
        if not self.is_calibrated:
            raise ArgumentError("QuantizedModel: call calibrate(forward_fn, batches) first: inputs have no range yet")
        return self.module(*args, **kwargs)

    def _roundings(self) -> Iterator[ActivationQuantizer]:
        return (part for part in self.activations.values() if isinstance(part, ActivationQuantizer))

    def calibrate(self, forward_fn: Function, batches: Any) -> "QuantizedModel":
        """Set the ranges of inputs from data; weights need none.

        Parameters
        ----------
        forward_fn : callable
            (model, batch) -> anything; a loss function serves.
        batches : object, list, DataLoader or BatchStream
            Calibration data.

        Returns
        -------
        QuantizedModel
            Itself. Inputs are not rounded while ranges are looked at.
        """
        device = next(chain(self.module.parameters(), self.module.buffers())).device
        for rounding in self._roundings():
            rounding.start()
        try:
            with torch.no_grad():
                for batch in as_batches("calibrate", batches):
                    forward_fn(self.module, to_device(batch, device))
            self.is_calibrated = True
        finally:
            for rounding in self._roundings():
                rounding.is_observing = False
        return self

    def activation_ranges(self) -> dict[str, dict[str, float]]:
        """Give bits and range of every rounded input, as JSON values.

        Returns
        -------
        dict of str to dict
            By layer: "bits", and "low" and "high", NaN before `calibrate`.
        """
        layers = zip(self.plan.activations.items(), self._roundings(), strict=True)
        return {
            layer: {"bits": bits, "low": float(part.low), "high": float(part.high)} for (layer, bits), part in layers
        }

    def refit(self) -> None:
        """Fit every weight's grid to the weight as it is now."""
        if self.is_frozen:
            return
        for weight in self.weights:
            rounded, original = self._place(weight)
            if isinstance(rounded, RoundedWeight):
                rounded.refit(original)

    def freeze(self) -> "QuantizedModel":
        """Replace every quantised weight by packed whole numbers; it no longer trains.

        Returns
        -------
        QuantizedModel
            Itself. Outputs stay the same to the bit. Packed weights are unpacked in every call: this saves memory and
            disk, not time. A second call does nothing.
        """
        for weight in self.weights if not self.is_frozen else ():
            rounded, original = self._place(weight)
            if not isinstance(rounded, RoundedWeight):
                continue
            grid, bits = rounded.grid, rounded.quantizer.bits
            packed = pack_integers(grid.encode(original), bits, grid.low)
            stored = PackedWeight(grid, bits, original.shape, original.dtype)
            for layer, attribute in weight.places:
                part = self.module.get_submodule(layer)
                parametrize.remove_parametrizations(part, attribute, leave_parametrized=False)
                delattr(part, attribute)
                part.register_buffer(attribute, packed)
                parametrize.register_parametrization(part, attribute, stored, unsafe=True)
        self.is_frozen = True
        return self

    def integers(self) -> dict[str, tuple[Tensor, QuantizationGrid]]:
        """Give the whole numbers behind every quantised weight, and what they stand for.

        Returns
        -------
        dict of str to (Tensor of int16, QuantizationGrid)
            By the name of the parameter.
        """
        found: dict[str, tuple[Tensor, QuantizationGrid]] = {}
        for weight in self.weights:
            rounding, original = self._place(weight)
            if isinstance(rounding, RoundedWeight):
                found[weight.name] = rounding.grid.encode(original), rounding.grid
            elif isinstance(rounding, PackedWeight):
                grid = QuantizationGrid(rounding.scale, rounding.zero_point, rounding.low, rounding.high)
                found[weight.name] = rounding.codes(original), grid
        return found

    def dequantized_state_dict(self) -> dict[str, Tensor]:
        """Give the weights as plain numbers, under the names of the model before it was quantised.

        Returns
        -------
        dict of str to Tensor
            ``model.load_state_dict`` takes it; rounded inputs are not part of it.
        """
        rounded = {
            f"{layer}.{attribute}" if layer else attribute: getattr(self.module.get_submodule(layer), attribute)
            for weight in self.weights
            for layer, attribute in weight.places
        }
        plain = {name: value for name, value in self.module.state_dict().items() if "parametrizations." not in name}
        return {name: value.detach().clone() for name, value in (plain | rounded).items()}

    def storage_bytes(self) -> int:
        """Bytes of all weights as stored: packed where quantised, with their scales.

        Returns
        -------
        int
            A tensor shared by several layers counts once.
        """
        bits = self.plan.weights
        quantised = sum(-(-w.numel * bits[w.name] // 8) for w in self.weights)
        grids = sum(grid.scale.numel() * 4 for _, grid in self.integers().values())
        inside = {id(self._place(weight)[1]) for weight in self.weights}
        rest = sum(p.numel() * p.element_size() for p in self.module.parameters() if id(p) not in inside)
        return quantised + grids + rest

    def _place(self, weight: QuantizableWeight) -> tuple[nn.Module, Tensor]:
        layer, attribute = weight.places[0]
        listed = getattr(self.module.get_submodule(layer).parametrizations, attribute)
        return listed[0], listed.original


def quantize_model(
    module: nn.Module,
    plan: BitPlan,
    quantizer: UniformQuantizer | None = None,
    *,
    activation_quantizer: UniformQuantizer = ACTIVATION_QUANTIZER,
    inplace: bool = False,
) -> QuantizedModel:
    """Round the weights and inputs that a plan names.

    Parameters
    ----------
    module : nn.Module
        The model; copied unless ``inplace``.
    plan : BitPlan
        From `allocate_bits`, or made by hand.
    quantizer : UniformQuantizer, optional
        For weights: the one the plan was made with. Default: ``UniformQuantizer()``: symmetric, one scale a tensor.
    activation_quantizer : UniformQuantizer, default asymmetric, smallest to largest entry
        For inputs; they need `QuantizedModel.calibrate` before the first call.
    inplace : bool, default False
        Change ``module`` itself.

    Returns
    -------
    QuantizedModel
        Called like the model; trains through the rounding; `QuantizedModel.freeze` packs it.

    Raises
    ------
    ArgumentError
        If the plan names what the model does not have, or ``activation_quantizer`` is per channel.

    Notes
    -----
    Convert the model to another dtype before, not after: scales are kept in float32 or wider, and a later
    ``.to(torch.bfloat16)`` would round them too. Models on any device; rounding happens in every call, on that device.
    """
    if activation_quantizer.per_channel:
        raise ArgumentError("quantize_model: inputs have one scale for the whole tensor; use per_channel=False")
    return QuantizedModel(
        module if inplace else copy.deepcopy(module), plan, quantizer or UniformQuantizer(), activation_quantizer
    )


def _ranges_loaded(model: nn.Module, _incompatible: Any) -> None:
    if isinstance(model, QuantizedModel):
        model.is_calibrated = all(
            bool(part.low.isfinite()) for part in model.activations.values() if isinstance(part, ActivationQuantizer)
        )
