"""Claims of the penalty methods: exact formulas, many lower solutions, noise, cleaning of digits, cost, constraints.

Oracles: closed forms of `hesse.bilevel.problems`; the baselines of `hesse.bilevel` at equal seconds; betty (finite
differences) and boat (value function) on the same data.   Shapes: R replicates, N entries of x, M of y.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.bilevel._penalty_models import TIMED, Cleaning, cleaning, prepared, run_on
from benchmarks.bilevel._penalty_peers import betty_darts, boat_value_function
from benchmarks.data import digits, flip_labels, interleave, peak_rss_growth
from hesse.bilevel import (
    F2SA,
    SOBA,
    AmIGO,
    BilevelProblem,
    BilevelSolver,
    Budget,
    ExactProblem,
    NoiseSampler,
    Oracle,
    PenaltyBilevel,
    StocBiO,
    degenerate_hypergradient,
    hypergradient,
    penalty_hypergradient,
    problems,
    solve_lower,
    tasks,
)
from hesse.linalg import Ball

__all__ = ["CLAIMS"]

SIZES = (5, 8)  # N and M of all quadratic problems
SIGMAS = (1e-2, 1e-3, 1e-4)


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def _quadratic(seed: int, rank: int | None) -> ExactProblem:
    return problems.quadratic(*SIZES, rank=rank, condition=1 / 0.32, upper_spectrum=(0.5, 2.0), seed=seed)


def _boxes(seed: int) -> Iterator[ExactProblem]:
    """Box problems from this seed on in which, near the start, some bounds bind and others do not."""
    for candidate in itertools.count(1000 * abs(seed)):
        case = problems.box_quadratic(*SIZES, seed=candidate)
        bound = int(_bound(case.lower_solution(case.problem.x0 + 0.1)).sum())
        if 2 <= bound <= SIZES[1] - 2:
            yield case


def _bound(y: Tensor) -> Tensor:
    return y.abs() >= 0.5 - 1e-9


def _steady(case: ExactProblem) -> bool:
    """Whether the bounds that bind are the same at s = 0 and at twice the largest s that is measured."""
    x = case.problem.x0 + 0.1
    penalised = _penalised(case, x, 2 * SIGMAS[0], False).y
    return bool((_bound(case.lower_solution(x)) == _bound(penalised)).all())


def _penalised(case: ExactProblem, x: Tensor, sigma: float, richardson: bool) -> Any:
    return penalty_hypergradient(case.problem, x, sigma, richardson=richardson, tol=1e-15, max_steps=20_000)


def formulas(scale: Scale) -> list[Claim]:
    """The pseudo-inverse formula against closed forms, and the order of the penalty's error in s."""
    exact: dict[str, float] = {}
    errors: dict[str, list[float]] = {}
    slopes: dict[bool, dict[str, float]] = {False: {}, True: {}}
    for i in range(scale(smoke=1, full=3)):
        seed = 10 * abs(scale.seed) + i
        cases = {
            "full rank": _quadratic(seed, None),
            "rank 5 of 8": _quadratic(seed, 5),
            "box": next(filter(_steady, _boxes(seed))),
        }
        for kind, case in cases.items():
            name, x = f"{kind}, {i}", case.problem.x0 + 0.1
            truth = case.hypergradient(x)
            exact[name] = _relative(degenerate_hypergradient(case.problem, x, case.lower_solution(x)).grad, truth)
            for richardson, found in slopes.items():
                gaps = [_relative(_penalised(case, x, s, richardson).grad, truth) for s in SIGMAS]
                errors[f"{name}{', Richardson' if richardson else ''}"] = gaps
                found[name] = float(np.polyfit(np.log(SIGMAS), np.log(gaps), 1)[0])
    claims = [Claim("pseudo-inverse formula: relative error", max(exact.values()), 1e-8, "lower", exact)]
    for richardson, found in slopes.items():
        order = 2.0 if richardson else 1.0
        worst = max(found.values(), key=lambda value: abs(value - order))
        name = "error of Richardson's combination" if richardson else "error of the penalty"
        rows = {"slopes": found} | ({} if richardson else {"sigma": SIGMAS, "relative errors": errors})
        claims.append(Claim(f"{name}: worst log-log slope in s", worst, (0.9 * order, 1.1 * order), "inside", rows))
    return claims


def _largest_curvature(case: ExactProblem) -> float:
    zero = case.problem.x0
    columns = [case.hypergradient(e) - case.hypergradient(zero) for e in torch.eye(len(zero)).to(zero)]
    return float(torch.linalg.matrix_norm(torch.stack(columns), 2))


def _best(case: ExactProblem) -> float:
    return float(case.value(torch.as_tensor(case.solution)))


def _implicit_from_zero(case: ExactProblem) -> float:
    """F where implicit differentiation rests that takes the shortest lower solution and the shortest v.

    Its estimate is affine in x on a quadratic problem, so that its root is one linear solve.
    """
    problem = case.problem

    def solved(x: Tensor) -> Tensor:
        return solve_lower(Oracle(problem), x, problem.y0, tol=1e-9).y

    def estimate(x: Tensor) -> Tensor:
        return torch.as_tensor(hypergradient(problem, x, solved(x), method="minres", rtol=1e-10).grad)

    at_zero = estimate(problem.x0)
    columns = [estimate(e) - at_zero for e in torch.eye(len(at_zero), dtype=at_zero.dtype)]
    x = torch.linalg.solve(torch.stack(columns, 1), -at_zero)
    return float(problem.upper(x, solved(x), None))


def many_solutions(scale: Scale) -> list[Claim]:
    """A lower level of rank 5 in 8 unknowns, without noise: which of its solutions is found?"""
    steps = scale(smoke=500, full=20_000)
    ours, theirs = [], []
    rows: dict[str, Any] = {}
    for i in range(scale(smoke=1, full=3)):
        case = _quadratic(10 * abs(scale.seed) + i, 5)
        lr = 0.1 / _largest_curvature(case)
        start, best = float(case.value(case.problem.x0)), _best(case)
        solver = PenaltyBilevel(case.problem, lr=lr, lr_lower=0.5, sigma=0.03)
        result = solver.run(Budget(iterations=steps), trace_every=steps)
        soba = SOBA(case.problem, lr=lr, lr_lower=0.5, decay=0.0)
        reached = {
            "penalty": result.trace[-1].upper_value,
            "SOBA": soba.run(Budget(iterations=steps // 4), trace_every=steps).trace[-1].upper_value,
            "AID from y = 0": _implicit_from_zero(case),
        }
        gaps = {name: (value - best) / (start - best) for name, value in reached.items()}
        psi = (float(case.value(torch.as_tensor(result.x))) - best) / (start - best)
        rows[f"instance {i}"] = gaps | {"penalty, psi at its x": psi, "penalty gap": result.extra["penalty_gap"]}
        ours.append(abs(gaps["penalty"]))
        theirs.append(min(gaps["SOBA"], gaps["AID from y = 0"]) / abs(gaps["penalty"]))
    return [
        Claim("many solutions: |f - psi*| over the start's", max(ours), 1e-2, "lower", rows, full_only=True),
        Claim("many solutions: SOBA's and AID's excess over ours", min(theirs), 3.0, "higher", {}, full_only=True),
    ]


class _Independent(PenaltyBilevel):
    """Samples of its own for each of the two lower gradients: what sharing is compared with."""

    def draw_batches(self) -> tuple[Any, Any, Any]:
        return self.draw_upper(), self.draw_lower(), self.draw_lower()


def _replicated(case: ExactProblem, scales: Tensor, seed: int) -> BilevelProblem:
    """R copies side by side in one problem, copy r with standard normal noise times ``scales[r]`` on all gradients."""
    problem, copies = case.problem, len(scales)
    size, order = SIZES

    def observed(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        each = torch.vmap(lambda x, y: loss(x, y, None))

        def total(x: Tensor, y: Tensor, batch: Any) -> Tensor:
            value = each(x, y).sum()
            if batch is None:
                return value
            by_x, by_y = (noise.reshape(copies, -1) * scales[:, None] for noise in batch)
            return value + (by_x * x).sum() + (by_y * y).sum()

        return total

    def sampler(stream: int) -> NoiseSampler:
        return NoiseSampler((copies * size, copies * order), seed=seed + stream)

    return BilevelProblem(
        upper=observed(problem.upper),
        lower=observed(problem.lower),
        x0=problem.x0.repeat(copies, 1),
        y0=problem.y0.repeat(copies, 1),
        upper_sampler=sampler(0),
        lower_sampler=sampler(1),
    )


def noise(scale: Scale) -> list[Claim]:
    """The same with noise 0.1 and 0.5 on every gradient, near the largest stable step: momentum and shared samples."""
    case = _quadratic(10 * abs(scale.seed), 5)
    copies, steps = scale(smoke=(2, 200), full=(16, 10_000))
    scales = torch.tensor([0.1, 0.5], dtype=torch.float64).repeat_interleave(copies)
    best = _best(case)
    means: dict[str, dict[float, float]] = {}
    rows: dict[str, Any] = {"replicates": copies, "steps": steps}
    arms = {"momentum": (PenaltyBilevel, 0.02), "plain": (PenaltyBilevel, 1.0), "independent": (_Independent, 0.02)}
    for name, (make, momentum) in arms.items():
        solver = make(
            _replicated(case, scales, 100 * abs(scale.seed)),
            lr=0.5 / _largest_curvature(case),
            lr_lower=0.9,
            sigma=0.03,
            sigma_decay=0.0,
            momentum=momentum,
        )
        x = solver.run(Budget(iterations=steps), trace_every=steps).x
        gaps = torch.stack([case.value(row) for row in x]) - best
        means[name] = {level: float(gaps[scales == level].mean()) for level in (0.1, 0.5)}
        rows[name] = {
            f"noise {level}": [means[name][level], float(gaps[scales == level].std() / copies**0.5)]
            for level in (0.1, 0.5)
        }
    shared = max(means["momentum"][level] / means["independent"][level] for level in (0.1, 0.5))
    gain = means["momentum"][0.5] / means["plain"][0.5]
    return [
        Claim(
            "noise 0.5: gap with momentum over without",
            gain,
            0.6,
            "lower",
            rows,
            full_only=True,
            note="rows hold mean gaps psi - psi* and their standard errors",
        ),
        Claim("shared samples: gap over that of independent ones", shared, 0.1, "lower", {}, full_only=True),
    ]


def _clean_digits(seed: int, seconds: float) -> dict[str, dict[str, float]]:
    split = digits(1300, seed=seed)
    X, X_valid = split.train_x[:1000], split.train_x[1000:]
    noisy, wrong = flip_labels(split.train_y[:1000], 0.5, 10, seed=seed)

    def task(kept: Tensor | None = None) -> BilevelProblem:
        rows = torch.arange(1000) if kept is None else kept.nonzero().flatten()
        held = (X[rows], noisy[rows], X_valid, split.train_y[1000:])
        return tasks.hyper_cleaning(*held, num_classes=10, batch_size=64, seed=seed)

    def accuracy(y: dict[str, Tensor]) -> float:
        guess = (split.test_x @ y["weight"] + y["bias"]).argmax(1)
        return float((guess == split.test_y).double().mean())

    solvers: dict[str, Callable[[BilevelProblem], BilevelSolver]] = {
        "penalty": partial(PenaltyBilevel, lr=1000.0, lr_lower=0.5, sigma=0.3, sigma_decay=0.0),
        "F2SA": partial(F2SA, lr=1000.0, lr_lower=1.0),
        "SOBA": partial(SOBA, lr=1000.0, lr_lower=1.0, decay=0.2),
        "AmIGO": partial(AmIGO, lr=1000.0, lr_lower=0.5),
        "StocBiO": partial(StocBiO, lr=1000.0, lr_lower=0.5),
    }
    found: dict[str, dict[str, float]] = {}
    for name, make in solvers.items():
        result = make(task()).run(Budget(seconds=seconds), trace_every=10**6)
        right, spoilt = result.x[~wrong], result.x[wrong]
        found[name] = {
            "accuracy": accuracy(result.y),
            "AUROC": float((right[:, None] > spoilt[None]).double().mean()),
            "steps": result.trace[-1].iteration,
        }
    for name, kept in (("no cleaning", None), ("right rows only", ~wrong)):
        problem = replace(task(kept), lower_sampler=None, upper_sampler=None)
        oracle, flat = Oracle(task(kept)), problem.y_layout.flatten(problem.y0)
        y = solve_lower(oracle, problem.x0, flat, tol=1e-5).y
        found[name] = {"accuracy": accuracy(problem.y_layout.unflatten(y))}
    return found


def cleaning_digits(scale: Scale) -> list[Claim]:
    """Softmax regression, half of the labels wrong: accuracy and detection after equal seconds."""
    seconds = scale(smoke=0.3, full=20.0)
    runs = [_clean_digits(10 * abs(scale.seed) + i, seconds) for i in range(scale(smoke=1, full=3))]
    mean = {name: {key: statistics.fmean(run[name][key] for run in runs) for key in runs[0][name]} for name in runs[0]}
    ours = mean["penalty"]
    best = max(mean["StocBiO"]["accuracy"], mean["AmIGO"]["accuracy"])
    rows = {"means": mean, "runs": runs, "seconds": seconds}
    return [
        Claim("cleaning: test accuracy", ours["accuracy"], 0.92, "higher", rows, full_only=True),
        Claim("cleaning: AUROC of the wrong labels", ours["AUROC"], 0.97, "higher", {}, full_only=True),
        Claim(
            "cleaning: accuracy less the better of stocBiO's and AmIGO's",
            ours["accuracy"] - best,
            0.0,
            "higher",
            {},
            full_only=True,
        ),
        Claim(
            "cleaning: accuracy less SOBA's",
            ours["accuracy"] - mean["SOBA"]["accuracy"],
            -0.01,
            "higher",
            {},
            full_only=True,
        ),
    ]


def cost(scale: Scale) -> list[Claim]:
    """Time of an iteration and peak memory over SOBA's where the lower model is an LSTM; an MLP in the rows."""
    hidden, batch = scale(smoke=(8, 16), full=(64, 64))
    ratios: dict[str, dict[str, float]] = {}
    for kind in ("lstm", "mlp"):
        solvers = {name: prepared(name, kind, hidden, batch, abs(scale.seed)) for name in TIMED}
        arms: dict[str, Callable[[], Any]] = {name: partial(run_on, solver) for name, solver in solvers.items()}
        seconds = interleave(arms, scale(smoke=1, full=9), clock="cpu")
        median = {name: statistics.median(values) for name, values in seconds.items()}
        ratios[kind] = {name: value / median["SOBA"] for name, value in median.items()}
    size = scale(smoke=64, full=256)
    measured = scale(smoke={"lstm": ("SOBA", "plain")}, full=dict.fromkeys(("lstm", "mlp"), tuple(TIMED)))
    growth = {
        kind: {name: peak_rss_growth(run_on, prepared, name, kind, hidden, size, abs(scale.seed)) for name in names}
        for kind, names in measured.items()
    }
    held = growth["lstm"]
    return [
        Claim(
            "LSTM: time of an iteration with momentum over SOBA's",
            ratios["lstm"]["momentum"],
            1.2,
            "lower",
            {"time over SOBA's": ratios},
            full_only=True,
            note="an MLP, whose Hessian products cost little, stands in the rows",
        ),
        Claim("LSTM: time without momentum over SOBA's", ratios["lstm"]["plain"], 0.7, "lower", {}, full_only=True),
        Claim(
            "LSTM: peak memory over SOBA's",
            max(value for name, value in held.items() if name != "SOBA") / held["SOBA"],
            0.8,
            "lower",
            {"peak growth in bytes": growth, "batch": size},
            full_only=True,
        ),
    ]


def recurrent(scale: Scale) -> list[Claim]:
    """Test accuracy of an LSTM on the same digits at equal seconds, a nonconvex lower level, against two libraries."""
    seconds = scale(smoke=0.3, full=8.0)
    accuracies: dict[str, list[float]] = {}
    detections: dict[str, list[float]] = {}
    steps: dict[str, list[int]] = {}
    for i in range(scale(smoke=1, full=3)):
        task = cleaning("lstm", 32, 64, 10 * abs(scale.seed) + i)
        for name, arm in _recurrent_arms(task, seconds).items():
            y, logits, made = arm()
            accuracies.setdefault(name, []).append(task.accuracy(y))
            detections.setdefault(name, []).append(task.detection(logits))
            steps.setdefault(name, []).append(made)
    mean = {name: statistics.fmean(values) for name, values in accuracies.items()}
    rows = {"accuracy": accuracies, "AUROC of the wrong labels": detections, "steps": steps, "seconds": seconds}
    boat = max(mean["boat"], mean["boat, x at rest"])
    return [
        Claim("LSTM: accuracy less betty's", mean["penalty"] - mean["betty"], 0.0, "higher", rows, full_only=True),
        Claim(
            "LSTM: accuracy less boat's",
            mean["penalty"] - boat,
            0.0,
            "higher",
            {},
            full_only=True,
            note="boat's better arm; with one lower step its x never moves, and it trains on the trusted rows alone",
        ),
    ]


def _recurrent_arms(task: Cleaning, seconds: float) -> dict[str, Callable[[], tuple[Any, Tensor, int]]]:
    def ours(make: Callable[[BilevelProblem], BilevelSolver]) -> tuple[Any, Tensor, int]:
        result = make(task.problem()).run(Budget(seconds=seconds), trace_every=10**6)
        return result.y, result.x["logits"], result.trace[-1].iteration

    # steps: the best of a small grid for each, on other seeds
    penalty = partial(PenaltyBilevel, lr=1000.0, lr_lower=0.5, sigma=1.0, sigma_decay=0.0, momentum=1.0)
    return {
        "penalty": partial(ours, penalty),
        "SOBA": partial(ours, partial(SOBA, lr=1000.0, lr_lower=2.0, lr_linear=0.1, decay=0.2)),
        "betty": partial(betty_darts, task, seconds, 300.0, 1.0),
        "boat": partial(boat_value_function, task, seconds, 10_000.0, 0.5, 3),
        "boat, x at rest": partial(boat_value_function, task, seconds, 1.0, 0.5, 1),
    }


def constraints(scale: Scale) -> Claim:
    """X a ball, Y a box: the value reached, and how far a projected step with the exact gradient would still go."""
    steps = scale(smoke=1000, full=6000)
    gaps, rows, ball = [], {}, Ball(0.2)
    for i, case in enumerate(itertools.islice(_boxes(scale.seed), scale(smoke=1, full=3))):
        lr = 0.3 / (0.5 + _largest_curvature(case))

        def residual(x: Tensor, case: ExactProblem = case) -> float:
            return float((x - ball(x - case.hypergradient(x))).norm())

        problem = replace(case.problem, project_x=ball)
        solver = PenaltyBilevel(problem, lr=lr, lr_lower=0.7, sigma=0.02, sigma_decay=0.5, sigma_min=1e-4)
        found = torch.as_tensor(solver.run(Budget(iterations=steps), trace_every=steps).x)
        start = case.problem.x0
        references = [start, found]  # psi may have several minima: the lower of two descents by the exact gradient
        for _ in range(scale(smoke=300, full=2000)):
            references = [ball(x - lr * case.hypergradient(x)) for x in references]
        reference = min(references, key=lambda x, case=case: float(case.value(x)))
        value, best, first = (float(case.value(x)) for x in (found, reference, start))
        gaps.append((value - best) / (first - best))
        rows[f"instance {i}"] = {
            "relative gap": gaps[-1],
            "norm of x": float(found.norm()),
            "bounds that bind": int(_bound(case.lower_solution(found)).sum()),
            "residual over the first": residual(found) / residual(start),
            "reference: residual over the first": residual(reference) / residual(start),
        }
    return Claim("ball and box: relative gap of psi", max(gaps), 1e-3, "lower", rows)


CLAIMS: list[ClaimFunction] = [
    formulas,
    cost,
    recurrent,
    many_solutions,
    noise,
    constraints,
    cleaning_digits,
]
