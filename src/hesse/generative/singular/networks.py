"""The generator f and its encoder, in coordinates of one common scale.   Shapes: N points, Z latent, D of the data."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from hesse.errors import ArgumentError, ShapeError

__all__ = ["Decoder", "LatentLaw", "common_scale", "make_decoder", "perceptron"]

LatentLaw = Literal["normal", "uniform"]
CUBE = 12**0.5  # side of the uniform cube of unit variance


def common_scale(points: Tensor) -> Tensor:
    """Spread of a cloud along its structure: sqrt(tr C² / tr C), C the covariance.

    It is the standard deviation where C is a multiple of a projection, whatever D is: coordinates in which nothing
    happens do not count, and a rotation or an isometric embedding changes nothing.

    Parameters
    ----------
    points : Tensor, shape (N, D)
        The cloud.

    Returns
    -------
    Tensor, shape ()
        In the units of the points; O(N D min(N, D)).
    """
    centred = points - points.mean(0)
    gram = centred.mT @ centred if len(points) > points.shape[1] else centred @ centred.mT
    return (gram.square().sum() / gram.diagonal().sum() / len(points)).sqrt()


def perceptron(sizes: Sequence[int], generator: Generator) -> nn.Sequential:
    """Linear layers with leaky rectifiers between them.

    Parameters
    ----------
    sizes : sequence of int
        Widths, from input to output.
    generator : torch.Generator
        Source of the weights, on the CPU.

    Returns
    -------
    nn.Sequential
        In float32 on the CPU, uniform within 1/√fan_in as torch's own layers.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # without torch's own draw
        for parameter in (linear.weight, linear.bias):
            nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
        layers += [linear, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers[:-1])


class Decoder(nn.Module):
    """f(z) = centre + scale · network(law(z)) for standard normal z.

    Parameters
    ----------
    network : nn.Module
        From (N, Z) to (N, D).
    latent : {"normal", "uniform"}
        What the network sees: z, or the uniform law on the cube of unit variance, as the normal cdf makes it.
    centre : Tensor, shape (D,)
        Mean of the data.
    scale : Tensor, shape ()
        Its `common_scale`.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, latent: LatentLaw, centre: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.network, self.latent = network, latent
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    def standard(self, z: Tensor) -> Tensor:
        """Apply the network alone: (f(z) - centre) / scale.

        Parameters
        ----------
        z : Tensor, shape (N, Z)
            Standard normal.

        Returns
        -------
        Tensor, shape (N, D)
            In units of the scale.
        """
        return self.network(z if self.latent == "normal" else CUBE * (torch.special.ndtr(z) - 0.5))

    def forward(self, z: Tensor) -> Tensor:
        """Apply f.

        Parameters
        ----------
        z : Tensor, shape (N, Z)
            Standard normal.

        Returns
        -------
        Tensor, shape (N, D)
            In the units of the data.
        """
        return self.centre + self.scale * self.standard(z)


def make_decoder(
    call: str,
    network: nn.Module | None,
    points: Tensor,
    *,
    latent_dim: int,
    latent: LatentLaw,
    hidden_sizes: Sequence[int],
    generator: Generator,
) -> Decoder:
    """Build f for a cloud, or copy the network that was given.

    Parameters
    ----------
    call : str
        The public function, for the message.
    network : nn.Module or None
        From (N, Z) to (N, D), in standardised coordinates. None: a `perceptron`.
    points : Tensor, shape (N, D)
        Give centre, scale, dtype and device.
    latent_dim : int
        Z.
    latent : {"normal", "uniform"}
        Law of what the network sees.
    hidden_sizes : sequence of int
        Of the perceptron.
    generator : torch.Generator
        Source of its weights.

    Returns
    -------
    Decoder
        In the dtype and on the device of the points.

    Raises
    ------
    ArgumentError
        If the law is unknown, Z < 1, or all points are one.
    ShapeError
        If the network does not map Z to D coordinates.
    """
    if latent not in ("normal", "uniform"):
        raise ArgumentError(f'{call}: expected latent "normal" or "uniform", got {latent!r}')
    if latent_dim < 1:
        raise ArgumentError(f"{call}: expected latent_dim >= 1, got {latent_dim}")
    if bool((points == points[0]).all()):
        raise ArgumentError(f"{call}: all rows of X are the same point")
    dim = points.shape[1]
    chosen = perceptron([latent_dim, *hidden_sizes, dim], generator) if network is None else copy.deepcopy(network)
    decoder = Decoder(chosen, latent, points.mean(0), common_scale(points)).to(points)
    with torch.no_grad():
        shape = tuple(decoder.standard(points.new_zeros(2, latent_dim)).shape)
    if shape != (2, dim):
        raise ShapeError(f"{call}: the network must map (2, {latent_dim}) to (2, {dim}), got {shape}")
    return decoder
