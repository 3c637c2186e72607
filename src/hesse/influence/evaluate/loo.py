"""Where scores and leave-one-out retraining part: five truths between the two, each one assumption further.

    retraining  →  warm start  →  proximity  →  Bregman response  →  linear answer  →  score

Shapes: K sequences left out, N in the training set, Q queries, R runs.
"""

import copy
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from hesse.errors import ShapeError
from hesse.influence.engine import Influence
from hesse.influence.evaluate.functional import measure_many
from hesse.influence.evaluate.lds import score_table
from hesse.influence.evaluate.pbrf import NewtonCG, check_points, damped_ggn_scores, pbrf
from hesse.influence.evaluate.training import retrain, train_many
from hesse.influence.examples import Examples, as_examples
from hesse.influence.factors import Factors
from hesse.influence.scores import Scores
from hesse.influence.solvers import damped_ggn
from hesse.influence.trajectory.schedule import TrainingSchedule

__all__ = ["STAGES", "LooGap", "loo_gap"]

STAGES = ("retraining", "warm start", "proximity", "response", "linear", "score")
"""What a sequence is worth to a query, from the truth to the estimate."""

_GAPS = ("warm start", "proximity", "non-convergence", "linearisation", "solver")


@dataclass(frozen=True, slots=True)
class LooGap:
    """The six answers, and how far each is from the next."""

    stages: Mapping[str, NDArray[np.float64]]  # (Q, K) nats lost by leaving the sequence out, by name of `STAGES`
    gaps: Mapping[str, float]  # root mean square of the difference of neighbours, nats
    correlations: Mapping[str, float]  # Pearson of each stage with retraining, mean over queries
    steps: Mapping[str, float]  # Pearson of neighbours, by the name of the gap


def loo_gap(
    influence: Influence,
    factors: Factors,
    scores: Scores | ArrayLike,
    dataset: Any,
    queries: Any,
    points: Items[int],
    start: nn.Module | Items[nn.Module],
    schedules: TrainingSchedule | Items[TrainingSchedule],
    *,
    warm: TrainingSchedule,
    solver: NewtonCG | None = None,
    at_once: int = 32,
    progress: bool | None = None,
) -> LooGap:
    """Leave sequences out in five ways that lead from retraining to the score.

    Parameters
    ----------
    influence : Influence
        The trained model, with loss and tracked layers.
    factors : Factors
        Fitted on it: λ is theirs.
    scores : Scores or array_like, shape (Q, N)
        To be judged, nats a copy.
    dataset, queries : Examples, or anything `as_examples` takes
        N training sequences, Q queries.
    points : sequence of int
        K places in the training set. With a few sequences the correlations are noise; with hundreds this takes long.
    start : nn.Module or sequence of nn.Module
        Where training starts; one for each schedule if there are several.
    schedules : TrainingSchedule or sequence of TrainingSchedule
        R runs of it, averaged: what is left of their noise counts as warm-start gap.
    warm : TrainingSchedule
        How training goes on from the trained weights, tracked layers only.
    solver : NewtonCG, optional
        Of the Bregman response.
    at_once : int, default 32
        Trainings or responses by one vectorised call.
    progress : bool, optional
        Show bars.

    Returns
    -------
    LooGap
        In nats lost by leaving the sequence out: positive for a proponent, like a score.

    Raises
    ------
    ArgumentError
        If a point is out of range or the factors have no damping.
    ShapeError
        If the scores do not fit.

    Notes
    -----
    Warm start: training goes on from the trained weights, with and without the sequence. Proximity: the same with
    ½ λ ‖θ - θs‖². Non-convergence: the loss of the others becomes the divergence from the trained outputs, so that θs
    is its minimum. Linearisation: first order in the sequence's share. Solver: what the factors stand for. Retraining
    trains all weights that require a gradient, the others the tracked ones. The response is to a whole copy taken out.
    (R + 2)(K + 1) trainings, K responses and Q solves.

    References
    ----------
    J. Bae, N. Ng, A. Lo, M. Ghassemi, R. Grosse (2022), NeurIPS, arXiv 2209.05364.
    """
    examples, asked = as_examples(dataset), as_examples(queries, argument="queries")
    table, places = score_table(scores), [int(i) for i in points]
    check_points(places, len(examples))
    if table.shape != (len(asked), len(examples)):
        raise ShapeError(f"scores: expected (Q, N) = {(len(asked), len(examples))}, got {table.shape}")
    weights = torch.ones(len(places) + 1, len(examples))  # the last one keeps everything
    weights[torch.arange(len(places)), torch.tensor(places)] = 0
    cold = retrain(
        start, examples, asked, weights, schedules, loss=influence.loss, at_once=at_once, progress=progress
    )  # fmt: skip
    stages = {"retraining": _lost(cold.mean(0).numpy())}
    tracked = _tracked_copy(influence, factors)
    damping = damped_ggn(influence.model, examples, factors, loss=influence.loss).damping
    for name, pull in (("warm start", None), ("proximity", damping)):
        found = []
        for rows in weights.split(at_once):
            stack = train_many(tracked, examples, rows, warm, loss=influence.loss, pull=pull, progress=progress)
            found.append(measure_many(tracked, stack, asked, influence.loss, at_once=at_once))
        stages[name] = _lost(torch.cat(found).numpy())
    stages |= _responses(influence, factors, examples, asked, places, solver, at_once, progress)
    stages["score"] = table[:, places]
    pairs = list(pairwise(STAGES))
    return LooGap(
        {name: stages[name] for name in STAGES},
        {gap: float(np.sqrt(np.mean((stages[a] - stages[b]) ** 2))) for gap, (a, b) in zip(_GAPS, pairs, strict=True)},
        {name: _correlation(stages["retraining"], stages[name]) for name in STAGES[1:]},
        {gap: _correlation(stages[a], stages[b]) for gap, (a, b) in zip(_GAPS, pairs, strict=True)},
    )


def _responses(
    influence: Influence,
    factors: Factors,
    examples: Examples,
    asked: Examples,
    points: list[int],
    solver: NewtonCG | None,
    at_once: int,
    progress: bool | None,
) -> dict[str, NDArray[np.float64]]:
    solved = pbrf(
        influence, factors, examples, asked, points, copies=1.0, solver=solver, at_once=at_once, progress=progress
    )  # fmt: skip
    return {"response": solved.removed, "linear": damped_ggn_scores(influence, factors, examples, asked, points)}


def _tracked_copy(influence: Influence, factors: Factors) -> nn.Module:
    # trains no more than what scores hold to be free, in the order of the damping
    model = copy.deepcopy(influence.model)
    layers = [layer for name, layer in influence.layers.items() if factors[name].damping != float("inf")]
    free = {
        name
        for layer in layers
        for name in layer.grads_from_matrix(torch.empty(layer.out_features, layer.columns, device="meta"))
    }
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in free)
    return model


def _lost(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # (K + 1, Q) of f, everything kept last, to what each sequence was worth (Q, K)
    return (values[-1] - values[:-1]).T


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # Pearson over sequences, mean over queries; a row that does not vary counts 0
    left, right = (table - table.mean(1, keepdims=True) for table in (a, b))
    scale = np.sqrt((left**2).sum(1) * (right**2).sum(1))
    return float(np.divide((left * right).sum(1), scale, out=np.zeros(len(scale)), where=scale > 0).mean())
