"""Claims of Ma and Fattahi (JMLR 2023): robust matrix recovery by sub-gradients from a tiny start.

Setting: order 20, rank 2, 2000 Gaussian measurements, gross errors N(0, 10²), float64, error ‖UUᵀ - X*‖_F/‖X*‖_F.
Oracles: the truth, autograd, and gradient descent on the ideal loss. Peers in the same run: the same loop with the
squared loss, torch.optim.SGD and Adam on the same absolute loss, and two convex programmes of cvxpy.
"""

import math
import time
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks._claims import Claim, ClaimFunction, PeerMissing, Scale
from benchmarks.optim._subgm_cases import (
    Ensemble,
    convex_recovery,
    gradient_peers,
    principal_component_pursuit,
    relative_error,
)
from hesse.optim.subgm import StepRule, l1_subgradient, recover_psd, robust_matrix_completion, sign_rip_deviation

__all__ = ["CLAIMS"]

F64 = torch.float64
GEOMETRIC = StepRule("geometric", decay=0.995)
SMALL = 1e-6  # the start of the geometric claims
LEAST_SQUARES = 1e9  # width of Huber's band, in units of y, within which every residual lies


def _ensembles(scale: Scale, stream: int, m: int | None = None, d: int | None = None) -> list[Ensemble]:
    m = scale(smoke=200, full=2000) if m is None else m
    d = scale(smoke=6, full=20) if d is None else d
    seeds = range(scale(smoke=2, full=5))
    return [Ensemble.draw(10_000 * abs(scale.seed) + 100 * stream + seed, m, d) for seed in seeds]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _ratio(numerators: list[float], denominators: list[float]) -> tuple[float, float]:
    """Mean and standard error of the ratio over seeds."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return fmean(ratios), stdev(ratios) / len(ratios) ** 0.5


def over_parameterisation(scale: Scale) -> list[Claim]:
    """One setting, r' columns from 2 to d, and outliers from 10 % to 50 %; the worst of five seeds."""
    steps = scale(smoke=300, full=3000)
    fractions = (0.1, 0.3, 0.5)
    errors: dict[str, list[float]] = {}
    for ensemble in _ensembles(scale, 1):
        truth, packed = ensemble.truth(), ensemble.packed
        y = torch.stack([ensemble.targets(truth, outliers=p) for p in fractions])
        runs: dict[str, dict[str, Any]] = {
            name: {"rank": rank, "rule": GEOMETRIC, "init_scale": SMALL}
            for name, rank in (("r'=2", 2), ("r'=5", 5), ("r'=d", None))
        }
        runs["r'=d, other schedule"] = {"rule": StepRule("geometric", eta0=0.5, decay=0.993), "init_scale": 1e-8}
        runs["least squares"] = {"rule": GEOMETRIC, "init_scale": SMALL, "smoothing": LEAST_SQUARES}
        for name, options in runs.items():
            found = recover_psd(packed, y, max_steps=steps, tol=0.0, generator=_generator(), **options)
            for p, error in zip(fractions, relative_error(found, truth), strict=True):
                errors.setdefault(f"{name}, p={p:g}", []).append(error)
    ranks = [name for name in errors if name.startswith("r'=") and "other" not in name]
    light = max(max(errors[name]) for name in ranks if name.endswith("p=0.1"))
    heavy = max(max(errors[name]) for name in ranks if name.endswith("p=0.3"))
    gain = min(a / b for a, b in zip(errors["least squares, p=0.1"], errors["r'=d, p=0.1"], strict=True))
    return [
        Claim("10 % outliers, r' in {2, 5, 20}: worst error", light, 1e-5, "lower", {"errors": errors}, full_only=True),
        Claim("30 % outliers, r' in {2, 5, 20}: worst error", heavy, 1e-3, "lower", full_only=True),
        Claim("10 % outliers, r' = d: error of least squares over ours", gain, 1e4, "higher", full_only=True),
    ]


def small_start(scale: Scale) -> list[Claim]:
    """The final error against the scale of the start, without noise (adaptive rule) and with 30 % outliers."""
    scales = (1e-6, 1e-4, 1e-2, 1.0)
    clean: dict[str, list[float]] = {f"{alpha:g}": [] for alpha in scales}
    dirty: dict[str, list[float]] = {"1e-06": [], "1": []}
    for ensemble in _ensembles(scale, 2):
        truth, packed = ensemble.truth(), ensemble.packed
        y = ensemble.targets(truth)
        for alpha in scales:
            found = recover_psd(packed, y, init_scale=alpha, rule=StepRule("adaptive"), max_steps=400, tol=0.0)
            clean[f"{alpha:g}"] += relative_error(found, truth)
        y = ensemble.targets(truth, outliers=0.3)
        for name, errors in dirty.items():
            found = recover_psd(
                packed, y, init_scale=float(name), rule=GEOMETRIC, max_steps=scale(smoke=300, full=3000), tol=0.0
            )
            errors += relative_error(found, truth)
    steps_up = [
        after / before for small, large in pairwise(clean.values()) for before, after in zip(small, large, strict=True)
    ]
    growth = min(b / a for a, b in zip(clean["1e-06"], clean["1"], strict=True))
    mean, error = _ratio(dirty["1"], dirty["1e-06"])
    return [
        Claim("noiseless: error grows with the start, least factor per 100", min(steps_up), 1.0, "higher",
              {"errors": clean}, full_only=True),
        Claim("noiseless: worst error at alpha = 1e-6", max(clean["1e-06"]), 1e-8, "lower", full_only=True),
        Claim("noiseless: error at alpha = 1 over that at 1e-6, least", growth, 1e4, "higher", full_only=True),
        Claim("30 % outliers: error at alpha = 1 over that at 1e-6", mean, 5.0, "higher",
              {"errors": dirty, "standard error": error}, full_only=True),
    ]  # fmt: skip


def dense_noise(scale: Scale) -> list[Claim]:
    """Every measurement noisy: the small start does not over-fit, and the error falls as 1/√m."""
    steps, m = scale(smoke=300, full=1500), scale(smoke=200, full=2000)
    rule = StepRule("geometric", decay=0.985)
    rows: dict[str, list[float]] = {}

    def note(name: str, values: list[float]) -> None:
        rows.setdefault(name, []).extend(values)

    for factor in (1, 2, 4):
        for ensemble in _ensembles(scale, 30 + factor, factor * m):
            truth, packed = ensemble.truth(), ensemble.packed
            y = ensemble.targets(truth, noise=0.5)
            small = recover_psd(packed, y, init_scale=SMALL, rule=rule, max_steps=steps, tol=0.0)
            note(f"alpha=1e-6, m={factor * m}", relative_error(small, truth))
            if factor > 1:
                continue
            large = recover_psd(packed, y, init_scale=1.0, rule=rule, max_steps=steps, tol=0.0)
            squares = recover_psd(
                packed, y, init_scale=SMALL, rule=rule, max_steps=steps, tol=0.0, smoothing=LEAST_SQUARES
            )
            note("alpha=1", relative_error(large, truth))
            note("least squares, alpha=1e-6", relative_error(squares, truth))
            for name, found in (("alpha=1e-6", small), ("alpha=1", large)):
                note(f"loss, {name}", l1_subgradient(packed, found.factor, y)[0].reshape(1).tolist())
            note("loss, truth", (packed.apply(ensemble.basis) - y).abs().mean(-1, keepdim=True).tolist())
    overfit, error = _ratio(rows[f"alpha=1e-6, m={m}"], rows["alpha=1"])
    root = fmean(rows[f"alpha=1e-6, m={m}"]) / fmean(rows[f"alpha=1e-6, m={4 * m}"])
    losses = min(a / b for a, b in zip(rows["loss, alpha=1e-6"], rows["loss, alpha=1"], strict=True))
    return [
        Claim("noise 0.5: error at alpha = 1e-6 over that at 1", overfit, 0.7, "lower",
              {"errors": rows, "standard error": error}, full_only=True),
        Claim("noise 0.5: four times the measurements divide the error by", root, (1.6, 2.5), "inside", full_only=True),
        Claim("noise 0.5: loss of the estimate over that of the over-fitted point, least", losses, 1.0, "higher",
              full_only=True, note="the minimiser of the loss is not the truth"),
    ]  # fmt: skip


def early_stopping(scale: Scale) -> Claim:
    """Noise 1, slow decay: the last factor over-fits, the one that a tenth of the measurements pick does not."""
    last, best, least = [], [], []
    for ensemble in _ensembles(scale, 4):
        truth, packed = ensemble.truth(), ensemble.packed
        y = ensemble.targets(truth, noise=1.0)
        m = len(y)
        held = torch.randperm(m, generator=ensemble.generator) < m // 10
        options: dict[str, Any] = {"rule": GEOMETRIC, "init_scale": SMALL, "tol": 0.0, "holdout": held}
        found = recover_psd(packed, y, max_steps=20, **options)
        path = relative_error(found, truth)
        for steps in range(40, scale(smoke=200, full=1500), 20):
            found = recover_psd(packed, y, max_steps=steps, resume=found, **options)
            path += relative_error(found.last_factor @ found.last_factor.mT, truth)
        last.append(path[-1])
        least.append(min(path))
        best += relative_error(found, truth)
    mean, error = _ratio(best, last)
    rows = {"last": last, "picked by the hold-out": best, "least along the path": least, "standard error": error}
    return Claim("noise 1: error picked by a hold-out over the last", mean, 1.0, "lower", rows, full_only=True)


def schedules(scale: Scale) -> list[Claim]:
    """A decay that is too fast stalls; the plateau rule has one setting for all outliers and conditions."""
    cases = [(p, condition) for p in (0.1, 0.3) for condition in (1.0, 5.0)]
    plateau: dict[str, list[float]] = {}
    fast: list[float] = []
    for ensemble in _ensembles(scale, 5):
        packed = ensemble.packed
        truth = torch.stack([ensemble.truth(condition) for _, condition in cases])
        y = torch.stack([ensemble.targets(X, outliers=p) for X, (p, _) in zip(truth, cases, strict=True)])
        for name, alpha, rank in (("alpha=1e-6, r'=d", 1e-6, None), ("alpha=1e-8, r'=d", 1e-8, None),
                                  ("alpha=1e-6, r'=2", 1e-6, 2)):  # fmt: skip
            found = recover_psd(packed, y, rank=rank, init_scale=alpha, max_steps=scale(smoke=300, full=2500), tol=0.0)
            for (p, condition), error in zip(cases, relative_error(found, truth), strict=True):
                plateau.setdefault(f"{name}, p={p:g}, kappa={condition:g}", []).append(error)
        stalled = recover_psd(
            packed, y[0], init_scale=SMALL, rule=StepRule("geometric", decay=0.98), max_steps=1000, tol=0.0
        )
        fast += relative_error(stalled, truth[0])
    judged = {name: max(errors) for name, errors in plateau.items() if name.startswith("alpha=1e-8")}
    light = max(error for name, error in judged.items() if "p=0.1" in name)
    heavy = max(error for name, error in judged.items() if "p=0.3" in name)
    return [
        Claim("geometric, decay 0.98: mean error, stalled", fmean(fast), 0.1, "higher", {"errors": fast},
              full_only=True),
        Claim("plateau, 10 % outliers, kappa 1 and 5: worst error", light, 1e-5, "lower", {"errors": plateau},
              full_only=True, note="one setting, the defaults: alpha = 1e-8; the rows have 1e-6 as well"),
        Claim("plateau, 30 % outliers, kappa 1 and 5: worst error", heavy, 1e-3, "lower", full_only=True),
    ]  # fmt: skip


def oracles(scale: Scale) -> list[Claim]:
    """QU is the gradient of half the loss, and the adaptive step is gradient descent in the limit of many."""
    worst = 0.0
    for ensemble in _ensembles(scale, 6, m=200, d=8):
        factor = torch.randn(8, 5, generator=ensemble.generator, dtype=F64).requires_grad_()
        y = ensemble.targets(ensemble.truth(), outliers=0.2)
        loss = (torch.einsum("mij,ik,jk->m", ensemble.dense, factor, factor) - y).abs().mean() / 2
        (gradient,) = torch.autograd.grad(loss, factor)
        _, Q = l1_subgradient(ensemble.packed, factor.detach(), y)
        worst = max(worst, float((Q @ factor.detach() - gradient).abs().max() / gradient.abs().max()))
    gaps = []
    for ensemble in _ensembles(scale, 7, m=scale(smoke=20_000, full=200_000), d=5):
        truth, packed = ensemble.truth(), ensemble.packed
        y = ensemble.targets(truth)
        U = torch.randn(5, 5, generator=ensemble.generator, dtype=F64) / 2
        loss, Q = l1_subgradient(packed, U, y)
        ideal = (U @ U.mT - truth) @ U
        gaps.append(float((math.pi / 2 * loss * Q @ U - ideal).norm() / ideal.norm()))
    delta = sign_rip_deviation(_ensembles(scale, 8)[0].packed, 2, num_probes=scale(smoke=4, full=32))
    return [
        Claim("QU against autograd, relative", worst, 1e-12, "lower"),
        Claim("adaptive step against gradient descent, mean relative gap", fmean(gaps), 0.03, "lower",
              {"gaps": gaps, "Sign-RIP deviation at m = 2000, d = 20": delta.deviation, "phi": delta.scale},
              full_only=True),
    ]  # fmt: skip


def against_gradients(scale: Scale) -> Claim:
    """torch.optim on the same loss from a start of size 1, each at its best learning rate, p = 10 %."""
    steps = scale(smoke=200, full=3000)
    ours, peers = [], []
    for ensemble in _ensembles(scale, 9)[: scale(smoke=1, full=3)]:
        truth = ensemble.truth()
        y = ensemble.targets(truth, outliers=0.1)
        found = recover_psd(ensemble.packed, y, init_scale=SMALL, rule=GEOMETRIC, max_steps=steps, tol=0.0)
        ours += relative_error(found, truth)
        peers.append(gradient_peers(ensemble, y, truth, steps))
    gain = min(min(peer.values()) / error for peer, error in zip(peers, ours, strict=True))
    rows = {"ours": ours, "peers": peers}
    return Claim("error of the better of SGD and Adam over ours, least", gain, 1.0, "higher", rows, full_only=True)


def against_convex(scale: Scale) -> Claim:
    """cvxpy on order 12: nuclear-norm least absolute deviations at its best weight, 10 % outliers."""
    name = "order 12: our error over that of nuclear-norm LAD + 1e-6, worst"
    ours, peers, seconds = [], [], []
    try:
        for ensemble in _ensembles(scale, 10, m=scale(smoke=100, full=600), d=scale(smoke=5, full=12))[:3]:
            truth = ensemble.truth()
            y = ensemble.targets(truth, outliers=0.1)
            peers.append(convex_recovery(ensemble, y, truth))
            begin = time.perf_counter()
            found = recover_psd(ensemble.packed, y, max_steps=2500)
            seconds.append(time.perf_counter() - begin)
            ours += relative_error(found, truth)
    except PeerMissing as missing:
        return Claim(name, None, 1.0, "lower", {"error": str(missing)})
    ratio = max(a / (b["error"] + 1e-6) for a, b in zip(ours, peers, strict=True))
    rows = {"ours": ours, "seconds": seconds, "cvxpy with Clarabel": peers}
    return Claim(name, ratio, 1.0, "lower", rows, full_only=True)


def against_pursuit(scale: Scale) -> Claim:
    """Every entry of a 30 x 20 matrix of rank 2 seen, a tenth of them wrong: principal component pursuit by cvxpy."""
    name = "30 x 20 entries: our error over that of principal component pursuit + 1e-6, worst"
    ours, peers = [], []
    p, q = scale(smoke=(8, 6), full=(30, 20))
    rows, columns = torch.meshgrid(torch.arange(p), torch.arange(q), indexing="ij")
    indices = torch.stack([rows.flatten(), columns.flatten()], 1)
    try:
        for seed in range(scale(smoke=1, full=3)):
            generator = torch.Generator().manual_seed(10_000 * abs(scale.seed) + 1100 + seed)
            left = torch.randn(p, 2, generator=generator, dtype=F64)
            truth = left @ torch.randn(2, q, generator=generator, dtype=F64)
            wrong = torch.rand(p, q, generator=generator) < 0.1
            matrix = truth + 10 * wrong * torch.randn(p, q, generator=generator, dtype=F64)
            peers.append(principal_component_pursuit(matrix, truth))
            found = robust_matrix_completion(indices, matrix.flatten(), (p, q), rank=2)
            ours += relative_error(found.matrix, truth)
    except PeerMissing as missing:
        return Claim(name, None, 1.0, "lower", {"error": str(missing)})
    ratio = max(a / (b + 1e-6) for a, b in zip(ours, peers, strict=True))
    return Claim(name, ratio, 1.0, "lower", {"ours, rank given": ours, "cvxpy with Clarabel": peers}, full_only=True)


CLAIMS: list[ClaimFunction] = [
    over_parameterisation,
    small_start,
    dense_noise,
    early_stopping,
    schedules,
    oracles,
    against_gradients,
    against_convex,
    against_pursuit,
]
