"""Uniform quantisation of a tensor: the grid, its best scale, and rounding that lets gradients through.

    Q(x; b) = s (clamp(round(x / s + z), low, high) - z)

Shapes: R channels, N entries in each (R = 1 without channels).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = ["MAX_BITS", "MIN_BITS", "MIN_SCALE", "QuantizationGrid", "ScaleRule", "UniformQuantizer", "check_bits"]

ScaleRule = Literal["auto", "max", "mse", "percentile"]
_RULES = ("auto", "max", "mse", "percentile")

MIN_BITS, MAX_BITS = 2, 8
MIN_SCALE = 1e-8
"""Of a tensor that is zero throughout, so that nothing is divided by zero."""

_WIDE = 4  # bits from which clipping is worse than coarse steps
_COARSE, _RATIO, _FINE = 32, 0.885, 12  # shrink factors 1 ... 0.02, then 12 between the neighbours of the best


def check_bits(call: str, bits: object, name: str = "bits") -> None:
    """Refuse a bit width that the grid does not have.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    bits : object
        What came.

    Raises
    ------
    ArgumentTypeError
        If it is no whole number.
    ArgumentError
        If it is not in 2 ... 8: one bit needs a binary quantiser, more than eight save nothing worth choosing.
    """
    if not isinstance(bits, int) or isinstance(bits, bool):
        raise ArgumentTypeError(f"{call}: {name} must be a whole number, got {bits!r}")
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ArgumentError(f"{call}: expected {MIN_BITS} <= {name} <= {MAX_BITS}, got {bits}")


@dataclass(frozen=True, slots=True)
class QuantizationGrid:
    """The levels s (k - z) for whole k from ``low`` to ``high``."""

    scale: Tensor  # s > 0, broadcastable to the tensor, float32 or wider
    zero_point: Tensor  # z, whole, shaped like scale; zero for a symmetric grid
    low: int
    high: int

    def round_trip(self, x: Tensor) -> Tensor:
        """Q(x), with the derivative of a clamp: one inside the range, zero outside (straight-through).

        Parameters
        ----------
        x : Tensor
            Any shape that the scale broadcasts to.

        Returns
        -------
        Tensor
            In the dtype of ``x``; half precision is rounded in float32.
        """
        position = (x.to(self.scale.dtype) / self.scale + self.zero_point).clamp(self.low, self.high)
        rounded = position + (position.round() - position).detach()
        return ((rounded - self.zero_point) * self.scale).to(x.dtype)

    def encode(self, x: Tensor) -> Tensor:
        """k, the whole numbers that stand for x.

        Parameters
        ----------
        x : Tensor
            Any shape that the scale broadcasts to.

        Returns
        -------
        Tensor of int16
            From ``low`` to ``high``.
        """
        position = x.detach().to(self.scale.dtype) / self.scale + self.zero_point
        return position.round().clamp(self.low, self.high).to(torch.int16)

    def decode(self, codes: Tensor) -> Tensor:
        """S (k - z); the inverse of `encode` on the grid.

        Parameters
        ----------
        codes : Tensor of whole numbers
            As `encode` gives.

        Returns
        -------
        Tensor
            In the dtype of the scale.
        """
        return (codes.to(self.scale.dtype) - self.zero_point) * self.scale


@dataclass(frozen=True, slots=True)
class UniformQuantizer:
    """How a tensor is put on a uniform grid.

    Symmetric: n = 2^(b-1) - 1 steps to the largest magnitude, levels -n-1 ... n, zero point 0. Asymmetric: 2^b - 1
    steps from the smallest to the largest entry (zero always lies on the grid).

    Parameters
    ----------
    bits : int, default 8
        b, from 2 to 8.
    symmetric : bool, default True
        As weights want it; activations, mostly one-sided, do not.
    per_channel : bool, default False
        A scale for every slice along one axis. A scale is 32 bits more to store for each.
    scale : {"auto", "max", "mse", "percentile"}, default "auto"
        "max": the range of the data. "mse": that range shrunk by the factor that leaves the least squared error, found
        by search. "percentile": the range of all but the outermost entries. "auto": "mse" below 4 bits or with one
        scale a tensor, where "max" spends its few levels on outliers and errors grow too large for any quadratic
        model; "max" from 4 bits on with a scale a channel, where clipping the largest weights, an error that all
        examples feel the same way, costs more loss than the squared error it saves.
    percentile : float, default 99.9
        Of the magnitudes kept by "percentile", in (0, 100].

    Raises
    ------
    ArgumentError
        If a number is out of range or the rule unknown.
    ArgumentTypeError
        If ``bits`` is no whole number.

    Examples
    --------
    >>> UniformQuantizer(2, scale="max").grid(torch.tensor([-1.0, 0.2, 1.0])).round_trip(torch.tensor([-1.0, 0.2, 1.0]))
    tensor([-1.,  0.,  1.])
    """

    bits: int = 8
    symmetric: bool = True
    per_channel: bool = False
    scale: ScaleRule = "auto"
    percentile: float = 99.9

    def __post_init__(self) -> None:
        check_bits("UniformQuantizer", self.bits)
        if self.scale not in _RULES:
            raise ArgumentError(f"UniformQuantizer: scale must be one of {', '.join(_RULES)}; got {self.scale!r}")
        if not 0 < self.percentile <= 100:
            raise ArgumentError(f"UniformQuantizer: expected 0 < percentile <= 100, got {self.percentile}")

    def with_bits(self, bits: int) -> Self:
        """Copy the rule at another width.

        Parameters
        ----------
        bits : int
            From 2 to 8.

        Returns
        -------
        UniformQuantizer
            The copy.
        """
        return replace(self, bits=bits)

    def grid(self, x: Tensor, *, axis: int = 0) -> QuantizationGrid:
        """Fit the grid to a tensor.

        Parameters
        ----------
        x : Tensor
            Real; read, never changed.
        axis : int, default 0
            The channels, used by ``per_channel`` alone: output channels of Linear and Conv.

        Returns
        -------
        QuantizationGrid
            Scale of shape (1, ..., R, ..., 1), or () without channels; no gradient flows into it.

        Raises
        ------
        ArgumentError
            If the tensor is empty, or holds NaN or Inf.

        Notes
        -----
        "mse" takes 44 passes over the tensor.
        """
        if x.numel() == 0:
            raise ArgumentError("UniformQuantizer.grid: the tensor is empty")
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        if not bool(wide.isfinite().all()):
            raise ArgumentError("UniformQuantizer.grid: the tensor holds NaN or Inf")
        rows_RN = wide.movedim(axis, 0).flatten(1) if self.per_channel and x.ndim > 1 else wide.reshape(1, -1)
        low_R, high_R = self._range(rows_RN)
        if self.scale == "mse" or (self.scale == "auto" and (self.bits < _WIDE or not self.per_channel)):
            low_R, high_R = self._shrunk(rows_RN, low_R, high_R)
        grid = self.grid_of_range(low_R, high_R)
        if len(rows_RN) == 1 and not (self.per_channel and x.ndim > 1):
            return replace(grid, scale=grid.scale.reshape(()), zero_point=grid.zero_point.reshape(()))
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        return replace(grid, scale=grid.scale.reshape(shape), zero_point=grid.zero_point.reshape(shape))

    def grid_of_range(self, low: Tensor, high: Tensor) -> QuantizationGrid:
        """Lay the grid over a range that is known already.

        Parameters
        ----------
        low, high : Tensor
            Smallest and largest value, of equal shape; a symmetric grid reaches the larger of the two magnitudes.

        Returns
        -------
        QuantizationGrid
            Scale shaped like the range.
        """
        if self.symmetric:
            n = 2 ** (self.bits - 1) - 1
            scale = (torch.maximum(-low, high) / n).clamp_min(MIN_SCALE)
            return QuantizationGrid(scale, torch.zeros_like(scale), -n - 1, n)
        top = 2**self.bits - 1
        low, high = low.clamp_max(0), high.clamp_min(0)  # zero, what padding and ReLU give, must be exact
        scale = ((high - low) / top).clamp_min(MIN_SCALE)
        return QuantizationGrid(scale, (-low / scale).round(), 0, top)

    def _range(self, rows_RN: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale != "percentile":
            return rows_RN.amin(1), rows_RN.amax(1)
        n = rows_RN.shape[1]
        keep = min(n, max(1, round(self.percentile / 100 * n)))
        if self.symmetric:
            reach = rows_RN.abs().kthvalue(keep, dim=1).values
            return -reach, reach
        return -(-rows_RN).kthvalue(keep, dim=1).values, rows_RN.kthvalue(keep, dim=1).values

    def _shrunk(self, rows_RN: Tensor, low_R: Tensor, high_R: Tensor) -> tuple[Tensor, Tensor]:
        def error(factor_R: Tensor) -> Tensor:
            grid = self.grid_of_range((low_R * factor_R).unsqueeze(1), (high_R * factor_R).unsqueeze(1))
            return (grid.round_trip(rows_RN) - rows_RN).square_().sum(1)

        best_R = _least(error, [torch.full_like(low_R, _RATIO**i) for i in range(_COARSE)])
        between = torch.linspace(_RATIO, 1 / _RATIO, _FINE + 2, dtype=low_R.dtype)[1:-1].tolist()
        best_R = _least(error, [best_R, *((best_R * step).clamp_max(1.0) for step in between)])
        return low_R * best_R, high_R * best_R


def _least(error: Callable[[Tensor], Tensor], factors: list[Tensor]) -> Tensor:
    best, lowest = factors[0], error(factors[0])
    for factor in factors[1:]:
        found = error(factor)
        best, lowest = torch.where(found < lowest, factor, best), torch.minimum(found, lowest)
    return best
