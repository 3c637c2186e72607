"""Exact influence on a training run: the derivative of a query in how much each sequence counted, through every step.

    score(q, n) = d f_q(θ_T) / d w_n,     θ_T the end of the run whose step t minimises Σ_{n in batch t} w_n L_n / D_t

The chain of steps is differentiated backwards, all queries of a block at once; the states it needs are made again from
few that are kept.   Shapes: Q queries, N sequences, T steps, P weights.
"""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from hesse._progress import progress as progress_bar
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.influence.checks import check_supervised, check_tokens, of_kind
from hesse.influence.examples import Examples, as_examples
from hesse.influence.objective import Loss
from hesse.influence.passes import Measurement
from hesse.influence.trajectory.replay import Replay, State, open_replay
from hesse.influence.trajectory.result import TrajectoryScores
from hesse.influence.trajectory.schedule import TrainingSchedule
from hesse.influence.trajectory.treeverse import default_checkpoints, reversed_states

__all__ = ["magic"]


def magic(
    model: nn.Module,
    queries: Any,
    dataset: Any,
    schedule: TrainingSchedule,
    *,
    initial: Mapping[str, Tensor] | None = None,
    loss: Loss | None = None,
    measurement: Measurement | None = None,
    counts: Tensor | None = None,
    checkpoints: int | None = None,
    query_batch: int = 4,
    progress: bool | None = None,
) -> TrajectoryScores:
    """Differentiate the end of a training run in how much each sequence counted, d f_q(θ_T) / d w_n, through all steps.

    A score is the first-order change of f_q, in nats, when one more copy of sequence n stands wherever it stood in
    training; positive raises f_q. That is the sign and the unit of `Influence.score`. Exact: the derivative of this
    very run, with its order, schedule, momentum, decay and clipping. Approximate: linear in the added copy, and
    rounding, which a run with steep steps amplifies.

    Parameters
    ----------
    model : nn.Module
        In eval mode, since dropout cannot be replayed; in float32 or float64, on any device. Parameters that require no
        gradient are not trained. Not changed.
    queries : Examples, or anything `as_examples` takes
        Labels on the completion only.
    dataset : Examples, or anything `as_examples` takes
        The training set, in the order that the schedule's numbers mean; not packed.
    schedule : TrainingSchedule
        What the run did, step by step.
    initial : mapping of str to Tensor, optional
        Weights before the first step, such as ``TrainingRecord.weights(0)``. Default: the model's own.
    loss : Loss, default CausalLMLoss()
        Summed over the tokens of a sequence.
    measurement : callable, optional
        Explain (model, batch) -> (B,) instead of the log-probability of the completion.
    counts : Tensor, shape (N,), optional
        Where the derivative is taken: how often each sequence counts. Default: once.
    checkpoints : int, optional
        States kept at once, each P numbers and once or twice that of optimizer memory. Default: ⌈log₂ T⌉ + 1, with
        which a step is made again ⌈log₂ T⌉ times at most; T keeps all. The result is the same.
    query_batch : int, default 4
        Queries whose derivatives go backwards together; memory for activations grows with it. A few save the overhead
        of small operations; many on a CPU cost more than they save, in fresh memory.
    progress : bool, optional
        Show a bar on stderr. Default: if it is a terminal.

    Returns
    -------
    TrajectoryScores
        Scores (Q, N) and the queries' values f_q(θ_T), in the dtype of the model.

    Raises
    ------
    ArgumentError
        If model, data and schedule do not fit together, or an argument is out of range.
    NumericalError
        If the training diverges, or its derivative does.

    Notes
    -----
    Time: a training step costs about 3 forward passes; each step here costs that, its replays, and about 6 forward
    passes a query. Attention runs in torch's mathematical kernel, the only one with second derivatives. A step of Adam
    is steep where the running mean of g² is near ``eps``²: set ``eps`` or ``eps_root`` of `AdamW` higher when training
    for it. On Linux, ``MALLOC_MMAP_THRESHOLD_`` and ``MALLOC_TRIM_THRESHOLD_`` of 2³⁰ in the environment can save a
    tenth to a third of the time: the memory of one step then serves the next.

    References
    ----------
    A. Ilyas, L. Engstrom (2025), MAGIC, arXiv 2504.16430. L. Engstrom et al. (2025), arXiv 2503.13751. A. Griewank, A.
    Walther (2000), ACM Trans. Math. Softw. 26(1), for the checkpoints.
    """
    asked = as_examples(queries, argument="queries")
    run = open_replay(model, dataset, schedule, initial=initial, loss=loss, counts=counts)
    check_tokens(model, asked, "queries")
    if measurement is None:
        check_supervised(asked, run.loss)
    for name, value in (("checkpoints", checkpoints), ("query_batch", query_batch)):
        if value is not None:
            of_kind(name, value, Integral, "a whole number")
            if value < 1:
                raise ArgumentError(f"{name}: expected >= 1, got {value}")
    steps = len(schedule)
    kept = min(steps, default_checkpoints(steps) if checkpoints is None else checkpoints)
    scores = torch.zeros(len(asked), len(run.examples), dtype=run.first.dtype, device=run.first.device)

    measured: Tensor | None = None
    adjoint: State | None = None
    with progress_bar("magic", steps, unit="steps", enabled=progress) as shown:
        for t, state in reversed_states(run.start(), steps, run.advance, kept):
            if adjoint is None:  # the last step comes first: what follows it is the measurement
                final = run.advance(state, t)
                measured, gradients = _measure(run, final.weights, asked, measurement)
                adjoint = State(gradients, tuple(torch.zeros_like(gradients) for _ in final.memory))
            adjoint = _pull_back(run, state, t, adjoint, scores, int(query_batch))
            shown(1)
    if measured is None or not bool(torch.isfinite(scores).all()):
        raise NumericalError(
            "magic: the derivative of the training run is NaN or Inf; the run is too steep to be differentiated (a "
            "lower learning rate, or a larger eps of AdamW, makes it smoother)"
        )
    return TrajectoryScores(scores.cpu(), list(asked.ids), list(run.examples.ids), measured.cpu())


def _pull_back(run: Replay, state: State, number: int, adjoint: State, scores: Tensor, block: int) -> State:
    # adjoints (Q, P) of the state after a step -> those of the state before it; what falls on the counts joins scores
    indices = torch.tensor(run.schedule.batches[number], device=scores.device)
    weights = state.weights.detach().requires_grad_()
    memory = tuple(part.detach().requires_grad_() for part in state.memory)
    counts = run.counts[indices].requires_grad_()
    after = run.step(State(weights, memory), number, counts, create_graph=True)
    outputs, inputs = (after.weights, *after.memory), (weights, *memory, counts)
    incoming = (adjoint.weights, *adjoint.memory)
    pieces: list[tuple[Tensor, ...]] = []
    total = len(adjoint.weights)
    for first in range(0, total, block):
        pulled = torch.autograd.grad(
            outputs,
            inputs,
            tuple(part[first : first + block] for part in incoming),
            retain_graph=first + block < total,
            is_grads_batched=True,
            materialize_grads=True,
        )
        scores[first : first + block].index_add_(1, indices, pulled[-1])
        pieces.append(pulled[:-1])
    joined = [torch.cat(parts) for parts in zip(*pieces, strict=True)]
    return State(joined[0], tuple(joined[1:]))


def _measure(run: Replay, weights: Tensor, queries: Examples, measurement: Measurement | None) -> tuple[Tensor, Tensor]:
    # f of every query (Q,) at the end of the run, and its gradient (Q, P)
    values, gradients = [], []
    for number in range(len(queries)):
        leaf = weights.detach().requires_grad_()
        batch = run.batch([number], queries)
        value = -run.losses(leaf, batch)[0] if measurement is None else run.call(measurement, leaf, batch)
        if value.shape != (1,):
            raise ShapeError(f"measurement: expected one value a sequence, shape (B,), got {tuple(value.shape)}")
        gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
        values.append(value.detach())
    return torch.cat(values), torch.stack(gradients)
