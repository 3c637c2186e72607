"""Train one model many times at once, each time with other weights on the examples: the ground truth of attribution.

Step t of training k minimises Σ_{n in batch t} w_kn L(z_n) / D_t. A weight of 0 leaves a sequence out, 2 counts it
twice.   Shapes: K trainings, N sequences, Q queries, R runs, P trained weights.
"""

import copy
import math
from collections.abc import Sequence as Items
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from hesse._progress import progress as show_progress
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.influence.evaluate.functional import Weights, measure_many
from hesse.influence.examples import as_examples
from hesse.influence.objective import CausalLMLoss, Loss
from hesse.influence.passes import Measurement
from hesse.influence.trajectory.optimizers import clip_gradient
from hesse.influence.trajectory.replay import Replay, open_replay, replay
from hesse.influence.trajectory.schedule import TrainingSchedule

__all__ = ["cosine_rates", "retrain", "train_many", "train_model"]


def cosine_rates(peak: float, steps: int) -> list[float]:
    """Half a cosine from the peak to almost 0: η_t = peak (1 + cos(π t / T)) / 2.

    Parameters
    ----------
    peak : float
        Learning rate of the first step.
    steps : int
        T >= 1.

    Returns
    -------
    list of float
        T rates, for a `TrainingSchedule`.

    Raises
    ------
    ArgumentError
        If there is no step, or the peak is not positive.
    """
    if steps < 1 or not peak > 0:
        raise ArgumentError(f"cosine_rates: expected peak > 0 and steps >= 1, got {peak}, {steps}")
    return [peak * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]


def train_many(
    model: nn.Module,
    dataset: Any,
    weights: ArrayLike | Tensor,
    schedule: TrainingSchedule,
    *,
    loss: Loss | None = None,
    pull: Tensor | None = None,
    progress: bool | None = None,
) -> Weights:
    """Train K copies of a model at once, each on its own weights of the sequences and all on the same batches.

    Parameters
    ----------
    model : nn.Module
        Where every training starts; in eval mode, so that there is no dropout, in float32 or float64. Parameters that
        require no gradient are not trained. Not changed.
    dataset : Examples, or anything `as_examples` takes
        N sequences, in the order that the schedule's numbers mean; not packed.
    weights : array_like, shape (K, N)
        Of every sequence in every training; all ones is training as usual.
    schedule : TrainingSchedule
        Optimizer, learning rates and batches.
    loss : Loss, default CausalLMLoss()
        Summed over the tokens of a sequence.
    pull : Tensor, shape (P,), optional
        λ of ½ Σ λ (θ - θ_start)², which holds weights near their start, in the order of the trained parameters.
        Default: none.
    progress : bool, optional
        Show a bar on stderr. Default: if it is a terminal.

    Returns
    -------
    dict of str to Tensor
        Trained parameters, K in front.

    Raises
    ------
    ArgumentError
        If model, data and schedule do not fit together.
    ShapeError
        If the weights do not fit the data, or ``pull`` the model.
    NumericalError
        If a training diverged.

    Notes
    -----
    The arithmetic of `hesse.influence.trajectory.replay`, vectorised: time of K trainings, but one batched product a
    layer in place of K small ones. Memory: some six times K P numbers, and K times the activations of a batch. Of a
    transformer, ``attn_implementation="eager"`` vectorises best.
    """
    run = open_replay(model, dataset, schedule, loss=loss)
    shares = torch.as_tensor(weights).to(run.first)
    if shares.dim() != 2 or shares.shape[1] != len(run.examples):
        raise ShapeError(f"weights: expected (K, {len(run.examples)}), one a sequence, got {tuple(shares.shape)}")
    if pull is not None and pull.shape != run.first.shape:
        raise ShapeError(f"pull: expected one a trained weight, ({len(run.first)},), got {tuple(pull.shape)}")
    stack = run.first.expand(len(shares), -1).clone()
    memory = run.schedule.optimizer.start(stack)
    with show_progress(f"training {len(shares)} models", len(schedule), unit="steps", enabled=progress) as advance:
        for number, indices in enumerate(schedule.batches):
            grads = _gradients(run, stack, number, shares[:, list(indices)])
            if pull is not None:
                grads = grads + pull * (stack - run.first)
            stack, memory = _step(run, stack, memory, grads, number)
            advance(1)
    finite = torch.isfinite(stack).all(1)
    if not bool(finite.all()):
        raise NumericalError(
            f"train_many: training number {int((~finite).nonzero()[0])} diverged; lower the learning rate"
        )
    return run.layout.unflatten(stack)


def _gradients(run: Replay, stack: Tensor, number: int, shares: Tensor) -> Tensor:
    batch = run.batch(run.schedule.batches[number])
    return torch.vmap(torch.func.grad(lambda weights, counts: run.objective(weights, number, counts, batch)))(
        stack, shares
    )


@torch.no_grad()
def _step(
    run: Replay, stack: Tensor, memory: tuple[Tensor, ...], grads: Tensor, number: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    optimizer, rate = run.schedule.optimizer, run.schedule.learning_rates[number]

    def step(weights: Tensor, state: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        clipped = clip_gradient(grad, optimizer.clip_norm)
        return optimizer.step(weights, state, clipped, rate, number, run.decays)

    return torch.vmap(step)(stack, memory, grads)


def train_model(
    model: nn.Module,
    dataset: Any,
    schedule: TrainingSchedule,
    *,
    loss: Loss | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Train one model on all of a data set: what scores are computed on, when `retrain` gives the truth.

    Parameters
    ----------
    model, dataset, schedule, loss, progress : see `train_many`
        As there; every sequence has weight 1.

    Returns
    -------
    nn.Module
        A trained copy, in eval mode.
    """
    found = replay(model, dataset, schedule, loss=loss, progress=progress)
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if name in found:
                parameter.copy_(found[name])
    return trained


def retrain(
    model: nn.Module | Items[nn.Module],
    dataset: Any,
    queries: Any,
    weights: ArrayLike | Tensor,
    schedules: TrainingSchedule | Items[TrainingSchedule],
    *,
    loss: Loss | None = None,
    measurement: Measurement | None = None,
    at_once: int = 64,
    progress: bool | None = None,
) -> Tensor:
    """f_q after training with every row of weights: what attribution predicts without training.

    Parameters
    ----------
    model : nn.Module or sequence of nn.Module
        Where the trainings start: one model (fine-tuning), or one for each schedule (from scratch).
    dataset, queries : Examples, or anything `as_examples` takes
        N training sequences; Q queries with labels on the completion only.
    weights : array_like, shape (K, N)
        Of every sequence in every training, for instance masks of 0 and 1.
    schedules : TrainingSchedule or sequence of TrainingSchedule
        R runs, which differ in their data orders or starts: outcomes differ between them by what no method can
        attribute to the data.
    loss : Loss, default CausalLMLoss()
        Summed over the tokens of a sequence.
    measurement : callable, optional
        (model, batch) -> (B,). Default: the log-probability of the labels, in nats.
    at_once : int, default 64
        Trainings by one vectorised call; memory grows with it.
    progress : bool, optional
        Show bars on stderr. Default: if it is a terminal.

    Returns
    -------
    Tensor, shape (R, K, Q)
        float64.

    Raises
    ------
    ArgumentError
        If models and schedules differ in number, or as `train_many`.
    """
    runs = [schedules] if isinstance(schedules, TrainingSchedule) else list(schedules)
    starts = [model] * len(runs) if isinstance(model, nn.Module) else list(model)
    if not runs or len(starts) != len(runs) or at_once < 1:
        raise ArgumentError(
            f"schedules, model, at_once: expected one start for each of R >= 1 schedules and at_once >= 1, got "
            f"{len(runs)}, {len(starts)}, {at_once}"
        )
    examples, asked = as_examples(dataset), as_examples(queries, argument="queries")
    objective: Loss = CausalLMLoss() if loss is None else loss
    outcomes = []
    for start, schedule in zip(starts, runs, strict=True):
        parts = []
        for rows in torch.as_tensor(weights).split(at_once):
            stack = train_many(start, examples, rows, schedule, loss=objective, progress=progress)
            parts.append(measure_many(start, stack, asked, objective, measurement=measurement, at_once=at_once))
        outcomes.append(torch.cat(parts))
    return torch.stack(outcomes)
