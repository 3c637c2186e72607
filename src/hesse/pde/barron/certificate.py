"""How large the Barron norm of the iterates can become, from the equation alone."""

import math
from collections.abc import Sequence

from hesse.errors import ArgumentError

__all__ = ["barron_certificate", "growth_exponent", "next_log_bound"]


def barron_certificate(
    steps: Sequence[float],
    potential: Sequence[float],
    source_norm: float,
    *,
    lowest: float,
    shift: float = 1.0,
    start_norm: float = 0.0,
    coefficient_norm: float | None = None,
) -> list[float]:
    """Bound the Barron norms of u_{t+1} = u_t - η_t (shift - Δ)⁻¹ (-Δu_t + V'(u_t) - f), as natural logarithms.

    With V'(u) = m u + N(u), what is linear in u is multiplied by 1 - η (s + m) / (shift + s) on the eigenspace -Δ = s,
    which is monotone in s: its modulus is largest at one of the ends s = s₀ and s = ∞. The rest is bounded because the
    norm is submultiplicative:

        b_{t+1} = max(|1 - η|, |1 - η (s₀ + m)/(shift + s₀)|) b_t + η (Σ_{k≠2} k |v_k| b_t^{k-1} + F) / (shift + s₀).

    Parameters
    ----------
    steps : sequence of float
        η_t > 0.
    potential : sequence of float
        v_0, v_1, ...: V(u) = Σ v_k u^k. Its degree is p + 1.
    source_norm : float
        F = ‖f‖_B.
    lowest : float
        s₀, the smallest eigenvalue of -Δ: dπ² for sines on the cube, 0 on the torus.
    shift : float, default 1.0
        That of the preconditioner.
    start_norm : float, default 0.0
        b_0 = ‖u_0‖_B.
    coefficient_norm : float, optional
        ‖a‖_B if the reaction is a(x) V'(u). It multiplies every power, the linear one as well, which is then bounded
        like the others. Default: a = 1.

    Returns
    -------
    list of float, length len(steps) + 1
        ln b_t, natural logarithms since b_t itself grows like a tower of powers for p > 1; -inf for b_t = 0.

    Raises
    ------
    ArgumentError
        If a step is not positive, a norm is negative, or shift + s₀ is not positive.

    References
    ----------
    T. Marwah, Z. C. Lipton, J. Lu, A. Risteski (2023), ICML, arXiv 2210.12101, for the argument; constants are ours.
    """
    if any(not step > 0 for step in steps):
        raise ArgumentError("barron_certificate: expected positive steps")
    if not (source_norm >= 0 and start_norm >= 0):
        raise ArgumentError(f"barron_certificate: expected norms >= 0, got {source_norm} and {start_norm}")
    if not shift + lowest > 0:
        raise ArgumentError(f"barron_certificate: expected shift + lowest > 0, got {shift} + {lowest}")
    bounds = [_log(start_norm)]
    for step in steps:
        bounds.append(
            next_log_bound(
                bounds[-1],
                step,
                potential,
                source_norm,
                lowest=lowest,
                shift=shift,
                coefficient_norm=coefficient_norm,
            )
        )
    return bounds


def next_log_bound(
    log_bound: float,
    step: float,
    potential: Sequence[float],
    source_norm: float,
    *,
    lowest: float,
    shift: float,
    coefficient_norm: float | None,
) -> float:
    """Make one step of `barron_certificate`, where the arguments are explained.

    Returns
    -------
    float
        ln b_{t+1}.
    """
    floor = shift + lowest
    slope = [k * v for k, v in enumerate(potential)][1:]
    mass, factor = 0.0, 1.0
    if coefficient_norm is not None:
        factor = coefficient_norm
    elif len(slope) > 1:
        mass, slope[1] = slope[1], 0.0
    linear = max(abs(1 - step), abs(1 - step * (lowest + mass) / floor))
    parts = [_log(step * source_norm / floor)]
    if linear > 0:
        parts.append(_log(linear) + log_bound)
    for power, weight in enumerate(slope):
        if weight:
            grown = power * log_bound if power else 0.0
            parts.append(_log(step * factor * abs(weight) / floor) + grown)
    return _log_sum(parts)


def growth_exponent(log_bounds: Sequence[float]) -> float:
    """Ratio ln b_t / ln b_{t-1} at the last finite step: p where the certificate grows as a tower, near 1 otherwise.

    Parameters
    ----------
    log_bounds : sequence of float
        As `barron_certificate` returns them.

    Returns
    -------
    float
        NaN if fewer than two bounds are finite and different from one.
    """
    finite = [bound for bound in log_bounds if math.isfinite(bound) and bound != 0]
    return finite[-1] / finite[-2] if len(finite) > 1 else math.nan


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs)
    if not math.isfinite(top):
        return top
    return top + math.log(sum(math.exp(value - top) for value in logs))
