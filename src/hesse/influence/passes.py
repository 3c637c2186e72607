"""One forward and dgrad-only backward pass over a batch, for every stage that needs layer inputs and output gradients.

Labels drawn from the model come from a counter keyed by (seed, stage, sequence number), so that batch size, order, padding,
restarts and the number of processes never change a draw.
"""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hesse.curvature.capture import Captured, LayerStream, dgrad_only
from hesse.curvature.layers import TrackedLayer
from hesse.errors import ArgumentError, NumericalError
from hesse.influence.objective import Batch, Loss, LossOutput, check_is_likelihood

__all__ = ["Fisher", "Measurement", "Pass", "check_model"]

Fisher = Literal["sampled", "empirical", "exact"]
Measurement = Callable[[nn.Module, Batch], Tensor]
"""A quantity to explain: (model, batch) -> (B,), larger meaning more of it."""


@dataclass(slots=True)
class Pass:
    """The model, its loss and the tracked layers, ready to stream batches to a consumer.

    Use as ``with Pass(...).open(consumer) as run: run.empirical(batch, indices)``.
    """

    model: nn.Module
    loss: Loss
    layers: Mapping[str, TrackedLayer]
    seed: int = 0
    attended: bool = (
        False  # every non-padding position enters A and M, as the peer does; else only those that carry gradient
    )
    _stream: LayerStream | None = None
    _checked: bool = False

    @contextmanager
    def open(self, consumer: Callable[[Captured], None]) -> Iterator["Pass"]:
        """Attach the hooks and freeze the parameters inside the block."""
        check_model(self.model)
        with dgrad_only(self.model), LayerStream(self.layers, consumer) as stream:
            self._stream = stream
            try:
                yield self
            finally:
                self._stream = None

    def empirical(self, batch: Batch, names: Items[str]) -> LossOutput:
        """Backward from the loss with the data's own labels."""
        with self._forward(batch, names) as output:
            self._require().backward(output.per_token.sum())
        return output

    def sampled(self, batch: Batch, names: Items[str], indices: Items[int], stage: int) -> LossOutput:
        """Backward from the loss with labels drawn from the model at every supervised position."""

        def draw(logits: Tensor, valid: Tensor) -> Tensor:
            if not self._checked:
                check_is_likelihood(self.loss, self.loss(self.model, batch), batch)
                self._checked = True
            per_position = self.loss.uniforms_per_position(logits)
            uniforms = _uniforms(valid, batch.get("segment_ids"), indices, self.seed, stage, per_position)
            return self.loss.sample(logits, uniforms)

        with self._forward(batch, names, draw) as output:
            self._require().backward(output.per_token.sum())
        return output

    def exact(self, batch: Batch, names: Items[str]) -> Iterator[None]:
        """One backward pass for every column of the square root of the output Hessian; yields after each."""
        with self._forward(batch, names) as output:
            columns = self.loss.cotangents(output.logits.detach(), output.valid)
            for column in columns:
                self._require().backward(output.logits, column, keep=True)
                yield

    def measured(self, batch: Batch, measurement: Measurement) -> Tensor:
        """Backward from a user's measurement; returns its values (B,)."""
        stream = self._require()
        with stream.batch(batch.get("segment_ids")):
            values = measurement(self.model, batch)
            if values.dim() != 1:
                raise ArgumentError(
                    f"measurement: expected one value a sequence, shape (B,), got {tuple(values.shape)}"
                )
            labels = batch["labels"]
            mask = batch.get("attention_mask")
            padding = None if mask is None or mask.dim() != 2 or bool(mask.all()) else ~mask.bool()
            stream.positions(
                mask.bool()
                if padding is not None
                else (torch.ones_like(labels, dtype=torch.bool) if labels.dim() == 2 else None),
                padding,
            )
            stream.backward(values.sum())
        return values.detach()

    @contextmanager
    def _forward(
        self, batch: Batch, names: Items[str], labels: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Iterator[LossOutput]:
        stream = self._require()
        with stream.batch(batch.get("segment_ids")):
            output = self.loss(self.model, batch, labels)
            attended, carrying = self.loss.positions(batch, output.valid)
            padding = None if attended is None or bool(attended.all()) else ~attended
            stream.positions(attended if self.attended else carrying, padding)
            _check_finite(output, names, batch.get("segment_ids"))
            yield output

    def _require(self) -> LayerStream:
        if self._stream is None:
            raise ArgumentError("Pass: call inside `with pass.open(consumer):`")
        return self._stream


def check_model(model: nn.Module) -> None:
    """Refuse a model in training mode: dropout would make every gradient random, batch norm would leak between sequences.

    Parameters
    ----------
    model : nn.Module
        Must be in ``eval()`` mode, submodules too.

    Raises
    ------
    ArgumentError
        Naming the first submodule that is in training mode.
    """
    for name, module in model.named_modules():
        if module.training:
            raise ArgumentError(f"model: {name or type(model).__name__!r} is in train() mode; call model.eval() first")


def _check_finite(output: LossOutput, names: Items[str], segments: Tensor | None) -> None:
    finite = torch.isfinite(output.per_token.detach())
    if bool(finite.all()):
        return
    row, position = (int(i) for i in (~finite).nonzero()[0])
    which = row if segments is None else int(segments[row, position])
    raise NumericalError(f"dataset: the loss of sequence {names[which]!r} is NaN or Inf at position {position}")


def _uniforms(valid: Tensor, segments: Tensor | None, indices: Items[int], seed: int, stage: int, width: int) -> Tensor:
    """Uniform numbers (..., width), the k-th supervised position of sequence n always receiving the same ones."""
    values = np.zeros((*valid.shape, width))
    flags = valid.cpu().numpy()
    owner = None if segments is None else segments[:, : valid.shape[1]].cpu().numpy()
    for which, index in enumerate(indices):
        if owner is None:
            places = (np.full(int(flags[which].sum()), which), flags[which].nonzero()[0])
        else:
            places = ((owner == which) & flags).nonzero()
        generator = np.random.Generator(np.random.Philox(key=[seed, (stage << 48) + index]))
        values[places] = generator.random((len(places[0]), width))
    return torch.from_numpy(values).to(valid.device)
