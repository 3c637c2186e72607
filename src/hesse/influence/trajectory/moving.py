"""Curvature averaged over checkpoints of one run, in the coordinates in which its optimizer descends.

The fit sees one data set, in which every sequence stands once a checkpoint; before a batch is run, the loss puts the
weights of its checkpoint into the model.   Shapes: p x m matrices, m counts the bias.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.capture import Captured
from hesse.curvature.layers import TrackedLayer
from hesse.errors import ArgumentError
from hesse.influence.engine import Influence
from hesse.influence.examples import Examples
from hesse.influence.identity import loss_identity
from hesse.influence.objective import Batch, Labels, Loss, LossOutput, Masks
from hesse.influence.passes import Pass
from hesse.influence.trajectory.optimizers import SGD
from hesse.influence.trajectory.record import TrainingRecord

__all__ = ["Checkpoints", "MovingExamples", "MovingLoss", "Scale", "ScaledInfluence", "scale_of"]


@dataclass
class Checkpoints:
    """The weights of a recorded run, put into a model one step at a time."""

    model: nn.Module
    record: TrainingRecord
    current: int | None = None
    opened: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # views of their files, compared with them once

    def load(self, step: int) -> None:
        """Put the weights of a step into the model, unless they are there.

        Parameters
        ----------
        step : int
            One of the record's checkpoints.

        Raises
        ------
        ArgumentError
            If the model has other parameters than the record.
        """
        if step == self.current:
            return
        parameters = dict(self.model.named_parameters())
        if step not in self.opened:
            self.opened[step] = self.record.weights(step)
        with torch.no_grad():
            for name, value in self.opened[step].items():
                if name not in parameters or parameters[name].shape != value.shape:
                    raise ArgumentError(f"model: it has no parameter {name!r} of shape {tuple(value.shape)}")
                parameters[name].copy_(value)
        self.current = step


@dataclass(frozen=True)
class MovingExamples:
    """Sequences once a checkpoint: number i is sequence i mod n, at checkpoint i div n."""

    examples: Examples
    chosen: list[int]
    steps: tuple[int, ...]

    @cached_property
    def ids(self) -> list[str]:
        """One id a sequence and checkpoint."""
        names = self.examples.ids
        return [f"{step}/{names[i]}" for step in self.steps for i in self.chosen]

    @property
    def rows(self) -> list[str]:
        """Every sequence is a row of its own."""
        return self.ids

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens a sequence."""
        lengths = self.examples.lengths
        return [lengths[i] for i in self.chosen] * len(self.steps)

    def __len__(self) -> int:
        return len(self.chosen) * len(self.steps)

    def batch(self, indices: Items[int]) -> dict[str, Tensor]:
        """Collate sequences of one checkpoint.

        Parameters
        ----------
        indices : sequence of int
            Which.

        Returns
        -------
        dict of str to Tensor
            As the data make it, and ``checkpoint``, the step.

        Raises
        ------
        ArgumentError
            If they are of several checkpoints.
        """
        places = {i // len(self.chosen) for i in indices}
        if len(places) != 1:
            raise ArgumentError("source: a batch of the fit spans several checkpoints")
        batch = self.examples.batch([self.chosen[i % len(self.chosen)] for i in indices])
        return batch | {"checkpoint": torch.tensor(self.steps[places.pop()])}

    def fingerprint(self) -> str:
        """Name the data and the steps.

        Returns
        -------
        str
            Changes with either.
        """
        return f"{self.examples.fingerprint()} {len(self.chosen)} at {','.join(map(str, self.steps))}"


@dataclass
class MovingLoss:
    """A loss that first puts the weights of the batch's checkpoint into the model."""

    loss: Loss
    checkpoints: Checkpoints
    stranger: str = field(default_factory=lambda: secrets.token_hex(6))  # names a loss that nothing else tells apart

    def __call__(self, model: nn.Module, batch: Batch, labels: Labels | None = None) -> LossOutput:
        """Compute the loss at the weights of the batch's checkpoint, which stay in the model.

        Parameters
        ----------
        model : nn.Module
            That of the checkpoints.
        batch : mapping
            With its checkpoint.
        labels : Tensor or callable, optional
            As the loss takes them.

        Returns
        -------
        LossOutput
            Of the loss.
        """
        self.checkpoints.load(int(batch["checkpoint"]))
        return self.loss(model, _without(batch), labels)

    @property
    def fingerprint(self) -> str:
        """Text that changes with the loss and with every kept weight."""
        record = self.checkpoints.record
        hashes = ",".join(entry.xxh3 for name, entry in sorted(record.manifest.files.items()) if "trace" not in name)
        return f"{loss_identity(self.loss, self.stranger)} over {hashes}"

    def sample(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Draw labels as the loss does.

        Parameters
        ----------
        logits : Tensor, shape (B, T, V)
            Of the model.
        uniforms : Tensor, shape (B, T, k)
            In [0, 1).

        Returns
        -------
        Tensor, shape (B, T)
            Labels.
        """
        return self.loss.sample(logits, uniforms)

    def uniforms_per_position(self, logits: Tensor) -> int:
        """Count the uniform numbers of a label.

        Parameters
        ----------
        logits : Tensor, shape (B, T, V)
            Of the model.

        Returns
        -------
        int
            As the loss says.
        """
        return self.loss.uniforms_per_position(logits)

    def cotangents(self, logits: Tensor, valid: Tensor) -> Iterator[Tensor]:
        """Take the square root of the output Hessian from the loss.

        Parameters
        ----------
        logits : Tensor, shape (B, T, V)
            Of the model.
        valid : Tensor, shape (B, T), bool
            Positions that count.

        Returns
        -------
        iterator of Tensor
            Its columns.
        """
        return self.loss.cotangents(logits, valid)

    def positions(self, batch: Batch, valid: Tensor) -> tuple[Masks, Masks]:
        """Find the positions that the loss finds.

        Parameters
        ----------
        batch : mapping
            With its checkpoint.
        valid : Tensor, shape (B, T), bool
            From the forward pass.

        Returns
        -------
        tuple of masks
            Attended and gradient-carrying positions.
        """
        return self.loss.positions(_without(batch), valid)


def _without(batch: Batch) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "checkpoint"}


@dataclass(frozen=True, slots=True)
class Scale:
    """D^-½ of one layer as r cᵀ, c being 1 for the bias; None for SGD, whose D is 1."""

    rows: Tensor | None = None  # (p,)
    columns: Tensor | None = None  # (m,)

    def to(self, like: Tensor) -> "Scale":
        """Convert both sides.

        Parameters
        ----------
        like : Tensor
            Gives dtype and device.

        Returns
        -------
        Scale
            Of the same numbers.
        """
        if self.rows is None or self.columns is None:
            return self
        return Scale(self.rows.to(like), self.columns.to(like))

    def times(self, matrices: Tensor) -> Tensor:
        """Multiply by D^-½: the gradient in the coordinates D^½ θ.

        Parameters
        ----------
        matrices : Tensor, shape (..., p, m)
            Gradients, in the dtype of the scale.

        Returns
        -------
        Tensor, shape (..., p, m)
            Themselves for SGD.
        """
        if self.rows is None or self.columns is None:
            return matrices
        return matrices * self.rows[:, None] * self.columns

    def over(self, matrices: Tensor) -> Tensor:
        """Divide by D^-½: the way back.

        Parameters
        ----------
        matrices : Tensor, shape (..., p, m)
            Gradients in those coordinates.

        Returns
        -------
        Tensor, shape (..., p, m)
            Themselves for SGD.
        """
        if self.rows is None or self.columns is None:
            return matrices
        return matrices / self.rows[:, None] / self.columns

    def captured(self, rows: Captured) -> Captured:
        """Scale the rows of a layer, so that their gradients are those in the coordinates D^½ θ.

        Parameters
        ----------
        rows : Captured
            As streamed.

        Returns
        -------
        Captured
            With rows of its own: two layers that read one input scale it differently.
        """
        here = self.to(rows.grads)
        if here.rows is None or here.columns is None:
            return rows
        inputs = rows.inputs * here.columns[: rows.layer.in_features]
        return replace(rows, inputs=inputs, grads=rows.grads * here.rows, shared_with=rows.layer.name)


def scale_of(record: TrainingRecord, steps: Items[int], layer: TrackedLayer) -> Scale:
    """Find the outer product nearest to D^-½ in the logarithm, D = √v̂ + ε averaged over checkpoints.

    Parameters
    ----------
    record : TrainingRecord
        With AdamW's running means, or of SGD.
    steps : sequence of int
        Which checkpoints.
    layer : TrackedLayer
        Of the model.

    Returns
    -------
    Scale
        In float64.
    """
    optimizer = record.optimizer
    if isinstance(optimizer, SGD):
        return Scale()
    divisors = [layer.matrix_from_grads(record.moments(step)).double().sqrt() + optimizer.eps for step in steps]
    logs = -torch.stack(divisors).mean(0).log() / 2
    rows, columns = logs.mean(1), logs.mean(0) - logs.mean()
    if layer.has_bias:
        rows, columns = rows + columns[-1], columns - columns[-1]
    return Scale(rows.exp(), columns.exp())


@dataclass(slots=True)
class _ScaledPass(Pass):
    """A pass whose consumer sees gradients in the coordinates in which the optimizer descends."""

    scales: Mapping[str, Scale] = field(default_factory=dict)

    @contextmanager
    def open(self, consumer: Callable[[Captured], None], argument: str = "dataset") -> Iterator[Pass]:
        with Pass.open(self, lambda rows: consumer(self.scales[rows.layer.name].captured(rows)), argument) as opened:
            yield opened


class ScaledInfluence(Influence):
    """`Influence` in those coordinates."""

    scales: Mapping[str, Scale]

    def _pass(self) -> Pass:
        inner = super()._pass()
        return _ScaledPass(**{part.name: getattr(inner, part.name) for part in fields(inner)}, scales=self.scales)
