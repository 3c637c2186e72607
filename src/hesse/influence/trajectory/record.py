"""A training run on disk: weights at chosen steps, learning rates, the order of the data, the optimizer's numbers.

    manifest.json                  optimizer, normalisation, fingerprint of the data, which steps; written last
    step-<t>.safetensors           trained weights before step t
    moments-<t>.safetensors        of AdamW: running means of squared gradients, without their bias
    trace-<t>.safetensors          learning rate, sequences and their shares of the first t steps

Killed at any moment, the folder holds the last complete state.   Shapes: T steps.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from hesse.errors import ArgumentError, ArtifactError
from hesse.influence.examples import Examples
from hesse.influence.trajectory.optimizers import Optimizer, optimizer_from_dict
from hesse.influence.trajectory.schedule import TrainingSchedule
from hesse.io import Manifest, load_tensors, read_manifest

__all__ = ["KIND", "TrainingRecord", "moments_name", "open_record", "weights_name"]

KIND = "training-record"
"""What the manifest of a record says it is."""


@dataclass(frozen=True)
class TrainingRecord:
    """A recorded run, read when asked for; every file is compared with its checksum."""

    folder: Path
    manifest: Manifest

    def __len__(self) -> int:
        return int(self._state["steps"])

    def __repr__(self) -> str:
        return f"TrainingRecord({self.folder}, {len(self)} steps, weights at {', '.join(map(str, self.checkpoints))})"

    @property
    def _state(self) -> dict[str, Any]:
        return self.manifest.stages["record"]

    @property
    def optimizer(self) -> Optimizer:
        """What made the steps."""
        return optimizer_from_dict(self.manifest.config["optimizer"])

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps before which the weights were kept, rising; 0 is the start, T the end."""
        return tuple(self._state["checkpoints"])

    @property
    def per(self) -> Literal["sequences", "tokens"]:
        """What a step's loss was divided by."""
        return self.manifest.config["per"]

    @cached_property
    def _trace(self) -> dict[str, Tensor]:
        name = self._state["trace"]
        return load_tensors(self.folder / name, self.manifest.files[name])

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """One a step."""
        return tuple(self._trace["rates"].tolist())

    @property
    def batches(self) -> tuple[tuple[int, ...], ...] | None:
        """Numbers of the sequences of every step; None if the order was not recorded."""
        if "sequences" not in self._trace:
            return None
        return self._by_step("sequences")

    @property
    def shares(self) -> tuple[tuple[float, ...], ...] | None:
        """What the loss of every sequence of every step was multiplied by; None where ``per`` says it."""
        return self._by_step("shares") if "shares" in self._trace else None

    def _by_step(self, name: str) -> tuple[tuple[Any, ...], ...]:
        offsets, values = self._trace["offsets"].tolist(), self._trace[name].tolist()
        return tuple(tuple(values[a:b]) for a, b in pairwise(offsets))

    def weights(self, step: int) -> dict[str, Tensor]:
        """Read the trained weights as they were before a step.

        Parameters
        ----------
        step : int
            One of ``checkpoints``.

        Returns
        -------
        dict of str to Tensor
            By parameter name; parameters that were not trained are not there.

        Raises
        ------
        ArgumentError
            If they were not kept.
        ArtifactError
            If the file is damaged.
        """
        if step not in self.checkpoints:
            raise ArgumentError(f"step: weights were kept at {', '.join(map(str, self.checkpoints))}, not at {step}")
        name = weights_name(step)
        return load_tensors(self.folder / name, self.manifest.files[name])

    def moments(self, step: int) -> dict[str, Tensor]:
        """Read AdamW's running means of squared gradients v̂, without their bias, as they were before a step.

        Parameters
        ----------
        step : int
            One of ``checkpoints`` beyond 0.

        Returns
        -------
        dict of str to Tensor
            By parameter name.

        Raises
        ------
        ArgumentError
            If they were not kept: of SGD, before the first step, or where the recorder had no optimizer of torch.
        ArtifactError
            If the file is damaged.
        """
        name = moments_name(step)
        if name not in self.manifest.files:
            raise ArgumentError(f"step: {self.folder} holds no running means of squared gradients before step {step}")
        return load_tensors(self.folder / name, self.manifest.files[name])

    def schedule(self) -> TrainingSchedule:
        """Lay out the run's steps for `magic` and `replay`.

        Returns
        -------
        TrainingSchedule
            T steps.

        Raises
        ------
        ArgumentError
            If the order of the data was not recorded.
        """
        batches = self.batches
        if batches is None:
            raise ArgumentError(f"record: {self.folder} has no order of the data; `source` needs none, `magic` does")
        return TrainingSchedule(self.optimizer, self.learning_rates, batches, self.per, self.shares)

    def check_data(self, examples: Examples) -> None:
        """Refuse other data than the run's, where the record knows it.

        Parameters
        ----------
        examples : Examples
            The training set at hand.

        Raises
        ------
        ArtifactError
            If its fingerprint differs.
        """
        known = self.manifest.parents.get("data")
        if known is not None and known != examples.fingerprint():
            raise ArtifactError(f"record: {self.folder} was trained on other data, or on the same in another order")


def open_record(folder: Path | str) -> TrainingRecord:
    """Open a recorded run.

    Parameters
    ----------
    folder : path
        That a `Recorder` or one of the callbacks filled.

    Returns
    -------
    TrainingRecord
        As far as it got, if training was interrupted.

    Raises
    ------
    ArtifactError
        If there is no record, or its manifest is damaged.
    """
    return TrainingRecord(Path(folder), read_manifest(Path(folder), KIND))


def weights_name(step: int) -> str:
    """Name the file of the weights.

    Parameters
    ----------
    step : int
        Before which.

    Returns
    -------
    str
        Inside the record.
    """
    return f"step-{step:09d}.safetensors"


def moments_name(step: int) -> str:
    """Name the file of AdamW's running means.

    Parameters
    ----------
    step : int
        Before which.

    Returns
    -------
    str
        Inside the record.
    """
    return f"moments-{step:09d}.safetensors"
