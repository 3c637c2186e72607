"""Token sequences in an array on disk: a memory map of which only the batch in flight is read.

Shapes: N sequences of T tokens.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Generic, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.influence.sequences import Sequence, fingerprint

__all__ = ["Extremes", "MappedExamples"]

_ROWS = 4096  # that are looked at together

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Computed(Items[Item], Generic[Item]):
    """A list that is not there: its entries are computed when asked for."""

    size: int
    entry: Callable[[int], Item]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...

    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        found = range(self.size)[place]
        return self.entry(found) if isinstance(found, int) else [self.entry(i) for i in found]


@dataclass(frozen=True, slots=True)
class Extremes:
    """What a model must be able to look up."""

    lowest: int
    highest: int
    longest: int


@dataclass(frozen=True)
class MappedExamples:
    """Sequences of one length as rows of an array on disk, every token but a first one supervised; ids are numbers.

    Memory is that of the batch in flight. What the operating system keeps of the file it gives back when asked.
    """

    tokens: np.ndarray  # (N, T) of integers
    argument: str = field(default="dataset", repr=False, compare=False)  # what an error calls them

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.dtype.kind not in "iu" or 0 in self.tokens.shape:
            raise ArgumentError(
                f"{self.argument}: expected token ids of shape (N, T), got {self.tokens.shape} of {self.tokens.dtype}"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def ids(self) -> Items[str]:
        """Their numbers, as text."""
        return _Computed(len(self), str)

    @property
    def rows(self) -> Items[str]:
        """Every sequence is a row of its own."""
        return self.ids

    @property
    def lengths(self) -> Items[int]:
        """T each."""
        return _Computed(len(self), lambda _place: self.tokens.shape[1])

    def batch(self, indices: Items[int]) -> dict[str, Tensor]:
        """Read sequences.

        Parameters
        ----------
        indices : sequence of int
            Which, in this order.

        Returns
        -------
        dict of str to Tensor
            ``input_ids``, ``attention_mask`` and ``labels``, int64 of shape (B, T).
        """
        tokens = torch.from_numpy(np.asarray(self.tokens[list(indices)], dtype=np.int64))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}

    def fingerprint(self) -> str:
        """Hash over ids, tokens and labels, in order: that of the same sequences in memory.

        Returns
        -------
        str
            Hexadecimal.
        """
        return fingerprint(
            Sequence(str(i), str(i), row, row)
            for first in range(0, len(self), _ROWS)
            for i, row in enumerate(self.tokens[first : first + _ROWS], first)
        )

    def extremes(self) -> Extremes:
        """Read all of them once.

        Returns
        -------
        Extremes
            Smallest and largest token, and T.
        """
        blocks = [self.tokens[first : first + _ROWS] for first in range(0, len(self), _ROWS)]
        return Extremes(min(int(b.min()) for b in blocks), max(int(b.max()) for b in blocks), int(self.tokens.shape[1]))
