"""Sparse sums of products of sines and cosines on the unit cube.   Shapes: S terms, D axes, N points."""

from dataclasses import dataclass, replace
from itertools import product
from math import pi
from typing import Any, Self

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.pde.barron._terms import group_rows
from hesse.pde.barron.networks import Waves
from hesse.pde.barron.series import FourierSeries

__all__ = ["SineSeries"]


@dataclass(frozen=True, eq=False)
class SineSeries(FourierSeries):
    """u(x) = Σ_w c_w Π_i s_i(π w_i x_i), where s_i is the sine in some axes and the cosine in the others.

    With sines everywhere, which is the default, u vanishes on the boundary of the cube. Derivatives and products lead
    to cosines; the kind of an axis is the same for all terms.

    Parameters
    ----------
    freqs : Tensor, shape (S, D), int64
        w: at least 1 in axes of sines, at least 0 in axes of cosines; equal rows are added.
    coef : Tensor, shape (S,), real
        c.
    sines : tuple of bool, length D, optional
        Which axes carry sines. Default: all.

    Raises
    ------
    ShapeError
        If shapes do not match.
    ArgumentTypeError
        If ``freqs`` are not int64 or ``coef`` not real and floating.
    ArgumentError
        If a frequency is out of range or a coefficient is not finite.

    Examples
    --------
    >>> u = SineSeries(torch.tensor([[1]]), torch.tensor([1.0]))
    >>> (u * u).sines, (u * u).freqs.tolist(), (u * u).coef.tolist()  # sin² = 1/2 - cos(2·)/2
    ((False,), [[0], [2]], [0.5, -0.5])
    """

    sines: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.coef.is_floating_point():
            raise ArgumentTypeError(f"SineSeries: expected real floating coef, got {self.coef.dtype}")
        if self.freqs.ndim == 2 and not self.sines:
            object.__setattr__(self, "sines", (True,) * self.freqs.shape[1])
        super().__post_init__()
        if len(self.sines) != self.dim:
            raise ShapeError(f"SineSeries: expected one entry of sines for each of {self.dim} axes, got {self.sines}")
        lowest = torch.tensor(self.sines, device=self.freqs.device).long()
        if bool((self.freqs < lowest).any()):
            raise ArgumentError("SineSeries: expected frequencies >= 1 in axes of sines and >= 0 in axes of cosines")

    def wave_lengths(self) -> Tensor:
        """Compute π|w|.

        Returns
        -------
        Tensor, shape (S,)
            In radians per unit of x.
        """
        return pi * self.freqs.to(self.coef.dtype).norm(dim=1)

    def _squared_norms(self) -> Tensor:
        return torch.where(self.freqs > 0, 0.5, 1.0).to(self.coef.dtype).prod(dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate at points (N, D): O(N S D) time, O(N S) memory.

        Returns
        -------
        Tensor, shape (N,)
            u, in the precision of the points.
        """
        freqs = self.freqs.to(x.dtype)
        values_NS = self.coef.to(x.dtype).expand(len(self._points(x)), -1)
        for axis, sine in enumerate(self.sines):
            angle_NS = pi * x[:, axis, None] * freqs[None, :, axis]
            values_NS = values_NS * (angle_NS.sin() if sine else angle_NS.cos())
        return values_NS.sum(dim=1)

    def _copies(self) -> int:
        return 2**self.dim

    def _product(self, other: Any) -> Self:
        count = self.num_terms * other.num_terms
        base = (self.coef[:, None] * other.coef[None, :]).reshape(-1) / 2**self.dim
        kinds = tuple(a != b for a, b in zip(self.sines, other.sines, strict=True))
        freqs, coef = [], []
        for signs in product((1, -1), repeat=self.dim):
            value, columns = base, []
            for axis, sign in enumerate(signs):
                column = (self.freqs[:, None, axis] + sign * other.freqs[None, :, axis]).reshape(-1)
                if self.sines[axis] and other.sines[axis]:  # sin a sin b = (cos(a - b) - cos(a + b)) / 2
                    value = -sign * value
                elif kinds[axis]:  # sin(a ± b), where a - b may be negative or zero
                    value = value * torch.sign(column)
                    if other.sines[axis]:  # cos a sin b = (sin(a + b) - sin(a - b)) / 2
                        value = sign * value
                columns.append(column.abs())
            freqs.append(columns)
            coef.append(value)
        table = [torch.cat(parts) for parts in zip(*freqs, strict=True)]
        values = torch.cat(coef)
        first, group = group_rows(table, count * 2**self.dim, self.freqs.device)
        merged = torch.stack([column[first] for column in table], dim=1)
        summed = values.new_zeros(len(first)).index_add(0, group, values)
        kept = (merged >= torch.tensor(kinds, device=merged.device).long()).all(dim=1)  # sin 0 is no term
        return replace(self, freqs=merged[kept], coef=summed[kept], sines=kinds)

    def grad(self) -> tuple[Self, ...]:
        """Compute the partial derivatives ∂_i u; ‖∂_i u‖_B <= π max w_i ‖u‖_B.

        Returns
        -------
        tuple of SineSeries, length D
            Each with the kind of its axis changed.
        """
        parts = []
        for axis, sine in enumerate(self.sines):
            factor = pi * self.freqs[:, axis].to(self.coef.dtype)
            kept = self.freqs[:, axis] > 0
            kinds = tuple(not kind if i == axis else kind for i, kind in enumerate(self.sines))
            coef = self.coef * (factor if sine else -factor)
            parts.append(replace(self, freqs=self.freqs[kept], coef=coef[kept], sines=kinds))
        return tuple(parts)

    def tail_share(self) -> float:
        """Compute the share of the Barron norm in the last octave: frequencies with max w_i above half the largest.

        Returns
        -------
        float
            In [0, 1]. Where it is not small, the norm of the full function may be infinite.
        """
        if self.num_terms == 0:
            return 0.0
        top = self.freqs.amax(dim=1)
        mass = (1 + self.wave_lengths()) * self.coef.detach().abs()
        whole = float(mass.sum())
        return float(mass[2 * top > top.max()].sum()) / whole if whole > 0 else 0.0

    def _same_space(self, other: FourierSeries) -> None:
        super()._same_space(other)
        if isinstance(other, SineSeries) and other.sines != self.sines:
            raise ShapeError(
                f"SineSeries: series with sines in axes {self.sines} and {other.sines} do not add up to one series; an "
                "even power of a sine series is a cosine series, which is not zero on the boundary"
            )

    def _waves(self) -> Waves:
        dtype, device = self.coef.dtype, self.coef.device
        signs = torch.tensor([(1, *rest) for rest in product((1, -1), repeat=self.dim - 1)], dtype=dtype, device=device)
        kinds = torch.tensor(self.sines, device=device)
        parity = torch.where(kinds, signs, torch.ones_like(signs)).prod(dim=1)
        weights = pi * (self.freqs.to(dtype)[:, None, :] * signs[None, :, :]).reshape(-1, self.dim)
        amplitudes = (self.coef[:, None] * parity[None, :]).reshape(-1) / len(signs)
        phases = torch.full_like(amplitudes, -pi / 2 * sum(self.sines))
        return Waves(weights, phases, amplitudes, self.coef.new_zeros(()))
