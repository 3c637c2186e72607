"""Scores every candidate sequence against every query, in resumable shards.

    score(q, n) = -(1/N) Σ_ℓ <P_ℓ(∇_ℓ f_q), ∇_ℓ L(z_n)>    nats of f_q for one more copy of z_n

with f_q the log-probability of the query's completion. Few queries are preconditioned, once; many candidates are
streamed past.
"""

import time
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hesse._progress import progress
from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.curvature.ekfac import rotated_gradients, sequence_gradients
from hesse.curvature.scratch import Scratch
from hesse.errors import MemoryLimitError, NumericalError, ShapeError
from hesse.influence.contraction import (
    DenseQueries,
    LowRankQueries,
    QueryMatrices,
    contract,
    contract_tokens,
    empty_queries,
    put,
    put_rows,
    takes_rows,
)
from hesse.influence.examples import Examples, plan_batches, plan_units
from hesse.influence.factors import Factors, LayerFactors
from hesse.influence.fit import file_name
from hesse.influence.passes import Measurement, Pass
from hesse.influence.run import RunFolder
from hesse.io import FileEntry, load_tensors, save_tensors

__all__ = ["ScoreSettings", "check_memory", "prepare_queries", "refine", "score_units", "self_scores"]

_CACHED_ENTRIES = 1 << 20  # on a CPU those of queries by so much, to stay in its cache on the way to their matrices


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """What to compute and how to cut it up."""

    rank: int | None = None
    per_layer: bool = False
    per_token: bool = False
    batch_tokens: int = 4096
    batch_size: int | None = None
    unit_size: int = 256
    checkpoint_seconds: float = 30.0
    query_memory: int = 8 << 30  # bytes that preconditioned queries may take
    show_progress: bool | None = None


def prepare_queries(
    run_pass: Pass,
    factors: Factors,
    queries: Examples,
    settings: ScoreSettings,
    *,
    dtype: torch.dtype,
    measurement: Measurement | None = None,
    chosen: Items[int] | None = None,
) -> dict[str, QueryMatrices]:
    """Precondition the gradient of every query's loss, layer by layer; of -f when a measurement f is given.

    Parameters
    ----------
    run_pass : Pass
        The model with its loss and layers.
    factors : Factors
        Fitted on it.
    queries : Examples
        Labels on the completion only.
    settings : ScoreSettings
        Rank and memory limit.
    dtype : dtype
        Of the matrices kept (low-rank ones are kept in bfloat16 unless this is float64). bfloat16 also rotates in it.
    measurement : callable, optional
        (model, batch) -> (B,). Default: the log-probability of the supervised tokens.
    chosen : sequence of int, optional
        Query numbers. Default: all.

    Returns
    -------
    dict[str, QueryMatrices]
        P_q of every layer, in the order of ``chosen``.

    Raises
    ------
    MemoryLimitError
        Before any work, if they would not fit.
    """
    numbers = list(range(len(queries))) if chosen is None else list(chosen)
    check_memory(run_pass, len(numbers), settings, dtype)
    kept: dict[str, QueryMatrices] = {}
    solvers: dict[str, LayerFactors] = {}
    scratch = Scratch()
    done = 0

    def consume(rows: Captured) -> None:
        name = rows.layer.name
        if name not in kept:
            factor = factors[name]
            solvers[name] = factor.with_bases(torch.bfloat16) if dtype == torch.bfloat16 else factor
            kept[name] = empty_queries(rows.layer, len(numbers), settings.rank, dtype, rows.grads.device)
        solver = solvers[name]
        wide = dtype if solver.table is None else solver.table.dtype
        first = done
        matrices = kept[name]
        if solver.table is None and takes_rows(matrices, rows):
            put_rows(matrices, first, rows if measurement is None else replace(rows, grads=-rows.grads), wide)
            return
        for block in rows.blocks(_CACHED_ENTRIES if rows.grads.device.type == "cpu" else BLOCK_ENTRIES):
            inverse = solver.precondition_rows(block, wide, scratch)
            if measurement is not None:
                inverse.neg_()
            if not bool(torch.isfinite(inverse.sum())):
                raise NumericalError(f"score: the preconditioned gradient of a query in {name!r} holds NaN or Inf")
            put(matrices, first, inverse, bases=solver.bases, scratch=scratch, seed=run_pass.seed)
            first += len(inverse)

    budget = min(settings.batch_tokens, 2048)
    with (
        run_pass.open(consume, argument="queries"),
        progress("queries", len(numbers), unit="queries", enabled=settings.show_progress) as advance,
    ):
        for indices in _in_order(queries.lengths, numbers, budget):
            batch = _to_device(queries.batch(indices), run_pass)
            if measurement is None:
                run_pass.empirical(batch, [queries.ids[i] for i in indices])
            else:
                run_pass.measured(batch, measurement)
            done += len(indices)
            advance(len(indices))
    return {name: kept[name] for name in run_pass.layers}


def score_units(
    run: RunFolder,
    folder: str,
    run_pass: Pass,
    prepared: dict[str, QueryMatrices],
    examples: Examples,
    total: int,
    settings: ScoreSettings,
    dtype: torch.dtype,
) -> None:
    """Stream the candidates, one shard a unit, committing as they are written.

    Parameters
    ----------
    run : RunFolder
        Where shards go.
    folder : str
        Path of this question's scores inside the run.
    run_pass : Pass
        The model with its loss and layers.
    prepared : dict of str to QueryMatrices
        From `prepare_queries`.
    examples : Examples
        Candidates.
    total : int
        N of the scores, the size of the training set.
    settings : ScoreSettings
        What to compute.
    dtype : dtype
        Of the products.
    """
    stage = f"score:{folder}"
    state = run.stage(stage)
    lengths = examples.lengths
    fresh: dict[str, FileEntry] = {}
    last = time.monotonic()
    sink = _Sink(prepared, settings, dtype, 1.0 / total)
    with (
        run_pass.open(sink.consume),
        progress("scores", len(examples), unit="sequences", enabled=settings.show_progress) as advance,
    ):
        advance(int(state["sequences"]))
        for unit in plan_units(len(examples), settings.unit_size, int(state["sequences"])):
            sink.start(unit, lengths)
            for indices in plan_batches(lengths, unit, settings.batch_tokens, settings.batch_size):
                sink.begin(indices)
                run_pass.empirical(_to_device(examples.batch(indices), run_pass), [examples.ids[i] for i in indices])
                advance(len(indices))
            relative = f"{folder}/part-{unit.start:09d}.safetensors"
            fresh[relative] = save_tensors(run.path / relative, sink.finish())
            state = state | {"sequences": unit.stop, "parts": [*state["parts"], [unit.start, unit.stop]]}
            if unit.stop == len(examples) or time.monotonic() - last >= settings.checkpoint_seconds:
                run.commit({stage: state}, fresh)
                fresh, last = {}, time.monotonic()


@dataclass(slots=True)
class _Sink:
    """Scores of the unit in flight."""

    prepared: dict[str, QueryMatrices]
    settings: ScoreSettings
    dtype: torch.dtype
    scale: float
    unit: range = field(default_factory=lambda: range(0))
    places: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    layers: Tensor | None = None
    tokens: list[Tensor] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    scratch: Scratch = field(default_factory=Scratch)

    def start(self, unit: range, lengths: Items[int]) -> None:
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        queries = len(next(iter(self.prepared.values())))
        self.unit = unit
        self.scores = torch.zeros(queries, len(unit), dtype=wide)
        self.layers = (
            torch.zeros(queries, len(unit), len(self.prepared), dtype=wide) if self.settings.per_layer else None
        )
        self.lengths = [lengths[i] for i in unit]
        self.tokens = [torch.zeros(queries, n, dtype=wide) for n in self.lengths] if self.settings.per_token else []

    def begin(self, indices: Items[int]) -> None:
        self.places = torch.as_tensor([i - self.unit.start for i in indices])

    def consume(self, rows: Captured) -> None:
        queries = self.prepared[rows.layer.name]
        if self.settings.per_token:
            terms = contract_tokens(rows, queries, self.dtype).cpu().to(self.scores.dtype) * self.scale
            values = terms.sum(-1)
            if rows.calls > 1 and rows.places is None:  # joined along T: a token takes part in each
                terms = terms.unflatten(-1, (rows.calls, -1)).sum(-2)
            for row, place in enumerate(self.places.tolist()):
                self._add_tokens(place, terms[:, row], rows, row)
        else:
            values = contract(rows, queries, self.dtype, self.scratch).cpu() * self.scale
        values = values.to(self.scores.dtype)
        self.scores.index_add_(1, self.places, values)
        if self.layers is not None:
            self.layers[:, self.places, list(self.prepared).index(rows.layer.name)] += values

    def _add_tokens(self, place: int, terms: Tensor, rows: Captured, row: int) -> None:
        length = self.lengths[place]
        if rows.places is not None:  # an expert saw some of the tokens only
            seen = rows.places[row] >= 0
            self.tokens[place].index_add_(1, rows.places[row][seen].cpu(), terms[:, seen.cpu()])
        elif terms.shape[1] == length:
            self.tokens[place] += terms
        elif length == 1:  # an example without a time axis: a convolution's positions all belong to it
            self.tokens[place] += terms.sum(1, keepdim=True)
        elif rows.mask is None:
            raise ShapeError(
                f"per_token: layer {rows.layer.name!r} works on {terms.shape[1]} positions a sequence, which are not "
                "its "
                f"{length} tokens; leave it out with modules=, or leave out per_token"
            )
        else:  # a padded row: all but its real positions carry zero, so only where they start matters
            first = int(rows.mask[row].int().argmax())
            self.tokens[place] += terms[:, first : first + length]

    def finish(self) -> dict[str, Tensor]:
        if not bool(torch.isfinite(self.scores).all()):
            raise NumericalError(
                f"score: scores of sequences {self.unit.start} to {self.unit.stop - 1} hold NaN or Inf"
            )
        out = {"scores": self.scores}
        if self.layers is not None:
            out["layers"] = self.layers
        if self.tokens:
            out["tokens"] = torch.cat(self.tokens, 1)
            out["offsets"] = torch.from_numpy(np.concatenate([[0], np.cumsum(self.lengths)]))
        return out


def refine(
    run_pass: Pass,
    factors: Factors,
    queries: Examples,
    examples: Examples,
    values: np.ndarray,
    topk: int,
    total: int,
    settings: ScoreSettings,
    *,
    dtype: torch.dtype,
    measurement: Measurement | None = None,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Score the strongest candidates of each query again, both signs, with the query at full rank and float32 products.

    Parameters
    ----------
    run_pass, factors, queries, examples : see `prepare_queries`
        The same as in the first pass.
    values : ndarray, shape (Q, N)
        Scores of the first pass, a column a sequence.
    topk : int
        How many of each sign a query.
    total : int
        N of the scores.
    settings : ScoreSettings
        Batching; its rank is ignored.
    dtype : dtype
        Of the products.
    measurement : callable, optional
        As in the first pass.

    Yields
    ------
    (int, ndarray, ndarray)
        Query number, sequence numbers, refined scores.
    """
    full = ScoreSettings(
        None,
        batch_tokens=settings.batch_tokens,
        batch_size=settings.batch_size,
        query_memory=settings.query_memory,
        show_progress=False,
    )
    step = max(1, min(len(queries), settings.query_memory // max(1, _query_bytes(run_pass, 1, full, dtype))))
    for first in range(0, len(queries), step):
        chosen = list(range(first, min(first + step, len(queries))))
        wanted = {q: _both_ends(values[q], topk) for q in chosen}
        union = sorted({int(n) for places in wanted.values() for n in places})
        prepared = prepare_queries(
            run_pass, factors, queries, full, dtype=dtype, measurement=measurement, chosen=chosen
        )
        sink = _Sink(prepared, full, dtype, 1.0 / total)
        sink.start(range(len(union)), [examples.lengths[n] for n in union])
        lengths = [examples.lengths[n] for n in union]
        with run_pass.open(sink.consume):
            for places in plan_batches(lengths, range(len(union)), settings.batch_tokens, settings.batch_size):
                sink.begin(places)
                indices = [union[place] for place in places]
                run_pass.empirical(_to_device(examples.batch(indices), run_pass), [examples.ids[i] for i in indices])
        scores = sink.finish()["scores"].numpy()
        where = {n: place for place, n in enumerate(union)}
        for row, q in enumerate(chosen):
            yield q, wanted[q], scores[row, [where[int(n)] for n in wanted[q]]]


def self_scores(run_pass: Pass, factors: Factors, examples: Examples, settings: ScoreSettings) -> Tensor:
    """∇Lᵀ (G + λI)⁻¹ ∇L of every sequence, unscaled, computed in the eigenbasis.

    Parameters
    ----------
    run_pass : Pass
        The model with its loss and layers.
    factors : Factors
        Fitted on it.
    examples : Examples
        Sequences.
    settings : ScoreSettings
        Batching.

    Returns
    -------
    Tensor, shape (N,)
        float64.
    """
    out = torch.zeros(len(examples), dtype=torch.float64)
    places: list[int] = []
    scratch = Scratch()

    def consume(rows: Captured) -> None:
        factor = factors[rows.layer.name]
        damped = factor.damped()
        parts: list[Tensor] = []
        for block in rows.blocks(BLOCK_ENTRIES):
            if factor.left is None or factor.right is None:
                gradient = sequence_gradients(block)
            else:
                gradient = rotated_gradients(block, factor.left, factor.right, scratch)
            squares = gradient.square() if damped is None else gradient.square() / damped
            parts.append(squares.sum((1, 2), dtype=torch.float64))
        out[places] += torch.cat(parts).cpu()

    with (
        run_pass.open(consume),
        progress("self-influence", len(examples), unit="sequences", enabled=settings.show_progress) as advance,
    ):
        for unit in plan_units(len(examples), settings.unit_size):
            for indices in plan_batches(examples.lengths, unit, settings.batch_tokens, settings.batch_size):
                places[:] = indices
                run_pass.empirical(_to_device(examples.batch(indices), run_pass), [examples.ids[i] for i in indices])
                advance(len(indices))
    return out


def save_prepared(run: RunFolder, folder: str, prepared: dict[str, QueryMatrices]) -> dict[str, FileEntry]:
    """Write the preconditioned queries, one file a layer.

    Parameters
    ----------
    run : RunFolder
        The run.
    folder : str
        Path inside it.
    prepared : dict of str to QueryMatrices
        From `prepare_queries`.

    Returns
    -------
    dict[str, FileEntry]
        The files written, not yet committed.
    """
    files: dict[str, FileEntry] = {}
    for name, queries in prepared.items():
        relative = f"{folder}/{file_name(name)}.safetensors"
        if isinstance(queries, LowRankQueries):
            tensors = {"left": queries.left, "right": queries.right, "captured": queries.captured}
        else:
            tensors = {"weight": queries.weight} | ({} if queries.bias is None else {"bias": queries.bias})
        files[relative] = save_tensors(run.path / relative, {key: t.contiguous() for key, t in tensors.items()})
    return files


def load_prepared(run: RunFolder, folder: str, names: Items[str], device: str) -> dict[str, QueryMatrices]:
    """Read what `save_prepared` wrote.

    Parameters
    ----------
    run : RunFolder
        The run.
    folder : str
        Path inside it.
    names : sequence of str
        Layers.
    device : str
        Where the tensors go.

    Returns
    -------
    dict[str, QueryMatrices]
        By layer.
    """
    out: dict[str, QueryMatrices] = {}
    for name in names:
        relative = f"{folder}/{file_name(name)}.safetensors"
        tensors = load_tensors(run.path / relative, run.manifest.files[relative], device=device)
        if "left" in tensors:
            out[name] = LowRankQueries(tensors["left"], tensors["right"], tensors["captured"])
        else:
            out[name] = DenseQueries(tensors["weight"], tensors.get("bias"))
    return out


def _in_order(lengths: Items[int], numbers: Items[int], budget: int) -> Iterator[list[int]]:
    # consecutive queries, as many as fit the token budget: their order is that of the rows of the scores
    batch: list[int] = []
    for number in numbers:
        if batch and max(lengths[number], *(lengths[i] for i in batch)) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _query_bytes(run_pass: Pass, count: int, settings: ScoreSettings, dtype: torch.dtype) -> int:
    total = 0
    for layer in run_pass.layers.values():
        p, m = layer.out_features, layer.columns
        if settings.rank is not None and settings.rank < min(p, m):
            total += settings.rank * (p + m) * (8 if dtype == torch.float64 else 2)
        else:
            total += p * m * dtype.itemsize
    return total * count


def check_memory(
    run_pass: Pass, count: int, settings: ScoreSettings, dtype: torch.dtype, *, argument: str = "rank"
) -> None:
    """Refuse preconditioned queries that would take more than ``settings.query_memory``.

    Parameters
    ----------
    run_pass : Pass
        Gives the layers.
    count : int
        Queries held at once.
    settings : ScoreSettings
        Rank and limit, in bytes.
    dtype : dtype
        Of the matrices kept.
    argument : str, default "rank"
        What asked for them, for the message.

    Raises
    ------
    MemoryLimitError
        With what they would take.
    """
    need = _query_bytes(run_pass, count, settings, dtype)
    if need > settings.query_memory:
        raise MemoryLimitError(
            f"{argument}: {count} queries would take {need / 2**30:.1f} GiB, more than the "
            f"{settings.query_memory / 2**30:.1f} GiB allowed by query_memory; "
            "use a smaller rank, fewer queries a call, or raise the limit"
        )


def _both_ends(values: np.ndarray, topk: int) -> np.ndarray:
    order = np.argsort(-values, kind="stable")
    return np.unique(np.concatenate([order[:topk], order[-topk:]]))


def _to_device(batch: dict[str, Tensor], run_pass: Pass) -> dict[str, Tensor]:
    device = next(run_pass.model.parameters()).device
    return {key: value.to(device) for key, value in batch.items()}
