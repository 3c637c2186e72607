"""How far from the best zero-one error a score can be, given its comp-sum loss: consistency bounds and their gaps.

    R01(h) - R01* + M01  <=  Γ_τ(R_τ(h) - R_τ* + M_τ),     Γ_τ the inverse of T_τ on [0, 1]

Shapes: N points, n classes, p (N, n) their conditional probabilities. Logarithms are natural.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.nn.comp_sum.losses import check_tau, phi_of_log

__all__ = ["consistency_bound", "consistency_transform", "minimizability_gap", "pointwise_infimum"]

_NEAR_ONE = 1e-8
_BISECTIONS = 60  # leaves an interval of 2^-60


def consistency_transform(beta: Tensor, tau: float, num_classes: int) -> Tensor:
    """T_τ(β): a zero-one regret of β at a point forces at least this regret of ℓ_τ there.

    With m = [((1+β)^{1/(2-τ)} + (1-β)^{1/(2-τ)}) / 2]^{2-τ},

        T = 2^{1-τ} (1 - m) / (1 - τ)                              0 <= τ < 1
        T = ((1+β) log(1+β) + (1-β) log(1-β)) / 2                  τ = 1
        T = (m - 1) / ((τ-1) n^{τ-1})                              1 < τ < 2
        T = β / ((τ-1) n^{τ-1})                                    τ >= 2

    Parameters
    ----------
    beta : Tensor, any shape
        β in [0, 1], floating.
    tau : float
        τ >= 0.
    num_classes : int
        n >= 2. It matters for τ > 1 only.

    Returns
    -------
    Tensor, shape of ``beta``
        Convex and increasing from T(0) = 0; differentiable for β < 1. It is met by two classes of probability (1±β)/2
        with equal scores where τ <= 1, and for n = 2 where τ <= 2; otherwise it is a lower bound.

    Raises
    ------
    ArgumentError
        If β, τ or n is out of range.

    References
    ----------
    A. Mao, M. Mohri, Y. Zhong (2023), ICML, arXiv 2304.07288, theorem 3.1.
    """
    check_tau("consistency_transform", tau)
    _check_classes("consistency_transform", num_classes)
    if not bool(((beta >= 0) & (beta <= 1)).all()):
        raise ArgumentError("consistency_transform: beta: expected entries in [0, 1]")
    return _transform(beta, tau, num_classes)


def _transform(beta: Tensor, tau: float, num_classes: int) -> Tensor:
    if abs(tau - 1) < _NEAR_ONE:
        return (torch.special.xlog1py(1 + beta, beta) + torch.special.xlog1py(1 - beta, -beta)) / 2
    if tau >= 2:
        return beta / ((tau - 1) * num_classes ** (tau - 1))
    power = 1 / (2 - tau)
    up, down = torch.log1p(beta), torch.log1p(-beta)
    # expm1 keeps the digits of 1 - m for small β, but overflows for τ close to 2; the other form is its mirror
    near = power * up < 1
    small = torch.where(near, up, 0.0)
    by_expm1 = torch.log1p((torch.expm1(power * small) + torch.expm1(power * torch.where(near, down, 0.0))) / 2)
    by_ratio = power * up + torch.log1p(torch.exp(power * (down - up))) - math.log(2)
    excess = torch.expm1((2 - tau) * torch.where(near, by_expm1, by_ratio))
    factor = -(2 ** (1 - tau)) / (1 - tau) if tau < 1 else 1 / ((tau - 1) * num_classes ** (tau - 1))
    return factor * excess


def consistency_bound(
    gap: Tensor, tau: float, num_classes: int, *, method: Literal["exact", "closed"] = "exact"
) -> Tensor:
    """Γ_τ(t): a regret t of ℓ_τ allows no larger zero-one regret than this.

    It holds for the regret of each point given p(y | x), for hypothesis sets with unbounded, symmetric scores, and for
    expectations once the minimizability gaps are added. A large τ has a smaller gap and a larger factor n^{τ-1}.

    Parameters
    ----------
    gap : Tensor, any shape
        t >= 0: R_τ(h) - R_τ* + M_τ, in units of the loss.
    tau : float
        τ >= 0.
    num_classes : int
        n >= 2.
    method : {"exact", "closed"}, default "exact"
        ``exact``: T_τ inverted by bisection, rounded up. ``closed``: an upper bound of it, √(2^τ (2-τ) t) for τ < 1,
        √(2 n^{τ-1} t) for 1 <= τ < 2, and (τ-1) n^{τ-1} t beyond, where it is exact.

    Returns
    -------
    Tensor, shape of ``gap``
        In [0, 1]. The closed form is differentiable; bisection is not, and returns no gradient for τ < 2.

    Raises
    ------
    ArgumentError
        If t, τ or n is out of range, or the method is unknown.

    Notes
    -----
    Bisection costs 60 evaluations of T. Where t is below the rounding of the losses that it came from, so is the
    bound's promise: Γ grows as √t.

    Examples
    --------
    >>> consistency_bound(torch.tensor([0.005]), tau=1.0, num_classes=10)
    tensor([0.0999])

    References
    ----------
    A. Mao, M. Mohri, Y. Zhong (2023), ICML, arXiv 2304.07288.
    """
    check_tau("consistency_bound", tau)
    _check_classes("consistency_bound", num_classes)
    if method not in ("exact", "closed"):
        raise ArgumentError(f"consistency_bound: method: expected exact or closed, got {method!r}")
    if not bool((gap >= 0).all()):
        raise ArgumentError("consistency_bound: gap: expected entries >= 0")
    if tau >= 2:
        return ((tau - 1) * num_classes ** (tau - 1) * gap).clamp(max=1)
    if method == "closed":
        factor = 2**tau * (2 - tau) if tau < 1 else 2 * num_classes ** (tau - 1)
        return (factor * gap).sqrt().clamp(max=1)
    with torch.no_grad():
        low, high = torch.zeros_like(gap), torch.ones_like(gap)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = _transform(middle, tau, num_classes) < gap
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high


def pointwise_infimum(p: Tensor, tau: float, *, bound: float | None = None) -> Tensor:
    """inf_h Σ_y p_y ℓ_τ(h, y): the least conditional loss that scores can reach at a point.

    Unbounded scores: ([Σ_y p_y^{1/(2-τ)}]^{2-τ} - 1) / (1 - τ) for τ < 2, the entropy of p at τ = 1, and
    (1 - max p) / (τ - 1) for τ >= 2. Scores in [-Λ, Λ]: for τ < 2 a convex programme in softmax(h), solved by bisection
    for its one multiplier; for τ >= 2 the best of the n rankings.

    Parameters
    ----------
    p : Tensor, shape (..., n)
        Probabilities of n >= 2 classes, floating.
    tau : float
        τ >= 0.
    bound : float, optional
        Λ > 0. Default: unbounded.

    Returns
    -------
    Tensor, shape (...)
        Exact to rounding. Differentiable, as the optimal scores do not move the optimum to first order.

    Raises
    ------
    ArgumentError
        If p is not a distribution, or τ or Λ is out of range.
    """
    check_tau("pointwise_infimum", tau)
    if p.ndim == 0 or p.shape[-1] < 2:
        raise ArgumentError(f"pointwise_infimum: p: expected at least 2 classes, got shape {tuple(p.shape)}")
    _check_distribution("pointwise_infimum: p", p)
    if bound is not None:
        if not 0 < bound < math.inf:
            raise ArgumentError(f"pointwise_infimum: bound: expected a finite number > 0, got {bound}")
        return _bounded_infimum(p, tau, bound)
    if tau >= 2:
        return (1 - p.amax(-1)) / (tau - 1)
    if abs(tau - 1) < _NEAR_ONE:
        return -torch.special.xlogy(p, p).sum(-1)
    power = 1 / (2 - tau)
    top = p.amax(-1, keepdim=True)  # the sum is taken relative to it: p^power underflows for τ close to 2
    shares = torch.where(p > 0, p / top, 1.0).pow(power)
    log_norm = top.squeeze(-1).log() + (2 - tau) * torch.where(p > 0, shares, 0.0).sum(-1).log()
    return torch.expm1(log_norm) / (1 - tau)


def _bounded_infimum(p: Tensor, tau: float, bound: float) -> Tensor:
    if tau >= 2:
        return _best_ranking(p, tau, bound)
    with torch.no_grad():
        log_q = _bounded_optimum(p, tau, bound)
    return (p * phi_of_log(-log_q, tau)).sum(-1)


def _best_ranking(p: Tensor, tau: float, bound: float) -> Tensor:
    # a convex function of q is largest at an extreme point: the k most likely classes at Λ, the others at -Λ
    n = p.shape[-1]
    high = torch.arange(1, n + 1, dtype=p.dtype, device=p.device)
    nats = torch.log(high + (n - high) * math.exp(-2 * bound))
    won = p.sort(-1, descending=True).values.cumsum(-1)
    losses = won * phi_of_log(nats, tau) + (won[..., -1:] - won) * phi_of_log(nats + 2 * bound, tau)
    return losses.amin(-1)


def _bounded_optimum(p: Tensor, tau: float, bound: float) -> Tensor:
    # log softmax of the optimal scores. With R = e^{2Λ} the optimum is q_i ∝ clip(p_i^{1/(2-τ)}, λ^{1/(2-τ)}, R ...),
    # where Σ_i max(0, 1 - p_i/λ) = R Σ_i max(0, p_i/(R^{2-τ} λ) - 1): what the lower clips cost, the upper ones earn.
    # The left side rises with λ and the right side falls, and the bracket follows from its two ends.
    n, log_p = p.shape[-1], p.log()
    curve = 2 - tau
    high = log_p.amax(-1, keepdim=True) - 2 * bound * curve
    low = high - math.log1p(n * math.exp(-2 * bound)) - 1e-12
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        cost = math.exp(-2 * bound) * (1 - torch.exp(log_p - middle)).clamp(min=0).sum(-1, keepdim=True)
        earned = (torch.exp(log_p - middle - 2 * bound * curve) - 1).clamp(min=0).sum(-1, keepdim=True)
        rising = cost < earned
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    scores = torch.clamp(log_p / curve, high / curve, high / curve + 2 * bound)
    return scores.log_softmax(-1)


def minimizability_gap(
    best_risk: Tensor | float,
    p: Tensor,
    tau: float,
    *,
    weights: Tensor | None = None,
    bound: float | None = None,
) -> Tensor:
    """M_τ = R_τ* - E_x[inf_h E_{y|x} ℓ_τ]: what the hypothesis set loses by using one function for all points.

    Zero if every point may have scores of its own. It enters the bound beside the regret, and falls as τ grows.

    Parameters
    ----------
    best_risk : Tensor or float
        R_τ*, the least expected loss in the hypothesis set, under the same distribution: from a closed form, or the
        risk of the best model found, which makes the gap an upper bound.
    p : Tensor, shape (N, n)
        p(y | x) at N points. One-hot rows for deterministic labels: with scores in [-Λ, Λ] the infimum is then
        Φ_τ((n-1) e^{-2Λ}).
    tau : float
        τ >= 0.
    weights : Tensor, shape (N,), optional
        Probability of every point. Default: 1/N.
    bound : float, optional
        Λ, if the scores are bounded.

    Returns
    -------
    Tensor, shape ()
        M_τ >= 0.

    Raises
    ------
    ArgumentError
        If p, the weights, τ or Λ is out of range, or ``best_risk`` is below what any scores can reach.
    ShapeError
        If p is not a table, or the weights do not fit it.
    """
    if p.ndim != 2:
        raise ShapeError(f"minimizability_gap: p: expected shape (N, n), got {tuple(p.shape)}")
    infima = pointwise_infimum(p, tau, bound=bound)
    if weights is None:
        floor = infima.mean()
    else:
        if weights.shape != p.shape[:1]:
            raise ShapeError(f"minimizability_gap: weights: expected shape ({len(p)},), got {tuple(weights.shape)}")
        _check_distribution("minimizability_gap: weights", weights)
        floor = (weights * infima).sum()
    gap = torch.as_tensor(best_risk, dtype=p.dtype, device=p.device) - floor
    slack = 100 * torch.finfo(p.dtype).eps * max(1.0, abs(float(floor)))
    if not float(gap) >= -slack:
        raise ArgumentError(
            f"minimizability_gap: best_risk: expected at least {float(floor):.6g}, the mean of the pointwise infima, "
            f"got {float(best_risk):.6g}; both must be of one distribution, loss and bound"
        )
    return gap.clamp(min=0)


def _check_classes(name: str, num_classes: int) -> None:
    if num_classes < 2:
        raise ArgumentError(f"{name}: num_classes: expected at least 2, got {num_classes}")


def _check_distribution(name: str, p: Tensor) -> None:
    tolerance = max(1e-6, 10 * p.shape[-1] * torch.finfo(p.dtype).eps)
    if not bool((p >= 0).all()) or not bool(((p.sum(-1) - 1).abs() <= tolerance).all()):
        raise ArgumentError(f"{name}: expected probabilities that are >= 0 and sum to 1 over the last axis")
