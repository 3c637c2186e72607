"""What all samplers of a posterior share: the data as columns, the grid of times, the loop, and noise put back.

Shapes: R rows are systems times samples; x_t is (R, *picture), data (m, R), pictures as columns (n, R).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from hesse._progress import progress
from hesse._values import check_present
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.generative.diffusion import DiffusionPrior
from hesse.generative.physics.adapters import RealView, normal_operator, require_adjoint
from hesse.linalg import LinearOperator

__all__ = ["DiffusionSampler", "InverseProblem", "Moment", "SamplerState", "add_noise"]


@dataclass(frozen=True, slots=True)
class InverseProblem:
    """Data y = A x + n, one column a row of the sampler."""

    physics: LinearOperator  # A, real, (m, n)
    gram: LinearOperator  # A^T A
    y: Tensor  # (m, R)
    back: Tensor  # A^T y, (n, R)
    sigma_y: float  # standard deviation of n, of the real and of the imaginary part each
    batch: tuple[int, ...]  # (B, num_samples), or (num_samples,) for a single y


@dataclass(frozen=True, slots=True)
class SamplerState:
    """Where a run stands; the next step takes it from here."""

    x: Tensor  # x_t, (R, *picture)
    index: int  # of the next step
    denoised: Tensor | None = None  # the latest estimate of x_0, with the data in it, (R, *picture)
    splitting: tuple[Tensor, Tensor] | None = None  # of total variation: d and w, (n, R)


@dataclass(frozen=True, slots=True)
class Moment:
    """A time of the grid: x_t = a x_0 + s ε."""

    t: float
    a: float
    s: float


@dataclass(frozen=True, eq=False)
class DiffusionSampler(ABC):
    """Base of the samplers: it runs ``step`` over the grid of times.

    Parameters
    ----------
    prior : DiffusionPrior
        The noise predictor with its schedule, VP or VE.
    physics : LinearOperator, shape (m, n)
        A, with its exact adjoint. n is the number of values in one sample of the prior, or S times as many: a volume of
        S slices, to which the prior is applied slice by slice. A complex A sees two channels [Re x; Im x] where the
        prior has 2 n values, else a real picture; see `RealView`.
    num_steps : int
        Network calls.
    times : Tensor, optional
        Another grid, falling, of ``num_steps`` times. Default: ``prior.schedule.times(num_steps)``.
    chunk_size : int, optional
        Pictures or slices to a network call, to bound memory. Default: all at once.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or the adjoint is not one.
    ShapeError
        If A and the prior do not fit.
    """

    prior: DiffusionPrior
    physics: LinearOperator
    num_steps: int = 50
    times: Tensor | None = field(default=None, kw_only=True)
    chunk_size: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.num_steps < 1 or (self.chunk_size is not None and self.chunk_size < 1):
            raise ArgumentError(f"{name}: expected num_steps, chunk_size >= 1, got {self.num_steps}, {self.chunk_size}")
        if self.times is not None and (len(self.times) != self.num_steps or bool((self.times.diff() >= 0).any())):
            raise ArgumentError(f"{name}: expected {self.num_steps} falling times, got {self.times}")
        if self.physics.batch_shape:
            raise ShapeError(f"{name}: expected one operator, got a stack of shape {self.physics.batch_shape}")
        if not self._num_unknowns or self._num_unknowns % math.prod(self.prior.shape):
            raise ShapeError(
                f"{name}: A has {self.physics.shape[1]} columns, a sample of the prior {tuple(self.prior.shape)}"
            )
        require_adjoint(self.physics)

    @property
    def _has_complex_picture(self) -> bool:
        return self.physics.dtype.is_complex and 2 * self.physics.shape[1] == math.prod(self.prior.shape)

    @property
    def _num_unknowns(self) -> int:
        return self.physics.shape[1] * (2 if self._has_complex_picture else 1)

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Of what comes out: the prior's shape, with the slices of a volume before it."""
        slices = self._num_unknowns // math.prod(self.prior.shape)
        return tuple(self.prior.shape) if slices == 1 else (slices, *self.prior.shape)

    @property
    def _grid(self) -> Tensor:
        return self.prior.schedule.times(self.num_steps) if self.times is None else self.times

    def moment(self, index: int) -> Moment:
        """Read a time of the grid.

        Parameters
        ----------
        index : int
            0 to ``num_steps``; the last is the clean end a = 1, s = 0.

        Returns
        -------
        Moment
            t, a and s.
        """
        if index >= self.num_steps:
            return Moment(0.0, 1.0, 0.0)
        t, schedule = float(self._grid[index]), self.prior.schedule
        return Moment(t, float(schedule.signal(t)), float(schedule.noise_sd(t)))

    def prepare(self, y: Tensor, num_samples: int = 1, sigma_y: float = 0.0) -> InverseProblem:
        """Bring the data into the form that ``start`` and ``step`` take.

        Parameters
        ----------
        y : Tensor, shape (m,) or (B, m)
            Data of one system, or of B independent ones under the same A; in the dtype of A, real or complex.
        num_samples : int, default 1
            Samples of each.
        sigma_y : float, default 0.0
            Noise, in units of y; of complex data that of the real and of the imaginary part each.

        Returns
        -------
        InverseProblem
            With B · num_samples columns.

        Raises
        ------
        ArgumentError
            If ``num_samples < 1``, ``sigma_y < 0`` or y is not finite.
        ShapeError
            If y does not fit A.
        """
        name = type(self).__name__
        if num_samples < 1 or not 0 <= sigma_y < math.inf:
            raise ArgumentError(
                f"{name}: expected num_samples >= 1 and sigma_y >= 0, got num_samples={num_samples}, sigma_y={sigma_y}"
            )
        if y.ndim not in (1, 2) or y.shape[-1] != self.physics.shape[0] or y.dtype != self.physics.dtype:
            raise ShapeError(
                f"{name}: expected y of shape ({self.physics.shape[0]},) or (B, {self.physics.shape[0]}) in "
                f"{self.physics.dtype}, got {tuple(y.shape)} in {y.dtype}"
            )
        check_present(name, "y", y)
        if not bool(y.isfinite().all()):
            raise ArgumentError(f"{name}: y has NaN or Inf")
        physics, data = self.physics, y
        if physics.dtype.is_complex:
            physics = RealView(physics, real_picture=not self._has_complex_picture)
            data = torch.view_as_real(y.resolve_conj()).flatten(-2)
        columns = data.reshape(-1, data.shape[-1]).repeat_interleave(num_samples, 0).mT.contiguous()
        batch = (num_samples,) if y.ndim == 1 else (len(y), num_samples)
        return InverseProblem(physics, normal_operator(physics), columns, physics.rmatmat(columns), sigma_y, batch)

    def start(
        self,
        problem: InverseProblem,
        *,
        picture: Tensor | None = None,
        first_step: int = 0,
        generator: Generator | None = None,
    ) -> SamplerState:
        """Draw x_t of the first step.

        Parameters
        ----------
        problem : InverseProblem
            From ``prepare``.
        picture : Tensor, broadcasts to (R, *picture_shape), optional
            A first guess of x_0, such as a filtered back-projection. Default: zero.
        first_step : int, default 0
            Index on the grid; steps before it are saved. With a good guess half the grid will do.
        generator : torch.Generator, optional
            Source of the noise. Default: torch's global generator.

        Returns
        -------
        SamplerState
            x_t = a picture + s z.

        Raises
        ------
        ArgumentError
            If ``first_step`` is not on the grid.
        """
        if not 0 <= first_step < self.num_steps:
            raise ArgumentError(f"{type(self).__name__}: expected 0 <= first_step < {self.num_steps}, got {first_step}")
        now = self.moment(first_step)
        x = now.s * torch.randn(
            (problem.y.shape[1], *self.picture_shape),
            dtype=problem.y.dtype,
            device=problem.y.device,
            generator=generator,
        )
        return SamplerState(x if picture is None else x + now.a * picture.to(x), first_step)

    @abstractmethod
    def step(self, state: SamplerState, problem: InverseProblem, generator: Generator | None = None) -> SamplerState:
        """Make the step ``state.index`` of the grid."""

    def sample(
        self,
        y: Tensor,
        num_samples: int = 1,
        sigma_y: float = 0.0,
        *,
        picture: Tensor | None = None,
        first_step: int = 0,
        generator: Generator | None = None,
        callback: Callable[[SamplerState], None] | None = None,
    ) -> Tensor:
        """Draw reconstructions.

        Parameters
        ----------
        y : Tensor, shape (m,) or (B, m)
            Data; see ``prepare``.
        num_samples : int, default 1
            Of each; their spread shows what the data leave open (and understates it where the sampler is
            under-dispersed).
        sigma_y : float, default 0.0
            Noise of the data, in their units.
        picture, first_step
            A warm start; see ``start``.
        generator : torch.Generator, optional
            Source of all noise. Default: torch's global generator.
        callback : callable, optional
            Given the state after every step; it may keep it, and ``step`` resumes from it.

        Returns
        -------
        Tensor, shape (num_samples, *picture_shape) or (B, num_samples, *picture_shape)
            In the real dtype of A and in the intensity scale of the prior.
        """
        problem = self.prepare(y, num_samples, sigma_y)
        state = self.start(problem, picture=picture, first_step=first_step, generator=generator)
        with progress("sampling", self.num_steps - first_step, unit="steps") as advance:
            while state.index < self.num_steps:
                state = self.step(state, problem, generator)
                if callback is not None:
                    callback(state)
                advance(1)
        return state.x.unflatten(0, problem.batch)

    def _noise(self, x: Tensor, now: Moment, index: int) -> Tensor:
        # ε of every picture or slice
        flat = x.reshape(-1, *self.prior.shape)
        parts = [flat] if self.chunk_size is None else flat.split(self.chunk_size)
        noise = torch.cat([self.prior.noise(part, now.t) for part in parts]).reshape(x.shape)
        if not bool(noise.detach().isfinite().all()):
            raise NumericalError(f"{type(self).__name__}: the prior returned NaN or Inf at step {index}, t = {now.t:g}")
        return noise


def add_noise(
    denoised: Tensor,
    noise: Tensor,
    now: Moment,
    then: Moment,
    eta: float,
    generator: Generator | None,
) -> Tensor:
    """Go to the next time as DDIM does: a' x̂_0 + sqrt(s'² - σ²) ε + σ z, σ = η s'/s sqrt(s² - (a/a')² s'²).

    Parameters
    ----------
    denoised, noise : Tensor
        x̂_0 and ε.
    now, then : Moment
        a, s and a', s'.
    eta : float
        0 is deterministic, 1 the ancestral step of DDPM.
    generator : torch.Generator or None
        Source of z.

    Returns
    -------
    Tensor
        x at the next time.
    """
    left = max(0.0, now.s**2 - (now.a / then.a * then.s) ** 2)
    fresh = eta * then.s / now.s * left**0.5
    x = then.a * denoised + (then.s**2 - fresh**2) ** 0.5 * noise
    return x if fresh == 0 else x + fresh * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
