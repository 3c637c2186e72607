"""Claims of BO-REP: exact pieces, one step length for near and far starts, data cleaning, a recurrent network.

Oracles: closed forms of `hesse.bilevel.problems`; the family's other solvers in the same run, each with the best step
of a grid; betty-ml's engine at equal seconds.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.bilevel._bo_rep_text import Strings, accuracy, draw_strings, text_problem, train_by_betty
from benchmarks.data import digits, flip_labels
from hesse.bilevel import (
    BOREP,
    MASOBA,
    SOBA,
    AmIGO,
    BilevelProblem,
    BilevelResult,
    BilevelSolver,
    Budget,
    ExactProblem,
    NoiseSampler,
    StocBiO,
    TraceRow,
    epoch_sgd,
    hypergradient,
    problems,
    tasks,
)

__all__ = ["CLAIMS"]


def oracle(scale: Scale) -> list[Claim]:
    """The followed direction against the closed form, the length of a step, and the rate of the refinement."""
    case = problems.quadratic(7, 11, condition=1.5, seed=scale.seed)
    problem = case.problem
    solver = BOREP(
        problem, lr=0.05, lr_lower=1.0, lr_linear=0.1, momentum=0.0, period=1, lower_steps=100, lr_decay=None
    )
    errors, lengths = [], []
    for k in range(20):
        x, truth = solver.x, case.hypergradient(solver.x)
        solver.v = torch.as_tensor(hypergradient(problem, x, case.lower_solution(x), rtol=1e-13).adjoint)
        found = solver.run(Budget(iterations=k + 1)).x
        if k:  # before the first step comes the refinement instead of a refresh
            errors.append(float((solver.average - truth).norm() / truth.norm()))
        lengths.append(float((found - x).norm()) / 0.05)
    totals, squares = _refinement_errors(scale)
    slope = _slope(totals, squares)
    return [
        Claim("direction: relative error", max(errors), 1e-8, "lower", {"errors": errors}),
        Claim("length of a step over eta, less 1", max(abs(n - 1) for n in lengths), 1e-12, "lower", {}),
        Claim(
            "refinement: slope of the squared error",
            slope,
            (-1.2, -0.8),
            "inside",
            {"steps": totals, "mean squared error": squares},
            full_only=True,
        ),
    ]


def _refinement_errors(scale: Scale) -> tuple[list[int], list[float]]:
    """EpochSGD on a quadratic with condition 5 and unit noise; all repeats side by side."""
    repeats, epochs = scale(smoke=20, full=400), range(1, scale(smoke=4, full=8))
    generator = torch.Generator().manual_seed(scale.seed)
    values = torch.linspace(0.2, 1, 20, dtype=torch.float64)
    totals, squares = [], []
    for count in epochs:

        def gradient(y: Tensor) -> Tensor:
            noise = torch.randn(repeats, 20, dtype=torch.float64, generator=generator)
            return (values * y.view(repeats, 20) + noise).reshape(-1)

        y = epoch_sgd(gradient, torch.ones(repeats * 20).double(), step=0.5, epochs=count, steps0=20)
        totals.append(20 * (2**count - 1))
        squares.append(float(y.square().sum()) / repeats)
    return totals, squares


def _slope(steps: list[int], errors: list[float]) -> float:
    line = statistics.linear_regression([math.log(s) for s in steps], [math.log(e) for e in errors])
    return line.slope


STARTS = (1.0, 4.0, 7.0, 10.0, 13.0)
SIZE = 20
BASELINE_STEPS = (1e-5, 2e-5, 5e-5, 1e-4, 1.5e-4, 3e-4, 1e-3, 3e-3)
LENGTHS = (1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2)
HOUSE = (0.05,) * 8  # repeats of one step, each with noise of its own
LOST = 30.0  # an entry of x this large: the start was at most 13, and cosh is 5e12 here


class _Rows(BOREP):
    """Many runs side by side, a row of x each: the length is a row's own."""

    def _direction(self) -> Tensor:
        return torch.nn.functional.normalize(self.average.view(-1, SIZE), dim=1).reshape(-1)


class _FromZero(MASOBA):
    """MA-SOBA whose average starts at zero, as BO-REP's does: its first steps are a tenth as long."""

    def __init__(self, problem: BilevelProblem, **options: Any) -> None:
        super().__init__(problem, **options)
        self.average = torch.zeros_like(self.x)


def _cosh_rows(cases: list[ExactProblem], steps: tuple[float, ...], seed: int) -> BilevelProblem:
    """Every case with every step at every start, a row each, with noise of their own."""
    each = len(steps) * len(STARTS)
    zero = torch.zeros(SIZE, dtype=torch.float64)
    H_RMM = torch.stack([torch.func.hessian(lambda y, c=c: c.problem.lower(zero, y, None))(zero) for c in cases])
    t_RM = torch.stack([-torch.func.grad(lambda y, c=c: c.problem.upper(zero, y, None))(zero) for c in cases])
    H_RMM, t_RM = H_RMM.repeat_interleave(each, 0), t_RM.repeat_interleave(each, 0)

    def lower(x: Tensor, y: Tensor, batch: tuple[Tensor]) -> Tensor:
        pull = torch.einsum("rm,rmn,rn->", y, H_RMM, y) / 2
        return pull - (x * y).sum() + 0.5 * (batch[0].view_as(y) * y).sum()

    def upper(x: Tensor, y: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        on_y, on_x = (noise.view_as(y) for noise in batch)
        return ((1 + 0.15 * on_x) * x.cosh()).sum() + (y - t_RM).square().sum() / 2 + 0.5 * (on_y * y).sum()

    x0 = torch.tensor(STARTS, dtype=torch.float64).repeat(len(cases) * len(steps)).unsqueeze(1).repeat(1, SIZE)
    return BilevelProblem(
        upper=upper,
        lower=lower,
        x0=x0,
        y0=torch.zeros_like(x0),
        lower_sampler=NoiseSampler((x0.numel(),), seed=seed),
        upper_sampler=NoiseSampler((x0.numel(), x0.numel()), seed=seed + 1),
    )


def _cosh_ends(make: Callable[..., BilevelSolver], steps: tuple[float, ...], num_steps: int, seeds: range) -> Tensor:
    """Median of |grad Phi| over the last tenth under linear decay, (seeds, steps, starts); inf where x was lost."""
    cases = [problems.cosh_upper(SIZE, seed=seed) for seed in seeds]
    solver: Any = make(_cosh_rows(cases, steps, seeds[0]), lr=1.0)  # the rows' own follow
    each = torch.tensor(steps, dtype=torch.float64).repeat_interleave(len(STARTS)).repeat(len(cases)).unsqueeze(1)
    lost = torch.zeros_like(each, dtype=torch.bool)
    norms = []

    def decay(row: TraceRow) -> None:
        x = solver.x.view(-1, SIZE)
        lost.logical_or_((x.abs() > LOST).any(1, keepdim=True))
        x = torch.where(lost, torch.zeros_like(x), x)
        solver.x = x.reshape(-1)
        solver.lr = (each * ~lost * (1 - row.iteration / num_steps)).expand_as(x).reshape(-1)
        if row.iteration > 0.9 * num_steps:
            parts = zip(cases, x.chunk(len(cases)), strict=True)
            norms.append(torch.cat([torch.vmap(case.hypergradient)(part) for case, part in parts]).norm(dim=1))

    result = solver.run(Budget(iterations=num_steps), decay)
    if result.trace[-1].iteration != num_steps:
        raise RuntimeError(f"{type(solver).__name__}: {result.message}")
    ends = torch.where(lost.squeeze(1), math.inf, torch.stack(norms).median(0).values)
    return ends.view(len(cases), len(steps), len(STARTS))


COSH_SOLVERS: dict[str, Callable[..., BilevelSolver]] = {
    "BOREP": partial(_Rows, lr_decay=None),
    "MASOBA": partial(MASOBA, lr_lower=0.1),
    "MASOBA from zero": partial(_FromZero, lr_lower=0.1),
    "SOBA": partial(SOBA, lr_lower=0.1, decay=0.0),
    "StocBiO": partial(StocBiO, lr_lower=0.5),
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "no refinement": {"refine_epochs": 0},
    "I=N=1": {"period": 1, "lower_steps": 1},
    "I=10, N=3": {"period": 10},
    "I=10, N=10": {"period": 10, "lower_steps": 10},
    "last iterate": {"average": False},
    "adaptive period": {"period": "adaptive"},
    "recursive momentum": {"recursive": True},
}


def unbounded_smoothness(scale: Scale) -> list[Claim]:
    """|grad Phi| after 3,000 steps from starts whose gradients differ by 10^5, one setting for all of them."""
    num_steps, count = scale(smoke=(30, 1), full=(3000, 3))
    seeds = range(count * abs(scale.seed), count * abs(scale.seed) + count)
    tables = {
        name: _cosh_ends(make, LENGTHS if name == "BOREP" else BASELINE_STEPS, num_steps, seeds)
        for name, make in COSH_SOLVERS.items()
    }
    worst = {name: float(table.mean(0).amax(1).min()) for name, table in tables.items() if name != "BOREP"}
    runs = _cosh_ends(COSH_SOLVERS["BOREP"], HOUSE, num_steps, seeds).flatten(0, 1)
    ours, errors = runs.mean(0), runs.std(0) / len(runs) ** 0.5
    ablations = {
        name: _cosh_ends(partial(COSH_SOLVERS["BOREP"], **options), HOUSE, num_steps, seeds[:1]).mean((0, 1))
        for name, options in ABLATIONS.items()
    }
    first = [
        float(problems.cosh_upper(SIZE, seed=seeds[0]).hypergradient(torch.full((SIZE,), s).double()).norm())
        for s in STARTS
    ]
    growth = float((tables["BOREP"].mean(0) / torch.tensor(first)).max())
    rows: dict[str, Any] = {
        "starts": STARTS,
        "mean of 24 runs a start": ours,
        "standard errors": errors,
        "ablations, mean of 8 runs a start": ablations,
        "steps of BOREP": LENGTHS,
        "steps of the others": BASELINE_STEPS,
        "norms, a row a step, mean of the seeds": {name: table.mean(0) for name, table in tables.items()},
        "best worst start": worst,
    }
    ratio = float(ours.max()) / min(worst.values())
    return [
        Claim("cosh: worst start at eta 0.05", float(ours.max()), 2.5, "lower", rows, full_only=True),
        Claim("cosh: over the best baseline's worst start", ratio, 0.2, "lower", {}, full_only=True),
        Claim("cosh: largest norm over the first, any eta", growth, 1.0, "lower", {"first": first}, full_only=True),
    ]


CLEANERS: dict[str, tuple[Callable[..., BilevelSolver], tuple[float, ...]]] = {
    "BOREP": (partial(BOREP, lr_decay=None, lr_lower=0.5, lr_linear=0.5), (0.1, 0.3, 1.0)),
    "MASOBA": (partial(MASOBA, lr_lower=0.5), (100.0, 300.0, 1000.0)),
    "SOBA": (partial(SOBA, lr_lower=0.5, decay=0.0), (100.0, 300.0, 1000.0)),
    "AmIGO": (partial(AmIGO, lr_lower=0.5), (100.0, 300.0, 1000.0)),
    "StocBiO": (partial(StocBiO, lr_lower=0.5), (100.0, 300.0, 1000.0)),
}
SLICES = 24


def _clean(
    solvers: dict[str, tuple[Callable[..., BilevelSolver], float]], seconds: float, seed: int
) -> dict[str, dict[str, float]]:
    """All solvers by turns in slices of time, so that a busy machine slows each alike; steps decay linearly."""
    split = digits(1300, seed=seed)
    X, X_valid = split.train_x[:1000], split.train_x[1000:]
    noisy, flipped = flip_labels(split.train_y[:1000], 0.5, 10, seed=seed)
    running: dict[str, Any] = {}
    for name, (make, lr) in solvers.items():
        problem = tasks.hyper_cleaning(
            X, noisy, X_valid, split.train_y[1000:], num_classes=10, batch_size=64, seed=seed
        )
        running[name] = make(problem, lr=lr)
    ends: dict[str, BilevelResult] = {}
    for turn in range(SLICES):
        for name, solver in running.items():
            solver.lr = solvers[name][1] * (1 - turn / SLICES)
            ends[name] = solver.run(Budget(seconds=seconds * (turn + 1) / SLICES), trace_every=10**6)
    found = {}
    for name, end in ends.items():
        logits = split.test_x @ end.y["weight"] + end.y["bias"]
        found[name] = {
            "validation loss": end.trace[-1].upper_value,
            "test loss": float(cross_entropy(logits, split.test_y)),
            "accuracy": float((logits.argmax(1) == split.test_y).double().mean()),
            "AUROC": float((end.x[~flipped][:, None] > end.x[flipped][None]).double().mean()),
            "steps": end.trace[-1].iteration,
        }
    return found


def cleaning(scale: Scale) -> list[Claim]:
    """Digits, half of 1,000 labels replaced, at equal seconds; each solver's step is chosen on a split of its own."""
    seconds, count = scale(smoke=(0.25, 1), full=(6.0, 3))
    trials = _clean(
        {f"{name} {lr:g}": (make, lr) for name, (make, steps) in CLEANERS.items() for lr in steps},
        seconds,
        10_000 + abs(scale.seed),
    )
    chosen = {
        name: (make, min(steps, key=lambda lr, name=name: trials[f"{name} {lr:g}"]["validation loss"]))
        for name, (make, steps) in CLEANERS.items()
    }
    runs = [_clean(chosen, seconds, count * abs(scale.seed) + i) for i in range(count)]
    mean = {name: {key: statistics.fmean(run[name][key] for run in runs) for key in runs[0][name]} for name in chosen}
    ours, others = mean["BOREP"], {name: row["test loss"] for name, row in mean.items() if name != "BOREP"}
    rows = {"mean": mean, "runs": runs, "chosen step": {name: lr for name, (_, lr) in chosen.items()}, "trials": trials}
    return [
        Claim(
            "cleaning: test loss over the best other's",
            ours["test loss"] / min(others.values()),
            1.0,
            "lower",
            rows,
            full_only=True,
        ),
        Claim("cleaning: accuracy", ours["accuracy"], 0.92, "higher", {}, full_only=True),
        Claim("cleaning: AUROC of flipped labels", ours["AUROC"], 0.93, "higher", {}, full_only=True),
    ]


READERS: dict[str, tuple[Callable[..., BilevelSolver], tuple[float, ...]]] = {
    "BOREP": (BOREP, (0.03, 0.1, 0.3, 1.0, 3.0)),
    "MASOBA": (MASOBA, (0.1, 0.3, 1.0, 3.0, 10.0)),
    "SOBA": (partial(SOBA, decay=0.0), (0.1, 0.3, 1.0)),
    "StocBiO": (StocBiO, (0.001, 0.01)),
}
"""For BOREP and MA-SOBA a hundredfold range whose middle was the best step in trials."""
BATCH = 64


@dataclass(frozen=True, slots=True)
class _Reading:
    """Where one run on the strings ended."""

    valid_loss: float
    accuracy: float  # on the test strings
    seconds: float


def _read(strings: Strings, name: str, lr: float, gain: float, calls: int, seed: int) -> _Reading:
    options = {} if name == "StocBiO" else {"lr_linear": 0.1}
    solver = READERS[name][0](text_problem(strings, gain, BATCH, seed), lr=lr, lr_lower=0.3, **options)
    end = solver.run(Budget(oracle_calls=calls * BATCH), trace_every=10**6)
    return _Reading(end.trace[-1].upper_value, accuracy(gain, end.x, end.y, strings.test), end.trace[-1].seconds)


def reading(scale: Scale) -> list[Claim]:
    """The language of four words, by a recurrent encoder whose gradients explode; equal calls, then equal seconds."""
    count, calls = scale(smoke=(1, 50), full=(2, 2000))
    seeds = range(count * abs(scale.seed), count * abs(scale.seed) + count)
    strings = {seed: draw_strings(*scale(smoke=(200, 200, 100), full=(2000, 2000, 1000)), seed) for seed in seeds}
    grids = {name: scale(smoke=grid[1:2], full=grid) for name, (_, grid) in READERS.items()}

    def runs(name: str, lr: float, gain: float) -> list[_Reading]:
        return [_read(strings[seed], name, lr, gain, calls, seed) for seed in seeds]

    table = {name: {lr: runs(name, lr, 1.5) for lr in grid} for name, grid in grids.items()}
    mean = {
        name: {lr: statistics.fmean(r.accuracy for r in found) for lr, found in row.items()}
        for name, row in table.items()
    }

    def loss(name: str, lr: float) -> float:
        return statistics.fmean(r.valid_loss for r in table[name][lr])

    chosen = {name: min(grid, key=lambda lr, name=name: loss(name, lr)) for name, grid in grids.items()}
    tuned = {name: mean[name][lr] for name, lr in chosen.items()}
    other_gains = {
        gain: {
            name: statistics.fmean(r.accuracy for r in runs(name, chosen[name], gain)) for name in ("BOREP", "MASOBA")
        }
        for gain in (1.0, 3.0)
    }
    rows = {
        "accuracy at the chosen step": tuned,
        "chosen step": chosen,
        "accuracy by step": mean,
        "every run": {
            name: {lr: [r.accuracy for r in found] for lr, found in row.items()} for name, row in table.items()
        },
        "at other gains, steps as chosen at 1.5": other_gains,
    }
    ours = tuned["BOREP"]
    worst = min(mean["BOREP"].values()) - min(mean["MASOBA"].values())
    claims = [
        Claim("text: accuracy over SOBA's", ours - tuned["SOBA"], 0.04, "higher", rows, full_only=True),
        Claim("text: accuracy over stocBiO's", ours - tuned["StocBiO"], 0.3, "higher", {}, full_only=True),
        Claim("text: accuracy over MA-SOBA's", ours - tuned["MASOBA"], -0.03, "higher", {}, full_only=True),
        Claim("text: worst of a hundredfold range over MA-SOBA's", worst, 0.0, "higher", {}, full_only=True),
    ]
    seconds = statistics.fmean(r.seconds for r in table["BOREP"][chosen["BOREP"]])
    return [*claims, _against_betty(strings, ours, seconds, scale)]


def _against_betty(strings: dict[int, Strings], ours: float, seconds: float, scale: Scale) -> Claim:
    """Both of betty's approximations at three steps each, for the seconds that a run of BO-REP took."""
    found: dict[str, Any] = {}
    for method in ("darts", "cg"):
        for lr in scale(smoke=(10.0,), full=(1.0, 10.0, 100.0)):
            ends = []
            for seed, data in strings.items():
                try:
                    x, y, steps = train_by_betty(
                        data, 1.5, BATCH, seed, method=method, lr=lr, lr_lower=0.05, seconds=seconds
                    )
                except (RuntimeError, TypeError, AttributeError) as error:  # a peer that breaks is a row, not our fault
                    found[f"{method} {lr:g}"] = f"{type(error).__name__}: {error}"
                    break
                ends.append({"accuracy": accuracy(1.5, x, y, data.test), "steps": steps})
            else:
                found[f"{method} {lr:g}"] = {key: statistics.fmean(end[key] for end in ends) for key in ends[0]}
    best = max((row["accuracy"] for row in found.values() if isinstance(row, dict)), default=None)
    return Claim(
        "text: accuracy over betty's at equal seconds",
        None if best is None else ours - best,
        0.0,
        "higher",
        {"BOREP": ours, "seconds": seconds, "betty": found},
        full_only=True,
        note="the better of betty's darts and cg, its step chosen in hindsight",
    )


CLAIMS: list[ClaimFunction] = [oracle, unbounded_smoothness, cleaning, reading]
