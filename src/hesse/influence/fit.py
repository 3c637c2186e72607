"""Fits the factors of a model in three resumable stages: covariances, eigenbases, eigenvalues.

Sums are flushed to a new generation of files every few units, then the manifest is replaced; a restart goes on after
the last flushed unit and reaches bit-identical files, because batches and their order are a function of the data alone.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse._progress import progress
from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.curvature.ekfac import second_moment, sequence_gradients
from hesse.curvature.kfac import InputFactor, OutputFactor, eigendecompose, mirror_
from hesse.curvature.layers import TrackedLayer
from hesse.curvature.routed import RoutedLinear
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError
from hesse.influence.examples import Examples, plan_batches, plan_units
from hesse.influence.passes import Pass
from hesse.influence.run import RunFolder
from hesse.io import FileEntry, load_tensors, save_tensors

__all__ = ["FitSettings", "file_name", "fit_factors"]

_COVARIANCE, _EIGENVALUES = 0, 1  # stages draw different labels


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How the passes are cut up; none of it changes a result beyond rounding."""

    order: list[int]
    factor_dtype: torch.dtype
    batch_tokens: int = 4096
    batch_size: int | None = None
    unit_size: int = 256
    checkpoint_seconds: float = 30.0
    show_progress: bool | None = None


def file_name(layer: str) -> str:
    """Name the file of a layer: its dotted name, with what a file system may not like replaced.

    Parameters
    ----------
    layer : str
        Dotted name; empty if the model itself is the layer.

    Returns
    -------
    str
        Without an ending.
    """
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in layer) or "model"


def fit_factors(
    run: RunFolder, run_pass: Pass, examples: Examples, strategy: str, fisher: str, blocks: int, settings: FitSettings
) -> None:
    """Run whatever stages the strategy needs and the run has not finished.

    Parameters
    ----------
    run : RunFolder
        Where state lives.
    run_pass : Pass
        The model with its loss and layers.
    examples : Examples
        The training set.
    strategy : str
        "ekfac", "kfac", "diagonal" or "identity".
    fisher : str
        "sampled", "empirical" or "exact".
    blocks : int
        Diagonal blocks a factor is cut into.
    settings : FitSettings
        Batching and checkpoints.
    """
    state = run.stage("fit")
    if state.get("done"):
        return
    if "stage" not in state:
        first = {"ekfac": "covariance", "kfac": "covariance", "diagonal": "eigenvalues", "identity": "finish"}[strategy]
        state = {"stage": first, "sequences": 0}
    job = _Fit(run, run_pass, examples, strategy, fisher, blocks, settings, state)
    if job.state["stage"] == "covariance":
        job.covariance()
    if job.state["stage"] == "eigen":
        job.eigen()
    if job.state["stage"] == "eigenvalues":
        job.eigenvalues()
    job.finish()


@dataclass(slots=True)
class _Covariance:
    """Sums of one generation: an input factor for every distinct input, an output factor for every layer."""

    layers: Mapping[str, TrackedLayer]
    dtype: torch.dtype
    inputs: dict[str, InputFactor] = field(default_factory=dict)
    outputs: dict[str, OutputFactor] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    count_rows: bool = True  # false for further columns of the exact Fisher: same positions again

    def consume(self, rows: Captured) -> None:
        name = rows.layer.name
        leader = self.shared.setdefault(name, rows.shared_with)
        if leader != rows.shared_with:
            raise ArgumentError(
                f"modules: {name!r} and {leader!r} read the same input in one batch but not in another; track only "
                "one of them a run"
            )
        device = rows.grads.device
        if name not in self.outputs:
            self.outputs[name] = OutputFactor.zeros(rows.layer.out_features, dtype=self.dtype, device=device)
            if leader == name:
                self.inputs[name] = InputFactor.zeros(rows.layer.columns, dtype=self.dtype, device=device)
        if leader == name and self.count_rows:
            self.inputs[name].add_(rows)
        self.outputs[name].add_(rows, count=self.count_rows)


@dataclass(slots=True)
class _Eigenvalues:
    """Running Σ (Q_Sᵀ D Q_A)²; rotated inputs are kept for the next layer that has the same input."""

    bases: Mapping[str, tuple[Tensor, Tensor] | None]
    dtype: torch.dtype
    tables: dict[str, Tensor] = field(default_factory=dict)
    last: tuple[str, Tensor] | None = None
    scratch: Scratch = field(default_factory=Scratch)

    def consume(self, rows: Captured) -> None:
        name = rows.layer.name
        if name not in self.tables:
            shape = (rows.layer.out_features, rows.layer.columns)
            self.tables[name] = torch.zeros(shape, dtype=self.dtype, device=rows.grads.device)
        basis = self.bases[name]
        if basis is None:
            for block in rows.blocks(BLOCK_ENTRIES):
                self.tables[name] += sequence_gradients(block).to(self.dtype).square_().sum(0)
            return
        known = self.last[1] if self.last is not None and self.last[0] == rows.shared_with else None
        rotated = second_moment(rows, *basis, self.tables[name], self.scratch, known)
        self.last = None if rotated is None else (rows.shared_with, rotated)


@dataclass(slots=True)
class _Fit:
    run: RunFolder
    run_pass: Pass
    examples: Examples
    strategy: str
    fisher: str
    blocks: int
    settings: FitSettings
    state: dict[str, Any]

    def covariance(self) -> None:
        sums = _Covariance(self.run_pass.layers, self.settings.factor_dtype)
        counts = self.state.get("counts", {})
        sums.shared = dict(self.state.get("shared", {}))
        for name in counts:
            if sums.shared[name] == name:
                sums.inputs[name] = InputFactor(self._resume(self._cov(name, "A")), counts[name]["A"])
            sums.outputs[name] = OutputFactor(self._resume(self._cov(name, "S")), counts[name]["S"])

        def save(done: int) -> None:
            folder = f"cov-{done}"
            files = {
                f"{folder}/{file_name(n)}.A.safetensors": self._save(
                    f"{folder}/{file_name(n)}.A.safetensors", total=f.total
                )
                for n, f in sums.inputs.items()
            }
            files |= {
                f"{folder}/{file_name(n)}.S.safetensors": self._save(
                    f"{folder}/{file_name(n)}.S.safetensors", total=f.total
                )
                for n, f in sums.outputs.items()
            }
            counts = {n: {"A": sums.inputs[sums.shared[n]].count, "S": f.count} for n, f in sums.outputs.items()}
            self._commit(
                {"stage": "covariance", "sequences": done, "counts": counts, "shared": dict(sums.shared)}, files, "cov-"
            )

        with self.run_pass.open(sums.consume):
            for batch, names in self._batches("covariance", save):
                sums.count_rows = True
                if self.fisher == "exact":
                    for _column in self.run_pass.exact(batch, names):
                        sums.count_rows = False
                elif self.fisher == "empirical":
                    self.run_pass.empirical(batch, names)
                else:
                    self.run_pass.sampled(batch, names, _COVARIANCE)
        self._commit({"stage": "eigen"}, {}, None)

    def eigen(self) -> None:
        counts, shared = self.state["counts"], self.state["shared"]
        wanted = [(name, "S") for name in shared] + [(name, "A") for name in shared if shared[name] == name]
        sizes = {pair: self._order(*pair) for pair in wanted}
        wanted.sort(key=lambda pair: -sizes[pair])  # largest first
        fresh: dict[str, FileEntry] = {}
        last = time.monotonic()
        with progress(
            "eigendecompositions", len(wanted), unit="factors", enabled=self.settings.show_progress
        ) as advance:
            for name, which in wanted:
                relative = f"eig/{file_name(name)}.{which}.safetensors"
                if relative not in self.run.manifest.files:
                    total = mirror_(self._load(self._cov(name, which), "total"))
                    # of an expert that the router never chose any basis will do
                    count = counts[name][which] or int(self._is_expert(name))
                    eigen = eigendecompose(total, count, name=f"{name} ({which})", blocks=self.blocks)
                    dtype = self.settings.factor_dtype
                    fresh[relative] = self._save(
                        relative, values=eigen.values.to(dtype), vectors=eigen.vectors.to(dtype)
                    )
                    if time.monotonic() - last >= self.settings.checkpoint_seconds:
                        self.run.commit({"fit": self.state}, fresh)
                        fresh, last = {}, time.monotonic()
                advance(1)
        next_stage = "eigenvalues" if self.strategy == "ekfac" else "finish"
        self._commit({"stage": next_stage, "sequences": 0}, fresh, "cov-")

    def eigenvalues(self) -> None:
        sums = _Eigenvalues(self._bases(), self.settings.factor_dtype)
        if self.state["sequences"]:
            for name in self.run_pass.layers:
                sums.tables[name] = self._resume(f"lam-{self.state['sequences']}/{file_name(name)}.safetensors")

        def save(done: int) -> None:
            files = {}
            for name, table in sums.tables.items():
                relative = f"lam-{done}/{file_name(name)}.safetensors"
                files[relative] = self._save(relative, total=table)
            self._commit({"sequences": done}, files, "lam-")

        with self.run_pass.open(sums.consume):
            for batch, names in self._batches("eigenvalues", save):
                sums.last = None
                if self.fisher == "exact":
                    for _column in self.run_pass.exact(batch, names):
                        pass
                elif self.fisher == "empirical":
                    self.run_pass.empirical(batch, names)
                else:
                    self.run_pass.sampled(batch, names, _EIGENVALUES)
        self._commit({"stage": "finish"}, {}, None)

    def finish(self) -> None:
        """Write the final tables and the list of files that make up each layer's factors."""
        num = len(self.settings.order)
        shared = self.state.get("shared", {})
        counts = self.state.get("counts", {})
        mean_tokens = max((c["S"] for c in counts.values()), default=0) / num
        layers: dict[str, dict[str, str]] = {}
        files: dict[str, FileEntry] = {}
        unreached: list[str] = []
        for name in self.run_pass.layers:
            entry: dict[str, str] = {}
            if self.strategy in ("ekfac", "kfac"):
                entry |= {
                    "left": f"eig/{file_name(name)}.S.safetensors",
                    "right": f"eig/{file_name(shared[name])}.A.safetensors",
                }
            if self.strategy == "kfac":
                # T̄: the factors are means over tokens, the objective sums over them
                per_sequence = counts[name]["S"] / num
                table = per_sequence * torch.outer(
                    self._load(entry["left"], "values"), self._load(entry["right"], "values")
                )
            elif self.strategy in ("ekfac", "diagonal"):
                table = self._load(f"lam-{num}/{file_name(name)}.safetensors", "total") / num
            else:
                layers[name] = entry
                continue
            if self._is_expert(name) and not bool(table.any()):
                unreached.append(name)
            entry["table"] = f"lam/{file_name(name)}.safetensors"
            files[entry["table"]] = self._save(entry["table"], table=table)
            layers[name] = entry
        done = {
            "done": True,
            "stage": "done",
            "layers": layers,
            "unreached": unreached,
            "num_sequences": num,
            "mean_tokens": mean_tokens,
            "shared": shared,
            "counts": counts,
        }
        self.state = done
        self.run.commit({"fit": done}, files, [f for f in self.run.manifest.files if f.startswith(("cov-", "lam-"))])

    def _batches(self, title: str, save: Any) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
        # from where the stage stopped, flushing between units; the last flush covers everything
        order, settings = self.settings.order, self.settings
        names, lengths = self.examples.ids, self.examples.lengths
        lengths = [lengths[i] for i in order]
        start, total = int(self.state["sequences"]), len(order)
        last = time.monotonic()
        device = next(self.run_pass.model.parameters()).device
        with progress(title, total, unit="sequences", enabled=settings.show_progress) as advance:
            advance(start)
            for unit in plan_units(total, settings.unit_size, start):
                for places in plan_batches(lengths, unit, settings.batch_tokens, settings.batch_size):
                    indices = [order[place] for place in places]
                    batch = {key: value.to(device) for key, value in self.examples.batch(indices).items()}
                    yield batch, [names[i] for i in indices]
                    advance(len(indices))
                if unit.stop == total or time.monotonic() - last >= settings.checkpoint_seconds:
                    save(unit.stop)
                    last = time.monotonic()

    def _bases(self) -> dict[str, tuple[Tensor, Tensor] | None]:
        if self.strategy == "diagonal":
            return dict.fromkeys(self.run_pass.layers)
        shared = self.state["shared"]
        right = {
            name: self._load(f"eig/{file_name(name)}.A.safetensors", "vectors")
            for name in shared
            if shared[name] == name
        }
        left = {name: self._load(f"eig/{file_name(name)}.S.safetensors", "vectors") for name in shared}
        if next(self.run_pass.model.parameters()).dtype == torch.bfloat16:
            # the rows carry 8 bits, so bases of 8 bits add noise of the size there is; Λ is still summed in float32
            left, right = ({name: basis.bfloat16() for name, basis in side.items()} for side in (left, right))
        return {name: (left[name], right[shared[name]]) for name in shared}

    def _is_expert(self, name: str) -> bool:
        return isinstance(self.run_pass.layers[name].module, RoutedLinear)

    def _order(self, name: str, which: str) -> int:
        layer = self.run_pass.layers[name]
        return layer.columns if which == "A" else layer.out_features

    def _cov(self, name: str, which: str) -> str:
        return f"cov-{self.state['sequences']}/{file_name(name)}.{which}.safetensors"

    def _load(self, relative: str, key: str) -> Tensor:
        device = next(self.run_pass.model.parameters()).device
        return load_tensors(self.run.path / relative, self.run.entry(relative), device=str(device))[key]

    def _resume(self, relative: str) -> Tensor:
        # in memory of its own: rounding in a matrix product may depend on how its output is aligned
        return self._load(relative, "total").clone()

    def _save(self, relative: str, **tensors: Tensor) -> FileEntry:
        return save_tensors(self.run.path / relative, {key: t.contiguous() for key, t in tensors.items()})

    def _commit(self, change: dict[str, Any], files: dict[str, FileEntry], drop_prefix: str | None) -> None:
        self.state = self.state | change
        old = [f for f in self.run.manifest.files if drop_prefix is not None and f.startswith(drop_prefix)]
        self.run.commit({"fit": self.state}, files, old)
