"""One question put to a fitted run: queries preconditioned, candidates streamed, the leading ones refined, all joined.

Every step is taken up where a killed process left it; the state of a question is a stage of the run's manifest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hesse.curvature.layers import TrackedLayer
from hesse.influence.assembly import assemble, sequence_values
from hesse.influence.contraction import LowRankQueries
from hesse.influence.examples import Examples
from hesse.influence.factors import Factors
from hesse.influence.passes import Measurement, Pass
from hesse.influence.run import RunFolder
from hesse.influence.score import (
    ScoreSettings,
    load_prepared,
    prepare_queries,
    refine,
    save_prepared,
    score_units,
)

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
        By the caller. Default: 500; 0 if terms are kept, which are those of the first pass and add up to its scores.
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
    return asked


def answer(
    run: RunFolder,
    question: Question,
    state: dict[str, Any],
    run_pass: Pass,
    factors: Factors,
    exact_pass: Callable[[], Pass],
    *,
    dtype: torch.dtype,
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

    Raises
    ------
    NumericalError
        If the loss of a query or of a candidate is NaN or Inf; names it.
    """
    folder, settings, measurement = question.folder, question.settings, question.measurement
    stage, query_folder = f"score:{folder}", folder.replace("scores/", "queries/")
    if state["prepared"]:
        device = str(next(run_pass.model.parameters()).device)
        prepared = load_prepared(run, query_folder, list(run_pass.layers), device)
    else:
        prepared = prepare_queries(run_pass, factors, question.scored, settings, dtype=dtype, measurement=measurement)
        run.commit({stage: state | {"prepared": True}}, save_prepared(run, query_folder, prepared))
    score_units(run, folder, run_pass, prepared, question.candidates, question.total, settings, dtype)
    refined = []
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if question.refine_topk:
        refined = list(
            refine(
                exact_pass(),
                factors,
                question.scored,
                question.candidates,
                sequence_values(run, folder),
                question.refine_topk,
                question.total,
                settings,
                dtype=wide,
                measurement=measurement,
            )
        )
    index = {
        "queries": question.queries.ids,
        "rows": list(dict.fromkeys(question.candidates.rows)),
        "sequences": question.candidates.ids,
        "row_of_sequence": question.candidates.rows,
        "layers": list(run_pass.layers),
        "targets": [] if question.targets is None else question.targets.ids,
    }
    files = assemble(run, folder, index, refined, wide=wide == torch.float64)
    # least captured Frobenius fraction over queries, by layer; empty at full rank
    captured = {name: float(kept.captured.min()) for name, kept in prepared.items() if isinstance(kept, LowRankQueries)}
    old = [name for name in run.manifest.files if name.startswith(f"{query_folder}/")]
    run.commit({stage: run.stage(stage) | {"done": True, "captured": captured}}, files, old)
