"""The parts that round: a weight as it trains, a weight as it is stored, and the input of a layer."""

from typing import Any

import torch
from torch import Tensor, nn

from hesse.compress.hawq.packing import unpack_integers
from hesse.compress.hawq.quantizer import QuantizationGrid, UniformQuantizer
from hesse.errors import ArgumentError

__all__ = ["ActivationQuantizer", "PackedWeight", "RoundedWeight"]

_NUM_ATTENTION_INPUTS = 3  # query, key, value; what follows is masks and flags


class RoundedWeight(nn.Module):
    """Parametrisation W -> Q(W) with a grid that stays put until `refit`.

    Parameters
    ----------
    weight : Tensor
        What the grid is fitted to.
    quantizer : UniformQuantizer
        Of the width wanted.
    channel_axis : int, default 0
        Of the weight.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, quantizer: UniformQuantizer, channel_axis: int = 0) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.channel_axis = channel_axis
        grid = quantizer.grid(weight, axis=channel_axis)
        self.low, self.high = grid.low, grid.high
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)

    @property
    def grid(self) -> QuantizationGrid:
        """The grid in use."""
        return QuantizationGrid(self.scale, self.zero_point, self.low, self.high)

    def refit(self, weight: Tensor) -> None:
        """Fit the grid anew, as training moves the weight.

        Parameters
        ----------
        weight : Tensor
            The weight before rounding.
        """
        grid = self.quantizer.grid(weight, axis=self.channel_axis)
        self.scale.copy_(grid.scale)
        self.zero_point.copy_(grid.zero_point)

    def forward(self, weight: Tensor) -> Tensor:
        """Round, in the straight-through way; see `QuantizationGrid.round_trip`.

        Parameters
        ----------
        weight : Tensor
            W.

        Returns
        -------
        Tensor
            Q(W).
        """
        return self.grid.round_trip(weight)


class PackedWeight(nn.Module):
    """Parametrisation of packed bytes -> Q(W), for a weight that no longer trains.

    Parameters
    ----------
    grid : QuantizationGrid
        What the whole numbers stand for.
    bits : int
        Of each.
    shape : torch.Size
        Of the weight.
    dtype : torch.dtype
        Of the weight.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: QuantizationGrid, bits: int, shape: torch.Size, dtype: torch.dtype) -> None:
        super().__init__()
        self.low, self.high, self.bits = grid.low, grid.high, bits
        self.shape, self.dtype = tuple(shape), dtype
        self.register_buffer("scale", grid.scale.clone())
        self.register_buffer("zero_point", grid.zero_point.clone())

    def codes(self, packed: Tensor) -> Tensor:
        """Unpack the whole numbers.

        Parameters
        ----------
        packed : Tensor of uint8
            The bytes.

        Returns
        -------
        Tensor of int16
            Shaped like the weight.
        """
        return unpack_integers(packed, self.bits, self.low, self.shape)

    def forward(self, packed: Tensor) -> Tensor:
        """Unpack and scale.

        Parameters
        ----------
        packed : Tensor of uint8
            The bytes.

        Returns
        -------
        Tensor
            Q(W).
        """
        grid = QuantizationGrid(self.scale, self.zero_point, self.low, self.high)
        return grid.decode(self.codes(packed)).to(self.dtype)


class ActivationQuantizer(nn.Module):
    """Rounds the input of a layer; its range comes from calibration.

    The range is a running mean of each batch's, which a single outlier cannot spoil.

    Parameters
    ----------
    quantizer : UniformQuantizer
        Of the width wanted; one scale for the whole tensor.
    decay : float, default 0.99
        Share of the old range that a new batch leaves.
    device : torch.device, optional
        Where the range lies. Default: the CPU.
    """

    low: Tensor
    high: Tensor

    def __init__(self, quantizer: UniformQuantizer, decay: float = 0.99, device: torch.device | None = None) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.decay = decay
        self.is_observing = False
        self.num_batches = 0
        self.register_buffer("low", torch.full((), torch.nan, device=device))
        self.register_buffer("high", torch.full((), torch.nan, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Round, or look at the range and hand on.

        Parameters
        ----------
        x : Tensor
            Floating.

        Returns
        -------
        Tensor
            Like ``x``.
        """
        if self.is_observing:
            self._observe(x)
            return x
        return self.quantizer.grid_of_range(self.low, self.high).round_trip(x)

    def round_inputs(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of a layer: round its input, and all three of an attention layer.

        Parameters
        ----------
        inputs : tuple
            Positional arguments of the call.

        Returns
        -------
        tuple
            The same with floating tensors rounded.

        Raises
        ------
        ArgumentError
            If the layer is called without positional arguments.
        """
        if not inputs or not isinstance(inputs[0], Tensor):
            raise ArgumentError("QuantizedModel: a layer with rounded inputs needs them as positional arguments")
        first, rounded = inputs[0], self(inputs[0])
        others = [
            rounded if x is first else self(x) if isinstance(x, Tensor) and x.is_floating_point() else x
            for x in inputs[1:_NUM_ATTENTION_INPUTS]
        ]
        return (rounded, *others, *inputs[_NUM_ATTENTION_INPUTS:])

    def start(self) -> None:
        """Forget the range, and look at it from now on."""
        self.is_observing, self.num_batches = True, 0

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        grid = self.quantizer.grid(x)
        low = grid.decode(torch.tensor(grid.low, device=x.device)).to(self.low)
        high = grid.decode(torch.tensor(grid.high, device=x.device)).to(self.high)
        if self.num_batches == 0:
            self.low.copy_(low)
            self.high.copy_(high)
        else:
            share = max(1 - self.decay, 1 / (self.num_batches + 1))  # a plain mean until the decay takes over
            self.low.lerp_(low, share)
            self.high.lerp_(high, share)
        self.num_batches += 1
