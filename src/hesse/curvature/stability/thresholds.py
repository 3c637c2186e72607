"""The largest learning rate and the smallest batch at which SGD stays, and bounds that need no iteration.

T = I - η 𝓐 + η² 𝓑 with 𝓐(M) = HM + MH and 𝓑(M) = f (1/N) Σ a_i (a_iᵀ M a_i) a_iᵀ + (1 - f) HMH, both self-adjoint, and
𝓐 is diagonal in the eigenbasis of H. So T <= I iff η 𝓑 <= 𝓐, and the threshold is one eigenvalue, no bisection:

    1/η* = λ_max(𝓐^{-1/2} 𝓑 𝓐^{-1/2})

Shapes: N samples, C outputs, P parameters, R the rank of H.
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import scipy.optimize
import torch
from torch import Generator, Tensor

from hesse.curvature.stability.coordinates import (
    Features,
    RangeCoordinates,
    batch_noise_factor,
    check_step,
    range_coordinates,
)
from hesse.curvature.stability.heavy_ball import noise_gain
from hesse.curvature.stability.low_rank import as_operator, compress
from hesse.curvature.stability.radius import Noise
from hesse.curvature.stability.second_moment import largest_eigenvalue
from hesse.errors import ArgumentError, ArgumentTypeError, ConvergenceError, ShapeError
from hesse.linalg.operator import LinearOperator

__all__ = [
    "LearningRateBracket",
    "StableLearningRate",
    "learning_rate_bracket",
    "loss_scaled_margin",
    "max_stable_learning_rate",
    "min_stable_batch_size",
]


_EDGE = 1e-9  # at a threshold itself rounding must not decide


@dataclass(frozen=True, slots=True)
class LearningRateBracket:
    """S <= η* <= min(N, 2/λ₁), without an eigenvalue beyond λ₁; plain SGD, any batch size."""

    sufficient: float  # S: at or below, the second moment cannot grow
    necessary: float  # N: above, it grows along the projector on range(H)
    gradient_descent: float  # 2 / λ₁
    trace_bound: float  # 2 C / (f Tr H), weaker than N; at B = C = 1 the theorem Tr(H) <= 2/η

    @property
    def upper(self) -> float:
        """The smaller of the two necessary bounds."""
        return min(self.necessary, self.gradient_descent)


@dataclass(frozen=True, slots=True)
class StableLearningRate:
    """η*, where the second-moment radius reaches one."""

    value: float
    converged: bool
    num_steps: int  # products, refinements or evaluations
    residual: float  # of 1/η* as an eigenvalue, relative

    def __float__(self) -> float:
        return self.value


def learning_rate_bracket(features: Features, batch_size: int, *, replacement: bool = False) -> LearningRateBracket:
    """Bound the largest stable learning rate from both sides, from norms of the samples' gradients.

        S = 2 / [(1 - f) λ₁ + f max_i λ_max(a_iᵀ a_i)]
        N = 2 Tr(H) / [(1 - f) ‖H‖_F² + f mean_i ‖a_iᵀ a_i‖_F²]

    N tests T on M = the projector on range(H). S follows from tr((a_iᵀMa_i)²) <= λ_max(a_iᵀa_i) tr(a_iᵀM²a_i). By
    Jensen's and Cauchy's inequalities N is at most 2 C / (f Tr H): for one output and batches of one Tr(H) <= 2/η, for
    C outputs C times that.

    Parameters
    ----------
    features : Tensor, shape (N, P) or (N, C, P), or RangeCoordinates
        Gradients of the outputs, as `second_moment_radius` takes them.
    batch_size : int
        B.
    replacement : bool, default False
        Whether samples are drawn into a batch with replacement.

    Returns
    -------
    LearningRateBracket
        Exact bounds; infinite where H = 0.

    Raises
    ------
    ArgumentError
        If ``batch_size`` is out of range.
    """
    coordinates = range_coordinates(features)
    f = batch_noise_factor(coordinates.num_samples, batch_size, replacement=replacement)
    values = coordinates.eigenvalues
    if coordinates.rank == 0:
        return LearningRateBracket(math.inf, math.inf, math.inf, math.inf)
    grams = coordinates.sample_grams()
    largest, trace = float(values[0]), float(values.sum())
    heaviest = float(torch.linalg.eigvalsh(grams)[:, -1].max())
    mean_square = float(grams.square().sum((1, 2)).mean())
    return LearningRateBracket(
        2 / ((1 - f) * largest + f * heaviest),
        2 * trace / ((1 - f) * float(values.square().sum()) + f * mean_square),
        2 / largest,
        2 * coordinates.rows.shape[1] / (f * trace) if f > 0 else math.inf,
    )


def max_stable_learning_rate(
    features: Features | LinearOperator,
    batch_size: int,
    *,
    momentum: float = 0.0,
    replacement: bool = False,
    noise: Noise = "exact",
    method: Literal["gram", "low_rank"] = "gram",
    num_outputs: int = 1,
    rank: int = 48,
    tol: float | None = None,
    max_steps: int | None = None,
    generator: Generator | None = None,
) -> StableLearningRate:
    """Compute the largest η at which the second moment of linearised SGD stays bounded.

    Parameters
    ----------
    features : Tensor, shape (N, P) or (N, C, P), RangeCoordinates, or LinearOperator, shape (N C, P)
        Gradients of the outputs, as `second_moment_radius` takes them.
    batch_size : int
        B. At B = N without replacement only 2/λ₁ is left.
    momentum : float, default 0.0
        β in [0, 1), of torch's SGD. Above 0 the smallest crossing on a grid of 48 learning rates is refined; that
        there is only one is known for β = 0.
    replacement : bool, default False
        Whether samples are drawn into a batch with replacement.
    noise : {"exact", "loss_scaled"}, default "exact"
        "loss_scaled" solves (1/B) Σ_j η λ_j / (2 - η λ_j) = 1.
    method : {"gram", "low_rank"}, default "gram"
        "low_rank" gives an upper bound on η*, from products with the features alone.
    num_outputs, rank, generator
        For "low_rank"; see `second_moment_radius`.
    tol : float, optional
        Relative: of the eigenvalue's residual, default 1e-9; for "low_rank" of the change, default 1e-6.
    max_steps : int, optional
        Products, default 2000; for "low_rank" refinements, default 50.

    Returns
    -------
    StableLearningRate
        In the units of the learning rate; infinite where H = 0.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or options do not go together.
    ArgumentTypeError
        If an operator comes with another method than "low_rank".

    Examples
    --------
    >>> float(max_stable_learning_rate(torch.tensor([[1.0], [3.0]]), 1))  # 2 E a² / E a⁴ = 10 / 41
    0.24390243902439...
    """
    call = "max_stable_learning_rate"
    check_step(call, 0.0, momentum)
    if noise not in ("exact", "loss_scaled") or method not in ("gram", "low_rank"):
        raise ArgumentError(f"{call}: unknown noise {noise!r} or method {method!r}")
    if (momentum > 0) + (noise != "exact") + (method != "gram") > 1:
        raise ArgumentError(f"{call}: momentum, noise='loss_scaled' and method='low_rank' do not go together")

    def factor(num_samples: int) -> float:
        return batch_noise_factor(num_samples, batch_size, replacement=replacement)

    if method == "low_rank":
        operator, outputs = as_operator(call, features, num_outputs)

        def solve(coordinates: RangeCoordinates) -> tuple[float, Tensor, float]:
            rate, X = _threshold(coordinates, factor(coordinates.num_samples), 1e-9, 2000)
            return rate.value, X, rate.value

        found = compress(
            operator,
            outputs,
            factor,
            solve,
            rank=rank,
            tol=1e-6 if tol is None else tol,
            max_steps=50 if max_steps is None else max_steps,
            generator=generator,
        )
        return StableLearningRate(found.value, found.converged, found.num_steps, found.change)
    if isinstance(features, LinearOperator):
        raise ArgumentTypeError(f"{call}: an operator of features needs method='low_rank'")
    precision, limit = 1e-9 if tol is None else tol, 2000 if max_steps is None else max_steps
    coordinates = range_coordinates(features)
    f = factor(coordinates.num_samples)
    if coordinates.rank > 0 and noise == "loss_scaled":
        return _loss_scaled_rate(coordinates.eigenvalues, batch_size)
    if coordinates.rank > 0 and momentum > 0:
        return _momentum_rate(coordinates, f, momentum, precision, limit)
    return _threshold(coordinates, f, precision, limit)[0]


def min_stable_batch_size(
    features: Features, lr: float, *, momentum: float = 0.0, replacement: bool = False, tol: float = 1e-9
) -> int | None:
    """Compute the smallest batch with which SGD at this learning rate is stable in mean square.

    The noise gain is proportional to f, so that one eigenvalue gives the largest f allowed.

    Parameters
    ----------
    features : Tensor, shape (N, P) or (N, C, P), or RangeCoordinates
        Gradients of the outputs, as `second_moment_radius` takes them.
    lr : float
        η >= 0.
    momentum : float, default 0.0
        β in [0, 1), of torch's SGD.
    replacement : bool, default False
        Whether samples are drawn into a batch with replacement.
    tol : float, default 1e-9
        Relative, of the gain.

    Returns
    -------
    int or None
        B, from 1 to N (with replacement possibly beyond); None where no batch is large enough, because gradient descent
        itself is unstable.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    """
    check_step("min_stable_batch_size", lr, momentum)
    coordinates = range_coordinates(features)
    n = coordinates.num_samples
    if coordinates.rank == 0 or lr == 0:
        return 1
    load = lr * float(coordinates.eigenvalues[0]) / (2 * (1 + momentum))
    if abs(load - 1) <= _EDGE and not replacement:
        return n  # at gradient descent's own threshold any noise is too much
    if load >= 1 - _EDGE:
        return None
    gain = noise_gain(
        coordinates, lr, 1.0, momentum, tol=tol
    )  # with a batch of one, f = 1; so f <= 1 / gain is allowed
    if gain == 0:
        return 1
    least = gain if replacement else n * gain / (gain + n - 1)
    return max(1, math.ceil(least * (1 - _EDGE)))


def loss_scaled_margin(eigenvalues: Tensor, lr: float, batch_size: int) -> float:
    """1 - (1/B) Σ_j η λ_j / (2 - η λ_j): not negative iff SGD is stable under noise of covariance (2L/B) H.

    Parameters
    ----------
    eigenvalues : Tensor, shape (R,)
        λ >= 0, of H; zeros do not matter.
    lr : float
        η >= 0.
    batch_size : int
        B.

    Returns
    -------
    float
        At most 1; minus infinity where η λ₁ >= 2. Where it is not negative, Tr(H) <= 2B/η and ‖H‖_F <= √B/η, because
        x / (2 - x) is at least x/2 and at least x² for 0 <= x < 2. Closed form, exact for this model; that SGD's noise
        is of this kind is an assumption.

    Raises
    ------
    ShapeError
        If the eigenvalues are not a vector.
    ArgumentError
        If one is negative, or another argument out of range.
    """
    call = "loss_scaled_margin"
    check_step(call, lr, 0.0)
    if eigenvalues.ndim != 1:
        raise ShapeError(f"{call}: expected a vector of eigenvalues, got shape {tuple(eigenvalues.shape)}")
    if batch_size < 1:
        raise ArgumentError(f"{call}: expected batch_size >= 1, got {batch_size}")
    if eigenvalues.numel() and float(eigenvalues.min()) < 0:
        raise ArgumentError(f"{call}: H is positive semi-definite, got the eigenvalue {float(eigenvalues.min()):.3g}")
    x = lr * eigenvalues.detach().to(torch.float64)
    if bool((x >= 2).any()):
        return -math.inf
    return 1 - float((x / (2 - x)).sum()) / batch_size


def _threshold(
    coordinates: RangeCoordinates, f: float, tol: float, max_steps: int
) -> tuple[StableLearningRate, Tensor]:
    values = coordinates.eigenvalues
    scale = (values.unsqueeze(1) + values).rsqrt()  # 𝓐^{-1/2}

    def apply(X: Tensor) -> Tensor:
        inner = scale * X
        full_batch = values.unsqueeze(1) * inner * values
        noise = coordinates.gradient_noise(inner) if f > 0 else torch.zeros_like(inner)
        return scale * (full_batch + f * noise)

    found, Y = largest_eigenvalue(apply, coordinates, tol, max_steps)
    if coordinates.rank == 0:
        return StableLearningRate(math.inf, True, 0, 0.0), Y
    rate = StableLearningRate(1 / found.value, found.converged, found.num_steps, found.residual / found.value)
    return rate, scale * Y


def _momentum_rate(
    coordinates: RangeCoordinates, f: float, momentum: float, tol: float, max_steps: int
) -> StableLearningRate:
    top = 2 * (1 + momentum) / float(coordinates.eigenvalues[0])
    if f == 0:
        return StableLearningRate(top, True, 0, 0.0)
    calls = 0

    def log_gain(log_lr: float) -> float:
        nonlocal calls
        calls += 1
        gain = noise_gain(coordinates, math.exp(log_lr), f, momentum, tol=tol, max_steps=max_steps)
        return math.log(max(gain, math.ulp(0.0)))

    high = math.log(top * (1 - 1e-7))
    grid = torch.linspace(math.log(top) - 12, high, 48, dtype=torch.float64).tolist()
    below = grid[0]
    if log_gain(below) > 0:
        raise ConvergenceError("max_stable_learning_rate: not stable even at 6e-6 of gradient descent's bound")
    for point in grid[1:]:
        if log_gain(point) > 0:
            found = cast(float, scipy.optimize.brentq(log_gain, below, point, xtol=tol))
            return StableLearningRate(math.exp(found), True, calls, tol)
        below = point
    return StableLearningRate(top, True, calls, 0.0)


def _loss_scaled_rate(eigenvalues: Tensor, batch_size: int) -> StableLearningRate:
    top = 2 / float(eigenvalues[0])
    # bounds from x / (2 - x) >= x / 2 above, and at the pole below
    low, high = 0.0, min(top * (1 - 1e-15), 2 * batch_size / float(eigenvalues.sum()))
    rate = cast(
        float,
        scipy.optimize.brentq(lambda lr: loss_scaled_margin(eigenvalues, lr, batch_size), low, high, xtol=1e-300),
    )
    return StableLearningRate(rate, True, 0, abs(loss_scaled_margin(eigenvalues, rate, batch_size)))
