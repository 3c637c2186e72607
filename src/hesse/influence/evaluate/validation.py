"""Check the scores of a run on its own model, with as many trainings or responses as a budget of time pays for."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from hesse.errors import ArgumentError
from hesse.influence.checks import one_of
from hesse.influence.engine import Influence
from hesse.influence.evaluate.lds import bootstrap_interval, draw_masks, lds
from hesse.influence.evaluate.loo import loo_gap
from hesse.influence.evaluate.pbrf import NewtonCG, damped_ggn_scores, pbrf
from hesse.influence.evaluate.proximal import ProximalObjective
from hesse.influence.evaluate.training import cosine_rates, retrain, train_many
from hesse.influence.examples import Examples, as_examples
from hesse.influence.factors import Factors
from hesse.influence.run import keeping_latest
from hesse.influence.swapping import differentiable_attention
from hesse.influence.trajectory.optimizers import SGD, AdamW, Optimizer
from hesse.influence.trajectory.schedule import TrainingSchedule

__all__ = ["FineTuning", "Validation", "affordable", "validate"]

Kind = Literal["pbrf", "loo", "lds"]

_MOST = 100  # subsets, or sequences, beyond which an interval hardly narrows
_LEAST = {"pbrf": 3, "loo": 3, "lds": 5}
_SOLVER = NewtonCG(tol=1e-3, max_steps=8)  # finer than any score; what does not converge says so
_EVALUATIONS = 90  # passes over the data that a response takes: two signs, some five steps, ten products in each


@dataclass(frozen=True, slots=True)
class FineTuning:
    """How a model is trained again, where the run does not know how it was.

    Parameters
    ----------
    steps : int, default 100
        Updates of each training.
    learning_rate : float, default 1e-4
        At the first; it falls along half a cosine. On the mean over a batch of summed token losses.
    batch_size : int, default 16
        Sequences a step; at most the data set.
    optimizer : {"sgd", "adamw"}, default "sgd"
        With momentum 0.9, or without weight decay.
    seed : int, default 0
        Of the data order.
    """

    steps: int = 100
    learning_rate: float = 1e-4
    batch_size: int = 16
    optimizer: Literal["sgd", "adamw"] = "sgd"
    seed: int = 0

    def schedule(self, total: int, run: int = 0) -> TrainingSchedule:
        """Lay out a run.

        Parameters
        ----------
        total : int
            N.
        run : int, default 0
            Another number, another data order.

        Returns
        -------
        TrainingSchedule
            Of a data set of N sequences.

        Raises
        ------
        ArgumentError
            If the optimizer is unknown or a number out of range.
        """
        one_of("optimizer", self.optimizer, ("sgd", "adamw"))
        kind: Optimizer = SGD(momentum=0.9) if self.optimizer == "sgd" else AdamW(weight_decay=0.0)
        rates = cosine_rates(self.learning_rate, self.steps)
        return TrainingSchedule.shuffled(total, min(self.batch_size, total), kind, rates, seed=self.seed + run)


@dataclass(frozen=True, slots=True)
class Validation:
    """What was found, in numbers that JSON holds."""

    kind: Kind
    figures: Mapping[str, Any]
    seconds: float


def affordable(budget: float, unit: float, kind: Kind, *, most: int = _MOST) -> int:
    """How many units of work a budget pays for.

    Parameters
    ----------
    budget : float
        Seconds.
    unit : float
        Seconds that one takes, as measured.
    kind : {"pbrf", "loo", "lds"}
        Sets the least number that says anything.
    most : int, default 100
        Beyond it more time buys little.

    Returns
    -------
    int
        Between the least and the most.

    Raises
    ------
    ArgumentError
        If the budget does not pay for the least.
    """
    count, least = int(budget / unit), min(_LEAST[kind], most)
    if count < least:
        things = "trainings" if kind == "lds" else "sequences"
        raise ArgumentError(
            f"budget: {budget / 60:.1f} minutes pay for {count} of at least {least} {things}, each of some {unit:.1f} "
            f"s; allow {least * unit / 60:.1f} minutes, or ask for less (fewer steps, layers or rows)"
        )
    return min(count, most)


def validate(
    kind: Kind,
    influence: Influence,
    factors: Factors,
    run_dir: Path | str,
    dataset: Any,
    queries: Any,
    *,
    budget: float = 600.0,
    start: nn.Module | None = None,
    fine_tuning: FineTuning | None = None,
    runs: int = 2,
    at_once: int = 4,
    seed: int = 0,
    progress: bool | None = None,
) -> Validation:
    """Compare the scores of a run with a truth that is computed here, for as long as the budget lasts.

    Parameters
    ----------
    kind : {"pbrf", "loo", "lds"}
        Proximal responses (what scores approximate), leave-one-out with its five gaps, or training on halves.
    influence, factors, run_dir : Influence, Factors, path
        Of a finished fit. The scores are kept there as another question; the run's latest stay what they were.
    dataset, queries : Examples, or anything `as_examples` takes
        The training set, and queries.
    budget : float, default 600
        Seconds. A pilot measures what one training or response takes; their number follows from it.
    start : nn.Module, optional
        Where training starts, for "loo" and "lds": the model before it was fine-tuned. Default: the model itself, so
        that the truth is that of training on.
    fine_tuning : FineTuning, optional
        How it trains; best as the model was trained.
    runs : int, default 2
        Data orders of "lds" and "loo", averaged; at least 2 tell how well outcomes repeat.
    at_once : int, default 4
        Trainings or responses by one vectorised call; memory grows with it.
    seed : int, default 0
        Of subsets and points.
    progress : bool, optional
        Show bars.

    Returns
    -------
    Validation
        With intervals over queries where they mean something.

    Raises
    ------
    ArgumentError
        If the budget pays for too little, before the work starts.
    """
    one_of("kind", kind, tuple(_LEAST))
    if not budget > 0 or runs < 1:
        raise ArgumentError(f"budget, runs: expected > 0 and >= 1, got {budget}, {runs}")
    began = time.perf_counter()
    examples, asked = as_examples(dataset), as_examples(queries, argument="queries")
    recipe = FineTuning() if fine_tuning is None else fine_tuning
    origin = influence.model if start is None else start
    schedules = [recipe.schedule(len(examples), run) for run in range(runs)]
    unit = 0.0
    if kind != "pbrf":
        unit += runs * _seconds_of_training(origin, examples, schedules[0], influence, at_once)
    if kind != "lds":
        unit += _seconds_of_response(influence, factors, examples, at_once) + (unit / runs * 2 if unit else 0)
    chunks = Counter(examples.rows)
    # single sequences have scores of their own; chunks of a long row share one
    whole = [n for n, row in enumerate(examples.rows) if chunks[row] == 1]
    if kind != "lds" and not whole:
        raise ArgumentError("dataset: every row was cut into several sequences, which share a score; use lds")
    count = affordable(budget, unit, kind, most=_MOST if kind == "lds" else min(_MOST, len(whole)))
    with keeping_latest(run_dir):
        scored = influence.score(asked, examples, run_dir, rank=None, progress=progress)
    place = {name: column for column, name in enumerate(scored.train_ids)}
    columns = np.array([place[row] for row in examples.rows])
    values = np.array(scored.values, dtype=np.float64)
    if kind == "lds":
        figures = _lds(values, columns, origin, examples, asked, schedules, influence, count, at_once, seed, progress)
    else:
        points = np.sort(np.random.default_rng(seed).choice(whole, count, replace=False)).tolist()
        scores = values[:, columns]
        if kind == "pbrf":
            figures = _pbrf(scores, influence, factors, examples, asked, points, at_once, progress)
        else:
            figures = _loo(scores, influence, factors, examples, asked, points, origin, schedules, at_once, progress)
    return Validation(kind, figures, time.perf_counter() - began)


def _lds(
    values: np.ndarray,
    columns: np.ndarray,
    origin: nn.Module,
    examples: Examples,
    asked: Examples,
    schedules: list[TrainingSchedule],
    influence: Influence,
    count: int,
    at_once: int,
    seed: int,
    progress: bool | None,
) -> dict[str, Any]:
    masks = draw_masks(count, values.shape[1], seed=seed)  # of rows: a row is left out with all of its chunks
    outcomes = retrain(
        origin, examples, asked, masks[:, columns], schedules, loss=influence.loss, at_once=at_once, progress=progress
    )
    found = lds(values, masks, outcomes.numpy(), seed=seed)
    repeat = found.reliability
    return {
        "subsets": count,
        "runs": len(schedules),
        "lds": found.value,
        "interval": list(found.interval),
        "split_half": None if repeat is None else repeat.split_half,
        "ceiling": None if repeat is None else repeat.ceiling,
    }


def _pbrf(
    scores: np.ndarray,
    influence: Influence,
    factors: Factors,
    examples: Examples,
    asked: Examples,
    points: list[int],
    at_once: int,
    progress: bool | None,
) -> dict[str, Any]:
    solved = pbrf(
        influence, factors, examples, asked, points, copies=0.1, solver=_SOLVER, at_once=at_once,
        progress=progress,
    )  # fmt: skip
    linear = damped_ggn_scores(influence, factors, examples, asked, points, rtol=1e-6)
    picked = scores[:, points]
    return {
        "sequences": len(points),
        "scores": _agreement(picked, solved.values),
        "linear answer": _agreement(linear, solved.values),
        "converged": float(solved.converged.mean()),
    }


def _loo(
    scores: np.ndarray,
    influence: Influence,
    factors: Factors,
    examples: Examples,
    asked: Examples,
    points: list[int],
    origin: nn.Module,
    schedules: list[TrainingSchedule],
    at_once: int,
    progress: bool | None,
) -> dict[str, Any]:
    found = loo_gap(
        influence,
        factors,
        scores,
        examples,
        asked,
        points,
        origin,
        schedules,
        warm=schedules[0],
        solver=_SOLVER,
        at_once=at_once,
        progress=progress,
    )
    return {
        "sequences": len(points),
        "gap, nats": dict(found.gaps),
        "correlation with retraining": dict(found.correlations),
        "correlation with the next": dict(found.steps),
    }


def _agreement(predicted: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    rows = np.array([_pearson(p, m) for p, m in zip(predicted, measured, strict=True)])
    power = float((predicted**2).sum())
    return {
        "correlation": float(rows.mean()),
        "interval": list(bootstrap_interval(rows)),
        "slope": None if power == 0 else float((predicted * measured).sum()) / power,
    }


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])


def _seconds_of_training(
    model: nn.Module, examples: Examples, schedule: TrainingSchedule, influence: Influence, at_once: int
) -> float:
    pilot = TrainingSchedule(schedule.optimizer, schedule.learning_rates[:1], schedule.batches[:1], schedule.per)
    weights = torch.ones(at_once, len(examples))
    times = []
    for _ in range(2):  # the first pays for what is set up once
        began = time.perf_counter()
        train_many(model, examples, weights, pilot, loss=influence.loss, progress=False)
        times.append(time.perf_counter() - began)
    return min(times) * len(schedule) / at_once


def _seconds_of_response(influence: Influence, factors: Factors, examples: Examples, at_once: int) -> float:
    with differentiable_attention():
        objective = ProximalObjective(influence, factors, examples, at_once=at_once)
        columns = torch.zeros(objective.layout.size, at_once, dtype=torch.float64, device=objective.damping.device)
        copies = torch.zeros(at_once, len(examples), dtype=torch.float64, device=objective.damping.device)
        times = []
        for _ in range(2):
            began = time.perf_counter()
            objective.value_and_gradient(columns, copies)
            times.append(time.perf_counter() - began)
    return min(times) * _EVALUATIONS / at_once
