"""Consensus-based optimisation: particles drift to their consensus and explore by as much as they are away from it.

X_i ← X_i - λ dt D_i + σ √dt N(D_i, z_i),   D_i = X_i - x_α.   Shapes: M runs, N particles, n in a batch, d coordinates.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from hesse._values import check_count, check_present
from hesse.errors import ArgumentError, ShapeError
from hesse.optim.cbo.consensus import polarized_consensus
from hesse.optim.cbo.contraction import cloud_contraction
from hesse.optim.cbo.objective import MapFunction
from hesse.optim.cbo.schedules import Schedule
from hesse.optim.cbo.swarm import DEFAULT_PARTICLES, Alpha, Bounds, OptimResult, Swarm, dimension

__all__ = ["CBO", "Noise", "minimize_cbo"]

Noise = Literal["anisotropic", "isotropic"] | Callable[[Tensor, Tensor], Tensor]
"""A name, or ``(deviations, z)`` ↦ displacements; all (M, N, d), z standard normal."""


class CBO(Swarm):
    """Minimise what can only be evaluated, by N particles that meet where the objective is low. No gradient is needed.

    Every step: x_α = Σ exp(-α E_i) X_i / Σ exp(-α E_i), then for all particles at once, with D_i = X_i - x_α,
    X_i ← X_i - λ dt D_i + σ √dt (D_i * z_i) with anisotropic noise, or σ √dt ‖D_i‖ z_i with isotropic.

    Parameters
    ----------
    f : callable
        The objective E. Particles (N, d) to energies (N,); with ``num_runs`` (M, N, d) to (M, N). NaN counts as +inf.
    x0 : Tensor, shape (d,), (N, d) or (M, N, d), optional
        A point about which particles are drawn, or the particles themselves. Default: drawn about the origin, or
        evenly over ``bounds``.
    num_particles : int, optional
        N >= 2. Default: as many as in ``x0``, else 100.
    dim : int, optional
        d, where neither ``x0`` nor ``bounds`` tells it.
    dt : float, default 0.1
        Step > 0 of the discretisation.
    drift : float, default 1.0
        λ > 0. λ dt > 1 overshoots the consensus; a warning says so.
    sigma : float, default 1.0
        σ >= 0. The variance contracts while (1 - λ dt)² + m σ² dt < 1, with m = 1 for anisotropic and m = d for
        isotropic noise; beyond that a warning says whether paths contract all the same (see `cloud_contraction`).
    alpha : float or "ess", default 1e5
        α >= 0, inf allowed. Large values let the best particle decide. "ess" finds α anew at every step so that half
        of the particles count, whatever the scale of E.
    noise : {"anisotropic", "isotropic"} or callable, default "anisotropic"
        Anisotropic noise contracts independently of d. A callable maps deviations and standard normal z, both
        (M, N, d), to displacements that are multiplied by σ √dt.
    num_runs : int, optional
        M independent runs at once; the shapes of everything then begin with M. Default: one run, without that axis.
    spread : float, default 1.0
        Standard deviation of the particles about a point ``x0`` or the origin, in the unit of x.
    batch_size : int, optional
        n <= N: a step visits the particles in random batches, each with the consensus of the batch. Default: all.
    moves : {"partial", "full"}, default "partial"
        Whether the consensus of a batch moves that batch, or all particles (N / n times a step).
    kick_below : float, optional
        Where no coordinate of the consensus moved by as much, all particles get noise σ √dt z of their own. 1e-5 is
        customary when training networks. Default: never.
    gradient_drift : float, default 0.0
        γ >= 0 of a further term -γ dt ∇E(X_i), by autograd, which the objective must then allow.
    memory_drift, memory_sigma : float, default 0.0
        λ₂ and σ₂ >= 0 of a drift to, and noise about, every particle's own best point; with either the consensus is
        that of the best points.
    bandwidth : float, optional
        κ > 0: polarised dynamics, in which particles meet with those within about κ, and gather in several minima.
        O(N²) a step. The consensus reported is still that of all.
    bounds : tuple (low, high), optional
        Finite numbers or tensors (d,) between which all particles stay.
    at_bounds : {"reflect", "clip"}, default "reflect"
        What becomes of those that would leave.
    projection : callable, optional
        What f sees of a point, (..., d) to (..., d): rounding for integer coordinates, the remainder for circular ones.
        Particles move on unprojected, lest steps shorter than the grid be lost; points reported are projected.
    schedule : callable, optional
        ``(num_steps, alpha, sigma)`` to the next α and σ, such as `CoolingSchedule` or `GeometricSchedule`.
    vectorize : bool, default False
        Whether f takes one point (d,) and is to be mapped by `torch.vmap`.
    map_fn : callable, optional
        Such as an executor's ``map``: called with f and the points, it gives the energies in their order, while f
        takes one point (d,) and runs wherever it likes.
    generator : torch.Generator, optional
        Source of all randomness; one on the CPU gives the same numbers on every device. Default: a new one, seeded
        from torch's global generator.
    dtype : torch.dtype, optional
        float32 or float64. Default: that of ``x0``, else float64.

    Raises
    ------
    ArgumentError
        If a number is out of range, an option is unknown, or two options contradict each other.
    ArgumentTypeError
        If the dtype is not float32 or float64, x0 not a tensor, or a count not an integer.
    NumericalError
        If x0 has NaN or Inf.
    ShapeError
        If x0, dim, bounds and num_particles do not fit.

    Notes
    -----
    N evaluations and O(N d) time and memory a step. Exact but for the discretisation; convergence to the global minimum
    is proved for the mean-field limit of infinitely many particles and large α only. Identical particles never part:
    ``collapsed`` in the result says so.

    References
    ----------
    R. Pinnau, C. Totzeck, O. Tse, S. Martin (2017), Math. Models Methods Appl. Sci. 27(1), arXiv 1604.05648.
    K. Riedl, T. Klock, C. Geldhauser, M. Fornasier (2023), arXiv 2306.09778. M. Fornasier, T. Klock, K. Riedl (2021),
    arXiv 2103.15130. K. Riedl (2022), arXiv 2211.12184, for memory and gradients.

    Examples
    --------
    >>> cbo = CBO(lambda x: (x - 1).square().sum(-1), torch.zeros(3), generator=torch.Generator().manual_seed(0))
    >>> result = cbo.run(200)
    >>> bool(result.converged), bool((result.x - 1).abs().max() < 0.05)
    (True, True)
    """

    _state_tensors = (*Swarm._state_tensors, "own_x", "own_energy")

    def __init__(
        self,
        f: Callable[[Tensor], Any],
        x0: Tensor | None = None,
        *,
        num_particles: int | None = None,
        dim: int | None = None,
        dt: float = 0.1,
        drift: float = 1.0,
        sigma: float = 1.0,
        alpha: Alpha = 1e5,
        noise: Noise = "anisotropic",
        num_runs: int | None = None,
        spread: float = 1.0,
        batch_size: int | None = None,
        moves: Literal["partial", "full"] = "partial",
        kick_below: float | None = None,
        gradient_drift: float = 0.0,
        memory_drift: float = 0.0,
        memory_sigma: float = 0.0,
        bandwidth: float | None = None,
        bounds: Bounds | None = None,
        at_bounds: Literal["reflect", "clip"] = "reflect",
        projection: Callable[[Tensor], Tensor] | None = None,
        schedule: Schedule | None = None,
        vectorize: bool = False,
        map_fn: MapFunction | None = None,
        generator: Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if x0 is not None:
            check_present("CBO", "x0", x0)
        cloud = x0 if x0 is not None and x0.ndim > 1 else None
        count = _count(cloud, num_particles)
        super().__init__(
            "CBO",
            f,
            like=x0,
            dim=dimension("CBO", x0, dim, bounds),
            num_particles=count,
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
        if not (dt > 0 and math.isfinite(dt) and drift > 0 and math.isfinite(drift)):
            raise ArgumentError(f"CBO: expected dt > 0 and drift > 0, got {dt} and {drift}")
        if not (gradient_drift >= 0 and memory_drift >= 0 and memory_sigma >= 0 and spread >= 0):
            raise ArgumentError(
                "CBO: expected gradient_drift, memory_drift, memory_sigma and spread >= 0; got "
                f"{gradient_drift}, {memory_drift}, {memory_sigma}, {spread}"
            )
        if not callable(noise) and noise not in ("anisotropic", "isotropic"):
            raise ArgumentError(f'CBO: noise must be "anisotropic", "isotropic" or a callable, got {noise!r}')
        if moves not in ("partial", "full"):
            raise ArgumentError(f'CBO: moves must be "partial" or "full", got {moves!r}')
        if batch_size is not None:
            check_count("CBO", "batch_size", batch_size)
        if batch_size is not None and batch_size > count:
            raise ArgumentError(f"CBO: expected batch_size <= {count} particles, got {batch_size}")
        if kick_below is not None and not kick_below > 0:
            raise ArgumentError(f"CBO: expected kick_below > 0, got {kick_below}")
        if bandwidth is not None and not bandwidth > 0:
            raise ArgumentError(f"CBO: expected bandwidth > 0, got {bandwidth}")
        self._batch_size = None if batch_size == count else batch_size
        self._full = moves == "full" and self._batch_size is not None
        if self._full and (gradient_drift or memory_drift or memory_sigma):
            raise ArgumentError(
                'CBO: moves="full" moves particles that were not evaluated, whose gradients and best points are not '
                "known; use partial moves with gradient_drift, memory_drift and memory_sigma"
            )
        self._dt, self._drift, self._noise = dt, drift, noise
        self._kick, self._bandwidth = kick_below, bandwidth
        self._gradient, self._own = gradient_drift, (memory_drift, memory_sigma)
        self._remembers = memory_drift > 0 or memory_sigma > 0
        self._warn()
        self.x = self._within(self._start(x0, cloud, spread))
        self.own_x = self.x.clone() if self._remembers else self.x.new_empty(0)
        self.own_energy = torch.full_like(self.x[..., 0], math.inf) if self._remembers else self.x.new_empty(0)

    def keep(self, count: int) -> None:
        """Go on with fewer particles, a random subset in each run.

        Parameters
        ----------
        count : int
            Between 2 and N; `reduced_count` says how many.

        Raises
        ------
        ArgumentError
            If it is out of range.
        """
        if not 2 <= count <= self.num_particles:
            raise ArgumentError(f"CBO.keep: expected 2 <= count <= {self.num_particles}, got {count}")
        if count == self.num_particles:
            return
        index = self._shuffled()[:, :count]
        self.x = _rows(self.x, index)
        if self._remembers:
            self.own_x, self.own_energy = _rows(self.own_x, index), self.own_energy.gather(1, index)
        self.num_particles = count

    def _start(self, x0: Tensor | None, cloud: Tensor | None, spread: float) -> Tensor:
        shape = tuple(self.x.shape)
        if cloud is not None:
            given = tuple(cloud.shape)
            if given != shape and (len(given) != 2 or given != shape[1:]):
                raise ShapeError(f"CBO: expected x0 (N, d) or (M, N, d) = {shape}, got {given}")
            return cloud.detach().to(self.x).expand(shape).clone()
        if x0 is None and self._boundary is not None:
            return self._scattered(*shape)
        start = spread * self._normal(*shape)
        return start if x0 is None else x0.detach().to(self.x) + start

    def _warn(self) -> None:
        if self._drift * self._dt > 1:
            warnings.warn(
                f"CBO: drift * dt = {self._drift * self._dt:.3g} > 1 carries particles beyond the consensus; lower dt",
                UserWarning,
                stacklevel=3,
            )
        if callable(self._noise):
            return
        isotropic = self._noise == "isotropic"
        rates = cloud_contraction(dt=self._dt, drift=self._drift, sigma=self.sigma, dim=self.dim, isotropic=isotropic)
        if rates.mean_square > 1:
            largest = math.sqrt(max(0.0, 2 * self._drift - self._drift**2 * self._dt) / (self.dim if isotropic else 1))
            fate = (
                "paths contract nonetheless, which explores widely"
                if rates.log_rate < 0
                else "and paths do not contract either"
            )
            warnings.warn(
                f"CBO: with sigma = {self.sigma:.3g} one step multiplies the variance of the cloud by "
                f"{rates.mean_square:.3g}; {fate}. Below sigma = {largest:.3g} it decays",
                UserWarning,
                stacklevel=3,
            )

    def _residual(self) -> Tensor:
        # as a norm: torch's own variance takes eight times as long along this axis
        away = torch.linalg.vector_norm(self.x - self.x.mean(1, keepdim=True), dim=1)
        return away.amax(-1).square() / self.num_particles

    def _shuffled(self) -> Tensor:
        return self._uniform(self.x.shape[0], self.num_particles).argsort(1)

    def _advance(self) -> None:
        if self._batch_size is None:
            self._visit(None)
            return
        for index in self._shuffled().split(self._batch_size, dim=1):
            self._visit(index)

    def _visit(self, index: Tensor | None) -> None:
        # index (M, n): the particles that are evaluated; None for all
        evaluated = self.x if index is None else _rows(self.x, index)
        gradient = None
        if self._gradient:
            energy, gradient = self.objective.with_gradient(evaluated)
        else:
            energy = self.objective(evaluated)
        self._observe(evaluated, energy)
        if self._remembers:
            points, values = self._remember(evaluated, energy, index)
        else:
            points, values = evaluated, energy
        before = self.consensus
        consensus = self._meet(points, values)
        moving = self.x if self._full else evaluated
        if self._bandwidth is None:
            centre = consensus.unsqueeze(1)
        else:
            centre = polarized_consensus(moving, points, values, self.alpha, bandwidth=self._bandwidth)
        moved = self._diffused(moving, moving - centre, self._drift, self.sigma)
        if self._remembers:
            moved = moved + self._diffused(0.0, moving - points, *self._own)
        if gradient is not None:
            moved = moved - self._gradient * self._dt * gradient
        if index is None or self._full:
            self.x = self._within(moved)
        else:
            self.x = self.x.scatter(1, _wide(index, self.dim), self._within(moved))
        if self._kick is not None:
            still = (consensus - before).abs().amax(-1) < self._kick  # NaN before the first consensus: not still
            if bool(still.any()):
                width = self.sigma * math.sqrt(self._dt) * still[:, None, None]
                self.x = self._within(self.x + width * self._normal(*self.x.shape))

    def _diffused(self, x: Tensor | float, deviation: Tensor, drift: float, sigma: float) -> Tensor:
        # x - λ dt D + σ √dt N(D, z), in the memory of z
        z = self._normal(*deviation.shape)
        width = sigma * math.sqrt(self._dt)
        if self._noise == "anisotropic":
            return z.mul_(width).sub_(drift * self._dt).mul_(deviation).add_(x)
        if callable(self._noise):
            displaced = width * self._noise(deviation, z)
            if displaced.shape != deviation.shape:
                raise ShapeError(
                    f"CBO: noise must return displacements {tuple(deviation.shape)}, got {tuple(displaced.shape)}"
                )
        else:
            displaced = z.mul_(width * torch.linalg.vector_norm(deviation, dim=-1, keepdim=True))
        return displaced.sub_(deviation, alpha=drift * self._dt).add_(x)

    def _remember(self, x: Tensor, energy: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        # every particle's own best point, brought up to date
        known_x = self.own_x if index is None else _rows(self.own_x, index)
        known = self.own_energy if index is None else self.own_energy.gather(1, index)
        better = energy < known
        points, values = torch.where(better.unsqueeze(-1), x, known_x), torch.where(better, energy, known)
        if index is None:
            self.own_x, self.own_energy = points, values
        else:
            self.own_x = self.own_x.scatter(1, _wide(index, self.dim), points)
            self.own_energy = self.own_energy.scatter(1, index, values)
        return points, values


def minimize_cbo(
    f: Callable[[Tensor], Any], x0: Tensor | None = None, *, max_steps: int = 1000, tol: float = 1e-12, **options: Any
) -> OptimResult:
    """Minimise f by consensus-based optimisation: `CBO` made and run.

    Parameters
    ----------
    f : callable
        Particles (N, d) to energies (N,); see `CBO`.
    x0 : Tensor, optional
        A point about which particles are drawn, or the particles.
    max_steps : int, default 1000
        >= 1.
    tol : float, default 1e-12
        Stop once no coordinate varies more over the particles: a variance, in the square of the unit of x.
    **options
        As of `CBO`.

    Returns
    -------
    OptimResult
        ``x`` is the consensus, ``best_x`` the best point seen. N evaluations a step.

    Examples
    --------
    >>> def rastrigin(x):
    ...     return (x.square() + 2.5 * (1 - torch.cos(2 * torch.pi * x))).sum(-1)
    >>> result = minimize_cbo(rastrigin, bounds=(-3.0, 3.0), dim=2, generator=torch.Generator().manual_seed(0))
    >>> bool(result.best_fun < 1e-3)
    True
    """
    return CBO(f, x0, **options).run(max_steps, tol)


def _count(cloud: Tensor | None, num_particles: int | None) -> int:
    if cloud is None:
        return DEFAULT_PARTICLES if num_particles is None else num_particles
    if num_particles not in (None, cloud.shape[-2]):
        raise ShapeError(f"CBO: x0 holds {cloud.shape[-2]} particles, but num_particles is {num_particles}")
    return cloud.shape[-2]


def _wide(index: Tensor, dim: int) -> Tensor:
    return index.unsqueeze(-1).expand(*index.shape, dim)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, _wide(index, x.shape[-1]))
