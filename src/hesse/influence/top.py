"""The strongest proponents and opponents of every query, kept while scores stream past: O(QK) in place of Q x N.

Shapes: Q queries, K rows kept of each sign, n sequences at a time.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.influence.examples import Examples, plan_units
from hesse.influence.mapped import MappedExamples
from hesse.influence.streams import window

__all__ = ["TopRows", "plan_row_units", "row_names", "row_starts", "strongest", "with_refined"]


@dataclass(slots=True)
class TopRows:
    """The best K rows so far, proponents at [:, 0] and opponents at [:, 1], each strongest first, then by number.

    A row is known by the number of its first sequence, -1 where fewer than K have been seen. Which rows are kept does
    not depend on the order in which they came.
    """

    values: np.ndarray  # (Q, 2, K) scores
    numbers: np.ndarray  # (Q, 2, K) int64

    @classmethod
    def empty(cls, queries: int, count: int, dtype: type[np.floating]) -> "TopRows":
        """Begin with no row.

        Parameters
        ----------
        queries : int
            Q.
        count : int
            K.
        dtype : dtype
            Of the scores.

        Returns
        -------
        TopRows
            Holding nothing.
        """
        shape = (queries, 2, count)
        return cls(np.zeros(shape, dtype=dtype), np.full(shape, -1, dtype=np.int64))

    @property
    def count(self) -> int:
        """K."""
        return self.values.shape[2]

    def add(self, scores: np.ndarray, numbers: np.ndarray) -> None:
        """Let further rows compete.

        Parameters
        ----------
        scores : ndarray, shape (Q, n)
            Of rows that were not added before.
        numbers : ndarray of int, shape (n,)
            Their first sequences.
        """
        for place, sign in enumerate((1, -1)):
            self._compete(place, sign, scores, np.broadcast_to(numbers, scores.shape))

    def merge(self, other: "TopRows") -> None:
        """Let what somebody else kept compete.

        Parameters
        ----------
        other : TopRows
            Of other rows, for the same queries.
        """
        for place, sign in enumerate((1, -1)):
            self._compete(place, sign, other.values[:, place], other.numbers[:, place])

    def clear(self) -> None:
        """Begin again with no row."""
        self.values.fill(0)
        self.numbers.fill(-1)

    def _compete(self, place: int, sign: int, scores: np.ndarray, numbers: np.ndarray) -> None:
        values = np.concatenate([self.values[:, place], scores], 1)
        names = np.concatenate([self.numbers[:, place], numbers], 1)
        keys = np.where(names < 0, np.inf, -sign * values.astype(np.float64))
        order = np.lexsort((names, keys), axis=1)[:, : self.count]
        self.values[:, place] = np.take_along_axis(values, order, 1)
        self.numbers[:, place] = np.take_along_axis(names, order, 1)

    def tensors(self) -> dict[str, Tensor]:
        """Name the parts as a file does.

        Returns
        -------
        dict of str to Tensor
            "values" and "numbers".
        """
        return {"values": torch.from_numpy(self.values), "numbers": torch.from_numpy(self.numbers)}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "TopRows":
        """Read back `tensors`.

        Parameters
        ----------
        tensors : dict of str to Tensor
            As saved.

        Returns
        -------
        TopRows
            In memory of its own.
        """
        return cls(tensors["values"].numpy().copy(), tensors["numbers"].numpy().copy())


def row_starts(examples: Examples) -> np.ndarray | None:
    """Find the first sequence of every row.

    Parameters
    ----------
    examples : Examples
        Sequences; of those that are not in memory each is a row.

    Returns
    -------
    ndarray of int, or None
        Rising; None if every sequence is a row of its own.

    Raises
    ------
    ArgumentError
        If the sequences of a row do not stand together.
    """
    if hasattr(examples, "window") or isinstance(examples, MappedExamples):
        return None
    rows = examples.rows
    starts = [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1]]
    if len(starts) == len(rows):
        return None
    seen: set[str] = set()
    for i in starts:
        if rows[i] in seen:
            raise ArgumentError(f"top_k: the sequences of row {rows[i]!r} do not stand together; sort them by row")
        seen.add(rows[i])
    return np.array(starts)


def row_names(examples: Examples, numbers: Items[int]) -> list[str]:
    """Name rows by their first sequences.

    Parameters
    ----------
    examples : Examples
        Sequences.
    numbers : sequence of int
        Rising.

    Returns
    -------
    list of str
        Ids of rows.
    """
    if hasattr(examples, "window"):
        return list(window(examples, numbers).ids)
    rows = examples.rows
    return [rows[number] for number in numbers]


def plan_row_units(total: int, unit_size: int, start: int, starts: np.ndarray | None) -> list[range]:
    """Cut a data set into contiguous ranges that cut no row, so that a row's score is known when its unit is done.

    Parameters
    ----------
    total : int
        Number of sequences.
    unit_size : int
        Sequences a range, about.
    start : int
        The first that is left to do, and of its row.
    starts : ndarray of int, optional
        First sequence of every row. Default: every sequence is one.

    Returns
    -------
    list of range
        From ``start`` on. They end where they would without what is done, so that a restart makes the same ones, and
        begin at ``start`` even where it was reached in units of another size.
    """
    units = plan_units(total, unit_size)
    if starts is not None:
        # every end moves on to where a row ends
        after = np.searchsorted(starts, [unit.stop for unit in units])
        ends = [int(starts[i]) if i < len(starts) else total for i in after]
        edges = list(dict.fromkeys([0, *ends]))
        units = [range(a, b) for a, b in pairwise(edges)]
    return [range(max(start, unit.start), unit.stop) for unit in units if unit.stop > start]


def strongest(best: TopRows, starts: np.ndarray | None, total: int, count: int) -> dict[int, np.ndarray]:
    """List the sequences of the leading rows, to be scored again.

    Parameters
    ----------
    best : TopRows
        Of the first pass.
    starts : ndarray of int, optional
        First sequence of every row. Default: every sequence is one.
    total : int
        Number of sequences.
    count : int
        Rows of each sign, a query.

    Returns
    -------
    dict of int to ndarray of int
        Sequence numbers by query, rising.
    """
    edges = None if starts is None else np.append(starts, total)
    out = {}
    for q in range(len(best.values)):
        first = np.unique(best.numbers[q, :, :count])
        first = first[first >= 0]
        if starts is not None and edges is not None:
            places = np.searchsorted(starts, first)
            first = np.concatenate([np.arange(edges[i], edges[i + 1]) for i in places])
        out[q] = first
    return out


def with_refined(
    best: TopRows, starts: np.ndarray | None, refined: Items[tuple[int, np.ndarray, np.ndarray]], count: int
) -> TopRows:
    """Put refined scores in the place of those of the first pass, and keep the best.

    Parameters
    ----------
    best : TopRows
        Of the first pass, with as many rows more than ``count`` as were refined.
    starts : ndarray of int, optional
        First sequence of every row. Default: every sequence is one.
    refined : sequence of (query, sequence numbers, values)
        May be empty.
    count : int
        Rows of each sign to keep.

    Returns
    -------
    TopRows
        Those that the whole matrix of scores would show.
    """
    better = {q: (numbers, values) for q, numbers, values in refined}
    out = TopRows.empty(len(best.values), count, best.values.dtype.type)
    for q in range(len(best.values)):
        flat = best.numbers[q].reshape(-1)
        numbers, where = np.unique(flat, return_index=True)
        values = best.values[q].reshape(-1)[where].copy()
        if q in better:
            sequences, scores = better[q]
            first = sequences if starts is None else starts[np.searchsorted(starts, sequences, side="right") - 1]
            rows, inverse = np.unique(first, return_inverse=True)
            sums = np.zeros(len(rows), dtype=values.dtype)
            np.add.at(sums, inverse, scores)
            values[np.searchsorted(numbers, rows)] = sums
        known = numbers >= 0
        one = TopRows(out.values[q : q + 1], out.numbers[q : q + 1])
        one.add(values[None, known], numbers[known])
        out.values[q], out.numbers[q] = one.values[0], one.numbers[0]
    return out
