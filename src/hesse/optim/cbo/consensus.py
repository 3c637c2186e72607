"""Where a cloud of particles meets: the mean that weights each by exp(-α E), and the α at which enough of them count.

Shapes: N particles, d coordinates, Q points that ask, leading axes free.
"""

import math

import torch
from torch import Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError

__all__ = ["consensus_point", "ess_alpha", "polarized_consensus"]

_BISECTIONS = 60  # of log2 α over 120 octaves: to 1e-16 of a factor
_OCTAVES = 60.0


def consensus_point(x: Tensor, energy: Tensor, alpha: float | Tensor) -> Tensor:
    """Mean of the particles under Gibbs weights: x_α = Σ w_i x_i / Σ w_i,  w_i = exp(-α (E_i - min E)).

    As α grows it tends to the particle of least energy (Laplace's principle); α = 0 is the plain mean. The shift by the
    least energy cancels, and keeps the largest weight at one whatever the energies and α are.

    Parameters
    ----------
    x : Tensor, shape (..., N, d)
        Particles, in float32 or float64. In half precision the sum of weights loses digits beyond a thousand particles.
    energy : Tensor, shape (..., N)
        E_i. +inf has no weight, and NaN counts as +inf.
    alpha : float or Tensor that broadcasts to (...)
        α >= 0, in the inverse unit of E. inf is allowed: the mean of those whose energy is least.

    Returns
    -------
    Tensor, shape (..., d)
        Differentiable in ``x`` and, for finite α, in ``energy``. O(N d).

    Raises
    ------
    ArgumentError
        If α is negative or NaN.
    ShapeError
        If the shapes do not fit.
    NumericalError
        If all energies of a cloud are +inf or NaN.

    References
    ----------
    R. Pinnau, C. Totzeck, O. Tse, S. Martin (2017), Math. Models Methods Appl. Sci. 27(1), arXiv 1604.05648.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [4.0]])
    >>> consensus_point(x, torch.tensor([5.0, 5.0, 9.0]), float("inf"))
    tensor([0.5000])
    """
    exponent = _exponents("consensus_point", x, energy, alpha)
    weights = torch.exp(exponent)
    total = weights.sum(-1, keepdim=True)
    return (weights.unsqueeze(-2) @ x).squeeze(-2) / total


def polarized_consensus(at: Tensor, x: Tensor, energy: Tensor, alpha: float | Tensor, *, bandwidth: float) -> Tensor:
    """One consensus for every point that asks, among its neighbours: the weights carry exp(-‖y - x_i‖² / (2κ²)) too.

    Particles then gather in several minima instead of in one.

    Parameters
    ----------
    at : Tensor, shape (..., Q, d)
        The points y.
    x : Tensor, shape (..., N, d)
        Particles.
    energy : Tensor, shape (..., N)
        As in `consensus_point`.
    alpha : float or Tensor that broadcasts to (...)
        α >= 0, finite.
    bandwidth : float
        κ > 0, in the unit of x: how far a particle is heard.

    Returns
    -------
    Tensor, shape (..., Q, d)
        O(Q N d) time and O(Q N) memory.

    Raises
    ------
    ArgumentError
        If α is negative or infinite, or κ is not positive.
    ShapeError
        If the shapes do not fit.

    References
    ----------
    L. Bungert, T. Roith, P. Wacker (2024), Math. Program., arXiv 2211.05238.
    """
    if not (bandwidth > 0 and math.isfinite(bandwidth)):
        raise ArgumentError(f"polarized_consensus: expected a bandwidth > 0, got {bandwidth}")
    if at.shape[:-2] != x.shape[:-2] or at.shape[-1] != x.shape[-1]:
        raise ShapeError(f"polarized_consensus: points {tuple(at.shape)} do not fit particles {tuple(x.shape)}")
    if bool(torch.isinf(torch.as_tensor(alpha)).any()):
        raise ArgumentError("polarized_consensus: expected a finite alpha; all points would meet in one particle")
    squared = torch.cdist(at, x).square()
    exponent = _exponents("polarized_consensus", x, energy, alpha).unsqueeze(-2) - squared / (2 * bandwidth**2)
    return torch.softmax(exponent, dim=-1) @ x


def ess_alpha(energy: Tensor, fraction: float = 0.5) -> Tensor:
    """Find α at which a given part of the particles counts: (Σ w)² / Σ w² = fraction · N, by bisection.

    Parameters
    ----------
    energy : Tensor, shape (..., N)
        Energies; N counts the finite ones.
    fraction : float, default 0.5
        In (0, 1). One half is the customary choice: weights differ, and no few particles decide.

    Returns
    -------
    Tensor, shape (...)
        α > 0, without gradient. Where the solution does not exist, as when more than that part share the least energy,
        it is the end of the range searched: 2^±60 over the mean gap to the least energy. 60 passes over the energies.

    Raises
    ------
    ArgumentError
        If the fraction is out of range.

    References
    ----------
    J. A. Carrillo, F. Hoffmann, A. M. Stuart, U. Vaes (2022), Stud. Appl. Math. 148(3), arXiv 2106.02519.
    """
    if not 0 < fraction < 1:
        raise ArgumentError(f"ess_alpha: expected 0 < fraction < 1, got {fraction}")
    values = energy.detach()
    finite = torch.isfinite(values)
    count = finite.sum(-1)
    gap = torch.where(finite, values - _least(values).unsqueeze(-1), torch.zeros_like(values))
    mean = gap.sum(-1) / count.clamp(min=1)
    scaled = torch.where(finite, gap / torch.where(mean > 0, mean, torch.ones_like(mean)).unsqueeze(-1), math.inf)
    low = torch.full_like(mean, -_OCTAVES)
    high = torch.full_like(mean, _OCTAVES)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        weights = torch.exp(-torch.exp2(middle).unsqueeze(-1) * scaled)
        size = weights.sum(-1).square() / weights.square().sum(-1)
        more = size > fraction * count
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return torch.exp2((low + high) / 2) / torch.where(mean > 0, mean, torch.ones_like(mean))


def _least(energy: Tensor) -> Tensor:
    # NaN would win a minimum
    return torch.where(torch.isnan(energy), math.inf, energy).amin(-1)


def _exponents(call: str, x: Tensor, energy: Tensor, alpha: float | Tensor) -> Tensor:
    # -α (E - min E), (..., N): 0 for the best particle, -inf for one that has no weight
    if x.ndim < 2 or energy.shape != x.shape[:-1]:
        raise ShapeError(
            f"{call}: expected one energy a particle, shape {tuple(x.shape[:-1])} for x {tuple(x.shape)}; "
            f"got {tuple(energy.shape)}"
        )
    strength = torch.as_tensor(alpha, dtype=energy.dtype, device=energy.device).unsqueeze(-1)
    if not bool((strength >= 0).all()):
        raise ArgumentError(f"{call}: expected alpha >= 0, got {alpha}")
    least = _least(energy.detach()).unsqueeze(-1)
    if bool((least == math.inf).any()):
        raise NumericalError(f"{call}: all energies of a cloud are +inf or NaN; start where the objective is finite")
    dead = torch.isnan(energy) | (energy == math.inf)
    gap = torch.where(dead | (energy == -math.inf), 0.0, energy) - torch.where(least == -math.inf, 0.0, least)
    gap = torch.where((least == -math.inf) & (energy != -math.inf), math.inf, gap)
    sharp = torch.isinf(strength)
    exponent = -torch.where(sharp, 0.0, strength) * gap
    exponent = torch.where(sharp & (gap > 0), -math.inf, exponent)
    return torch.where(dead | (gap == math.inf), -math.inf, exponent)
