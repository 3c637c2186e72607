"""Scalar polynomials V(u) = Σ v_k u^k: derivatives, their least value, and polynomials in place of other functions."""

from collections.abc import Callable, Sequence
from math import inf

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from hesse.errors import ArgumentError

__all__ = ["chebyshev_potential", "derivative", "evaluate", "largest_curvature", "least_curvature"]


def derivative(coefs: Sequence[float]) -> tuple[float, ...]:
    # the coefficients of V', in ascending powers
    return tuple(k * v for k, v in enumerate(coefs))[1:]


def evaluate(coefs: Sequence[float], u: Tensor) -> Tensor:
    # V(u), elementwise, by Horner's rule
    total = torch.zeros_like(u)
    for coef in reversed(coefs):
        total = total * u + coef
    return total


def least_curvature(coefs: Sequence[float]) -> float:
    # the infimum of V'' over the real line; -inf if it has none
    second = Polynomial([0.0, *derivative(derivative(coefs))]).trim()  # the zero only keeps the list from being empty
    second = Polynomial(second.coef[1:]) if len(second.coef) > 1 else Polynomial([0.0])
    degree = second.degree()
    if degree == 0:
        return float(second.coef[0])
    if degree % 2 == 1 or second.coef[-1] < 0:
        return -inf
    roots = second.deriv().roots()
    candidates = [float(second(root.real)) for root in np.atleast_1d(roots) if abs(root.imag) <= 1e-7 * (1 + abs(root))]
    return min(candidates)


def largest_curvature(coefs: Sequence[float], radius: float) -> float:
    # the upper bound Σ k (k-1) |v_k| r^(k-2) on |V''| for |u| <= r
    return sum(abs(a) * radius**k for k, a in enumerate(derivative(derivative(coefs))))


def chebyshev_potential(slope_fn: Callable[[Tensor], Tensor], radius: float, degree: int) -> tuple[list[float], float]:
    """Replace V' by its Chebyshev interpolant on [-r, r] and integrate: a potential for `EllipticEnergy`.

    If iterates and solution stay within r, the solution moves by at most ε/α in H¹, where ε is the error returned and
    α the strong convexity of the energy (the dual norm of a function bounded by ε is at most ε on the unit cube).

    Parameters
    ----------
    slope_fn : callable
        V', elementwise on a float64 tensor, non-decreasing for a convex energy.
    radius : float
        r > 0, a bound on |u|: the certified Barron norm is one.
    degree : int
        Degree of the interpolant, >= 1. Odd slopes keep only odd powers, to rounding set to zero.

    Returns
    -------
    potential : list of float, length degree + 2
        Coefficients of V in ascending powers, V(0) = 0.
    sup_error : float
        Largest |V' - interpolant| seen on 4001 equally spaced points.

    Raises
    ------
    ArgumentError
        If ``radius <= 0``, ``degree < 1``, or the slope is not finite on the interval.
    """
    if not radius > 0:
        raise ArgumentError(f"chebyshev_potential: expected radius > 0, got {radius}")
    if degree < 1:
        raise ArgumentError(f"chebyshev_potential: expected degree >= 1, got {degree}")

    def values(u: np.ndarray) -> np.ndarray:
        return slope_fn(torch.from_numpy(u)).detach().numpy()

    fit = Chebyshev.interpolate(values, degree, domain=[-radius, radius])
    grid = np.linspace(-radius, radius, 4001)
    exact = values(grid)
    if not np.isfinite(exact).all():
        raise ArgumentError("chebyshev_potential: slope_fn is not finite on [-radius, radius]")
    rounding = 64 * np.finfo(float).eps * float(np.abs(fit.coef).sum())
    fit.coef[np.abs(fit.coef) <= rounding] = 0.0
    power = fit.convert(kind=Polynomial).coef
    error = float(np.abs(Polynomial(power)(grid) - exact).max())
    return [0.0, *(float(a) / (k + 1) for k, a in enumerate(power))], error
