"""Chooses what is scored: the leading sequences of every query, and a random slice of the others.

Shapes: Q queries, N sequences in R rows; n sequences in r rows are chosen.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.influence.examples import Examples
from hesse.influence.gradients import collated
from hesse.influence.prefilter.index import TokenIndex
from hesse.influence.prefilter.ranking import Method, rank
from hesse.influence.streams import Window, token_rows, window
from hesse.influence.top import row_names, row_starts

__all__ = ["Choice", "ChosenExamples", "Prefilter", "choose", "chosen_examples"]


@dataclass(frozen=True, slots=True)
class Prefilter:
    """Score only sequences that share rare tokens with a query, and a random slice of the others.

    A filter by words is biased: influence across wordings and languages is what it misses. The slice says how much.

    Parameters
    ----------
    method : {"bm25", "tfidf_paper"}, default "bm25"
        "bm25" weighs repetition and length, "tfidf_paper" only which tokens are shared.
    top : int, default 10,000
        Sequences kept a query; those of all queries are scored for each.
    random : int, default 1,000
        Rows drawn evenly from all others; 0 leaves nothing to estimate from.
    seed : int, default 0
        Of that draw.
    """

    method: Method = "bm25"
    top: int = 10_000
    random: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("bm25", "tfidf_paper"):
            raise ArgumentError(f"prefilter: expected 'bm25' or 'tfidf_paper', got {self.method!r}")
        if self.top < 1 or self.random < 0 or self.seed < 0:
            raise ArgumentError(
                f"prefilter: expected top >= 1, random >= 0 and seed >= 0, got {self.top}, {self.random}, {self.seed}"
            )


@dataclass(frozen=True, slots=True)
class Choice:
    """Which sequences are scored; of a row either all are, or none."""

    numbers: np.ndarray  # (n,) int64 sequences, rising
    drawn: np.ndarray  # (r,) bool: rows, in the same order, that only the random slice brought in
    num_rows: int  # R

    def tensors(self) -> dict[str, Tensor]:
        """Name the parts as a file does.

        Returns
        -------
        dict of str to Tensor
            "numbers" and "drawn".
        """
        return {"numbers": torch.from_numpy(self.numbers), "drawn": torch.from_numpy(self.drawn)}


def choose(index: TokenIndex, queries: Examples, examples: Examples, prefilter: Prefilter) -> Choice:
    """Rank, take the union over queries with the rows they are of, and draw the random slice from the rest.

    Parameters
    ----------
    index : TokenIndex
        Of ``examples``.
    queries : Examples
        Token sequences: prompt and completion both count.
    examples : Examples
        Candidates.
    prefilter : Prefilter
        What to keep.

    Returns
    -------
    Choice
        A function of the arguments alone.

    Raises
    ------
    ArgumentError
        If the queries are no token sequences, nothing is chosen, or the sequences of a row do not stand together.
    """
    asked = list(token_rows(queries, range(len(queries)), "queries"))
    found = rank(index, asked, prefilter.top, method=prefilter.method)
    kept = np.unique(np.concatenate([numbers for numbers, _values in found]))
    starts = row_starts(examples)
    if starts is None:
        total, rows = len(examples), kept
    else:
        total, rows = len(starts), np.unique(np.searchsorted(starts, kept, side="right") - 1)
    others = total - len(rows)
    drawn = np.zeros(0, dtype=np.int64)
    if prefilter.random and others:
        places = np.random.default_rng(prefilter.seed).choice(others, min(prefilter.random, others), replace=False)
        drawn = _outside(rows, np.sort(places))
    both = np.concatenate([rows, drawn])
    if not len(both):
        raise ArgumentError("prefilter: no sequence shares a token with a query, and no random slice was asked for")
    order = np.argsort(both)
    is_drawn = (np.arange(len(both)) >= len(rows))[order]
    numbers = both[order]
    if starts is not None:
        edges = np.append(starts, len(examples))
        numbers = np.concatenate([np.arange(edges[row], edges[row + 1]) for row in numbers])
    return Choice(numbers.astype(np.int64), is_drawn, total)


def _outside(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    # the numbers of the i-th rows that are not among ``rows``: before rows[j] there are rows[j] - j of them
    return places + np.searchsorted(rows - np.arange(len(rows)), places, side="right")


@dataclass(frozen=True)
class ChosenExamples:
    """Some sequences of a data set in memory."""

    examples: Examples
    numbers: np.ndarray  # (n,) int64, rising

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def ids(self) -> list[str]:
        """One id a sequence."""
        return self._lists[0]

    @property
    def rows(self) -> list[str]:
        """The id of the row each was cut from."""
        return self._lists[1]

    @property
    def lengths(self) -> list[int]:
        """Tokens a sequence."""
        return self._lists[2]

    @cached_property
    def _lists(self) -> tuple[list[str], list[str], list[int]]:
        numbers = self.numbers.tolist()
        chosen = window(self.examples, numbers)
        return list(chosen.ids), row_names(self.examples, numbers), list(chosen.lengths)

    def batch(self, indices: Items[int]) -> dict[str, Tensor]:
        """Collate into one batch.

        Parameters
        ----------
        indices : sequence of int
            Places among the chosen ones, in this order.

        Returns
        -------
        dict of str to Tensor
            As of the whole data set.
        """
        return collated(self.examples, self.numbers[list(indices)].tolist(), torch.device("cpu"))

    def fingerprint(self) -> str:
        """Return that of the whole data set: which part is chosen is written beside it.

        Returns
        -------
        str
            Hexadecimal.
        """
        return self.examples.fingerprint()


class ChosenStream(ChosenExamples):
    """Some sequences of a data set that is read in windows."""

    def window(self, numbers: Items[int]) -> Window:
        """Bring some of the chosen ones into memory.

        Parameters
        ----------
        numbers : sequence of int
            Places among them, rising.

        Returns
        -------
        Window
            Of as many sequences.
        """
        return window(self.examples, self.numbers[list(numbers)].tolist())


def chosen_examples(examples: Examples, numbers: np.ndarray) -> ChosenExamples:
    """Take some sequences of a data set.

    Parameters
    ----------
    examples : Examples
        All.
    numbers : ndarray of int, shape (n,)
        Which, rising.

    Returns
    -------
    ChosenExamples
        Read in windows where the data set is.
    """
    kind = ChosenStream if hasattr(examples, "window") else ChosenExamples
    return kind(examples, numbers)
