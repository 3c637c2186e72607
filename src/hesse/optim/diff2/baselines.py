"""What DIFF2 is measured against: private gradient descent on all records, and private SGD on Poisson samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError
from hesse.optim.diff2.accountant import GaussianAccountant, GaussianRelease
from hesse.optim.diff2.estimate import Adjacency, sensitivity_factor
from hesse.optim.diff2.noise import gaussian_noise
from hesse.optim.diff2.records import Records

__all__ = ["PrivateRun", "dp_gd", "dp_sgd"]


@dataclass(frozen=True, slots=True, eq=False)
class PrivateRun:
    """Where a run ended and what it cost."""

    x: Tensor  # (D,)
    accountant: GaussianAccountant


def dp_gd(
    records: Records,
    x0: Tensor,
    *,
    lr: float,
    rounds: int,
    clip: float,
    epsilon: float | None = None,
    delta: float = 1e-5,
    noise_multiplier: float | None = None,
    adjacency: Adjacency = "replace",
    penalty_grad: Callable[[Tensor], Tensor] | None = None,
    generator: Generator | None = None,
    on_round: Callable[[int, Tensor], None] | None = None,
) -> PrivateRun:
    """Descend along (1/n) Σ clip(∇l(x, z), C) + N(0, (2mC/n)² I), all records in every round.

    Parameters
    ----------
    records : Records
        n records.
    x0 : Tensor, shape (D,)
        Start.
    lr : float
        η > 0.
    rounds : int
        R >= 1.
    clip : float
        C > 0; infinite only without noise.
    epsilon, delta : float, optional
        The budget; either ε or ``noise_multiplier``.
    noise_multiplier : float, optional
        m >= 0.
    adjacency : {"replace", "add-remove"}, default "replace"
        Which data sets are neighbours; for "add-remove" the noise is half as large.
    penalty_grad : callable, optional
        (D,) -> (D,), gradient of a term without data.
    generator : torch.Generator, optional
        Of the noise; see `gaussian_noise`.
    on_round : callable, optional
        (round from 0, x) after every round.

    Returns
    -------
    PrivateRun
        Point and accountant.

    Raises
    ------
    ArgumentError
        If an option is out of range or contradicts another one.

    References
    ----------
    R. Bassily, A. Smith, A. Thakurta (2014), FOCS, arXiv 1405.7085.
    """
    _check("dp_gd", lr, rounds, clip, noise_multiplier)
    accountant = _accountant("dp_gd", epsilon, delta, noise_multiplier, rounds, 1.0)
    multiplier = accountant.releases[0].multiplier
    std = multiplier * clip * (sensitivity_factor(adjacency) / records.num_records) if multiplier > 0 else 0.0
    x = x0.detach().clone()
    for number in range(rounds):
        v = records.gradient_sum(x, clip).total / records.num_records + gaussian_noise(x, std, generator)
        x = x - lr * (v if penalty_grad is None else v + penalty_grad(x))
        if on_round is not None:
            on_round(number, x)
    return PrivateRun(x, accountant)


def dp_sgd(
    records: Records,
    x0: Tensor,
    *,
    lr: float,
    num_steps: int,
    batch: int,
    clip: float,
    epsilon: float | None = None,
    delta: float = 1e-5,
    noise_multiplier: float | None = None,
    penalty_grad: Callable[[Tensor], Tensor] | None = None,
    generator: Generator | None = None,
    sampling_generator: Generator | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> PrivateRun:
    """Descend along (1/b) [Σ_{z in I} clip(∇l(x, z), C) + N(0, (mC)² I)], I a Poisson sample of rate b/n.

    Parameters
    ----------
    records : Records
        n records. Neighbours differ by one record added or removed: that is what the sampling bound is about.
    x0 : Tensor, shape (D,)
        Start.
    lr : float
        η > 0.
    num_steps : int
        At least 1.
    batch : int
        b in [1, n], the expected size of a batch.
    clip : float
        C > 0; infinite only without noise.
    epsilon, delta : float, optional
        The budget; either ε or ``noise_multiplier``.
    noise_multiplier : float, optional
        m >= 0.
    penalty_grad : callable, optional
        (D,) -> (D,), gradient of a term without data.
    generator : torch.Generator, optional
        Of the noise; see `gaussian_noise`.
    sampling_generator : torch.Generator, optional
        Of the batches, on the CPU; another one than ``generator``. Default: one seeded afresh.
    on_step : callable, optional
        (step from 0, x) after every step.

    Returns
    -------
    PrivateRun
        Point and accountant.

    Raises
    ------
    ArgumentError
        If an option is out of range or contradicts another one.

    References
    ----------
    M. Abadi et al. (2016), CCS, arXiv 1607.00133.
    """
    _check("dp_sgd", lr, num_steps, clip, noise_multiplier)
    if not 1 <= batch <= records.num_records:
        raise ArgumentError(f"dp_sgd: expected 1 <= batch <= {records.num_records}, got {batch}")
    if generator is not None and generator is sampling_generator:
        raise ArgumentError("dp_sgd: draws of batches give noise of the same generator away; use two")
    rate = batch / records.num_records
    accountant = _accountant("dp_sgd", epsilon, delta, noise_multiplier, num_steps, rate)
    multiplier = accountant.releases[0].multiplier
    std = multiplier * clip / batch if multiplier > 0 else 0.0
    sampler = sampling_generator
    if sampler is None:
        sampler = Generator()
        sampler.seed()
    x = x0.detach().clone()
    for number in range(num_steps):
        coins = torch.rand(records.num_records, generator=sampler, dtype=torch.float64)
        index = (coins < rate).nonzero().squeeze(1).to(x.device)
        v = records.gradient_sum(x, clip, index).total / batch + gaussian_noise(x, std, generator)
        x = x - lr * (v if penalty_grad is None else v + penalty_grad(x))
        if on_step is not None:
            on_step(number, x)
    return PrivateRun(x, accountant)


def _check(call: str, lr: float, count: int, clip: float, multiplier: float | None) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise ArgumentError(f"{call}: expected a finite lr > 0, got {lr}")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ArgumentError(f"{call}: expected an integer number of steps >= 1, got {count!r}")
    if not clip > 0 or (math.isinf(clip) and multiplier != 0):
        raise ArgumentError(f"{call}: expected clip > 0, finite where there is noise, got {clip}")


def _accountant(
    call: str, epsilon: float | None, delta: float, multiplier: float | None, count: int, rate: float
) -> GaussianAccountant:
    if (epsilon is None) == (multiplier is None):
        raise ArgumentError(f"{call}: give either epsilon, a budget, or noise_multiplier")
    if multiplier is not None:
        return GaussianAccountant().add(multiplier, count, rate)
    budget = math.nan if epsilon is None else epsilon
    return GaussianAccountant.calibrate(budget, delta, [GaussianRelease(1.0, count, rate)])
