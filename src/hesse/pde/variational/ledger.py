"""What a descent writes down at each step, and the report made of it."""

from dataclasses import dataclass
from math import ceil, isnan, log

from hesse.pde.barron import FourierSeries, growth_exponent

__all__ = ["CertificateReport", "DescentRecord"]


@dataclass(frozen=True, slots=True)
class DescentRecord:
    """One iterate u_t."""

    energy: float  # E(u_t)
    gradient_norm: float  # of the Riesz representative in ⟨(shift - Δ) u, v⟩, which is the dual norm of DE(u_t)
    error_bound: float  # gradient_norm / α >= the distance from the minimiser in that inner product; NaN if α <= 0
    barron_norm: float  # ‖u_t‖_B
    log_certificate: float  # ln b_t with ‖u_t‖_B <= b_t; NaN where there is no certificate
    num_terms: int
    step: float  # η that led here; 0 for the start
    smoothness: float  # β over the values of u_t
    capped: bool  # whether the cap on terms removed more than the truncation rule allows


@dataclass(frozen=True, slots=True)
class CertificateReport:
    """What is proved about a descent, beside what was measured."""

    strong_convexity: float  # α
    smoothness: float  # β, the largest on the path unless given
    certified_rate: float  # 1 - α min(1/β, least step): factor of the energy's distance from its minimum a step
    rate_applies: bool  # whether every step was at most 1/β
    observed_rate: float  # geometric mean of that factor, from the energies above rounding; NaN if fewer than two
    error_bound: float  # of the last iterate, H¹
    barron_norm: float  # of the last iterate
    largest_barron_norm: float  # on the path
    log_certificate: float  # ln b_T
    holds: bool | None  # whether ‖u_t‖_B <= b_t all along; None without a certificate
    growth_exponent: float  # ln b_T / ln b_{T-1}
    num_terms: int
    capped: bool  # the cap on terms was hit: raise max_terms, the rate is not certified
    width: int  # units of the exact two-layer cosine network
    sampled_width: int  # units that Maurey's bound asks for a root mean square L² error of 1 % of the solution's norm


def certificate_report(history: list[DescentRecord], alpha: float, solution: FourierSeries) -> CertificateReport:
    """Summarise a history that ends at ``solution``.

    Returns
    -------
    CertificateReport
        Rates, bounds and widths.
    """
    last = history[-1]
    beta = max(record.smoothness for record in history)
    steps = [record.step for record in history[1:] if record.step > 0]
    gaps = [record.energy - last.energy for record in history]
    floor = 1e-11 * max(abs(record.energy) for record in history)  # differences of energies below this are rounding
    clear = [gap for gap in gaps if gap > floor]
    observed = (clear[-1] / clear[0]) ** (1 / (len(clear) - 1)) if len(clear) > 1 else float("nan")
    length = float(solution.l2_norm())
    logs = [record.log_certificate for record in history]
    known = not any(isnan(value) for value in logs)
    return CertificateReport(
        strong_convexity=alpha,
        smoothness=beta,
        certified_rate=1 - alpha * min([1 / beta, *steps]) if alpha > 0 else 1.0,
        rate_applies=alpha > 0 and all(step <= 1 / beta * (1 + 1e-12) for step in steps),
        observed_rate=observed,
        error_bound=last.error_bound,
        barron_norm=last.barron_norm,
        largest_barron_norm=max(record.barron_norm for record in history),
        log_certificate=last.log_certificate,
        holds=all(_below(record) for record in history) if known else None,
        growth_exponent=growth_exponent(logs),
        num_terms=last.num_terms,
        capped=any(record.capped for record in history),
        width=solution.to_network().width,
        sampled_width=ceil((float(solution.l1_norm()) / (0.01 * length)) ** 2) if length > 0 else 0,
    )


def _below(record: DescentRecord) -> bool:
    # whether ‖u_t‖_B <= b_t up to rounding, without computing a b_t that overflows
    return record.barron_norm == 0 or log(record.barron_norm) <= record.log_certificate + 1e-9
