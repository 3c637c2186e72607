"""Kalman filter and smoother for latent functions that are seen through Gaussian messages, in logarithmic depth.

Shapes: T times, R latent functions of one prior, m + 1 states each, d = R (m + 1), ... a stack, S times asked for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.gp.funbat.matern import MaternSSM
from hesse.gp.funbat.scan import Elements, prefix_scan

__all__ = ["SmoothedChain", "interpolate", "kalman_smoother"]


@dataclass(frozen=True, slots=True)
class SmoothedChain:
    """The posterior of R latent functions at T times, and what `interpolate` needs to go on from it."""

    mean: Tensor  # (..., T, R)
    covariance: Tensor  # (..., T, R, R)
    log_normalizer: Tensor  # (...)
    times: Tensor  # (T,)
    filtered: tuple[Tensor, Tensor]  # mean (..., T, d) and covariance (..., T, d, d) of the state, given the past
    smoothed: tuple[Tensor, Tensor]  # the same, given everything


def kalman_smoother(ssm: MaternSSM, t: Tensor, precision: Tensor, shift: Tensor) -> SmoothedChain:
    """Condition R independent Matérn processes on messages exp(η_tᵀu_t - ½ u_tᵀΛ_t u_t).

    Exact: with R = 1, Λ_t = 1/σ² and η_t = y_t/σ² this is Gaussian process regression, in O(T) instead of O(T³). The
    updates are in information form, G = (I + Λ H P Hᵀ)⁻¹, so that Λ may be singular or zero (a time without data), and
    covariances in Joseph's form, so that they stay positive semi-definite.

    Filter and smoother are associative scans: some 2 log2 T batched calls of O(T d³) work in all. Use float64; float32
    loses digits where times lie close together.

    Parameters
    ----------
    ssm : MaternSSM
        The prior; parameters of shape (...) for a stack.
    t : Tensor, shape (T,)
        Strictly increasing times, T >= 1.
    precision : Tensor, shape (..., T, R, R)
        Λ, symmetric positive semi-definite.
    shift : Tensor, shape (..., T, R)
        η, in the range of Λ for a message that is a likelihood.

    Returns
    -------
    SmoothedChain
        ``log_normalizer`` is log E exp(Σ_t η_tᵀu_t - ½ u_tᵀΛ_t u_t) under the prior, in nats. All of it differentiable
        in messages, times, length scale and variance.

    Raises
    ------
    ShapeError
        If shapes or dtypes do not fit.
    ArgumentError
        If the times do not increase.

    References
    ----------
    S. Särkkä, Á. F. García-Fernández (2021), IEEE Trans. Autom. Control 66(1), arXiv 1905.13002.
    """
    _check_chain(t, precision, shift)
    rank = shift.shape[-1]
    precision_T, shift_T = precision.movedim(-3, 0), shift.movedim(-2, 0)  # the scan runs along the first axis
    batch = shift_T.shape[1:-1]
    transition_T, noise_T = _transitions(ssm, t.diff(), rank)
    prior = _widen(ssm.stationary(t), rank)
    shape = torch.broadcast_shapes(batch, prior.shape[:-2])
    prior = prior.expand(*shape, *prior.shape[-2:])
    noise_T = torch.cat([prior.unsqueeze(0), _stack(noise_T, prior)])
    transition_T = torch.cat([torch.zeros_like(prior).unsqueeze(0), _stack(transition_T, prior)])
    mean, cov = prefix_scan(_join_filters, _filter_elements(transition_T, noise_T, precision_T, shift_T))[1:3]
    before = torch.zeros_like(mean[:1])
    predicted_mean = _apply(transition_T, torch.cat([before, mean[:-1]]))
    predicted_cov = torch.cat([noise_T[:1], _propagate(transition_T[1:], cov[:-1], noise_T[1:])])
    log_normalizer = _log_normalizer(predicted_mean, predicted_cov, precision_T, shift_T)
    smooth_mean, smooth_cov = _smooth(mean, cov, transition_T, noise_T, predicted_mean, predicted_cov)
    filtered = mean.movedim(0, -2), cov.movedim(0, -3)
    smoothed = smooth_mean.movedim(0, -2), smooth_cov.movedim(0, -3)
    return SmoothedChain(smoothed[0][..., :rank], smoothed[1][..., :rank, :rank], log_normalizer, t, filtered, smoothed)


def interpolate(ssm: MaternSSM, chain: SmoothedChain, t: Tensor) -> tuple[Tensor, Tensor]:
    """Read the posterior at any time: exact between the times of the chain, before and after them.

    The filtered state of the last earlier time is carried to the time asked for and smoothed against the next one.
    Before the first time the stationary law stands in for the filtered state; far from all data both ends return to
    the prior.

    Parameters
    ----------
    ssm : MaternSSM
        The prior that the chain was made with.
    chain : SmoothedChain
        From `kalman_smoother`.
    t : Tensor, shape (S,)
        Any times, in any order.

    Returns
    -------
    tuple of Tensor, shapes (..., S, R) and (..., S, R, R)
        Means and covariances of the R functions.

    Raises
    ------
    ShapeError
        If ``t`` is not a vector of the chain's dtype.
    """
    if t.ndim != 1 or t.dtype != chain.times.dtype:
        raise ShapeError(f"interpolate: expected times (S,) in {chain.times.dtype}, got {tuple(t.shape)} in {t.dtype}")
    rank, last = chain.mean.shape[-1], len(chain.times) - 1
    prior = _widen(ssm.stationary(t), rank)
    mean_T, cov_T = (part.movedim(axis, 0) for part, axis in zip(chain.filtered, (-2, -3), strict=True))
    left = torch.searchsorted(chain.times, t.contiguous(), right=True)  # 0: before the first
    start = torch.where(left > 0, chain.times[(left - 1).clamp(min=0)], t)
    mean_T = torch.cat([torch.zeros_like(mean_T[:1]), mean_T])[left]
    cov_T = torch.cat([prior.expand(1, *cov_T.shape[1:]), cov_T])[left]
    transition, noise = (_stack(part, cov_T[0]) for part in _transitions(ssm, t - start, rank))
    mean_T, cov_T = _apply(transition, mean_T), _propagate(transition, cov_T, noise)
    inner = left <= last
    if bool(inner.any()):
        right = left[inner]
        ahead_by = _transitions(ssm, chain.times[right] - t[inner], rank)
        transition, noise = (_stack(part, cov_T[0]) for part in ahead_by)
        here_mean, here_cov = mean_T[inner], cov_T[inner]
        ahead = _propagate(transition, here_cov, noise)
        gain = torch.linalg.solve(ahead, transition @ here_cov).mT
        next_mean, next_cov = chain.smoothed[0].movedim(-2, 0)[right], chain.smoothed[1].movedim(-3, 0)[right]
        mean_T, cov_T = mean_T.clone(), cov_T.clone()
        mean_T[inner] = here_mean + _apply(gain, next_mean - _apply(transition, here_mean))
        rest = _rest(gain, transition, here_cov, noise)
        cov_T[inner] = _propagate(gain, next_cov, rest)
    return mean_T.movedim(0, -2)[..., :rank], cov_T.movedim(0, -3)[..., :rank, :rank]


def _check_chain(t: Tensor, precision: Tensor, shift: Tensor) -> None:
    if t.ndim != 1 or len(t) == 0 or t.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            f"kalman_smoother: expected times (T,) in float32 or float64, got {tuple(t.shape)} in {t.dtype}"
        )
    if shift.ndim < 2 or shift.shape[-2] != len(t) or precision.shape != (*shift.shape, shift.shape[-1]):
        raise ShapeError(
            f"kalman_smoother: {len(t)} times need shift (..., {len(t)}, R) and precision (..., {len(t)}, R, R), got "
            f"{tuple(shift.shape)} and {tuple(precision.shape)}"
        )
    if precision.dtype != t.dtype or shift.dtype != t.dtype:
        raise ShapeError(
            f"kalman_smoother: expected one dtype, got {t.dtype}, {precision.dtype}, {shift.dtype} for t, precision, "
            "shift"
        )
    if not bool((t.diff() > 0).all()):
        raise ArgumentError("kalman_smoother: expected strictly increasing times; merge equal ones first")


def _transitions(ssm: MaternSSM, dt: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    transition, noise = ssm.discretize(dt)
    return _widen(transition.movedim(-3, 0), rank), _widen(noise.movedim(-3, 0), rank)


def _stack(matrices: Tensor, like: Tensor) -> Tensor:
    # (T, batch of the prior, d, d) to (T, batch of the messages, d, d)
    missing = like.ndim - (matrices.ndim - 1)
    return matrices.reshape(len(matrices), *([1] * missing), *matrices.shape[1:]).expand(-1, *like.shape)


def _widen(matrix: Tensor, rank: int) -> Tensor:
    # M ⊗ I_R: states in the order u_1 … u_R, u'_1 … u'_R, …
    size = matrix.shape[-1] * rank
    unit = torch.eye(rank, dtype=matrix.dtype, device=matrix.device)
    return torch.einsum("...ij,rs->...irjs", matrix, unit).reshape(*matrix.shape[:-2], size, size)


def _filter_elements(transition: Tensor, noise: Tensor, precision: Tensor, shift: Tensor) -> Elements:
    # what one time contributes: p(z_t | z_(t-1), message) as A, b, C, and the message on z_(t-1) as η, J
    rank = shift.shape[-1]
    unit = torch.eye(rank, dtype=shift.dtype, device=shift.device)
    noise_u = noise[..., :rank]  # Q Hᵀ
    weight = torch.linalg.solve(unit + precision @ noise[..., :rank, :rank], _beside(precision, shift))
    seen, pull = _symmetric(weight[..., :-1]), weight[..., -1]  # GΛ and Gη
    keep = torch.eye(noise.shape[-1], dtype=shift.dtype, device=shift.device) - _pad(noise_u @ seen, noise)
    # Joseph's form with GΛ: K Λ⁻¹ Kᵀ = Q Hᵀ (GΛ) Λ⁻¹ (GΛ) H Q, and GΛ Λ⁻¹ ΛGᵀ = G Λ Gᵀ needs no inverse
    spread = torch.linalg.solve(unit + precision @ noise[..., :rank, :rank], seen.mT).mT
    cov = keep @ noise @ keep.mT + noise_u @ _symmetric(spread) @ noise_u.mT
    forward_u = transition[..., :rank, :]  # H A
    return (
        keep @ transition,
        _apply(noise_u, pull),
        _symmetric(cov),
        _apply(forward_u.mT, pull),
        _symmetric(forward_u.mT @ seen @ forward_u),
    )


def _join_filters(left: Elements, right: Elements) -> Elements:
    a_i, b_i, c_i, eta_i, j_i = left
    a_j, b_j, c_j, eta_j, j_j = right
    unit = torch.eye(a_i.shape[-1], dtype=a_i.dtype, device=a_i.device)
    together = torch.cat([a_i, c_i, (b_i + _apply(c_i, eta_j)).unsqueeze(-1)], dim=-1)
    solved = torch.linalg.solve(unit + c_i @ j_j, together)
    d = a_i.shape[-1]
    through, cov, mean = solved[..., :d], solved[..., d : 2 * d], solved[..., -1]
    return (
        a_j @ through,
        _apply(a_j, mean) + b_j,
        _symmetric(a_j @ cov @ a_j.mT + c_j),
        _apply(through.mT, eta_j - _apply(j_j, b_i)) + eta_i,
        _symmetric(through.mT @ j_j @ a_i + j_i),
    )


def _smooth(
    mean: Tensor, cov: Tensor, transition: Tensor, noise: Tensor, predicted_mean: Tensor, predicted_cov: Tensor
) -> tuple[Tensor, Tensor]:
    # z_t given z_(t+1) is E z_(t+1) + N(g, L); composed from the last time backwards
    gain = torch.linalg.solve(predicted_cov[1:], transition[1:] @ cov[:-1]).mT
    offset = mean[:-1] - _apply(gain, predicted_mean[1:])
    rest = _rest(gain, transition[1:], cov[:-1], noise[1:])
    elements = (
        torch.cat([gain, torch.zeros_like(cov[-1:])]).flip(0),
        torch.cat([offset, mean[-1:]]).flip(0),
        torch.cat([rest, cov[-1:]]).flip(0),
    )
    _, smooth_mean, smooth_cov = prefix_scan(_join_smoothers, elements)
    return smooth_mean.flip(0), smooth_cov.flip(0)


def _join_smoothers(later: Elements, earlier: Elements) -> Elements:
    gain, offset, rest = earlier
    return gain @ later[0], _apply(gain, later[1]) + offset, _propagate(gain, later[2], rest)


def _log_normalizer(mean: Tensor, cov: Tensor, precision: Tensor, shift: Tensor) -> Tensor:
    # Σ_t of -½ logdet(I + ΛS) + ηᵀu - ½ uᵀΛu + ½ rᵀSGr, r = η - Λu, with predicted u and S = H P Hᵀ
    rank = shift.shape[-1]
    u, spread = mean[..., :rank], cov[..., :rank, :rank]
    mixed = torch.eye(rank, dtype=shift.dtype, device=shift.device) + precision @ spread
    pressed = _apply(precision, u)
    r = shift - pressed
    pull = torch.linalg.solve(mixed, r)
    terms = (
        -torch.linalg.slogdet(mixed).logabsdet / 2
        + (shift * u).sum(-1)
        - (u * pressed).sum(-1) / 2
        + (_apply(spread, pull) * r).sum(-1) / 2
    )
    return terms.sum(0)


def _rest(gain: Tensor, transition: Tensor, cov: Tensor, noise: Tensor) -> Tensor:
    # P - E P_pred Eᵀ as a sum of positive semi-definite terms, (I - EA) P (I - EA)ᵀ + E Q Eᵀ
    keep = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device) - gain @ transition
    return _propagate(gain, noise, _propagate(keep, cov))


def _propagate(matrix: Tensor, cov: Tensor, noise: Tensor | None = None) -> Tensor:
    out = matrix @ cov @ matrix.mT
    return _symmetric(out if noise is None else out + noise)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _beside(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.cat([matrix, vector.unsqueeze(-1)], dim=-1)


def _pad(columns: Tensor, like: Tensor) -> Tensor:
    # columns that belong to u, with zeros for those of the derivatives
    return torch.nn.functional.pad(columns, (0, like.shape[-1] - columns.shape[-1]))


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
