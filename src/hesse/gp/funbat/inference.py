"""Mean-field inference in the functional Tucker and CP models, sweep by sweep.

Shapes: S restarts, N entries, K modes, T_k distinct coordinates and R_k components of mode k, D core entries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hesse.gp.funbat.matern import MaternSSM
from hesse.gp.funbat.smoother import SmoothedChain, kalman_smoother

__all__ = ["Core", "Entries", "Factor", "Form", "Noise", "Posterior", "other_moments", "start", "sweep"]

Form = Literal["tucker", "cp"]

_BUDGET = 1 << 26  # bytes of second moments held at once: they are summed over stretches of the entries
_START_NOISE = 100.0  # E[tau] of the first sweep, times mean y²: less, and components are pruned for ever
_START_COV = 1e-2
_START_CORE = 0.5
_START_FREQUENCIES = (0.3, 1.5)  # cycles in the unit interval


@dataclass(frozen=True, slots=True)
class Entries:
    """What was observed: values, and for every mode which of its distinct coordinates each value has."""

    y: Tensor  # (N,)
    index: tuple[Tensor, ...]  # K of (N,)


@dataclass(frozen=True, slots=True)
class Factor:
    """q(U_k), and the messages that made it out of the prior."""

    ssm: MaternSSM  # parameters of shape (S,)
    times: Tensor  # (T,)
    precision: Tensor  # Λ, (S, T, R, R)
    shift: Tensor  # η, (S, T, R)
    mean: Tensor  # (S, T, R)
    covariance: Tensor  # (S, T, R, R)
    base: tuple[Tensor, Tensor]  # the part of Λ and η that earlier entries left
    base_normalizer: Tensor  # log normaliser of that part alone, (S,): 0 if there is none
    chain: SmoothedChain | None = None  # None before the first sweep

    @property
    def second(self) -> Tensor:
        """E[u uᵀ], (S, T, R, R)."""
        return self.covariance + self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)


@dataclass(frozen=True, slots=True)
class Core:
    """q(vec W) = N(mean, covariance); in the CP form a superdiagonal of ones that is not learnt (`mean` is empty)."""

    ranks: tuple[int, ...]
    mean: Tensor  # (S, D)
    covariance: Tensor  # (S, D, D)
    base: tuple[Tensor, Tensor]  # prior precision (S, D, D) and shift (S, D)

    @property
    def is_cp(self) -> bool:
        """Whether the core is fixed."""
        return self.mean.shape[-1] == 0

    @property
    def second(self) -> Tensor:
        """E[vec W vec Wᵀ], (S, D, D)."""
        return self.covariance + self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)


@dataclass(frozen=True, slots=True)
class Noise:
    """q(tau) = Gamma(shape, rate)."""

    shape: Tensor  # (S,)
    rate: Tensor  # (S,)
    base: tuple[Tensor, Tensor]

    @property
    def mean(self) -> Tensor:
        """E[tau], (S,)."""
        return self.shape / self.rate


@dataclass(frozen=True, slots=True)
class Posterior:
    """The factorised posterior after a sweep, with its evidence bound in nats and how far the sweep moved it."""

    factors: tuple[Factor, ...]
    core: Core
    noise: Noise
    bound: Tensor  # (S,)
    change: Tensor  # (S,): relative, of E[tau] and of the means


def start(
    times: Sequence[Tensor],
    ranks: tuple[int, ...],
    form: Form,
    ssms: Sequence[MaternSSM],
    noise_prior: tuple[float, float],
    num_restarts: int,
    generator: torch.Generator | None,
) -> Posterior:
    """Narrow messages around smooth random cosines and a random core, and a noise well below the data's spread.

    Parameters
    ----------
    times : sequence of Tensor, shapes (T_k,)
        Distinct coordinates of each mode, in [0, 1]; values are expected to have mean square one.
    ranks : tuple of int
        R_k.
    form : {"tucker", "cp"}
        Whether the core is learnt.
    ssms : sequence of MaternSSM
        Prior of each mode, parameters of shape (S,).
    noise_prior : (float, float)
        Shape and rate of the Gamma prior of tau.
    num_restarts : int
        S.
    generator : torch.Generator or None
        Source of the starts; None is torch's global one.

    Returns
    -------
    Posterior
        Without chains: the first sweep makes them.
    """
    like = times[0]

    def draw(*shape: int, normal: bool = False) -> Tensor:
        sample = torch.randn if normal else torch.rand
        return sample(num_restarts, *shape, generator=generator, dtype=like.dtype, device=like.device)

    factors = []
    low, high = _START_FREQUENCIES
    for t, rank, ssm in zip(times, ranks, ssms, strict=True):
        frequency, phase = low + (high - low) * draw(1, rank), draw(1, rank)
        mean = torch.cos(2 * math.pi * (frequency * t.unsqueeze(-1) + phase))
        unit = torch.eye(rank, dtype=like.dtype, device=like.device)
        wide = unit.expand(num_restarts, len(t), rank, rank)
        nothing = (torch.zeros_like(wide), torch.zeros_like(mean))
        factors.append(Factor(ssm, t, *nothing, mean, _START_COV * wide, nothing, like.new_zeros(num_restarts)))
    size = 0 if form == "cp" else math.prod(ranks)
    unit = torch.eye(size, dtype=like.dtype, device=like.device).expand(num_restarts, size, size)
    mean = _START_CORE * draw(size, normal=True)
    core = Core(ranks, mean, _START_COV * unit, (unit, torch.zeros_like(mean)))
    ones = like.new_ones(num_restarts)
    base = noise_prior[0] * ones, noise_prior[1] * ones
    nan = torch.full_like(ones, math.nan)
    return Posterior(tuple(factors), core, Noise(_START_NOISE * ones, ones, base), nan, nan)


def sweep(posterior: Posterior, entries: Entries, damping: float, *, learn_hyper: bool = False) -> Posterior:
    """Update every factor, the core and the noise once; without damping the bound never falls.

    Costs O(N Π R_k² + Σ T_k d³) time; of the N entries only a stretch is expanded at a time.

    Parameters
    ----------
    posterior : Posterior
        From `start` or the sweep before.
    entries : Entries
        The data.
    damping : float
        Part of the old messages to factors that is kept.
    learn_hyper : bool, default False
        Whether length scales and variances make a step as well.

    Returns
    -------
    Posterior
        A new one.
    """
    factors = list(posterior.factors)
    core, noise = posterior.core, posterior.noise
    for mode, factor in enumerate(factors):
        precision, shift = _messages(factors, core, noise.mean, entries, mode)
        precision = damping * factor.precision + (1 - damping) * (factor.base[0] + precision)
        shift = damping * factor.shift + (1 - damping) * (factor.base[1] + shift)
        ssm = ascend(factor.ssm, factor.times, precision, shift) if learn_hyper else factor.ssm
        chain = kalman_smoother(ssm, factor.times, precision, shift)
        factors[mode] = replace(
            factor, ssm=ssm, precision=precision, shift=shift, mean=chain.mean, covariance=chain.covariance, chain=chain
        )
    if core.is_cp:
        squares = _residual_cp(factors, core, entries)
    else:
        moments, cross = _core_statistics(factors, entries)
        tau = noise.mean
        precision = core.base[0] + tau[:, None, None] * moments
        lower = torch.linalg.cholesky(precision)
        covariance = torch.cholesky_inverse(lower)
        shift = core.base[1] + tau[:, None] * cross
        core = replace(core, mean=(covariance @ shift.unsqueeze(-1)).squeeze(-1), covariance=covariance)
        squares = entries.y.square().sum() - 2 * (cross * core.mean).sum(-1) + (moments * core.second).sum((-2, -1))
    half = squares.clamp(min=0.0) / 2
    noise = replace(noise, shape=noise.base[0] + len(entries.y) / 2, rate=noise.base[1] + half)
    bound = _bound(factors, core, noise, half, len(entries.y))
    new = Posterior(tuple(factors), core, noise, bound, bound)
    return replace(new, change=_change(posterior, new))


def ascend(ssm: MaternSSM, times: Tensor, precision: Tensor, shift: Tensor) -> MaternSSM:
    """Step up the log normaliser in log length scale and log variance, halving until it does not fall.

    With messages held, the bound's part that depends on them is the log normaliser itself: the step cannot lower it.

    Parameters
    ----------
    ssm : MaternSSM
        Parameters of shape (S,).
    times, precision, shift : Tensor
        As in `kalman_smoother`.

    Returns
    -------
    MaternSSM
        Length scale within [1e-3, 1e3], variance within [1e-6, 1e6].
    """
    found = torch.stack([torch.as_tensor(ssm.lengthscale), torch.as_tensor(ssm.variance)]).log()
    theta = found.clone().requires_grad_()

    def height(point: Tensor) -> Tensor:
        return kalman_smoother(MaternSSM(ssm.nu, *point.exp()), times, precision, shift).log_normalizer

    with torch.enable_grad():
        here = height(theta)
        (slope,) = torch.autograd.grad(here.sum(), theta)
    step = 0.3 * slope / slope.norm(dim=0).clamp(min=1.0)
    here = here.detach()
    for _ in range(5):
        there = height(found + step)
        worse = there < here
        if not bool(worse.any()):
            break
        step = torch.where(worse, step / 2, step)
    else:
        step = torch.where(height(found + step) < here, torch.zeros_like(step), step)
    length, variance = (found + step).exp()
    return MaternSSM(ssm.nu, length.clamp(1e-3, 1e3), variance.clamp(1e-6, 1e6))


def other_moments(means: Sequence[Tensor], seconds: Sequence[Tensor], core: Core, mode: int) -> tuple[Tensor, Tensor]:
    """Compute E[a] and E[a aᵀ] of a_n = W_(k) (⊗ of the other modes' u): what multiplies mode k's function in entry n.

    Parameters
    ----------
    means, seconds : sequence of Tensor, shapes (S, n, R_j) and (S, n, R_j, R_j)
        First and second moments of all modes; those of mode k give shapes only.
    core : Core
        W, whose covariance enters the second moment.
    mode : int
        k.

    Returns
    -------
    tuple of Tensor, shapes (S, n, R_k) and (S, n, R_k, R_k)
        Exact for independent core and factors.
    """
    others = [j for j in range(len(means)) if j != mode]
    if core.is_cp:
        mean, second = torch.ones_like(means[mode]), torch.ones_like(seconds[mode])
        for j in others:
            mean, second = mean * means[j], second * seconds[j]
        return mean, second
    stack, n = means[mode].shape[:2]
    rank = core.ranks[mode]
    mean, second = _kron([means[j] for j in others], means[mode]), _kron2([seconds[j] for j in others], means[mode])
    order = [mode, *others]
    size = mean.shape[-1]
    unfolded = core.mean.reshape(stack, *core.ranks).permute(0, *(j + 1 for j in order)).reshape(stack, rank, size)
    both = core.second.reshape(stack, *core.ranks, *core.ranks)
    k = len(core.ranks)
    both = both.permute(0, *(j + 1 for j in order), *(j + 1 + k for j in order)).reshape(stack, rank, size, rank, size)
    both = both.permute(0, 2, 4, 1, 3).reshape(stack, size * size, rank * rank)
    return mean @ unfolded.mT, (second.reshape(stack, n, size * size) @ both).reshape(stack, n, rank, rank)


def _kron(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    out = like.new_ones(*like.shape[:-1], 1)
    for vector in vectors:
        out = (out.unsqueeze(-1) * vector.unsqueeze(-2)).flatten(-2)
    return out


def _kron2(matrices: Sequence[Tensor], like: Tensor) -> Tensor:
    out = like.new_ones(*like.shape[:-1], 1, 1)
    for matrix in matrices:
        size = out.shape[-1] * matrix.shape[-1]
        out = (out[..., :, None, :, None] * matrix[..., None, :, None, :]).reshape(*out.shape[:-2], size, size)
    return out


def _stretches(factors: Sequence[Factor], entries: Entries, width: int):
    # moments of all modes at some entries at a time, so few that S · width numbers an entry stay in the budget
    stack = len(factors[0].mean)
    count = max(1, _BUDGET // (8 * stack * width))
    seconds = [f.second for f in factors]
    for rows in torch.arange(len(entries.y), device=entries.y.device).split(count):
        picks = [index[rows] for index in entries.index]
        means = [f.mean[:, pick] for f, pick in zip(factors, picks, strict=True)]
        yield rows, picks, means, [s[:, pick] for s, pick in zip(seconds, picks, strict=True)]


def _width(core: Core, mode: int) -> int:
    return core.ranks[mode] ** 2 if core.is_cp else (math.prod(core.ranks) // core.ranks[mode]) ** 2


def _messages(factors: Sequence[Factor], core: Core, tau: Tensor, entries: Entries, mode: int) -> tuple[Tensor, Tensor]:
    # E[tau] Σ E[a aᵀ] and E[tau] Σ y E[a] over the entries that share a coordinate
    precision = torch.zeros_like(factors[mode].precision)
    shift = torch.zeros_like(factors[mode].shift)
    for rows, picks, means, seconds in _stretches(factors, entries, _width(core, mode)):
        mean, second = other_moments(means, seconds, core, mode)
        precision.index_add_(1, picks[mode], second)
        shift.index_add_(1, picks[mode], mean * entries.y[rows, None])
    return precision * tau[:, None, None, None], shift * tau[:, None, None]


def _core_statistics(factors: Sequence[Factor], entries: Entries) -> tuple[Tensor, Tensor]:
    # Σ E[z zᵀ] and Σ y E[z] with z the Kronecker product over all modes
    *head, last = factors
    left, right = math.prod(f.mean.shape[-1] for f in head), last.mean.shape[-1]
    stack, size = len(last.mean), left * right
    moments, cross = last.mean.new_zeros(stack, left**2, right**2), last.mean.new_zeros(stack, size)
    for rows, _, means, seconds in _stretches(factors, entries, left**2):
        some = _kron2(seconds[:-1], means[-1]).flatten(-2)
        moments += some.mT @ seconds[-1].flatten(-2)
        cross += torch.einsum("n,snd->sd", entries.y[rows], _kron(means, means[-1]))
    moments = moments.reshape(stack, left, left, right, right).permute(0, 1, 3, 2, 4)
    return moments.reshape(stack, size, size), cross


def _residual_cp(factors: Sequence[Factor], core: Core, entries: Entries) -> Tensor:
    total = torch.zeros_like(factors[0].mean[:, 0, 0])
    for rows, _, means, seconds in _stretches(factors, entries, _width(core, 0)):
        mean, second = other_moments(means, seconds, core, 0)
        total = total - 2 * (entries.y[rows] * (mean * means[0]).sum(-1)).sum(-1)
        total = total + (second * seconds[0]).sum((-3, -2, -1))
    return entries.y.square().sum() + total


def _bound(factors: Sequence[Factor], core: Core, noise: Noise, half: Tensor, count: int) -> Tensor:
    # E[log p(y | ·)] - KL(q(W) ‖ p) - KL(q(tau) ‖ p) - Σ_k KL(q(Z_k) ‖ p), the last from the smoother's normaliser
    a, b = noise.shape, noise.rate
    a0, b0 = noise.base
    log_tau = torch.digamma(a) - b.log()
    bound = count / 2 * (log_tau - math.log(2 * math.pi)) - a / b * half
    bound = bound - (a - a0) * torch.digamma(a) + torch.lgamma(a) - torch.lgamma(a0) - a0 * (b / b0).log()
    bound = bound - a * (b0 - b) / b
    if not core.is_cp:
        prior = torch.linalg.cholesky(core.base[0])
        offset = core.mean - torch.cholesky_solve(core.base[1].unsqueeze(-1), prior).squeeze(-1)
        spread = core.covariance + offset.unsqueeze(-1) * offset.unsqueeze(-2)
        distance = (core.base[0] * spread).sum((-2, -1)) - core.mean.shape[-1]
        bound = bound - (distance - torch.logdet(core.covariance) - torch.logdet(core.base[0])) / 2
    for factor in factors:
        if factor.chain is not None:
            gained = (factor.shift - factor.base[1]) * factor.mean
            spent = (factor.precision - factor.base[0]) * factor.second
            normalizer = factor.chain.log_normalizer - factor.base_normalizer
            bound = bound + normalizer - gained.sum((-2, -1)) + spent.sum((-3, -2, -1)) / 2
    return bound


def _change(old: Posterior, new: Posterior) -> Tensor:
    changes = [(new.noise.mean - old.noise.mean).abs() / new.noise.mean]
    pairs = [(a.mean, b.mean) for a, b in zip(old.factors, new.factors, strict=True)]
    if not new.core.is_cp:
        pairs.append((old.core.mean, new.core.mean))
    for before, after in pairs:
        norm = after.flatten(1).norm(dim=1).clamp(min=torch.finfo(after.dtype).tiny)
        changes.append((after - before).flatten(1).norm(dim=1) / norm)
    return torch.stack(changes).amax(0)
