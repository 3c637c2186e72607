"""Preconditions the gradients of queries, once, so that any number of candidates can be streamed past them.

P_q = (G + λI)⁻¹ ∇f_q, layer by layer, in full or at low rank
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesse._progress import progress
from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.curvature.scratch import Scratch
from hesse.errors import MemoryLimitError, NumericalError
from hesse.influence.contraction import (
    DenseQueries,
    LowRankQueries,
    QueryMatrices,
    empty_queries,
    put,
    put_rows,
    takes_rows,
)
from hesse.influence.examples import Examples
from hesse.influence.factors import Factors, LayerFactors
from hesse.influence.fit import file_name
from hesse.influence.passes import Measurement, Pass
from hesse.influence.run import RunFolder
from hesse.io import FileEntry, load_tensors, save_tensors

__all__ = [
    "PrepareFunction",
    "ScoreSettings",
    "check_memory",
    "load_prepared",
    "prepare_queries",
    "query_bytes",
    "save_prepared",
    "to_device",
]

PrepareFunction = Callable[..., dict[str, QueryMatrices]]
"""Called as `prepare_queries` is: what turns the queries' gradients into the matrices that candidates meet."""

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
    top_k: int | None = None  # rows kept of each sign, a query, in place of all scores


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
        Of the matrices kept. bfloat16 also rotates in it.
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
            batch = to_device(queries.batch(indices), run_pass)
            if measurement is None:
                run_pass.empirical(batch, [queries.ids[i] for i in indices])
            else:
                run_pass.measured(batch, measurement, [queries.ids[i] for i in indices])
            done += len(indices)
            advance(len(indices))
    return {name: kept[name] for name in run_pass.layers}


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


def query_bytes(run_pass: Pass, count: int, settings: ScoreSettings, dtype: torch.dtype) -> int:
    """Count what preconditioned queries take.

    Parameters
    ----------
    run_pass : Pass
        Gives the layers.
    count : int
        Queries held at once.
    settings : ScoreSettings
        Their rank.
    dtype : dtype
        Of the matrices kept.

    Returns
    -------
    int
        Bytes.
    """
    total = 0
    for layer in run_pass.layers.values():
        p, m = layer.out_features, layer.columns
        if settings.rank is not None and settings.rank < min(p, m):
            total += settings.rank * (p + m)
        else:
            total += p * m
    return total * count * dtype.itemsize


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
    need = query_bytes(run_pass, count, settings, dtype)
    if need > settings.query_memory:
        raise MemoryLimitError(
            f"{argument}: {count} queries would take {need / 2**30:.1f} GiB, more than the "
            f"{settings.query_memory / 2**30:.1f} GiB allowed by query_memory; "
            "use a smaller rank, fewer queries a call, or raise the limit"
        )


def to_device(batch: dict[str, Tensor], run_pass: Pass) -> dict[str, Tensor]:
    """Move a batch to where the model is.

    Parameters
    ----------
    batch : dict of str to Tensor
        As collated.
    run_pass : Pass
        The model with its loss and layers.

    Returns
    -------
    dict of str to Tensor
        Of the same names.
    """
    device = next(run_pass.model.parameters()).device
    return {key: value.to(device) for key, value in batch.items()}
