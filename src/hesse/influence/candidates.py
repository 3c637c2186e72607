"""Streams candidates past preconditioned queries: all scores in resumable shards, or the best rows alone.

score(q, n) = -(1/N) Σ_ℓ <P_ℓ(∇_ℓ f_q), ∇_ℓ L(z_n)>    nats of f_q for one more copy of z_n
"""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse._progress import progress
from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.curvature.ekfac import rotated_gradients, sequence_gradients
from hesse.curvature.scratch import Scratch
from hesse.curvature.stored_weights import floating_dtype
from hesse.errors import NumericalError, ShapeError
from hesse.influence.contraction import QueryMatrices, contract, contract_tokens
from hesse.influence.distributed import ALONE, Team, contiguous, deal_spans, in_step, is_sharded
from hesse.influence.examples import Examples, plan_batches, plan_units
from hesse.influence.factors import Factors
from hesse.influence.passes import Measurement, Pass, read_ahead
from hesse.influence.refined import Refined
from hesse.influence.run import RunFolder
from hesse.influence.score import PrepareFunction, ScoreSettings, prepare_queries, query_bytes, to_device
from hesse.influence.streams import Window, window
from hesse.influence.top import TopRows, plan_row_units, row_starts
from hesse.io import FileEntry, load_tensors, save_tensors

__all__ = ["load_top", "refine", "score_units", "self_scores", "top_files"]


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
    stage, team = f"score:{folder}", run.team
    state = run.stage(stage)
    start = int(state["sequences"])
    if settings.top_k is None:
        keeper, units = _Shards(run, folder), plan_units(len(examples), settings.unit_size, start)
    else:
        starts = row_starts(examples)
        keeper = _Top(run, folder, starts, len(next(iter(prepared.values()))), settings.top_k, dtype)
        units = plan_row_units(len(examples), settings.unit_size, start, starts)
    sink = _Sink(prepared, settings, dtype, 1.0 / total)
    with (
        run_pass.open(sink.consume),
        progress("scores", len(examples), unit="sequences", enabled=settings.show_progress) as advance,
    ):
        advance(start)
        for share in deal_spans(units, team, settings.checkpoint_seconds):
            for (unit, view, places, batch), counts in _steps(examples, share.units, run_pass, settings, team):
                if counts and unit != sink.unit:
                    keeper.keep(sink)
                    sink.start(unit, view.lengths)
                sink.begin(places, counts=counts)
                run_pass.empirical(to_device(batch, run_pass), [view.ids[i] for i in places])
                advance(len(places) * counts)
            keeper.keep(sink)
            share.finish()
            parts = [[unit.start, unit.stop] for part in team.gather(share.units) for unit in part]
            state = state | keeper.note(share.stop, [*state["parts"], *parts])
            run.commit({stage: state}, *keeper.files(share.stop))
            advance(share.stop - start - sum(map(len, share.units)))
            start = share.stop


_Step = tuple[range, Window, list[int], dict[str, Tensor]]


def _steps(
    examples: Examples, units: Items[range], run_pass: Pass, settings: ScoreSettings, team: Team
) -> Iterator[tuple[_Step, bool]]:
    # the batches of some units; of a model in shards also ones that do not count: what one rank runs, all must run
    def of_units(units: Items[range]) -> Iterator[_Step]:
        for unit in units:
            view = window(examples, unit)
            for places in plan_batches(view.lengths, range(len(unit)), settings.batch_tokens, settings.batch_size):
                yield unit, view, places, view.batch(places)

    steps = read_ahead(of_units(units))
    if is_sharded(run_pass.model):
        return in_step(steps, next(of_units([range(1)])), team)
    return ((step, True) for step in steps)


@dataclass(slots=True)
class _Shards:
    """Keeps every unit's scores, in a file of its own."""

    run: RunFolder
    folder: str
    fresh: dict[str, FileEntry] = field(default_factory=dict)

    def keep(self, sink: "_Sink") -> None:
        if sink.unit:
            relative = f"{self.folder}/part-{sink.unit.start:09d}.safetensors"
            self.fresh[relative] = save_tensors(self.run.path / relative, sink.finish())

    def note(self, done: int, parts: list[list[int]]) -> dict[str, Any]:
        return {"sequences": done, "parts": parts}

    def files(self, _done: int) -> tuple[dict[str, FileEntry], list[str]]:
        fresh, self.fresh = self.fresh, {}
        return fresh, []


class _Top:
    """Keeps the best rows alone, in one file that each checkpoint writes anew; rank 0 has the total."""

    def __init__(
        self, run: RunFolder, folder: str, starts: np.ndarray | None, queries: int, count: int, dtype: torch.dtype
    ) -> None:
        self.run, self.folder, self.starts = run, folder, starts
        self.best = TopRows.empty(queries, count, np.float64 if dtype == torch.float64 else np.float32)
        done = run.stage(f"score:{folder}")["sequences"]
        if done and run.team.is_first:
            self.best = load_top(run, folder)

    def keep(self, sink: "_Sink") -> None:
        unit = sink.unit
        if not unit:
            return
        scores, numbers = sink.finish()["scores"].numpy(), np.asarray(unit)
        if self.starts is not None:
            inside = np.searchsorted(self.starts, [unit.start, unit.stop])
            numbers = self.starts[slice(*inside)]
            scores = np.add.reduceat(scores, numbers - unit.start, axis=1)
        self.best.add(scores, numbers)

    def note(self, done: int, _parts: list[list[int]]) -> dict[str, Any]:
        return {"sequences": done}

    def files(self, done: int) -> tuple[dict[str, FileEntry], list[str]]:
        team = self.run.team
        for rank, part in enumerate(team.gather(self.best)):
            if rank > 0 and team.is_first:
                self.best.merge(part)
        old = top_files(self.run, self.folder)
        if not team.is_first:
            self.best.clear()
            return {}, old
        relative = f"{self.folder}/top-{done:09d}.safetensors"
        return {relative: save_tensors(self.run.path / relative, self.best.tensors())}, old


def top_files(run: RunFolder, folder: str) -> list[str]:
    """Name the file of the best rows so far, if there is one.

    Parameters
    ----------
    run : RunFolder
        The run.
    folder : str
        Path of the scores inside it.

    Returns
    -------
    list of str
        At most one.
    """
    return [name for name in run.manifest.files if name.startswith(f"{folder}/top-")]


def load_top(run: RunFolder, folder: str) -> TopRows:
    """Read the best rows so far.

    Parameters
    ----------
    run : RunFolder
        The run, with scores begun.
    folder : str
        Path of the scores inside it.

    Returns
    -------
    TopRows
        As at the last checkpoint.
    """
    (name,) = top_files(run, folder)
    return TopRows.of(load_tensors(run.path / name, run.entry(name)))


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
    muted: bool = False  # a batch that is run for the sake of other ranks
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
        self.lengths = list(lengths)
        self.tokens = [torch.zeros(queries, n, dtype=wide) for n in self.lengths] if self.settings.per_token else []

    def begin(self, places: Items[int], *, counts: bool = True) -> None:
        self.places = torch.as_tensor(places)
        self.muted = not counts

    def consume(self, rows: Captured) -> None:
        if self.muted:
            return
        queries = self.prepared[rows.layer.name]
        if self.settings.per_token:
            terms = contract_tokens(rows, queries, self.dtype, self.scratch).cpu().to(self.scores.dtype) * self.scale
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
        self.unit = range(0)
        return out


def refine(
    run_pass: Pass,
    factors: Factors,
    queries: Examples,
    examples: Examples,
    wanted: Mapping[int, np.ndarray],
    total: int,
    settings: ScoreSettings,
    *,
    dtype: torch.dtype,
    measurement: Measurement | None = None,
    prepare_fn: PrepareFunction = prepare_queries,
) -> Iterator[Refined]:
    """Score chosen candidates of each query again, with the query at full rank and float32 products.

    Parameters
    ----------
    run_pass, factors, queries, examples : see `prepare_queries`
        The same as in the first pass.
    wanted : mapping of int to ndarray of int
        Sequence numbers by query number, rising.
    total : int
        N of the scores.
    settings : ScoreSettings
        Batching, and which terms to keep; its rank is ignored.
    dtype : dtype
        Of the products.
    measurement : callable, optional
        As in the first pass.
    prepare_fn : callable, default prepare_queries
        As in the first pass.

    Yields
    ------
    Refined
        One a query; its terms sum to its scores.
    """
    full = replace(settings, rank=None, top_k=None, show_progress=False)
    step = max(1, min(len(wanted), settings.query_memory // max(1, query_bytes(run_pass, 1, full, dtype))))
    numbers = list(wanted)
    for first in range(0, len(numbers), step):
        chosen = numbers[first : first + step]
        union = np.array(sorted({int(n) for q in chosen for n in wanted[q]}), dtype=np.int64)
        prepared = prepare_fn(run_pass, factors, queries, full, dtype=dtype, measurement=measurement, chosen=chosen)
        sink = _Sink(prepared, full, dtype, 1.0 / total)
        parts: list[list[dict[str, Tensor]]] = [[] for _ in chosen]
        with run_pass.open(sink.consume):
            for unit in plan_units(len(union), settings.unit_size):
                part = union[unit.start : unit.stop]
                view = window(examples, part.tolist())
                sink.start(range(len(part)), view.lengths)
                for places in plan_batches(view.lengths, sink.unit, settings.batch_tokens, settings.batch_size):
                    sink.begin(places)
                    run_pass.empirical(to_device(view.batch(places), run_pass), [view.ids[i] for i in places])
                found = sink.finish()
                for row, q in enumerate(chosen):
                    parts[row].append(_of_query(found, row, np.flatnonzero(np.isin(part, wanted[q]))))
        for row, q in enumerate(chosen):
            terms = {key: torch.cat([part[key] for part in parts[row]]) for key in parts[row][0]}
            if "lengths" in terms:
                terms["offsets"] = torch.cat([torch.zeros(1, dtype=torch.long), terms.pop("lengths").cumsum(0)])
            yield Refined(q, wanted[q], terms.pop("scores").numpy(), terms)


def _of_query(found: dict[str, Tensor], row: int, places: np.ndarray) -> dict[str, Tensor]:
    # one query's part of a unit, some sequences of it
    where = torch.from_numpy(places)
    out = {key: found[key][row, where] for key in ("scores", "layers") if key in found}
    if "tokens" in found:
        offsets = found["offsets"]
        out["lengths"] = (offsets[1:] - offsets[:-1])[where]
        spans = [found["tokens"][row, offsets[i] : offsets[i + 1]] for i in places]
        out["tokens"] = torch.cat(spans) if spans else found["tokens"][row, :0]
    return out


def self_scores(
    run_pass: Pass, factors: Factors, examples: Examples, settings: ScoreSettings, team: Team = ALONE
) -> Tensor:
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
    team : Team, default alone
        Who shares the sequences.

    Returns
    -------
    Tensor, shape (N,)
        float64.
    """
    out = torch.zeros(len(examples), dtype=torch.float64)
    wide = torch.float64 if floating_dtype(run_pass.model) == torch.float64 else torch.float32
    places: list[int] = []
    scratch = Scratch()

    def consume(rows: Captured) -> None:
        if not places:
            return
        factor = factors[rows.layer.name]
        damped = factor.damped()
        parts: list[Tensor] = []
        for block in rows.blocks(BLOCK_ENTRIES):
            if factor.left is None or factor.right is None:
                gradient = sequence_gradients(block).to(wide)
            else:
                gradient = rotated_gradients(block, factor.left, factor.right, scratch)
            squares = gradient.square() if damped is None else gradient.square() / damped
            parts.append(squares.sum((1, 2), dtype=torch.float64))
        out[places] += torch.cat(parts).cpu()

    with (
        run_pass.open(consume),
        progress("self-influence", len(examples), unit="sequences", enabled=settings.show_progress) as advance,
    ):
        units = contiguous(plan_units(len(examples), settings.unit_size), team)
        for (unit, view, numbers, batch), counts in _steps(examples, units, run_pass, settings, team):
            places[:] = [unit.start + i for i in numbers] if counts else []
            run_pass.empirical(to_device(batch, run_pass), [view.ids[i] for i in numbers])
            advance(len(places))
    return team.sum(out)
