"""What a pass over the graph collects: the channels of every parameter's dimensions, and the values that flow."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.compress.graph._ids import NONE, Channels, encode, ids_of, is_zero

__all__ = ["Axis", "Flow", "ParameterView", "Value"]

Axis = tuple[str, int]
"""Name of a parameter or buffer, and one of its dimensions."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that flows: its shape, and a code an element, or None if no element belongs to a channel."""

    shape: tuple[int, ...]
    codes: Tensor | None = None

    def full(self) -> Tensor:
        # codes, NONE everywhere if there are none
        return torch.full(self.shape, NONE) if self.codes is None else self.codes


@dataclass(frozen=True, slots=True)
class ParameterView:
    """A parameter or buffer not yet used, with its dimensions in another order perhaps."""

    name: str
    sizes: tuple[int, ...]  # of the parameter
    dims: tuple[int, ...]  # dims[i]: which of its dimensions stands at place i
    trainable: bool

    @property
    def shape(self) -> tuple[int, ...]:
        # as it is seen
        return tuple(self.sizes[d] for d in self.dims)


@dataclass(slots=True)
class Flow:
    """State of the pass."""

    channels: Channels = field(default_factory=Channels)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of every parameter met
    axes: dict[Axis, Tensor] = field(default_factory=dict)  # ids along a dimension
    producers: set[Axis] = field(default_factory=set)  # zeroed with the channel; the others are only cut
    elements: dict[str, Tensor] = field(default_factory=dict)  # ids of parameters used element by element
    trainable: set[str] = field(default_factory=set)
    boxes: list[Tensor] = field(default_factory=list)  # codes of tensors that a cut must leave rectangular
    moved: list[tuple[str, Tensor]] = field(default_factory=list)  # (owner, codes) where code may hold a size
    norms: list[tuple[str, Tensor]] = field(default_factory=list)  # (owner, ids normalised over)
    uses: dict[str, float] = field(default_factory=dict)  # products with every entry, in one call of the example

    def axis(self, view: ParameterView, place: int, *, producer: bool) -> Tensor:
        # ids of the channels along a dimension of a parameter
        key = (view.name, view.dims[place])
        self._note(view)
        if key not in self.axes:
            self.axes[key] = self.channels.fresh(view.sizes[key[1]])
        if producer:
            self.producers.add(key)
        return self.axes[key]

    def materialise(self, view: ParameterView) -> Value:
        # turn a parameter into a value, every entry a channel of its own until operators unite them
        self._note(view)
        if view.name not in self.elements:
            count = int(torch.Size(view.sizes).numel())
            self.elements[view.name] = self.channels.fresh(count).reshape(view.sizes)
        return Value(view.shape, encode(self.elements[view.name].permute(view.dims), view.trainable))

    def _note(self, view: ParameterView) -> None:
        self.sizes[view.name] = view.sizes
        if view.trainable:
            self.trainable.add(view.name)

    def pin(self, value: Any, reason: str) -> None:
        # forbid to cut whatever flows here, in lists too
        if isinstance(value, list | tuple):
            for item in value:
                self.pin(item, reason)
        elif isinstance(value, ParameterView):
            self.pin(self.materialise(value), reason)
        elif isinstance(value, Value) and value.codes is not None:
            self.channels.pin(ids_of(value.codes), reason)

    def columns(self, value: Value, dim: int) -> tuple[Tensor, Tensor]:
        # make a tensor uniform across all dimensions but one; the ids along that one, and whether they reach zero
        size = value.shape[dim]
        if value.codes is None:
            return torch.full((size,), NONE), torch.zeros(size, dtype=torch.bool)
        rows = value.codes.movedim(dim, -1).reshape(-1, size)
        if bool((rows == rows[:1]).all()):
            rows = rows[:1]
        ids = ids_of(rows)
        column = ids.amax(0)
        self.channels.unite(ids, column.expand_as(ids))
        mixed = (rows == NONE).any(0) & (column >= 0)
        self.channels.pin(column[mixed], "part of the tensor is no channel's")
        return column, is_zero(rows).all(0)

    def consume(self, value: Value, dim: int, what: str) -> Tensor:
        # ids along a dimension that is summed over: channels that do not reach zero there may not be cut
        column, zero = self.columns(value, dim)
        self.channels.pin(column[~zero], f"its zero does not reach {what} as a zero")
        return column

    def join(self, column: Tensor, ids: Tensor, reason: str) -> None:
        # unite a parameter's channels with those of the tensor it meets; where there are none it may not be cut
        self.channels.unite(column, ids)
        self.channels.pin(ids[column < 0], reason)

    def collapse(self, codes: Tensor, dims: Sequence[int]) -> Tensor:
        # codes of entries made from all places along some dimensions, which become of size one
        ids = ids_of(codes).amax(tuple(dims), keepdim=True)
        self.channels.unite(ids_of(codes), ids.expand_as(codes))
        self.channels.pin(ids[(codes == NONE).amax(tuple(dims), keepdim=True)], "part of the tensor is no channel's")
        return encode(ids, is_zero(codes).amin(tuple(dims), keepdim=True))
