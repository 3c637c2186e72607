"""Momentum: when do samples shake heavy-ball dynamics apart?

    θ_{t+1} = θ_t - η v_{t+1},  v_{t+1} = β v_t + (1/B) Σ_{i in batch} a_i a_iᵀ (θ_t - θ*)

With the full batch every eigenvector of H runs by itself, by a 2 x 2 matrix F_j; the noise of batches couples them.
Stability is a question of feedback: displacement excites noise, noise displaces.

Shapes: R the rank of H.
"""

import math
from typing import cast

import scipy.optimize
import torch
from torch import Tensor

from hesse.curvature.stability.coordinates import RangeCoordinates
from hesse.curvature.stability.second_moment import largest_eigenvalue
from hesse.errors import ConvergenceError

__all__ = ["full_batch_radius", "heavy_ball_radius", "noise_gain"]


def full_batch_radius(eigenvalues: Tensor, lr: float, momentum: float) -> float:
    """Compute the largest |eigenvalue| of the F_j: below one iff η λ₁ < 2 (1 + β).

    Parameters
    ----------
    eigenvalues : Tensor, shape (R,)
        λ, of H.
    lr : float
        η.
    momentum : float
        β.

    Returns
    -------
    float
        The factor by which ‖θ_t - θ*‖ changes a step of gradient descent with momentum, in the long run.
    """
    return float(torch.linalg.eigvals(_companions(eigenvalues, lr, momentum)).abs().max())


def noise_gain(
    coordinates: RangeCoordinates,
    lr: float,
    noise_factor: float,
    momentum: float,
    *,
    scale: float = 1.0,
    tol: float = 1e-9,
    max_steps: int = 2000,
) -> float:
    """Compute the factor by which a covariance of gradient noise comes back, through the displacement it causes.

    Noise W enters at every step; summed over time, the full-batch dynamics turn it into the displacement 𝓖 ∘ W (an
    entry for every pair of eigenvectors), and that excites the noise η² f E[(H_i - H) 𝓖∘W (H_i - H)]. The gain is the
    spectral radius of this round trip. Where the full batch is stable, SGD is so iff the gain at ``scale=1`` is at most
    one. It is proportional to f.

    Parameters
    ----------
    coordinates : RangeCoordinates
        The samples.
    lr : float
        η > 0.
    noise_factor : float
        f, of `batch_noise_factor`.
    momentum : float
        β in [0, 1).
    scale : float, default 1.0
        s, above the square of `full_batch_radius`: moments are divided by s every step. The gain falls with s, and is
        one where s is the second-moment radius of the whole.
    tol : float, default 1e-9
        Of the residual, relative.
    max_steps : int, default 2000
        Round trips.

    Returns
    -------
    float
        The gain.

    Raises
    ------
    ConvergenceError
        If that takes more steps.
    """
    values, r = coordinates.eigenvalues, coordinates.rank
    companion = _companions(values, lr, momentum)
    # moments of (θ_t, θ_{t-1}) of a pair of modes obey m ← (F_j ⊗ F_k) m / s + w e₁; their sum solves a 4 x 4 system
    pairs = torch.einsum("jab,kcd->jkacbd", companion, companion).reshape(r, r, 4, 4)
    system = torch.eye(4, dtype=values.dtype, device=values.device) - pairs / scale
    first = values.new_tensor([[1.0], [0], [0], [0]]).expand(r, r, 4, 1)
    response = torch.linalg.solve(system, first)[..., 0, 0] * (lr**2 * noise_factor / scale)

    eye = torch.eye(r, dtype=values.dtype, device=values.device)
    spread, whole = coordinates.gradient_noise(eye), coordinates.sample_term(eye)
    rounding = 16 * r * torch.finfo(values.dtype).eps * float(torch.linalg.matrix_norm(whole))
    if float(torch.linalg.matrix_norm(spread)) <= rounding:
        return 0.0  # all samples pull alike, as one does: what is left of their difference is rounding
    # 𝓖 > 0 while the full batch is stable: with p, q the eigenvalues of F_j, F_k it is (1 - β²/s²) / Π (1 - pq/s) times
    # η²f/s. So the round trip is similar to a self-adjoint map, and as covariances map to covariances, the radius is
    # its largest eigenvalue
    root = response.sqrt()
    found, _ = largest_eigenvalue(
        lambda X: root * coordinates.gradient_noise(root * X), coordinates, tol=tol, max_steps=max_steps
    )
    if not found.converged:
        raise ConvergenceError(
            f"noise_gain: residual {found.residual:.1e} after {max_steps} steps; raise max_steps or tol"
        )
    return found.value


def heavy_ball_radius(
    coordinates: RangeCoordinates, lr: float, noise_factor: float, momentum: float, *, tol: float, max_steps: int
) -> tuple[float, int]:
    """Find the second-moment radius of SGD with momentum: the scale s at which the noise just keeps itself up.

    Parameters
    ----------
    coordinates : RangeCoordinates
        The samples.
    lr : float
        η > 0.
    noise_factor : float
        f.
    momentum : float
        β in (0, 1).
    tol, max_steps : float, int
        As in `noise_gain`; ``tol`` is also the relative error allowed of s.

    Returns
    -------
    radius : float
        Spectral radius of the map of the second moments of (θ_t, θ_{t-1}), of order 2 R.
    num_gains : int
        Gains that were computed.
    """
    alone = full_batch_radius(coordinates.eigenvalues, lr, momentum) ** 2
    seen: list[float] = []

    def log_gain(log_scale: float) -> float:
        gain = noise_gain(
            coordinates, lr, noise_factor, momentum, scale=math.exp(log_scale), tol=tol, max_steps=max_steps
        )
        seen.append(gain)
        return math.log(max(gain, math.ulp(0.0)))

    low = math.log(alone) + 1e-7  # at the full-batch radius itself the sum over time diverges
    if noise_factor == 0 or log_gain(low) <= 0:
        return alone, len(seen)
    high = max(low, 0.0) + 0.5
    while log_gain(high) > 0:
        high += 2 * (high - low)
    found = cast(float, scipy.optimize.brentq(log_gain, low, high, xtol=tol))
    return math.exp(found), len(seen)


def _companions(eigenvalues: Tensor, lr: float, momentum: float) -> Tensor:
    # (θ_t, θ_{t-1}) -> (θ_{t+1}, θ_t), one matrix an eigenvalue
    matrices = eigenvalues.new_zeros(len(eigenvalues), 2, 2)
    matrices[:, 0, 0] = 1 + momentum - lr * eigenvalues
    matrices[:, 0, 1] = -momentum
    matrices[:, 1, 0] = 1
    return matrices
