"""Classes as subspaces: geometry and optimiser against oracles, features that keep fine labels, the price of a step.

Accuracies are in per cent on digits (1200 to train, 597 to test), means over seeds; the pre-training sees three coarse
labels, each the union of some of the ten digits. Differences are paired: a seed gives every arm the same split,
partition, start and batches.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import interleave
from benchmarks.nn._grassmann_class_training import HEADS, RIVALS, train
from benchmarks.peers import require_peer
from hesse.linalg import (
    GrassmannParameter,
    grassmann_exp,
    grassmann_log,
    grassmann_project,
    orthonormalize,
    principal_angles,
)
from hesse.nn.grassmann import GrassmannLinear
from hesse.optim.riemannian import RiemannianSGD, geodesic_step

F64 = torch.float64
SEEDS, EPOCHS = 20, 40
JUDGED = ("k=4", "k=8")
KINDS = ("coarse", "fine", "five_shot", "angle")


def _point(*shape: int, generator: torch.Generator) -> Tensor:
    return GrassmannParameter.random(*shape, dtype=F64, generator=generator).data


def _tangent(S: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    H = grassmann_project(S, torch.randn(S.shape, dtype=F64, generator=generator))
    return H * (largest / torch.linalg.matrix_norm(H, ord=2))[..., None, None]


def _defect(S: Tensor) -> float:
    return float((S.mT @ S - torch.eye(S.shape[-1], dtype=F64)).abs().max())


def claim_geodesics(scale: Scale) -> list[Claim]:
    """Steps of up to 5 rad stay orthonormal and span what pymanopt's exponential map spans; the logarithm undoes it."""
    generator = torch.Generator().manual_seed(scale.seed)
    defects: dict[str, float] = {"exponential map": 0.0, "optimiser's step": 0.0}
    logs, twins = {}, 0.0
    for d, k in ((5, 1), (10, 4), (64, 8), (200, 16)):
        S = _point(20, d, k, generator=generator)
        for largest in (1e-8, 0.1, 1.5, 5.0):
            H = _tangent(S, largest, generator)
            ends = {"exponential map": grassmann_exp(S, H), "optimiser's step": geodesic_step(S, H, 1.0)}
            for name, end in ends.items():
                defects[name] = max(defects[name], _defect(end))
            twins = max(twins, float((ends["exponential map"] - ends["optimiser's step"]).abs().max()))
            if largest < math.pi / 2:
                turn = orthonormalize(torch.randn(20, k, k, dtype=F64, generator=generator))
                back = grassmann_log(S, ends["exponential map"] @ turn)
                logs[f"d={d} k={k} largest angle {largest:g}"] = float((back - H).abs().max())
    claims = [
        Claim("geodesics stay orthonormal", max(defects.values()), 1e-12, "lower", defects),
        Claim("both forms of the geodesic agree", twins, 1e-12, "lower"),
        Claim("the logarithm undoes the exponential map", max(logs.values()), 1e-10, "lower", logs),
    ]
    pymanopt = require_peer("pymanopt.manifolds")
    peer = pymanopt.Grassmann(64, 8)
    gaps = []
    for _ in range(50):
        S = _point(64, 8, generator=generator)
        H = _tangent(S, 1.5, generator)
        theirs = torch.from_numpy(np.asarray(peer.exp(S.numpy(), H.numpy())))
        ours = grassmann_exp(S, H)
        gaps.append(float((ours @ ours.mT - theirs @ theirs.mT).abs().max()))
    has_grassmann = hasattr(require_peer("geoopt"), "Grassmann")
    rows = {"points": len(gaps), "geoopt has a Grassmann manifold": has_grassmann}
    return [*claims, Claim("projectors equal pymanopt's after a step", max(gaps), 1e-12, "lower", rows)]


def claim_layer(scale: Scale) -> list[Claim]:
    """The head's loss along geodesics against its gradient, under rotations of the bases, and at k = 1 the cosine."""
    generator = torch.Generator().manual_seed(scale.seed)
    slopes, turned, cosines, smoothed = [], [], [], []
    for _ in range(scale(smoke=5, full=50)):
        head = GrassmannLinear(20, 6, 4, generator=generator, dtype=F64)
        f = torch.randn(32, 20, dtype=F64, generator=generator)
        y = torch.randint(6, (32,), generator=generator)
        S = head.weight.data.clone()
        (G,) = torch.autograd.grad(F.cross_entropy(head(f), y), head.weight)
        H = _tangent(S, 1.0, generator)
        slope = float((G * H).sum())

        def loss(weight: Tensor, head: GrassmannLinear = head, f: Tensor = f, y: Tensor = y) -> float:
            with torch.no_grad():
                return float(F.cross_entropy(torch.func.functional_call(head, {"weight": weight}, f), y))

        t = 1e-5
        central = (loss(grassmann_exp(S, H, t)) - loss(grassmann_exp(S, H, -t))) / (2 * t)
        slopes.append(abs(central - slope) / max(1.0, abs(slope)))
        turn = orthonormalize(torch.randn(6, 4, 4, dtype=F64, generator=generator))
        turned.append(abs(loss(S @ turn) - loss(S)))
        for eps, gaps in ((0.0, cosines), (1e-12, smoothed)):
            line = GrassmannLinear(20, 6, 1, eps=eps, generator=generator, dtype=F64)
            cosine = F.cosine_similarity(f[:, None], line.weight.detach().squeeze(-1), dim=-1)
            gaps.append(float((line(f) - 25 * cosine.abs()).detach().abs().max()))
    return [
        Claim("slope along a geodesic equals <gradient, H>", max(slopes), 1e-6, "lower"),
        Claim("change of the loss as bases turn", max(turned), 1e-12, "lower"),
        Claim("k=1 equals gamma |cos|", max(cosines), 1e-12, "lower", {"with the default eps": max(smoothed)}),
    ]


def claim_dominant_subspace(scale: Scale) -> Claim:
    """Steps until max tr(SᵀAS) has found eigh's subspace to 1e-6 rad; eigenvalues 1, 39/40, ..., 1/40."""
    generator = torch.Generator().manual_seed(scale.seed)
    needed: dict[str, list[float]] = {"exp": [], "qr": []}
    A = leading = start = torch.empty(0)
    for _ in range(scale(smoke=2, full=20)):
        Q = orthonormalize(torch.randn(40, 40, dtype=F64, generator=generator))
        A = Q * torch.linspace(1 / 40, 1, 40, dtype=F64) @ Q.mT
        leading = torch.linalg.eigh(A).eigenvectors[:, -4:]
        start = _point(40, 4, generator=generator)
        for retraction, steps in needed.items():
            steps.append(_steps_to_subspace(A, leading, start, retraction=retraction))
    rows: dict[str, object] = {
        name: {"median": statistics.median(steps), "most": max(steps)} for name, steps in needed.items()
    }
    rows["last problem, buffer not projected, up to 1000 steps"] = {
        f"lr={lr:g}": _steps_to_subspace(A, leading, start, lr=lr, transport="none")
        for lr in (0.01, 0.02, 0.05, 0.1, 0.2)
    }
    return Claim("steps to the dominant subspace", max(map(max, needed.values())), 500, "lower", rows)


def _steps_to_subspace(A: Tensor, leading: Tensor, start: Tensor, *, lr: float = 0.5, **options: Any) -> float:
    S = GrassmannParameter(start.clone())
    optimizer = RiemannianSGD([S], lr=lr, maximize=True, **options)
    for step in range(1, 1001):
        optimizer.zero_grad()
        (S.mT @ A @ S).trace().backward()
        optimizer.step()
        if float(principal_angles(S.detach(), leading).max()) < 1e-6:
            return step
    return math.inf


def claim_transfer(scale: Scale) -> list[Claim]:
    """Three coarse labels to train on, ten fine ones to read: subspace heads against linear and cosine softmax."""
    arms = scale(smoke=("linear", "cosine", *JUDGED), full=tuple(HEADS))
    seeds = _seeds(scale)
    table = {arm: {kind: _spread(_scores(scale, arm, kind)) for kind in KINDS} for arm in arms}
    claims = []
    for arm in JUDGED:

        def gain(title: str, kind: str, rival: str, bar: float, arm: str = arm) -> Claim:
            mean, low, high = _paired(_scores(scale, arm, kind), _scores(scale, rival, kind))
            return Claim(f"{arm}: {title}", mean, bar, "higher", {"95 % interval": [low, high]}, full_only=True)

        mean, low, _ = _paired(_scores(scale, arm, "fine"), _scores(scale, "cosine", "fine"))
        claims += [
            gain("coarse points over linear softmax", "coarse", "linear", -0.2),
            gain("fine points over linear softmax", "fine", "linear", 0.3),
            gain("fine points over cosine softmax", "fine", "cosine", 0.8),
            Claim(f"{arm}: least of them, at 95 %", low, 0.0, "higher", {"mean": mean}, full_only=True),
            gain("degrees within classes over linear softmax", "angle", "linear", 10.0),
        ]
    five = {arm: _paired(_scores(scale, arm, "five_shot"), _scores(scale, "linear", "five_shot")) for arm in JUDGED}
    note = "a probe of five examples a digit is in the rows: no bar is set for it"
    rows = {"seeds": len(seeds), "arms": table, "five-shot points over linear": five}
    first = claims[0]
    claims[0] = Claim(first.name, first.measured, first.bar, "higher", {**first.rows, **rows}, True, note)
    if scale.name == "smoke":
        return claims
    means = {arm: statistics.mean(_scores(scale, arm, "fine")) for arm in HEADS if arm.startswith("k=")}
    best = max(("k=2", "k=4", "k=8"), key=means.__getitem__)
    ends = {end: _paired(_scores(scale, best, "fine"), _scores(scale, end, "fine")) for end in ("k=1", "k=16")}
    return [
        *claims,
        Claim("fine points of the best inner k over k=1", ends["k=1"][0], 0.0, "higher", {"best": best} | means),
        Claim("fine points of k=16 over the best inner k", -ends["k=16"][0], 0.2, "lower", {"95 %": ends["k=16"][1:]}),
    ]


def claim_optimisers(scale: Scale) -> list[Claim]:
    """The head at k = 8 by geodesics, by Euclidean steps and QR, by geoopt on the Stiefel manifold: same accuracy."""
    claims = []
    for rival in RIVALS:
        gaps = {kind: _paired(_scores(scale, "k=8", kind), _scores(scale, rival, kind)) for kind in ("coarse", "fine")}
        table = {kind: _spread(_scores(scale, rival, kind)) for kind in KINDS}
        rows = {"geodesic less rival, with 95 % interval": gaps, "rival": table}
        largest = max(abs(mean) for mean, _, _ in gaps.values())
        claims.append(Claim(f"points between geodesics and {rival}", largest, 0.5, "lower", rows, full_only=True))
    return claims


def claim_step_time(scale: Scale) -> Claim:
    """Five steps on 100 subspaces of dimension 8 in R⁵¹², one QR among ours; geoopt's with either Stiefel geometry."""
    geoopt = require_peer("geoopt")
    classes, d = scale(smoke=(10, 64), full=(100, 512))
    generator = torch.Generator().manual_seed(scale.seed)
    start = orthonormalize(torch.randn(classes, d, 8, generator=generator))
    gradient = 1e-2 * torch.randn(classes, 8, d, generator=generator).mT  # long columns, as autograd leaves it

    def steps(optimizer: torch.optim.Optimizer, count: int = 5) -> Callable[[], None]:
        point = optimizer.param_groups[0]["params"][0]
        point.grad = torch.empty_like(point).copy_(gradient)

        def run() -> None:
            for _ in range(count):
                optimizer.step()

        return run

    def theirs(manifold: object, columns: bool) -> torch.optim.Optimizer:
        point = geoopt.ManifoldParameter(start.clone() if columns else start.contiguous(), manifold=manifold)
        return geoopt.optim.RiemannianSGD([point], lr=0.1, momentum=0.9)

    arms = {
        "geodesic": steps(RiemannianSGD([GrassmannParameter(start.clone())], lr=0.1)),
        "qr": steps(RiemannianSGD([GrassmannParameter(start.clone())], lr=0.1, retraction="qr")),
        "geoopt, long columns": steps(theirs(geoopt.EuclideanStiefel(), True)),
        "geoopt, long rows": steps(theirs(geoopt.EuclideanStiefel(), False)),
    }
    repeats = scale(smoke=3, full=60)
    seconds = {name: statistics.median(values) for name, values in interleave(arms, repeats, clock="cpu").items()}
    canonical = {"canonical": steps(theirs(geoopt.CanonicalStiefel(), True), 1)}
    seconds["geoopt, canonical metric"] = 5 * statistics.median(interleave(canonical, 3, clock="cpu")["canonical"])
    rows = {name: value / seconds["geodesic"] for name, value in seconds.items()}
    ratio = min(rows["geoopt, long columns"], rows["geoopt, long rows"])
    return Claim("geoopt's step takes as many of ours", ratio, 2.0, "higher", {"relative": rows}, full_only=True)


def _seeds(scale: Scale) -> range:
    return range(scale.seed, scale.seed + scale(smoke=2, full=SEEDS))


def _scores(scale: Scale, arm: str, kind: str) -> list[float]:
    return [getattr(train(arm, seed, scale(smoke=1, full=EPOCHS)), kind) for seed in _seeds(scale)]


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": round(statistics.mean(values), 2), "standard deviation": round(statistics.stdev(values), 2)}


def _paired(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Mean difference, and the ends of its 95 % interval by Student's t."""
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
    reach = float(scipy.stats.t.ppf(0.975, len(gains) - 1)) * error
    return mean, mean - reach, mean + reach


CLAIMS: list[ClaimFunction] = [
    claim_geodesics,
    claim_layer,
    claim_dominant_subspace,
    claim_transfer,
    claim_optimisers,
    claim_step_time,
]
