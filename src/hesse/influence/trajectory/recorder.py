"""Writes a `TrainingRecord` while a training loop runs."""

from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesse._progress import progress as progress_bar
from hesse.errors import ArgumentError, ArtifactError
from hesse.influence.examples import as_examples
from hesse.influence.objective import Loss
from hesse.influence.run import RunFolder
from hesse.influence.trajectory.optimizers import SGD, Optimizer, optimizer_from_dict, optimizer_of, optimizer_to_dict
from hesse.influence.trajectory.record import KIND, TrainingRecord, moments_name, open_record, weights_name
from hesse.influence.trajectory.replay import Replay, open_replay
from hesse.influence.trajectory.schedule import TrainingSchedule
from hesse.io import FileEntry, Manifest, manifest_exists, read_manifest, run_lock, save_tensors, write_manifest

__all__ = ["Recorder", "record_replay"]


class Recorder:
    """Writes a `TrainingRecord` while a training loop runs; see the page on training runs for loops that fill it.

    Parameters
    ----------
    folder : path
        Of the record; made if missing.
    model : nn.Module
        Being trained. Parameters that require a gradient are kept.
    optimizer : torch.optim.Optimizer, SGD or AdamW
        What makes the steps.
    every : int, default 100
        Keep the weights every so many steps; the first and the last are kept always.
    at : collection of int, optional
        Keep them before these steps instead.
    per : {"sequences", "tokens"}, default "sequences"
        What the loop divides the summed loss of a step by. "tokens" where the loss is a mean over tokens.
    clip_norm : float, optional
        To which the loop clips the norm of the gradient. Default: it does not. An `SGD` or `AdamW` brings its own.
    dataset : Examples, or anything `as_examples` takes, optional
        The training set, to know it again. Default: unknown.
    resume_at : int, default 0
        Steps already made, when training is taken up again: what the record holds beyond them is dropped.
    overwrite : bool, default False
        Replace a record that is there.

    Raises
    ------
    ArgumentError
        If the folder holds something else, the optimizer cannot be replayed, or the record ends before ``resume_at``.
    ArtifactError
        Later, when a step is to be written and another recorder has written to the folder since.

    Notes
    -----
    Each time weights are kept the order of the data is written again, 8 bytes a sequence and step so far.
    """

    def __init__(
        self,
        folder: Path | str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Optimizer,
        *,
        every: int = 100,
        at: Collection[int] | None = None,
        per: Literal["sequences", "tokens"] = "sequences",
        clip_norm: float | None = None,
        dataset: Any = None,
        resume_at: int = 0,
        overwrite: bool = False,
    ) -> None:
        if every < 1:
            raise ArgumentError(f"every: expected >= 1, got {every}")
        if per not in ("sequences", "tokens"):
            raise ArgumentError(f"per: expected 'sequences' or 'tokens', got {per!r}")
        self.model = model
        self._torch = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
        if isinstance(optimizer, torch.optim.Optimizer):
            spec = optimizer_of(optimizer, model, clip_norm=clip_norm)[0]
        else:
            spec = optimizer
        self._every, self._at = every, None if at is None else frozenset(at)
        config = {"optimizer": optimizer_to_dict(spec), "per": per}
        parents = {} if dataset is None else {"data": as_examples(dataset).fingerprint()}
        path = Path(folder)
        self._rates: list[float] = []
        self._batches: list[tuple[int, ...]] | None = []
        self._shares: list[tuple[float, ...]] | None = []
        self._checkpoints: list[int] = []
        if resume_at:
            self._run = self._resume(path, config, parents, resume_at)
            return
        if manifest_exists(path) and not overwrite:
            raise ArgumentError(f"folder: {path} holds a record already; choose another, or pass overwrite=True")
        old = list(read_manifest(path, KIND).files) if manifest_exists(path) else []
        if not old and path.exists() and any(path.iterdir()):
            raise ArgumentError(f"folder: {path} is not empty and holds no record")
        path.mkdir(parents=True, exist_ok=True)
        self._run = RunFolder(path, Manifest(KIND, config, parents, {"record": _stage(0, [], "", done=False)}, {}))
        write_manifest(path, self._run.manifest)
        for name in old:
            (path / name).unlink(missing_ok=True)
        self._commit(weights=True)

    def step(
        self,
        batch: Items[int] | None = None,
        *,
        learning_rate: float | None = None,
        shares: Items[float] | None = None,
    ) -> None:
        """Note one step; call it after ``optimizer.step()`` and before the scheduler's.

        Parameters
        ----------
        batch : sequence of int, optional
            Numbers of the sequences whose loss the step lowered. Leave it out in all steps, or in none.
        learning_rate : float, optional
            Of this step. Default: what the optimizer of torch says now.
        shares : sequence of float, optional
            What the summed loss of each was multiplied by. Default: as ``per`` says. In all steps, or in none.

        Raises
        ------
        ArgumentError
            If there is no learning rate, or only some steps have a batch, or shares.
        """
        if learning_rate is None:
            if self._torch is None:
                raise ArgumentError("learning_rate: say it, since the recorder was made without an optimizer of torch")
            learning_rate = float(self._torch.param_groups[0]["lr"])
        if shares is not None and (batch is None or len(shares) != len(batch)):
            raise ArgumentError("shares: expected one for every sequence of the batch")
        begun = bool(self._rates)
        self._batches = _joined("batch", self._batches, batch, int, begun)
        self._shares = _joined("shares", self._shares, shares, float, begun)
        self._rates.append(float(learning_rate))
        due = len(self._rates) in self._at if self._at is not None else len(self._rates) % self._every == 0
        if due:
            self._commit(weights=True)

    def flush(self) -> None:
        """Write learning rates and order so far, so that training can be taken up from here."""
        self._commit(weights=False)

    def finish(self) -> TrainingRecord:
        """Keep the last weights and close the record.

        Returns
        -------
        TrainingRecord
            Ready to read.
        """
        self._commit(weights=True, done=True)
        return TrainingRecord(self._run.path, self._run.manifest)

    def _commit(self, *, weights: bool, done: bool = False) -> None:
        path, mine = self._run.path, self._run.manifest
        with run_lock(path):
            there = read_manifest(path, KIND)
            if (there.stages, there.files) != (mine.stages, mine.files):
                raise ArtifactError(f"{path}: another recorder has written here since; the record is left as it is")
            self._write(weights=weights, done=done)

    def _write(self, *, weights: bool, done: bool) -> None:
        steps, run = len(self._rates), self._run
        files: dict[str, FileEntry] = {}
        if weights and steps not in self._checkpoints:
            files[weights_name(steps)] = save_tensors(run.path / weights_name(steps), self._weights())
            moments = self._moments()
            if moments:
                files[moments_name(steps)] = save_tensors(run.path / moments_name(steps), moments)
            self._checkpoints.append(steps)
        trace = f"trace-{steps:09d}.safetensors"
        tensors = {"rates": torch.tensor(self._rates, dtype=torch.float64)}
        if self._batches is not None:
            lengths = torch.tensor([0, *map(len, self._batches)])
            flat = [number for batch in self._batches for number in batch]
            tensors |= {"offsets": lengths.cumsum(0), "sequences": torch.tensor(flat, dtype=torch.int64)}
        if self._shares is not None:
            flat = [share for shares in self._shares for share in shares]
            tensors["shares"] = torch.tensor(flat, dtype=torch.float64)
        files[trace] = save_tensors(run.path / trace, tensors)
        kept = {name(step) for step in self._checkpoints for name in (weights_name, moments_name)}
        old = [name for name in run.manifest.files if name != trace and name not in kept]
        run.commit({"record": _stage(steps, self._checkpoints, trace, done=done)}, files, old)

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def _moments(self) -> dict[str, Tensor]:
        # v̂ of every trained parameter that has been stepped; nothing of SGD
        if self._torch is None:
            return {}
        out: dict[str, Tensor] = {}
        second = {id(p): group.get("betas", (0, 0))[1] for group in self._torch.param_groups for p in group["params"]}
        for name, parameter in self.model.named_parameters():
            state = self._torch.state.get(parameter, {})
            if "exp_avg_sq" in state:
                out[name] = state["exp_avg_sq"] / (1 - second[id(parameter)] ** float(state["step"]))
        return out

    def _resume(self, path: Path, config: Mapping[str, Any], parents: Mapping[str, str], steps: int) -> RunFolder:
        found = open_record(path)
        before = {key: found.manifest.config[key] for key in config}
        # clipping and betas as plain values on both sides
        if optimizer_from_dict(before["optimizer"]) != optimizer_from_dict(config["optimizer"]) or (
            before["per"] != config["per"] or found.manifest.parents != parents
        ):
            raise ArgumentError(f"resume_at: the record in {path} is of another optimizer or other data")
        if steps > len(found):
            raise ArgumentError(f"resume_at: the record in {path} ends after {len(found)} steps, got {steps}")
        batches, shares = found.batches, found.shares
        self._rates = list(found.learning_rates[:steps])
        self._batches = None if batches is None else list(batches[:steps])
        self._shares = None if shares is None else list(shares[:steps])
        self._checkpoints = [step for step in found.checkpoints if step <= steps]
        self._run = RunFolder(path, found.manifest)
        self._commit(weights=False)
        for file in path.glob("*.safetensors"):  # written by a process that was killed before the manifest named them
            if file.name not in self._run.manifest.files:
                file.unlink()
        return self._run


class _ReplayRecorder(Recorder):
    """A recorder of a run that is made again, whose weights are in no model."""

    def __init__(self, folder: Path | str, run: Replay, **options: Any) -> None:
        self._replay, self.state = run, run.start()
        super().__init__(folder, run.model, run.schedule.optimizer, **options)

    def _weights(self) -> dict[str, Tensor]:
        return self._replay.layout.unflatten(self.state.weights)

    def _moments(self) -> dict[str, Tensor]:
        optimizer, steps = self._replay.schedule.optimizer, len(self._rates)
        if isinstance(optimizer, SGD) or steps == 0:
            return {}
        return self._replay.layout.unflatten(self.state.memory[1] / (1 - optimizer.betas[1] ** steps))


def record_replay(
    folder: Path | str,
    model: nn.Module,
    dataset: Any,
    schedule: TrainingSchedule,
    *,
    initial: Mapping[str, Tensor] | None = None,
    loss: Loss | None = None,
    every: int = 100,
    at: Collection[int] | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> TrainingRecord:
    """Train as `replay` does, and keep a record: what `source` needs where only a schedule is there.

    Parameters
    ----------
    folder, every, at, overwrite : see `Recorder`
        As there.
    model, dataset, schedule, initial, loss, progress : see `replay`
        As there.

    Returns
    -------
    TrainingRecord
        With the weights after the last step, and running means of AdamW.

    Raises
    ------
    ArgumentError
        If model, data and schedule do not fit together, or the folder holds something else.
    """
    run = open_replay(model, dataset, schedule, initial=initial, loss=loss)
    options = {"every": every, "at": at, "per": schedule.per, "dataset": run.examples, "overwrite": overwrite}
    recorder = _ReplayRecorder(folder, run, **options)
    with progress_bar("training", len(schedule), unit="steps", enabled=progress) as shown:
        for t, (rate, batch) in enumerate(zip(schedule.learning_rates, schedule.batches, strict=True)):
            recorder.state = run.advance(recorder.state, t)
            shares = None if schedule.shares is None else schedule.shares[t]
            recorder.step(batch, learning_rate=rate, shares=shares)
            shown(1)
    return recorder.finish()


def _joined(
    name: str, so_far: list[Any] | None, new: Items[Any] | None, kind: Callable[[Any], Any], begun: bool
) -> list[Any] | None:
    # None from the first step on, or one entry a step
    if begun and (new is None) != (so_far is None):
        raise ArgumentError(f"{name}: give it in every step or in none")
    if new is None or so_far is None:
        return None
    so_far.append(tuple(kind(value) for value in new))
    return so_far


def _stage(steps: int, checkpoints: Items[int], trace: str, *, done: bool) -> dict[str, Any]:
    return {"steps": steps, "checkpoints": list(checkpoints), "trace": trace, "done": done}
