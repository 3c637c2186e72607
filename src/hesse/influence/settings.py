"""What an `Influence` was set to: what is refused before any work, which run it takes up, what a question is there.

Settings that decide a result are part of a run's or a question's identity; how the work is cut up is not.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import asdict, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hesse.curvature.layers import TrackedLayer
from hesse.curvature.stored_weights import floating_dtype
from hesse.errors import ArgumentError, ArtifactError, MemoryLimitError
from hesse.influence.checks import of_kind, one_of
from hesse.influence.contraction import check_rank
from hesse.influence.distributed import Team, is_sharded
from hesse.influence.examples import Examples
from hesse.influence.objective import Loss
from hesse.influence.passes import Measurement, Pass
from hesse.influence.prefilter import Prefilter
from hesse.influence.run import RunFolder, forget_missing, open_folder, remove_unnamed
from hesse.influence.score import ScoreSettings, check_memory
from hesse.influence.solvers.options import Solver
from hesse.influence.text_losses import Seq2SeqLoss

__all__ = [
    "FACTORS",
    "check_blocks",
    "check_question",
    "check_refining",
    "check_same_run",
    "check_team",
    "fitted_on",
    "question_settings",
    "take_up",
]

FACTORS = ("ekfac", "kfac", "shampoo", "diagonal", "identity")
"""Names of the ways in which factors approximate the curvature."""


def fitted_on(total: int, most: int | None, seed: int) -> Items[int]:
    """Choose the sequences whose curvature is measured.

    Parameters
    ----------
    total : int
        N.
    most : int or None
        At most so many; None for all.
    seed : int
        Of the draw.

    Returns
    -------
    sequence of int
        Rising; a function of the arguments alone.

    Raises
    ------
    ArgumentError
        If ``most < 1``.
    ArgumentTypeError
        If it is no whole number.
    """
    of_kind("max_sequences", most, (Integral, type(None)), "a whole number or None")
    if most is not None and most < 1:
        raise ArgumentError(f"max_sequences: expected >= 1, got {most}")
    if most is None or most >= total:
        return range(total)
    return sorted(int(i) for i in np.random.default_rng(seed).choice(total, most, replace=False))


def check_blocks(layers: Mapping[str, TrackedLayer], strategy: str, blocks: int) -> None:
    """Refuse more diagonal blocks than a factor has rows.

    Parameters
    ----------
    layers : mapping of str to TrackedLayer
        All that are tracked.
    strategy : str
        "diagonal" and "identity" have no factors to cut.
    blocks : int
        At least 1.

    Raises
    ------
    ArgumentError
        Naming the first layer that has fewer.
    """
    if strategy in ("diagonal", "identity"):
        return
    for name, layer in layers.items():
        most = min(layer.out_features, layer.columns)
        if blocks > most:
            raise ArgumentError(f"blocks: expected 1 to {most} for layer {name!r}, got {blocks}")


def check_team(team: Team, model: nn.Module, solver: Solver | None) -> None:
    """Refuse a model in shards that nobody shares, or whose curvature a solver would multiply with.

    Parameters
    ----------
    team : Team
        Who shares the work.
    model : nn.Module
        Perhaps in shards.
    solver : PCG, CG or LiSSA, optional
        Of each query.

    Raises
    ------
    ArgumentError
        Naming ``team``.
    """
    if team.size == 1 and is_sharded(model):
        raise ArgumentError(
            "team: the model's parameters are in shards (fully_shard), so its processes must run it together; pass "
            "team= from hesse.influence.join_team() on each of them"
        )
    if solver is not None and is_sharded(model):
        raise ArgumentError(
            f"strategy: {type(solver).__name__} differentiates through whole parameters, and this model's are in "
            f"shards (fully_shard); use one of the strategies {', '.join(FACTORS)}, or a model that is not sharded"
        )


def check_question(
    *,
    loss: Loss,
    rank: int | None,
    refine_topk: int | None,
    per_layer: bool,
    per_token: bool,
    per_query_token: bool,
    measurement: Measurement | None,
    measurement_name: str | None,
    units: str,
    top_k: int | None,
    prefilter: Prefilter | None,
) -> None:
    """Refuse a question that contradicts itself.

    Parameters
    ----------
    loss : Loss
        Of the training.
    rank, refine_topk, per_layer, per_token, per_query_token : see `Influence.score`
        As given.
    measurement, measurement_name, units, top_k, prefilter : see `Influence.score`
        As given.

    Raises
    ------
    ArgumentError
        Naming the argument that is out of range or contradicts another.
    ArgumentTypeError
        Naming one that is of another kind.
    """
    for name, value in (("rank", rank), ("refine_topk", refine_topk), ("top_k", top_k)):
        of_kind(name, value, (Integral, type(None)), "a whole number or None")
    check_rank(rank)
    one_of("units", units, ("nats", "raw"))
    of_kind("prefilter", prefilter, (Prefilter, type(None)), "a Prefilter or None")
    if refine_topk is not None and refine_topk < 0:
        raise ArgumentError(f"refine_topk: expected >= 0, got {refine_topk}")
    if top_k is not None and top_k < 1:
        raise ArgumentError(f"top_k: expected >= 1 or None for all scores, got {top_k}")
    if top_k is not None and (per_layer or per_token or per_query_token):
        raise ArgumentError("top_k: shares of tokens and layers are kept with all scores only; leave one of them out")
    if measurement is not None and not measurement_name:
        raise ArgumentError(
            "measurement_name: name the measurement, so that its scores can be told from others in the run"
        )
    if per_token and isinstance(loss, Seq2SeqLoss):
        raise ArgumentError("per_token: a sequence of a sequence-to-sequence model is two texts; leave it out")
    if per_query_token and measurement is not None:
        raise ArgumentError("per_query_token: a measurement has no tokens; leave out one of the two")


def check_refining(run_pass: Pass, settings: ScoreSettings) -> None:
    """Refuse a second stage at full rank, which comes at the very end, before any work.

    Parameters
    ----------
    run_pass : Pass
        The model of the first pass, with its loss and layers.
    settings : ScoreSettings
        Of the first pass.

    Raises
    ------
    ArgumentError
        If the model is in half precision and in shards, and so cannot be copied.
    MemoryLimitError
        If not even one query at full rank would fit.
    """
    dtype = floating_dtype(run_pass.model)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if dtype != wide and is_sharded(run_pass.model):
        raise ArgumentError(
            "refine_topk: a model in shards cannot be copied to float32; leave out the second stage with refine_topk=0"
        )
    try:
        check_memory(run_pass, 1, replace(settings, rank=None), wide, argument="refine_topk")
    except MemoryLimitError as error:
        raise MemoryLimitError(f"{error}, or leave out the second stage with refine_topk=0") from error


def check_same_run(run: RunFolder, model: str, settings: Mapping[str, Any]) -> None:
    """Refuse a run that was fitted on another model, or with other settings.

    Parameters
    ----------
    run : RunFolder
        With a fit, or the beginning of one.
    model : str
        Hash of the model at hand.
    settings : mapping
        Of the engine at hand, as the run keeps them.

    Raises
    ------
    ArgumentError
        Naming the settings that differ, with both values.
    ArtifactError
        If the factors are of another model, checkpoint or choice of layers.
    """
    found = run.manifest.config
    if run.manifest.parents.get("model") != model or found.get("layers") != settings["layers"]:
        raise ArtifactError(
            f"run: the factors in {run.path} were fitted on another model or checkpoint, or on other layers of "
            "it; fit them again"
        )
    differing = [
        f"{key} ({found.get(key)!r} there, {value!r} now)" for key, value in settings.items() if found.get(key) != value
    ]
    if differing:
        raise ArgumentError(
            f"run: the factors in {run.path} were fitted with other settings: {', '.join(differing)}; use the "
            "same ones, or fit again"
        )


def question_settings(
    queries: Examples,
    candidates: Examples,
    *,
    rank: int | None,
    refine_topk: int,
    per_layer: bool,
    per_token: bool,
    per_query_token: bool,
    measurement_name: str | None,
    units: str,
    top_k: int | None,
    prefilter: Prefilter | None,
    solver: Solver | None,
) -> dict[str, Any]:
    """Describe a question: what decides its answer, and so its name in the run.

    Parameters
    ----------
    queries, candidates : Examples
        What is asked, and what is scored.
    rank, refine_topk, per_layer, per_token, per_query_token : see `Influence.score`
        As there, ``refine_topk`` settled.
    measurement_name, units, top_k, prefilter : see `Influence.score`
        As there.
    solver : PCG, CG or LiSSA, optional
        Of each query.

    Returns
    -------
    dict
        JSON values.
    """
    described: dict[str, Any] = {
        "queries": queries.fingerprint(),
        "data": candidates.fingerprint(),
        "rank": rank,
        "refine_topk": refine_topk,
        "per_layer": per_layer,
        "per_token": per_token,
        "measurement": measurement_name,
        "units": units,
    }
    # settings that came later leave the names of older scores as they are
    if per_query_token:
        described["per_query_token"] = True
    if top_k is not None:
        described["top_k"] = top_k
    if prefilter is not None:
        described["prefilter"] = asdict(prefilter)
    if solver is not None:
        described["solver"] = {"name": type(solver).__name__, **asdict(solver)}
    return described


def take_up(folder: Path) -> RunFolder:
    """Open a finished fit to write to it, without what a killed process left.

    Parameters
    ----------
    folder : Path
        A run whose lock the caller holds.

    Returns
    -------
    RunFolder
        Ready to commit to.
    """
    run = open_folder(folder)
    remove_unnamed(run)
    forget_missing(run, factors=False)
    return run
