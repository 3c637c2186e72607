"""Attribution methods on the checkpoints of `_truth_lora.Adapted`, judged by training on halves: the claim on LoRA."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks._claims import Claim, Scale
from benchmarks.influence import _truth_peers as peers
from benchmarks.influence._truth_lora import (
    ADAPTERS,
    LORA_PROTOCOL,
    Adapted,
    LoraSizes,
    forget,
    log_probabilities,
    outcomes,
    prepare_adapted,
)
from benchmarks.influence._truth_methods import Table
from hesse.curvature import Relative
from hesse.influence import Influence
from hesse.influence.baselines import bm25, datainf, embedding_cosine, gradient_cosine, trak
from hesse.influence.evaluate import bootstrap_interval, lds
from hesse.influence.trajectory import magic

__all__ = ["LORA_BARS", "adapted_claims"]

LORA_BARS = {
    "LDS of magic, SmolLM2-135M with LoRA": 0.90,
    "LDS of magic over the best other method, SmolLM2-135M with LoRA": 0.0,
}
ENGINES: dict[str, tuple[Any, float]] = {
    "EK-FAC": ("ekfac", 0.1),
    "EK-FAC, damping 1": ("ekfac", 1.0),
    "K-FAC": ("kfac", 0.1),
    "gradient dot": ("identity", 0.1),
}


def adapted_claims(scale: Scale, sizes: LoraSizes | None = None) -> list[Claim]:
    """Train, score, compare: magic's LDS, and its lead over the best of the others."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    setting = prepare_adapted(LoraSizes() if sizes is None else sizes, scale.seed)
    folder = kept_outcomes()
    truth = outcomes(setting, folder)
    trained_s = time.perf_counter() - started
    table = score_adapted(setting)
    scored = {name: lds(scores, setting.masks, truth) for name, scores in table.scores.items()}
    forget(folder)
    methods = {
        name: {
            "LDS": found.value,
            "95 %": found.interval,
            "one checkpoint": float(np.mean([lds(part, setting.masks, truth).value for part in table.single[name]])),
        }
        for name, found in sorted(scored.items(), key=lambda item: -item[1].value)
    }
    before = log_probabilities(setting.start, setting.queries)
    after = np.mean([log_probabilities(model, setting.queries) for model in setting.trained], 0)
    repeat = scored["BM25"].reliability  # of the outcomes alone
    rows: dict[str, Any] = {
        "protocol": LORA_PROTOCOL,
        "sizes": vars(setting.sizes),
        "trained weights": sum(p.numel() for p in setting.start.parameters() if p.requires_grad),
        "methods": methods,
        "split half": None if repeat is None else repeat.split_half,
        "ceiling": None if repeat is None else repeat.ceiling,
        "could not run": table.failed,
        "nats that training on all rows adds to a query": float((after - before).mean()),
        "nats between halves, standard deviation of a query": float(truth.mean(0).std(0).mean()),
        "seconds to load and train": trained_s,
        "seconds to score": time.perf_counter() - started - trained_s,
    }
    others = {name: entry["LDS"] for name, entry in methods.items() if name != "magic"}
    best = max(others, key=lambda name: others[name])
    ours = scored.get("magic")
    ahead: dict[str, Any] = {"best other": best, **others}
    if ours is not None:
        ahead["95 % of the difference"] = bootstrap_interval(ours.per_query - scored[best].per_query)
    measured = (None, None) if ours is None else (ours.value, ours.value - others[best])
    return [
        Claim(name, value, bar, "higher", behind, full_only=True)
        for (name, bar), value, behind in zip(LORA_BARS.items(), measured, (rows, ahead), strict=True)
    ]


def kept_outcomes() -> Path:
    """Where a training that a stopped run finished is found again: ``$HESSE_CACHE``, else ``~/.cache/hesse``."""
    return Path(os.environ.get("HESSE_CACHE") or Path.home() / ".cache" / "hesse") / "benchmarks" / "influence_truth"


def score_adapted(setting: Adapted) -> Table:
    """Ask every method that takes minutes at most; solvers of hundreds of products a query and SOURCE do not."""
    train, queries, models, table = setting.train, setting.queries, setting.trained, Table()
    layers = list(Influence(models[0], modules=ADAPTERS).layers)

    def engine(strategy: Any, damping: float) -> Callable[[nn.Module], np.ndarray]:
        def ask(model: nn.Module) -> np.ndarray:
            with tempfile.TemporaryDirectory() as folder:
                influence = Influence(
                    model, modules=ADAPTERS, strategy=strategy, damping=Relative(damping), seed=abs(setting.seed)
                )
                influence.fit(train, folder, progress=False)
                return np.array(influence.score(queries, train, folder, rank=None, progress=False).values)

        return ask

    def differentiate(run: int) -> np.ndarray:
        found = magic(setting.start, queries, train, setting.schedules[run], progress=False)
        return found.values.double().numpy()

    table.add("magic", differentiate, range(len(models)))
    for name, (strategy, damping) in ENGINES.items():
        table.add(name, engine(strategy, damping), models)
    table.add("gradient cosine", lambda m: gradient_cosine(m, queries, train, modules=ADAPTERS), models)
    table.add("DataInf", lambda m: datainf(m, queries, train, modules=ADAPTERS), models)
    table.add("embedding cosine", lambda m: embedding_cosine(m, queries, train), models)
    table.add("BM25", lambda _m: bm25(None, setting.texts[1], setting.texts[0]), models[:1])
    states = [model.state_dict() for model in models]
    options: dict[str, Any] = {"dimensions": 32, "modules": ADAPTERS, "checkpoints": states, "seed": abs(setting.seed)}
    table.add("TRAK, 32", lambda m: trak(m, queries, train, **options), models[:1])
    table.add("kronfluence EK-FAC", lambda m: peers.kronfluence_ekfac(m, layers, train, queries), models)
    return table
