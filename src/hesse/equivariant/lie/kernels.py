"""Continuous kernels on the plane, on the group, and on both: linear in a smooth basis, or a sine network.

Shapes: I output elements, J input elements, K points of a kernel's grid, F basis functions, O and C channels.
"""

from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from hesse.equivariant._arguments import check_choice
from hesse.equivariant.lie.groups import MatrixGroup
from hesse.errors import ArgumentError

__all__ = ["BasisKernel", "KernelName", "SirenKernel", "group_harmonics", "make_kernel", "ring_harmonics", "unit_grid"]

KernelName = Literal["basis", "siren"]
Angle = Literal["embed", "official"]
RADII = (0.0, 0.27, 0.54)  # in half-widths of the window, as are the two below
ORDERS = (0, 2, 3)
RING_WIDTH = 0.23
CUTOFF = 0.85  # a kernel stretched by 1.18 still fits
GROUP_ORDER = 4
_SOFT = 0.02 / 1.3**2


def unit_grid(size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Lay the centres (2i + 1)/k - 1 of k x k pixels over [-1, 1]².

    Parameters
    ----------
    size : int
        k.
    dtype : dtype, default float32
        Of the result.
    device : device, default "cpu"
        Of the result.

    Returns
    -------
    Tensor, shape (k², 2)
        (x, y) of each pixel, x to the right and y down, row by row.
    """
    centres = (2 * torch.arange(size, dtype=dtype, device=device) + 1) / size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def ring_harmonics(points: Tensor) -> Tensor:
    """Evaluate Gaussian rings times circular harmonics under a smooth window of compact support.

    (1 - (r/r₀)²)₊ exp(-(r - ρ)²/2w²) (r²/(r² + ε))^{m/2} cos mφ, sin mφ, with rings at ρ = 0, 0.27 and 0.54 of
    orders 0, up to 2 and up to 3, w = 0.23, r₀ = 0.85, ε = 0.012.

    Parameters
    ----------
    points : Tensor, shape (..., 2)
        In half-widths of the kernel's window.

    Returns
    -------
    Tensor, shape (..., 13)
        Smooth at the origin too.
    """
    square = points.square().sum(-1)
    r = (square + torch.finfo(points.dtype).tiny).sqrt()
    window = (1 - square / CUTOFF**2).clamp_min(0)
    soft = (square + _SOFT).rsqrt()
    powers = _circular(points[..., 0] * soft, points[..., 1] * soft, max(ORDERS))
    columns = []
    for radius, order in zip(RADII, ORDERS, strict=True):
        ring = window * torch.exp(-(r - radius).square() / (2 * RING_WIDTH**2))
        columns += [ring * power for m in range(order + 1) for power in powers[m]]
    return torch.stack(columns, -1)


def group_harmonics(group: MatrixGroup, elements: Tensor, *, spread: bool) -> Tensor:
    """Evaluate harmonics of the angle of plane group elements, times functions of their stretch.

    √2 cos mθ for m = 0..4 (1 for m = 0) and √2 sin mθ for m = 1..3, all there is on eight equispaced angles. With
    ``spread``, also times 2 log P, entry by entry, and all under exp(-‖2 log P‖²/2).

    Parameters
    ----------
    group : MatrixGroup
        With n = 2.
    elements : Tensor, shape (..., 2, 2)
        Relative elements h⁻¹h̃.
    spread : bool
        Whether they hold stretches.

    Returns
    -------
    Tensor, shape (..., 8) or (..., 8 (1 + num_symmetric))
        Values.
    """
    X, R = group.decompose(elements)
    powers = _circular(R[..., 0, 0], R[..., 1, 0], GROUP_ORDER)
    columns = [value * (1.0 if m == 0 else 2**0.5) for m, both in enumerate(powers) for value in both]
    harmonics = torch.stack(columns[:-1], -1)  # the sine of the highest order vanishes on eight angles
    if not spread:
        return harmonics
    stretch = 2 * _symmetric_coordinates(group, X)
    decay = _decay(X).unsqueeze(-1)
    factors = torch.cat([decay, stretch * decay], -1)
    return (harmonics.unsqueeze(-1) * factors.unsqueeze(-2)).flatten(-2)


class BasisKernel(nn.Module):
    """k(y, h) = Σ_f c_f φ_f(y, h): a matrix of channels for each function of a fixed smooth basis.

    Parameters
    ----------
    group : MatrixGroup
        With n = 2.
    channels_out, channels_in : int
        O and C.
    on_plane, on_group : bool
        What the kernel is a function of; of both, the basis is that of products.
    grid_size : int, optional
        k of the grid it will be sampled on, for the scale of the basis: each function has norm one there. Needed with
        ``on_plane``.
    spread : bool, default False
        Whether relative elements hold stretches.
    generator : torch.Generator, optional
        Source of the coefficients, normal of variance 1 / (C F_plane). Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If the group is not one of the plane, or the grid's size is missing.
    """

    scale: Tensor

    def __init__(
        self,
        group: MatrixGroup,
        channels_out: int,
        channels_in: int,
        *,
        on_plane: bool,
        on_group: bool,
        grid_size: int | None = None,
        spread: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if group.n != 2:
            raise ArgumentError(f"BasisKernel: expected a group of the plane, n = 2, got n = {group.n}")
        self.group, self.spread = group, spread
        scale = torch.ones(1)
        if on_plane:
            if grid_size is None:
                raise ArgumentError("BasisKernel: grid_size: a kernel on the plane needs the size of its grid")
            norms = ring_harmonics(unit_grid(grid_size, dtype=torch.float64)).norm(dim=0)
            # on a coarse grid a function can vanish: it then stays unscaled, and small
            scale = torch.where(norms > 1e-3, 1 / norms.clamp_min(1e-3), torch.ones_like(norms)).float()
        self.register_buffer("scale", scale, persistent=False)
        num_group = group_harmonics(group, torch.eye(2), spread=spread).shape[-1] if on_group else 1
        start = torch.randn(len(scale), num_group, channels_out, channels_in, generator=generator)
        self.coefficients = nn.Parameter(start / (len(scale) * channels_in) ** 0.5)

    def forward(self, points: Tensor | None, elements: Tensor | None) -> Tensor:
        """Evaluate.

        Parameters
        ----------
        points : Tensor, shape (I, K, 2), or None
            Where on the plane, in half-widths of the window; None for a kernel on the group alone.
        elements : Tensor, shape (I, J, 2, 2), or None
            Relative elements; None for a kernel on the plane alone.

        Returns
        -------
        Tensor, shape (I, K, O, C), (I, J, O, C) or (I, J, K, O, C)
            Values.
        """
        plane = None if points is None else ring_harmonics(points) * self.scale.to(points.dtype)
        group = None if elements is None else group_harmonics(self.group, elements, spread=self.spread)
        if group is None:
            return torch.einsum("ikf,foc->ikoc", plane, _like(self.coefficients[:, 0], plane))
        if plane is None:
            return torch.einsum("ijg,goc->ijoc", group, _like(self.coefficients[0], group))
        return torch.einsum("ikf,ijg,fgoc->ijkoc", plane, group, _like(self.coefficients, group))


class SirenKernel(nn.Module):
    """k(y, h) from a network with sines: two layers of width 60, then a linear one, under a smooth window.

    Parameters
    ----------
    group : MatrixGroup
        With n = 2 or 3.
    channels_out, channels_in : int
        O and C.
    on_plane, on_group : bool
        What the kernel is a function of: points of Rⁿ, elements, or both.
    grid_size : int, optional
        k of its grid, for the scale of the last layer, U(±√(6/width) / √(C k²)). Default: 1.
    w0 : float, default 2.0
        Frequency of the sines. The authors' 10 makes kernels too rough for a grid of 5 or 7 pixels.
    width : int, default 60
        Of both layers.
    angle : {"embed", "official"}, default "embed"
        A rotation enters by its matrix entries (n = 2: cos θ and sin θ), or as the authors have it, by θ in [0, 2π),
        which jumps at the identity. The latter is for comparison.
    generator : torch.Generator, optional
        Source of the weights. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If the angle's name is unknown, or official for n = 3.

    References
    ----------
    V. Sitzmann et al. (2020), NeurIPS, arXiv 2006.09661.
    """

    def __init__(
        self,
        group: MatrixGroup,
        channels_out: int,
        channels_in: int,
        *,
        on_plane: bool,
        on_group: bool,
        grid_size: int | None = None,
        w0: float = 2.0,
        width: int = 60,
        angle: Angle = "embed",
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        check_choice("SirenKernel", "angle", angle, get_args(Angle))
        if angle == "official" and group.n != 2:
            raise ArgumentError(f"SirenKernel: angle='official' is for n = 2, the group has n = {group.n}")
        self.group, self.w0 = group, w0
        self.angle: Angle = angle
        self.shape = (channels_out, channels_in)
        num_group = _coordinates(group, torch.eye(group.n), angle).shape[-1] if on_group else 0
        sizes = [num_group + (group.n if on_plane else 0), width, width, channels_out * channels_in]
        fan = channels_in * (grid_size or 1) ** 2
        bounds = [1 / sizes[0], (6 / width) ** 0.5 / w0, (6 / width) ** 0.5 / fan**0.5]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs, bound in zip(sizes[:-1], sizes[1:], bounds, strict=True):
            self.weights.append(nn.Parameter(bound * (2 * torch.rand(outputs, inputs, generator=generator) - 1)))
            self.biases.append(nn.Parameter((2 * torch.rand(outputs, generator=generator) - 1) / inputs**0.5))
        nn.init.zeros_(self.biases[-1])  # of the output; without those of the sines every kernel would be odd

    def forward(self, points: Tensor | None, elements: Tensor | None) -> Tensor:
        """Evaluate.

        Parameters
        ----------
        points : Tensor, shape (I, K, n), or None
            Where in space, in half-widths of the window; None for a kernel on the group alone.
        elements : Tensor, shape (I, J, n, n), or None
            Relative elements; None for a kernel on space alone.

        Returns
        -------
        Tensor, shape (I, K, O, C), (I, J, O, C) or (I, J, K, O, C)
            Values.
        """
        inputs, windows = [], []
        if points is not None:
            inputs.append(points.unsqueeze(1))
            windows.append((1 - points.square().sum(-1) / CUTOFF**2).clamp_min(0).square().unsqueeze(1))
        if elements is not None:
            inputs.append(_coordinates(self.group, elements, self.angle).unsqueeze(2))
            windows.append(_decay(self.group.decompose(elements)[0]).unsqueeze(2))
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in inputs))
        x = torch.cat([part.expand(*shape, -1) for part in inputs], -1)  # (I, J or 1, K or 1, inputs)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.sin(self.w0 * nn.functional.linear(x, _like(weight, x), _like(bias, x)))
        x = nn.functional.linear(x, _like(self.weights[-1], x), _like(self.biases[-1], x))
        for window in windows:
            x = x * window.unsqueeze(-1)
        if points is None:
            x = x.squeeze(2)
        elif elements is None:
            x = x.squeeze(1)
        return x.unflatten(-1, self.shape)


def make_kernel(
    name: KernelName,
    group: MatrixGroup,
    channels_out: int,
    channels_in: int,
    *,
    spread: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a kernel by the name that layers take.

    Parameters
    ----------
    name : {"basis", "siren"}
        Which.
    group : MatrixGroup
        With n = 2.
    channels_out, channels_in : int
        O and C.
    spread : bool, default False
        Whether relative elements hold stretches; a sine network always takes their coordinates.
    **options
        As the classes take them.

    Returns
    -------
    Module
        `BasisKernel` or `SirenKernel`.
    """
    if name == "basis":
        return BasisKernel(group, channels_out, channels_in, spread=spread, **options)
    return SirenKernel(group, channels_out, channels_in, **options)


def _like(parameter: Tensor, x: Tensor | None) -> Tensor:
    # parameters in half precision meet coordinates in float32
    return parameter if x is None else parameter.to(x.dtype)


def _coordinates(group: MatrixGroup, elements: Tensor, angle: Angle) -> Tensor:
    X, R = group.decompose(elements)
    stretch = _symmetric_coordinates(group, X)
    if angle == "official":
        turn = torch.remainder(torch.atan2(R[..., 1, 0], R[..., 0, 0]), 2 * torch.pi).unsqueeze(-1)
    else:
        turn = R[..., :, 0] if group.n == 2 else R.flatten(-2)  # the plane's first column is cos θ, sin θ
    return torch.cat([stretch, turn], -1)


def _symmetric_coordinates(group: MatrixGroup, X: Tensor) -> Tensor:
    basis = group.basis(dtype=X.dtype, device=X.device)[: group.num_symmetric]
    return group.alpha * torch.einsum("aij,...ij->...a", basis, X)


def _decay(X: Tensor) -> Tensor:
    return torch.exp(-2 * X.square().sum((-2, -1)))  # exp(-‖2 log P‖² / 2)


def _circular(x: Tensor, y: Tensor, order: int) -> list[list[Tensor]]:
    # real and imaginary part of (x + iy)^m for m = 0..order, the former alone for m = 0
    powers = [[torch.ones_like(x)]]
    real, imaginary = x, y
    for _ in range(order):
        powers.append([real, imaginary])
        real, imaginary = real * x - imaginary * y, real * y + imaginary * x
    return powers
