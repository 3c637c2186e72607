"""Group convolutions on clouds of points, in the plane and in space.

Shapes: B clouds, P points, C channels in and O out, N elements, n dimension of space.
"""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from hesse.equivariant._arguments import check_count
from hesse.equivariant.lie.groups import GroupSamples, MatrixGroup
from hesse.equivariant.lie.kernels import SirenKernel
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["LieConvPoints"]


class LieConvPoints(nn.Module):
    """Convolve features on points and group elements, with a separable kernel.

    F(x_p, h_i) = (1/P) Σ_q k₂(h_i⁻¹(x_q - x_p)/ρ) (1/N) Σ_j w_j K₁(h_i⁻¹h̃_j) f(x_q, h̃_j)

    Points count, volumes do not: no determinant appears, and when points and elements are moved together by any g of
    the group, or shifted, the result stays the same to round-off. Features of shape (B, P, C) have not met the group
    yet; they are lifted, f(x_q, h̃_j) = f(x_q).

    Parameters
    ----------
    group : MatrixGroup
        With n = 2 or 3.
    in_channels, out_channels : int
        C and O.
    radius : float, default 1.0
        ρ, in units of the coordinates: k₂ is zero beyond 0.85 ρ.
    lift : bool, default False
        Whether features have no elements yet.
    kernel_options : dict, optional
        Further arguments of `SirenKernel`.
    generator : torch.Generator, optional
        Source of the weights. Default: torch's global generator.

    Raises
    ------
    ArgumentTypeError
        If a number is not an integer, or the group none.
    ArgumentError
        If a number is out of range.

    Notes
    -----
    O(B P² N O) time and O(B N P² O) memory: for clouds of some hundred points.

    References
    ----------
    M. Mironenco, P. Forré (2024), ICLR, arXiv 2310.11366, for the groups.
    """

    def __init__(
        self,
        group: MatrixGroup,
        in_channels: int,
        out_channels: int,
        *,
        radius: float = 1.0,
        lift: bool = False,
        kernel_options: dict[str, Any] | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(group, MatrixGroup):
            raise ArgumentTypeError(f"LieConvPoints: expected group to be GLPlus, SL or SO, got {type(group).__name__}")
        if group.n > 3:
            raise ArgumentError(f"LieConvPoints: expected group of n = 2 or 3, got n = {group.n}")
        check_count("LieConvPoints", "in_channels", in_channels, 1)
        check_count("LieConvPoints", "out_channels", out_channels, 1)
        if not 0 < radius < float("inf"):
            raise ArgumentError(f"LieConvPoints: expected radius > 0, got {radius}")
        self.group, self.in_channels, self.radius, self.lift = group, in_channels, radius, lift
        options: dict[str, Any] = {"generator": generator, **(kernel_options or {})}
        if lift:
            start = torch.randn(out_channels, in_channels, generator=generator) / in_channels**0.5
            self.mixing = nn.Parameter(start)
        else:
            self.mixing = SirenKernel(group, out_channels, in_channels, on_plane=False, on_group=True, **options)
        self.depthwise = SirenKernel(group, out_channels, 1, on_plane=True, on_group=False, **options)

    def forward(self, x: Tensor, points: Tensor, inputs: GroupSamples, outputs: GroupSamples | None = None) -> Tensor:
        """Convolve.

        Parameters
        ----------
        x : Tensor, shape (B, P, C, N), or (B, P, C) for a lifting layer
            Features.
        points : Tensor, shape (B, P, n)
            Coordinates.
        inputs : GroupSamples
            N elements that the features live on; of a lifting layer, those of the result.
        outputs : GroupSamples, optional
            N' elements the result will live on. Default: the same.

        Returns
        -------
        Tensor, shape (B, P, O, N')
            Features.

        Raises
        ------
        ShapeError
            If shapes do not go together.
        ArgumentTypeError
            If features or points are no floating-point tensor.
        """
        for name, tensor in (("x", x), ("points", points)):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ArgumentTypeError(
                    f"LieConvPoints: expected {name} to be a real floating-point tensor, got {found}"
                )
        expected = f"(B, P, {self.in_channels}" + (")" if self.lift else f", {len(inputs.h)})")
        tail = (self.in_channels,) if self.lift else (self.in_channels, len(inputs.h))
        if x.ndim != 2 + len(tail) or x.shape[2:] != tail:
            raise ShapeError(f"LieConvPoints: expected x of shape {expected}, got {tuple(x.shape)}")
        if points.shape != (*x.shape[:2], self.group.n):
            wanted = (*x.shape[:2], self.group.n)
            raise ShapeError(f"LieConvPoints: expected points of shape {wanted}, got {tuple(points.shape)}")
        outputs = inputs if outputs is None else outputs
        if isinstance(self.mixing, nn.Parameter):
            mixed = torch.einsum("oc,bpc->bpo", self.mixing, x).unsqueeze(-1).expand(-1, -1, -1, len(outputs.h))
        else:
            values = self.mixing(None, outputs.h_inv.unsqueeze(1) @ inputs.h)  # (N', N, O, C)
            values = values * (inputs.weight / len(inputs.weight))[:, None, None]
            mixed = torch.einsum("ijoc,bpcj->bpoi", values, x)
        offsets = points.unsqueeze(1) - points.unsqueeze(2)  # (B, P, P, n): x_q - x_p at [p, q]
        local = torch.einsum("imn,bpqn->ibpqm", outputs.h_inv, offsets) / self.radius
        values = self.depthwise(local.flatten(1, 3), None)[..., 0]  # (N', B P P, O)
        values = values.unflatten(1, local.shape[1:4])
        return torch.einsum("ibpqo,bqoi->bpoi", values, mixed) / max(points.shape[1], 1)
