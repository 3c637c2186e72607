"""Networks as maps: four ways to read a network's output as T(x).   Shapes: N points, D in, E out."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from hesse.errors import ShapeError
from hesse.transport.costs import Cost

__all__ = ["Form", "MapModule", "mlp", "spread"]

Form = Literal["residual", "structured", "sphere", "direct"]
"""How T comes from a network F, with z = (x - centre) / scale: x + scale F(z); x - scale ∇h*(F(z)); (x + F(z)) over
its length; centre_out + scale F(z)."""


def mlp(sizes: list[int], *, zero_last: bool, generator: Generator) -> nn.Sequential:
    """Linear layers with GELU between them, drawn from a generator.

    Parameters
    ----------
    sizes : list of int
        Widths, from input to output.
    zero_last : bool
        Start with an output of zero.
    generator : torch.Generator
        Source of the weights.

    Returns
    -------
    nn.Sequential
        In float32 on the CPU, uniform within 1/√fan_in as torch's own layers.
    """
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # without torch's own draw
        bound = 0.0 if zero_last and index == len(sizes) - 2 else inputs**-0.5
        for parameter in (linear.weight, linear.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        layers += [linear, nn.GELU()]
    return nn.Sequential(*layers[:-1])


class MapModule(nn.Module):
    """T(x) from a network and a form; see `Form`.

    Parameters
    ----------
    network : nn.Module
        F, from shape (N, D) to (N, E), in standardised coordinates.
    form : {"residual", "structured", "sphere", "direct"}
        How to read its output.
    cost : Cost
        Gives ∇h* to the structured form.
    centre, centre_out : Tensor, shapes (D,) and (E,)
        Means of source and target.
    scale : Tensor, shape ()
        Root mean square distance of the source from its mean.
    """

    centre: Tensor
    centre_out: Tensor
    scale: Tensor

    def __init__(
        self, network: nn.Module, form: Form, cost: Cost, centre: Tensor, centre_out: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        self.network, self.form, self.cost = network, form, cost
        self.register_buffer("centre", centre)
        self.register_buffer("centre_out", centre_out)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map points.

        Parameters
        ----------
        x : Tensor, shape (N, D)
            In the units of the source.

        Returns
        -------
        Tensor, shape (N, E)
            T(x).

        Raises
        ------
        ShapeError
            If the network does not map to E coordinates.
        """
        output = self.network((x - self.centre) / self.scale)
        expected = (len(x), len(self.centre_out))
        if output.shape != expected:
            raise ShapeError(f"MongeMap: the network must map to shape {expected}, got {tuple(output.shape)}")
        if self.form == "residual":
            return x + self.scale * output
        if self.form == "structured":
            return x - self.scale * self.cost.conjugate_gradient(output)
        if self.form == "sphere":
            return nn.functional.normalize(x + output, dim=-1)
        return self.centre_out + self.scale * output

    def field(self, x: Tensor) -> Tensor:
        """Return F at x, which must be a gradient field for the structured form.

        Returns
        -------
        Tensor, shape (N, D)
            The output of the network.
        """
        return self.network((x - self.centre) / self.scale)


def spread(points: Tensor) -> Tensor:
    """Return the root mean square distance from the mean; one for points that are all the same.

    Returns
    -------
    Tensor, shape ()
        Positive.
    """
    size = (points - points.mean(0)).square().sum(-1).mean().sqrt()
    return torch.where(size > 0, size, torch.ones_like(size))
