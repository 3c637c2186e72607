"""Where descent takes place: sparse series, or a full grid of sine coefficients.   Shapes: K modes an axis, D axes.

Both spaces offer the same operations; gradients are Riesz representatives in ⟨(shift - Δ) u, v⟩.
"""

import warnings
from math import pi
from typing import Any, Protocol

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.pde.barron import FourierSeries, SineSeries
from hesse.pde.variational._transforms import analyse, synthesise
from hesse.pde.variational.energy import EllipticEnergy

__all__ = ["GridSpace", "Space", "SparseSpace"]

_TAIL = 0.01  # of the Barron norm in the last octave: beyond it the norm of the full source may be infinite
_ALIAS = 1e-8  # of the energy of DE(u) in the top quarter of the padded grid's frequencies


class Space(Protocol):
    """What the descent needs; iterates are series in one space and tensors in the other."""

    energy: EllipticEnergy
    shift: float

    def zero(self) -> Any: ...
    def from_series(self, series: FourierSeries) -> Any: ...
    def to_series(self, u: Any) -> FourierSeries: ...
    def step(self, u: Any, v: Any, scale: float) -> Any: ...
    def inner(self, u: Any, v: Any) -> float: ...
    def value(self, u: Any) -> float: ...
    def gradient(self, u: Any) -> Any: ...
    def descent(self, gradient: Any, *, searching: bool) -> Any: ...
    def trim(self, u: Any, tol: float) -> tuple[Any, bool]: ...
    def barron_norm(self, u: Any) -> float: ...
    def num_terms(self, u: Any) -> int: ...
    def smoothness(self, u: Any) -> float: ...
    def source_norm(self) -> float: ...


class SparseSpace:
    """Series of any dimension; products enlarge them, and `trim` drops what does not count."""

    def __init__(self, energy: EllipticEnergy, shift: float, max_terms: int) -> None:
        self.energy, self.shift, self.max_terms = energy, shift, max_terms
        self.source = energy._series_source("PreconditionedDescent")

    def zero(self) -> FourierSeries:
        # the start u = 0
        return self.source.zero()

    def from_series(self, series: FourierSeries) -> FourierSeries:
        # the start in the algebra of this space
        return self.zero() + series

    def to_series(self, u: FourierSeries) -> FourierSeries:
        # u itself
        return u

    def step(self, u: FourierSeries, v: FourierSeries, scale: float) -> FourierSeries:
        # u + scale v
        return u + v * scale

    def inner(self, u: FourierSeries, v: FourierSeries) -> float:
        # ⟨(shift - Δ) u, v⟩
        return float(u.inner(v, shift=self.shift))

    def value(self, u: FourierSeries) -> float:
        # E(u)
        return self.energy.value(u)

    def gradient(self, u: FourierSeries) -> FourierSeries:
        # (shift - Δ)⁻¹ DE(u)
        return self.energy.derivative(u).inv_helmholtz(self.shift)

    def descent(self, gradient: FourierSeries, *, searching: bool) -> FourierSeries:
        # A line search would build long series at every trial: it takes as many terms as an iterate may have. What is
        # left out is orthogonal to them, so that the slope along them is minus their squared norm.
        return -(gradient.truncate(k=self.max_terms) if searching else gradient)

    def trim(self, u: FourierSeries, tol: float) -> tuple[FourierSeries, bool]:
        # u without terms of H¹ norm ``tol`` in all, and whether the cap on terms forced more
        kept = u.truncate(tol)
        if kept.num_terms <= self.max_terms:
            return kept, False
        return kept.truncate(k=self.max_terms), True

    def barron_norm(self, u: FourierSeries) -> float:
        # ‖u‖_B
        return float(u.barron_norm())

    def num_terms(self, u: FourierSeries) -> int:
        # how many frequencies u has
        return u.num_terms

    def smoothness(self, u: FourierSeries) -> float:
        # β where |u| is at most Σ|c|
        return self.energy.smoothness(float(u.l1_norm()), self.shift) or 1.0

    def source_norm(self) -> float:
        # ‖f‖_B
        return float(self.source.barron_norm())


class GridSpace:
    """Sine coefficients of all frequencies 1..K in up to three axes; nonlinear terms on a grid of 2(K+1) intervals.

    Twice as many intervals as modes leave a cubic term free of aliasing. Integrals are trapezoidal sums, which are
    exact for the products that a cubic term needs.
    """

    def __init__(self, energy: EllipticEnergy, shift: float, num_modes: int, dtype: torch.dtype, device: str) -> None:
        if energy.boundary != "dirichlet":
            raise ArgumentError("PreconditionedDescent: the grid is for Dirichlet values; use backend='sparse'")
        if energy.dim > 3:
            raise ArgumentError(f"PreconditionedDescent: the grid is for at most 3 axes, got {energy.dim}")
        self.energy, self.shift, self.num_modes = energy, shift, num_modes
        self.intervals = 2 * (num_modes + 1)
        self.options = {"dtype": dtype, "device": torch.device(device)}
        dim = energy.dim
        modes = torch.arange(1, num_modes + 1, **self.options)
        axes = torch.meshgrid([modes] * dim, indexing="ij")
        self.symbol = pi**2 * torch.stack(axes).square().sum(dim=0)
        nodes = torch.linspace(0, 1, self.intervals + 1, **self.options)
        self.points = torch.stack(torch.meshgrid([nodes] * dim, indexing="ij"), dim=-1).reshape(-1, dim)
        self.field_shape = (self.intervals + 1,) * dim
        edge = torch.ones(self.intervals + 1, **self.options)
        edge[0] = edge[-1] = 0.5
        weights = torch.ones((), **self.options)
        for _ in range(dim):
            weights = weights[..., None] * edge / self.intervals
        self.weights = weights.reshape(-1)
        self.source_coefs = self._source_coefs()
        self.aliasing = 0.0

    def _source_coefs(self) -> Tensor:
        source = self.energy.source
        if isinstance(source, FourierSeries):
            coefs = self.from_series(source)
            whole, kept = float(source.l2_norm()), float(coefs.norm()) * 2 ** (-self.energy.dim / 2)
            if whole - kept > 1e-8 * whole:
                warnings.warn(
                    f"the source has frequencies above num_modes={self.num_modes}, which are left out", stacklevel=4
                )
            return coefs
        values = source(self.points).to(**self.options).reshape(self.field_shape)
        coefs = self._inner_modes(analyse(values, [True] * self.energy.dim))
        if self.to_series(coefs).tail_share() > _TAIL:
            warnings.warn(
                "over 1 % of the source's Barron norm lies in its last octave of sine frequencies: the norm, and with "
                "it the certificate, grows with num_modes; a source that is not zero on the boundary does this",
                stacklevel=4,
            )
        return coefs

    def zero(self) -> Tensor:
        # the start u = 0
        return torch.zeros_like(self.symbol)

    def from_series(self, series: FourierSeries) -> Tensor:
        # the coefficients of a sine series, those above K left out
        inside = (series.freqs <= self.num_modes).all(dim=1)
        coefs = self.zero()
        coefs[tuple((series.freqs[inside] - 1).T)] = series.coef[inside].to(**self.options)
        return coefs

    def to_series(self, u: Tensor) -> SineSeries:
        # the terms of the coefficients that are not zero
        found = u.nonzero()
        return SineSeries(found + 1, u[tuple(found.T)])

    def step(self, u: Tensor, v: Tensor, scale: float) -> Tensor:
        # u + scale v
        return u + scale * v

    def inner(self, u: Tensor, v: Tensor) -> float:
        # ⟨(shift - Δ) u, v⟩
        return float(((self.shift + self.symbol) * u * v).sum()) / 2**self.energy.dim

    def _fields(self, u: Tensor) -> tuple[Tensor, Tensor]:
        dim = self.energy.dim
        values = synthesise(u, [True] * dim, self.intervals).reshape(-1)
        slopes = []
        for axis in range(dim):
            waves = pi * torch.arange(1, self.num_modes + 1, **self.options)
            slope = u * waves.reshape([-1 if i == axis else 1 for i in range(dim)])
            slopes.append(synthesise(slope, [i != axis for i in range(dim)], self.intervals).reshape(-1))
        return values, torch.stack(slopes, dim=1)

    def value(self, u: Tensor) -> float:
        # E(u) by the trapezoidal rule
        values, slopes = self._fields(u)
        linear = float((self.source_coefs * u).sum()) / 2**self.energy.dim
        return float((self.weights * self.energy.lagrangian(values, slopes, self.points)).sum()) - linear

    def _weak(self, by_u: Tensor, by_p: Tensor) -> Tensor:
        # the sine coefficients of by_u - div by_p
        dim = self.energy.dim
        full = analyse(by_u.reshape(self.field_shape), [True] * dim)
        for axis in range(dim):
            flux = analyse(by_p[:, axis].reshape(self.field_shape), [i != axis for i in range(dim)])
            waves = pi * torch.arange(1, flux.shape[axis] + 1, **self.options)
            full = full + flux * waves.reshape([-1 if i == axis else 1 for i in range(dim)])
        return full

    def _inner_modes(self, full: Tensor) -> Tensor:
        return full[(slice(0, self.num_modes),) * self.energy.dim]

    def gradient(self, u: Tensor) -> Tensor:
        # (shift - Δ)⁻¹ DE(u)
        values, slopes = self._fields(u)
        fields = (values.requires_grad_(), slopes.requires_grad_())
        with torch.enable_grad():
            total = self.energy.lagrangian(values, slopes, self.points).sum()
        by_u, by_p = torch.autograd.grad(total, fields, allow_unused=True, materialize_grads=True)
        weak = self._weak(by_u, by_p)
        self._watch_aliasing(weak)
        return (self._inner_modes(weak) - self.source_coefs) / (self.shift + self.symbol)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        # (shift - Δ)⁻¹ E''(u) v
        tangents = self._fields(v)
        values, slopes = self._fields(u)
        fields = (values.requires_grad_(), slopes.requires_grad_())
        with torch.enable_grad():  # conjugate gradients call this without
            total = self.energy.lagrangian(values, slopes, self.points).sum()
            first = torch.autograd.grad(total, fields, create_graph=True, allow_unused=True, materialize_grads=True)
            along = (first[0] * tangents[0]).sum() + (first[1] * tangents[1]).sum()
        by_u, by_p = torch.autograd.grad(along, fields, allow_unused=True, materialize_grads=True)
        return self._inner_modes(self._weak(by_u, by_p)) / (self.shift + self.symbol)

    def _watch_aliasing(self, weak: Tensor) -> None:
        """Keep the share of DE's energy in the top quarter of the padded band, where folding shows."""
        power = weak.square()
        whole = float(power.sum())
        low = power[(slice(0, 3 * self.intervals // 4),) * self.energy.dim]
        self.aliasing = 1 - float(low.sum()) / whole if whole > 0 else 0.0

    def warn_of_aliasing(self) -> None:
        """Warn if the last gradient showed energy where the padded grid folds frequencies."""
        if self.aliasing > _ALIAS:
            warnings.warn(
                f"{self.aliasing:.1e} of the derivative's energy lies at the end of the padded grid: aliasing "
                f"spoils the solution; raise num_modes above {self.num_modes}",
                stacklevel=3,
            )

    def descent(self, gradient: Tensor, *, searching: bool) -> Tensor:
        # minus the gradient
        del searching
        return -gradient

    def trim(self, u: Tensor, tol: float) -> tuple[Tensor, bool]:
        # u itself: nothing is dropped from a grid
        del tol
        return u, False

    def barron_norm(self, u: Tensor) -> float:
        # ‖u‖_B
        return float(((1 + self.symbol.sqrt()) * u.abs()).sum())

    def num_terms(self, u: Tensor) -> int:
        # how many coefficients are not zero
        return int(u.count_nonzero())

    def smoothness(self, u: Tensor) -> float:
        # β where |u| is at most its largest value on the grid
        radius = float(synthesise(u, [True] * self.energy.dim, self.intervals).abs().max())
        return self.energy.smoothness(radius, self.shift) or 1.0

    def source_norm(self) -> float:
        # ‖f‖_B of the modes kept
        return self.barron_norm(self.source_coefs)
