"""Every attribution method on the checkpoints of one `Setting`: name to scores (Q, N), the mean over checkpoints."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks._claims import PeerMissing
from benchmarks.influence import _truth_peers as peers
from benchmarks.influence._truth_setting import Setting
from hesse.curvature import Relative
from hesse.influence import Influence
from hesse.influence.baselines import bm25, datainf, embedding_cosine, gradient_cosine, trak
from hesse.influence.solvers import CG, PCG, LiSSA
from hesse.influence.trajectory import magic, record_replay, source

__all__ = ["MODULES", "Table", "score_all"]

MODULES = "all-linear"
TRAK_DIMENSIONS = (32, 64, 128)
STRATEGIES: dict[str, Any] = {
    "EK-FAC": "ekfac",
    "K-FAC": "kfac",
    "EK-Shampoo": "shampoo",
    "diagonal": "diagonal",
    "gradient dot": "identity",
}


@dataclass
class Table:
    """Scores by method, those of EK-FAC by checkpoint too, and what could not be run."""

    scores: dict[str, np.ndarray] = field(default_factory=dict)
    single: dict[str, list[np.ndarray]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, function: Callable[[Any], Any], checkpoints: Iterable[Any]) -> None:
        """Average over checkpoints, or the runs that led to them; an error becomes a row."""
        try:
            parts = [np.asarray(function(checkpoint), dtype=np.float64) for checkpoint in checkpoints]
        except PeerMissing as error:
            self.failed[name] = str(error)
        except Exception as error:  # the other methods must still run
            self.failed[name] = f"{type(error).__name__}: {error}"
        else:
            self.scores[name], self.single[name] = np.mean(parts, axis=0), parts


def score_all(
    setting: Setting, *, grid: dict[float, tuple[int, ...]], dampings: tuple[float, ...], lissa_steps: int, seed: int
) -> Table:
    """Ask every method; ``grid`` says which steps of PCG at which damping, ``dampings`` those of EK-FAC besides 0.1."""
    train, queries, models, table = setting.train, setting.queries, setting.trained, Table()
    layers = list(Influence(models[0], modules=MODULES).layers)

    def engine(strategy: Any, damping: float = 0.1) -> Callable[[nn.Module], np.ndarray]:
        def ask(model: nn.Module) -> np.ndarray:
            with tempfile.TemporaryDirectory() as folder:
                influence = Influence(
                    model, modules=MODULES, strategy=strategy, damping=Relative(damping), seed=abs(seed)
                )
                influence.fit(train, folder, progress=False)
                return np.array(influence.score(queries, train, folder, rank=None, progress=False).values)

        return ask

    for name, strategy in STRATEGIES.items():
        table.add(name, engine(strategy), models)
    for damping in dampings:
        table.add(f"EK-FAC, damping {damping:g}", engine("ekfac", damping), models)
    # solvers take many passes over the data a query: on the first checkpoint alone
    table.add(f"LiSSA {lissa_steps}", engine(LiSSA(steps=lissa_steps, columns=32)), models[:1])
    table.add("CG 10", engine(CG(steps=10, columns=32)), models[:1])
    for damping, counts in grid.items():
        for steps in counts:
            table.add(f"EK-FAC + CG {steps}, damping {damping:g}", engine(PCG(steps, columns=32), damping), models[:1])
    table.add("gradient cosine", lambda m: gradient_cosine(m, queries, train, modules=MODULES), models)
    table.add("DataInf", lambda m: datainf(m, queries, train, modules=MODULES), models)
    table.add("embedding cosine", lambda m: embedding_cosine(m, queries, train), models)
    table.add("BM25", lambda _m: bm25(None, queries, train), models[:1])
    states = [model.state_dict() for model in models]
    for size in TRAK_DIMENSIONS:
        ours = {"dimensions": size, "modules": MODULES, "checkpoints": states, "seed": abs(seed)}
        table.add(f"TRAK, {size}", lambda m, ours=ours: trak(m, queries, train, **ours), models[:1])
        table.add(
            f"traker, {size}",
            lambda _m, size=size: peers.traker_language_model(models, layers, train, queries, dimensions=size),
            models[:1],
        )
    table.add("kronfluence EK-FAC", lambda m: peers.kronfluence_ekfac(m, layers, train, queries), models)
    said = peers.dattri_on_sequences(models[0], layers, train)
    table.failed["dattri EK-FAC"] = said or "takes sequences now: drive it"
    runs = range(len(models))
    table.add("SOURCE", lambda number: _source(setting, number, seed), runs)
    table.add("magic", lambda number: _magic(setting, number), runs)
    return table


def _magic(setting: Setting, number: int) -> np.ndarray:
    found = magic(
        setting.start, setting.queries, setting.train, setting.schedules[number],
        query_batch=len(setting.queries), progress=False,
    )  # fmt: skip
    return found.values.double().numpy()


def _source(setting: Setting, number: int, seed: int) -> np.ndarray:
    schedule = setting.schedules[number]
    with tempfile.TemporaryDirectory() as folder:
        stops = [round(len(schedule) * i / 6) for i in range(1, 7)]  # two checkpoints in each of three segments
        record = record_replay(
            Path(folder) / "record", setting.start, setting.train, schedule, at=stops, progress=False
        )
        found = source(
            setting.start, setting.queries, setting.train, record, Path(folder) / "run", modules=MODULES,
            seed=abs(seed), progress=False,
        )  # fmt: skip
        return found.values.double().numpy()
