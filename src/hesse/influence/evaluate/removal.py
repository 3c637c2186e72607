"""Does leaving out what a method points at hurt the query? Removal curves, their standard form QLD, and the tail patch.

Shapes: Q queries, N sequences, C counts of removed sequences.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from hesse.errors import ArgumentError, ShapeError
from hesse.influence.evaluate.functional import Weights, measure_many, measure_tokens
from hesse.influence.evaluate.lds import bootstrap_interval, score_table
from hesse.influence.evaluate.training import train_many
from hesse.influence.examples import Examples, as_examples
from hesse.influence.objective import CausalLMLoss, Loss
from hesse.influence.scores import Scores
from hesse.influence.trajectory.optimizers import SGD
from hesse.influence.trajectory.schedule import TrainingSchedule

__all__ = ["Qld", "RemovalCurve", "TailPatch", "qld", "removal_curve", "tail_patch"]


@dataclass(frozen=True, slots=True)
class RemovalCurve:
    """Fall of each query's log-probability after training without its strongest proponents, and without random rows."""

    counts: list[int]  # (C,) sequences left out
    fall: NDArray[np.float64]  # (Q, C) nats, positive where the query got worse
    random_fall: NDArray[np.float64]  # (Q, C) mean over random choices of as many
    base: NDArray[np.float64]  # (Q,) f after training on everything


@dataclass(frozen=True, slots=True)
class Qld:
    """Rise of the query's loss after training without its strongest proponents, less that after random removal."""

    value: float  # nats a query
    interval: tuple[float, float]
    per_query: NDArray[np.float64]  # (Q,) nats
    per_token: float  # nats a token of the completions
    removed: int  # sequences
    rise: NDArray[np.float64]  # (Q,) nats, without the random part taken off
    random_rise: NDArray[np.float64]  # (Q,)


@dataclass(frozen=True, slots=True)
class TailPatch:
    """Rise of each query's log-probability after one gradient step on its strongest proponents alone."""

    value: float  # nats a query
    interval: tuple[float, float]
    per_query: NDArray[np.float64]  # (Q,)


def removal_curve(
    scores: Scores | ArrayLike,
    model: nn.Module,
    dataset: Any,
    queries: Any,
    schedule: TrainingSchedule,
    counts: Items[int],
    *,
    loss: Loss | None = None,
    random_draws: int = 3,
    seed: int = 0,
    at_once: int = 64,
    progress: bool | None = None,
) -> RemovalCurve:
    """Train without the k strongest proponents of each query, for several k, and ask that query.

    Parameters
    ----------
    scores : Scores or array_like, shape (Q, N)
        Positive raises the query's log-probability; only their order counts.
    model : nn.Module
        Where training starts.
    dataset, queries : Examples, or anything `as_examples` takes
        N training sequences, Q queries.
    schedule : TrainingSchedule
        Of every training; a sequence left out has weight 0, so the batches stay as they are.
    counts : sequence of int
        How many to leave out, each 1 to N - 1.
    loss : Loss, default CausalLMLoss()
        Summed over the tokens of a sequence.
    random_draws : int, default 3
        Random choices for each count, shared by all queries: what leaving out that many does by itself.
    seed : int, default 0
        Of those choices.
    at_once : int, default 64
        Trainings by one vectorised call.
    progress : bool, optional
        Show bars.

    Returns
    -------
    RemovalCurve
        One training run for the Q C removals, the random ones and the whole: Q C + C draws + 1 trainings.

    Raises
    ------
    ArgumentError
        If a count or the number of draws is out of range.
    ShapeError
        If the scores do not fit the data.
    """
    values, examples, asked = _table(scores, dataset, queries)
    total, wanted = len(examples), [int(count) for count in counts]
    if not wanted or min(wanted) < 1 or max(wanted) >= total or random_draws < 1:
        raise ArgumentError(
            f"counts, random_draws: expected counts from 1 to {total - 1} and draws >= 1, got {wanted}, {random_draws}"
        )
    objective: Loss = CausalLMLoss() if loss is None else loss
    weights = _removals(values, wanted, random_draws, seed)
    stacks = _trained(model, examples, weights, schedule, objective, at_once, progress)
    found = torch.cat(
        [measure_many(model, stack, asked, objective, at_once=at_once) for stack in stacks]
    ).numpy()  # (1 + C draws + Q C, Q)
    base, draws = found[0], len(wanted) * random_draws
    random = found[1 : 1 + draws].reshape(len(wanted), random_draws, -1).mean(1).T
    own = found[1 + draws :].reshape(len(values), len(wanted), -1)
    without = np.stack([own[q, :, q] for q in range(len(values))])
    return RemovalCurve(wanted, base[:, None] - without, base[:, None] - random, base)


def qld(
    scores: Scores | ArrayLike,
    model: nn.Module,
    dataset: Any,
    queries: Any,
    schedule: TrainingSchedule,
    *,
    share: float = 0.01,
    loss: Loss | None = None,
    random_draws: int = 3,
    seed: int = 0,
    at_once: int = 64,
    progress: bool | None = None,
) -> Qld:
    """Query loss difference: how much worse a query gets without its top proponents than without random rows.

    Parameters
    ----------
    scores, model, dataset, queries, schedule, loss, random_draws, seed, at_once, progress : see `removal_curve`
        As there.
    share : float, default 0.01
        Of the sequences, left out; at least one.

    Returns
    -------
    Qld
        Positive where the method found what the query rests on; the interval is over queries.

    Raises
    ------
    ArgumentError
        If the share is out of range.
    """
    total = len(as_examples(dataset))
    if not 0 < share < 1:
        raise ArgumentError(f"share: expected above 0 and below 1, got {share}")
    removed = max(1, round(share * total))
    curve = removal_curve(
        scores, model, dataset, queries, schedule, [removed], loss=loss, random_draws=random_draws, seed=seed,
        at_once=at_once, progress=progress,
    )  # fmt: skip
    rise, by_chance = curve.fall[:, 0], curve.random_fall[:, 0]
    gained = rise - by_chance
    tokens = sum(_num_tokens(model, queries, loss))
    return Qld(
        float(gained.mean()), bootstrap_interval(gained), gained, float(gained.sum() / tokens), removed, rise, by_chance
    )


def tail_patch(
    scores: Scores | ArrayLike,
    model: nn.Module,
    dataset: Any,
    queries: Any,
    *,
    top: int = 10,
    learning_rate: float = 1e-3,
    loss: Loss | None = None,
    at_once: int = 64,
) -> TailPatch:
    """Take one plain gradient step on the strongest proponents of each query, and ask that query.

    Parameters
    ----------
    scores, dataset, queries, loss, at_once : see `removal_curve`
        As there.
    model : nn.Module
        The trained model.
    top : int, default 10
        Sequences of the step.
    learning_rate : float, default 1e-3
        Of the step, on their mean loss; a small one keeps to the first order.

    Returns
    -------
    TailPatch
        Positive where the step raised the query.

    Raises
    ------
    ArgumentError
        If ``top`` or the learning rate is out of range.
    """
    values, examples, asked = _table(scores, dataset, queries)
    if not 1 <= top <= len(examples) or not learning_rate > 0:
        raise ArgumentError(f"top, learning_rate: expected 1 to {len(examples)} and > 0, got {top}, {learning_rate}")
    objective: Loss = CausalLMLoss() if loss is None else loss
    weights = np.zeros((len(values) + 1, len(examples)))  # the last row is no step at all
    np.put_along_axis(weights[:-1], np.argsort(-values, axis=1)[:, :top], len(examples) / top, axis=1)
    schedule = TrainingSchedule(SGD(), (learning_rate,), (tuple(range(len(examples))),))
    stacks = _trained(model, examples, weights, schedule, objective, at_once, progress=False)
    found = torch.cat([measure_many(model, stack, asked, objective, at_once=at_once) for stack in stacks]).numpy()
    rise = found[:-1].diagonal() - found[-1]
    return TailPatch(float(rise.mean()), bootstrap_interval(rise), rise)


def _table(scores: Scores | ArrayLike, dataset: Any, queries: Any) -> tuple[NDArray[np.float64], Examples, Examples]:
    values, examples = score_table(scores), as_examples(dataset)
    asked = as_examples(queries, argument="queries")
    if values.shape != (len(asked), len(examples)):
        raise ShapeError(f"scores: expected (Q, N) = {(len(asked), len(examples))}, got {values.shape}")
    return values, examples, asked


def _removals(values: NDArray[np.float64], counts: list[int], draws: int, seed: int) -> NDArray[np.float64]:
    # everything first, then the random choices, then every query's own
    rng, total = np.random.default_rng(seed), values.shape[1]
    order = np.argsort(-values, axis=1, kind="stable")
    left_out = [np.empty(0, dtype=np.int64)]
    left_out += [rng.choice(total, count, replace=False) for count in counts for _ in range(draws)]
    left_out += [row[:count] for row in order for count in counts]
    weights = np.ones((len(left_out), total))
    for row, gone in zip(weights, left_out, strict=True):
        row[gone] = 0
    return weights


def _trained(
    model: nn.Module,
    examples: Examples,
    weights: NDArray[np.float64],
    schedule: TrainingSchedule,
    loss: Loss,
    at_once: int,
    progress: bool | None,
) -> list[Weights]:
    parts: tuple[Tensor, ...] = torch.from_numpy(weights).split(at_once)
    return [train_many(model, examples, part, schedule, loss=loss, progress=progress) for part in parts]


def _num_tokens(model: nn.Module, queries: Any, loss: Loss | None) -> list[int]:
    here = {name: p.detach()[None] for name, p in model.named_parameters()}
    return [tokens.shape[1] for tokens in measure_tokens(model, here, queries, loss or CausalLMLoss())]
