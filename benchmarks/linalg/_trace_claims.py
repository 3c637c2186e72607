"""Claims about traces and log-determinants, for `linalg_core`.

Oracles: traces of matrices made from known eigenvalues; the log-determinant by Cholesky.
"""

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.peers import has_peer, require_peer
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.eigen import logdet
from hesse.linalg.operator import LinearOperator
from hesse.linalg.traces import TraceEstimate, hutchinson_trace, hutchpp_trace, xnystrace, xtrace

__all__ = ["TRACE_CLAIMS"]

NUM_MATVECS = 120
DECAYING = {
    "i^-2": lambda i: i**-2.0,
    "0.7^i": lambda i: 0.7**i,
}


def _matrix(n: int, spectrum: Callable[[Tensor], Tensor], generator: torch.Generator) -> tuple[LinearOperator, float]:
    """A dense matrix with the spectrum in a random basis: on a diagonal one, sign vectors would be exact."""
    values = spectrum(torch.arange(1, n + 1, dtype=torch.float64))
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    matrix = basis * values @ basis.T
    return as_linear_operator((matrix + matrix.T) / 2, is_psd=True), float(values.sum())


def _rms(errors: list[float]) -> float:
    return fmean(error**2 for error in errors) ** 0.5


def _relative_errors(
    method: Callable[..., TraceEstimate], operator: LinearOperator, exact: float, runs: int, seed: int
) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    return [float(method(operator, NUM_MATVECS, generator=generator)) / exact - 1 for _ in range(runs)]


def _peer_errors(name: str, operator: LinearOperator, exact: float, runs: int, seed: int) -> list[float]:
    method = getattr(require_peer("curvlinops"), name)
    matrix = operator.to_dense()
    with torch.random.fork_rng():  # the peer draws from torch's global generator
        torch.manual_seed(seed)
        return [float(method(matrix, NUM_MATVECS)) / exact - 1 for _ in range(runs)]


def claim_xtrace_error(scale: Scale) -> list[Claim]:
    """XTrace at 120 products: at most half the root-mean-square error of Hutch++ on decaying spectra."""
    n, runs = scale(smoke=300, full=1000), scale(smoke=20, full=400)
    claims = []
    for name, spectrum in DECAYING.items():
        operator, exact = _matrix(n, spectrum, torch.Generator().manual_seed(scale.seed))
        errors = {
            method.__name__: _rms(_relative_errors(method, operator, exact, runs, scale.seed + 1))
            for method in (hutchpp_trace, xtrace, xnystrace)
        }
        rows = {"n": n, "runs": runs, "relative rms error": errors | _shown(operator, exact, scale.seed + 1)}
        for method in ("xtrace", "xnystrace"):
            ratio = errors[method] / errors["hutchpp_trace"]
            claims.append(Claim(f"{method} over Hutch++ error, {name}", ratio, 0.5, "lower", rows, full_only=True))
    return claims


def _shown(operator: LinearOperator, exact: float, seed: int, runs: int = 20) -> dict[str, float | str]:
    """Figures for the row that decide nothing: plain Hutchinson, and the peer's version of the same methods."""
    shown: dict[str, float | str] = {
        "hutchinson_trace": _rms(_relative_errors(hutchinson_trace, operator, exact, runs, seed))
    }
    for peer in ("hutchpp_trace", "xtrace"):
        installed = has_peer("curvlinops")
        shown[f"curvlinops {peer}"] = _rms(_peer_errors(peer, operator, exact, runs, seed)) if installed else "missing"
    return shown


def claim_xtrace_error_bars(scale: Scale) -> list[Claim]:
    """XTrace's reported errors, over 200 runs: of the right size in the mean, and hardly ever three times too small."""
    n, runs = scale(smoke=300, full=1000), 200
    ratios, shares = {}, {}
    for name, spectrum in DECAYING.items():
        operator, exact = _matrix(n, spectrum, torch.Generator().manual_seed(scale.seed))
        generator = torch.Generator().manual_seed(scale.seed + 1)
        found = [xtrace(operator, NUM_MATVECS, generator=generator) for _ in range(runs)]
        errors = [float(run) - exact for run in found]
        reported = [float(run.standard_error) for run in found]
        ratios[name] = _rms(errors) / fmean(reported)
        shares[name] = fmean(abs(e) <= 3 * r for e, r in zip(errors, reported, strict=True))
    worst = max(ratios.values(), key=lambda ratio: max(ratio, 1 / ratio))
    return [
        Claim(
            "XTrace true rms error over mean reported error",
            worst,
            (0.5, 2.0),
            "inside",
            {"n": n, "runs": runs, "ratio": ratios},
        ),
        Claim(
            "XTrace share of runs within three reported errors",
            min(shares.values()),
            0.95,
            "higher",
            {"n": n, "runs": runs, "share": shares},
        ),
    ]


def claim_slq_logdet(scale: Scale) -> Claim:
    """Stochastic Lanczos quadrature, 20 probes of 60 steps at condition 10⁴: log-determinant within one percent."""
    n = scale(smoke=400, full=2000)
    operator, _ = _matrix(n, lambda i: 10.0 ** (-4 * (i - 1) / (len(i) - 1)), torch.Generator().manual_seed(scale.seed))
    exact = float(logdet(operator, method="cholesky"))
    generator = torch.Generator().manual_seed(scale.seed + 1)
    found = [logdet(operator, num_probes=20, num_steps=60, generator=generator) for _ in range(scale(smoke=5, full=20))]
    errors = [float(run) / exact - 1 for run in found]
    return Claim(
        "SLQ log-determinant, relative rms error",
        _rms(errors),
        0.01,
        "lower",
        {
            "n": n,
            "exact": exact,
            "errors": errors,
            "mean reported": fmean(abs(float(run.standard_error) / exact) for run in found),
        },
        full_only=True,
    )


TRACE_CLAIMS: list[ClaimFunction] = [claim_xtrace_error, claim_xtrace_error_bars, claim_slq_logdet]
