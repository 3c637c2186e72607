"""How α, σ and the number of particles change over a run."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hesse.errors import ArgumentError

__all__ = ["CoolingSchedule", "GeometricSchedule", "Schedule", "reduced_count"]

Schedule = Callable[[int, Tensor, float], tuple[Tensor, float]]
"""``(num_steps, alpha, sigma)`` after that many steps to the α, shape (M,), and σ of the next."""


@dataclass(frozen=True, slots=True)
class CoolingSchedule:
    """After the e-th ``every`` steps: α ← 2 α, σ ← σ log₂(e + 1) / log₂(e + 2).

    Attributes
    ----------
    every : int, default 1
        Steps of an epoch, >= 1.

    References
    ----------
    J. A. Carrillo, S. Jin, L. Li, Y. Zhu (2021), ESAIM: COCV 27, arXiv 1909.09249.
    """

    every: int = 1

    def __post_init__(self) -> None:
        _check_every("CoolingSchedule", self.every)

    def __call__(self, num_steps: int, alpha: Tensor, sigma: float) -> tuple[Tensor, float]:
        """Cool at the end of an epoch.

        Parameters
        ----------
        num_steps : int
            Steps made.
        alpha : Tensor, shape (M,)
            α of the last step.
        sigma : float
            σ of the last step.

        Returns
        -------
        alpha, sigma : Tensor and float
            Of the next step.
        """
        epoch, rest = divmod(num_steps, self.every)
        if rest:
            return alpha, sigma
        return 2 * alpha, sigma * math.log2(epoch + 1) / math.log2(epoch + 2)


@dataclass(frozen=True, slots=True)
class GeometricSchedule:
    """Every so many steps: α ← a α up to a limit, σ ← s σ.

    Attributes
    ----------
    alpha, sigma : float, default 1.0
        The factors a and s, > 0.
    every : int, default 1
        Steps between, >= 1.
    max_alpha : float, default inf
        Where α stops to grow.
    """

    alpha: float = 1.0
    sigma: float = 1.0
    every: int = 1
    max_alpha: float = math.inf

    def __post_init__(self) -> None:
        _check_every("GeometricSchedule", self.every)
        if not (self.alpha > 0 and self.sigma > 0 and self.max_alpha > 0):
            raise ArgumentError(f"GeometricSchedule: expected positive factors and limit, got {self}")

    def __call__(self, num_steps: int, alpha: Tensor, sigma: float) -> tuple[Tensor, float]:
        """GeometricSchedule when it is time.

        Parameters
        ----------
        num_steps : int
            Steps made.
        alpha : Tensor, shape (M,)
            α of the last step.
        sigma : float
            σ of the last step.

        Returns
        -------
        alpha, sigma : Tensor and float
            Of the next step.
        """
        if num_steps % self.every:
            return alpha, sigma
        return (self.alpha * alpha).clamp(max=self.max_alpha), self.sigma * sigma


def reduced_count(num_particles: int, batch_size: int, before: float, after: float, speed: float = 0.2) -> int:
    """Particles to go on with when the cloud has shrunk: ⌈(N / n) clip(((1-μ) S + μ S') / S, 1-μ, 1)⌉ n.

    Parameters
    ----------
    num_particles : int
        N >= 2.
    batch_size : int
        n >= 1, of which the result is a multiple unless that exceeds N.
    before, after : float
        S and S' >= 0: norm of the cloud's variances, coordinate by coordinate, at two times.
    speed : float, default 0.2
        μ in [0, 1), the part that may go at once. 0 keeps all.

    Returns
    -------
    int
        Between 2 and N.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    """
    if num_particles < 2 or batch_size < 1 or not 0 <= speed < 1 or not (before >= 0 and after >= 0):
        raise ArgumentError(
            "reduced_count: expected num_particles >= 2, batch_size >= 1, 0 <= speed < 1 and norms >= 0; got "
            f"{num_particles}, {batch_size}, {speed}, {before}, {after}"
        )
    kept = (1 - speed) + speed * after / before if before > 0 else 1.0
    batches = math.ceil(num_particles / batch_size * min(max(kept, 1 - speed), 1.0))
    return max(2, min(num_particles, batches * batch_size))


def _check_every(call: str, every: int) -> None:
    if every < 1:
        raise ArgumentError(f"{call}: expected every >= 1, got {every}")
