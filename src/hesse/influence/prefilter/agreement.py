"""How near are projected scores to whole ones? Their correlation over a random sample of rows, query by query."""

import numpy as np
import torch

from hesse.curvature.stored_weights import floating_dtype
from hesse.errors import ArgumentError
from hesse.influence.candidates import refine
from hesse.influence.examples import Examples
from hesse.influence.factors import Factors
from hesse.influence.passes import Pass
from hesse.influence.prefilter.projected import ProjectedIndex, ProjectedScores
from hesse.influence.score import ScoreSettings
from hesse.influence.top import row_starts

__all__ = ["check_sample", "sample_agreement"]


def check_sample(sample: int, stored: ProjectedIndex, examples: Examples) -> None:
    """Refuse data that were not indexed, and a sample that is too small to correlate.

    Parameters
    ----------
    sample : int
        Rows, at least 3.
    stored : ProjectedIndex
        That will be asked.
    examples : Examples
        To draw them from.

    Raises
    ------
    ArgumentError
        Naming ``check`` or ``sample``.
    """
    if examples.fingerprint() != stored.manifest.parents["scored"]:
        raise ArgumentError(f"check: it is not the corpus that was indexed in {stored.path}")
    if sample < 3:
        raise ArgumentError(f"sample: expected >= 3, got {sample}")


def sample_agreement(
    run_pass: Pass,
    factors: Factors,
    queries: Examples,
    examples: Examples,
    found: ProjectedScores,
    total: int,
    *,
    sample: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Score a random sample of rows at full rank, and correlate with what the index says of them.

    Parameters
    ----------
    run_pass : Pass
        The model in float32 or float64, its loss and layers.
    factors : Factors
        Fitted on it.
    queries, examples : Examples
        Those of ``found``.
    found : ProjectedScores
        From the index of ``examples``.
    total : int
        N of the scores.
    sample : int, default 200
        Rows, at least 3 (see `check_sample`): an error of 1/√sample in a correlation near 0, far less near 1.
    seed : int, default 0
        Of the draw.

    Returns
    -------
    ndarray, shape (Q,)
        Pearson's correlation; NaN if all scores of a query are alike.

    Raises
    ------
    ArgumentError
        If there are fewer than 3 rows.
    """
    rows = len(found.train_ids)
    if not min(sample, rows) >= 3:
        raise ArgumentError(f"sample: expected >= 3 of at least 3 rows, got {sample} of {rows}")
    picked = np.sort(np.random.default_rng(seed).choice(rows, min(sample, rows), replace=False))
    starts = row_starts(examples)
    edges = np.arange(rows + 1) if starts is None else np.append(starts, len(examples))
    numbers = np.concatenate([np.arange(edges[row], edges[row + 1]) for row in picked])
    owners = np.repeat(np.arange(len(picked)), np.diff(edges)[picked])
    wanted = dict.fromkeys(range(len(queries)), numbers)
    wide = torch.float64 if floating_dtype(run_pass.model) == torch.float64 else torch.float32
    out = np.zeros(len(queries))
    for exact in refine(
        run_pass, factors, queries, examples, wanted, total, ScoreSettings(show_progress=False), dtype=wide
    ):
        whole = np.zeros(len(picked))
        np.add.at(whole, owners, exact.scores)
        stored = found.values[exact.query, picked].astype(np.float64)
        spread = whole.std() * stored.std()
        out[exact.query] = np.mean((whole - whole.mean()) * (stored - stored.mean())) / spread if spread else np.nan
    return out
