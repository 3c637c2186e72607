"""Real spherical harmonics of any degree, as polynomials of a direction.   Shapes: L largest degree, K = (L + 1)².

The polar axis is y: r = (sin t sin p, cos t, sin t cos p). Y_lm = Θ_l|m|(t) times cos(m p) for m > 0, sin(|m| p) for
m < 0, without the Condon-Shortley sign, at index l² + l + m. Degree 1 is proportional to (x, y, z). This is e3nn's
convention, so that weights can be exchanged.
"""

import math

import torch
from torch import Tensor

from hesse.equivariant._arguments import check_count
from hesse.equivariant.gaunt._arguments import Normalization, check_normalization, compute_dtype
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError

__all__ = ["angle_multiples", "degree_factors", "polar_functions", "spherical_harmonics", "unit_vectors"]


def spherical_harmonics(l_max: int, xyz: Tensor, normalization: Normalization = "integral") -> Tensor:
    """Evaluate Y_lm at r / |r| for all l <= L.

    The fully normalised Legendre recurrence is used, with the factor sinᵐ t taken out of it: what remains are
    polynomials of x, y, z, whose derivatives at the poles are finite, of any order.

    Parameters
    ----------
    l_max : int
        L >= 0. In float32 the recurrence overflows beyond L of about 190, in float64 beyond about 1,000.
    xyz : Tensor, shape (..., 3)
        r, of any length but zero; in half precision the sum is carried in float32.
    normalization : {"integral", "component", "norm"}, default "integral"
        ∫ Y² over the sphere is 1 ("integral", that of the Gaunt coefficients) or 4π ("component"); or each degree has
        length one ("norm").

    Returns
    -------
    Tensor, shape (..., K)
        In the dtype of ``xyz``; differentiable. O(K) a vector.

    Raises
    ------
    ArgumentTypeError
        If ``xyz`` is not real floating point, or ``l_max`` not an integer.
    ShapeError
        If the last dimension is not 3.
    ArgumentError
        If ``l_max`` is negative, the normalization unknown, or a vector zero or not finite (this last is not looked at
        inside ``torch.compile``).

    References
    ----------
    S. A. Holmes, W. E. Featherstone (2002), J. Geodesy 76, on the recurrence.
    """
    check_count("spherical_harmonics", "l_max", l_max)
    check_normalization("spherical_harmonics", normalization)
    x, y, z = unit_vectors("spherical_harmonics", "xyz", xyz).unbind(-1)
    polynomials = _legendre(l_max, y)
    cosines, sines = angle_multiples(z, x, l_max)  # sinᵐ t cos(m p) and sinᵐ t sin(m p)
    degrees = [
        torch.cat([(q[..., 1:] * sines[..., 1 : degree + 1]).flip(-1), q * cosines[..., : degree + 1]], -1)
        for degree, q in enumerate(polynomials)
    ]
    values = torch.cat(degrees, -1) * degree_factors(l_max, normalization, y.dtype, y.device)
    return values.to(xyz.dtype)


def unit_vectors(call: str, name: str, xyz: Tensor) -> Tensor:
    """Divide by the length, after a look at the argument.

    Parameters
    ----------
    call, name : str
        The function and its argument, for the message.
    xyz : Tensor, shape (..., 3)
        Vectors.

    Returns
    -------
    Tensor, shape (..., 3)
        Unit vectors, in float32 or wider.

    Raises
    ------
    ArgumentTypeError
        If the numbers are not real floating point.
    ShapeError
        If the last dimension is not 3.
    ArgumentError
        If one is zero or not finite (not looked at inside ``torch.compile``).
    """
    if not isinstance(xyz, Tensor) or not xyz.is_floating_point():
        found = xyz.dtype if isinstance(xyz, Tensor) else type(xyz).__name__
        raise ArgumentTypeError(f"{call}: expected {name} to be a real floating-point tensor, got {found}")
    if xyz.ndim == 0 or xyz.shape[-1] != 3:
        raise ShapeError(f"{call}: expected {name} of shape (..., 3), got {tuple(xyz.shape)}")
    wide = xyz.to(compute_dtype(xyz.dtype))
    largest = wide.detach().abs().amax(-1, keepdim=True)
    if not torch.compiler.is_compiling() and not bool(((largest > 0) & largest.isfinite()).all()):
        raise ArgumentError(f"{call}: {name} holds a vector that is zero or not finite, which has no direction")
    scaled = wide / largest  # squares of very short and very long vectors stay in range
    return scaled / scaled.square().sum(-1, keepdim=True).sqrt()


def polar_functions(l_max: int, angle: Tensor) -> Tensor:
    """Evaluate Θ_lm(t) = sinᵐ t q_lm(cos t), where √2 is folded in for m > 0.

    Parameters
    ----------
    l_max : int
        L.
    angle : Tensor, shape (T,)
        t in rad; beyond π the sine is negative, which makes Θ a trigonometric polynomial on the whole circle.

    Returns
    -------
    Tensor, shape (T, L + 1, L + 1)
        Rows are degrees, columns orders m >= 0; zero where m > l.
    """
    powers = torch.stack([angle.sin() ** m for m in range(l_max + 1)], -1)
    rows = [torch.nn.functional.pad(q, (0, l_max - degree)) for degree, q in enumerate(_legendre(l_max, angle.cos()))]
    return torch.stack(rows, -2) * powers.unsqueeze(-2)


def angle_multiples(cosine: Tensor, sine: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the powers (cosine + i sine)ᵐ, m = 0..count.

    Parameters
    ----------
    cosine, sine : Tensor, shape (...)
        Of an angle; or both times a common factor, whose powers then multiply the results.
    count : int
        The last power.

    Returns
    -------
    tuple of Tensor
        cos(m p) and sin(m p), shapes (..., count + 1).
    """
    real, imaginary = [torch.ones_like(cosine)], [torch.zeros_like(cosine)]
    for _ in range(count):
        a, b = real[-1], imaginary[-1]
        real.append(a * cosine - b * sine)
        imaginary.append(a * sine + b * cosine)
    return torch.stack(real, -1), torch.stack(imaginary, -1)


def degree_factors(l_max: int, normalization: Normalization, dtype: torch.dtype, device: torch.device) -> Tensor:
    """By how much harmonics of a normalization exceed orthonormal ones.

    Parameters
    ----------
    l_max : int
        L.
    normalization : {"integral", "component", "norm"}
        1, √(4π) or √(4π / (2l + 1)).
    dtype, device
        Of the result.

    Returns
    -------
    Tensor, shape (K,)
        One an index.
    """
    squares = [
        {"integral": 1.0, "component": 4 * math.pi, "norm": 4 * math.pi / (2 * degree + 1)}[normalization]
        for degree in range(l_max + 1)
    ]
    factors = [math.sqrt(square) for degree, square in enumerate(squares) for _ in range(2 * degree + 1)]
    return torch.tensor(factors, dtype=dtype, device=device)


def _legendre(l_max: int, cosine: Tensor) -> list[Tensor]:
    # q_lm of every degree, shapes (..., l + 1): fully normalised, so that no factorial can overflow
    rows = [torch.full_like(cosine, (4 * math.pi) ** -0.5).unsqueeze(-1)]
    c = cosine.unsqueeze(-1)
    for degree in range(1, l_max + 1):
        order = torch.arange(degree, dtype=torch.float64)
        a = ((4 * degree**2 - 1) / (degree**2 - order**2)).sqrt().to(c)
        inner = c * rows[-1]
        if degree > 1:
            b = (((degree - 1) ** 2 - order**2) / (4 * (degree - 1) ** 2 - 1)).sqrt().to(c)
            inner = inner - b * torch.nn.functional.pad(rows[-2], (0, 1))
        last = math.sqrt((2 * degree + 1) / (2 * degree) * (2 if degree == 1 else 1))
        rows.append(torch.cat([a * inner, last * rows[-1][..., -1:]], -1))
    return rows
