"""Fits the factors of a model in three resumable stages: covariances, eigenbases, eigenvalues.

Sums are flushed to a new generation of files every few units, then the manifest is replaced; a restart goes on after
the last flushed unit and reaches bit-identical files, because batches and their order are a function of the data alone.

Of several processes each sums over its share of the units; at a flush the sums meet in their owners. What is on disk
does not say how many there were, so that any number can go on from it, to the same factors up to rounding.
"""

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse._progress import progress
from hesse.curvature.block_basis import Basis, block_slices
from hesse.curvature.block_factors import FactorBlocks
from hesse.curvature.routed import RoutedLinear
from hesse.curvature.stored_weights import floating_dtype
from hesse.influence.distributed import deal_spans, in_step, is_sharded, owners
from hesse.influence.examples import Examples, plan_batches, plan_units
from hesse.influence.factors import basis_of, basis_tensors
from hesse.influence.passes import Pass, read_ahead
from hesse.influence.run import RunFolder
from hesse.influence.streams import window
from hesse.influence.sums import CovarianceSums, EigenvalueSums, check_shared
from hesse.io import FileEntry, load_tensors, save_tensors

__all__ = ["FitSettings", "file_name", "fit_factors", "sum_dtype"]

_COVARIANCE, _EIGENVALUES = 0, 1  # stages draw different labels


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How the passes are cut up; none of it changes a result beyond rounding."""

    order: Items[int]
    factor_dtype: torch.dtype  # of what is kept
    sum_dtype: torch.dtype  # of A and S while they are summed
    batch_tokens: int = 4096
    batch_size: int | None = None
    unit_size: int = 256
    checkpoint_seconds: float = 30.0
    show_progress: bool | None = None


def sum_dtype(model_dtype: torch.dtype) -> torch.dtype:
    """Choose what outer products are summed in, so that the order of batches, which ranks share, hardly matters.

    A cut to low rank among close singular values makes a last bit of a factor matter: with sums in float32 two
    processes gave scores that differed by 1e-5 of the largest. The rows of a bfloat16 model carry 8 bits, and
    its factors, which may be large, are summed in float32.

    Parameters
    ----------
    model_dtype : dtype
        Of the model.

    Returns
    -------
    dtype
        float32 or float64.
    """
    return torch.float32 if model_dtype in (torch.bfloat16, torch.float16) else torch.float64


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
        Where state lives; its team shares the work.
    run_pass : Pass
        The model with its loss and layers.
    examples : Examples
        The training set.
    strategy : str
        "ekfac", "kfac", "shampoo", "diagonal" or "identity".
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
        first = {"diagonal": "eigenvalues", "identity": "finish"}.get(strategy, "covariance")
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
        shampoo = self.strategy == "shampoo"
        sums = CovarianceSums(
            self.run_pass.layers, self.settings.sum_dtype, self._device, 1 if shampoo else self.blocks, shampoo
        )
        sums.shared = dict(self.state.get("shared", {}))
        team, owner = self.run.team, self._owners()
        if self.state.get("counts"):
            for name, which in sums.names():
                if owner[name, which] == team.rank:
                    totals = self._totals(self._cov(name, which))
                    # in memory of their own: rounding in a product may depend on how its output is aligned
                    totals = [total.clone() for total in totals]
                    sums.factors[name, which] = FactorBlocks(totals, self.state["counts"][name][which])

        def save(done: int) -> None:
            sums.shared = self._agreed(sums.shared)
            keys = list(sums.names())
            counts = team.gather([sums.factor(*key).count for key in keys])
            files: dict[str, FileEntry] = {}
            for (name, which), *parts in zip(keys, *counts, strict=True):
                factor, mine = sums.factor(name, which), owner[name, which] == team.rank
                for total in factor.totals:
                    team.add_up_(total, owner[name, which], triangle=True)
                factor.count = sum(parts) if mine else 0
                if mine:
                    relative = f"cov-{done}/{file_name(name)}.{which}.safetensors"
                    files[relative] = self._save(relative, **_total_names(factor.totals))
            found = {key: sum(parts) for key, *parts in zip(keys, *counts, strict=True)}
            by_layer = {n: {"A": found[sums.shared[n], "A"], "S": found[n, "S"]} for n in sums.shared}
            self._commit(
                {"stage": "covariance", "sequences": done, "counts": by_layer, "shared": dict(sums.shared)},
                files,
                "cov-",
            )

        with self.run_pass.open(sums.consume):
            for batch, names, counts in self._batches("covariance", save):
                sums.count_rows, sums.muted = True, not counts
                if self.fisher == "exact":
                    for _column in self.run_pass.exact(batch, names):
                        sums.count_rows = False
                elif self.fisher == "empirical":
                    self.run_pass.empirical(batch, names)
                else:
                    self.run_pass.sampled(batch, names, _COVARIANCE)
        self._commit({"stage": "eigen"}, {}, None)

    def eigen(self) -> None:
        counts, shared, team = self.state["counts"], self.state["shared"], self.run.team
        owner = self._owners()  # largest first
        wanted = [key for key in owner if key[1] == "S" or shared[key[0]] == key[0]]
        fresh: dict[str, FileEntry] = {}
        last = time.monotonic()
        with progress(
            "eigendecompositions", len(wanted), unit="factors", enabled=self.settings.show_progress
        ) as advance:
            for first in range(0, len(wanted), team.size):
                # a factor a rank, of like sizes
                for name, which in wanted[first + team.rank : first + team.rank + 1]:
                    fresh |= self._eigendecomposed(name, which, counts[name][which])
                advance(min(team.size, len(wanted) - first))
                if team.first(lambda last=last: time.monotonic() - last >= self.settings.checkpoint_seconds):
                    self.run.commit({"fit": self.state}, fresh)
                    fresh, last = {}, time.monotonic()
        next_stage = "finish" if self.strategy == "kfac" else "eigenvalues"
        self._commit({"stage": next_stage, "sequences": 0}, fresh, "cov-")

    def _eigendecomposed(self, name: str, which: str, count: int) -> dict[str, FileEntry]:
        # the file of one basis, unless an earlier process has written it
        relative = f"eig/{file_name(name)}.{which}.safetensors"
        if relative in self.run.manifest.files:
            return {}
        totals = self._totals(self._cov(name, which))
        if len(totals) != self.blocks:  # Shampoo's, of which the blocks are cut only now
            totals = [totals[0][place, place] for place in block_slices(len(totals[0]), self.blocks)]
        # of an expert that the router never chose any basis will do
        rows = count or int(self._is_expert(name))
        values, vectors = FactorBlocks(totals).eigendecompose(
            rows, name=f"{name} ({which})", dtype=torch.float32 if self._is_half else torch.float64
        )
        dtype = self.settings.factor_dtype
        return {relative: self._save(relative, values=values.to(dtype), **basis_tensors(vectors.to(dtype)))}

    def eigenvalues(self) -> None:
        team, layers = self.run.team, self.run_pass.layers
        sums = EigenvalueSums(layers, self._bases(), self.settings.factor_dtype, self._device)
        owner = owners({name: layer.out_features * layer.columns for name, layer in layers.items()}, team)
        if self.state["sequences"]:
            for name in layers:
                if owner[name] == team.rank:
                    relative = f"lam-{self.state['sequences']}/{file_name(name)}.safetensors"
                    sums.tables[name] = self._load(relative)["total"].clone()

        def save(done: int) -> None:
            files: dict[str, FileEntry] = {}
            for name in layers:
                table = sums.table(name)
                team.add_up_(table, owner[name])
                if owner[name] == team.rank:
                    relative = f"lam-{done}/{file_name(name)}.safetensors"
                    files[relative] = self._save(relative, total=table)
            self._commit({"sequences": done}, files, "lam-")

        with self.run_pass.open(sums.consume):
            for batch, names, counts in self._batches("eigenvalues", save):
                sums.last, sums.muted = None, not counts
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
        num, team = len(self.settings.order), self.run.team
        shared = self.state.get("shared", {})
        counts = self.state.get("counts", {})
        mean_tokens = max((c["S"] for c in counts.values()), default=0) / num
        layers: dict[str, dict[str, str]] = {}
        files: dict[str, FileEntry] = {}
        unreached: list[str] = []
        for number, name in enumerate(self.run_pass.layers):
            entry: dict[str, str] = {}
            if self.strategy in ("ekfac", "kfac", "shampoo"):
                entry |= {
                    "left": f"eig/{file_name(name)}.S.safetensors",
                    "right": f"eig/{file_name(shared[name])}.A.safetensors",
                }
            layers[name] = entry
            if self.strategy == "identity":
                continue
            entry["table"] = f"lam/{file_name(name)}.safetensors"
            if number % team.size != team.rank:
                continue
            if self.strategy == "kfac":
                # T̄: the factors are means over tokens, the objective sums over them
                per_sequence = counts[name]["S"] / num
                table = per_sequence * torch.outer(
                    self._load(entry["left"])["values"], self._load(entry["right"])["values"]
                )
            else:
                table = self._load(f"lam-{num}/{file_name(name)}.safetensors")["total"] / num
            if self._is_expert(name) and not bool(table.any()):
                unreached.append(name)
            files[entry["table"]] = self._save(entry["table"], table=table)
        unreached = [name for part in team.gather(unreached) for name in part]
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

    def _batches(self, title: str, save: Callable[[int], None]) -> Iterator[tuple[dict[str, Tensor], list[str], bool]]:
        # from where the stage stopped, flushing between units; the last flush covers everything. Of a model in shards
        # also batches that do not count: what one rank runs, all must run
        settings, team = self.settings, self.run.team
        start, total = int(self.state["sequences"]), len(settings.order)
        units = plan_units(total, settings.unit_size, start)
        with progress(title, total, unit="sequences", enabled=settings.show_progress) as advance:
            advance(start)
            for share in deal_spans(units, team, settings.checkpoint_seconds):
                for (batch, names), counts in self._steps(share.units):
                    yield {key: value.to(self._device) for key, value in batch.items()}, names, counts
                    advance(len(names) * counts)
                share.finish()
                save(share.stop)
                advance(share.stop - start - sum(map(len, share.units)))
                start = share.stop

    def _steps(self, units: Items[range]) -> Iterator[tuple[tuple[dict[str, Tensor], list[str]], bool]]:
        steps = read_ahead(step for unit in units for step in self._of_unit(unit))
        if not is_sharded(self.run_pass.model):
            return ((step, True) for step in steps)
        spare = next(self._of_unit(range(1)))
        return in_step(steps, spare, self.run.team)

    def _of_unit(self, unit: range) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
        settings = self.settings
        view = window(self.examples, settings.order[unit.start : unit.stop])
        for places in plan_batches(view.lengths, range(len(unit)), settings.batch_tokens, settings.batch_size):
            yield view.batch(places), [view.ids[i] for i in places]

    def _agreed(self, shared: dict[str, str]) -> dict[str, str]:
        # which layers read one input, as all ranks saw it; one that had nothing to do saw none
        agreed = {}
        for part in self.run.team.gather(shared):
            for name, leader in part.items():
                check_shared(name, agreed.setdefault(name, leader), leader)
        return agreed

    def _owners(self) -> dict[tuple[str, str], int]:
        # the rank of every factor, largest first; those that are not there, because an input is shared, do no harm
        orders = {(name, which): self._order(name, which) for name in self.run_pass.layers for which in ("A", "S")}
        return owners({key: order**3 for key, order in orders.items()}, self.run.team)

    def _bases(self) -> dict[str, tuple[Basis, Basis] | None]:
        if self.strategy == "diagonal":
            return dict.fromkeys(self.run_pass.layers)
        shared = self.state["shared"]
        right = {
            name: basis_of(self._load(f"eig/{file_name(name)}.A.safetensors"))
            for name in shared
            if shared[name] == name
        }
        left = {name: basis_of(self._load(f"eig/{file_name(name)}.S.safetensors")) for name in shared}
        if self._is_half:
            # the rows carry 8 bits, so bases of 8 bits add noise of the size there is; Λ is still summed in float32
            left, right = ({name: basis.to(torch.bfloat16) for name, basis in side.items()} for side in (left, right))
        return {name: (left[name], right[shared[name]]) for name in shared}

    @property
    def _is_half(self) -> bool:
        return floating_dtype(self.run_pass.model) == torch.bfloat16

    def _is_expert(self, name: str) -> bool:
        return isinstance(self.run_pass.layers[name].module, RoutedLinear)

    def _order(self, name: str, which: str) -> int:
        layer = self.run_pass.layers[name]
        return layer.columns if which == "A" else layer.out_features

    def _cov(self, name: str, which: str) -> str:
        return f"cov-{self.state['sequences']}/{file_name(name)}.{which}.safetensors"

    def _load(self, relative: str) -> dict[str, Tensor]:
        return load_tensors(self.run.path / relative, self.run.entry(relative), device=str(self._device))

    def _totals(self, relative: str) -> list[Tensor]:
        tensors = self._load(relative)
        return [tensors[name] for name in _total_names(list(tensors.values()))]

    @property
    def _device(self) -> torch.device:
        return next(self.run_pass.model.parameters()).device

    def _save(self, relative: str, **tensors: Tensor) -> FileEntry:
        return save_tensors(self.run.path / relative, {key: t.contiguous() for key, t in tensors.items()})

    def _commit(self, change: dict[str, Any], files: dict[str, FileEntry], drop_prefix: str | None) -> None:
        self.state = self.state | change
        old = [f for f in self.run.manifest.files if drop_prefix is not None and f.startswith(drop_prefix)]
        self.run.commit({"fit": self.state}, files, old)


def _total_names(totals: Items[Tensor]) -> dict[str, Tensor]:
    # how the sums of a factor are called in its file
    if len(totals) == 1:
        return {"total": totals[0]}
    return {f"total.{i}": total for i, total in enumerate(totals)}
