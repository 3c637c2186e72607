"""Hermite polynomials, the frozen inner layer, and targets g(p(x)) to try it on.

Shapes: B points of d coordinates, M inner features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize, relu, softplus

from hesse.errors import ArgumentError, ShapeError

__all__ = [
    "HierarchicalTarget",
    "InnerName",
    "check_inner",
    "draw_directions",
    "hermite",
    "hierarchical_target",
    "inner_features",
]

InnerName = Literal["hermite", "mixed", "relu", "softplus", "exact"]
"""What the frozen layer computes; "exact" has no directions: all products of degree k, k <= 2."""

Link = Literal["cubic", "even"]


def hermite(t: Tensor, degree: int) -> Tensor:
    """He_k(t) / √k!, orthonormal under N(0, 1), by √(k+1) h_{k+1} = t h_k - √k h_{k-1}.

    Parameters
    ----------
    t : Tensor, any shape
        Arguments.
    degree : int
        k >= 0.

    Returns
    -------
    Tensor, shape of ``t``
        Differentiable.

    Raises
    ------
    ArgumentError
        If ``degree < 0``.
    """
    if degree < 0:
        raise ArgumentError(f"hermite: degree: expected >= 0, got {degree}")
    before, now = torch.zeros_like(t), torch.ones_like(t)
    for k in range(degree):
        before, now = now, (t * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    return now


def check_inner(inner: str, degree: int) -> None:
    """Refuse an inner layer that is unknown, or that its degree does not allow.

    Parameters
    ----------
    inner : str
        Its name.
    degree : int
        k.

    Raises
    ------
    ArgumentError
        Naming what is wrong.
    """
    if not isinstance(degree, int) or degree < 1:
        raise ArgumentError(f"degree: expected a whole number >= 1, got {degree!r}")
    if inner not in get_args(InnerName):
        raise ArgumentError(f"inner: expected one of {', '.join(get_args(InnerName))}, got {inner!r}")
    if inner == "exact" and degree > 2:
        raise ArgumentError(f"inner: 'exact' has all products of degree 1 or 2, not of degree {degree}")


def inner_features(x: Tensor, directions: Tensor, degree: int, inner: InnerName = "hermite") -> Tensor:
    """h0(x) = s2(V x): what the frozen layer makes of the inputs.

    Parameters
    ----------
    x : Tensor, shape (B, d)
        Inputs, about N(0, I).
    directions : Tensor, shape (M, d)
        V, unit rows; not used by "exact".
    degree : int
        k, of the polynomial to be found.
    inner : {"hermite", "mixed", "relu", "softplus", "exact"}, default "hermite"
        "hermite": He_k alone, best where p has degree k and nothing else. "mixed": all degrees up to k. "relu" and
        "softplus" have higher ones too, which act as noise. "exact": the orthonormal monomials of degree k <= 2.

    Returns
    -------
    Tensor, shape (B, M), or (B, number of monomials)
        Features of about unit variance under N(0, I).

    Raises
    ------
    ArgumentError
        If the degree or the name is out of range.
    """
    check_inner(inner, degree)
    if inner == "exact":
        if degree == 1:
            return x
        rows, columns = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
        return torch.cat([hermite(x, 2), x[:, rows] * x[:, columns]], 1)
    t = x @ directions.T
    if inner == "hermite":
        return hermite(t, degree)
    if inner == "mixed":
        return torch.stack([hermite(t, j) for j in range(1, degree + 1)]).sum(0) / math.sqrt(degree)
    return relu(t) if inner == "relu" else softplus(t)


def draw_directions(count: int, dim: int, generator: Generator | None, like: Tensor) -> Tensor:
    """Draw V: rows uniform on the unit sphere.

    Parameters
    ----------
    count, dim : int
        M and d.
    generator : torch.Generator, optional
        Source of the draw.
    like : Tensor
        Gives dtype and device.

    Returns
    -------
    Tensor, shape (M, d)
        Unit rows.
    """
    return normalize(torch.randn(count, dim, generator=generator, dtype=like.dtype, device=like.device), dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class HierarchicalTarget:
    """h = g(p(x)): a polynomial with mean 0 and variance 1 under N(0, I), and a link."""

    polynomial: Callable[[Tensor], Tensor]  # (B, d) -> (B,)
    link: Callable[[Tensor], Tensor]
    dim: int

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate h.

        Parameters
        ----------
        x : Tensor, shape (B, d)
            Inputs.

        Returns
        -------
        Tensor, shape (B,)
            g(p(x)).

        Raises
        ------
        ShapeError
            If x is not (B, d).
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ShapeError(f"x: expected shape (B, {self.dim}), got {tuple(x.shape)}")
        return self.link(self.polynomial(x))


def hierarchical_target(
    dim: int,
    degree: int = 2,
    link: Link | Callable[[Tensor], Tensor] = "cubic",
    *,
    spectrum: Literal["flat", "goe"] = "flat",
    generator: Generator | None = None,
) -> HierarchicalTarget:
    """Draw a target: p = <u, x> (k = 1), xᵀA x - tr A (2), or Σ He_3(x_j) / √(6 d) (3), under a link of unit variance.

    Parameters
    ----------
    dim : int
        d.
    degree : {1, 2, 3}, default 2
        k.
    link : {"cubic", "even"} or callable, default "cubic"
        "cubic": (z + He_3(z)/√6) / √2, odd, with a linear part. "even": (z² - 1) / √2, whose linear part is zero, so
        that the first stage finds nothing.
    spectrum : {"flat", "goe"}, default "flat"
        Of A, for k = 2: ± c in equal numbers in a random basis, or a symmetric Gaussian matrix.
    generator : torch.Generator, optional
        Source of the draw.

    Returns
    -------
    HierarchicalTarget
        In float64.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    """
    if degree not in (1, 2, 3) or dim < 1 or (degree == 2 and dim < 2):
        raise ArgumentError(f"hierarchical_target: expected degree 1, 2 or 3 and dim >= degree, got {degree}, {dim}")
    if not callable(link) and link not in get_args(Link):
        raise ArgumentError(f"link: expected 'cubic', 'even' or a function, got {link!r}")
    if spectrum not in ("flat", "goe"):
        raise ArgumentError(f"spectrum: expected 'flat' or 'goe', got {spectrum!r}")
    polynomial = _polynomial(dim, degree, spectrum, generator)
    if callable(link):
        return HierarchicalTarget(polynomial, link, dim)
    known = {"cubic": lambda z: (z + hermite(z, 3)) / math.sqrt(2), "even": lambda z: hermite(z, 2)}
    return HierarchicalTarget(polynomial, known[link], dim)


def _polynomial(dim: int, degree: int, spectrum: str, generator: Generator | None) -> Callable[[Tensor], Tensor]:
    kind = {"dtype": torch.float64, "generator": generator}
    if degree == 1:
        u = normalize(torch.randn(dim, **kind), dim=0)
        return lambda x: x @ u.to(x)
    if degree == 3:
        return lambda x: hermite(x, 3).sum(1) / math.sqrt(dim)
    drawn = torch.randn(dim, dim, **kind)
    if spectrum == "goe":
        A = (drawn + drawn.T) / 2
    else:
        Q = torch.linalg.qr(drawn).Q
        signs = torch.ones(dim, dtype=torch.float64)
        signs[1::2] = -1
        A = (Q * signs) @ Q.T
    A = A / (math.sqrt(2) * A.norm())  # the variance of xᵀA x is 2 ‖A‖²
    return lambda x: ((x @ A.to(x)) * x).sum(1) - float(A.trace())
