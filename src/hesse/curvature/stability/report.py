"""Can SGD with this learning rate and batch size stay at this minimum?   Shapes: N samples, C outputs, P parameters."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hesse.curvature.stability.coordinates import RangeCoordinates, batch_noise_factor, check_step, range_coordinates
from hesse.curvature.stability.linearise import Linearisation, LinearisedLoss, linearise
from hesse.curvature.stability.lyapunov import LyapunovExponent, lyapunov_exponent
from hesse.curvature.stability.radius import second_moment_radius
from hesse.curvature.stability.second_moment import stationary_moment
from hesse.curvature.stability.thresholds import (
    LearningRateBracket,
    learning_rate_bracket,
    loss_scaled_margin,
    max_stable_learning_rate,
    min_stable_batch_size,
)

__all__ = ["StabilityReport", "non_uniformity", "stability_report"]

_INTERPOLATES = 1e-2  # residual over spread of the targets above which the linear theory is no longer the whole story
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class StabilityReport:
    """What linearised SGD does at a minimum; ``print`` it for a verdict with its assumptions."""

    lambda_max: float  # λ₁ of H
    trace: float  # Tr H, exact
    frobenius: float  # ‖H‖_F
    nonuniformity: float  # s = λ_max((1/N) Σ H_i² - H²)^{1/2}; s <= 1/(η √f) is necessary for one_step <= 1 only
    alignment: float  # μ = Tr(ΣH) / (2 L ‖H‖_F²); NaN where the loss is zero
    radius: float  # of the second moment a step, exact for independent batches
    lyapunov: LyapunovExponent  # nats a step of a typical run
    stable_gd: bool  # full batch: η λ₁ <= 2 (1 + β)
    stable_sgd: bool  # mean square: radius <= 1
    margin: float  # η* / η - 1, by how much the learning rate can grow; negative: unstable
    assumptions: tuple[str, ...]
    interpolation_residual: float
    lr: float
    batch_size: int
    momentum: float
    num_samples: int
    max_lr: float  # η*
    min_batch_size: int | None  # None: not even the full batch is stable
    bracket: LearningRateBracket  # without momentum
    one_step: float  # λ_max(T(I)), at most 1: the mean square cannot grow in any step; without momentum
    frobenius_bound: float  # (1/η) (f μ)^{-1/2}: ‖H‖_F is below where the loss stays bounded, if μ is typical; or NaN
    loss_scaled_margin: float  # >= 0: stable under noise of covariance (2L/B) H
    noise_floor: float  # loss that gradient noise at the minimum adds; infinite if unstable, NaN with momentum
    loss: float
    layer_traces: Mapping[str, float]  # they sum up to the trace

    def __str__(self) -> str:
        eta = self.lr
        fate = (
            "leaves"
            if self.lyapunov.value > 2 * self.lyapunov.standard_error
            else ("stays" if self.lyapunov.value < -2 * self.lyapunov.standard_error else "undecided")
        )
        rows = [
            ("gradient descent", f"η λ₁ = {eta * self.lambda_max:.4g}", _word(self.stable_gd)),
            ("SGD, mean square", f"radius {self.radius:.6g}, η* = {self.max_lr:.4g}", _word(self.stable_sgd)),
            ("SGD, a typical run", f"exponent {self.lyapunov.value:.3g} ± {self.lyapunov.standard_error:.1g}", fate),
            ("trace", f"η Tr H = {eta * self.trace:.4g}", "at most 2 is necessary for B = C = 1 only"),
            ("norms alone", f"{self.bracket.sufficient:.4g} <= η* <= {self.bracket.upper:.4g}", "bracket, β = 0"),
            ("loss-scaled noise", f"margin {self.loss_scaled_margin:.3g}", "a model, negative: unstable"),
            ("smallest batch", "none" if self.min_batch_size is None else str(self.min_batch_size), "mean square"),
        ]
        head = f"learning rate {eta:g}, batch {self.batch_size} of {self.num_samples}, momentum {self.momentum:g}"
        lines = [f"  {name:<20}{number:<34}{verdict}" for name, number, verdict in rows]
        return "\n".join([head, *lines, *(f"  assumes: {one}" for one in self.assumptions)])


def stability_report(
    module: nn.Module,
    data: Any,
    lr: float,
    batch_size: int,
    *,
    loss: LinearisedLoss = "mse",
    momentum: float = 0.0,
    replacement: bool = False,
    preconditioner: Mapping[str, Tensor] | None = None,
    lyapunov_steps: int = 5000,
    chunk_size: int | None = None,
    max_gib: float = 8.0,
    generator: Generator | None = None,
) -> StabilityReport:
    """Judge a minimum: is it stable for gradient descent, for SGD in mean square, for a typical run?

    Parameters
    ----------
    module : nn.Module
        At the minimum. See `linearise`.
    data : (inputs, targets), or an iterable of such pairs
        All the samples that SGD draws from.
    lr : float
        η >= 0, of the loss named below.
    batch_size : int
        B.
    loss : {"mse", "half_mse", "cross_entropy"}, default "mse"
        "mse" is torch's; "half_mse" is (1/2N) Σ ‖f - y‖². For cross-entropy there is no minimum without residuals, and
        the verdict is a heuristic about the Gauss-Newton matrix.
    momentum : float, default 0.0
        β in [0, 1), of torch's SGD.
    replacement : bool, default False
        Whether samples are drawn into a batch with replacement.
    preconditioner : mapping of str to Tensor, optional
        D, if gradients are divided by it, as Adam does; see `linearise`.
    lyapunov_steps : int, default 5000
        Steps of the runs behind the exponent.
    chunk_size : int, optional
        Samples a pass. Default: all.
    max_gib : float, default 8.0
        Refuse what would need more memory.
    generator : torch.Generator, optional
        Source of the batches behind the exponent. Default: torch's global generator.

    Returns
    -------
    StabilityReport
        Its ``assumptions`` say which notion each verdict belongs to.

    Raises
    ------
    ArgumentError, ArgumentTypeError, ShapeError, MemoryLimitError
        As `linearise` and `second_moment_radius` do.

    Warns
    -----
    UserWarning
        If the residuals are above a hundredth of the targets' spread: train further, or read the verdict as heuristic.

    Notes
    -----
    C backward passes over the data, O((N C)² P) for the Gram matrix, O(N C R²) a product with T.

    References
    ----------
    L. Wu, C. Ma, W. E (2018), NeurIPS. L. Wu, M. Wang, W. J. Su (2022), NeurIPS, arXiv 2207.02628.
    L. Wu, W. J. Su (2023), ICML, arXiv 2305.17490.
    """
    check_step("stability_report", lr, momentum)
    at = linearise(module, data, loss, preconditioner=preconditioner, chunk_size=chunk_size, max_gib=max_gib)
    samples = len(at.features)
    f = batch_noise_factor(samples, batch_size, replacement=replacement)
    if at.interpolation_residual > _INTERPOLATES:
        warnings.warn(
            f"stability_report: residuals are {at.interpolation_residual:.2g} of the targets' spread; the linear "
            "theory is about minima without residuals: train further, or read the verdict as a heuristic",
            UserWarning,
            stacklevel=2,
        )
    coordinates = range_coordinates(at.features)
    options: dict[str, Any] = {"momentum": momentum, "replacement": replacement}
    radius = second_moment_radius(coordinates, lr, batch_size, **options).value
    max_lr = max_stable_learning_rate(coordinates, batch_size, **options).value
    values = coordinates.eigenvalues
    largest = float(values[0]) if coordinates.rank else 0.0
    frobenius = float(torch.linalg.vector_norm(values))
    covariance = _gradient_covariance(at, coordinates)
    alignment = _alignment(covariance, values, at.loss)
    stable = radius <= 1 + _ROUNDING
    spread = non_uniformity(coordinates)
    return StabilityReport(
        lambda_max=largest,
        trace=float(at.features.to(torch.float64).square().sum()) / samples,
        frobenius=frobenius,
        nonuniformity=float(torch.linalg.eigvalsh(spread)[-1].clamp_min(0).sqrt()) if coordinates.rank else 0.0,
        alignment=alignment,
        radius=radius,
        lyapunov=lyapunov_exponent(
            coordinates, lr, batch_size, num_steps=lyapunov_steps, generator=generator, **options
        ),
        stable_gd=lr * largest <= 2 * (1 + momentum) * (1 + _ROUNDING),
        stable_sgd=stable,
        margin=max_lr / lr - 1 if lr > 0 else math.inf,
        assumptions=_assumptions(at, loss, batch_size, replacement, preconditioner is not None),
        interpolation_residual=at.interpolation_residual,
        lr=lr,
        batch_size=batch_size,
        momentum=momentum,
        num_samples=samples,
        max_lr=max_lr,
        min_batch_size=min_stable_batch_size(coordinates, lr, **options),
        bracket=learning_rate_bracket(coordinates, batch_size, replacement=replacement),
        one_step=_one_step(coordinates, spread, lr, f),
        frobenius_bound=_loss_bound(f, alignment, lr),
        loss_scaled_margin=loss_scaled_margin(values, lr, batch_size),
        noise_floor=_noise_floor(coordinates, covariance, lr, f, momentum, radius),
        loss=at.loss,
        layer_traces={
            name: float(at.features[:, :, at.layout.slice(name)].to(torch.float64).square().sum()) / samples
            for name in at.layout.names
        },
    )


def non_uniformity(coordinates: RangeCoordinates) -> Tensor:
    """(1/N) Σ H_i² - H², by which the samples' Hessians differ, in the eigenbasis of H.

    Parameters
    ----------
    coordinates : RangeCoordinates
        The samples.

    Returns
    -------
    Tensor of float64, shape (R, R)
        Positive semi-definite; the root of its largest eigenvalue is the non-uniformity s of Wu, Ma and E (2018).
    """
    return coordinates.gradient_noise(torch.eye(coordinates.rank, dtype=torch.float64, device=coordinates.rows.device))


def _gradient_covariance(at: Linearisation, coordinates: RangeCoordinates) -> Tensor:
    gradients = (coordinates.rows * at.residuals.to(torch.float64).unsqueeze(2)).sum(1)  # (N, R)
    centred = gradients - gradients.mean(0)
    return centred.mT @ centred / len(gradients)


def _alignment(covariance: Tensor, values: Tensor, loss: float) -> float:
    norm = 2 * loss * float(values.square().sum())
    return float((covariance.diagonal() * values).sum()) / norm if norm > 0 else math.nan


def _loss_bound(f: float, alignment: float, lr: float) -> float:
    if lr == 0 or f == 0:
        return math.inf
    return 1 / (lr * (f * alignment) ** 0.5) if alignment > 0 else math.nan


def _one_step(coordinates: RangeCoordinates, spread: Tensor, lr: float, f: float) -> float:
    if coordinates.rank == 0:
        return 0.0
    step = torch.diag((1 - lr * coordinates.eigenvalues).square()) + lr**2 * f * spread
    return float(torch.linalg.eigvalsh(step)[-1])


def _noise_floor(
    coordinates: RangeCoordinates, covariance: Tensor, lr: float, f: float, momentum: float, radius: float
) -> float:
    if momentum > 0:
        return math.nan
    if lr == 0 or f == 0 or coordinates.rank == 0 or float(covariance.abs().max()) == 0:
        return 0.0
    if radius >= 1:
        return math.inf
    moment = stationary_moment(coordinates, lr, f, covariance)
    return float((coordinates.eigenvalues * moment.diagonal()).sum()) / 2


def _assumptions(
    at: Linearisation, loss: LinearisedLoss, batch_size: int, replacement: bool, preconditioned: bool
) -> tuple[str, ...]:
    drawn = "with" if replacement else "without"
    found = [
        "dynamics linearised at these parameters, H the Gauss-Newton matrix of the loss " + repr(loss),
        f"batches independent of each other, drawn {drawn} replacement; passes over a shuffled set are not",
        "mean-square verdict: exact for these dynamics, radius of the second moment on range(H)",
    ]
    outputs = at.features.shape[1]
    if batch_size != 1 or outputs != 1:
        found.append(
            f"Tr(H) <= 2/η is a theorem for batches of one and one output; for B = {batch_size} and {outputs} outputs "
            "the bound N of the bracket takes its place"
        )
    if at.interpolation_residual > _INTERPOLATES or loss == "cross_entropy":
        found.append(f"heuristic: residuals are not zero ({at.interpolation_residual:.2g}), H is not the whole Hessian")
    if preconditioned:
        found.append("the preconditioner is held fixed; all numbers are of D^{-1/2} H D^{-1/2}")
    return tuple(found)


def _word(stable: bool) -> str:
    return "stable" if stable else "unstable"
