"""Callbacks that record a training run of transformers or of Lightning, as `magic` and `source` need it.

The order of the data is read off the sampler: it is wrapped when training begins, and notes what it hands out. Loaders
fetch batches ahead, so what a step used is counted off from the beginning of the epoch.
"""

import inspect
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hesse._optional import require
from hesse.errors import ArgumentError
from hesse.influence.trajectory.recorder import Recorder

__all__ = ["lightning_callback", "trainer_callback"]


class _Order:
    """A sampler in the place of another, whose numbers it notes, epoch by epoch."""

    def __init__(self, sampler: Any, batch_size: int) -> None:
        self._sampler, self._batch_size = sampler, batch_size
        self.restart()

    def __iter__(self) -> Iterator[int]:
        numbers: list[int] = []
        self._epochs.append(numbers)
        for number in self._sampler:
            numbers.append(int(number))
            yield number

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def restart(self) -> None:
        self._epochs: list[list[int]] = []
        self._epoch, self._place = -1, 0

    def begin_epoch(self, skipped: int = 0) -> None:
        # skipped: batches of it that an earlier process trained on
        self._epoch, self._place = self._epoch + 1, skipped * self._batch_size

    def take(self, batches: int) -> list[list[int]]:
        first, self._place = self._place, self._place + batches * self._batch_size
        taken = self._epochs[self._epoch][first : self._place]
        return [taken[start : start + self._batch_size] for start in range(0, len(taken), self._batch_size)]


def _watch(loader: Any) -> _Order | None:
    # put a watching sampler into a data loader; None if it has none, as for data of unknown length
    sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(sampler, "sampler", None)
    size = getattr(sampler, "batch_size", None)
    if sampler is None or inner is None or not isinstance(size, int):
        return None
    if not isinstance(inner, _Order):
        sampler.sampler = _Order(inner, size)
    sampler.sampler.restart()
    return sampler.sampler


def _mean_of_means(parts: list[list[int]], divisor: int) -> list[float]:
    # the share of every sequence where the means of small batches are added and divided
    return [1 / (len(part) * divisor) for part in parts for _number in part]


def _joined(parts: list[list[int]]) -> list[int]:
    return [number for part in parts for number in part]


def trainer_callback(
    folder: Path | str,
    *,
    every: int = 100,
    at: Collection[int] | None = None,
    per: Literal["sequences", "tokens"] | None = None,
    dataset: Any = None,
    overwrite: bool = False,
) -> Any:
    """Make a callback for the Trainer of transformers that fills a `TrainingRecord`.

    Optimizer, clipping, learning rates and order are read off the Trainer; gradient accumulation and training that is
    taken up from a checkpoint are followed. One process only. To be replayed exactly by `magic` the model must have no
    dropout, in float32.

    Parameters
    ----------
    folder : path
        Of the record.
    every, at, dataset, overwrite : see `Recorder`
        As there.
    per : {"sequences", "tokens"}, optional
        What the Trainer divides a step's loss by. Default: "tokens" where the model's loss is a mean over all tokens of
        the step, as for causal language models, else "sequences".

    Returns
    -------
    transformers.TrainerCallback
        For ``Trainer(callbacks=[...])`` or ``add_callback``; its ``record`` is the finished record.

    Raises
    ------
    MissingDependencyError
        If transformers is not installed.
    """
    transformers = require("transformers", extra="hf", feature="trainer_callback")

    class CheckpointCallback(transformers.TrainerCallback):
        record = None
        _recorder: Recorder
        _order: _Order | None
        _rate = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if args.world_size > 1:
                raise ArgumentError(f"trainer_callback: expected one process, got {args.world_size}")
            model, loader = given["model"], given["train_dataloader"]
            self._waiting = self._skipped = 0
            if state.global_step and not args.ignore_data_skip:
                steps = -(-len(loader) // args.gradient_accumulation_steps)
                self._skipped = state.global_step % steps * args.gradient_accumulation_steps
            self._order = _watch(loader)
            self._per = per or ("tokens" if _takes_loss_arguments(model) else "sequences")
            self._recorder = Recorder(
                folder,
                model,
                _plain(given["optimizer"]),
                every=every,
                at=at,
                per=self._per,
                clip_norm=args.max_grad_norm or None,
                dataset=dataset,
                resume_at=state.global_step,
                overwrite=overwrite,
            )

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self._order is not None:
                self._order.begin_epoch(self._skipped)
            self._skipped = 0

        def on_substep_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self._waiting += 1

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self._rate = float(_plain(given["optimizer"]).param_groups[0]["lr"])  # the scheduler steps before step_end

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            taken, self._waiting = self._waiting + 1, 0
            if self._order is None:
                self._recorder.step(learning_rate=self._rate)
                return
            parts = self._order.take(taken)
            shares = _mean_of_means(parts, taken) if self._per == "sequences" else None
            self._recorder.step(_joined(parts), learning_rate=self._rate, shares=shares)

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self._recorder.flush()

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.record = self._recorder.finish()

    return CheckpointCallback()


def lightning_callback(
    folder: Path | str,
    *,
    every: int = 100,
    at: Collection[int] | None = None,
    per: Literal["sequences", "tokens"] = "sequences",
    dataset: Any = None,
    overwrite: bool = False,
    pick: Callable[[Any], nn.Module] | None = None,
) -> Any:
    """Make a callback for the Trainer of Lightning that fills a `TrainingRecord`.

    Parameters
    ----------
    folder : path
        Of the record.
    every, at, dataset, overwrite : see `Recorder`
        As there.
    per : {"sequences", "tokens"}, default "sequences"
        What ``training_step`` divides the summed loss by. "tokens" not with accumulated gradients.
    pick : callable, optional
        (LightningModule) -> the module whose weights are kept, such as ``lambda module: module.net``; the names of its
        parameters are the record's. Default: the LightningModule itself.

    Returns
    -------
    lightning.pytorch.Callback
        For ``Trainer(callbacks=[...])``; its ``record`` is the finished record. One process, one optimizer, automatic
        optimisation.

    Raises
    ------
    MissingDependencyError
        If lightning is not installed.
    """
    lightning = require("lightning.pytorch", extra="lightning", feature="lightning_callback")

    class CheckpointCallback(lightning.Callback):
        record = None
        _recorder: Recorder
        _order: _Order | None
        _rate = 0.0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.world_size > 1 or len(trainer.optimizers) != 1:
                raise ArgumentError("lightning_callback: expected one process and one optimizer")
            if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
                raise ArgumentError("lightning_callback: gradients clipped by value cannot be replayed")
            if trainer.accumulate_grad_batches > 1 and per == "tokens":
                raise ArgumentError("lightning_callback: means over tokens of accumulated batches cannot be replayed")
            self._seen = trainer.global_step
            self._waiting = 0
            self._recorder = Recorder(
                folder,
                pl_module if pick is None else pick(pl_module),
                _plain(trainer.optimizers[0]),
                every=every,
                at=at,
                per=per,
                clip_norm=trainer.gradient_clip_val or None,
                dataset=dataset,
                resume_at=trainer.global_step,
                overwrite=overwrite,
            )

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            self._order = None

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self._order = _watch(trainer.train_dataloader) if self._order is None else self._order
            if self._order is not None:
                self._order.begin_epoch()

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self._rate = float(optimizer.param_groups[0]["lr"])

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self._waiting += 1
            if trainer.global_step == self._seen:
                return
            taken, self._waiting, self._seen = self._waiting, 0, trainer.global_step
            if self._order is None:
                self._recorder.step(learning_rate=self._rate)
                return
            parts = self._order.take(taken)
            # Lightning divides by what it means to accumulate, at the end of an epoch too
            shares = _mean_of_means(parts, trainer.accumulate_grad_batches) if per == "sequences" else None
            self._recorder.step(_joined(parts), learning_rate=self._rate, shares=shares)

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
            self._recorder.flush()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.record = self._recorder.finish()

    return CheckpointCallback()


def _takes_loss_arguments(model: nn.Module) -> bool:
    # as the Trainer finds out whether to hand the number of supervised tokens to the model's loss
    if hasattr(model, "accepts_loss_kwargs"):
        return bool(model.accepts_loss_kwargs)
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    # accelerate and Lightning wrap the optimizer that a loop was given
    return getattr(optimizer, "optimizer", optimizer)
