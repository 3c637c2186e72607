"""Influence through training by segments (SOURCE): curvature and gradients averaged over stretches of the run.

    score(q, n) = -(1/N) Σ_l < F_l(G_l) Π_{l' > l} e^(-τ_l' G_l') ∇f_q(θ_T), ∇L_n averaged over segment l >
    F_l(σ) = (1 - e^(-τ_l σ)) / σ,     τ_l = Σ η over the segment, divided by 1 - β with momentum

G_l is the Gauss-Newton matrix averaged over the checkpoints of segment l, in EK-FAC form, so that functions of it act
on its eigenvalues. Late segments come first, on the side of the queries. AdamW divides every gradient by D = √v̂ + ε: it
is gradient descent in the coordinates D^½ θ, with D^½ taken as an outer product of a row and a column scale, so that
Kronecker factors stay Kronecker factors.   Shapes: Q queries, N sequences, p x m matrices.
"""

import copy
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hesse._progress import progress as progress_bar
from hesse.curvature.capture import Captured
from hesse.curvature.ekfac import sequence_gradients
from hesse.curvature.layers import Picker, TrackedLayer
from hesse.curvature.scratch import Scratch
from hesse.curvature.stored_weights import floating_dtype
from hesse.errors import ArgumentError, ShapeError
from hesse.influence.checks import check_supervised, check_tokens
from hesse.influence.contraction import DenseQueries, contract
from hesse.influence.examples import Examples, as_examples, plan_batches
from hesse.influence.factors import Factors, LayerFactors
from hesse.influence.objective import CausalLMLoss, Loss, check_is_likelihood
from hesse.influence.passes import Fisher, Measurement, Pass, check_model
from hesse.influence.settings import fitted_on
from hesse.influence.trajectory.moving import (
    Checkpoints,
    MovingExamples,
    MovingLoss,
    Scale,
    ScaledInfluence,
    scale_of,
)
from hesse.influence.trajectory.optimizers import SGD
from hesse.influence.trajectory.record import TrainingRecord
from hesse.influence.trajectory.result import TrajectoryScores

__all__ = [
    "Segment",
    "check_trained",
    "decay_of",
    "faded",
    "mean_tokens",
    "settled",
    "source",
    "split_segments",
]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of training over which curvature and gradients count as constant."""

    first: int  # step
    stop: int
    checkpoints: tuple[int, ...]  # steps whose weights stand for it
    time: float  # τ, the sum of its learning rates, of SGD over 1 - β


def split_segments(record: TrainingRecord, segments: int | Items[int] = 3) -> list[Segment]:
    """Cut a recorded run into stretches, each with the checkpoints that lie in it.

    Parameters
    ----------
    record : TrainingRecord
        With checkpoints; the first weights stand for no stretch, as they are those before any training, unless a
        stretch would be left with none.
    segments : int or sequence of int, default 3
        How many, of equally many steps; or the steps at which all but the first begin.

    Returns
    -------
    list of Segment
        In the order of training.

    Raises
    ------
    ArgumentError
        If a stretch has no checkpoint.
    """
    momentum = record.optimizer.momentum if isinstance(record.optimizer, SGD) else 0.0  # AdamW's mean is normalised
    total = len(record)
    if isinstance(segments, int):
        if not 1 <= segments <= total:
            raise ArgumentError(f"segments: expected 1 to {total}, got {segments}")
        borders = [round(total * i / segments) for i in range(segments + 1)]
    else:
        borders = [0, *(int(border) for border in segments), total]
        if any(a >= b for a, b in pairwise(borders)):
            raise ArgumentError(f"segments: expected rising steps between 0 and {total}, got {borders[1:-1]}")
    rates = np.array(record.learning_rates)
    out: list[Segment] = []
    for first, stop in pairwise(borders):
        inside = tuple(step for step in record.checkpoints if first < step <= stop)
        inside = inside or tuple(step for step in record.checkpoints if first <= step <= stop)
        if not inside:
            raise ArgumentError(
                f"segments: no weights were kept in steps {first} to {stop}; kept are "
                f"{', '.join(map(str, record.checkpoints))}"
            )
        time = float(rates[first:stop].sum()) / (1 - momentum)
        out.append(Segment(first, stop, inside, time))
    return out


def source(
    model: nn.Module,
    queries: Any,
    dataset: Any,
    record: TrainingRecord,
    run_dir: Path | str,
    *,
    segments: int | Items[int] = 3,
    modules: Picker = "mlp",
    loss: Loss | None = None,
    measurement: Measurement | None = None,
    fisher: Fisher = "sampled",
    blocks: int = 1,
    max_sequences: int | None = 100_000,
    batch_tokens: int = 4096,
    seed: int = 0,
    progress: bool | None = None,
) -> TrajectoryScores:
    """Influence through a recorded training run, approximated by segments of constant curvature.

    A score is the first-order change of f_q, in nats, when one more copy of sequence n joins the N training sequences
    from the start; positive raises f_q. That is the sign and the unit of `Influence.score`. It needs no damping, and
    knows when in training a sequence came to matter: directions that a segment does not settle keep F = τ instead of
    1/σ, and what later segments overwrite fades. One segment with large τσ gives `Influence.score` without damping, a
    short one the gradient dot product times τ.

    Exact: SGD with small steps on a quadratic whose Hessian has the fitted eigenbasis. Approximate: constant curvature
    and gradients within a segment, Gauss-Newton for the Hessian, independent EK-FAC blocks, batches for their mean,
    momentum by its effective rate, tracked layers only, gradients that are not clipped. Weight decay is added to σ. Of
    AdamW also: D is constant within a segment, an outer product, and not itself moved by the added copy.

    Parameters
    ----------
    model : nn.Module
        The architecture, in eval mode, in float32, bfloat16 or float64; its trained weights come from the record. Not
        changed.
    queries : Examples, or anything `as_examples` takes
        Labels on the completion only.
    dataset : Examples, or anything `as_examples` takes
        The training set.
    record : TrainingRecord
        With weights of the last step; of AdamW with its running means, which a `Recorder` keeps that was given the
        optimizer of torch.
    run_dir : path
        The factors of segment l are kept in ``run_dir/segment-l`` and not fitted twice.
    segments : int or sequence of int, default 3
        See `split_segments`. 3 with 2 checkpoints each is the published choice.
    modules, loss, fisher, blocks, seed : see `Influence`
        As there.
    measurement : callable, optional
        Explain (model, batch) -> (B,) instead of the log-probability of the completion.
    max_sequences : int or None, default 100,000
        Fit each checkpoint's share of the factors on a random subset of at most this size.
    batch_tokens : int, default 4096
        Padded tokens a batch.
    progress : bool, optional
        Show bars on stderr. Default: if it is a terminal.

    Returns
    -------
    TrajectoryScores
        Scores (Q, N) in float64 and the queries' values at the end of the run.

    Raises
    ------
    ArgumentError
        If a segment has no checkpoint, running means of AdamW are missing, or the model has other parameters than the
        record.
    ArtifactError
        If the record is of other data.

    Notes
    -----
    Time: a fit (see `Influence.fit`) on N times the checkpoints, and a backward pass over all sequences a checkpoint.
    Memory: the gradients of all queries, Q Σ pm numbers, twice.

    References
    ----------
    J. Bae, W. Lin, J. Lorraine, R. Grosse (2024), Training Data Attribution via Approximate Unrolled Differentiation,
    arXiv 2405.12186.
    """
    check_model(model)
    examples, asked = as_examples(dataset), as_examples(queries, argument="queries")
    objective: Loss = CausalLMLoss() if loss is None else loss
    check_tokens(model, examples, "dataset")
    check_tokens(model, asked, "queries")
    if measurement is None:
        check_supervised(asked, objective)
    stretches = split_segments(record, segments)
    record.check_data(examples)
    net = copy.deepcopy(model)
    checkpoints = Checkpoints(net, record)
    chosen = list(fitted_on(len(examples), max_sequences, seed))

    fits: list[Factors] = []
    scales: list[Mapping[str, Scale]] = []
    layers: Mapping[str, TrackedLayer] = {}
    for number, stretch in enumerate(stretches):
        checkpoints.load(stretch.checkpoints[0])
        if number == 0 and fisher == "sampled":
            with torch.no_grad():
                check_is_likelihood(objective, net, _to(net, examples.batch([0])))
        moving = MovingLoss(objective, checkpoints)
        engine = ScaledInfluence(net, modules=modules, loss=moving, fisher=fisher, blocks=blocks, seed=seed)
        layers = engine.layers
        check_trained(layers, record)
        engine.scales = {name: scale_of(record, stretch.checkpoints, layer) for name, layer in layers.items()}
        scales.append(engine.scales)
        fits.append(
            engine.fit(
                MovingExamples(examples, chosen, stretch.checkpoints),
                Path(run_dir) / f"segment-{number}",
                max_sequences=None,
                batch_tokens=batch_tokens,
                unit_size=len(chosen),  # a unit, and so a batch, is of one checkpoint
                progress=progress,
            )
        )

    checkpoints.load(len(record))
    run_pass = Pass(net, objective, layers, seed)
    vectors, measured = _query_gradients(run_pass, asked, measurement)
    per_sequence = 1.0 if record.per == "sequences" else mean_tokens(net, objective, examples, batch_tokens)
    decays = {name: decay_of(record, name) * per_sequence for name in layers}
    scores = torch.zeros(len(asked), len(examples), dtype=torch.float64)
    count = sum(len(stretch.checkpoints) for stretch in stretches) * len(examples)
    with progress_bar("scores", count, unit="sequences", enabled=progress) as shown:
        for stretch, factors, scale in zip(reversed(stretches), reversed(fits), reversed(scales), strict=True):
            time = stretch.time / per_sequence
            prepared: dict[str, DenseQueries] = {}
            for name, layer in layers.items():
                here, rest = scale[name].to(vectors[name]), (factors[name], time, decays[name])
                inside = here.times(vectors[name])
                prepared[name] = _dense(here.times(settled(*rest).precondition(inside)), layer)
                vectors[name] = here.over(faded(*rest).precondition(inside))
            for step in stretch.checkpoints:
                checkpoints.load(step)
                for indices, part in _stream(run_pass, prepared, examples, batch_tokens):
                    scores[:, indices] += part / len(stretch.checkpoints)
                    shown(len(indices))
    return TrajectoryScores(scores / len(examples), list(asked.ids), list(examples.ids), measured)


def check_trained(layers: Mapping[str, TrackedLayer], record: TrainingRecord) -> None:
    """Refuse layers that the run did not train.

    Parameters
    ----------
    layers : mapping of str to TrackedLayer
        Those that are tracked.
    record : TrainingRecord
        With weights of the last step.

    Raises
    ------
    ArgumentError
        Naming the first such layer.
    """
    trained = record.weights(len(record))
    for name in layers:
        if _weight(name) not in trained:
            raise ArgumentError(f"modules: layer {name!r} was not trained in this run; leave it out with modules=")


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def decay_of(record: TrainingRecord, layer: str) -> float:
    """Look up the weight decay of a layer's matrix.

    Parameters
    ----------
    record : TrainingRecord
        Knows the optimizer.
    layer : str
        Name in the model.

    Returns
    -------
    float
        Added to the eigenvalues of its curvature.
    """
    return 0.0 if _weight(layer) in record.optimizer.no_decay else record.optimizer.weight_decay


def settled(factor: LayerFactors, time: float, decay: float) -> LayerFactors:
    """F(σ) = (1 - e^(-τσ)) / σ, as factors that divide by 1 / F; its limit at σ = 0 is τ.

    Parameters
    ----------
    factor : LayerFactors
        Of a segment.
    time : float
        τ.
    decay : float
        Added to every eigenvalue.

    Returns
    -------
    LayerFactors
        To precondition with.
    """
    rates = _table(factor) + decay
    limit = 1 / time if time else float("inf")
    inverse = torch.where(rates * time < 1e-12, limit, rates / -torch.expm1(-rates * time))
    return replace(factor, table=inverse, damping=0.0)


def faded(factor: LayerFactors, time: float, decay: float) -> LayerFactors:
    """e^(-τσ), as factors that divide by e^(τσ).

    Parameters
    ----------
    factor, time, decay : see `settled`
        As there.

    Returns
    -------
    LayerFactors
        To precondition with.
    """
    return replace(factor, table=torch.exp((_table(factor) + decay) * time), damping=0.0)


def _table(factor: LayerFactors) -> Tensor:
    if factor.table is None:
        raise ArgumentError("source: the factors have no eigenvalues")
    return factor.table


def _dense(matrices: Tensor, layer: TrackedLayer) -> DenseQueries:
    weight = matrices[..., : layer.in_features].contiguous()
    return DenseQueries(weight, matrices[..., -1].contiguous() if layer.has_bias else None)


def _query_gradients(
    run_pass: Pass, queries: Examples, measurement: Measurement | None
) -> tuple[dict[str, Tensor], Tensor]:
    # gradients of -f of every query, (Q, p, m) a layer, in the dtype of the factors; and f, (Q,)
    parts: dict[str, list[Tensor]] = {name: [] for name in run_pass.layers}
    wide = torch.float64 if floating_dtype(run_pass.model) == torch.float64 else torch.float32
    sign = 1 if measurement is None else -1
    values: list[Tensor] = []

    def consume(rows: Captured) -> None:
        parts[rows.layer.name].append(sign * sequence_gradients(rows).to(wide))

    with run_pass.open(consume, argument="queries"):
        for number in range(len(queries)):
            batch = _to(run_pass.model, queries.batch([number]))
            if measurement is None:
                values.append(-run_pass.empirical(batch, [queries.ids[number]]).per_token.detach().sum()[None])
            else:
                values.append(run_pass.measured(batch, measurement, [queries.ids[number]]))
    measured = torch.cat(values).double().cpu()
    if len(measured) != len(queries):
        raise ShapeError(f"measurement: expected one value a query, got {len(measured)} for {len(queries)}")
    return {name: torch.cat(matrices) for name, matrices in parts.items()}, measured


def _stream(
    run_pass: Pass, prepared: Mapping[str, DenseQueries], examples: Examples, batch_tokens: int
) -> Iterator[tuple[list[int], Tensor]]:
    # (numbers, products (Q, B) summed over layers) of every batch
    scratch = Scratch()
    totals: list[Tensor] = []

    def consume(rows: Captured) -> None:
        queries = prepared[rows.layer.name]
        totals.append(contract(rows, queries, queries.weight.dtype, scratch).double().cpu())

    with run_pass.open(consume):
        for indices in plan_batches(examples.lengths, range(len(examples)), batch_tokens):
            totals.clear()
            run_pass.empirical(_to(run_pass.model, examples.batch(indices)), [examples.ids[i] for i in indices])
            yield indices, torch.stack(totals).sum(0)


def mean_tokens(model: nn.Module, loss: Loss, examples: Examples, batch_tokens: int) -> float:
    """Count the supervised tokens of a sequence, on average.

    Parameters
    ----------
    model, loss : nn.Module, Loss
        The loss says which positions count.
    examples : Examples
        The training set.
    batch_tokens : int
        Padded tokens a batch.

    Returns
    -------
    float
        At least 0.
    """
    total = 0
    with torch.no_grad():
        for indices in plan_batches(examples.lengths, range(len(examples)), batch_tokens):
            total += int(loss(model, _to(model, examples.batch(indices))).valid.sum())
    return total / len(examples)


def _to(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in batch.items()}
