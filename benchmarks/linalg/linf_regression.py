"""Claims of Song, Ye, Yin, Zhang (ICML 2023): a dense structured sketch spreads the error of least squares evenly.

Oracles: the instance A = [I; 0], whose solution is zero, residual one and ‖A⁺‖ one; dense least squares by LAPACK.
spread = ‖e‖_∞ √D / ‖e‖₂ is 1 for an even error and √D for one coordinate; eps = ‖e‖_∞ √D / (‖r‖ ‖A⁺‖).
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import interleave_clocks, peak_rss_growth
from hesse.linalg.kronecker import Kronecker
from hesse.linalg.operator import LinearOperator
from hesse.linalg.sketch import SRHT, CountSketch, GaussianSketch, SparseSign
from hesse.linalg.sketch_quality import oce_statistics
from hesse.linalg.sketched_lstsq import SketchName, sketched_lstsq
from hesse.linalg.tensor_sketch import TensorSRHT

__all__ = ["CLAIMS"]

RCOND = 1e-10  # CountSketch often maps two rows of I to one: it then needs the solution of least norm


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + stream)


def _identity_instance(n: int, d: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A = [I; 0], and b of length one on k further rows, placed at random."""
    A, b = torch.eye(n, d, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    b[d + torch.randperm(n - d, generator=generator)[:k]] = k**-0.5
    return A, b


def _errors(
    A: Tensor | LinearOperator, b: Tensor, m: int, sketch: SketchName, trials: int, generator: torch.Generator
) -> Tensor:
    """Errors (trials, D) against a true solution of zero."""
    solve = partial(sketched_lstsq, A, b, sketch_size=m, sketch=sketch, rcond=RCOND, generator=generator)
    return torch.stack([solve() for _ in range(trials)])


def _peaks(errors: Tensor) -> Tensor:
    return errors.abs().amax(1)


def _spreads(errors: Tensor) -> Tensor:
    hit = errors[_peaks(errors) > 1e-12]
    return _peaks(hit) * errors.shape[1] ** 0.5 / torch.linalg.vector_norm(hit, dim=1)


def _quantile(values: Tensor, level: float) -> float:
    return float(torch.quantile(values, level)) if len(values) else math.nan


def claim_separation(scale: Scale) -> list[Claim]:
    """On the hard instance SRHT spreads its error, CountSketch puts all of it into one coordinate."""
    trials = scale(smoke=60, full=200)
    sizes = scale(smoke=(64,), full=(64, 128, 256))
    n = scale(smoke=2048, full=8192)
    table: dict[str, dict[str, Any]] = {}
    for d in sizes:
        A, b = _identity_instance(n, d, round(d**0.5), _generator(scale.seed, 10 * d + 9))
        sketches: tuple[SketchName, ...] = ("srht", "countsketch", "gaussian", "sparse_sign")
        row: dict[str, Any] = {}
        for stream, sketch in enumerate(sketches if d == sizes[0] else sketches[:2]):
            errors = _errors(A, b, round(d**1.5), sketch, trials, _generator(scale.seed, 10 * d + stream))
            spreads = _spreads(errors)
            row[sketch] = {
                "median error": _quantile(_peaks(errors), 0.5),
                "median spread": _quantile(spreads, 0.5),
                "95 % spread": _quantile(spreads, 0.95),
                "trials with an error": len(spreads) / trials,
            }
        row["ratio"] = row["countsketch"]["median error"] / row["srht"]["median error"]
        table[f"d={d}"] = row
    ratios = [row["ratio"] for row in table.values()]
    growth = min((b / a for a, b in itertools.pairwise(ratios)), default=math.nan)
    setting = {"n": n, "m": "d^1.5", "k": "sqrt(d)", "trials": trials}
    return [
        Claim(
            "SRHT spreads the error: 95 % spread, largest over d",
            max(row["srht"]["95 % spread"] for row in table.values()),
            4.5,
            "lower",
            setting | table,
        ),
        Claim(
            "CountSketch does not: median spread over sqrt(d), smallest over d",
            min(row["countsketch"]["median spread"] / d**0.5 for d, row in zip(sizes, table.values(), strict=True)),
            0.9,
            "higher",
        ),
        Claim("CountSketch's error over SRHT's, d=64", ratios[0], 2.7, "higher", {"ratios": ratios}),
        Claim(
            "that ratio grows with d: smallest growth",
            growth,
            1.0,
            "higher",
            {"ratios": ratios, "sqrt(d / 2 log d)": [(d / (2 * math.log(d))) ** 0.5 for d in sizes]},
            full_only=True,
        ),
    ]


def claim_scaling(scale: Scale) -> list[Claim]:
    """The error of SRHT falls as 1/√M; 16 D / eps² rows give the guarantee, and D does not matter otherwise."""
    n, d = scale(smoke=1 << 14, full=1 << 16), 64
    trials = scale(smoke=20, full=100)
    A, b = _identity_instance(n, d, 8, _generator(scale.seed, 400))
    factors = (4, 8, 16, 32, 64)
    peaks = {}
    for f in factors:
        peaks[f] = _peaks(_errors(A, b, f * d, "srht", trials, _generator(scale.seed, f))) * d**0.5
    medians = [_quantile(peaks[f], 0.5) for f in factors]
    slope = float(np.polyfit(np.log(factors), np.log(medians), 1)[0])
    held = {f"eps={eps}": float((peaks[round(16 / eps**2)] <= eps).double().mean()) for eps in (1.0, 0.5)}
    short = {f"eps={eps}": float((peaks[round(4 / eps**2)] > eps).double().mean()) for eps in (1.0, 0.5)}
    widths = scale(smoke=(32, 64), full=(64, 128, 256))
    by_width = {}
    for width in widths:
        g = _generator(scale.seed, 500 + width)
        A, b = _identity_instance(scale(smoke=1 << 12, full=1 << 14), width, round(width**0.5), g)
        errors = _errors(A, b, 16 * width, "srht", trials, g)
        by_width[f"d={width}"] = _quantile(_peaks(errors), 0.5) * width**0.5
    setting = {"n": n, "d": d, "trials": trials, "m/d": factors, "median eps": medians}
    return [
        Claim("slope of log error against log M", slope, (-0.6, -0.4), "inside", setting, full_only=True),
        Claim("M = 16 D / eps² keeps the guarantee, share of trials", min(held.values()), 0.95, "higher", held),
        Claim("M = 4 D / eps² does not, share of trials", min(short.values()), 0.8, "higher", short, full_only=True),
        Claim(
            "eps at M = 16 D over three D, largest over smallest",
            max(by_width.values()) / min(by_width.values()),
            1.5,
            "lower",
            by_width,
        ),
    ]


def claim_inner_products(scale: Scale) -> list[Claim]:
    """gᵀSᵀS h: unbiased for all five sketches, with a Gaussian tail for SRHT and a heavy one for CountSketch."""
    n, m, trials = scale(smoke=(512, 128, 1000), full=(1024, 256, 10_000))
    dims = scale(smoke=(16, 32), full=(32, 32))
    g = _generator(scale.seed, 1)
    options: dict[str, Any] = {"dtype": torch.float64, "generator": g}
    kinds: dict[str, Callable[[], LinearOperator]] = {
        "gaussian": lambda: GaussianSketch(n, m, **options),
        "srht": lambda: SRHT(n, m, **options),
        "sparse sign": lambda: SparseSign(n, m, **options),
        "countsketch": lambda: CountSketch(n, m, **options),
        "tensor srht": lambda: TensorSRHT(dims, m, **options),
    }
    units = torch.eye(n, dtype=torch.float64)
    drawn = torch.randn(2, n, dtype=torch.float64, generator=g)
    pairs = {"sparse": (units[3], units[400]), "random": (drawn[0] / drawn[0].norm(), drawn[1] / drawn[1].norm())}
    table: dict[str, dict[str, Any]] = {}
    for kind, pair in itertools.product(kinds, pairs):
        first, second = pairs[pair]
        found = oce_statistics(kinds[kind], first, second, trials)
        bias = abs(found.mean - float(first @ second))
        table[f"{kind}, {pair}"] = {
            "bias / standard error": bias / found.standard_error if found.standard_error else 0.0,
            "second moment": found.second_moment,
            "alpha": found.alpha,
            "99.9 % tail * sqrt(m)": found.quantiles[-1] * m**0.5,
        }
    tails = {name: row["99.9 % tail * sqrt(m)"] for name, row in table.items()}
    return [
        Claim(
            "SRHT, 99.9 % tail in units of 1/sqrt(m)",
            max(tails["srht, sparse"], tails["srht, random"]),
            6.0,
            "lower",
            {"n": n, "m": m, "trials": trials} | table,
        ),
        Claim(
            "CountSketch's tail over SRHT's, sparse pair",
            tails["countsketch, sparse"] / tails["srht, sparse"],
            3.0,
            "higher",
            tails,
        ),
        Claim(
            "largest bias of the ten, in standard errors",
            max(row["bias / standard error"] for row in table.values()),
            4.0,
            "lower",
            note="ten numbers, each beyond 4 with probability 6e-5",
        ),
    ]


def _gelsy(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: Any = scipy.linalg.lstsq(A, b, lapack_driver="gelsy")
    return found[0]


def claim_speed(scale: Scale) -> list[Claim]:
    """A tall system of full size against LAPACK: from the sketch alone, and refined to ten digits."""
    n, d, repeats = scale(smoke=1 << 14, full=1 << 17), scale(smoke=64, full=200), scale(smoke=2, full=7)
    g = _generator(scale.seed, 2)
    A = torch.randn(n, d, dtype=torch.float64, generator=g)
    b = A @ torch.randn(d, dtype=torch.float64, generator=g) + torch.randn(n, dtype=torch.float64, generator=g)
    A_numpy, b_numpy = A.numpy(), b.numpy()

    def normal_equations() -> Tensor:
        return torch.cholesky_solve((A.T @ b).unsqueeze(1), torch.linalg.cholesky(A.T @ A)).squeeze(1)

    arms: dict[str, Callable[[], Any]] = {
        "sketch": lambda: sketched_lstsq(A, b, sketch_size=16 * d, generator=g),
        "refined": lambda: sketched_lstsq(A, b, sketch_size=16 * d, refine=50, tol=1e-11, generator=g),
        "numpy lstsq (SVD)": lambda: np.linalg.lstsq(A_numpy, b_numpy, rcond=None)[0],
        "scipy gelsy": lambda: _gelsy(A_numpy, b_numpy),
        "torch lstsq (QR)": lambda: torch.linalg.lstsq(A, b.unsqueeze(1)).solution.squeeze(1),
        "normal equations": normal_equations,
    }
    answers = {name: torch.as_tensor(arm()) for name, arm in arms.items()}
    true = answers["torch lstsq (QR)"]
    errors = {name: float((x - true).norm() / true.norm()) for name, x in answers.items()}
    timings = interleave_clocks(arms, repeats, warmup=0)
    cpu = {name: float(np.median(timing.cpu)) for name, timing in timings.items()}
    wall = {name: float(np.median(timing.wall)) for name, timing in timings.items()}
    peer = "numpy lstsq (SVD)"
    rows: dict[str, Any] = {"n": n, "d": d, "m": 16 * d, "repeats": repeats, "relative error": errors}
    for clock, seconds in (("cpu", cpu), ("wall", wall)):
        for ours in ("sketch", "refined"):
            rows[f"peers over {ours}, {clock}"] = {name: seconds[name] / seconds[ours] for name in arms}
    return [
        Claim(
            "sketch-and-solve against numpy's lstsq, CPU time",
            cpu[peer] / cpu["sketch"],
            3.0,
            "higher",
            rows,
            full_only=True,
        ),
        Claim(
            "refined to ten digits against numpy's lstsq, CPU time",
            cpu[peer] / cpu["refined"],
            1.5,
            "higher",
            full_only=True,
            note="the normal equations are faster still on a well-conditioned A",
        ),
        Claim("relative error of the refined solution", errors["refined"], 1e-10, "lower"),
    ]


def claim_ill_conditioned(scale: Scale) -> list[Claim]:
    """At condition 1e8 the refined solution is as good as LAPACK's, and the normal equations are lost."""
    n, d = scale(smoke=1 << 12, full=1 << 14), scale(smoke=50, full=100)
    g = _generator(scale.seed, 3)
    U = torch.linalg.qr(torch.randn(n, d, dtype=torch.float64, generator=g)).Q
    V = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=g)).Q
    A = U * torch.logspace(0, -8, d, dtype=torch.float64) @ V.T
    true = torch.randn(d, dtype=torch.float64, generator=g)
    noise = torch.randn(n, dtype=torch.float64, generator=g)
    noise = noise - U @ (U.T @ noise)  # at right angles to the range of A: the solution stays what it is
    b = A @ true + 1e-6 * noise / noise.norm()
    triangle, info = torch.linalg.cholesky_ex(A.T @ A)
    x, found = sketched_lstsq(A, b, refine=100, return_info=True, generator=g)
    answers = {
        "refined": x,
        "numpy lstsq (SVD)": torch.from_numpy(np.linalg.lstsq(A.numpy(), b.numpy(), rcond=None)[0]),
        "scipy gelsy": torch.from_numpy(_gelsy(A.numpy(), b.numpy())),
        "normal equations": torch.cholesky_solve((A.T @ b).unsqueeze(1), triangle).squeeze(1),
    }
    errors = {name: float((y - true).norm() / true.norm()) for name, y in answers.items()}
    rows = {"n": n, "d": d, "relative error": errors, "steps": found.num_steps, "Cholesky failed": int(info) > 0}
    lost = errors["normal equations"] / errors["refined"] if int(info) == 0 else math.inf
    return [
        Claim(
            "condition 1e8: refined error over numpy's",
            errors["refined"] / errors["numpy lstsq (SVD)"],
            10.0,
            "lower",
            rows,
        ),
        Claim(
            "condition 1e8: error of the normal equations over ours",
            lost if math.isfinite(lost) else 1e16,
            1e3,
            "higher",
            rows,
            note="1e16 stands for a Cholesky factorisation that broke down",
        ),
    ]


def _tensor_problem(seed: int, rows: int) -> tuple[Kronecker, Tensor, torch.Generator]:
    g = _generator(seed, 4)
    A = Kronecker([torch.randn(rows, 8, dtype=torch.float64, generator=g) for _ in range(2)])
    b = torch.randn(rows**2, dtype=torch.float64, generator=g)
    sketched_lstsq(A, b, sketch_size=65, generator=g)  # what torch loads at the first call is not the method's
    return A, b, g


def _tensor_solve(problem: tuple[Kronecker, Tensor, torch.Generator]) -> Tensor:
    A, b, g = problem
    return sketched_lstsq(A, b, sketch_size=1024, generator=g)


def claim_tensor(scale: Scale) -> list[Claim]:
    """A Kronecker design of 65,536 x 64 from its 256 x 8 factors: exact, even, and small in memory."""
    g = _generator(scale.seed, 5)
    S = TensorSRHT((256, 256), 48, dtype=torch.float64, generator=g)
    H = torch.from_numpy(scipy.linalg.hadamard(256).astype(np.float64))
    left, right = (H[kept] * signs for kept, signs in zip(S.kept, S.signs, strict=True))
    dense = (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1) / 48**0.5
    factors = [torch.randn(256, 8, dtype=torch.float64, generator=g) for _ in range(2)]
    product = dense @ torch.kron(*factors)
    x = torch.randn(256 * 256, dtype=torch.float64, generator=g)
    gap = max(
        float((S.apply_factors(*factors) - product).abs().max() / product.abs().max()),
        float((S.matvec(x) - dense @ x).abs().max() / (dense @ x).abs().max()),
    )
    trials, m = scale(smoke=30, full=200), 1024
    units = torch.eye(256, 8, dtype=torch.float64)
    A = Kronecker([units, units])
    b = torch.zeros(256, 256, dtype=torch.float64)
    b[8:16, 100] = 8**-0.5
    hard = _errors(A, b.flatten(), m, "srht", trials, g)
    random = Kronecker(factors)
    noise = torch.randn(256 * 256, dtype=torch.float64, generator=g)
    true = sketched_lstsq(random, noise, sketch_size=m, refine=60, generator=g)
    easy = _errors(random, noise, m, "srht", trials, g) - true
    spreads = {"hard": _quantile(_spreads(hard), 0.95), "random": _quantile(_spreads(easy), 0.95)}
    growth = peak_rss_growth(_tensor_solve, _tensor_problem, scale.seed, 256, repeats=scale(smoke=1, full=3))
    return [
        Claim("TensorSRHT against its dense definition, relative", gap, 1e-12, "lower"),
        Claim(
            "TensorSRHT spreads the error: 95 % spread",
            max(spreads.values()),
            4.5,
            "lower",
            spreads | {"m": m, "trials": trials},
        ),
        Claim(
            "Kronecker design, peak memory in MB",
            growth / 1e6,
            10.0,
            "lower",
            {"the dense design alone, MB": 65_536 * 64 * 8 / 1e6},
        ),
    ]


CLAIMS: list[ClaimFunction] = [
    claim_separation,
    claim_scaling,
    claim_inner_products,
    claim_speed,
    claim_ill_conditioned,
    claim_tensor,
]
