"""How coefficients of harmonics turn with the frame: Wigner's matrices of any degree.   Shapes: L largest degree.

A rotation is Y(α) X(β) Y(γ), about the axes y, x, y. Turning about the polar axis y mixes m and -m only, and the
half turn J that exchanges x and y makes turns about x of those about y: D = Z(α) J Z(β) J Z(γ) in every degree.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hesse.equivariant._arguments import check_count
from hesse.equivariant.gaunt import _tables
from hesse.equivariant.gaunt._arguments import check_features, compute_dtype
from hesse.equivariant.gaunt.harmonics import angle_multiples, spherical_harmonics
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["PolarFrame", "degree_of", "from_pole", "polar_frame", "rotate", "to_pole", "wigner_d"]

_NEAR_POLE = 0.8  # |cos β| above which a rotation is described from another axis


def wigner_d(l_max: int, rotation: Tensor, *, parity: int = 1) -> tuple[Tensor, ...]:
    """Build D_l(R), l = 0..L, with Y(R r) = D(R) Y(r).

    Angles are never formed, only cosines and sines of their multiples, by powers of complex numbers. Where β is near 0
    or π and α is undefined, R is written as J (J R), and J R is far from that: values and derivatives of any order
    are accurate everywhere.

    Parameters
    ----------
    l_max : int
        L >= 0.
    rotation : Tensor, shape (..., 3, 3)
        R, orthogonal; determinant -1 (a reflection) is allowed.
    parity : {1, -1}, default 1
        What a reflection does: the point inversion multiplies degree l by parity · (-1)ˡ. 1 is that of harmonics, -1
        that of what `antisymmetric_tensor_product` makes of them.

    Returns
    -------
    tuple of Tensor
        Blocks of shapes (..., 2 l + 1, 2 l + 1), orthogonal, in the dtype of R; half precision is computed in float32.
        Differentiable. O(L⁴) a rotation.

    Raises
    ------
    ArgumentTypeError
        If R is not real floating point, or a number not an integer.
    ShapeError
        If R is not of shape (..., 3, 3).
    ArgumentError
        If R is not orthogonal within √eps (not looked at inside ``torch.compile``), the degree negative, or the parity
        another number.

    References
    ----------
    D. Pinchon, P. E. Hoggan (2007), J. Phys. A 40, on the factor J.
    """
    check_count("wigner_d", "l_max", l_max)
    dtype = _checked_rotation("wigner_d", rotation, parity)
    wide = rotation.to(compute_dtype(dtype))
    sign = torch.linalg.det(wide.detach()).sign()
    blocks = _proper_blocks(l_max, wide * sign[..., None, None])
    signs = [1.0 if degree % 2 == 0 else sign for degree in range(l_max + 1)]
    if parity == -1:
        signs = [factor * sign for factor in signs]
    return tuple(
        (block * factor[..., None, None] if isinstance(factor, Tensor) else block).to(dtype)
        for block, factor in zip(blocks, signs, strict=True)
    )


def rotate(x: Tensor, rotation: Tensor, *, parity: int = 1) -> Tensor:
    """Turn features: the coefficients of r -> f(R⁻¹ r) are D(R) x.

    Parameters
    ----------
    x : Tensor, shape (..., C, (L + 1)²)
        Features of C channels.
    rotation : Tensor, shape (..., 3, 3)
        R, orthogonal, of the dtype and device of x; leading dimensions broadcast against those before C.
    parity : {1, -1}, default 1
        As for `wigner_d`.

    Returns
    -------
    Tensor, shape (..., C, (L + 1)²)
        Differentiable in both.

    Raises
    ------
    ArgumentTypeError
        If x or R is not real floating point.
    ShapeError
        If x has no channel dimension or a last dimension that is no square, or R does not go with it.
    ArgumentError
        If R is not orthogonal, or the parity another number than 1 and -1.
    """
    degree = degree_of("rotate", "x", x)
    if x.ndim < 2:
        raise ShapeError(f"rotate: expected x of shape (..., C, (L + 1)²), got {tuple(x.shape)}")
    _checked_rotation("rotate", rotation, parity)
    if rotation.dtype != x.dtype or rotation.device != x.device:
        raise ShapeError(f"rotate: rotation is {rotation.dtype} on {rotation.device}, x is {x.dtype} on {x.device}")
    try:
        torch.broadcast_shapes(x.shape[:-2], rotation.shape[:-2])
    except RuntimeError as error:
        raise ShapeError(
            f"rotate: rotations of batch shape {tuple(rotation.shape[:-2])} do not go with x of {tuple(x.shape)}"
        ) from error
    blocks = wigner_d(degree, rotation, parity=parity)
    return torch.cat([x[..., size**2 : (size + 1) ** 2] @ block.mT for size, block in enumerate(blocks)], -1)


def _proper_blocks(l_max: int, rotation: Tensor) -> tuple[Tensor, ...]:
    swap = (rotation[..., 1, 1].abs() > _NEAR_POLE)[..., None, None]
    swapped = torch.stack([rotation[..., 1, :], rotation[..., 0, :], -rotation[..., 2, :]], -2)  # J R
    r = torch.where(swap, swapped, rotation)
    sine_beta = (r[..., 0, 1].square() + r[..., 2, 1].square()).sqrt()  # at least 0.6, whichever was chosen
    cos_a, sin_a = r[..., 2, 1] / sine_beta, r[..., 0, 1] / sine_beta
    # the first row of Y(-α) R = X(β) Y(γ): as accurate as R, and consistent with the α above
    cos_g = cos_a * r[..., 0, 0] - sin_a * r[..., 2, 0]
    sin_g = cos_a * r[..., 0, 2] - sin_a * r[..., 2, 2]
    alpha, gamma = angle_multiples(cos_a, sin_a, l_max), angle_multiples(cos_g, sin_g, l_max)
    beta = angle_multiples(r[..., 1, 1], sine_beta, l_max)
    blocks = []
    for degree in range(l_max + 1):
        half_turn, middle = _tables_of_degree(degree, r.dtype, r.device)
        cos_b, sin_b = (_signed(part, degree, odd) for part, odd in zip(beta, (False, True), strict=True))
        waves = torch.cat([sin_b[..., :degree], cos_b[..., degree:]], -1)
        size = 2 * degree + 1
        inner = (waves @ middle).unflatten(-1, (size, size))  # J Z(β) J
        cos_l, sin_l = (_signed(part, degree, odd) for part, odd in zip(alpha, (False, True), strict=True))
        left = cos_l[..., :, None] * inner - sin_l[..., :, None] * inner.flip(-2)
        cos_r, sin_r = (_signed(part, degree, odd) for part, odd in zip(gamma, (False, True), strict=True))
        block = left * cos_r[..., None, :] + left.flip(-1) * sin_r[..., None, :]
        blocks.append(torch.where(swap, half_turn @ block, block))
    return tuple(blocks)


class PolarFrame(NamedTuple):
    """For each unit vector a rotation R that takes it to the polar axis, made of turns about y and half turns J.

    Which R is arbitrary, and jumps between two smooth families: what does not depend on the choice is smooth.
    """

    swap: Tensor  # (..., 1, 1): whether J comes first, as for vectors near a pole, which have no azimuth
    azimuth: tuple[Tensor, Tensor]  # cos(m α) and sin(m α) at every index, (..., 1, K)
    polar: tuple[Tensor, Tensor]  # the same of β


def polar_frame(direction: Tensor, l_max: int) -> PolarFrame:
    """Find R = X(-β) Y(-α), or the same after J, with R n = (0, 1, 0).

    Parameters
    ----------
    direction : Tensor, shape (..., 3)
        Unit vectors n = (sin β sin α, cos β, sin β cos α).
    l_max : int
        The largest degree to be turned.

    Returns
    -------
    PolarFrame
        For `to_pole` and `from_pole`.
    """
    x, y, z = direction.unbind(-1)
    swap = y.abs() > _NEAR_POLE
    x, y, z = torch.where(swap, y, x), torch.where(swap, x, y), torch.where(swap, -z, z)
    sine = (x.square() + z.square()).sqrt()  # at least 0.6, whichever was chosen
    place, _ = _index_tables(l_max, direction.device)
    waves = []
    for cosines, sines in (angle_multiples(z / sine, x / sine, l_max), angle_multiples(y, sine, l_max)):
        by_order = [_signed(cosines, l_max, False), _signed(sines, l_max, True)]
        waves.append([part.index_select(-1, place).unsqueeze(-2) for part in by_order])
    azimuth, polar = waves
    return PolarFrame(swap[..., None, None], (azimuth[0], azimuth[1]), (polar[0], polar[1]))


def to_pole(x: Tensor, frame: PolarFrame, l_max: int) -> Tensor:
    """Turn features by R: D(R) x without the matrix D.

    Parameters
    ----------
    x : Tensor, shape (..., C, (l_max + 1)²)
        Features.
    frame : PolarFrame
        Of directions whose leading dimensions broadcast with those before C.
    l_max : int
        Largest degree of x, at most that of the frame.

    Returns
    -------
    Tensor, shape (..., C, (l_max + 1)²)
        Turned features. O(L³) a row above degree 8; one product of O(L⁴) up to there, which takes less time.
    """
    x = torch.where(frame.swap, _half_turned(x, l_max), x)
    x = _half_turned(_about_axis(x, frame.azimuth, l_max, -1), l_max)
    return _half_turned(_about_axis(x, frame.polar, l_max, -1), l_max)


def from_pole(x: Tensor, frame: PolarFrame, l_max: int) -> Tensor:
    """Turn features back: D(R)ᵀ x.

    Parameters
    ----------
    x : Tensor, shape (..., C, (l_max + 1)²)
        Features in the frame whose pole is the direction.
    frame : PolarFrame
        As for `to_pole`.
    l_max : int
        Largest degree of x, at most that of the frame.

    Returns
    -------
    Tensor, shape (..., C, (l_max + 1)²)
        Features in the frame of all.
    """
    x = _half_turned(_about_axis(_half_turned(x, l_max), frame.polar, l_max, 1), l_max)
    x = _about_axis(x, frame.azimuth, l_max, 1)
    return torch.where(frame.swap, _half_turned(x, l_max), x)


def degree_of(call: str, name: str, x: Tensor) -> int:
    """Read the largest degree off a last dimension of (L + 1)².

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    x : Tensor, shape (..., (L + 1)²)
        Features.

    Returns
    -------
    int
        L.

    Raises
    ------
    ArgumentTypeError
        If x is not real floating point.
    ShapeError
        If the last dimension is no square.
    """
    length = x.shape[-1] if isinstance(x, Tensor) and x.ndim else 0
    degree = max(round(length**0.5) - 1, 0)
    if length != (degree + 1) ** 2 and isinstance(x, Tensor) and x.is_floating_point():
        raise ShapeError(f"{call}: expected the last dimension of {name} to be a square (L + 1)², got {length}")
    check_features(call, name, x, degree)
    return degree


def _checked_rotation(call: str, rotation: Tensor, parity: int) -> torch.dtype:
    if not isinstance(rotation, Tensor) or not rotation.is_floating_point():
        found = rotation.dtype if isinstance(rotation, Tensor) else type(rotation).__name__
        raise ArgumentTypeError(f"{call}: expected rotation to be a real floating-point tensor, got {found}")
    if rotation.shape[-2:] != (3, 3):
        raise ShapeError(f"{call}: expected rotation of shape (..., 3, 3), got {tuple(rotation.shape)}")
    if parity not in (1, -1):
        raise ArgumentError(f"{call}: expected parity 1 or -1, got {parity}")
    if not torch.compiler.is_compiling():
        wide = rotation.detach().to(compute_dtype(rotation.dtype))
        gap = (wide @ wide.mT - torch.eye(3, dtype=wide.dtype, device=wide.device)).abs()
        limit = torch.finfo(rotation.dtype).eps ** 0.5
        if gap.numel() and not float(gap.max()) <= limit:
            raise ArgumentError(
                f"{call}: rotation is not orthogonal: R Rᵀ is off the identity by {float(gap.max()):.1e}"
            )
    return rotation.dtype


def _signed(multiples: Tensor, degree: int, odd: bool) -> Tensor:
    # From m = 0..L to m = -l..l
    positive = multiples[..., 1 : degree + 1]
    negative = positive.flip(-1)
    return torch.cat([-negative if odd else negative, multiples[..., : degree + 1]], -1)


def _about_axis(x: Tensor, waves: tuple[Tensor, Tensor], l_max: int, sense: int) -> Tensor:
    # Z(±θ): (Z x)_m = cos(m θ) x_m - sin(m θ) x_-m
    _, mirror = _index_tables(l_max, x.device)
    cosines, sines = (part[..., : (l_max + 1) ** 2] for part in waves)
    return cosines * x - sense * sines * x.index_select(-1, mirror)


def _half_turned(x: Tensor, l_max: int) -> Tensor:
    if l_max <= 8:
        # one product of two matrices: on a tensor that is not contiguous, matmul would loop over the leading dimensions
        rows = x.reshape(-1, x.shape[-1]) @ _half_turn_matrix(l_max, x.dtype, x.device)  # J is symmetric
        return rows.reshape(x.shape)
    pieces = [
        x[..., degree**2 : (degree + 1) ** 2] @ _tables_of_degree(degree, x.dtype, x.device)[0]
        for degree in range(l_max + 1)
    ]
    return torch.cat(pieces, -1)


@_tables.constant
def _half_turn_matrix(l_max: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # J of all degrees, (K, K)
    return torch.block_diag(*(_half_turn(degree) for degree in range(l_max + 1))).to(device, dtype)


@_tables.constant
def _index_tables(l_max: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # for each index l² + l + m: where m stands among -L..L, and the index of -m
    orders = [(degree, m) for degree in range(l_max + 1) for m in range(-degree, degree + 1)]
    place = torch.tensor([l_max + m for _, m in orders], device=device)
    mirror = torch.tensor([degree * degree + degree - m for degree, m in orders], device=device)
    return place, mirror


@_tables.constant
def _tables_of_degree(degree: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    # J, and J Z(β) J as a linear function of sin(|m| β), m < 0, and cos(m β), m >= 0: (2 l + 1, (2 l + 1)²)
    j = _half_turn(degree)
    size = 2 * degree + 1
    waves = torch.zeros(size, size, size, dtype=torch.float64)
    for m in range(-degree, degree + 1):
        row, mirror = degree + m, degree - m
        waves[degree + abs(m), row, row] = 1.0
        if m:
            # sin(m β) has the sign of m; the table holds -sin(|m| β) at negative orders, as `_signed` does
            waves[degree - abs(m), row, mirror] = 1.0 if m > 0 else -1.0
    middle = (j @ waves @ j).flatten(1)
    return j.to(device, dtype), middle.to(device, dtype)


def _half_turn(degree: int) -> Tensor:
    # D of the half turn (x, y, z) -> (y, x, -z), by exact quadrature of Y(J r) Y(r)ᵀ
    grid, weighted = _tables.grid_of_degree(degree)
    turned = torch.stack([grid[:, 1], grid[:, 0], -grid[:, 2]], -1)
    return spherical_harmonics(degree, turned)[:, degree**2 :].mT @ weighted
