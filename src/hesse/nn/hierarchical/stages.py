"""The two convex stages: ridge regression on the frozen features, by steps or in closed form, then on the bumps.

Shapes: N points, M features, L penalties.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg import as_linear_operator, cg, safe_cholesky

__all__ = ["RidgePath", "outer_features", "ridge_path", "stage1_cg", "stage1_gd", "stage1_ridge", "stage2"]


@dataclass(frozen=True, slots=True, eq=False)
class RidgePath:
    """Ridge solutions for a grid of penalties, judged by leaving one point out at a time."""

    lams: Tensor  # (L,), falling
    errors: Tensor  # (L,): mean squared leave-one-out error
    best: int
    weights: Tensor  # (M,), of the best
    left_out: Tensor  # (N,): predictions of the best, each made without its own point

    @property
    def lam(self) -> float:
        """The best penalty."""
        return float(self.lams[self.best])


def _check(H: Tensor, y: Tensor) -> None:
    if H.ndim != 2 or y.shape != H.shape[:1]:
        raise ShapeError(f"H: expected shapes (N, M) and (N,), got {tuple(H.shape)} and {tuple(y.shape)}")


def stage1_ridge(H: Tensor, y: Tensor, lam: float) -> Tensor:
    """Solve w = (Hᵀ H / N + λ I)⁻¹ Hᵀ y / N: where the first stage's gradient descent ends.

    Parameters
    ----------
    H : Tensor, shape (N, M)
        h0 of the points.
    y : Tensor, shape (N,)
        Centred targets.
    lam : float
        λ > 0.

    Returns
    -------
    Tensor, shape (M,)
        By Cholesky of the smaller of the two Gram matrices: O(N M min(N, M)).

    Raises
    ------
    ArgumentError
        If λ is not positive.
    ShapeError
        If H and y do not match.
    """
    _check(H, y)
    if not lam > 0:
        raise ArgumentError(f"lam: expected > 0, got {lam}")
    n, m = H.shape
    gram = H.T @ H / n if m <= n else H @ H.T / n
    lower = safe_cholesky(gram + lam * torch.eye(min(n, m), dtype=H.dtype, device=H.device)).L
    right = H.T @ y / n if m <= n else y / n
    solved = torch.cholesky_solve(right[:, None], lower)[:, 0]
    return solved if m <= n else H.T @ solved


def stage1_gd(H: Tensor, y: Tensor, lam: float, *, step_size: float | None = None, max_steps: int = 1000) -> Tensor:
    """Run w <- w - η (Hᵀ(H w - y) / N + λ w) from zero: gradient descent on all neurons of the first stage at once.

    At the start every neuron is in its linear part, so that neuron i has the weights a_i w with one common w. In the
    network's own terms η = 2 η_1 / m_1 and λ = m_1 ξ_1 / 2.

    Parameters
    ----------
    H : Tensor, shape (N, M)
        h0 of the points.
    y : Tensor, shape (N,)
        Centred targets.
    lam : float
        λ >= 0.
    step_size : float, optional
        η. Default: 1 over the largest eigenvalue of Hᵀ H / N plus λ.
    max_steps : int, default 1000
        Steps. One large step only works with many more samples than d^k; many steps take out what the features share.

    Returns
    -------
    Tensor, shape (M,)
        w.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    ShapeError
        If H and y do not match.
    """
    _check(H, y)
    if lam < 0 or max_steps < 1:
        raise ArgumentError(f"stage1_gd: expected lam >= 0 and max_steps >= 1, got {lam}, {max_steps}")
    n = len(H)
    if step_size is None:
        step_size = 1 / (float(torch.linalg.matrix_norm(H, 2)) ** 2 / n + lam)
    w, right = H.new_zeros(H.shape[1]), H.T @ y / n
    for _ in range(max_steps):
        w = w - step_size * (H.T @ (H @ w) / n + lam * w - right)
    return w


def stage1_cg(H: Tensor, y: Tensor, lam: float, *, rtol: float = 1e-8) -> Tensor:
    """Solve the same system by conjugate gradients, without a Gram matrix: for very many features.

    Parameters
    ----------
    H : Tensor, shape (N, M)
        h0 of the points.
    y : Tensor, shape (N,)
        Centred targets.
    lam : float
        λ > 0.
    rtol : float, default 1e-8
        Relative residual.

    Returns
    -------
    Tensor, shape (M,)
        w.
    """
    _check(H, y)
    n, m = H.shape
    gram = as_linear_operator(
        lambda v: H.T @ (H @ v) / n + lam * v,
        shape=(m, m),
        dtype=H.dtype,
        device=H.device,
        is_symmetric=True,
        is_psd=True,
    )
    return cg(gram, H.T @ y / n, rtol=rtol).x


def ridge_path(H: Tensor, y: Tensor, lams: Tensor) -> RidgePath:
    """Solve for every penalty with one eigendecomposition, and pick by the exact leave-one-out error.

    With S = H (Hᵀ H + N λ I)⁻¹ Hᵀ, the prediction of point i without point i misses by (y - S y)_i / (1 - S_ii).

    Parameters
    ----------
    H : Tensor, shape (N, M)
        Features.
    y : Tensor, shape (N,)
        Centred targets.
    lams : Tensor, shape (L,)
        Penalties, positive, falling.

    Returns
    -------
    RidgePath
        O(min(N, M)³ + N M min(N, M) + N min(N, M) L).

    Raises
    ------
    ArgumentError
        If a penalty is not positive.
    ShapeError
        If H and y do not match.
    """
    _check(H, y)
    if not bool((lams > 0).all()):
        raise ArgumentError("lams: expected penalties > 0")
    n, m = H.shape
    values, Q = torch.linalg.eigh(H.T @ H / n if m <= n else H @ H.T / n)
    values = values.clamp(min=0)
    rotated = H @ Q if m <= n else Q * values.sqrt() * n**0.5  # (N, min(N, M)), columns of norm √(N λ_j)
    shrink = 1 / (values[:, None] + lams)  # (min, L)
    moments = rotated.T @ y / n
    fitted = rotated @ (shrink * moments[:, None])
    leverage = (rotated.square() / n) @ shrink
    missed = (y[:, None] - fitted) / (1 - leverage).clamp(min=1e-12)
    errors = missed.square().mean(0)
    best = int(errors.argmin())
    coefficients = shrink[:, best]
    weights = Q @ (coefficients * moments) if m <= n else H.T @ (Q @ (coefficients * (Q.T @ y))) / n
    return RidgePath(lams, errors, best, weights, y - missed[:, best])


def outer_features(q: Tensor, signs: Tensor, biases: Tensor) -> Tensor:
    """ReLU(±q + b_i): what the second stage combines.

    Parameters
    ----------
    q : Tensor, shape (N,)
        The feature found, standardised.
    signs, biases : Tensor, shape (m_1,)
        Of every outer neuron.

    Returns
    -------
    Tensor, shape (N, m_1)
        Differentiable.
    """
    return relu(q[:, None] * signs + biases)


def stage2(q: Tensor, y: Tensor, signs: Tensor, biases: Tensor, lams: Tensor) -> tuple[Tensor, Tensor, RidgePath]:
    """Fit y by ridge regression on the bumps ReLU(±q + b_i): a function g of one variable.

    Parameters
    ----------
    q : Tensor, shape (N,)
        The feature, standardised.
    y : Tensor, shape (N,)
        Targets.
    signs, biases : Tensor, shape (m_1,)
        Of every outer neuron.
    lams : Tensor, shape (L,)
        Penalties to choose from, falling.

    Returns
    -------
    a : Tensor, shape (m_1,)
        Outer weights.
    shift : Tensor, shape ()
        To be added, so that means agree.
    path : RidgePath
        Errors of every penalty.
    """
    features = outer_features(q, signs, biases)
    means = features.mean(0)
    path = ridge_path(features - means, y - y.mean(), lams)
    return path.weights, y.mean() - means @ path.weights, path
