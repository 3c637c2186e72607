"""Ranks the sequences of an index by the tokens they share with a query: BM25, or the TF-IDF filter.

    bm25          Σ_t c(t,q) · IDF(t) · f(t,d)(k1 + 1) / (f(t,d) + k1(1 - b + b·|d|/avg|d|))
    tfidf_paper   Σ_{t in q} 1[t in d] · IDF(t),        IDF(t) = log(1 + (N - df(t) + ½)/(df(t) + ½))

Shapes: N sequences, K kept of a query.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Items
from typing import Literal

import numpy as np

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.influence.prefilter.index import TokenIndex

__all__ = ["Method", "index_scores", "rank"]

Method = Literal["bm25", "tfidf_paper"]


def rank(
    index: TokenIndex,
    queries: Items[np.ndarray],
    top: int,
    *,
    method: Method = "bm25",
    k1: float = 1.5,
    b: float = 0.75,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """List the sequences most like each query, best first, ties by number.

    Parameters
    ----------
    index : TokenIndex
        Of N sequences.
    queries : sequence of int arrays
        Tokens of prompt and completion.
    top : int
        K, at most so many; a sequence that shares no token with a query is not listed.
    method : {"bm25", "tfidf_paper"}, default "bm25"
        See the head of this module.
    k1, b : float, default 1.5 and 0.75
        Of BM25, as in `bm25_scores`.

    Returns
    -------
    list of (numbers, values)
        int64 and float32, shape (K,) each, one pair a query.

    Raises
    ------
    ArgumentError
        If ``top < 1``, or an option is unknown or out of range.
    ArgumentTypeError
        If tokens are not integers.

    Notes
    -----
    O(postings of the query's tokens) time; memory of one part.
    """
    if top < 1:
        raise ArgumentError(f"top: expected >= 1, got {top}")
    out = []
    for query in queries:
        numbers, values = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        for first, scores in index_scores(index, query, method=method, k1=k1, b=b):
            found = np.flatnonzero(scores > 0)
            numbers = np.concatenate([numbers, found + first])
            values = np.concatenate([values, scores[found]])
            if len(values) > top:
                best = np.lexsort((numbers, -values))[:top]
                numbers, values = numbers[best], values[best]
        order = np.lexsort((numbers, -values))
        out.append((numbers[order], values[order]))
    return out


def index_scores(
    index: TokenIndex, query: np.ndarray, *, method: Method = "bm25", k1: float = 1.5, b: float = 0.75
) -> Iterator[tuple[int, np.ndarray]]:
    """Score all sequences for one query, a part at a time.

    Parameters
    ----------
    index, method, k1, b : see `rank`
        As there.
    query : ndarray of int
        Its tokens.

    Yields
    ------
    (int, ndarray of float32)
        Number of the first sequence of a part, and the values of its sequences, as `bm25_scores` or `tfidf_paper` has
        them.

    Raises
    ------
    ArgumentError
        If an option is unknown or out of range, or a token is negative.
    ArgumentTypeError
        If tokens are not integers.
    """
    if method not in ("bm25", "tfidf_paper"):
        raise ArgumentError(f"method: expected 'bm25' or 'tfidf_paper', got {method!r}")
    if k1 < 0:
        raise ArgumentError(f"k1: expected >= 0, got {k1}")
    if not 0 <= b <= 1:
        raise ArgumentError(f"b: expected a number from 0 to 1, got {b}")
    tokens = np.asarray(query)
    if len(tokens) and not np.issubdtype(tokens.dtype, np.integer):
        raise ArgumentTypeError(f"query: expected integer token ids, got {tokens.dtype}")
    if len(tokens) and int(tokens.min()) < 0:
        raise ArgumentError(f"query: token ids must be >= 0, got {int(tokens.min())}")
    terms, repeats = np.unique(tokens.astype(np.int64), return_counts=True)
    seen = index.frequencies
    known = terms < len(seen)
    terms, repeats = terms[known], repeats[known]
    idf = np.log1p((len(index) - seen[terms] + 0.5) / (seen[terms] + 0.5))
    for part in index.parts:
        values = np.zeros(len(part.lengths))
        norms = k1 * (1 - b + b * part.lengths / max(index.mean_length, 1.0))
        for term, weight, repeat in zip(terms.tolist(), idf, repeats, strict=True):
            documents, counts = part.postings(term)
            if method == "bm25":
                often = counts.astype(np.float64)
                values[documents] += repeat * weight * (k1 + 1) * often / (often + norms[documents])
            else:
                values[documents] += weight
        yield part.first, values.astype(np.float32)
