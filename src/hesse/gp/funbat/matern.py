"""Matérn processes as linear stochastic differential equations: exact transitions in closed form.

Shapes: m + 1 states, m = nu - 1/2; ... a stack of processes, B any shape of time steps.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError

__all__ = ["MaternSSM"]

_ORDERS = {0.5: 1, 1.5: 2, 2.5: 3}


@dataclass(frozen=True, slots=True)
class MaternSSM:
    """The state z = (u, u', …, u⁽ᵐ⁾) of a Matérn process u with nu = m + 1/2, in state-space form.

    dz = F z dt + L dB, u = H z with H = (1, 0, …), F the companion matrix of (x + λ)^(m+1) and λ = √(2 nu) / l. Sampled
    at any times this is the Gaussian process with the Matérn kernel itself, not an approximation of it.

    Parameters
    ----------
    nu : {0.5, 1.5, 2.5}, default 1.5
        Smoothness: u has m = nu - 1/2 derivatives.
    lengthscale : float or Tensor, default 0.3
        l > 0, in units of time; a tensor of any shape is a stack of processes.
    variance : float or Tensor, default 1.0
        s² > 0, that of u; of the shape of ``lengthscale``.

    Raises
    ------
    ArgumentError
        If nu is another number, or a parameter is not positive and finite.

    References
    ----------
    J. Hartikainen, S. Särkkä (2010), MLSP.
    """

    nu: float = 1.5
    lengthscale: float | Tensor = 0.3
    variance: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if self.nu not in _ORDERS:
            raise ArgumentError(f"MaternSSM: expected nu in 0.5, 1.5, 2.5, got {self.nu!r}")
        for name, value in (("lengthscale", self.lengthscale), ("variance", self.variance)):
            found = torch.as_tensor(value)
            if not bool((torch.isfinite(found) & (found > 0)).all()):
                raise ArgumentError(f"MaternSSM: expected a positive finite {name}, got {value!r}")

    @property
    def order(self) -> int:
        """States of one process, m + 1."""
        return _ORDERS[self.nu]

    def discretize(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Transition over time steps: z(t + dt) = A z(t) + w, w ~ N(0, Q).

        A = e^(-λ dt) Σ_k (N λ dt)^k / k! with N nilpotent. Q_ij is an integral of polynomials times e^(-2 λ s), a sum
        of incomplete gamma functions; unlike P∞ - A P∞ Aᵀ it keeps its digits for small steps, where Q_00 ~ dt^(2m+1).

        Parameters
        ----------
        dt : Tensor, shape (B,)
            Steps >= 0, in units of time; their dtype and device are those of the result.

        Returns
        -------
        tuple of Tensor, shapes (..., B, m + 1, m + 1)
            A and Q. Differentiable in dt > 0, length scale and variance.
        """
        rate, variance = self._parameters(dt)
        x = rate.unsqueeze(-1) * dt  # in units of 1/λ, in which all coefficients are numbers
        p = self.order
        shift = torch.as_tensor(_nilpotent(p), dtype=dt.dtype, device=dt.device)
        unit = torch.eye(p, dtype=dt.dtype, device=dt.device)
        series, power = unit.expand(*x.shape, p, p), unit
        for k in range(1, p):
            power = power @ shift
            series = series + (x**k / math.factorial(k))[..., None, None] * power
        transition = torch.exp(-x)[..., None, None] * series
        noise = torch.stack(
            [torch.stack([_overlap(_impulse(p, i), _impulse(p, j), x) for j in range(p)], -1) for i in range(p)], -2
        )
        noise = noise / _overlap_limit(_impulse(p, 0), _impulse(p, 0))
        scale = self._scale(rate).unsqueeze(-2)  # (..., 1, m + 1)
        transition = transition * (scale.unsqueeze(-1) / scale.unsqueeze(-2))
        return transition, noise * scale.unsqueeze(-1) * scale.unsqueeze(-2) * variance[..., None, None, None]

    def stationary(self, like: Tensor | None = None) -> Tensor:
        """Covariance of z at any one time, P∞ = lim Q(dt): it solves F P + P Fᵀ + L q Lᵀ = 0.

        Parameters
        ----------
        like : Tensor, optional
            Gives dtype and device. Default: those of the parameters, float64 if they are numbers.

        Returns
        -------
        Tensor, shape (..., m + 1, m + 1)
            P∞.
        """
        if like is None:
            given = [v for v in (self.lengthscale, self.variance) if isinstance(v, Tensor)]
            like = given[0] if given else torch.zeros((), dtype=torch.float64)
        rate, variance = self._parameters(like)
        p = self.order
        table = [[_overlap_limit(_impulse(p, i), _impulse(p, j)) for j in range(p)] for i in range(p)]
        limit = torch.as_tensor(table, dtype=like.dtype, device=like.device) / table[0][0]
        scale = self._scale(rate)
        return limit * scale.unsqueeze(-1) * scale.unsqueeze(-2) * variance[..., None, None]

    def _parameters(self, like: Tensor) -> tuple[Tensor, Tensor]:
        length = torch.as_tensor(self.lengthscale, dtype=like.dtype, device=like.device)
        variance = torch.as_tensor(self.variance, dtype=like.dtype, device=like.device)
        return torch.broadcast_tensors(math.sqrt(2 * self.nu) / length, variance)

    def _scale(self, rate: Tensor) -> Tensor:
        # the i-th derivative is measured in λⁱ
        return rate.unsqueeze(-1) ** torch.arange(self.order, dtype=rate.dtype, device=rate.device)


def _nilpotent(p: int) -> list[list[float]]:
    # F + I of the companion matrix of (x + 1)^p
    rows = [[float(i == j) + float(j == i + 1) for j in range(p)] for i in range(p)]
    rows[-1] = [float(j == p - 1) - math.comb(p, j) for j in range(p)]
    return rows


def _impulse(p: int, derivative: int) -> list[float]:
    # coefficients a_n of the derivative of h(s) = s^(p-1)/(p-1)! e^(-s), as Σ a_n sⁿ e^(-s)
    found = [0.0] * (p - 1) + [1 / math.factorial(p - 1)]
    for _ in range(derivative):
        found = [(n + 1) * (found[n + 1] if n + 1 < p else 0.0) - found[n] for n in range(p)]
    return found


def _products(left: list[float], right: list[float]) -> list[tuple[int, float]]:
    out = [0.0] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            out[i + j] += a * b
    return [(n, c * math.factorial(n) / 2 ** (n + 1)) for n, c in enumerate(out) if c != 0.0]


def _overlap(left: list[float], right: list[float], x: Tensor) -> Tensor:
    # ∫_0^x of the product of two impulse responses; ∫ sⁿ e^(-2s) is n!/2^(n+1) times an incomplete gamma function
    return torch.stack(
        [c * torch.special.gammainc(torch.full_like(x, n + 1.0), 2 * x) for n, c in _products(left, right)]
    ).sum(0)


def _overlap_limit(left: list[float], right: list[float]) -> float:
    return sum(c for _, c in _products(left, right))
