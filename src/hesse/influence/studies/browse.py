"""What kind of texts are these? The strongest rows of a query, copies collapsed, with what they have in common.

Common is what stands out against the rest of the data: values of metadata, and words that the rows use more often.
"""

from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence.opened import Run
from hesse.influence.plots import BLUE, ORANGE, axes_or_new
from hesse.influence.studies._duplicates import duplicate_groups
from hesse.influence.studies.texts import row_texts, texts_of, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Browsing", "Listed", "WordContrast", "browse", "contrast_words"]


@dataclass(frozen=True, slots=True)
class Listed:
    """One line: a row, and the rows that say nearly the same."""

    row: str
    rank: int
    score: float  # nats, of the row alone
    group_score: float  # nats, with its copies: they share an influence between them
    text: str
    copies: list[str]


@dataclass(frozen=True, slots=True)
class WordContrast:
    """A word, and how much more often the strongest rows use it than a random sample does."""

    word: str
    in_top: int
    in_sample: int
    z: float  # log odds ratio over its standard error


@dataclass(frozen=True, slots=True)
class Browsing:
    """The strongest rows of a query and what sets them apart."""

    query: str
    listed: list[Listed]
    metadata: dict[str, list[tuple[str, int, int]]]  # key -> (value, rows among the strongest, rows in all)
    words: list[WordContrast]  # the most typical first, then the least
    num_rows: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python.

        Returns
        -------
        dict
            JSON values.
        """
        counts = {
            key: [{"value": value, "top": top, "all": everywhere} for value, top, everywhere in values]
            for key, values in self.metadata.items()
        }
        return {
            "study": "browse",
            "units": "nats",
            "id": self.query,
            "rows": self.num_rows,
            "listed": [asdict(item) for item in self.listed],
            "metadata": counts,
            "words": [asdict(word) for word in self.words],
        }

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the words that the strongest rows use more, and less, than a random sample.

        Parameters
        ----------
        ax : Axes, optional
            Default: new ones.

        Returns
        -------
        Axes
            A bar a word, in standard errors.
        """
        axes = axes_or_new(ax)
        sizes = [word.z for word in self.words]
        axes.barh(range(len(sizes)), sizes, color=[BLUE if z > 0 else ORANGE for z in sizes])
        axes.set(yticks=range(len(sizes)), yticklabels=[word.word for word in self.words])
        axes.set(xlabel="log odds against a random sample, standard errors")
        axes.invert_yaxis()
        return axes


def browse(
    run: Run,
    query: int | str = 0,
    *,
    k: int = 50,
    sign: int = 1,
    duplicates: float = 0.8,
    num_words: int = 20,
    sample: int = 1000,
    seed: int = 0,
) -> Browsing:
    """List the strongest rows of a query without near-copies, and say what sets them apart from a random sample.

    Parameters
    ----------
    run : Run
        Scored, with texts kept.
    query : int or str, default 0
        Number or id.
    k : int, default 50
        Rows, before near-copies are collapsed.
    sign : {1, -1}, default 1
        Proponents or opponents.
    duplicates : float, default 0.8
        Resemblance, by three-word shingles, from which rows count as copies.
    num_words : int, default 20
        Words shown, half of them typical and half untypical.
    sample : int, default 1000
        Random rows that words are contrasted with.
    seed : int, default 0
        Of the sample.

    Returns
    -------
    Browsing
        Metadata are those whose values repeat: with a value of its own for every row, a key counts nothing.

    Raises
    ------
    ArgumentError
        If the query is unknown, a number is out of range, or the run keeps no texts.

    Notes
    -----
    Reads the metadata of all rows and the texts of k + ``sample``: O(R) small reads; O(k²) for near-copies.

    References
    ----------
    B. L. Monroe, M. P. Colaresi, K. M. Quinn (2008), Fightin' Words, Political Analysis 16(4).
    """
    if num_words < 0 or sample < 1:
        raise ArgumentError(f"browse: expected num_words >= 0 and sample >= 1, got {num_words} and {sample}")
    scores, corpus = run.scores, texts_of(run, "browse")
    ranked = scores.topk(query, k, sign)
    name = query if isinstance(query, str) else scores.query_ids[query]
    texts = row_texts(corpus, [item.id for item in ranked], "browse")
    groups = duplicate_groups(texts, duplicates)
    listed = []
    for first in dict.fromkeys(groups.tolist()):
        own = [item for item, group in zip(ranked, groups, strict=True) if group == first]
        total = float(sum(item.score for item in own))
        head = own[0]
        listed.append(Listed(head.id, head.rank, head.score, total, texts[first], [item.id for item in own[1:]]))
    ids = scores.train_ids
    drawn = np.random.default_rng([seed, 6]).permutation(len(ids))[:sample]
    others = row_texts(corpus, [ids[i] for i in sorted(drawn.tolist())], "browse")
    contrast = contrast_words(texts, others)
    shown = contrast if len(contrast) <= num_words else _both_ends(contrast, num_words)
    metadata = {row: corpus.metadata(corpus.sequences_of(row)[0]) for row in ids}
    return Browsing(name, listed, _counts(metadata, [item.id for item in ranked]), shown, len(ids))


def contrast_words(top: Items[str], sample: Items[str]) -> list[WordContrast]:
    """Log odds of each word in the first texts over the second ones, divided by its standard error.

    With y of n words in one group, prior counts α_w proportional to both groups together and α_0 = Σ α_w,
    δ_w = log (y + α_w)/(n + α_0 - y - α_w) - the same of the other group, z_w = δ_w / √(1/(y + α_w) + 1/(y' + α_w)).

    Parameters
    ----------
    top, sample : sequence of str
        Texts; a word counts once a text, so that a long one does not decide alone.

    Returns
    -------
    list of WordContrast
        All words of two letters or more, lower case, most typical of ``top`` first.

    References
    ----------
    B. L. Monroe, M. P. Colaresi, K. M. Quinn (2008), Fightin' Words, Political Analysis 16(4).
    """
    ours, theirs = (
        Counter(word for text in texts for word in sorted(set(words(text.lower()))) if word.isalpha() and len(word) > 1)
        for texts in (top, sample)
    )
    both = ours + theirs
    names = sorted(both)
    if not names:
        return []
    y, other = (np.array([counts[word] for word in names], dtype=np.float64) for counts in (ours, theirs))
    prior = (y + other) / (y + other).sum() * len(names)  # one count a word on average
    total = prior.sum()

    def log_odds(counts: np.ndarray) -> np.ndarray:
        return np.log((counts + prior) / (counts.sum() + total - counts - prior))

    z = np.zeros(len(names))
    if len(names) > 1:
        z = (log_odds(y) - log_odds(other)) / np.sqrt(1 / (y + prior) + 1 / (other + prior))
    order = sorted(range(len(names)), key=lambda i: (-z[i], names[i]))
    return [WordContrast(names[i], int(y[i]), int(other[i]), float(z[i])) for i in order]


def _both_ends(contrast: list[WordContrast], count: int) -> list[WordContrast]:
    return contrast[: -(-count // 2)] + contrast[len(contrast) - count // 2 :]


def _counts(metadata: dict[str, dict[str, Any]], top: Items[str]) -> dict[str, list[tuple[str, int, int]]]:
    everywhere: dict[str, Counter[str]] = {}
    for own in metadata.values():
        for key, value in own.items():
            if isinstance(value, str | int | bool):
                everywhere.setdefault(key, Counter())[str(value)] += 1
    out = {}
    for key, counts in everywhere.items():
        if len(counts) > counts.total() / 2:
            continue
        among = Counter(str(metadata[row][key]) for row in top if key in metadata[row])
        ordered = sorted(counts, key=lambda value: (-among[value], -counts[value], value))
        out[key] = [(value, among[value], counts[value]) for value in ordered[:10]]
    return out
