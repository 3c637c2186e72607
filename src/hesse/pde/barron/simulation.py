"""The descent as a deep network of squares, which makes new waves from old.   Shapes: N points, D axes, K waves."""

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor, nn

from hesse.errors import ArgumentError, ShapeError
from hesse.pde.barron.plane_waves import PlaneWaveSeries
from hesse.pde.barron.series import FourierSeries

__all__ = ["ProductBlock", "simulate_network"]

Frequency = tuple[int, ...]
Pair = tuple[Frequency, Frequency]


class WaveLayer(nn.Module):
    """x ↦ (cos θ, sin θ) with θ = x W^T: (N, D) to (N, 2K)."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the waves at points (N, D).

        Returns
        -------
        Tensor, shape (N, 2K)
            Cosines, then sines.
        """
        angle_NK = x @ self.weights.T
        return torch.cat([angle_NK.cos(), angle_NK.sin()], dim=1)

    @property
    def num_weights(self) -> int:
        """Entries of W."""
        return self.weights.numel()


class ProductBlock(nn.Module):
    """Append waves of frequency a + b to waves of frequencies a and b, through the square as only activation.

    cos(a + b) = cos a cos b - sin a sin b and the like for the sine, each product as ((p + q)² - (p - q)²) / 4.

    Parameters
    ----------
    left, right : Tensor, shape (K',), int64
        Positions of a and b among the K waves that come in.
    left_sign, right_sign : Tensor, shape (K',)
        -1 where the wave of -a is meant: its sine changes sign.
    """

    def __init__(self, left: Tensor, right: Tensor, left_sign: Tensor, right_sign: Tensor) -> None:
        super().__init__()
        self.left: Tensor
        self.right: Tensor
        self.left_sign: Tensor
        self.right_sign: Tensor
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.register_buffer("left_sign", left_sign)
        self.register_buffer("right_sign", right_sign)

    def forward(self, waves: Tensor) -> Tensor:
        """Append the new waves to waves (N, 2K).

        Returns
        -------
        Tensor, shape (N, 2(K + K'))
            Cosines, then sines.
        """
        cosines, sines = waves.chunk(2, dim=1)
        cos_a, cos_b = cosines[:, self.left], cosines[:, self.right]
        sin_a, sin_b = sines[:, self.left] * self.left_sign, sines[:, self.right] * self.right_sign
        new_cosines = _product(cos_a, cos_b) - _product(sin_a, sin_b)
        new_sines = _product(sin_a, cos_b) + _product(cos_a, sin_b)
        return torch.cat([cosines, new_cosines, sines, new_sines], dim=1)

    @property
    def num_weights(self) -> int:
        """Non-zero weights: four products a wave, two squares of two inputs each, and two weights to add them."""
        return len(self.left) * 4 * (4 + 2)


def simulate_network(iterates: Sequence[FourierSeries]) -> tuple[nn.Sequential, int]:
    """Write the last iterate as a network with one or two blocks for each enlargement of the frequencies on the way.

    The first layer makes the waves of the first series that has terms; each block the waves that the next one adds, as
    products of those it has; the last layer holds the coefficients, where all applications of (I - Δ)⁻¹ have been
    carried out, since on single waves it is a weight.

    Parameters
    ----------
    iterates : sequence of FourierSeries
        u_0, u_1, ... of a descent with a cubic reaction, in one space: frequencies added in a step are sums of at most
        three that were there, up to sign.

    Returns
    -------
    network : nn.Sequential
        Maps points (N, D) to values (N, 1) of the last iterate, exactly up to rounding.
    num_weights : int
        Its non-zero weights.

    Raises
    ------
    ArgumentError
        If no series has terms, or a frequency is no sum of three earlier ones.
    ShapeError
        If the series are in different dimensions.

    Notes
    -----
    Decompositions are found by search: O(new · old) dictionary look-ups a step, O(new · old²) where a helper is needed.

    References
    ----------
    T. Marwah, Z. C. Lipton, J. Lu, A. Risteski (2023), ICML, arXiv 2210.12101, for simulating the iteration neurally.
    """
    filled = [series for series in iterates if series.num_terms > 0]
    if not filled:
        raise ArgumentError("simulate_network: no iterate has any terms")
    if len({series.dim for series in filled}) > 1:
        raise ShapeError("simulate_network: the iterates are in different dimensions")
    last = filled[-1]
    base = 2 * pi if isinstance(last, PlaneWaveSeries) else pi
    known = {frequency: i for i, frequency in enumerate(_frequencies(filled[0], base))}
    like = last.coef.real
    start = torch.tensor(list(known), dtype=like.dtype, device=like.device) * base
    layers: list[nn.Module] = [WaveLayer(start)]
    for series in filled[1:]:
        missing = [frequency for frequency in _frequencies(series, base) if frequency not in known]
        while missing:
            found, missing = _decompose(missing, known)
            layers.append(_block(found, known, like))
    layers.append(_readout(last, known, base))
    weights = sum(layer.num_weights for layer in layers if isinstance(layer, WaveLayer | ProductBlock))
    return nn.Sequential(*layers), weights + sum(p.numel() for p in layers[-1].parameters())


def _product(p: Tensor, q: Tensor) -> Tensor:
    return ((p + q).square() - (p - q).square()) / 4


def _canonical(frequency: Frequency) -> Frequency:
    # of a frequency and its negative the one whose first non-zero entry is positive
    leading = next((entry for entry in frequency if entry), 0)
    return frequency if leading >= 0 else tuple(-entry for entry in frequency)


def _frequencies(series: FourierSeries, base: float) -> list[Frequency]:
    rows = (series._waves().weights / base).round().long().tolist()
    return list(dict.fromkeys(_canonical(tuple(row)) for row in rows))


def _minus(a: Frequency, b: Frequency) -> Frequency:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _signed(known: dict[Frequency, int]) -> list[Frequency]:
    return [signed for frequency in known for signed in (frequency, tuple(-entry for entry in frequency))]


def _split(wanted: Frequency, parts: list[Frequency], known: dict[Frequency, int]) -> Pair | None:
    for part in parts:
        rest = _minus(wanted, part)
        if _canonical(rest) in known:
            return part, rest
    return None


def _decompose(missing: list[Frequency], known: dict[Frequency, int]) -> tuple[dict[Frequency, Pair], list[Frequency]]:
    # how to split sums of two known frequencies and helpers of sums of three, and what is left for the next block
    parts = _signed(known)
    found: dict[Frequency, Pair] = {}
    left = []
    for wanted in missing:
        pair = _split(wanted, parts, known)
        if pair is not None:
            found[wanted] = pair
            continue
        left.append(wanted)
        for part in parts:
            helper = _minus(wanted, part)
            pair = _split(helper, parts, known)
            if pair is not None:
                found.setdefault(_canonical(helper), pair if helper == _canonical(helper) else _negated(pair))
                break
        else:
            raise ArgumentError(f"simulate_network: frequency {wanted} is no sum of three earlier ones")
    return found, left


def _negated(pair: Pair) -> Pair:
    a, b = pair
    return tuple(-entry for entry in a), tuple(-entry for entry in b)


def _block(found: dict[Frequency, Pair], known: dict[Frequency, int], like: Tensor) -> ProductBlock:
    sides = []
    for side in (0, 1):
        parts = [pair[side] for pair in found.values()]
        index = torch.tensor([known[_canonical(part)] for part in parts], device=like.device)
        sign = [1.0 if part == _canonical(part) else -1.0 for part in parts]
        sides.append((index, torch.tensor(sign, dtype=like.dtype, device=like.device)))
    for frequency in found:
        known[frequency] = len(known)
    (left, left_sign), (right, right_sign) = sides
    return ProductBlock(left, right, left_sign, right_sign)


def _readout(series: FourierSeries, known: dict[Frequency, int], base: float) -> nn.Linear:
    waves = series._waves()
    cosines = [0.0] * len(known)
    sines = [0.0] * len(known)
    rows = (waves.weights / base).round().long().tolist()
    along = (waves.amplitudes * waves.phases.cos()).tolist()
    across = (-waves.amplitudes * waves.phases.sin()).tolist()
    for row, a, b in zip(rows, along, across, strict=True):
        frequency = _canonical(tuple(row))
        cosines[known[frequency]] += a
        sines[known[frequency]] += b if frequency == tuple(row) else -b
    like = waves.amplitudes
    layer = nn.Linear(2 * len(known), 1, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([cosines + sines], dtype=like.dtype))
        layer.bias.copy_(waves.offset)
    return layer
