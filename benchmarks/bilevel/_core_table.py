"""Every solver on every task, from one grid of steps and at one budget of sampled derivatives.

The budget counts rows: a derivative on a batch costs its rows, one on all the data all of them, a block as many rows as
are drawn for it. Each solver's step of the upper variable is chosen from the grid on a split of its own, and every x is
judged by f(x, y*(x)) with the lower level solved, whatever y the solver kept.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._claims import Claim, Scale
from benchmarks.data import breast_cancer, diabetes, digits, flip_labels
from hesse.bilevel import (
    AID,
    BOREP,
    BSVRB,
    F2SA,
    F3SA,
    ITD,
    LVHBA,
    MASOBA,
    SABA,
    SOBA,
    TTSA,
    AmIGO,
    BilevelProblem,
    BlockSOBA,
    Budget,
    Oracle,
    PenaltyBilevel,
    StocBiO,
    solve_lower,
    tasks,
)
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError

__all__ = ["table"]

STEPS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
SAMPLED = (StocBiO, AmIGO, TTSA, SOBA, SABA, MASOBA, BOREP, F2SA, F3SA, PenaltyBilevel)
WHOLE = (AID, ITD, LVHBA)  # made for exact derivatives
BLOCKWISE = (BlockSOBA, BSVRB)
NUMBERS = ("upper loss", "start", "metric", "calls", "seconds")


@dataclass(frozen=True)
class Task:
    """A problem for a seed, with or without batches, and what its solution is good for."""

    name: str
    make: Callable[[int, bool], tuple[BilevelProblem, Callable[[Any, Any], float]]]
    lr_lower: float
    rows_of_all: int  # a derivative on all the data
    blocks: int = 0


def _cleaning(seed: int, sampled: bool) -> tuple[BilevelProblem, Callable[[Any, Any], float]]:
    split = digits(900, seed=seed)
    noisy, _ = flip_labels(split.train_y[:600], 0.5, 10, seed=seed)
    valid = split.train_x[600:], split.train_y[600:]
    batch = 100 if sampled else None
    problem = tasks.hyper_cleaning(split.train_x[:600], noisy, *valid, num_classes=10, batch_size=batch, seed=seed)
    return problem, lambda _x, y: _accuracy(split.test_x @ y["weight"] + y["bias"], split.test_y)


def _penalties(seed: int, sampled: bool) -> tuple[BilevelProblem, Callable[[Any, Any], float]]:
    split = diabetes(300, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def with_noise(x: Tensor) -> Tensor:
        return torch.cat([x, torch.randn(len(x), 40, dtype=x.dtype, generator=generator)], 1)

    train, test = with_noise(split.train_x), with_noise(split.test_x)
    batch = 50 if sampled else None
    halves = train[:150], split.train_y[:150], train[150:], split.train_y[150:]
    problem = tasks.penalized_model(*halves, batch_size=batch, seed=seed)
    return problem, lambda _x, y: float(((test @ y["weight"] + y["bias"])[:, 0] - split.test_y).square().mean())


def _representation(seed: int, sampled: bool) -> tuple[BilevelProblem, Callable[[Any, Any], float]]:
    split = digits(900, seed=seed)
    torch.manual_seed(seed)
    encoder, head = nn.Sequential(nn.Linear(64, 16), nn.Tanh()).double(), nn.Linear(16, 10).double()
    train = split.train_x[:600], split.train_y[:600]
    valid = split.train_x[600:], split.train_y[600:]
    problem = tasks.hyper_representation(encoder, head, train, valid, batch_size=100 if sampled else None, seed=seed)

    def metric(x: Any, y: Any) -> float:
        inside = torch.func.functional_call(encoder, x, (split.test_x,))
        return _accuracy(torch.func.functional_call(head, y, (inside,)), split.test_y)

    return problem, metric


def _blocks(seed: int, sampled: bool) -> tuple[BilevelProblem, Callable[[Any, Any], float]]:
    del sampled  # blocks draw their own rows
    split = breast_cancer(400, seed=seed)
    labels, _ = flip_labels(split.train_y[:200], 0.3, 2, seed=seed)
    signs, valid_signs = (2.0 * t.to(split.train_x) - 1 for t in (labels, split.train_y[200:]))
    problem = tasks.temperature_blocks(
        split.train_x[:200], signs, split.train_x[200:], valid_signs, torch.tensor([0.5, 1.0, 2.0, 4.0]).double()
    )

    def metric(_x: Any, y: Any) -> float:
        votes = (split.test_x @ y.T).sign().sum(1) > 0
        return float((votes == split.test_y.bool()).double().mean())

    return problem, metric


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == labels).double().mean())


TASKS = (
    Task("hyper-cleaning, test accuracy", _cleaning, 0.5, 600),
    Task("penalties of features, test squared error", _penalties, 0.1, 150),
    Task("representation, test accuracy", _representation, 0.5, 600),
    Task("blocks of temperatures, test accuracy", _blocks, 0.2, 200, blocks=4),
)


def _solver(kind: Any, task: Task, lr: float, seed: int) -> Callable[[BilevelProblem], Any]:
    if kind is AID:
        return partial(AID, lr=lr, seed=seed)
    if kind is LVHBA:
        return partial(LVHBA, lr_x=lr, lr_y=task.lr_lower, seed=seed)
    if kind in BLOCKWISE:
        return partial(kind, blocks_per_step=2, batch_size=50, lr=lr, lr_lower=task.lr_lower, seed=seed)
    return partial(kind, lr=lr, lr_lower=task.lr_lower, seed=seed)


def _run(kind: Any, task: Task, lr: float, seed: int, rows: int) -> dict[str, Any]:
    problem, metric = task.make(seed, kind in SAMPLED)
    solver = _solver(kind, task, lr, seed)(problem)
    samples = kind in BLOCKWISE or (kind in SAMPLED and not task.blocks)
    calls = rows if samples else max(1, rows // (task.rows_of_all * max(1, task.blocks)))
    result = solver.run(Budget(oracle_calls=calls, seconds=30.0), trace_every=10**9)
    whole, _ = task.make(seed, False)
    start, _ = _solved(whole, whole.x0)
    loss, y = _solved(whole, result.x)
    return {
        "upper loss": loss,
        "start": start,
        "metric": metric(result.x, y),
        "calls": result.counts.calls,
        "seconds": result.trace[-1].seconds,
        "message": result.message,
    }


def _solved(problem: BilevelProblem, x: Any) -> tuple[float, Any]:
    oracle, flat, y = Oracle(problem), problem.x_layout.flatten(x), problem.y_layout.flatten(problem.y0)
    try:
        y = solve_lower(oracle, flat, y, tol=1e-6, max_steps=50).y
        loss = float(oracle.value(flat, y))
    except NumericalError:  # a step too long has left an x at which the lower level overflows
        loss = math.inf
    return loss if math.isfinite(loss) else math.inf, problem.y_layout.unflatten(y)


def _cell(kind: Any, task: Task, scale: Scale, rows: int) -> dict[str, Any]:
    """Choose the step on a split that is not judged, then the medians over three that are."""
    found: dict[float, float] = {}
    for lr in scale(smoke=STEPS[2:3], full=STEPS):
        try:
            found[lr] = _run(kind, task, lr, scale.seed + 1000, rows)["upper loss"]
        except (ArgumentError, ArgumentTypeError) as error:  # not a solver for this task
            return {"message": str(error)}
    step = min(found, key=lambda lr: found[lr])
    runs = [_run(kind, task, step, scale.seed + i, rows) for i in range(scale(smoke=1, full=3))]
    numbers = {name: statistics.median(run[name] for run in runs) for name in NUMBERS}
    return {"step": step, **numbers, "message": runs[0]["message"]}


def table(scale: Scale) -> Claim:
    """Run the table, and count the cells that end below their start."""
    rows = scale(smoke=2_000, full=150_000)
    lines: list[dict[str, Any]] = []
    for task in scale(smoke=TASKS[3:], full=TASKS):
        for kind in (*SAMPLED, *WHOLE, *(BLOCKWISE if task.blocks else ())):
            lines.append({"task": task.name, "solver": kind.__name__, **_cell(kind, task, scale, rows)})
    able = [line for line in lines if "upper loss" in line]
    better = [line["upper loss"] < line["start"] for line in able]
    return Claim(
        "table of solvers and tasks: share of cells below their start",
        sum(better) / len(better),
        1.0,
        "higher",
        {"rows a cell": rows, "table": lines},
        full_only=True,
    )
