"""Modules around the products: weights of degrees, and mixing of channels.   Shapes: C channels, K = (l + 1)²."""

from typing import Literal, cast, get_args

import torch
from torch import Generator, Tensor, nn

from hesse.equivariant._arguments import check_choice, check_count
from hesse.equivariant.gaunt._arguments import Normalization, check_features, check_normalization
from hesse.equivariant.gaunt.product import (
    Backend,
    antisymmetric_tensor_product,
    gaunt_many_body,
    gaunt_tensor_product,
)
from hesse.errors import ArgumentError, ShapeError

__all__ = ["DegreeLinear", "GauntManyBody", "GauntTensorProduct"]


class GauntTensorProduct(nn.Module):
    """`gaunt_tensor_product` with one weight for each degree of both factors and of the result.

    The weight of a path l₁, l₂ -> l₃ is w¹_l₁ w²_l₂ w³_l₃ times Gaunt's, where a Clebsch-Gordan layer has a free one.

    Parameters
    ----------
    l1, l2, l3 : int
        Largest degrees; l₃ <= l₁ + l₂.
    channels : int, optional
        Weights of their own for each of C channels. Default: shared by all.
    weights : bool, default True
        Whether there are any; they start at one.
    antisymmetric : bool, default False
        The paths with l₁ + l₂ + l₃ odd instead, by `antisymmetric_tensor_product`; then l₃ <= l₁ + l₂ - 1.
    backend : {"auto", "dense", "grid", "fourier", "cg"}, default "auto"
        Of the product.
    normalization : {"integral", "component", "norm"}, default "integral"
        Of the harmonics.

    Raises
    ------
    ArgumentError
        If degrees or channels are out of range, a name is unknown, or the back end does not exist for this product.
    """

    def __init__(
        self,
        l1: int,
        l2: int,
        l3: int,
        *,
        channels: int | None = None,
        weights: bool = True,
        antisymmetric: bool = False,
        backend: Backend = "auto",
        normalization: Normalization = "integral",
    ) -> None:
        super().__init__()
        for name, degree in (("l1", l1), ("l2", l2), ("l3", l3)):
            check_count("GauntTensorProduct", name, degree)
        limit = max(l1 + l2 - 1, 0) if antisymmetric else l1 + l2
        if l3 > limit:
            raise ArgumentError(f"GauntTensorProduct: expected l3 <= {limit}, got {l3}")
        if channels is not None:
            check_count("GauntTensorProduct", "channels", channels, 1)
        check_choice("GauntTensorProduct", "backend", backend, get_args(Backend))
        check_normalization("GauntTensorProduct", normalization)
        if antisymmetric and backend in ("fourier", "cg"):
            raise ArgumentError(f"GauntTensorProduct: antisymmetric has no backend {backend!r}; take dense or grid")
        self.l1, self.l2, self.l3 = l1, l2, l3
        self.antisymmetric = antisymmetric
        self.backend: Backend = backend
        self.normalization: Normalization = normalization
        self.weights = nn.ParameterList(
            [nn.Parameter(_ones(channels, degree)) for degree in (l1, l2, l3)] if weights else []
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Multiply.

        Parameters
        ----------
        x, y : Tensor, shapes (..., C, (l₁ + 1)²) and (..., C, (l₂ + 1)²)
            Features; without weights for each channel the dimension C is not needed.

        Returns
        -------
        Tensor, shape (..., C, (l₃ + 1)²)
            The product.

        Raises
        ------
        ShapeError
            If a feature has another number of channels than the weights, or as `gaunt_tensor_product`.
        """
        first, second, third = self.weights or (None, None, None)
        x, y = _weigh("x", x, first), _weigh("y", y, second)
        degrees = (self.l1, self.l2, self.l3)
        if self.antisymmetric:
            backend = cast(Literal["auto", "dense", "grid"], self.backend)  # the constructor let no other through
            z = antisymmetric_tensor_product(x, y, *degrees, backend=backend, normalization=self.normalization)
        else:
            z = gaunt_tensor_product(x, y, *degrees, backend=self.backend, normalization=self.normalization)
        return _weigh("z", z, third)


class GauntManyBody(nn.Module):
    """`gaunt_many_body` with one weight for each power, and one for each degree of the result.

    Parameters
    ----------
    l_in, l_out : int
        Largest degrees; l_out <= order · l_in.
    order : int
        The largest power ν.
    channels : int, optional
        Weights of their own for each of C channels. Default: shared by all.
    backend : {"auto", "dense", "grid"}, default "auto"
        Of the product.
    normalization : {"integral", "component", "norm"}, default "integral"
        Of the harmonics.

    Raises
    ------
    ArgumentError
        If degrees, order or channels are out of range, or a name is unknown.
    """

    def __init__(
        self,
        l_in: int,
        l_out: int,
        order: int,
        *,
        channels: int | None = None,
        backend: Literal["auto", "dense", "grid"] = "auto",
        normalization: Normalization = "integral",
    ) -> None:
        super().__init__()
        check_count("GauntManyBody", "order", order, 1)
        for name, degree in (("l_in", l_in), ("l_out", l_out)):
            check_count("GauntManyBody", name, degree)
        if l_out > order * l_in:
            raise ArgumentError(f"GauntManyBody: expected l_out <= order · l_in = {order * l_in}, got {l_out}")
        if channels is not None:
            check_count("GauntManyBody", "channels", channels, 1)
        check_choice("GauntManyBody", "backend", backend, ("auto", "dense", "grid"))
        check_normalization("GauntManyBody", normalization)
        self.l_in, self.l_out, self.order = l_in, l_out, order
        self.backend: Literal["auto", "dense", "grid"] = backend
        self.normalization: Normalization = normalization
        self.power_weights = nn.Parameter(torch.ones(*(() if channels is None else (channels,)), order))
        self.degree_weights = nn.Parameter(_ones(channels, l_out))

    def forward(self, x: Tensor) -> Tensor:
        """Expand Σ_ν w_ν f_xᵛ.

        Parameters
        ----------
        x : Tensor, shape (..., C, (l_in + 1)²)
            Features.

        Returns
        -------
        Tensor, shape (..., C, (l_out + 1)²)
            The polynomial, each degree times its weight.
        """
        z = gaunt_many_body(
            x,
            self.l_in,
            self.l_out,
            self.order,
            self.power_weights.to(x.dtype),
            backend=self.backend,
            normalization=self.normalization,
        )
        return _weigh("z", z, self.degree_weights)


class DegreeLinear(nn.Module):
    """Mix channels, with one matrix for each degree: the only linear maps between features that commute with rotations.

    Parameters
    ----------
    l_max : int
        L.
    channels_in, channels_out : int
        Numbers of channels.
    generator : torch.Generator, optional
        Source of the initial weights, normal with variance 1 / channels_in. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    """

    def __init__(self, l_max: int, channels_in: int, channels_out: int, *, generator: Generator | None = None) -> None:
        super().__init__()
        check_count("DegreeLinear", "l_max", l_max)
        check_count("DegreeLinear", "channels_in", channels_in, 1)
        check_count("DegreeLinear", "channels_out", channels_out, 1)
        self.l_max = l_max
        start = torch.randn(l_max + 1, channels_out, channels_in, generator=generator)
        self.weight = nn.Parameter(start / channels_in**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Mix.

        Parameters
        ----------
        x : Tensor, shape (..., channels_in, (L + 1)²)
            Features.

        Returns
        -------
        Tensor, shape (..., channels_out, (L + 1)²)
            Of the same degrees.

        Raises
        ------
        ShapeError
            If the number of channels is another.
        """
        check_features("DegreeLinear", "x", x, self.l_max)
        if x.ndim < 2 or x.shape[-2] != self.weight.shape[-1]:
            raise ShapeError(
                f"DegreeLinear: expected x of shape (..., {self.weight.shape[-1]}, {(self.l_max + 1) ** 2}), "
                f"got {tuple(x.shape)}"
            )
        pieces = [
            weight.to(x.dtype) @ x[..., degree**2 : (degree + 1) ** 2] for degree, weight in enumerate(self.weight)
        ]
        return torch.cat(pieces, -1)


def _ones(channels: int | None, degree: int) -> Tensor:
    return torch.ones(*(() if channels is None else (channels,)), degree + 1)


def _weigh(name: str, x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None or not isinstance(x, Tensor):
        return x  # the product refuses what is no tensor
    if weight.ndim == 2 and x.ndim > 1 and x.shape[-2] not in (1, len(weight)):
        raise ShapeError(
            f"GauntTensorProduct: expected {name} of shape (..., C, K) with C = {len(weight)} channels or one, "
            f"got {tuple(x.shape)}"
        )
    counts = torch.tensor([2 * degree + 1 for degree in range(weight.shape[-1])], device=weight.device)
    expanded = weight.repeat_interleave(counts, -1, output_size=weight.shape[-1] ** 2)
    if x.ndim == 0 or x.shape[-1] != expanded.shape[-1]:
        return x  # the product refuses it, and says why
    return x * expanded.to(x.dtype)
