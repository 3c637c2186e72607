"""What sparse sine and plane-wave sums share: addition, norms, truncation.   Shapes: S terms, D axes, N points."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Generator, Tensor

from hesse._values import check_present
from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.pde.barron._terms import group_rows, largest_first, merge_terms, smallest_first
from hesse.pde.barron.networks import Activation, Sampling, TwoLayerNetwork, Waves, wave_network

__all__ = ["FourierSeries"]

_PAIRS = 2**22  # terms of a product held before equal ones are merged: some 200 MB


@dataclass(frozen=True, eq=False)
class FourierSeries(ABC):
    """Finite sum u(x) = Σ_w c_w e_w(x) over integer frequencies w, on the unit cube of D axes.

    Terms of equal frequency are added when the series is made, so that norms are those of the function. Operations run
    in the precision of ``coef`` and are differentiable in it; half precision is accepted but sums badly.
    """

    freqs: Tensor  # (S, D) int64
    coef: Tensor  # (S,)

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.freqs.ndim != 2 or self.coef.shape != self.freqs.shape[:1] or self.freqs.shape[1] < 1:
            raise ShapeError(
                f"{name}: expected freqs (S, D) and coef (S,), got {tuple(self.freqs.shape)} and "
                f"{tuple(self.coef.shape)}"
            )
        if self.freqs.dtype != torch.int64:
            raise ArgumentTypeError(f"{name}: expected freqs of dtype int64, got {self.freqs.dtype}")
        check_present(name, "coef", self.coef)
        if not bool(torch.isfinite(self.coef.detach()).all()):
            raise ArgumentError(f"{name}: coef has entries that are not finite")
        freqs, coef = merge_terms(self.freqs, self.coef)
        object.__setattr__(self, "freqs", freqs)
        object.__setattr__(self, "coef", coef)

    @property
    def dim(self) -> int:
        """D, the number of axes."""
        return self.freqs.shape[1]

    @property
    def num_terms(self) -> int:
        """S, the number of different frequencies."""
        return len(self.coef)

    @abstractmethod
    def wave_lengths(self) -> Tensor:
        """Euclidean lengths of the wave vectors in radians per unit of x, shape (S,): their squares are -Δ."""

    @abstractmethod
    def _squared_norms(self) -> Tensor:
        """∫ |e_w|² of each term, shape (S,)."""

    @abstractmethod
    def _waves(self) -> Waves:
        """Return the same function as a sum of cosines of affine functions."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return values (N,) at points (N, D)."""

    @abstractmethod
    def _product(self, other: Any) -> Self:
        """Multiply by a series with all pairs of terms in memory."""

    def __mul__(self, other: Self | float) -> Self:
        """Multiply by a number or, pointwise, by a series: O(S S') time, times 2^D for sines.

        Returns
        -------
        FourierSeries
            Exact: all sums and differences of frequencies.

        Raises
        ------
        ShapeError
            If the other series is of another kind or dimension.
        """
        if not isinstance(other, FourierSeries):
            return replace(self, coef=self.coef * other)
        if type(other) is not type(self) or other.dim != self.dim:
            raise ShapeError(f"cannot multiply a {type(self).__name__} by a {type(other).__name__} in other dimensions")
        rows = max(1, _PAIRS // (self._copies() * max(other.num_terms, 1)))
        total = self._block(0, rows)._product(other)
        for start in range(rows, self.num_terms, rows):
            total = total + self._block(start, start + rows)._product(other)
        return total

    def _partners(self) -> Tensor:
        # which terms stay or go together, numbered from 0, shape (S,)
        return torch.arange(self.num_terms, device=self.freqs.device)

    def _copies(self) -> int:
        # Terms that the product of two terms has
        return 1

    def _block(self, start: int, stop: int) -> Self:
        return replace(self, freqs=self.freqs[start:stop], coef=self.coef[start:stop])

    def __add__(self, other: Self) -> Self:
        self._same_space(other)
        freqs = torch.cat([self.freqs, other.freqs])
        return replace(self, freqs=freqs, coef=torch.cat([self.coef, other.coef]))

    def __neg__(self) -> Self:
        return replace(self, coef=-self.coef)

    def __sub__(self, other: Self) -> Self:
        return self + (-other)

    def __rmul__(self, other: float) -> Self:
        return self * other

    def zero(self) -> Self:
        """Make the series without terms.

        Returns
        -------
        FourierSeries
            In the same space.
        """
        return replace(self, freqs=self.freqs[:0], coef=self.coef[:0])

    def reweight(self, factors: Tensor) -> Self:
        """Multiply each coefficient by its factor, shape (S,): any function of the Laplacian.

        Returns
        -------
        FourierSeries
            With the same frequencies.
        """
        return replace(self, coef=self.coef * factors)

    def inv_helmholtz(self, shift: float = 1.0) -> Self:
        """Solve (shift - Δ) v = u exactly: c_w / (shift + |w|²), w in radians.

        Parameters
        ----------
        shift : float, default 1.0
            That of the H¹ inner product. Zero is allowed where no term is constant.

        Returns
        -------
        FourierSeries
            v; its Barron norm is at most that of u divided by the smallest shift + |w|².

        Raises
        ------
        ArgumentError
            If shift + |w|² is not positive for some term.
        """
        symbol = shift + self.wave_lengths() ** 2
        if bool((symbol <= 0).any()):
            raise ArgumentError(f"inv_helmholtz: shift - Δ is not positive on this series for shift={shift}")
        return self.reweight(1 / symbol)

    def neg_laplacian(self) -> Self:
        """Apply -Δ.

        Returns
        -------
        FourierSeries
            c_w |w|².
        """
        return self.reweight(self.wave_lengths() ** 2)

    def barron_norm(self) -> Tensor:
        """Compute the spectral Barron norm Σ (1 + |w|) |c_w|, w in radians; it is submultiplicative.

        Returns
        -------
        Tensor, shape ()
            Differentiable in the coefficients.
        """
        return ((1 + self.wave_lengths()) * self.coef.abs()).sum()

    def l1_norm(self) -> Tensor:
        """Compute Σ |c_w|.

        Returns
        -------
        Tensor, shape ()
            An upper bound on |u| everywhere.
        """
        return self.coef.abs().sum()

    def l2_norm(self) -> Tensor:
        """Compute (∫ u²)^½ over the unit cube.

        Returns
        -------
        Tensor, shape ()
            By Parseval, exact.
        """
        return self.inner(self, shift=0.0, gradient=False).sqrt()

    def h1_norm(self, shift: float = 1.0) -> Tensor:
        """Compute (∫ shift u² + |∇u|²)^½ over the unit cube.

        Returns
        -------
        Tensor, shape ()
            By Parseval, exact.
        """
        return self.inner(self, shift=shift).sqrt()

    def inner(self, other: Self, *, shift: float = 1.0, gradient: bool = True) -> Tensor:
        """Inner product ∫ shift u v + ∇u·∇v over the unit cube, or ∫ u v.

        Parameters
        ----------
        other : FourierSeries
            v, of the same space.
        shift : float, default 1.0
            Weight of ∫ u v.
        gradient : bool, default True
            False for ∫ u v alone, whatever ``shift``.

        Returns
        -------
        Tensor, shape ()
            Real.
        """
        self._same_space(other)
        both = torch.cat([self.freqs, other.freqs])
        first, group = group_rows(both.unbind(1), len(both), both.device)
        left, right = (
            c.new_zeros(len(first)).index_add(0, g, c)
            for c, g in ((self.coef, group[: self.num_terms]), (other.coef, group[self.num_terms :]))
        )
        merged = replace(self, freqs=both[first], coef=left)  # the groups are in lexicographic order already
        weight = merged._squared_norms()
        if gradient:
            weight = weight * (shift + merged.wave_lengths() ** 2)
        return (weight * (left * right.conj()).real).sum()

    def truncate(self, tol: float | None = None, k: int | None = None) -> Self:
        """Drop terms, the smallest in H¹ first, while what is dropped stays within ``tol``, or down to ``k`` terms.

        Parameters
        ----------
        tol : float, optional
            Largest H¹ norm of all that is dropped. Default: nothing is dropped for its size.
        k : int, optional
            Terms kept at most; a plane wave and its conjugate stay together. Default: no limit.

        Returns
        -------
        FourierSeries
            No norm of it is larger than before.

        Raises
        ------
        ArgumentError
            If ``tol < 0`` or ``k < 1``.
        """
        if tol is not None and not tol >= 0:
            raise ArgumentError(f"truncate: expected tol >= 0, got {tol}")
        if k is not None and k < 1:
            raise ArgumentError(f"truncate: expected k >= 1, got {k}")
        mass = (1 + self.wave_lengths() ** 2) * self.coef.detach().abs() ** 2 * self._squared_norms()
        group = self._partners()
        keep = smallest_first(group, mass, tol**2) if tol is not None else torch.ones_like(mass, dtype=torch.bool)
        if k is not None and int(keep.sum()) > k:
            keep &= largest_first(group, mass, k)
        return replace(self, freqs=self.freqs[keep], coef=self.coef[keep])

    def rounded(self) -> Self:
        """Drop the smallest terms that together are below rounding in the Barron norm.

        Returns
        -------
        FourierSeries
            The same function in working precision.
        """
        mass = (1 + self.wave_lengths()) * self.coef.detach().abs()
        keep = smallest_first(self._partners(), mass, torch.finfo(self.coef.dtype).eps * float(mass.sum()))
        return replace(self, freqs=self.freqs[keep], coef=self.coef[keep])

    def to_network(
        self,
        width: int | None = None,
        activation: Activation = "cos",
        *,
        sampling: Sampling = "l2",
        tol: float = 1e-3,
        generator: Generator | None = None,
    ) -> TwoLayerNetwork:
        """Write the series as a two-layer network: exactly, or by a random choice of its units (Maurey).

        A sampled network u_m is unbiased, with E‖u_m - u‖²_{L2} <= (Σ|c_w|)²/m for ``sampling="l2"`` and
        E‖u_m - u‖²_{H1} <= ‖u‖_B²/m for ``"h1"``, in every dimension.

        Parameters
        ----------
        width : int, optional
            m >= 1, the number of cosines drawn. Default: all of them, which is exact: one for each pair of plane waves
            and 2^(D-1) for each product of D sines.
        activation : {"cos", "relu"}, default "cos"
            ``relu`` replaces each cosine by its broken line through equally spaced points.
        sampling : {"l2", "h1"}, default "l2"
            Draw cosines with probability proportional to |c_w| or to (1 + |w|) |c_w|.
        tol : float, default 1e-3
            Largest error of a broken line of amplitude one, for ``relu``; the network is off by at most tol Σ|c_w|.
            A cosine takes some |w|₁ / √(8 tol) units.
        generator : torch.Generator, optional
            Source of the draw. Default: torch's global generator.

        Returns
        -------
        TwoLayerNetwork
            Maps (N, D) to (N,).

        Raises
        ------
        ArgumentError
            If ``width < 1``, ``tol <= 0``, a name is unknown, or the series is not real.
        """
        return wave_network(self._waves(), width, activation, sampling=sampling, tol=tol, generator=generator)

    def _same_space(self, other: "FourierSeries") -> None:
        if type(other) is not type(self) or other.dim != self.dim:
            raise ShapeError(
                f"{type(self).__name__} in {self.dim} dimensions does not go with {type(other).__name__} in {other.dim}"
            )

    def _points(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ShapeError(f"{type(self).__name__}: expected points of shape (N, {self.dim}), got {tuple(x.shape)}")
        return x
