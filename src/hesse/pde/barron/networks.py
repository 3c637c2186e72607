"""Two-layer networks made of cosines.   Shapes: M units, D axes, N points."""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = ["Activation", "Sampling", "TwoLayerNetwork", "Waves", "barron_path_norm", "wave_network"]

Activation = Literal["cos", "relu"]
Sampling = Literal["l2", "h1"]


@dataclass(frozen=True, slots=True)
class Waves:
    """The function x ↦ offset + Σ amplitude cos(weight·x + phase)."""

    weights: Tensor  # (M, D)
    phases: Tensor  # (M,)
    amplitudes: Tensor  # (M,)
    offset: Tensor  # ()


class TwoLayerNetwork(nn.Module):
    """x ↦ offset + Σ_j a_j σ(w_j·x + b_j), with σ the cosine or the ReLU.

    Parameters
    ----------
    weights : Tensor, shape (M, D)
        w.
    biases : Tensor, shape (M,)
        b.
    amplitudes : Tensor, shape (M,)
        a.
    offset : Tensor, shape ()
        Constant.
    activation : {"cos", "relu"}
        σ.
    """

    def __init__(
        self, weights: Tensor, biases: Tensor, amplitudes: Tensor, offset: Tensor, activation: Activation
    ) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights.detach().clone())
        self.biases = nn.Parameter(biases.detach().clone())
        self.amplitudes = nn.Parameter(amplitudes.detach().clone())
        self.offset = nn.Parameter(offset.detach().clone())
        self.activation: Activation = activation

    @property
    def width(self) -> int:
        """M, the number of hidden units."""
        return len(self.amplitudes)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate at points (N, D).

        Returns
        -------
        Tensor, shape (N,)
            Values.
        """
        hidden_NM = torch.addmm(self.biases, x, self.weights.T)
        active_NM = hidden_NM.cos() if self.activation == "cos" else hidden_NM.relu()
        return active_NM @ self.amplitudes + self.offset


def wave_network(
    waves: Waves,
    width: int | None,
    activation: Activation,
    *,
    sampling: Sampling,
    tol: float,
    generator: Generator | None,
) -> TwoLayerNetwork:
    """Return the network of `FourierSeries.to_network`, where the arguments are explained.

    Returns
    -------
    TwoLayerNetwork
        Exact or sampled.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    """
    if activation not in ("cos", "relu"):
        raise ArgumentError(f"to_network: expected activation 'cos' or 'relu', got {activation!r}")
    if sampling not in ("l2", "h1"):
        raise ArgumentError(f"to_network: expected sampling 'l2' or 'h1', got {sampling!r}")
    if width is not None and width < 1:
        raise ArgumentError(f"to_network: expected width >= 1, got {width}")
    if not tol > 0:
        raise ArgumentError(f"to_network: expected tol > 0, got {tol}")
    if width is not None and len(waves.amplitudes) > 0:
        waves = _sampled(waves, width, sampling, generator)
    if activation == "relu":
        return _broken_lines(waves, tol)
    return TwoLayerNetwork(waves.weights, waves.phases, waves.amplitudes, waves.offset, "cos")


def _sampled(waves: Waves, width: int, sampling: Sampling, generator: Generator | None) -> Waves:
    odds = waves.amplitudes.detach().abs()
    if sampling == "h1":
        odds = odds * (1 + waves.weights.norm(dim=1))
    total = odds.sum()
    if float(total) == 0:
        return waves
    drawn = torch.multinomial(odds, width, replacement=True, generator=generator)
    amplitudes = waves.amplitudes[drawn] * total / (odds[drawn] * width)
    return Waves(waves.weights[drawn], waves.phases[drawn], amplitudes, waves.offset)


def _broken_lines(waves: Waves, tol: float) -> TwoLayerNetwork:
    # a ReLU network that interpolates each cosine linearly over the range that its argument has on the unit cube
    weights, biases, amplitudes = [], [], []
    offset = waves.offset
    for weight, phase, amplitude in zip(waves.weights, waves.phases, waves.amplitudes, strict=True):
        low, high = float(weight.clamp(max=0).sum()), float(weight.clamp(min=0).sum())
        if high == low:
            offset = offset + amplitude * phase.cos()
            continue
        pieces = max(1, ceil((high - low) / sqrt(8 * tol)))  # a chord of length h misses a cosine by h²/8 at most
        knots = torch.linspace(low, high, pieces + 1, dtype=weight.dtype, device=weight.device)
        slopes = (knots + phase).cos().diff() / knots.diff()
        kinks = torch.cat([slopes[:1], slopes.diff()])
        offset = offset + amplitude * (knots[0] + phase).cos()
        weights.append(weight.expand(pieces, -1))
        biases.append(-knots[:-1])
        amplitudes.append(amplitude * kinks)
    if not weights:
        return TwoLayerNetwork(waves.weights[:0], waves.phases[:0], waves.amplitudes[:0], offset, "relu")
    return TwoLayerNetwork(torch.cat(weights), torch.cat(biases), torch.cat(amplitudes), offset, "relu")


def barron_path_norm(network: TwoLayerNetwork) -> Tensor:
    """Path norm Σ_j |a_j| (|w_j| + |b_j|) of a two-layer ReLU network, an upper bound on its ReLU Barron norm.

    Parameters
    ----------
    network : TwoLayerNetwork
        With ReLU units, trained or made by ``to_network``.

    Returns
    -------
    Tensor, shape ()
        Differentiable: it can be a penalty of training.

    Raises
    ------
    ArgumentTypeError
        If the units are cosines, whose norm is ``barron_norm`` of the series.

    References
    ----------
    W. E, C. Ma, L. Wu (2022), Constr. Approx. 55, arXiv 1906.08039.
    """
    if network.activation != "relu":
        raise ArgumentTypeError("barron_path_norm: expected a network of ReLU units, got cosines")
    return (network.amplitudes.abs() * (network.weights.norm(dim=1) + network.biases.abs())).sum()
