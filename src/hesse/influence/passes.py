"""One forward and dgrad-only backward pass over a batch, for every stage that needs layer inputs and output gradients.

Labels drawn from the model come from a counter keyed by (seed, sequence id, stage), so that batch size, order, padding,
restarts, the number of processes and the company of other sequences never change a draw.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hesse.curvature.capture import Captured, LayerStream, dgrad_only
from hesse.curvature.layers import TrackedLayer, select_layers
from hesse.curvature.stored_weights import floating_dtype
from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.influence.distributed import is_sharded
from hesse.influence.objective import Batch, Loss, LossOutput, Masks, check_is_likelihood

__all__ = ["Fisher", "Measurement", "Pass", "check_model", "in_full_precision", "read_ahead"]

T = TypeVar("T")

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
    attended: bool = False  # every non-padding position enters A and M, else only those that carry gradient
    _stream: LayerStream | None = None
    _checked: bool = False
    _argument: str = "dataset"

    @contextmanager
    def open(self, consumer: Callable[[Captured], None], argument: str = "dataset") -> Iterator["Pass"]:
        """Attach the hooks and freeze the parameters inside the block.

        Parameters
        ----------
        consumer : callable
            Receives one `Captured` a layer and batch.
        argument : str, default "dataset"
            Where the batches come from, for messages.

        Yields
        ------
        Pass
            This one.
        """
        check_model(self.model)
        with dgrad_only(self.model), LayerStream(self.layers, consumer) as stream:
            self._stream, self._argument = stream, argument
            try:
                yield self
            finally:
                self._stream = None

    def empirical(self, batch: Batch, names: Items[str]) -> LossOutput:
        """Backward from the loss with the data's own labels.

        Parameters
        ----------
        batch : mapping
            As the loss takes it.
        names : sequence of str
            Ids of its sequences.

        Returns
        -------
        LossOutput
            Of the forward pass.

        Raises
        ------
        ShapeError
            If the batch holds more or fewer sequences than ``names``.
        """
        with self._forward(batch, names) as output:
            self._require().backward(output.per_token.sum())
        return output

    def sampled(self, batch: Batch, names: Items[str], stage: int) -> LossOutput:
        """Backward from the loss with labels drawn from the model at every supervised position.

        Parameters
        ----------
        batch : mapping
            As the loss takes it.
        names : sequence of str
            Ids of its sequences: with the seed they decide the draw.
        stage : int
            Another stage, other labels.

        Returns
        -------
        LossOutput
            Of the forward pass, with the drawn labels.

        Raises
        ------
        ShapeError
            If the batch holds more or fewer sequences than ``names``.
        """
        _check_count(batch, names, self._argument)  # before the draw, which needs a name for every row
        if not self._checked:
            with torch.no_grad():  # no layer is captured outside of a batch of the stream
                check_is_likelihood(self.loss, self.model, batch)
            self._checked = True

        def draw(logits: Tensor, valid: Tensor) -> Tensor:
            per_position = self.loss.uniforms_per_position(logits)
            uniforms = _uniforms(valid, batch.get("segment_ids"), names, self.seed, stage, per_position)
            return self.loss.sample(logits, uniforms)

        with self._forward(batch, names, draw) as output:
            self._require().backward(output.per_token.sum())
        return output

    def exact(self, batch: Batch, names: Items[str]) -> Iterator[None]:
        """Run one backward pass for every column of the square root of the output Hessian.

        Parameters
        ----------
        batch : mapping
            As the loss takes it.
        names : sequence of str
            Ids of its sequences.

        Yields
        ------
        None
            After each backward pass.

        Raises
        ------
        ShapeError
            If the batch holds more or fewer sequences than ``names``.
        """
        with self._forward(batch, names) as output:
            columns = self.loss.cotangents(output.logits.detach(), output.valid)
            for column in columns:
                self._require().backward(output.logits, column, keep=True)
                yield

    def measured(self, batch: Batch, measurement: Measurement, names: Items[str] | None = None) -> Tensor:
        """Backward from a user's measurement.

        Parameters
        ----------
        batch : mapping
            As the measurement takes it; it holds ``labels``.
        measurement : callable
            (model, batch) -> (B,).
        names : sequence of str, optional
            Ids of its sequences. Default: the batch is taken to hold those that it should.

        Returns
        -------
        Tensor, shape (B,)
            Its values.

        Raises
        ------
        ArgumentError
            If it does not give one value a sequence.
        ShapeError
            If the batch holds more or fewer sequences than ``names``.
        """
        stream = self._require()
        if names is not None:
            _check_count(batch, names, self._argument)
        with stream.batch(batch.get("segment_ids")):
            values = measurement(self.model, batch)
            labels, mask = batch["labels"], batch.get("attention_mask")
            count = _count(batch)
            if values.shape != (count,):
                raise ArgumentError(
                    f"measurement: expected one value a sequence, shape ({count},), got {tuple(values.shape)}"
                )
            if mask is not None and mask.dim() == 2:
                stream.positions(mask.bool(), None if bool(mask.all()) else ~mask.bool())
            else:
                stream.positions(torch.ones_like(labels, dtype=torch.bool) if labels.dim() == 2 else None)
            stream.backward(values.sum())
        return values.detach()

    @contextmanager
    def _forward(
        self, batch: Batch, names: Items[str], labels: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Iterator[LossOutput]:
        stream = self._require()
        _check_count(batch, names, self._argument)
        with stream.batch(batch.get("segment_ids")):
            output = self.loss(self.model, batch, labels)
            attended, carrying = self.loss.positions(batch, output.valid)
            stream.positions(attended if self.attended else carrying, _padding(attended))
            _check_finite(output, names, batch.get("segment_ids"), self._argument)
            yield output

    def _require(self) -> LayerStream:
        if self._stream is None:
            raise ArgumentError("Pass: call inside `with pass.open(consumer):`")
        return self._stream


def check_model(model: nn.Module) -> None:
    """Refuse a model in training mode: dropout makes every gradient random, batch norm leaks between sequences.

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


def in_full_precision(run_pass: Pass) -> Pass:
    """Return a pass of the same model in float32 or wider.

    Parameters
    ----------
    run_pass : Pass
        In any dtype.

    Returns
    -------
    Pass
        The same one, unless its model is in half precision, and then one with a copy.

    Raises
    ------
    ArgumentError
        If the model would have to be copied, and is in shards.
    """
    if floating_dtype(run_pass.model) in (torch.float32, torch.float64):
        return run_pass
    if is_sharded(run_pass.model):
        raise ArgumentError("model: one in shards cannot be copied to float32")
    model = copy.deepcopy(run_pass.model).float()
    layers = select_layers(model, lambda name, _module: name in run_pass.layers, allow_head=True)
    return replace(run_pass, model=model, layers=layers)


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """Hand items on in order while a thread makes the next one, so that reading a batch costs the model no time.

    Parameters
    ----------
    items : iterable
        Only one thread takes from it, but not the calling one. Its exceptions arrive where the item would have.

    Yields
    ------
    object
        Every item; one more is held at a time.
    """
    source, end = iter(items), _End()
    with ThreadPoolExecutor(1, thread_name_prefix="hesse-read-ahead") as pool:
        pending = pool.submit(next, source, end)
        while not isinstance(item := pending.result(), _End):
            pending = pool.submit(next, source, end)
            yield item


class _End:
    """What follows the last item."""


def _padding(attended: Masks) -> Masks:
    if callable(attended):
        return lambda name: ~attended(name)
    return None if attended is None or bool(attended.all()) else ~attended


def _count(batch: Batch) -> int:
    # sequences in a batch; of packed ones, segment -1 is padding and the rest are numbered from 0
    segments = batch.get("segment_ids")
    if segments is None:
        return len(batch["labels"])
    return int(segments.max()) + 1 if segments.numel() else 0


def _check_count(batch: Batch, names: Items[str], argument: str) -> None:
    # one too few or too many, and every later sequence would be scored under another's name
    count = _count(batch)
    if count != len(names):
        raise ShapeError(
            f"{argument}: its batch of {len(names)} sequences, {', '.join(map(repr, names[:2]))}..., holds {count}; "
            "batch() must collate every sequence that it is asked for, once"
        )


def _check_finite(output: LossOutput, names: Items[str], segments: Tensor | None, argument: str) -> None:
    finite = torch.isfinite(output.per_token.detach())
    if bool(finite.all()):
        return
    row, position = (int(i) for i in (~finite).nonzero()[0])
    which = row if segments is None else int(segments[row, position])
    raise NumericalError(f"{argument}: the loss of sequence {names[which]!r} is NaN or Inf at position {position}")


def _uniforms(valid: Tensor, segments: Tensor | None, names: Items[str], seed: int, stage: int, width: int) -> Tensor:
    # uniform numbers (..., width), the k-th supervised position of a sequence always receiving the same ones
    values = np.zeros((*valid.shape, width))
    flags = valid.cpu().numpy()
    owner = None if segments is None else segments[:, : valid.shape[1]].cpu().numpy()
    for which, name in enumerate(names):
        if owner is None:
            places = (np.full(int(flags[which].sum()), which), flags[which].nonzero()[0])
        else:
            places = ((owner == which) & flags).nonzero()
        key = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        generator = np.random.Generator(np.random.Philox(counter=[0, 0, 0, stage], key=[seed, key]))
        values[places] = generator.random((len(places[0]), width))
    return torch.from_numpy(values).to(valid.device)
