"""Sub-gradient descent on the mean absolute residual of UUᵀ, from a tiny start.

Shapes: U (..., d, k), targets (..., m); leading dimensions are problems that share their measurements.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse._values import check_count
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.optim.subgm.measurements import Measurements, MeasurementsLike, as_measurements
from hesse.optim.subgm.steps import StepRule, has_stalled, subgradient_norm

__all__ = ["Initialization", "RecoveryResult", "l1_subgradient", "numerical_rank", "recover_psd"]

Initialization = Literal["spectral", "random"]

_AWAKE = 1e-2  # ‖U‖_F, in units of the data, from which the windows of the plateau rule are counted
_GAUSSIAN_MEDIAN = 0.6745  # of |N(0, 1)|


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """A factor, and what `recover_psd` needs to go on from it."""

    factor: Tensor  # (..., d, k): the last one, or with a hold-out the one with the least held-out loss
    losses: Tensor  # (T, ...): mean |y - ⟨A, UUᵀ⟩| at the start of each step
    held_out_losses: Tensor | None  # (T, ...)
    best_step: Tensor | None  # (...): step at whose start the held-out loss was least
    converged: Tensor  # (...) of bool: moved by less than tol, relative to U
    last_factor: Tensor  # (..., d, k)
    multiplier: Tensor  # (...): decay so far
    decaying: Tensor  # (...) of bool: whether the plateau rule has been triggered
    awake_steps: Tensor  # (...): steps from where ‖U‖_F passed 0.01 until the decay began

    @property
    def matrix(self) -> Tensor:
        """UUᵀ, of shape (..., d, d)."""
        return self.factor @ self.factor.mT

    @property
    def num_steps(self) -> int:
        """Steps made in all."""
        return len(self.losses)


def l1_subgradient(
    measurements: Measurements, factor: Tensor, targets: Tensor, smoothing: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """Q(U) = (1/m) Σ sign(e_i) (A_i + A_iᵀ)/2 with e_i = ⟨A_i, UUᵀ⟩ - y_i; the gradient of the loss in U is 2QU.

    Parameters
    ----------
    measurements : Measurements
        The A_i.
    factor : Tensor, shape (..., d, k)
        U.
    targets : Tensor, shape (..., m)
        y.
    smoothing : float or Tensor, shape (..., 1), default 0.0
        Half width δ of the band, in units of y, in which sign(e) is replaced by e/δ: the derivative of Huber's loss
        over δ. At 0, sign(0) = 0, one of the values that the sub-differential allows. As δ grows, Q turns towards the
        gradient of least squares.

    Returns
    -------
    loss : Tensor, shape (...)
        Mean |e_i|, also where Q is smoothed.
    Q : Tensor, shape (..., d, d)
        Symmetric.
    """
    residual = measurements.apply(factor) - targets
    smooth = isinstance(smoothing, Tensor) or smoothing > 0
    signs = (residual / smoothing).clamp(-1, 1) if smooth else residual.sign()
    return residual.abs().mean(-1), measurements.adjoint(signs / targets.shape[-1])


def recover_psd(
    A: MeasurementsLike,
    targets: Tensor,
    *,
    rank: int | None = None,
    init_scale: float = 1e-8,
    rule: StepRule | None = None,
    max_steps: int = 3000,
    tol: float = 1e-8,
    init: Initialization = "spectral",
    smoothing: float = 0.0,
    batch_size: int | None = None,
    holdout: Tensor | None = None,
    resume: RecoveryResult | None = None,
    generator: Generator | None = None,
) -> RecoveryResult:
    """Minimise (1/m) Σ |y_i - ⟨A_i, UUᵀ⟩| by U ← U - η_t Q(U) U from a tiny U_0.

    The directions of the true matrix grow exponentially out of the start, the others stay near it: with U of k columns
    the number of measurements needed depends on the true rank, not on k, and a fraction of them may be grossly wrong.
    The loss itself is not the criterion: under dense noise it has over-fitted minima far from the truth.

    Parameters
    ----------
    A : Tensor, shape (m, d, d), LinearOperator, shape (m, d²), or Measurements
        The A_i, symmetric or not.
    targets : Tensor, shape (..., m)
        y, in the dtype of ``A``; leading dimensions are problems of their own with the same A.
    rank : int, optional
        Columns k of U, between the true rank and d. Default: d.
    init_scale : float, default 1e-8
        α = ‖U_0‖₂ in units of the data. The smaller, the smaller what the directions outside the signal end with, and
        the more steps the growth takes: log(1/α)/log(1 + eta0) or so. The default serves 30 % of outliers and the
        plateau rule; the geometric rule needs a larger α, or a slower decay, as the condition grows.
    rule : StepRule, optional
        Default: ``StepRule()``, the plateau rule.
    max_steps : int, default 3000
        Steps in all; those of ``resume`` count.
    tol : float, default 1e-8
        A problem stops when a step moves U by no more than tol · ‖U‖_F. 0: only when Q is zero.
    init : {"spectral", "random"}, default "spectral"
        U_0 from the leading eigenvectors of (1/m) Σ sign(y_i) A_i, which are those of the truth up to sampling error,
        or random orthonormal columns, which take a few steps longer. Spectral turns to random where that matrix has no
        positive eigenvalue.
    smoothing : float, default 0.0
        See `l1_subgradient`; in units of y.
    batch_size : int, optional
        Measurements to a step, drawn with replacement. Default: all.
    holdout : Tensor of bool, shape (m,), optional
        Measurements that take no part, and by whose mean absolute residual the best factor on the way is picked:
        early stopping, which dense noise calls for. Default: none.
    resume : RecoveryResult, optional
        Go on from there, with the same other arguments. Default: a new start.
    generator : torch.Generator, optional
        Of random starts and batches. Default: torch's global generator.

    Returns
    -------
    RecoveryResult
        Factor and history; not differentiable.

    Raises
    ------
    ArgumentError
        If a value is out of range, or ``targets`` has NaN or Inf. Huge finite targets are outliers, and welcome.
    ShapeError
        If shapes, dtypes or devices do not fit.
    ArgumentTypeError
        If ``A`` is of a kind not listed.
    NumericalError
        If U overflows: eta0 is too large.

    Notes
    -----
    A step costs two products with the measurements, O(m d²) if these are dense, and O(d² k). Targets are divided by the
    power of four nearest to median |y|/0.6745, which estimates ‖X‖_F, so that α and the adaptive rule have units; the
    power of four keeps the division free of rounding. Float32 works, U_0 grows out of any α above 1e-18; it ends at an
    error of 1e-6 or so.

    References
    ----------
    J. Ma, S. Fattahi (2023), JMLR 24, arXiv 2202.08788.
    """
    measurements = as_measurements(A)
    rule = StepRule() if rule is None else rule
    d = measurements.order
    rank = d if rank is None else rank
    _check(measurements, targets, rank, init_scale, max_steps, tol, init, smoothing, batch_size)
    unit = _unit(targets)
    train, held = _Problem(measurements, targets / unit.unsqueeze(-1)), None
    if holdout is not None:
        _check_holdout(holdout, measurements)
        held, train = train.select(holdout.nonzero().squeeze(1)), train.select((~holdout).nonzero().squeeze(1))
    with torch.no_grad():
        if resume is None:
            start = _fresh(
                init_scale * _spread(train, rank, init, generator), held is not None, rule.kind == "geometric"
            )
        else:
            _check_resume(resume, (*targets.shape[:-1], d, rank), held is not None)
            start = _rescaled(resume, 1 / unit)
        width = smoothing / unit.unsqueeze(-1) if smoothing else 0.0
        return _rescaled(_descend(train, held, start, rule, max_steps, tol, width, batch_size, generator), unit)


def numerical_rank(factor: Tensor, min_gap: float = 10.0) -> int:
    """Count the singular values of U above the widest gap s_i/s_{i+1}.

    Parameters
    ----------
    factor : Tensor, shape (d, k)
        U.
    min_gap : float, default 10.0
        A ratio below this is no gap: all directions above rounding count then. In UUᵀ it is squared.

    Returns
    -------
    int
        Between 0, for U = 0, and k.
    """
    values = torch.linalg.svdvals(factor.detach())
    if len(values) == 0 or float(values[0]) == 0:
        return 0
    values = values[values > torch.finfo(values.dtype).eps * values[0]]  # columns that started at zero open no gap
    ratios = values[:-1] / values[1:]
    if len(ratios) == 0 or float(ratios.max()) < min_gap:
        return len(values)
    return int(ratios.argmax()) + 1


@dataclass(frozen=True, slots=True)
class _Problem:
    measurements: Measurements
    targets: Tensor

    def select(self, index: Tensor) -> "_Problem":
        return _Problem(self.measurements.select(index), self.targets[..., index])

    def draw(self, count: int, generator: Generator | None) -> "_Problem":
        home = self.targets.device if generator is None else generator.device
        index = torch.randint(self.targets.shape[-1], (count,), generator=generator, device=home)
        return self.select(index.to(self.targets.device))


def _descend(
    train: _Problem,
    held: _Problem | None,
    start: RecoveryResult,
    rule: StepRule,
    max_steps: int,
    tol: float,
    width: float | Tensor,
    batch_size: int | None,
    generator: Generator | None,
) -> RecoveryResult:
    # everything in units of the data
    U, best, best_step = start.last_factor, start.factor, start.best_step
    losses = list(start.losses)
    held_losses = [] if start.held_out_losses is None else list(start.held_out_losses)
    least = torch.stack(held_losses).amin(0) if held_losses else torch.full_like(start.multiplier, math.inf)
    multiplier, decaying, awake_steps = start.multiplier, start.decaying, start.awake_steps
    converged = torch.zeros_like(start.converged)
    for t in range(len(losses), max_steps):
        batch = train if batch_size is None else train.draw(batch_size, generator)
        loss, Q = l1_subgradient(batch.measurements, U, batch.targets, width)
        if not bool(torch.isfinite(loss).all()):
            raise NumericalError(
                f"recover_psd: U overflowed at step {t}; lower eta0 (adaptive: below 1/σ₁ of the data)"
            )
        losses.append(loss)
        if held is not None and best_step is not None:
            held_loss = (held.measurements.apply(U) - held.targets).abs().mean(-1)
            better = held_loss < least
            least = torch.where(better, held_loss, least)
            best = torch.where(better[..., None, None], U, best)
            best_step = torch.where(better, t, best_step)
            held_losses.append(held_loss)
        length = torch.linalg.matrix_norm(U)
        if rule.kind == "plateau" and not bool(decaying.all()):
            awake_steps = awake_steps + (((length > _AWAKE) | (awake_steps > 0)) & ~decaying)
            if len(losses) >= 2 * rule.window:
                stalled = has_stalled(torch.stack(losses[-2 * rule.window :]), rule.window)
                decaying = decaying | (stalled & (awake_steps >= 2 * rule.window))
        step = _step_length(rule, t, loss, Q, multiplier)
        if rule.kind in ("plateau", "geometric"):
            multiplier = torch.where(decaying, multiplier * rule.factor, multiplier)
        move = step[..., None, None] * (Q @ U)
        converged = converged | (torch.linalg.matrix_norm(move) <= tol * length)
        U = torch.where(converged[..., None, None], U, U - move)
        if bool(converged.all()):
            break
    return RecoveryResult(
        factor=U if held is None else best,
        losses=_stacked(losses, multiplier),
        held_out_losses=None if held is None else _stacked(held_losses, multiplier),
        best_step=best_step,
        converged=converged,
        last_factor=U,
        multiplier=multiplier,
        decaying=decaying,
        awake_steps=awake_steps,
    )


def _step_length(rule: StepRule, t: int, loss: Tensor, Q: Tensor, multiplier: Tensor) -> Tensor:
    if rule.kind == "adaptive":
        return rule.eta0 * math.pi / 2 * loss
    if callable(rule.kind):
        relative = torch.as_tensor(rule.kind(t, loss), dtype=loss.dtype, device=loss.device)
    else:
        relative = rule.eta0 * multiplier
    size = subgradient_norm(Q, rule.normalize)
    return torch.where(size > 0, relative / size, 0.0)  # Q = 0: a stationary point


def _stacked(history: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(history) if history else like.new_zeros(0, *like.shape)


def _unit(targets: Tensor) -> Tensor:
    # power of four nearest to the median of |y|/0.6745; of the nonzero ones where most are zero
    magnitude = targets.detach().abs()
    median = magnitude.median(-1).values
    nonzero = torch.where(magnitude > 0, magnitude, torch.nan).nanmedian(-1).values.nan_to_num(1.0)
    scale = torch.where(median > 0, median, nonzero) / _GAUSSIAN_MEDIAN
    return 4.0 ** (scale.log2() / 2).round()


def _spread(problem: _Problem, rank: int, init: Initialization, generator: Generator | None) -> Tensor:
    # U_0 of spectral norm 1
    measurements, y = problem.measurements, problem.targets
    home = y.device if generator is None else generator.device
    shape = (*y.shape[:-1], measurements.order, rank)
    noise = torch.randn(shape, generator=generator, dtype=y.dtype, device=home).to(y.device)
    random = torch.linalg.qr(noise).Q
    if init == "random":
        return random
    values, vectors = torch.linalg.eigh(measurements.adjoint(y.sign() / y.shape[-1]))
    top = values[..., -1:].clamp_min(torch.finfo(values.dtype).tiny)
    spectral = vectors[..., -rank:] * (values[..., -rank:].clamp_min(0) / top).sqrt().unsqueeze(-2)
    return torch.where((values[..., -1] > 0)[..., None, None], spectral.flip(-1), random)


def _fresh(U: Tensor, holds_out: bool, decaying: bool) -> RecoveryResult:
    lead = U.shape[:-2]
    empty = U.new_zeros(0, *lead)
    count = torch.zeros(lead, dtype=torch.int64, device=U.device)
    no = torch.zeros_like(count, dtype=torch.bool)
    return RecoveryResult(
        factor=U,
        losses=empty,
        held_out_losses=empty if holds_out else None,
        best_step=count if holds_out else None,
        converged=no,
        last_factor=U,
        multiplier=U.new_ones(lead),
        decaying=torch.full_like(no, decaying),
        awake_steps=count,
    )


def _rescaled(result: RecoveryResult, unit: Tensor) -> RecoveryResult:
    root = unit.sqrt()[..., None, None]  # exact: the unit is a power of four
    held = result.held_out_losses
    return replace(
        result,
        factor=result.factor * root,
        last_factor=result.last_factor * root,
        losses=result.losses * unit,
        held_out_losses=None if held is None else held * unit,
    )


def _check(
    measurements: Measurements,
    targets: Tensor,
    rank: int,
    init_scale: float,
    max_steps: int,
    tol: float,
    init: str,
    smoothing: float,
    batch_size: int | None,
) -> None:
    d, m = measurements.order, measurements.num_measurements
    dtype, device = measurements.dtype, measurements.device
    if targets.ndim < 1 or targets.shape[-1] != m or targets.dtype != dtype or targets.device != device:
        raise ShapeError(
            f"recover_psd: expected targets (..., {m}) {dtype} on {device}, "
            f"got {tuple(targets.shape)} {targets.dtype} on {targets.device}"
        )
    if not bool(torch.isfinite(targets).all()):
        raise ArgumentError("recover_psd: targets have NaN or Inf; leave these measurements out")
    check_count("recover_psd", "rank", rank)
    if rank > d:
        raise ArgumentError(f"recover_psd: expected rank <= d = {d}, got {rank}; more columns add nothing")
    if not (math.isfinite(init_scale) and init_scale > 0):
        raise ArgumentError(
            f"recover_psd: expected a finite init_scale > 0, got {init_scale}; U = 0 is a fixed point of the iteration"
        )
    least = torch.finfo(dtype).tiny ** 0.5
    if init_scale < least:
        raise ArgumentError(
            f"recover_psd: init_scale {init_scale:g} is lost in {dtype}, which rounds its square to zero; take "
            f"{least:.1g} or more"
        )
    check_count("recover_psd", "max_steps", max_steps)
    for name, value in (("tol", tol), ("smoothing", smoothing)):
        if not (math.isfinite(value) and value >= 0):
            raise ArgumentError(f"recover_psd: expected a finite {name} >= 0, got {value}")
    if init not in ("spectral", "random"):
        raise ArgumentError(f"recover_psd: expected init 'spectral' or 'random', got {init!r}")
    if batch_size is not None:
        check_count("recover_psd", "batch_size", batch_size)


def _check_holdout(holdout: Tensor, measurements: Measurements) -> None:
    m = measurements.num_measurements
    if holdout.dtype != torch.bool or holdout.shape != (m,) or holdout.device != measurements.device:
        raise ShapeError(f"recover_psd: expected holdout of {m} bools, got {tuple(holdout.shape)} {holdout.dtype}")
    if not 0 < int(holdout.sum()) < m:
        raise ArgumentError(f"recover_psd: holdout keeps {int(holdout.sum())} of {m}; both parts must have some")


def _check_resume(resume: RecoveryResult, shape: tuple[int, ...], holds_out: bool) -> None:
    if tuple(resume.last_factor.shape) != shape or (resume.held_out_losses is not None) != holds_out:
        raise ShapeError(
            f"recover_psd: resume has a factor of shape {tuple(resume.last_factor.shape)}, expected {shape}, "
            "and a hold-out exactly if this call has one"
        )
