"""Was the completion copied? Runs of words that it shares, letter by letter, with its strongest proponents."""

from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence.opened import Run
from hesse.influence.plots import BLUE, ORANGE, axes_or_new
from hesse.influence.studies.texts import asked_of, row_texts, texts_of, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Copied", "MemorisationStudy", "QueryCopies", "longest_common_run", "study_memorisation"]


@dataclass(frozen=True, slots=True)
class Copied:
    """A proponent that holds a run of the completion's words."""

    row: str
    rank: int
    score: float  # nats
    words: int  # length of the longest run
    text: str  # the run, words joined by a space


@dataclass(frozen=True, slots=True)
class QueryCopies:
    """What a completion shares with its proponents."""

    query: str
    num_words: int  # of the completion
    num_rows: int  # proponents looked at
    threshold: int  # words from which a run is flagged
    covered: float  # share of the completion's words that lie in a flagged run of any of the rows
    copies: list[Copied]  # flagged rows, longest run first

    @property
    def flagged(self) -> bool:
        """Whether any proponent holds a run of the threshold's length."""
        return bool(self.copies)


@dataclass(frozen=True, slots=True)
class MemorisationStudy:
    """Verbatim overlap of completions with their proponents."""

    queries: list[QueryCopies]
    min_words: int
    k: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python.

        Returns
        -------
        dict
            JSON values.
        """
        queries = [{**asdict(query), "flagged": query.flagged} for query in self.queries]
        return {"study": "memorisation", "k": self.k, "min_words": self.min_words, "queries": queries}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the share of each completion that its proponents hold verbatim.

        Parameters
        ----------
        ax : Axes, optional
            Default: new ones.

        Returns
        -------
        Axes
            A bar a query, orange where nothing is new in it.
        """
        axes = axes_or_new(ax)
        covered = [query.covered for query in self.queries]
        axes.barh(range(len(covered)), covered, color=[ORANGE if share == 1 else BLUE for share in covered])
        axes.set(yticks=range(len(covered)), yticklabels=[query.query for query in self.queries], xlim=(0, 1))
        axes.set(xlabel=f"share of the completion found verbatim in its {self.k} strongest rows")
        axes.invert_yaxis()
        return axes


def study_memorisation(run: Run, *, k: int = 100, min_words: int = 8) -> MemorisationStudy:
    """Flag queries whose strongest proponents hold a run of at least ``min_words`` words of the completion.

    Words and marks are compared letter by letter; white space does not count.

    Parameters
    ----------
    run : Run
        Scored, with texts kept.
    k : int, default 100
        Proponents a query.
    min_words : int, default 8
        Shorter runs are common by chance in a language. A completion of fewer words is flagged where all of it is
        found; for one of a word or two, which many rows hold, that says little.

    Returns
    -------
    MemorisationStudy
        A query each.

    Raises
    ------
    ArgumentError
        If ``min_words < 1``, ``k < 1``, or the run keeps no texts.

    Notes
    -----
    O(completion · row) word comparisons a pair. What it finds was there to be copied; that it was copied, and not said
    for another reason, it does not prove.
    """
    if min_words < 1:
        raise ArgumentError(f"min_words: expected >= 1, got {min_words}")
    corpus, found = texts_of(run, "study_memorisation"), []
    for asked in asked_of(run, "study_memorisation"):
        spoken = words(asked.completion)
        threshold = max(1, min(min_words, len(spoken)))
        ranked = run.scores.topk(asked.id, k)
        texts = row_texts(corpus, [item.id for item in ranked], "study_memorisation")
        covered = np.zeros(len(spoken), dtype=bool)
        copies = []
        for item, text in zip(ranked, texts, strict=True):
            ending = _run_ends(spoken, words(text))
            for stop in np.flatnonzero(ending >= threshold):
                covered[stop + 1 - ending[stop] : stop + 1] = True
            longest = int(ending.max(initial=0))
            if longest >= threshold:
                stop = int(ending.argmax()) + 1
                copies.append(Copied(item.id, item.rank, item.score, longest, " ".join(spoken[stop - longest : stop])))
        copies.sort(key=lambda copy: (-copy.words, copy.rank))
        share = float(covered.mean()) if len(spoken) else 0.0
        found.append(QueryCopies(asked.id, len(spoken), len(ranked), threshold, share, copies))
    return MemorisationStudy(found, min_words, k)


def longest_common_run(first: Items[str], second: Items[str]) -> int:
    """Count the words of the longest run that two texts share.

    Parameters
    ----------
    first, second : sequence of str
        Words.

    Returns
    -------
    int
        0 if they share none.
    """
    return int(_run_ends(first, second).max(initial=0))


def _run_ends(first: Items[str], second: Items[str]) -> np.ndarray:
    # for each word of the first, the length of the longest run that ends there and stands in the second too
    number = {word: i for i, word in enumerate(dict.fromkeys(first))}
    theirs = np.array([number.get(word, -1) for word in second], dtype=np.int64)
    ends = np.zeros(len(first), dtype=np.int64)
    before = np.zeros(len(second) + 1, dtype=np.int64)
    for i, word in enumerate(first):
        now = np.zeros_like(before)
        now[1:] = np.where(theirs == number[word], before[:-1] + 1, 0)
        ends[i], before = now.max(initial=0), now
    return ends
