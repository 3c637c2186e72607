"""Messages along edges: features times a function of the edge that is symmetric about it, in O(L³).

Shapes: E edges, C channels, K = (l + 1)² coefficients, M signed orders, T nodes of a meridian.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from hesse.equivariant._arguments import check_choice, check_count
from hesse.equivariant.gaunt import _tables
from hesse.equivariant.gaunt._arguments import Normalization, check_features, check_normalization, compute_dtype
from hesse.equivariant.gaunt.harmonics import unit_vectors
from hesse.equivariant.gaunt.rotation import from_pole, polar_frame, to_pole
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["GauntConvolution", "gaunt_convolution"]


def gaunt_convolution(
    x: Tensor,
    direction: Tensor,
    radial: Tensor,
    l_in: int,
    l_edge: int,
    l_out: int,
    *,
    normalization: Normalization = "integral",
    zero_vector: Literal["raise", "scalar"] = "raise",
) -> Tensor:
    """Multiply f_x by the filter Σ_l h_l Y_l(n) of an edge's direction n: x ⊗ (h Y(n)).

    Seen from a frame whose pole is n, the filter depends on the polar angle alone: orders do not mix, and for each the
    product is one on a meridian. The features are turned there and back. The same numbers as
    `gaunt_tensor_product` gives with the spherical harmonics of n, without a grid over the azimuth.

    Parameters
    ----------
    x : Tensor, shape (..., C, (l_in + 1)²)
        Features of the sender, one row an edge.
    direction : Tensor, shape (..., 3)
        Edge vectors, of any length but zero; of the dtype and device of x, leading dimensions broadcast with its.
    radial : Tensor, shape (..., C, l_edge + 1) or (..., 1, l_edge + 1)
        h_l, learnt functions of the length as a rule.
    l_in, l_edge, l_out : int
        Largest degrees; l_out <= l_in + l_edge.
    normalization : {"integral", "component", "norm"}, default "integral"
        Of the harmonics that x, h and the result are coefficients of.
    zero_vector : {"raise", "scalar"}, default "raise"
        What an edge of length zero is: an error, or one that sends only degree 0 of its filter, all that does not
        depend on a direction.

    Returns
    -------
    Tensor, shape (..., C, (l_out + 1)²)
        In the dtype of x; half precision is computed in float32. Differentiable, at the poles too.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not go together.
    ArgumentTypeError
        If a tensor is not real floating point, or a degree not an integer.
    ArgumentError
        If l_out > l_in + l_edge, a vector is zero (unless allowed) or not finite, or a name unknown.

    References
    ----------
    S. Passaro, C. L. Zitnick (2023), ICML, arXiv 2302.03655, on the turned frame; S. Luo, T. Chen, A. S. Krishnapriyan
    (2024), ICLR, arXiv 2401.10216.
    """
    call = "gaunt_convolution"
    _check_shapes(call, x, direction, radial, (l_in, l_edge, l_out))
    check_normalization(call, normalization)
    check_choice(call, "zero_vector", zero_vector, ("raise", "scalar"))
    dtype, wide = x.dtype, compute_dtype(x.dtype)
    x, direction, radial = (tensor.to(wide) for tensor in (x, direction, radial))
    if zero_vector == "scalar":
        zero = (direction == 0).all(-1, keepdim=True)
        direction = torch.where(zero, direction.new_tensor([0.0, 1.0, 0.0]), direction)
        scalar = torch.arange(l_edge + 1, device=x.device) == 0
        radial = torch.where(zero[..., None] & ~scalar, 0.0, radial)
    frame = polar_frame(unit_vectors(call, "direction", direction), max(l_in, l_out))
    turned = to_pole(x, frame, l_in)
    z = _along_the_pole(turned, radial, (l_in, l_edge, l_out), normalization)
    return from_pole(z, frame, l_out).to(dtype)


class GauntConvolution(nn.Module):
    """`gaunt_convolution` whose radial functions are a module.

    Parameters
    ----------
    l_in, l_edge, l_out : int
        Largest degrees; l_out <= l_in + l_edge.
    radial : nn.Module
        From edge lengths (...) to h, shape (..., C, l_edge + 1), or (..., l_edge + 1) shared by the channels.
    normalization : {"integral", "component", "norm"}, default "integral"
        Of the harmonics.
    zero_vector : {"raise", "scalar"}, default "raise"
        As there.

    Raises
    ------
    ArgumentError
        If degrees are out of range, or a name is unknown.
    ArgumentTypeError
        If ``radial`` is no module.
    """

    def __init__(
        self,
        l_in: int,
        l_edge: int,
        l_out: int,
        radial: nn.Module,
        *,
        normalization: Normalization = "integral",
        zero_vector: Literal["raise", "scalar"] = "raise",
    ) -> None:
        super().__init__()
        _check_three_degrees("GauntConvolution", (l_in, l_edge, l_out))
        check_normalization("GauntConvolution", normalization)
        check_choice("GauntConvolution", "zero_vector", zero_vector, ("raise", "scalar"))
        if not isinstance(radial, nn.Module):
            raise ArgumentTypeError(f"GauntConvolution: expected radial to be a module, got {type(radial).__name__}")
        self.l_in, self.l_edge, self.l_out = l_in, l_edge, l_out
        self.radial = radial
        self.normalization: Normalization = normalization
        self.zero_vector: Literal["raise", "scalar"] = zero_vector

    def forward(self, x: Tensor, edge_vectors: Tensor, edge_lengths: Tensor | None = None) -> Tensor:
        """Make one message an edge.

        Parameters
        ----------
        x : Tensor, shape (..., C, (l_in + 1)²)
            Features of the senders.
        edge_vectors : Tensor, shape (..., 3)
            From receiver to sender, or the other way round, throughout.
        edge_lengths : Tensor, shape (...), optional
            What the radial module is given. Default: the lengths of the vectors.

        Returns
        -------
        Tensor, shape (..., C, (l_out + 1)²)
            Messages; summing them over the edges of a node is the caller's.
        """
        lengths = torch.linalg.vector_norm(edge_vectors, dim=-1) if edge_lengths is None else edge_lengths
        radial = self.radial(lengths)
        if radial.ndim == lengths.ndim + 1:
            radial = radial.unsqueeze(-2)
        return gaunt_convolution(
            x,
            edge_vectors,
            radial,
            self.l_in,
            self.l_edge,
            self.l_out,
            normalization=self.normalization,
            zero_vector=self.zero_vector,
        )


def _along_the_pole(
    turned: Tensor, radial: Tensor, degrees: tuple[int, int, int], normalization: Normalization
) -> Tensor:
    # The product in the turned frame, on one meridian for each order
    l_in, l_edge, l_out = degrees
    degree = sum(degrees)
    where = (turned.dtype, turned.device)
    shape = torch.broadcast_shapes(turned.shape[:-1], radial.shape[:-1])
    rows = turned.expand(*shape, -1).reshape(-1, turned.shape[-1])
    values = _tables.to_meridians(
        rows, _tables.separable_evaluation(l_in, l_out, degree, "value", normalization, *where)
    )
    profile = radial @ _tables.axial_profile(l_edge, degree, *where)  # (..., T)
    profile = profile.expand(*shape, -1).reshape(-1, profile.shape[-1])
    z = _tables.from_meridians(values * profile.mT, _tables.meridian_projection(l_out, degree, normalization, *where))
    return z.reshape(*shape, -1)


def _check_three_degrees(call: str, degrees: tuple[int, int, int]) -> None:
    for name, degree in zip(("l_in", "l_edge", "l_out"), degrees, strict=True):
        check_count(call, name, degree)
    l_in, l_edge, l_out = degrees
    if l_out > l_in + l_edge:
        raise ArgumentError(f"{call}: expected l_out <= l_in + l_edge = {l_in + l_edge}, got {l_out}")


def _check_shapes(call: str, x: Tensor, direction: Tensor, radial: Tensor, degrees: tuple[int, int, int]) -> None:
    _check_three_degrees(call, degrees)
    l_in, l_edge, _ = degrees
    check_features(call, "x", x, l_in)
    if x.ndim < 2:
        raise ShapeError(f"{call}: expected x of shape (..., C, {(l_in + 1) ** 2}), got {tuple(x.shape)}")
    for name, tensor in (("direction", direction), ("radial", radial)):
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise ShapeError(f"{call}: {name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}")
    if direction.ndim == 0 or direction.shape[-1] != 3:
        raise ShapeError(f"{call}: expected direction of shape (..., 3), got {tuple(direction.shape)}")
    if radial.ndim < 2 or radial.shape[-1] != l_edge + 1:
        raise ShapeError(f"{call}: expected radial of shape (..., C, {l_edge + 1}), got {tuple(radial.shape)}")
    try:
        torch.broadcast_shapes(x.shape[:-1], radial.shape[:-1], (*direction.shape[:-1], 1))
    except RuntimeError as error:
        raise ShapeError(
            f"{call}: leading dimensions of x {tuple(x.shape)}, direction {tuple(direction.shape)} and radial "
            f"{tuple(radial.shape)} do not broadcast"
        ) from error
