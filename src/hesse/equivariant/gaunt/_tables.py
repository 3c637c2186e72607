"""Constant matrices between coefficients and samples, made in float64 and kept.

Shapes: L largest degree, K = (L + 1)² coefficients, M = 2 m_max + 1 signed orders, T polar and P azimuthal nodes, B
rows.

A grid of ``degree`` D has T = ⌊D/2⌋ + 1 Gauss-Legendre nodes in cos t and P = D + 1 equidistant azimuths: it integrates
spherical polynomials up to degree D exactly. D must cover the degrees of all factors and of the harmonic that the
product is projected on; one node fewer folds high orders onto low ones, without any sign that it did.

A spiral for functions of degree N needs no quadrature: a few more points than the (N + 1)² coefficients, which are the
solution of least squares. That is half of a grid's points for a product that is not cut off.
"""

import math
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from hesse.equivariant.gaunt._arguments import Normalization
from hesse.equivariant.gaunt.harmonics import degree_factors, polar_functions

__all__ = [
    "FourierTables",
    "Kind",
    "SeparableTable",
    "axial_profile",
    "constant",
    "dense_evaluation",
    "dense_projection",
    "fourier_tables",
    "from_meridians",
    "gaunt_table",
    "grid_of_degree",
    "grid_size",
    "meridian_projection",
    "num_dense_samples",
    "separable_evaluation",
    "separable_projection",
    "to_meridians",
]

Kind = Literal["value", "dt", "dp"]  # the function itself, or its derivative along a meridian or a parallel
Made = TypeVar("Made")
_KEPT = 256  # tables: those of some thirty shapes of product


class SeparableTable(NamedTuple):
    """One matrix for each order, and the cosines and sines that join the orders."""

    polar: Tensor  # (M, T, L + 1) to evaluate, (M, L + 1, T) to project
    azimuth: Tensor  # (P, M) to evaluate, (M, P) to project
    order: Tensor  # indices into the K coefficients, or from (M, L + 1) to them


class FourierTables(NamedTuple):
    """Coefficients of harmonics in e^{i(ut + vp)} and back; u in the order of the FFT."""

    first: Tensor  # (L₁ + 1, L₁ + 1, 2 L₁ + 1): m, l, u from -L₁
    second: Tensor  # the same for L₂
    back: Tensor  # (L₃ + 1, N, L₃ + 1): m, u, l
    size: int  # N, of the transform
    plus: tuple[Tensor, Tensor, Tensor]  # where m of each degree stands, for L₁, L₂ and, from (m, l), L₃
    minus: tuple[Tensor, Tensor, Tensor]  # the same for -m


def grid_size(degree: int) -> tuple[int, int]:
    # Numbers of polar and azimuthal nodes that integrate spherical polynomials of a degree exactly
    return degree // 2 + 1, degree + 1


def num_dense_samples(within: int, degree: int) -> int:
    # Points of the dense back end, for products of degree ``within`` and a grid of ``degree``: the fewer of the two
    return min(_spiral_size(within), math.prod(grid_size(degree)))


def constant(function: Callable[..., Made]) -> Callable[..., Made]:
    # Keep what a builder of tables returns; a compiled graph then holds it as a constant. Tables outlive the call
    # that made them, so that they must not be tensors of inference mode, which autograd refuses.
    @lru_cache(maxsize=_KEPT)
    def kept(*arguments: Hashable) -> Made:
        with torch.inference_mode(False), torch.no_grad():
            return function(*arguments)

    @torch.compiler.assume_constant_result  # not on the cache itself, whose wrapper a compiler would step into
    def wrapped(*arguments: Hashable) -> tuple[Made]:
        return (kept(*arguments),)  # a bare tensor would enter the graph by this function's name, and only once

    return lambda *arguments: wrapped(*arguments)[0]


@constant
def dense_evaluation(
    l_max: int,
    within: int,
    degree: int,
    kind: Kind,
    normalization: Normalization,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    # (K, S): from coefficients to samples in one product
    if _takes_spiral(within, degree):
        values = _harmonics_at(l_max, *_spiral(within), kind)
    else:
        values = _harmonics(l_max, degree, kind)
    return (values / _factors(l_max, normalization)).to(device, dtype)


@constant
def dense_projection(
    l_max: int,
    within: int,
    degree: int,
    over_sine: bool,
    normalization: Normalization,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    # (S, K): from samples to coefficients; ``over_sine`` divides the samples by sin t first
    if _takes_spiral(within, degree):
        angle, azimuth = _spiral(within)
        # The pseudo-inverse of Y = RᵀQᵀ is Q R⁻ᵀ; its condition number is that of the points, below four
        Q, R = torch.linalg.qr(_harmonics_at(within, angle, azimuth, "value").mT)
        inverse = torch.linalg.solve_triangular(R.mT, Q, upper=False, left=False)[:, : (l_max + 1) ** 2]
        columns = inverse / angle.sin()[:, None] if over_sine else inverse
        return (columns * _factors(l_max, normalization)[:, 0]).contiguous().to(device, dtype)
    weights = _weights(degree, over_sine).repeat_interleave(degree + 1)
    rows = _harmonics(l_max, degree, "value") * _factors(l_max, normalization) * weights
    return rows.mT.contiguous().to(device, dtype)


@constant
def separable_evaluation(
    l_max: int,
    m_max: int,
    degree: int,
    kind: Kind,
    normalization: Normalization,
    dtype: torch.dtype,
    device: torch.device,
) -> SeparableTable:
    # From coefficients to samples, order by order, then over the azimuth
    polar = _signed_polar(l_max, m_max, _polar_nodes(degree)[0], kind)  # (M, T, L + 1)
    polar = polar / _by_degree(l_max, normalization)
    azimuth = _azimuth(m_max, _azimuthal_nodes(degree), kind).mT.contiguous()
    return SeparableTable(polar.to(device, dtype), azimuth.to(device, dtype), _gather_index(l_max, m_max).to(device))


@constant
def separable_projection(
    l_max: int,
    degree: int,
    over_sine: bool,
    normalization: Normalization,
    dtype: torch.dtype,
    device: torch.device,
) -> SeparableTable:
    # From samples to coefficients: over the azimuth, then order by order
    polar = _signed_polar(l_max, l_max, _polar_nodes(degree)[0], "value") * _by_degree(l_max, normalization)
    polar = (polar * _weights(degree, over_sine)[:, None]).mT.contiguous()
    azimuth = _azimuth(l_max, _azimuthal_nodes(degree), "value")
    return SeparableTable(polar.to(device, dtype), azimuth.to(device, dtype), _scatter_index(l_max).to(device))


@constant
def axial_profile(l_max: int, degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # (L + 1, T): along a meridian, Σ_m Y_lm(pole) Y_lm: the function whose coefficients are harmonics at the pole.
    # A normalization multiplies the harmonics and divides what is expanded in them, so that it does not appear.
    angle, _ = _polar_nodes(degree)
    at_pole = [math.sqrt((2 * order + 1) / (4 * math.pi)) for order in range(l_max + 1)]
    profile = polar_functions(l_max, angle)[..., 0].mT * torch.tensor(at_pole, dtype=torch.float64)[:, None]
    return profile.to(device, dtype)


@constant
def meridian_projection(
    l_max: int, degree: int, normalization: Normalization, dtype: torch.dtype, device: torch.device
) -> SeparableTable:
    # From one meridian of each order to coefficients; the integral over the azimuth is 2π or π
    angle, weights = _polar_nodes(degree)
    polar = _signed_polar(l_max, l_max, angle, "value") * _by_degree(l_max, normalization)
    orders = torch.arange(-l_max, l_max + 1)
    around = torch.where(orders == 0, 2.0, 1.0).to(torch.float64) * math.pi
    polar = (polar * weights[:, None] * around[:, None, None]).mT.contiguous()
    azimuth = torch.empty(0, dtype=dtype, device=device)  # already done
    return SeparableTable(polar.to(device, dtype), azimuth, _scatter_index(l_max).to(device))


def to_meridians(coefficients: Tensor, table: SeparableTable) -> Tensor:
    # (M, T, B): what rows of coefficients (B, K) sum to at the polar nodes, for each order
    orders, _, degrees = table.polar.shape
    gathered = coefficients.index_select(1, table.order).view(len(coefficients), orders, degrees)
    return torch.bmm(table.polar, gathered.permute(1, 2, 0))


def from_meridians(orders: Tensor, table: SeparableTable) -> Tensor:
    # (B, K): integrals over the meridian of each order (M, T, B)
    integrals = torch.bmm(table.polar, orders)
    return integrals.flatten(0, 1).index_select(0, table.order).mT


@constant
def gaunt_table(
    l1: int, l2: int, l3: int, normalization: Normalization, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # (K₁, K₂, K₃): every Gaunt coefficient up to three degrees, zeros of the selection rules exactly zero
    degree = l1 + l2 + l3
    first, second, third = (_harmonics(size, degree, "value") for size in (l1, l2, l3))
    third = third * _weights(degree, False).repeat_interleave(degree + 1)
    table = torch.einsum("ap,bp,cp->abc", first, second, third)
    table[table.abs() < 1e-13] = 0.0  # the smallest that are not zero are some 1e-4 at degree 16
    for axis, size in enumerate((l1, l2, l3)):
        factors = _factors(size, normalization).reshape([-1 if axis == a else 1 for a in range(3)])
        table = table * factors if axis == 2 else table / factors
    return table.to(device, dtype)


@constant
def fourier_tables(
    l1: int, l2: int, l3: int, normalization: Normalization, dtype: torch.dtype, device: torch.device
) -> FourierTables:
    # Both ways between harmonics and Fourier series on the torus, and the gathers that go with them
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    first, second = (_fourier_series(size, normalization).to(device, complex_dtype) for size in (l1, l2))
    size = 2 * (l1 + l2) + 1
    bandwidth = size // 2 + l3 + 1
    # half of the bandwidth would do for a smooth integrand over [0, π], with a few nodes more for the last digits
    nodes, weights = np.polynomial.legendre.leggauss(2 * bandwidth + 32)
    t = torch.from_numpy((nodes + 1) * math.pi / 2)
    w = torch.from_numpy(weights * math.pi / 2) * t.sin()
    u = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    waves = torch.polar(torch.ones((), dtype=torch.float64).expand(size, len(t)), u[:, None] * t)
    theta = polar_functions(l3, t) * w[:, None, None]
    back = 2 * math.pi * torch.einsum("ut,tlm->mul", waves, theta.to(waves.dtype)) * _by_degree(l3, normalization)
    plus, minus = zip(*(_half_index(size) for size in (l1, l2)), strict=True)
    orders = torch.tensor([(degree, m) for degree in range(l3 + 1) for m in range(-degree, degree + 1)])
    rows = orders[:, 1].abs() * (l3 + 1) + orders[:, 0]
    return FourierTables(
        first,
        second,
        back.to(device, complex_dtype),
        size,
        (plus[0].to(device), plus[1].to(device), rows.to(device)),
        (minus[0].to(device), minus[1].to(device), (orders[:, 1] < 0).to(device)),
    )


def grid_of_degree(degree: int) -> tuple[Tensor, Tensor]:
    # Unit vectors (S, 3) of a grid for degree 2 l, and the harmonics of degree l there times weights, (S, 2 l + 1)
    angle, _ = _polar_nodes(2 * degree)
    p = _azimuthal_nodes(2 * degree)
    sine = angle.sin()[:, None]
    columns = [sine * p.sin(), angle.cos()[:, None].expand(-1, len(p)), sine * p.cos()]
    weights = _weights(2 * degree, False).repeat_interleave(len(p))
    rows = _harmonics(degree, 2 * degree, "value")[degree**2 :] * weights
    return torch.stack(columns, -1).flatten(0, 1), rows.mT


def _fourier_series(l_max: int, normalization: Normalization) -> Tensor:
    # (m, l, u): Θ_lm as a sum of e^{iut}, u = -L..L, halved for m > 0, where the series is shared by v = m and -m
    count = 2 * l_max + 1
    t = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    u = torch.arange(-l_max, l_max + 1, dtype=torch.float64)
    waves = torch.polar(torch.full((), 1 / count, dtype=torch.float64).expand(count, count), -u[:, None] * t)
    series = torch.einsum("ut,tlm->mlu", waves, polar_functions(l_max, t).to(waves.dtype))
    halves = torch.tensor([1.0] + [0.5] * l_max, dtype=torch.float64)
    return series * halves[:, None, None] / _by_degree(l_max, normalization)[:, None]


def _half_index(l_max: int) -> tuple[Tensor, Tensor]:
    # Indices of orders m and -m, shapes (L + 1, L + 1) of m and l; where m > l the tables are zero
    m, degree = torch.meshgrid(torch.arange(l_max + 1), torch.arange(l_max + 1), indexing="ij")
    inside = m <= degree
    centre = degree * degree + degree
    return torch.where(inside, centre + m, 0).reshape(-1), torch.where(inside, centre - m, 0).reshape(-1)


def _polar_nodes(degree: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    return torch.from_numpy(np.arccos(nodes)), torch.from_numpy(weights)


def _azimuthal_nodes(degree: int) -> Tensor:
    return torch.arange(degree + 1, dtype=torch.float64) * (2 * math.pi / (degree + 1))


def _spiral_size(within: int) -> int:
    # A condition number below 4 up to degree 32, which takes the more points beyond the unknowns, the larger N is
    return 8 * math.ceil((within + 1) ** 2 * (1 + within / 80) / 8)


def _takes_spiral(within: int, degree: int) -> bool:
    return _spiral_size(within) < math.prod(grid_size(degree))


def _spiral(within: int) -> tuple[Tensor, Tensor]:
    # Polar angles and azimuths of a Fibonacci lattice: equal areas, one golden angle after another, never at a pole
    count = _spiral_size(within)
    index = torch.arange(count, dtype=torch.float64)
    turns = index * ((3 - math.sqrt(5)) / 2)
    return torch.arccos(1 - (2 * index + 1) / count), 2 * math.pi * (turns % 1)  # m times many turns would lose digits


def _weights(degree: int, over_sine: bool) -> Tensor:
    angle, weights = _polar_nodes(degree)
    weights = weights * (2 * math.pi / (degree + 1))
    return weights / angle.sin() if over_sine else weights  # Gauss nodes are never at a pole


def _signed_polar(l_max: int, m_max: int, angle: Tensor, kind: Kind) -> Tensor:
    # (M, T, L + 1): Θ or its derivative for orders -m_max..m_max, zero for orders beyond the degree
    theta = polar_functions(l_max, angle)
    if kind == "dt":
        theta = _slope(theta)
    theta = torch.nn.functional.pad(theta, (0, max(0, m_max - l_max)))
    return theta.permute(2, 0, 1)[torch.arange(-m_max, m_max + 1).abs()].contiguous()


def _slope(theta: Tensor) -> Tensor:
    # dΘ/dt: 2 Θ'_m = √((l + m)(l - m + 1)) Θ_{m-1} - √((l - m)(l + m + 1)) Θ_{m+1}, with the √2 of m > 0 on the border
    l_max = theta.shape[-1] - 1
    degree = torch.arange(l_max + 1, dtype=torch.float64)[:, None]
    m = torch.arange(1, l_max + 1, dtype=torch.float64)
    factor = ((degree + m) * (degree - m + 1)).clamp(min=0).sqrt() / 2  # between orders m - 1 and m
    factor[:, :1] *= 2**0.5
    raised = torch.nn.functional.pad(factor * theta[..., :-1], (1, 0))
    return raised - torch.nn.functional.pad(factor * theta[..., 1:], (0, 1))


def _azimuth(m_max: int, p: Tensor, kind: Kind) -> Tensor:
    # (M, P): cosines of m > 0, sines of m < 0, or their derivatives
    m = torch.arange(-m_max, m_max + 1, dtype=torch.float64)[:, None]
    if kind == "dp":
        return torch.where(m < 0, -m * torch.cos(m * p), -m * torch.sin(m * p))
    return torch.where(m < 0, -torch.sin(m * p), torch.cos(m * p))


def _harmonics(l_max: int, degree: int, kind: Kind) -> Tensor:
    # (K, T P): orthonormal harmonics, or derivatives of them, on the grid
    polar = _signed_polar(l_max, l_max, _polar_nodes(degree)[0], kind)
    samples = torch.einsum("mtl,mp->mltp", polar, _azimuth(l_max, _azimuthal_nodes(degree), kind)).flatten(2)
    return samples.flatten(0, 1)[_scatter_index(l_max)]


def _harmonics_at(l_max: int, angle: Tensor, azimuth: Tensor, kind: Kind) -> Tensor:
    # (K, S): the same at points, one polar angle and one azimuth each
    samples = torch.einsum("msl,ms->mls", _signed_polar(l_max, l_max, angle, kind), _azimuth(l_max, azimuth, kind))
    return samples.flatten(0, 1)[_scatter_index(l_max)]


def _gather_index(l_max: int, m_max: int) -> Tensor:
    m = torch.arange(-m_max, m_max + 1)[:, None]
    degree = torch.arange(l_max + 1)
    return torch.where(m.abs() <= degree, degree * degree + degree + m, 0).reshape(-1)


def _scatter_index(l_max: int) -> Tensor:
    return torch.tensor(
        [(m + l_max) * (l_max + 1) + degree for degree in range(l_max + 1) for m in range(-degree, degree + 1)]
    )


def _factors(l_max: int, normalization: Normalization) -> Tensor:
    return degree_factors(l_max, normalization, torch.float64, torch.device("cpu"))[:, None]


def _by_degree(l_max: int, normalization: Normalization) -> Tensor:
    return _factors(l_max, normalization)[torch.arange(l_max + 1) ** 2, 0]
