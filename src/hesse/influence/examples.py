"""A data set as the engine sees it: sequences with ids and lengths, cut into units and batches in one fixed order.

Units are contiguous runs of sequences, the grain of checkpoints; inside a unit sequences of like length share a batch.
"""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.influence.mapped import MappedExamples
from hesse.influence.rows import IGNORED, integers, read_rows
from hesse.influence.sequences import Sequence, collate, fingerprint
from hesse.io import hash_bytes, hash_tensors, open_array

__all__ = [
    "ArrayExamples",
    "Examples",
    "TokenExamples",
    "as_examples",
    "as_sequence",
    "check_sequence",
    "plan_batches",
    "plan_units",
    "refuse_duplicates",
    "split_targets",
]


class Examples(Protocol):
    """What the engine needs of a data set; write your own for inputs that are neither tokens nor arrays."""

    @property
    def ids(self) -> Items[str]:
        """One id a sequence."""
        ...

    @property
    def rows(self) -> Items[str]:
        """The id of the row each sequence was cut from."""
        ...

    @property
    def lengths(self) -> Items[int]:
        """Tokens a sequence, 1 without a time axis."""
        ...

    def __len__(self) -> int:
        """Count the sequences."""
        ...

    def batch(self, indices: Items[int]) -> dict[str, Tensor]:
        """Collate these sequences, in this order, into one batch with ``labels``."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that a score can depend on, order included."""
        ...


@dataclass(frozen=True)
class TokenExamples:
    """Token sequences, padded on either side or packed several to a row; a first token is never supervised."""

    sequences: list[Sequence]
    pad_id: int = 0
    side: str = "right"
    pack: bool = False
    argument: str = field(default="sequences", repr=False, compare=False)  # what an error calls them

    def __post_init__(self) -> None:
        if self.side not in ("left", "right"):
            raise ArgumentError(f"side: expected 'left' or 'right', got {self.side!r}")
        refuse_duplicates(self.ids, self.argument)
        for sequence in self.sequences:
            check_sequence(sequence, self.argument)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def ids(self) -> list[str]:
        """One id a sequence."""
        return self._lists[0]

    @property
    def rows(self) -> list[str]:
        """The id of the row each sequence was cut from."""
        return self._lists[1]

    @property
    def lengths(self) -> list[int]:
        """Tokens a sequence."""
        return self._lists[2]

    @cached_property
    def _lists(self) -> tuple[list[str], list[str], list[int]]:
        # read in every batch, so made once
        return (
            [s.id for s in self.sequences],
            [s.row for s in self.sequences],
            [len(s.input_ids) for s in self.sequences],
        )

    def batch(self, indices: Items[int]) -> dict[str, Tensor]:
        """Collate into one batch.

        Parameters
        ----------
        indices : sequence of int
            Which sequences, in this order.

        Returns
        -------
        dict of str to Tensor
            ``input_ids``, ``attention_mask``, ``labels``, and what packing or left padding needs.
        """
        chosen = [self.sequences[i] for i in indices]
        if self.pack:
            return _packed(chosen)
        batch = collate(chosen, self.pad_id, self.side)
        if self.side == "left":  # else padding would be asked to predict a first token
            starts = torch.tensor([batch["labels"].shape[1] - len(s.labels) for s in chosen])
            batch["labels"][torch.arange(len(chosen)), starts] = IGNORED
        return batch

    def fingerprint(self) -> str:
        """Hash over ids, tokens and labels, in order.

        Returns
        -------
        str
            Hexadecimal.
        """
        return fingerprint(self.sequences)


@dataclass(frozen=True)
class ArrayExamples:
    """Inputs and labels as arrays: the T = 1 case."""

    inputs: Tensor  # (N, ...)
    labels: Tensor  # (N,) or (N, V)
    ids: list[str]
    argument: str = field(default="inputs", repr=False, compare=False)  # what an error calls them

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels) or len(self.ids) != len(self.labels):
            raise ShapeError(
                f"{self.argument}: {len(self.inputs)} inputs, {len(self.labels)} labels and {len(self.ids)} ids do not "
                "match"
            )
        refuse_duplicates(self.ids, self.argument)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def rows(self) -> list[str]:
        """Every example is a row of its own."""
        return self.ids

    @property
    def lengths(self) -> list[int]:
        """One position each."""
        return [1] * len(self.labels)

    def batch(self, indices: Items[int]) -> dict[str, Tensor]:
        """Select examples.

        Parameters
        ----------
        indices : sequence of int
            Which, in this order.

        Returns
        -------
        dict of str to Tensor
            ``inputs`` and ``labels``.
        """
        chosen = torch.as_tensor(list(indices))
        return {"inputs": self.inputs[chosen], "labels": self.labels[chosen]}

    def fingerprint(self) -> str:
        """Hash over ids, inputs and labels, in order.

        Returns
        -------
        str
            Hexadecimal.
        """
        content = hash_tensors({"inputs": self.inputs.detach(), "labels": self.labels.detach()})
        return hash_bytes("\0".join([*self.ids, content]).encode())


def as_examples(dataset: Any, *, pad_id: int = 0, argument: str = "dataset") -> Examples:
    """Wrap what users have: `Sequence` objects, token ids in many forms, a pair (inputs, labels), or an `Examples`.

    Parameters
    ----------
    dataset : object
        Mappings with ``input_ids``, a Hugging Face data set of them included; they may carry ``id``, ``labels``
        (default: every token) and ``attention_mask`` (zeros are cut off). Arrays or lists of token ids, or one array
        (N, T) of them, such as a memory map; every token but a first one is then supervised, and ids are numbers. The
        path of such an array as .npy, or of rows that `read_rows` reads and that hold ``input_ids``. A pair of tensors.
    pad_id : int, default 0
        Fills padded positions; its value never enters a score.
    argument : str, default "dataset"
        What an error calls the data.

    Returns
    -------
    data : Examples
        Ready for the engine.

    Raises
    ------
    ArgumentError
        If it is empty or ids repeat.
    ArgumentTypeError
        If it is none of these.
    """
    if hasattr(dataset, "batch") and hasattr(dataset, "fingerprint"):
        examples: Examples = dataset
    elif isinstance(dataset, tuple) and len(dataset) == 2 and all(isinstance(part, Tensor) for part in dataset):
        examples = ArrayExamples(dataset[0], dataset[1], [str(i) for i in range(len(dataset[0]))], argument)
    elif isinstance(dataset, np.memmap) and dataset.ndim == 2 and argument == "dataset":
        examples = MappedExamples(dataset, argument)  # queries are few, and may be cut into their tokens
    elif isinstance(dataset, (str, Path)):
        examples = as_examples(_open(Path(dataset), argument), pad_id=pad_id, argument=argument)
    else:
        items = list(_iterable(dataset, argument))
        examples = TokenExamples(
            [as_sequence(item, i, argument) for i, item in enumerate(items)], pad_id, argument=argument
        )
    if len(examples) == 0:
        raise ArgumentError(f"{argument}: it holds no sequence")
    return examples


def split_targets(examples: Examples, *, argument: str = "queries") -> TokenExamples:
    """Make one sequence of each supervised token, in which no other is supervised.

    Parameters
    ----------
    examples : Examples
        Token sequences.
    argument : str, default "queries"
        What an error calls them.

    Returns
    -------
    TokenExamples
        Those of "a" are called "a@3", "a@4", ... by position, and have its row; in the order of ``examples``.

    Raises
    ------
    ArgumentError
        If they are no `TokenExamples`.
    """
    if not isinstance(examples, TokenExamples):
        raise ArgumentError(f"per_query_token: {argument} have no tokens to tell apart")
    parts = []
    for sequence in examples.sequences:
        for place in np.flatnonzero(np.asarray(sequence.labels[1:]) != IGNORED) + 1:
            labels = np.full_like(sequence.labels, IGNORED)
            labels[place] = sequence.labels[place]
            parts.append(replace(sequence, id=f"{sequence.id}@{place}", labels=labels))
    return replace(examples, sequences=parts, argument=argument)


def plan_units(total: int, unit_size: int, start: int = 0) -> list[range]:
    """Cut a data set into contiguous ranges.

    Parameters
    ----------
    total : int
        Number of sequences.
    unit_size : int
        Sequences a range.
    start : int, default 0
        The first that is left to do.

    Returns
    -------
    list of range
        The last may be shorter.

    Raises
    ------
    ArgumentError
        If ``unit_size < 1``.
    """
    if unit_size < 1:
        raise ArgumentError(f"unit_size: expected >= 1, got {unit_size}")
    return [range(first, min(first + unit_size, total)) for first in range(start, total, unit_size)]


def plan_batches(
    lengths: Items[int], unit: range, batch_tokens: int, batch_size: int | None = None
) -> Iterator[list[int]]:
    """Batch a unit, longest first, so that little is padded: as many as fit ``batch_tokens``, or ``batch_size``.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of every sequence of the data set.
    unit : range
        The sequences to batch.
    batch_tokens : int
        Budget of padded tokens a batch; a single longer sequence is a batch of its own.
    batch_size : int, optional
        A fixed number of sequences a batch instead; only the last of a unit may hold fewer.

    Yields
    ------
    list of int
        Sequence numbers of one batch.
    """
    batch: list[int] = []
    for index in sorted(unit, key=lambda i: (-lengths[i], i)):
        longest = lengths[batch[0]] if batch else 0
        if batch and (
            len(batch) == batch_size if batch_size is not None else longest * (len(batch) + 1) > batch_tokens
        ):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def refuse_duplicates(ids: list[str], argument: str) -> None:
    """Refuse ids of which one stands twice.

    Parameters
    ----------
    ids : list of str
        As given.
    argument : str
        What an error calls the data.

    Raises
    ------
    ArgumentError
        Naming it.
    """
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ArgumentError(f"{argument}: the id {name!r} occurs twice")
        seen.add(name)


def _open(path: Path, argument: str) -> Any:
    # a file that needs no tokenizer; rows of text are for `tokenize_rows`, which has one
    if path.suffix.lower() == ".npy":
        return open_array(path)
    rows = read_rows(path)
    for row in rows:
        if row.get("input_ids") is None:
            raise ArgumentError(
                f"{argument}: row {row['id']!r} of {path} has no input_ids; read and tokenise texts with "
                "tokenize_rows(read_rows(path), tokenizer, max_length)"
            )
    return rows


def _iterable(dataset: Any, argument: str) -> Iterable[Any]:
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not hasattr(dataset, "__iter__"):
        return (dataset[i] for i in range(len(dataset)))  # a map-style data set of torch
    if isinstance(dataset, Mapping) or not isinstance(dataset, (Iterable, np.ndarray, Tensor)):
        raise ArgumentTypeError(
            f"{argument}: expected Sequence objects, mappings with input_ids, arrays of token ids, or a pair of "
            f"tensors; got {type(dataset).__name__}"
        )
    return dataset


def as_sequence(item: Any, number: int, argument: str) -> Sequence:
    """Read one item of a data set.

    Parameters
    ----------
    item : Sequence, mapping with ``input_ids``, or token ids
        As `as_examples` takes it.
    number : int
        Its place, which is its id if it has none.
    argument : str
        What an error calls the data.

    Returns
    -------
    Sequence
        Its lengths not yet compared.

    Raises
    ------
    ArgumentTypeError
        If it is none of these.
    """
    if isinstance(item, Sequence):
        return item
    if isinstance(item, Mapping) and "input_ids" in item:
        return _from_mapping(item, number, argument)
    if isinstance(item, (list, tuple, np.ndarray, Tensor)):
        return _from_mapping({"input_ids": item}, number, argument)
    raise ArgumentTypeError(
        f"{argument}: expected Sequence objects, mappings with input_ids, arrays of token ids, or a pair of tensors; "
        f"got items of type {type(item).__name__}"
    )


def check_sequence(sequence: Sequence, argument: str) -> None:
    """Refuse a sequence without tokens, or with other than one label a token.

    Parameters
    ----------
    sequence : Sequence
        As read.
    argument : str
        What an error calls the data.

    Raises
    ------
    ArgumentError
        If it is empty.
    ShapeError
        If the lengths differ.
    """
    if len(sequence.input_ids) == 0:
        raise ArgumentError(f"{argument}: sequence {sequence.id!r} is empty")
    if len(sequence.input_ids) != len(sequence.labels):
        raise ShapeError(
            f"{argument}: sequence {sequence.id!r} has {len(sequence.input_ids)} tokens but {len(sequence.labels)} "
            "labels"
        )


def _from_mapping(item: Mapping[str, Any], number: int, argument: str) -> Sequence:
    name = str(item.get("id", number))
    tokens = integers(item["input_ids"], f"{argument}: input_ids of sequence {name!r}")
    labels = tokens if item.get("labels") is None else item["labels"]
    labels = integers(labels, f"{argument}: labels of sequence {name!r}")
    mask = item.get("attention_mask")
    if mask is not None and len(labels) == len(tokens):  # else the lengths are reported, where all are checked
        kept = np.asarray(mask, dtype=bool)
        if kept.shape != tokens.shape:
            raise ShapeError(
                f"{argument}: sequence {name!r} has {len(tokens)} tokens but an attention_mask of shape {kept.shape}"
            )
        tokens, labels = tokens[kept], labels[kept]
    extra = {
        key: value for key, value in item.items() if key not in ("id", "input_ids", "labels", "attention_mask", "text")
    }
    return Sequence(name, name, tokens, labels, item.get("text"), None, extra)


def _packed(chosen: list[Sequence]) -> dict[str, Tensor]:
    # all in one row, each attending to itself only, its positions counted from zero, its first token unsupervised
    tokens = torch.from_numpy(np.concatenate([s.input_ids for s in chosen]))[None]
    labels = torch.from_numpy(np.concatenate([np.concatenate([[-100], s.labels[1:]]) for s in chosen]))[None]
    lengths = torch.tensor([len(s.input_ids) for s in chosen])
    segments = torch.repeat_interleave(torch.arange(len(chosen)), lengths)
    positions = torch.cat([torch.arange(int(n)) for n in lengths])
    total = len(segments)
    allowed = (segments[:, None] == segments[None, :]) & torch.ones(total, total, dtype=torch.bool).tril()
    return {
        "input_ids": tokens,
        "labels": labels,
        "position_ids": positions[None],
        "attention_mask": allowed[None, None],
        "segment_ids": segments[None],
    }
