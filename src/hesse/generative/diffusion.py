"""Noise schedules x_t = a_t x_0 + s_t ε and the four things a network may predict about ε.

Shapes: B pictures or vectors of any ``shape``; times are numbers or (B,), and what is read off them broadcasts over x.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError

__all__ = [
    "DiffusionPrior",
    "NoiseSchedule",
    "Prediction",
    "VarianceExploding",
    "VariancePreserving",
    "convert_prediction",
    "tweedie",
]

Prediction = Literal["noise", "score", "denoised", "velocity"]
"""ε; ∇ log p_t(x_t) = -ε/s; the mean of x_0 given x_t; or v = a ε - s x_0."""

Time = float | Tensor


class NoiseSchedule(ABC):
    """How much of the clean sample and how much noise there is at time t, and the SDE that does it.

    The forward SDE is dx = (drift_rate x) dt + sqrt(diffusion_squared) dW. A subclass gives log a, s and their slopes;
    all values come in float64.
    """

    @abstractmethod
    def _log_signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log a_t and its slope."""

    @abstractmethod
    def _noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """s_t and g_t²."""

    @abstractmethod
    def _grid(self, num_steps: int) -> Tensor:
        """Lay the grid of `times`."""

    @abstractmethod
    def time_at(self, level: float) -> float:
        """Find the time at which s_t / a_t is ``level``, or the end of the schedule nearest to it."""

    def signal(self, t: Time) -> Tensor:
        """Factor of x_0: a_t.

        Parameters
        ----------
        t : float or Tensor
            Time, in the schedule's units.

        Returns
        -------
        Tensor
            Of the shape of ``t``.
        """
        return self._log_signal(torch.as_tensor(t, dtype=torch.float64))[0].exp()

    def noise_sd(self, t: Time) -> Tensor:
        """Spread of the noise: s_t.

        Parameters
        ----------
        t : float or Tensor
            Time, in the schedule's units.

        Returns
        -------
        Tensor
            Of the shape of ``t``, in units of x.
        """
        return self._noise(torch.as_tensor(t, dtype=torch.float64))[0]

    def drift_rate(self, t: Time) -> Tensor:
        """Rate at which the signal grows: d log a_t / dt, zero or negative.

        Parameters
        ----------
        t : float or Tensor
            Time, in the schedule's units.

        Returns
        -------
        Tensor
            Of the shape of ``t``, per unit of time.
        """
        return self._log_signal(torch.as_tensor(t, dtype=torch.float64))[1]

    def diffusion_squared(self, t: Time) -> Tensor:
        """Variance that comes in: g² = d s_t²/dt - 2 (d log a_t / dt) s_t².

        Parameters
        ----------
        t : float or Tensor
            Time, in the schedule's units.

        Returns
        -------
        Tensor
            Of the shape of ``t``, per unit of time.
        """
        return self._noise(torch.as_tensor(t, dtype=torch.float64))[1]

    def times(self, num_steps: int) -> Tensor:
        """Lay a grid from the noisiest time down, one entry a network call.

        Parameters
        ----------
        num_steps : int
            At least 1; with indexed times at most their number, which it need not divide.

        Returns
        -------
        Tensor, shape (num_steps,)
            In float64, the last time of training first.

        Raises
        ------
        ArgumentError
            If the number is out of range.
        """
        if num_steps < 1:
            raise ArgumentError(f"times: expected num_steps >= 1, got {num_steps}")
        return self._grid(num_steps)

    def geometric_times(self, num_steps: int, highest: float, lowest: float = 0.01) -> Tensor:
        """Lay a grid that is geometric in s_t / a_t, for a run that starts from a picture already near x_0.

        Parameters
        ----------
        num_steps : int
            At least 1.
        highest : float
            Noise of the first time, in units of x_0: about the error of that picture.
        lowest : float, default 0.01
            Noise of the last time: below it nothing is left to see in eight bits. Must be one that the schedule has.

        Returns
        -------
        Tensor, shape (num_steps,)
            In float64, falling; fractional where times are indices.

        Raises
        ------
        ArgumentError
            If the number is out of range, or not 0 < lowest < highest, both within the schedule.
        """
        if num_steps < 1 or not 0 < lowest < highest < math.inf:
            raise ArgumentError(
                "geometric_times: expected num_steps >= 1 and 0 < lowest < highest, got "
                f"{num_steps}, {lowest} and {highest}"
            )
        for name, level in (("highest", highest), ("lowest", lowest)):
            t = self.time_at(level)
            if not math.isclose(float(self.noise_sd(t) / self.signal(t)), level, rel_tol=1e-2):
                raise ArgumentError(f"geometric_times: the schedule has no noise of {name}={level}")
        steps = torch.linspace(math.log(highest), math.log(lowest), num_steps, dtype=torch.float64)
        return torch.tensor([self.time_at(float(level)) for level in steps.exp()], dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class VariancePreserving(NoiseSchedule):
    """a_t² = Π (1 - β_i) with β linear in i, s_t² = 1 - a_t²: the schedule of DDPM.

    Times are indices 0, ..., T - 1 of the training steps; between them log a is interpolated linearly, so that
    fractional times and the SDE agree with the table. `times` are equal strides from T - 1 to 0, rounded to indices.

    Parameters
    ----------
    num_train_steps : int, default 1000
        T, as in DDPM.
    beta_start : float, default 1e-4
        β_0.
    beta_end : float, default 0.02
        β_{T-1}; the defaults leave a signal of 0.006 at the last time.

    Raises
    ------
    ArgumentError
        If T < 2, or not 0 < beta_start <= beta_end < 1.

    References
    ----------
    J. Ho, A. Jain, P. Abbeel (2020), NeurIPS, arXiv 2006.11239.
    """

    num_train_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if self.num_train_steps < 2:
            raise ArgumentError(f"VariancePreserving: expected num_train_steps >= 2, got {self.num_train_steps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ArgumentError(
                f"VariancePreserving: expected 0 < beta_start <= beta_end < 1, got {self.beta_start}, {self.beta_end}"
            )

    @property
    def _table(self) -> Tensor:
        return _log_signal_table(self.num_train_steps, self.beta_start, self.beta_end)

    def _log_signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table = self._table.to(t.device)
        low = t.detach().floor().clamp(0, self.num_train_steps - 2).long()
        slope = table[low + 1] - table[low]
        return table[low] + (t - low) * slope, slope

    def _noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_signal, slope = self._log_signal(t)
        return (-torch.expm1(2 * log_signal)).sqrt(), -2 * slope

    def _grid(self, num_steps: int) -> Tensor:
        if num_steps > self.num_train_steps:
            raise ArgumentError(f"times: expected num_steps <= {self.num_train_steps}, got {num_steps}")
        return torch.linspace(self.num_train_steps - 1, 0, num_steps, dtype=torch.float64).round()

    def time_at(self, level: float) -> float:
        """Invert s_t / a_t = level.

        Parameters
        ----------
        level : float
            Noise in units of the clean sample.

        Returns
        -------
        float
            A fractional index within [0, T - 1].
        """
        table, wanted = self._table, -math.log1p(level**2) / 2
        above = int((table > wanted).sum())  # the table falls
        if above == 0:
            return 0.0
        if above == len(table):
            return float(len(table) - 1)
        high, low = float(table[above - 1]), float(table[above])
        return above - 1 + (high - wanted) / (high - low)


@lru_cache(maxsize=8)
def _log_signal_table(num_train_steps: int, beta_start: float, beta_end: float) -> Tensor:
    betas = torch.linspace(beta_start, beta_end, num_train_steps, dtype=torch.float64)
    return torch.log1p(-betas).cumsum(0) / 2


@dataclass(frozen=True, slots=True)
class VarianceExploding(NoiseSchedule):
    """a_t = 1, s_t = σ_min (σ_max / σ_min)^t for t in [0, 1]: noise is added, nothing shrinks.

    g² = 2 s² log(σ_max / σ_min); `times` are equal strides from 1 to 0, hence geometric in σ.

    Parameters
    ----------
    sigma_min : float, default 0.01
        Noise at t = 0, in units of the data.
    sigma_max : float, default 50.0
        Noise at t = 1; it must drown the data, whose spread is about one.

    Raises
    ------
    ArgumentError
        If not 0 < sigma_min < sigma_max.

    References
    ----------
    Y. Song et al. (2021), ICLR, arXiv 2011.13456.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ArgumentError(
                f"VarianceExploding: expected 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}"
            )

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _log_signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.zeros_like(t)

    def _noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sd = self.sigma_min * (self._rate * t).exp()
        return sd, 2 * self._rate * sd.square()

    def _grid(self, num_steps: int) -> Tensor:
        return torch.linspace(1, 0, num_steps, dtype=torch.float64)

    def time_at(self, level: float) -> float:
        """Invert s_t = level.

        Parameters
        ----------
        level : float
            Noise in units of the data.

        Returns
        -------
        float
            Within [0, 1].
        """
        return min(1.0, math.log(max(level, self.sigma_min) / self.sigma_min) / self._rate)


def tweedie(x: Tensor, score: Tensor, signal: Time, noise_sd: Time) -> Tensor:
    """Denoise by the score: E[x_0 | x_t] = (x_t + s² ∇ log p_t(x_t)) / a.

    Parameters
    ----------
    x, score : Tensor, shape (B, ...)
        x_t and ∇ log p_t(x_t).
    signal, noise_sd : float or Tensor, shape () or (B,)
        a_t and s_t.

    Returns
    -------
    Tensor, shape (B, ...)
        The posterior mean; exact for every p_0 if the score is.
    """
    return convert_prediction(x, score, signal, noise_sd, source="score", target="denoised")


def convert_prediction(
    x: Tensor, prediction: Tensor, signal: Time, noise_sd: Time, *, source: Prediction, target: Prediction
) -> Tensor:
    """Turn one prediction about x_t = a x_0 + s ε into another.

    With x̂_0 the mean of x_0 given x_t: ε = (x_t - a x̂_0) / s, score = -ε / s, v = a ε - s x̂_0.

    Parameters
    ----------
    x, prediction : Tensor, shape (B, ...)
        x_t and what was predicted from it.
    signal, noise_sd : float or Tensor, shape () or (B,)
        a_t and s_t, both positive.
    source, target : {"noise", "score", "denoised", "velocity"}
        What ``prediction`` is, and what is wanted.

    Returns
    -------
    Tensor, shape (B, ...)
        In the dtype of ``x``; differentiable.

    Raises
    ------
    ArgumentError
        If source or target is unknown.
    ShapeError
        If ``prediction`` has another shape than ``x``.
    """
    for name, value in (("source", source), ("target", target)):
        if value not in get_args(Prediction):
            raise ArgumentError(f"convert_prediction: {name} must be one of {get_args(Prediction)}, got {value!r}")
    if prediction.shape != x.shape:
        raise ShapeError(f"convert_prediction: prediction has shape {tuple(prediction.shape)}, x has {tuple(x.shape)}")
    if source == target:
        return prediction
    a, s = _like(signal, x), _like(noise_sd, x)
    if source == "velocity":
        noise = (s * x + a * prediction) / (a.square() + s.square())
    elif source == "denoised":
        noise = (x - a * prediction) / s
    else:
        noise = prediction if source == "noise" else -s * prediction
    if target == "noise":
        return noise
    if target == "score":
        return -noise / s
    denoised = (x - s * noise) / a
    return denoised if target == "denoised" else a * noise - s * denoised


def _like(value: Time, x: Tensor) -> Tensor:
    # one number, or one a row, to be multiplied with x
    value = torch.as_tensor(value).to(device=x.device, dtype=x.dtype)
    return value.reshape(-1, *[1] * (x.ndim - 1)) if value.ndim else value


@dataclass(frozen=True, slots=True)
class DiffusionPrior:
    """A network, or any function, together with the schedule it was made for.

    Parameters
    ----------
    predict_fn : callable
        (x_t of shape (B, *shape), t of shape (B,)) -> (B, *shape). With twice as many channels in the first place of
        ``shape`` the second half is taken for a learnt variance and dropped. Its data scale is the scale of all
        pictures that come out: a network trained on [-1, 1] reconstructs in [-1, 1].
    schedule : NoiseSchedule
        Of the t.
    shape : tuple of int
        Of one sample.
    prediction : {"noise", "score", "denoised", "velocity"}, default "noise"
        What the function returns.
    dtype : torch.dtype, optional
        Of the network, such as bfloat16; what comes back is converted to the dtype of x. Default: that of x.

    Raises
    ------
    ArgumentError
        If ``prediction`` is unknown.
    """

    predict_fn: Callable[[Tensor, Tensor], Tensor]
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    prediction: Prediction = "noise"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ArgumentError(
                f"DiffusionPrior: prediction must be one of {get_args(Prediction)}, got {self.prediction!r}"
            )

    @classmethod
    def from_denoiser(
        cls, denoise_fn: Callable[[Tensor, Tensor], Tensor], schedule: NoiseSchedule, shape: tuple[int, ...]
    ) -> "DiffusionPrior":
        """Make a prior for any schedule of a denoiser of x_0 + σ ε.

        Since x_t / a_t = x_0 + (s_t / a_t) ε, one denoiser serves VP and VE alike.

        Parameters
        ----------
        denoise_fn : callable
            (x of shape (B, *shape), σ of shape (B,)) -> the mean of x_0.
        schedule : NoiseSchedule
            The schedule to run on.
        shape : tuple of int
            Of one sample.

        Returns
        -------
        DiffusionPrior
            With ``prediction="denoised"``.
        """

        def predict(x: Tensor, t: Tensor) -> Tensor:
            a, s = schedule.signal(t), schedule.noise_sd(t)
            return denoise_fn(x / _like(a, x), (s / a).to(x))

        return cls(predict, schedule, tuple(shape), "denoised")

    def noise(self, x: Tensor, t: float) -> Tensor:
        """Predict ε from x_t.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            All at the same time.
        t : float
            In the schedule's units.

        Returns
        -------
        Tensor, shape (B, *shape)
            In the dtype of ``x``; differentiable where the function is.

        Raises
        ------
        ShapeError
            If x, or what the function returns, has another shape.
        """
        if tuple(x.shape[1:]) != tuple(self.shape):
            raise ShapeError(f"DiffusionPrior: expected x of shape (B, {self.shape}), got {tuple(x.shape)}")
        given = x if self.dtype is None else x.to(self.dtype)
        out = self.predict_fn(given, torch.full((len(x),), t, dtype=given.dtype, device=x.device)).to(x.dtype)
        if out.shape != x.shape and out.ndim == x.ndim and out.shape[1] == 2 * x.shape[1]:
            out = out[:, : x.shape[1]]
        return convert_prediction(
            x, out, self.schedule.signal(t), self.schedule.noise_sd(t), source=self.prediction, target="noise"
        )
