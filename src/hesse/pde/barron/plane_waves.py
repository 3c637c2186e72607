"""Sparse sums of plane waves on the torus.   Shapes: S terms, D axes, N points."""

from dataclasses import dataclass, replace
from math import pi
from typing import Any, Self

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.pde.barron._terms import group_rows
from hesse.pde.barron.networks import Waves
from hesse.pde.barron.series import FourierSeries

__all__ = ["PlaneWaveSeries"]

_REAL = 1e4  # rounding errors of a coefficient that c(-k) = conj c(k) may miss


@dataclass(frozen=True, eq=False)
class PlaneWaveSeries(FourierSeries):
    """u(x) = Σ_k c_k exp(2πi k·x), periodic with period one in every axis.

    Parameters
    ----------
    freqs : Tensor, shape (S, D), int64
        k; equal rows are added.
    coef : Tensor, shape (S,), complex
        c. A real function has c(-k) = conj c(k); products and sums keep that.

    Raises
    ------
    ShapeError
        If shapes do not match.
    ArgumentTypeError
        If ``freqs`` are not int64 or ``coef`` not complex.
    ArgumentError
        If a coefficient is not finite.

    Examples
    --------
    >>> u = PlaneWaveSeries.cosines(torch.tensor([[1, 2]]), torch.tensor([3.0], dtype=torch.float64))
    >>> u.num_terms, float((u * u)(torch.zeros(1, 2, dtype=torch.float64)))
    (2, 9.0)
    """

    def __post_init__(self) -> None:
        if not self.coef.is_complex():
            raise ArgumentTypeError(f"PlaneWaveSeries: expected complex coef, got {self.coef.dtype}")
        super().__post_init__()

    @classmethod
    def cosines(cls, freqs: Tensor, amplitudes: Tensor, phases: Tensor | None = None) -> Self:
        """Make the real series Σ a cos(2π k·x + φ).

        Parameters
        ----------
        freqs : Tensor, shape (S, D), int64
            k.
        amplitudes : Tensor, shape (S,)
            a, real.
        phases : Tensor, shape (S,), optional
            φ in radians. Default: zero.

        Returns
        -------
        PlaneWaveSeries
            With 2 S terms, fewer where frequencies meet.
        """
        angle = torch.zeros_like(amplitudes) if phases is None else phases
        half = torch.complex(amplitudes * angle.cos(), amplitudes * angle.sin()) / 2
        return cls(torch.cat([freqs, -freqs]), torch.cat([half, half.conj()]))

    def wave_lengths(self) -> Tensor:
        """Compute 2π|k|.

        Returns
        -------
        Tensor, shape (S,)
            In radians per unit of x.
        """
        return 2 * pi * self.freqs.to(self.coef.real.dtype).norm(dim=1)

    def _squared_norms(self) -> Tensor:
        return torch.ones_like(self.coef.real)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate at points (N, D): O(N S D) time, O(N S) memory.

        Returns
        -------
        Tensor, shape (N,)
            The real part of u, in the precision of the points.
        """
        phase_NS = 2 * pi * self._points(x) @ self.freqs.to(x.dtype).T
        return phase_NS.cos() @ self.coef.real.to(x.dtype) - phase_NS.sin() @ self.coef.imag.to(x.dtype)

    def _product(self, other: Any) -> Self:
        count = self.num_terms * other.num_terms
        used = (self.freqs.any(dim=0) | other.freqs.any(dim=0)).tolist()
        columns = (
            (self.freqs[:, None, axis] + other.freqs[None, :, axis]).reshape(-1)
            for axis in range(self.dim)
            if used[axis]
        )
        first, group = group_rows(columns, count, self.freqs.device)
        pairs = (self.coef[:, None] * other.coef[None, :]).reshape(-1)
        width = max(other.num_terms, 1)  # an empty series has an empty product
        freqs = self.freqs[first // width] + other.freqs[first % width]
        return replace(self, freqs=freqs, coef=pairs.new_zeros(len(first)).index_add(0, group, pairs))

    def grad(self) -> tuple[Self, ...]:
        """Compute the partial derivatives Σ 2πi k_i c_k exp(2πi k·x); ‖∂_i u‖_B <= 2π max|k_i| ‖u‖_B.

        Returns
        -------
        tuple of PlaneWaveSeries, length D
            One an axis.
        """
        return tuple(
            replace(self, coef=self.coef * (2j * pi * self.freqs[:, axis].to(self.coef.real.dtype)))
            for axis in range(self.dim)
        )

    def mean(self) -> Tensor:
        """Compute ∫ u over the torus.

        Returns
        -------
        Tensor, shape ()
            The real part.
        """
        return self.coef[(self.freqs == 0).all(dim=1)].real.sum()

    def is_real(self) -> bool:
        """Test whether c(-k) = conj c(k) to rounding.

        Returns
        -------
        bool
            True if so.
        """
        mirrored = replace(self, freqs=-self.freqs, coef=self.coef.conj())
        gap = float((self - mirrored).coef.detach().abs().sum())
        return gap <= _REAL * torch.finfo(self.coef.dtype).eps * float(self.l1_norm().detach())

    def _partners(self) -> Tensor:
        freqs = self.freqs * torch.where(self._leading() < 0, -1, 1)[:, None]
        return group_rows(freqs.unbind(1), self.num_terms, freqs.device)[1]

    def _leading(self) -> Tensor:
        # the first entry of each frequency that is not zero: its sign tells k from -k
        position = (self.freqs != 0).int().argmax(dim=1, keepdim=True)
        return self.freqs.gather(1, position).squeeze(1)

    def _waves(self) -> Waves:
        if not self.is_real():
            raise ArgumentError("to_network: the series is not real: its coefficients lack c(-k) = conj c(k)")
        half = self._leading() > 0
        coef = self.coef[half]
        weights = 2 * pi * self.freqs[half].to(coef.real.dtype)
        return Waves(weights, coef.angle(), 2 * coef.abs(), self.mean())
