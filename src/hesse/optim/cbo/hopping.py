"""Consensus hopping: a cloud drawn anew about its last consensus, and how far that is a step of gradient descent.

X_i ~ N(x_{k-1}, σ² I),   x_k = Σ exp(-α E(X_i)) X_i / Σ exp(-α E(X_i)),   E[x_k] - x_{k-1} ≈ -α σ² ∇E(x_{k-1})
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.optim.cbo.objective import MapFunction
from hesse.optim.cbo.schedules import GeometricSchedule, Schedule
from hesse.optim.cbo.swarm import DEFAULT_PARTICLES, Alpha, Bounds, OptimResult, Swarm, dimension

__all__ = ["ConsensusHopping", "HopShift", "hop_shift", "minimize_consensus_hopping"]


class ConsensusHopping(Swarm):
    """Gradient descent without gradients: sample about a point, go to the samples' consensus, forget the samples.

    X_i ~ N(x_{k-1}, σ² I), x_k = Σ exp(-α E(X_i)) X_i / Σ exp(-α E(X_i)). To first order it is stochastic gradient
    descent with learning rate α σ²; large α σ and many particles step over walls narrower than σ.

    Parameters
    ----------
    f : callable
        The objective E. Particles (N, d) to energies (N,); with ``num_runs`` (M, N, d) to (M, N). NaN counts as +inf.
    x0 : Tensor, shape (d,) or (M, d), optional
        Where to start. Default: the origin, or a random point within ``bounds``.
    num_particles : int, default 100
        N >= 2 samples a step. The noise of a step has covariance σ² I / N.
    dim : int, optional
        d, where neither ``x0`` nor ``bounds`` tells it.
    sigma : float, default 0.7
        σ > 0, the reach of the samples in the unit of x.
    alpha : float or "ess", default 100.0
        α >= 0, or "ess": found at every step so that half of the samples count, whatever the scale of E.
    decay : (int, float) or None, default (100, 0.98)
        Every so many steps σ is multiplied by the factor, as the paper's scheduled variant does.
    num_runs, bounds, at_bounds, projection, schedule, vectorize, map_fn, generator, dtype
        As of `CBO`. A schedule replaces ``decay``.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    ArgumentTypeError
        If the dtype is not float32 or float64.
    ShapeError
        If x0, dim and bounds do not fit.

    Notes
    -----
    N evaluations and O(N d) a step. There is no spread to converge: ``tol`` is compared with the largest change of a
    coordinate of the consensus, which the sampling keeps at about σ / √N.

    References
    ----------
    K. Riedl, T. Klock, C. Geldhauser, M. Fornasier (2023), arXiv 2306.09778.
    """

    def __init__(
        self,
        f: Callable[[Tensor], Any],
        x0: Tensor | None = None,
        *,
        num_particles: int = DEFAULT_PARTICLES,
        dim: int | None = None,
        sigma: float = 0.7,
        alpha: Alpha = 100.0,
        decay: tuple[int, float] | None = (100, 0.98),
        num_runs: int | None = None,
        bounds: Bounds | None = None,
        at_bounds: Literal["reflect", "clip"] = "reflect",
        projection: Callable[[Tensor], Tensor] | None = None,
        schedule: Schedule | None = None,
        vectorize: bool = False,
        map_fn: MapFunction | None = None,
        generator: Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not sigma > 0:
            raise ArgumentError(f"ConsensusHopping: expected sigma > 0, got {sigma}")
        if schedule is None and decay is not None:
            schedule = GeometricSchedule(every=decay[0], sigma=decay[1])
        super().__init__(
            "ConsensusHopping",
            f,
            like=x0,
            dim=dimension("ConsensusHopping", x0, dim, bounds),
            num_particles=num_particles,
            num_runs=num_runs,
            sigma=sigma,
            alpha=alpha,
            bounds=bounds,
            at_bounds=at_bounds,
            projection=projection,
            schedule=schedule,
            vectorize=vectorize,
            map_fn=map_fn,
            generator=generator,
            dtype=dtype,
        )
        shape = tuple(self.consensus.shape)
        if x0 is None:
            start = self.consensus.new_zeros(shape) if self._boundary is None else self._scattered(*shape)
        elif tuple(x0.shape) in (shape, shape[1:]):
            start = x0.detach().to(self.consensus).expand(shape)
        else:
            raise ShapeError(f"ConsensusHopping: expected x0 (d,) or (M, d) = {shape}, got {tuple(x0.shape)}")
        self.consensus = self._within(start.clone())
        self.change = torch.full_like(self.best_fun, math.inf)  # of the consensus in the last step

    def _residual(self) -> Tensor:
        return self.change

    def _advance(self) -> None:
        before = self.consensus
        z = self._normal(*self.x.shape)
        self.x = self._within(z.mul_(self.sigma).add_(before.unsqueeze(1)))
        energy = self.objective(self.x)
        self._observe(self.x, energy)
        self.change = (self._meet(self.x, energy) - before).abs().amax(-1)


def minimize_consensus_hopping(
    f: Callable[[Tensor], Any], x0: Tensor | None = None, *, max_steps: int = 1000, tol: float = 0.0, **options: Any
) -> OptimResult:
    """Minimise f by consensus hopping: `ConsensusHopping` made and run.

    Parameters
    ----------
    f : callable
        Particles (N, d) to energies (N,); see `CBO`.
    x0 : Tensor, optional
        Where to start.
    max_steps : int, default 1000
        >= 1.
    tol : float, default 0.0
        Stop once no coordinate of the consensus changes by more. Default: never, for sampling noise stays.
    **options
        As of `ConsensusHopping`.

    Returns
    -------
    OptimResult
        ``x`` is the consensus, ``best_x`` the best point seen. N evaluations a step.

    Examples
    --------
    >>> bowl = lambda x: (x - 1).square().sum(-1)
    >>> source = torch.Generator().manual_seed(0)
    >>> result = minimize_consensus_hopping(bowl, torch.zeros(2), sigma=0.3, max_steps=100, generator=source)
    >>> bool((result.x - 1).abs().max() < 0.2)
    True
    """
    return ConsensusHopping(f, x0, **options).run(max_steps, tol)


@dataclass(frozen=True, slots=True)
class HopShift:
    """The mean of one hop, and how sure of it the samples are.

    Attributes
    ----------
    shift : Tensor, shape (d,)
        Estimate of E[x_k] - x_{k-1} for infinitely many particles.
    standard_error : Tensor, shape (d,)
        Of each coordinate, by linearising the ratio of sums.
    learning_rate : float
        α σ²: the gradient step that the hop is to first order is -learning_rate ∇E.
    effective_size : float
        (Σ w)² / Σ w², how many of the samples count.
    """

    shift: Tensor
    standard_error: Tensor
    learning_rate: float
    effective_size: float


def hop_shift(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    sigma: float,
    alpha: float,
    num_samples: int = 1_000_000,
    chunk_size: int = 1_000_000,
    generator: Generator | None = None,
) -> HopShift:
    """Measure the step of consensus hopping at a point: Σ w_i σ z_i / Σ w_i,  w_i = exp(-α E(x + σ z_i)).

    It is -α σ² ∇E(x) + O(α σ⁴), and for E = ½ xᵀHx + bᵀx exactly -α σ² (I + α σ² H)⁻¹ ∇E(x). Samples come in pairs
    ±z, whose plain mean is zero.

    Parameters
    ----------
    f : callable
        Points (N, d) to energies (N,).
    x : Tensor, shape (d,)
        x_{k-1}, in float32 or float64.
    sigma, alpha : float
        σ > 0 and α >= 0, finite.
    num_samples : int, default 1_000_000
        >= 4; rounded up to an even number. The error falls as σ / √(their effective number).
    chunk_size : int, default 1_000_000
        How many are held at once, >= 2: O(chunk_size d) memory.
    generator : torch.Generator, optional
        On the device of x. Default: torch's global one.

    Returns
    -------
    HopShift
        The ratio of two sums is biased by O(σ / effective_size), below its standard error. Where α σ ‖∇E(x)‖ exceeds
        about 2, rare samples far out decide, and the standard error is too small.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    ShapeError
        If ``x`` is not a vector or ``f`` does not return one number a point.
    NumericalError
        If an energy is NaN.

    References
    ----------
    K. Riedl, T. Klock, C. Geldhauser, M. Fornasier (2023), arXiv 2306.09778.
    """
    if not (sigma > 0 and alpha >= 0 and math.isfinite(alpha) and num_samples >= 4 and chunk_size >= 2):
        raise ArgumentError(
            "hop_shift: expected sigma > 0, finite alpha >= 0, num_samples >= 4 and chunk_size >= 2; got "
            f"{sigma}, {alpha}, {num_samples}, {chunk_size}"
        )
    if x.ndim != 1:
        raise ShapeError(f"hop_shift: expected x of shape (d,), got {tuple(x.shape)}")
    pairs, step = math.ceil(num_samples / 2), chunk_size // 2
    level = math.inf  # least energy so far, to which all weights refer
    total = total_squared = squares = x.new_zeros(())  # Σ b, Σ b², Σ w²; b = w₊ + w₋ of a pair
    moment, moment_squared, cross = x.new_zeros(x.shape), x.new_zeros(x.shape), x.new_zeros(x.shape)  # Σ a, Σ a², Σ ab
    for first in range(0, pairs, step):
        z = torch.randn(min(step, pairs - first), len(x), generator=generator, dtype=x.dtype, device=x.device)
        energy = torch.stack([f(x + sigma * z), f(x - sigma * z)])
        if tuple(energy.shape) != (2, len(z)):
            raise ShapeError(f"hop_shift: f must return ({len(z)},) for points {tuple(z.shape)}")
        if bool(torch.isnan(energy).any()):
            raise NumericalError("hop_shift: the objective is NaN at some samples")
        lowest = min(level, float(energy.min()))
        faded = math.exp(-alpha * (level - lowest)) if math.isfinite(level) else 0.0
        weights = torch.exp(-alpha * (energy - lowest))
        both, apart = weights.sum(0), (weights[0] - weights[1]).unsqueeze(-1) * z
        total = faded * total + both.sum()
        total_squared = faded**2 * total_squared + both.square().sum()
        squares = faded**2 * squares + weights.square().sum()
        moment = faded * moment + apart.sum(0)
        moment_squared = faded**2 * moment_squared + apart.square().sum(0)
        cross = faded**2 * cross + both @ apart
        level = lowest
    mean = moment / total
    variance = (moment_squared - 2 * mean * cross + mean.square() * total_squared).clamp(min=0) / total.square()
    return HopShift(
        shift=sigma * mean,
        standard_error=sigma * variance.sqrt(),
        learning_rate=alpha * sigma**2,
        effective_size=float(total.square() / squares),
    )
