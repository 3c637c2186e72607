"""One question put to a fitted run: queries preconditioned, candidates streamed, the leading ones refined, all joined.

Every step is taken up where a killed process left it; the state of a question is a stage of the run's manifest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hesse.curvature.layers import TrackedLayer
from hesse.influence.assembly import assemble, save_top, sequence_values
from hesse.influence.candidates import load_top, refine, score_units, top_files
from hesse.influence.contraction import LowRankQueries, QueryMatrices
from hesse.influence.distributed import contiguous, is_sharded
from hesse.influence.examples import Examples
from hesse.influence.factors import Factors
from hesse.influence.passes import Measurement, Pass
from hesse.influence.refined import save_refined
from hesse.influence.run import RunFolder
from hesse.influence.score import PrepareFunction, ScoreSettings, load_prepared, prepare_queries, save_prepared
from hesse.influence.top import row_starts, strongest, with_refined
from hesse.io import FileEntry

__all__ = ["DEFAULT_REFINED", "Question", "answer", "num_refined"]

DEFAULT_REFINED = 500
"""Candidates of each sign that are scored again at full rank, a query."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a run."""

    folder: str  # inside the run
    queries: Examples
    candidates: Examples
    total: int  # N of the scores
    refine_topk: int
    settings: ScoreSettings
    measurement: Measurement | None = None
    targets: Examples | None = None  # the queries, cut into their tokens, where each is scored by itself
    top_k: int | None = None  # rows kept of each sign, a query; all scores by default

    @property
    def scored(self) -> Examples:
        """What is scored one by one."""
        return self.queries if self.targets is None else self.targets


def num_refined(
    asked: int | None, layers: Mapping[str, TrackedLayer], rank: int | None, dtype: torch.dtype, *, terms: bool
) -> int:
    """Settle how many candidates of each sign are scored again.

    Parameters
    ----------
    asked : int, optional
        By the caller. Default: 500; 0 if terms are kept, which at full rank cost 2mp a token and query.
    layers : mapping of str to TrackedLayer
        All that are tracked.
    rank : int, optional
        Of the first pass; None is full.
    dtype : dtype
        Of the model.
    terms : bool
        Whether the terms of layers or tokens are kept.

    Returns
    -------
    int
        0 where the first pass is at full rank in float32 or float64 already: nothing would change.
    """
    full = rank is None or all(rank >= min(layer.out_features, layer.columns) for layer in layers.values())
    if full and dtype in (torch.float32, torch.float64):
        return 0
    if asked is None:
        return 0 if terms else DEFAULT_REFINED
    return int(asked)


def answer(
    run: RunFolder,
    question: Question,
    state: dict[str, Any],
    run_pass: Pass,
    factors: Factors,
    exact_pass: Callable[[], Pass],
    *,
    dtype: torch.dtype,
    prepare_fn: PrepareFunction = prepare_queries,
) -> None:
    """Do what is left of a question, and mark it done.

    Parameters
    ----------
    run : RunFolder
        Whose lock the caller holds.
    question : Question
        What is asked.
    state : dict
        Of the question, which is kept as stage "score:<folder>" of the run: as it was left, or a new one.
    run_pass : Pass
        The model with its loss and layers.
    factors : Factors
        Fitted on it.
    exact_pass : callable
        Returns the same in float32 or wider; called only if there is something to refine.
    dtype : dtype
        Of the model.
    prepare_fn : callable, default prepare_queries
        How queries are preconditioned; called alike. It may commit files and keys of its own to the stage.

    Raises
    ------
    NumericalError
        If the loss of a query or of a candidate is NaN or Inf; names it.
    """
    folder, settings, measurement, team = question.folder, question.settings, question.measurement, run.team
    stage, query_folder = f"score:{folder}", folder.replace("scores/", "queries/")
    prepared: dict[str, QueryMatrices] | None = None
    if not state["prepared"]:
        files: dict[str, FileEntry] = {}
        if team.is_first or is_sharded(run_pass.model):  # which only all ranks together can run
            prepared = prepare_fn(run_pass, factors, question.scored, settings, dtype=dtype, measurement=measurement)
            files = save_prepared(run, query_folder, prepared) if team.is_first else {}
        state = (run.stage(stage) or state) | {"prepared": True}
        run.commit({stage: state}, files)
    if prepared is None:
        device = str(next(run_pass.model.parameters()).device)
        prepared = load_prepared(run, query_folder, list(run_pass.layers), device)
    top, extra = question.top_k, question.refine_topk
    first_pass = settings if top is None else replace(settings, top_k=top + extra)
    score_units(run, folder, run_pass, prepared, question.candidates, question.total, first_pass, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    best = None if top is None else load_top(run, folder)
    starts = None if best is None else row_starts(question.candidates)
    refined: list[tuple[int, np.ndarray, np.ndarray]] = []
    terms: dict[str, FileEntry] = {}
    if extra:
        if best is not None:
            wanted = strongest(best, starts, len(question.candidates), extra)
        else:
            wanted = _leading(sequence_values(run, folder), extra)
        if not is_sharded(run_pass.model):
            wanted = {q: wanted[q] for q in contiguous(list(wanted), team)}
        mine = refine(
            exact_pass(),
            factors,
            question.scored,
            question.candidates,
            wanted,
            question.total,
            settings,
            dtype=wide,
            measurement=measurement,
            prepare_fn=prepare_fn,
        )
        own = []
        for exact in mine:
            own.append((exact.query, exact.numbers, exact.scores))
            if exact.terms and (team.is_first or not is_sharded(run_pass.model)):
                terms |= save_refined(run, folder, exact)
        refined = [entry for part in team.gather(own) for entry in part]
    index = {
        "queries": question.queries.ids,
        "layers": list(run_pass.layers),
        "targets": [] if question.targets is None else question.targets.ids,
    }
    old = [name for name in run.manifest.files if name.startswith(f"{query_folder}/")]
    if best is not None and top is not None:
        old += top_files(run, folder)
        best = with_refined(best, starts, refined, top)
        files = team.first(lambda: save_top(run, folder, index, best, question.candidates))
    else:
        index |= {
            "rows": list(dict.fromkeys(question.candidates.rows)),
            "sequences": question.candidates.ids,
            "row_of_sequence": question.candidates.rows,
        }
        files = team.first(lambda: assemble(run, folder, index, refined, wide=wide == torch.float64))
    # least captured Frobenius fraction over queries, by layer; empty at full rank
    captured = {name: float(kept.captured.min()) for name, kept in prepared.items() if isinstance(kept, LowRankQueries)}
    run.commit({stage: run.stage(stage) | {"done": True, "captured": captured}}, files | terms, old)


def _leading(values: np.ndarray, count: int) -> dict[int, np.ndarray]:
    # the strongest sequences of both signs, by query
    out = {}
    for q, row in enumerate(values):
        order = np.argsort(-row, kind="stable")
        out[q] = np.unique(np.concatenate([order[:count], order[-count:]]))
    return out
