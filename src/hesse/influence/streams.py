"""Data sets that are read in windows: streams that begin anew each time, and whatever is in memory already.

The engine asks for one window, the sequences of one unit of work, at a time; what was in memory before stays so.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.influence.examples import Examples, TokenExamples, as_sequence, check_sequence, plan_units
from hesse.influence.mapped import Extremes
from hesse.influence.sequences import Sequence, collate, fingerprint
from hesse.io import hash_bytes

__all__ = ["StreamExamples", "Window", "token_rows", "window"]

_STRIDE = 256  # sequences between two places of a file that are remembered
_WINDOW = 256  # sequences in memory where only their tokens are looked at


@dataclass(frozen=True, slots=True)
class Window:
    """Some sequences of a data set, in order, ready to be batched; numbers count from the first of them."""

    ids: Items[str]
    lengths: Items[int]  # tokens a sequence
    batch: Callable[[Items[int]], dict[str, Tensor]]  # collates these sequences of the window


def window(examples: Examples, numbers: Items[int]) -> Window:
    """Bring some sequences of a data set into memory, if it is not there already.

    Parameters
    ----------
    examples : Examples
        The data set. One with a method ``window(numbers)`` of its own is asked for it.
    numbers : sequence of int
        Which, in any order.

    Returns
    -------
    Window
        Of as many sequences, in that order.
    """
    own = getattr(examples, "window", None)
    if own is not None:
        return own(numbers)
    ids, lengths = examples.ids, examples.lengths
    return Window(
        [ids[i] for i in numbers],
        [lengths[i] for i in numbers],
        lambda indices: examples.batch([numbers[i] for i in indices]),
    )


def token_rows(examples: Examples, numbers: range, argument: str = "dataset") -> Iterator[np.ndarray]:
    """Read the tokens of some sequences, without padding.

    Parameters
    ----------
    examples : Examples
        Token sequences.
    numbers : range
        Which.
    argument : str, default "dataset"
        What an error calls them.

    Yields
    ------
    ndarray of int, shape (T,)
        One a sequence.

    Raises
    ------
    ArgumentError
        If they are no token sequences.
    """
    if isinstance(examples, TokenExamples):
        yield from (examples.sequences[i].input_ids for i in numbers)
        return
    for unit in plan_units(numbers.stop, _WINDOW, numbers.start):
        batch = window(examples, unit).batch(range(len(unit)))
        if "input_ids" not in batch:
            raise ArgumentError(f"{argument}: shared tokens are looked for, and these are no token sequences")
        mask = batch.get("attention_mask")
        for row, tokens in enumerate(batch["input_ids"]):
            yield (tokens if mask is None else tokens[mask[row].bool()]).numpy()


class StreamExamples:
    """Token sequences from a source that is read from its beginning as often as needed, a window in memory at a time.

    N is counted in a first reading, which also takes the fingerprint and, of a file, remembers where lines begin; or it
    is given, together with a name that stands for the content. Fitting reads the source twice more, scoring once, and
    refining once. Ids are not compared with each other, which would need all of them.

    Parameters
    ----------
    source : path, iterable or callable
        A ``.jsonl`` file whose rows hold ``input_ids``; an iterable that begins anew each time, such as a streamed data
        set of Hugging Face; or a function without arguments that returns an iterator. Items are what `as_examples`
        takes one by one.
    count : int, optional
        N, if it is known. Default: counted.
    name : str, optional
        Stands for the content in runs, if it is known; without it the content is hashed. Needed with ``count``.
    pad_id : int, default 0
        Fills padded positions; its value never enters a score.
    argument : str, default "dataset"
        What an error calls the data.

    Raises
    ------
    ArgumentError
        If the file is missing, the source is empty, only one of ``count`` and ``name`` is given, or ``count < 1``.
    ArgumentTypeError
        If the source is an iterator, which can be read only once, or none of these.

    Examples
    --------
    >>> stream = StreamExamples(lambda: iter([[1, 2, 3], [4, 5]]))
    >>> len(stream), list(stream.lengths)
    (2, [3, 2])
    """

    def __init__(
        self,
        source: Any,
        *,
        count: int | None = None,
        name: str | None = None,
        pad_id: int = 0,
        argument: str = "dataset",
    ) -> None:
        if (count is None) != (name is None):
            raise ArgumentError("count, name: a number that is given needs a name for the content, and a name a number")
        if count is not None and count < 1:
            raise ArgumentError(f"count: expected >= 1, got {count}")
        self.argument, self.pad_id = argument, pad_id
        self._path = Path(source) if isinstance(source, (str, Path)) else None
        self._source: Any = source
        if self._path is not None and not self._path.is_file():
            raise ArgumentError(f"{argument}: there is no file {self._path}")
        if self._path is None:
            if isinstance(source, Iterator):
                raise ArgumentTypeError(
                    f"{argument}: an iterator can be read only once, and fitting reads twice; pass a function that "
                    "returns a new one"
                )
            if not callable(source) and not isinstance(source, Iterable):
                raise ArgumentTypeError(
                    f"{argument}: expected a path, an iterable or a function, got {type(source).__name__}"
                )
        self._places = [0]  # of every _STRIDE-th line, as far as it was read
        self._reading: tuple[int, Iterator[Sequence]] | None = None
        self._extremes: Extremes | None = None
        if count is not None and name is not None:
            self._count, self._mark = count, hash_bytes(f"stream {count} {name}".encode())
        else:
            self._count = 0
            self._mark = fingerprint(self._counted())
            if self._count == 0:
                raise ArgumentError(f"{argument}: it holds no sequence")

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> list[str]:
        """One id a sequence: reads the source, and holds them all."""
        return [sequence.id for sequence in itertools.islice(self._from(0), len(self))]

    @property
    def rows(self) -> list[str]:
        """Every sequence is a row of its own."""
        return self.ids

    @property
    def lengths(self) -> list[int]:
        """Tokens a sequence: reads the source."""
        return [len(sequence) for sequence in itertools.islice(self._from(0), len(self))]

    def batch(self, indices: Items[int]) -> dict[str, Tensor]:
        """Collate into one batch; `window` is the cheaper way to many.

        Parameters
        ----------
        indices : sequence of int
            Which sequences, in this order.

        Returns
        -------
        dict of str to Tensor
            ``input_ids``, ``attention_mask`` and ``labels``.
        """
        return self.window(indices).batch(range(len(indices)))

    def fingerprint(self) -> str:
        """Hash over ids, tokens and labels, in order, or over the name that was given.

        Returns
        -------
        str
            Hexadecimal.
        """
        return self._mark

    def extremes(self) -> Extremes | None:
        """Tell what was seen in counting.

        Returns
        -------
        Extremes or None
            None if nothing was read to count.
        """
        return self._extremes

    def window(self, numbers: Items[int]) -> Window:
        """Read some sequences; going on from where the last window ended costs nothing, going back a new beginning.

        Parameters
        ----------
        numbers : sequence of int
            Which, in any order; the source is read from the least to the greatest of them.

        Returns
        -------
        Window
            Of as many sequences, in that order, in memory.

        Raises
        ------
        ArgumentError
            If the source ends before the last of them.
        """
        wanted = set(numbers)
        if not wanted:
            return _loaded([], self.pad_id)
        first, last = min(wanted), max(wanted)
        reading, self._reading = self._reading, None  # if this reading fails, nobody goes on from the midst of it
        if reading is None or not self._start_of(first) <= reading[0] <= first:
            reading = (self._start_of(first), self._from(self._start_of(first)))
        place, sequences = reading
        kept: dict[int, Sequence] = {}
        for sequence in itertools.islice(sequences, last + 1 - place):
            if place in wanted:
                kept[place] = sequence
            place += 1
        if place <= last:
            raise ArgumentError(f"count: {self.argument} ended after {place} sequences, expected {len(self)}")
        self._reading = (place, sequences)
        return _loaded([kept[number] for number in numbers], self.pad_id)

    def _start_of(self, number: int) -> int:
        # the last sequence at or before this one where reading can begin
        return 0 if self._path is None else _STRIDE * min(number // _STRIDE, len(self._places) - 1)

    def _from(self, first: int) -> Iterator[Sequence]:
        if self._path is not None:
            items = _json_lines(self._path, first, self._places)
        else:
            source: Any = self._source() if callable(self._source) else self._source
            items = iter(source)
        for number, item in enumerate(items, first):
            sequence = as_sequence(item, number, self.argument)
            check_sequence(sequence, self.argument)
            yield sequence

    def _counted(self) -> Iterator[Sequence]:
        lowest, highest, longest = np.iinfo(np.int64).max, -1, 0
        for sequence in self._from(0):
            self._count += 1
            lowest, highest = min(lowest, int(sequence.input_ids.min())), max(highest, int(sequence.input_ids.max()))
            longest = max(longest, len(sequence))
            yield sequence
        self._extremes = Extremes(int(lowest), highest, longest)


def _loaded(sequences: list[Sequence], pad_id: int) -> Window:
    return Window(
        [sequence.id for sequence in sequences],
        [len(sequence) for sequence in sequences],
        lambda indices: collate([sequences[i] for i in indices], pad_id),
    )


def _json_lines(path: Path, first: int, places: list[int]) -> Iterator[Any]:
    # objects from a line that is remembered on; remembers the places of lines that nobody has come to before
    number = first
    with path.open("rb") as file:
        file.seek(places[first // _STRIDE])
        while line := file.readline():
            if not line.strip():
                continue
            if number // _STRIDE == len(places) and number % _STRIDE == 0:
                places.append(file.tell() - len(line))
            try:
                yield json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise ArgumentError(f"{path}: sequence {number}: not a line of JSON ({error})") from error
            number += 1
