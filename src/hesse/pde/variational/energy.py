"""Convex energies E(u) = ∫ L(x, u, ∇u) - f u over the unit cube.   Shapes: N points, D axes."""

from collections.abc import Callable, Sequence
from math import isfinite, pi
from typing import Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.pde.barron import FourierSeries, PlaneWaveSeries, SineSeries
from hesse.pde.variational._potentials import derivative, evaluate, largest_curvature, least_curvature

__all__ = ["Boundary", "EllipticEnergy", "Source"]

Boundary = Literal["dirichlet", "periodic"]
Source = FourierSeries | Callable[[Tensor], Tensor]


class EllipticEnergy:
    """E(u) = ∫ L(u, ∇u) - f u, whose minimiser solves -div ∂_p L + ∂_u L = f.

    Either L = |p|²/2 + a V(u) with a polynomial V, or any L(u, p) with curvature between ``lam`` and ``Lam`` in p. In
    the inner product ⟨(shift - Δ) u, v⟩ the second derivative lies between

        α = inf (lam s + m) / (shift + s)   and   β = sup (Lam s + M) / (shift + s),

    over the spectrum s >= s₀ of -Δ, with m <= ∂_uu L <= M: a descent step of 1/β then takes a factor 1 - α/β off the
    energy's distance from its minimum, on every mesh. Both fractions are monotone in s, so that the ends decide.

    Parameters
    ----------
    dim : int
        D >= 1.
    potential : sequence of float, optional
        v_0, v_1, ...: V(u) = Σ v_k u^k. Give this or ``integrand``; with neither, V = 0.
    integrand : callable, optional
        L(u, p) of tensors (N,) and (N, D), returning (N,), made of torch operations. For the grid alone.
    source : FourierSeries or callable
        f, as a series or as a function of points (N, D) (for the grid alone).
    lam : float, default 1.0
        Smallest curvature of L in p; one for a potential.
    Lam : float, optional
        Largest curvature of L in p, and an upper bound on ∂_uu L. Required with ``integrand``. Default for a
        potential: one in p, and V'' at the largest |u| met.
    coefficient : FourierSeries, optional
        a(x) >= 0, a factor of V: a `PlaneWaveSeries` on the torus, a `SineSeries` of cosines on the cube. That it is
        nowhere negative is not tested. Default: one.
    boundary : {"dirichlet", "periodic"}, default "dirichlet"
        u = 0 on the faces of the cube, or period one.
    allow_nonconvex : bool, default False
        Accept α <= 0. Descent then finds a stationary point, without rate, error bound or certificate of speed.

    Raises
    ------
    ArgumentError
        If the energy is not strongly convex, or arguments contradict each other.
    ArgumentTypeError
        If the source is neither a series nor callable.
    ShapeError
        If a series has another dimension or other boundary values.
    """

    def __init__(
        self,
        dim: int,
        *,
        source: Source,
        potential: Sequence[float] | None = None,
        integrand: Callable[[Tensor, Tensor], Tensor] | None = None,
        lam: float = 1.0,
        Lam: float | None = None,
        coefficient: FourierSeries | None = None,
        boundary: Boundary = "dirichlet",
        allow_nonconvex: bool = False,
    ) -> None:
        self.dim = dim
        self.boundary: Boundary = boundary
        self.potential = tuple(float(v) for v in potential or ())
        self.integrand, self.source, self.coefficient = integrand, source, coefficient
        self.lam, self.Lam = lam, Lam
        self._check()
        if not allow_nonconvex and not self.strong_convexity() > 0:
            raise ArgumentError(
                f"EllipticEnergy: the energy is not strongly convex (inf of the curvature in u is {self.least_mass}); "
                "there may be several solutions. Pass allow_nonconvex=True to search for a stationary point without a "
                "certificate"
            )

    def _check(self) -> None:
        if self.dim < 1:
            raise ArgumentError(f"EllipticEnergy: expected dim >= 1, got {self.dim}")
        if self.boundary not in ("dirichlet", "periodic"):
            raise ArgumentError(f"EllipticEnergy: expected boundary 'dirichlet' or 'periodic', got {self.boundary!r}")
        if not all(isfinite(v) for v in self.potential):
            raise ArgumentError("EllipticEnergy: the potential has a coefficient that is not finite")
        if self.integrand is not None:
            if self.potential or self.coefficient is not None:
                raise ArgumentError("EllipticEnergy: give a potential or an integrand, not both")
            if self.Lam is None:
                raise ArgumentError("EllipticEnergy: an integrand needs Lam, the largest curvature of L in p")
            if self.boundary == "periodic":
                raise ArgumentError("EllipticEnergy: an integrand is minimised on the grid, which is Dirichlet's only")
        elif self.lam != 1:
            raise ArgumentError(f"EllipticEnergy: |p|²/2 has curvature lam = 1, got lam={self.lam}")
        if not 0 < self.lam <= (self.lam if self.Lam is None else self.Lam):
            raise ArgumentError(f"EllipticEnergy: expected 0 < lam <= Lam, got {self.lam} and {self.Lam}")
        if not isinstance(self.source, FourierSeries) and not callable(self.source):
            raise ArgumentTypeError(f"EllipticEnergy: source is neither series nor callable: {type(self.source)}")
        for name, series in (("source", self.source), ("coefficient", self.coefficient)):
            if isinstance(series, FourierSeries):
                self._check_series(name, series, sines=name == "source")

    def _check_series(self, name: str, series: FourierSeries, *, sines: bool) -> None:
        wanted = SineSeries if self.boundary == "dirichlet" else PlaneWaveSeries
        if not isinstance(series, wanted) or series.dim != self.dim:
            raise ShapeError(
                f"EllipticEnergy: {name} must be a {wanted.__name__} in {self.dim} dimensions for {self.boundary} "
                f"boundary values, got a {type(series).__name__} in {series.dim}"
            )
        if isinstance(series, SineSeries) and set(series.sines) != {sines}:
            kind = "sines" if sines else "cosines"
            raise ShapeError(f"EllipticEnergy: {name} must have {kind} in every axis, got sines={series.sines}")
        if isinstance(series, PlaneWaveSeries) and not series.is_real():
            raise ArgumentError(f"EllipticEnergy: {name} is not real: its coefficients lack c(-k) = conj c(k)")

    @property
    def lowest(self) -> float:
        """s₀, the smallest eigenvalue of -Δ: Dπ² on the cube with zero boundary values, 0 on the torus."""
        return self.dim * pi**2 if self.boundary == "dirichlet" else 0.0

    @property
    def least_mass(self) -> float:
        """m, a lower bound on ∂_uu L: 0 for an integrand, as the method assumes there."""
        if self.integrand is not None:
            return 0.0
        least = least_curvature(self.potential)
        if self.coefficient is None:
            return least
        return 0.0 if least >= 0 else least * float(self.coefficient.l1_norm())

    def strong_convexity(self, shift: float = 1.0) -> float:
        """Compute α in the inner product ⟨(shift - Δ) u, v⟩.

        Returns
        -------
        float
            Not positive for an energy that is not strongly convex.
        """
        return min(self.lam, (self.lam * self.lowest + self.least_mass) / (shift + self.lowest))

    def smoothness(self, radius: float | None = None, shift: float = 1.0) -> float | None:
        """Return β, or a bound on it where |u| <= radius.

        Parameters
        ----------
        radius : float, optional
            A bound on |u|. Default: none, and then β is known only from ``Lam`` or for a quadratic potential.
        shift : float, default 1.0
            That of the inner product.

        Returns
        -------
        float or None
            None if β is infinite over all u.
        """
        if self.Lam is not None:
            return max(self.Lam, self.Lam * (1 + self.lowest) / (shift + self.lowest))
        if radius is None:
            if any(self.potential[3:]):
                return None
            radius = 0.0
        mass = largest_curvature(self.potential, radius)
        if self.coefficient is not None:
            mass *= float(self.coefficient.l1_norm())
        return max(1.0, (self.lowest + mass) / (shift + self.lowest))

    def density(self, u: Tensor, p: Tensor, x: Tensor) -> Tensor:
        """Evaluate L(u, p) - f u at points.

        Parameters
        ----------
        u : Tensor, shape (N,)
            Values.
        p : Tensor, shape (N, D)
            Gradients.
        x : Tensor, shape (N, D)
            Where.

        Returns
        -------
        Tensor, shape (N,)
            Its mean over uniform points is an unbiased estimate of E.
        """
        return self.lagrangian(u, p, x) - self.source(x) * u

    def lagrangian(self, u: Tensor, p: Tensor, x: Tensor) -> Tensor:
        """Evaluate L(u, p) at points, shapes as in `density`.

        Returns
        -------
        Tensor, shape (N,)
            Without the source.
        """
        if self.integrand is not None:
            return self.integrand(u, p)
        reaction = evaluate(self.potential, u)
        if self.coefficient is not None:
            reaction = self.coefficient(x) * reaction
        return p.square().sum(dim=-1) / 2 + reaction

    def value(self, u: FourierSeries) -> float:
        """Compute E(u), exact in the algebra of series.

        Parameters
        ----------
        u : FourierSeries
            With the energy's boundary values.

        Returns
        -------
        float
            In the units of L.

        Raises
        ------
        ArgumentError
            As `derivative`.
        """
        source = self._series_source("value")
        total = float(u.inner(u, shift=0.0)) / 2 - float(source.inner(u, gradient=False))
        powers = self._powers(u, (len(self.potential)) // 2)
        for k, v in enumerate(self.potential):
            if v == 0:
                continue
            left, right = powers[k // 2], powers[(k + 1) // 2]
            if self.coefficient is not None:
                left = self.coefficient if left is None else self.coefficient * left
            if right is None:
                total += v if left is None else v * float(_integral(left))
            else:
                total += v * float(_integral(right) if left is None else left.inner(right, gradient=False))
        return total

    def derivative(self, u: FourierSeries) -> FourierSeries:
        """Compute DE(u) = -Δu + a V'(u) - f as a series.

        Parameters
        ----------
        u : FourierSeries
            With the energy's boundary values.

        Returns
        -------
        FourierSeries
            Its L² inner product with v is the derivative of E(u + t v) in t.

        Raises
        ------
        ArgumentError
            If the energy has an integrand or a source that is no series, or V' is not odd with Dirichlet values.
        """
        source = self._series_source("derivative")
        return u.neg_laplacian() + self._reaction(derivative(self.potential), u, u.zero()) - source

    def hvp(self, u: FourierSeries, v: FourierSeries) -> FourierSeries:
        """Compute E''(u) v = -Δv + a V''(u) v as a series.

        Parameters
        ----------
        u, v : FourierSeries
            With the energy's boundary values.

        Returns
        -------
        FourierSeries
            Linear in v.

        Raises
        ------
        ArgumentError
            As `derivative`.
        """
        self._series_source("hvp")
        return v.neg_laplacian() + self._reaction(derivative(derivative(self.potential)), u, v.zero(), times=v)

    def with_solution(self, solution: FourierSeries) -> "EllipticEnergy":
        """Compute the same energy with the source that makes ``solution`` its minimiser, computed without error.

        Returns
        -------
        EllipticEnergy
            A new energy of the same kind.
        """
        changed = self._replaced(solution.zero())
        return self._replaced(changed.derivative(solution))

    def _replaced(self, source: Source) -> "EllipticEnergy":
        return EllipticEnergy(
            self.dim,
            source=source,
            potential=self.potential,
            integrand=self.integrand,
            lam=self.lam,
            Lam=self.Lam,
            coefficient=self.coefficient,
            boundary=self.boundary,
            allow_nonconvex=True,
        )

    def _series_source(self, call: str) -> FourierSeries:
        if self.integrand is not None or not isinstance(self.source, FourierSeries):
            raise ArgumentError(
                f"EllipticEnergy.{call}: the algebra of series needs a polynomial potential and a source that is a "
                "series; use backend='grid'"
            )
        if self.boundary == "dirichlet" and any(self.potential[1::2]):
            raise ArgumentError(
                f"EllipticEnergy.{call}: V has an odd power, so V' has an even one, and even powers of a sine series "
                "are cosine series, which are not zero on the boundary; use backend='grid'"
            )
        return self.source

    def _powers(self, u: FourierSeries, top: int) -> list[FourierSeries | None]:
        # u⁰ (None, as it is no sine series), u, u², ... up to ``top``, without what is below rounding
        powers: list[FourierSeries | None] = [None, u]
        while len(powers) <= top:
            last = powers[-1]
            powers.append(u if last is None else (last * u).rounded())
        return powers

    def _reaction(
        self, slope: Sequence[float], u: FourierSeries, zero: FourierSeries, times: FourierSeries | None = None
    ) -> FourierSeries:
        # Σ slope_k u^k, times ``a`` and, if given, ``times``
        powers = self._powers(u, len(slope) - 1)
        total = zero
        for k, weight in enumerate(slope):
            if weight == 0:
                continue
            term = powers[k]
            for factor in (times, self.coefficient):
                if factor is not None:
                    term = factor if term is None else term * factor
            if term is None:
                term = _constant(u)
            total = total + term.rounded() * weight
        return total


def _constant(like: FourierSeries) -> FourierSeries:
    # the function 1 on the torus
    one = torch.ones(1, dtype=like.coef.dtype, device=like.coef.device)
    return PlaneWaveSeries(torch.zeros(1, like.dim, dtype=torch.int64, device=like.freqs.device), one)


def _integral(series: FourierSeries) -> Tensor:
    # ∫ of a series over the unit cube; of products of cosines only the constant one counts
    return series.coef[(series.freqs == 0).all(dim=1)].real.sum()
