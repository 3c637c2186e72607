"""Scores of documents by the tokens they share with a query: the baselines and candidate filters beside influence.

Both take token ids, so they see the data exactly as the model does. Shapes: Q queries, N documents, V vocabulary.
"""

from collections.abc import Sequence as Items

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = ["bm25_scores", "tfidf_paper"]

TokenIds = NDArray[np.integer]


def bm25_scores(
    queries: Items[TokenIds], documents: Items[TokenIds], k1: float = 1.5, b: float = 0.75
) -> NDArray[np.float32]:
    """``Σ_t c(t,q) · IDF(t) · f(t,d)(k1 + 1) / (f(t,d) + k1(1 - b + b·|d|/avg|d|))``, Okapi BM25.

    IDF(t) = log(1 + (N - df(t) + ½)/(df(t) + ½)), which is never negative; c counts t in the query, f in the document.

    Parameters
    ----------
    queries : sequence of int arrays
        Q of them: the tokens of prompt and completion. An empty one scores 0 everywhere.
    documents : sequence of int arrays
        N of them, at least one.
    k1 : float, default 1.5
        How slowly repeated tokens saturate; the usual value for prose.
    b : float, default 0.75
        How far long documents are discounted, 0 (not at all) to 1 (in proportion); the usual value.

    Returns
    -------
    ndarray of float32, shape (Q, N)
        At least 0; higher is more alike. No unit.

    Raises
    ------
    ArgumentError
        If there are no documents, a token id is negative, ``k1 < 0`` or b lies outside [0, 1].
    ArgumentTypeError
        If tokens are not integers.

    Notes
    -----
    O(tokens) time and memory for the index, and one sparse product for all queries.

    References
    ----------
    S. E. Robertson and H. Zaragoza (2009), Foundations and Trends in Information Retrieval 3(4).

    Examples
    --------
    >>> bm25_scores([np.array([1, 2])], [np.array([1, 2]), np.array([1, 3]), np.array([4, 4])]).argsort()
    array([[2, 1, 0]])
    """
    if k1 < 0:
        raise ArgumentError(f"k1: expected >= 0, got {k1}")
    if not 0 <= b <= 1:
        raise ArgumentError(f"b: expected a number from 0 to 1, got {b}")
    wanted, counts = _counts(queries, documents)
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    frequencies = counts.tocoo()
    norms = k1 * (1 - b + b * lengths / max(float(lengths.mean()), 1.0))
    weights = frequencies.data * (k1 + 1) / (frequencies.data + norms[frequencies.row])
    weighted = sp.csr_array((weights, (frequencies.row, frequencies.col)), shape=counts.shape)
    return _product(wanted, _idf(counts), weighted)


def tfidf_paper(queries: Items[TokenIds], documents: Items[TokenIds], k: float = 1.5) -> NDArray[np.float32]:
    """Σ_{t in q} (k + 1)·1[t in d] / (k + 1[t in d]) · IDF(t): which distinct tokens are shared, weighted by rarity.

    The candidate filter for corpora whose documents are chunks of equal length: neither repetition nor length counts.

    Parameters
    ----------
    queries : sequence of int arrays
        Q of them: the tokens of prompt and completion.
    documents : sequence of int arrays
        N of them, at least one.
    k : float, default 1.5
        Cancels for tokens that are present, (k + 1)/(k + 1); kept because the formula is usually written with it.

    Returns
    -------
    ndarray of float32, shape (Q, N)
        At least 0; higher is more alike. No unit.

    Raises
    ------
    ArgumentError
        If there are no documents, a token id is negative, or ``k < 0``.
    ArgumentTypeError
        If tokens are not integers.

    Notes
    -----
    It favours documents that share words with the query, and so misses influence across wordings and languages.

    References
    ----------
    R. Grosse, J. Bae, C. Anil et al. (2023), arXiv 2308.03296. The constants are reconstructed, not quoted.
    """
    if k < 0:
        raise ArgumentError(f"k: expected >= 0, got {k}")
    wanted, counts = _counts(queries, documents)
    wanted.data[:] = 1
    present = counts.copy()
    present.data[:] = (k + 1) / (k + 1)
    return _product(wanted, _idf(counts), present)


def _counts(queries: Items[TokenIds], documents: Items[TokenIds]) -> tuple[sp.csr_array, sp.csr_array]:
    # token counts (Q, V) and (N, V); V is the largest id seen on either side
    if not len(documents):
        raise ArgumentError("documents: there are none")
    both = [*_checked("queries", queries), *_checked("documents", documents)]
    lengths = np.array([len(tokens) for tokens in both])
    columns = np.concatenate(both).astype(np.int64)
    rows = np.repeat(np.arange(len(both)), lengths)
    width = int(columns.max()) + 1 if len(columns) else 1
    counts = sp.csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(both), width))
    counts.sum_duplicates()
    return counts[: len(queries)], counts[len(queries) :]


def _checked(name: str, many: Items[TokenIds]) -> list[TokenIds]:
    arrays = [np.asarray(tokens).ravel() for tokens in many]
    for i, tokens in enumerate(arrays):
        if not len(tokens):
            arrays[i] = tokens.astype(np.int64)
        elif not np.issubdtype(tokens.dtype, np.integer):
            raise ArgumentTypeError(f"{name}[{i}]: expected integer token ids, got {tokens.dtype}")
        elif int(tokens.min()) < 0:
            raise ArgumentError(f"{name}[{i}]: token ids must be >= 0, got {int(tokens.min())}")
    return arrays


def _idf(counts: sp.csr_array) -> NDArray[np.float64]:
    num_documents, width = (int(n) for n in counts.shape or (0, 0))
    in_documents = np.bincount(counts.indices, minlength=width)
    return np.log1p((num_documents - in_documents + 0.5) / (in_documents + 0.5))


def _product(wanted: sp.csr_array, idf: NDArray[np.float64], weighted: sp.csr_array) -> NDArray[np.float32]:
    scaled = wanted * idf[None, :]
    return np.asarray((sp.csr_array(scaled) @ weighted.T).toarray(), dtype=np.float32)
