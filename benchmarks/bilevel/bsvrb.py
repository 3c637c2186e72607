"""Claims of BSVRB: many lower problems, a few blocks and a few rows a step, at the samples other methods get.

Oracles: the closed form of ridge regressions that share their penalties, L-BFGS-B for their optimum; deterministic
SOBA; libauc's moving averages.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import breast_cancer, flip_labels
from benchmarks.peers import require_peer
from hesse.bilevel import (
    BSVRB,
    MSVR,
    RSVRB,
    SOBA,
    BilevelProblem,
    BilevelResult,
    BilevelSolver,
    BlockSOBA,
    Budget,
    ExactProblem,
    Oracle,
    problems,
    solve_lower,
    tasks,
)

__all__ = ["CLAIMS"]

BOX = (-5.0, 1.5)
LOOK_EVERY = 20  # steps between two looks at the gap


def _ridges(scale: Scale, stream: int) -> ExactProblem:
    """100 tasks of 30 rows and 20 features; a stream for each use, so that no run is tuned on what it is judged by."""
    return problems.multi_ridge(
        scale(smoke=20, full=100), 30, 20, noise=1.0, weak=0.3, bounds=BOX, seed=1000 * abs(scale.seed) + stream
    )


def _strong_convexity(case: ExactProblem) -> float:
    """The least eigenvalue of all block Hessians at the corner of the box: a bound for the whole box."""
    corner = torch.full_like(case.problem.x0, BOX[0])
    layout = case.problem.y_layout.layout.shapes[0]
    oracle = Oracle(case.problem)
    units = torch.eye(layout[1], dtype=torch.float64).unsqueeze(1).expand(-1, *layout)
    columns = [oracle.hessian_product(corner, torch.zeros(layout).to(corner).flatten(), u.flatten()) for u in units]
    hessians = layout[0] * torch.stack(columns).unflatten(1, layout).transpose(0, 1)
    return float(torch.linalg.eigvalsh(hessians).min())


def _optimum(case: ExactProblem) -> float:
    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(x)
        return float(case.value(point)), case.hypergradient(point).numpy()

    start = case.problem.x0.numpy()
    found: Any = minimize(both, start, jac=True, method="L-BFGS-B", bounds=[BOX] * len(start), options={"ftol": 1e-14})
    return float(found.fun)


def _gaps(
    case: ExactProblem, make: Callable[[BilevelProblem], BilevelSolver], steps: int, *, stop_at: float = -math.inf
) -> tuple[list[float], BilevelResult]:
    """Φ(x) - Φ* along a run, from the warm start every solver makes; +inf where the run broke down."""
    solver, least = make(case.problem), _optimum(case)
    gaps: list[float] = []

    def look(row: Any) -> bool:
        gaps.append(float(case.value(solver.x)) - least)
        return gaps[-1] <= stop_at

    result = solver.run(Budget(iterations=steps), look, trace_every=LOOK_EVERY)
    if "failed" in result.message or "NaN" in result.message:
        gaps.append(math.inf)
    return gaps, result


def _late_gap(gaps: list[float]) -> float:
    """Mean over the last fifth of the run."""
    return statistics.fmean(gaps[-max(1, len(gaps) // 5) :])


def identities(scale: Scale) -> list[Claim]:
    """BSVRB with everything drawn is SOBA; lazy steps are eager steps; the closed form against differences."""
    case = problems.multi_ridge(12, 15, 6, noise=1.0, weak=0.3, seed=abs(scale.seed))
    problem, m = case.problem, 12
    full = BSVRB(problem, 2, blocks_per_step=m, batch_size=15, lr=0.1, lr_lower=0.1, alpha=1.0, beta=1.0)
    full.warm_start()
    soba = SOBA(problem, lr=0.1, lr_lower=0.1 * m, decay=0.0)  # its losses are means over the blocks
    soba.y, soba.v = full.lower_variable(), full.v.flatten().clone()
    ours, theirs = full.run(Budget(iterations=100)), soba.run(Budget(iterations=100))
    parted = max(float((ours.x - theirs.x).abs().max()), float((ours.y - theirs.y).abs().max()))

    lazy: dict[str, float] = {}
    for version in (1, 2):
        ends = [
            BSVRB(problem, version, blocks_per_step=3, batch_size=6, lr=0.1, lr_lower=0.01, mu=0.05, lazy=choice).run(
                Budget(iterations=200)
            )
            for choice in (True, False)
        ]
        lazy[f"version {version}"] = max(
            float((ends[0].x - ends[1].x).abs().max()), float((ends[0].y - ends[1].y).abs().max())
        )
    x = problem.x0 - 1.0
    units = 1e-5 * torch.eye(len(x), dtype=x.dtype)
    slopes = torch.stack([(case.value(x + u) - case.value(x - u)) / 2e-5 for u in units])
    truth = case.hypergradient(x)
    return [
        Claim("all blocks and rows, a = b = 1: distance from SOBA", parted, 1e-10, "lower", {"steps": 100}),
        Claim("lazy and eager runs: distance", max(lazy.values()), 1e-10, "lower", lazy),
        Claim(
            "closed form against central differences",
            float((slopes - truth).norm() / truth.norm()),
            1e-6,
            "lower",
            {"gradient norm": float(truth.norm())},
        ),
    ]


def _rotation(order: int, generator: torch.Generator) -> Tensor:
    """An antisymmetric matrix of norm 1: a point that follows it moves smoothly, at constant speed."""
    matrix = torch.randn(order, order, dtype=torch.float64, generator=generator)
    matrix = matrix - matrix.T
    return matrix / torch.linalg.matrix_norm(matrix, 2)


def _tracking_error(gamma: str | float, speed: float, scale: Scale, seed: int) -> float:
    """Mean squared error of the last half of a run that tracks 100 linear maps of a moving point, 10 probed a step."""
    m, probed, order, steps = 100, 10, 5, scale(smoke=400, full=4000)
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(m, order, order, dtype=torch.float64, generator=g)
    turn = torch.linalg.matrix_exp(speed * _rotation(order, g))
    w = torch.randn(order, dtype=torch.float64, generator=g)
    tracker = MSVR(m, (order,), 0.1, gamma, dtype=torch.float64)
    errors = []
    before = w
    for step in range(steps):
        index = torch.randperm(m, generator=g)[:probed]
        noisy = maps[index] + 0.1 * speed * torch.randn(probed, order, order, dtype=torch.float64, generator=g)
        tracker.update(index, noisy @ w, noisy @ before)
        if step >= steps // 2:
            errors.append(float((tracker.value - maps @ w).square().mean()))
        before, w = w, turn @ w
    return errors[-1] if speed == 0 else statistics.fmean(errors)


def tracking(scale: Scale) -> list[Claim]:
    """The estimator by itself: exact at rest, and what its factor buys while the point moves."""
    seeds = [10 * abs(scale.seed) + i for i in range(scale(smoke=1, full=5))]
    rest = max(_tracking_error("msvr", 0.0, scale, seed) for seed in seeds)
    moving = {
        name: statistics.fmean(_tracking_error(gamma, 0.01, scale, seed) for seed in seeds)
        for name, gamma in (("msvr", "msvr"), ("storm", "storm"), ("moving average", 0.0))
    }
    return [
        Claim("tracker at rest: squared error", rest, 1e-12, "lower", {"seeds": len(seeds)}, full_only=True),
        Claim(
            "tracker in motion: error over plain STORM's",
            moving["msvr"] / moving["storm"],
            1 / 3,
            "lower",
            moving,
            full_only=True,
        ),
    ]


def song(scale: Scale) -> list[Claim]:
    """libauc's NDCG loss keeps a moving average for each query: our γ = 0. Scores drift, as they do in training.

    100 queries with one relevant item each, 10 queries and 10 of 50 other items a step.
    """
    ranking: Any = require_peer("libauc.losses.ranking")
    m, probed, items, drawn, steps = 100, 10, 50, 10, scale(smoke=300, full=3000)
    g = torch.Generator().manual_seed(abs(scale.seed))
    features = torch.randn(m, 1 + items, 8, dtype=torch.float32, generator=g)
    w, turn = 0.3 * torch.randn(8, generator=g), torch.linalg.matrix_exp(0.01 * _rotation(8, g)).float()
    peer = ranking.NDCGLoss(N=m, num_user=m, num_item=items, num_pos=1, gamma0=0.1, device=torch.device("cpu"))
    own = {"msvr": MSVR(m, (), 0.1), "moving average": MSVR(m, (), 0.1, 0.0)}
    errors: dict[str, list[float]] = {"libauc": [], **{name: [] for name in own}}

    def surrogate(scores: Tensor) -> Tensor:
        return (1 - (scores[:, :1] - scores)).clamp_min(0).square()

    before = w
    for step in range(steps):
        index = torch.randperm(m, generator=g)[:probed]
        chosen = 1 + torch.rand(probed, items, generator=g).argsort(1)[:, :drawn]
        table = features[index]
        table = torch.cat([table[:, :1], table.gather(1, chosen.unsqueeze(2).expand(-1, -1, 8))], dim=1)
        ones = torch.ones(probed)
        peer(
            table @ w,
            {
                "rating": torch.ones(probed, 1 + drawn),
                "user_id": index,
                "num_pos_items": ones,
                "ideal_dcg": ones,
                "user_item_id": index.unsqueeze(1).expand(-1, 1 + drawn),
            },
        )
        for tracker in own.values():
            tracker.update(index, surrogate(table @ w).mean(1), surrogate(table @ before).mean(1))
        if step >= steps // 2:
            each = surrogate(features @ w)
            truth = (each[:, 0] + drawn * each[:, 1:].mean(1)) / (1 + drawn)
            held = {"libauc": peer.u, **{name: tracker.value for name, tracker in own.items()}}
            for name, value in held.items():
                errors[name].append(float((value - truth).square().mean()))
        before, w = w, turn @ w
    same = float((own["moving average"].value - peer.u).abs().max() / peer.u.abs().max())
    mean = {name: statistics.fmean(values) for name, values in errors.items()}
    return [
        Claim("libauc's average is ours with gamma 0", same, 1e-5, "lower", {"steps": steps}),
        Claim(
            "ranking queries: error over libauc's", mean["msvr"] / mean["libauc"], 1 / 3, "lower", mean, full_only=True
        ),
    ]


Maker = Callable[..., BilevelSolver]
ALPHA = (
    0.05  # BSVRB's own setting, the same everywhere; half the default, which suits runs of more than a thousand steps
)
GRID = [
    {"lr": lr, "lr_lower": lr_lower, "beta": beta}
    for lr, lr_lower, beta in product((0.1, 0.2), (0.01, 0.03, 0.1), (0.05, 0.3))
]


def _methods(case: ExactProblem, **options: Any) -> dict[str, Maker]:
    mu = _strong_convexity(case)
    return {
        "v1": partial(BSVRB, version=1, mu=mu, alpha=ALPHA, **options),
        "v2": partial(BSVRB, version=2, alpha=ALPHA, **options),
        "RSVRB": partial(RSVRB, mu=mu, **options),
        "BlockSOBA": partial(BlockSOBA, **options),
    }


def _quiet(make: Maker, **settings: Any) -> Callable[[BilevelProblem], BilevelSolver]:
    return lambda problem: make(problem, **settings)


def methods(scale: Scale) -> list[Claim]:
    """Every method tuned on the same grid and the same problem, then judged on five others at equal samples."""
    steps = scale(smoke=60, full=2000)
    options: dict[str, Any] = {"blocks_per_step": scale(smoke=4, full=10), "batch_size": 8}
    grid = scale(smoke=GRID[:1], full=GRID)
    tuning = _ridges(scale, 0)
    best: dict[str, dict[str, float]] = {}
    tuned: dict[str, float] = {}
    for name, make in _methods(tuning, seed=abs(scale.seed), **options).items():
        found = [_late_gap(_gaps(tuning, _quiet(make, **settings), steps)[0]) for settings in grid]
        tuned[name] = min(found)
        best[name] = grid[found.index(tuned[name])]
    gaps: dict[str, list[float]] = {name: [] for name in best}
    samples: dict[str, int] = {}
    for stream in range(1, scale(smoke=2, full=6)):
        case = _ridges(scale, stream)
        for name, make in _methods(case, seed=stream, **options).items():
            trail, result = _gaps(case, _quiet(make, **best[name]), steps)
            gaps[name].append(_late_gap(trail))
            samples[name] = result.counts.samples
    mean = {name: statistics.fmean(values) for name, values in gaps.items()}
    rows = {"mean gap": mean, "gaps": gaps, "settings": best, "gap when tuned": tuned, "samples": samples}
    return [
        Claim(
            f"equal samples: gap of {own} over {other}'s",
            mean[own] / mean[other],
            bar,
            "lower",
            rows if (own, other) == ("v1", "RSVRB") else {},
            full_only=True,
        )
        for own in ("v1", "v2")
        for other, bar in (("RSVRB", 0.5), ("BlockSOBA", 0.25))
    ]


def factor(scale: Scale) -> list[Claim]:
    """The same run of version 2 with γ of plain STORM, and with none."""
    steps, blocks = scale(smoke=60, full=2000), scale(smoke=4, full=10)
    gaps: dict[str, list[float]] = {"msvr": [], "storm": [], "moving average": []}
    for stream in range(1, scale(smoke=2, full=4)):
        case = _ridges(scale, stream)
        for name, gamma in (("msvr", "msvr"), ("storm", "storm"), ("moving average", 0.0)):
            make = partial(
                BSVRB,
                version=2,
                blocks_per_step=blocks,
                batch_size=8,
                lr=0.5,
                lr_lower=0.02,
                gamma=gamma,
                seed=stream,
            )
            gaps[name].append(_late_gap(_gaps(case, make, steps)[0]))
    mean = {name: statistics.fmean(values) for name, values in gaps.items()}
    return [
        Claim(
            f"{name} in place of the factor: gap over ours",
            mean[name] / mean["msvr"],
            10.0,
            "higher",
            {"mean gap": mean, "gaps": gaps} if name == "storm" else {},
            full_only=True,
        )
        for name in ("storm", "moving average")
    ]


def _second(blocks: int, batch: int, lr: float, lr_lower: float, seed: int) -> Callable[[BilevelProblem], BSVRB]:
    return partial(BSVRB, version=2, blocks_per_step=blocks, batch_size=batch, lr=lr, lr_lower=lr_lower, seed=seed)


def speedup(scale: Scale) -> list[Claim]:
    """What more blocks and more rows a step buy version 2: at fixed steps, and with steps in proportion."""
    streams = range(1, scale(smoke=2, full=3))
    cases = {stream: _ridges(scale, stream) for stream in streams}

    def mean_gap(steps: int, **settings: Any) -> tuple[float, float]:
        runs = [_gaps(case, _second(seed=stream, **settings), steps) for stream, case in cases.items()]
        norms = [statistics.fmean(n * n for n in result.column("exact_norm")) for _, result in runs]
        return statistics.fmean(_late_gap(gaps) for gaps, _ in runs), statistics.fmean(norms)

    fixed = {
        blocks: mean_gap(scale(smoke=40, full=3000), blocks=blocks, batch=8, lr=0.5, lr_lower=0.02)
        for blocks in scale(smoke=(10, 20), full=(10, 20, 50, 100))
    }
    rows = {
        batch: mean_gap(scale(smoke=40, full=4000), blocks=scale(smoke=5, full=10), batch=batch, lr=0.25, lr_lower=0.01)
        for batch in (2, 4, 8, 16)
    }
    limit = scale(smoke=100, full=12_000)
    reached: dict[int, list[int]] = {}
    for blocks in scale(smoke=(5, 20), full=(5, 10, 20)):
        reached[blocks] = []
        for stream, case in cases.items():
            make = _second(blocks, 8, 0.05 * blocks, 0.0016 * blocks, stream)
            gaps, result = _gaps(case, make, limit, stop_at=2.5e-2)
            reached[blocks].append(result.trace[-1].iteration if gaps[-1] <= 2.5e-2 else 10 * limit)
    mean = {blocks: statistics.fmean(values) for blocks, values in reached.items()}
    most, fewest = max(fixed), min(fixed)
    return [
        Claim(
            "fixed steps: gap with all blocks over ten's",
            fixed[most][0] / fixed[fewest][0],
            0.5,
            "lower",
            {
                "gap by blocks": {k: gap for k, (gap, _) in fixed.items()},
                "mean squared gradient by blocks": {k: norm for k, (_, norm) in fixed.items()},
            },
            full_only=True,
        ),
        Claim(
            "steps in proportion: iterations with 5 blocks over 20's",
            mean[5] / mean[20],
            3.0,
            "higher",
            {"iterations to a gap of 0.025, by blocks": reached},
            full_only=True,
        ),
        Claim(
            "rows: gap with 2 over 8's",
            rows[2][0] / rows[8][0],
            3.0,
            "higher",
            {"gap by rows": {k: gap for k, (gap, _) in rows.items()}},
            full_only=True,
        ),
    ]


def _classifiers(seed: int, num_blocks: int) -> BilevelProblem:
    """Breast cancer, a fifth of the training labels flipped; 100 temperatures between 0.1 and 10."""
    split = breast_cancer(400, seed=seed)
    X = torch.cat([split.train_x / 30**0.5, torch.ones(400, 1, dtype=torch.float64)], dim=1)
    noisy, _ = flip_labels(split.train_y[:300], 0.2, 2, seed=seed)
    temperatures = torch.logspace(-1, 1, num_blocks, dtype=torch.float64)
    signs, trusted = 2.0 * noisy.double() - 1, 2.0 * split.train_y[300:].double() - 1
    return tasks.temperature_blocks(X[:300], signs, X[300:], trusted, temperatures)


def temperatures(scale: Scale) -> list[Claim]:
    """The paper's task: row weights shared by 100 classifiers; each method tuned on one grid, on another split."""
    steps, num_blocks = scale(smoke=20, full=500), scale(smoke=20, full=100)
    options: dict[str, Any] = {"blocks_per_step": num_blocks // 10, "batch_size": 32}
    makers: dict[str, Maker] = {
        "v1": partial(BSVRB, version=1, mu=1e-2, alpha=ALPHA, **options),
        "v2": partial(BSVRB, version=2, alpha=ALPHA, **options),
        "RSVRB": partial(RSVRB, mu=1e-2, **options),
    }
    grid = [{"lr": lr, "lr_lower": lr_lower} for lr in (100.0, 300.0) for lr_lower in (0.003, 0.01, 0.03)]

    def run(make: Maker, seed: int, settings: dict[str, float]) -> tuple[float, float, int]:
        problem = _classifiers(seed, num_blocks)
        result = make(problem, seed=seed, **settings).run(Budget(iterations=steps), trace_every=LOOK_EVERY)
        values = result.column("upper_value")
        if "failed" in result.message or "NaN" in result.message:
            values.append(math.inf)
        oracle, flat = Oracle(problem), problem.y_layout.flatten(result.y)
        solved = float(oracle.value(result.x, solve_lower(oracle, result.x, flat, tol=1e-8).y))
        return _late_gap(values), solved, result.counts.samples

    base = 10 * abs(scale.seed)
    best, losses, exact, samples = {}, {}, {}, {}
    for name, make in makers.items():
        found = [run(make, base, settings)[0] for settings in scale(smoke=grid[:1], full=grid)]
        best[name] = grid[found.index(min(found))]
        runs = [run(make, base + i, best[name]) for i in range(1, scale(smoke=2, full=3))]
        losses[name] = [loss for loss, _, _ in runs]
        exact[name] = [value for _, value, _ in runs]
        samples[name] = runs[0][2]
    mean = {name: statistics.fmean(values) for name, values in losses.items()}
    rows = {
        "validation loss": losses,
        "validation loss with the lower level solved": exact,
        "settings": best,
        "samples": samples,
    }
    return [
        Claim(
            f"temperatures: validation loss of {name} over RSVRB's",
            mean[name] / mean["RSVRB"],
            1.0,
            "lower",
            rows if name == "v1" else {},
            full_only=True,
        )
        for name in ("v1", "v2")
    ]


CLAIMS: list[ClaimFunction] = [identities, tracking, song, methods, factor, speedup, temperatures]
