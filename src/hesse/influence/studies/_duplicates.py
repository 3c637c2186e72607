"""Texts that are nearly the same, found by MinHash: resemblance of word shingles from short signatures.

Shapes: N texts, H hashes.
"""

from collections.abc import Sequence as Items

import numpy as np
import xxhash

from hesse.errors import ArgumentError
from hesse.influence.studies.texts import words

__all__ = ["duplicate_groups", "minhash_signatures"]

_SHINGLE = 3  # words: long enough that common phrases do not make texts alike
_NUM_HASHES = 128  # standard error of a resemblance of 0.8 is 0.035
_PRIME = (1 << 61) - 1


def duplicate_groups(texts: Items[str], threshold: float = 0.8) -> np.ndarray:
    """Group texts whose estimated resemblance, or that of a chain between them, reaches a threshold.

    Parameters
    ----------
    texts : sequence of str
        N of them.
    threshold : float, default 0.8
        Resemblance |A ∩ B| / |A ∪ B| of their sets of three-word shingles, case and white space aside.

    Returns
    -------
    ndarray of int, shape (N,)
        Number of the first text of each one's group.

    Raises
    ------
    ArgumentError
        If the threshold lies outside (0, 1].

    Notes
    -----
    O(N²·H) time, for the few hundred rows of a list; the estimate has standard error √(s(1 - s)/H) at resemblance s.

    References
    ----------
    A. Z. Broder (1997), On the resemblance and containment of documents.
    """
    if not 0 < threshold <= 1:
        raise ArgumentError(f"threshold: expected above 0 and at most 1, got {threshold}")
    signatures = minhash_signatures(texts)
    groups = np.arange(len(texts))
    for i in range(len(texts)):
        alike = (signatures[: i + 1] == signatures[i]).mean(1) >= threshold
        joined = np.unique(groups[: i + 1][alike])
        groups[np.isin(groups, joined)] = joined[0]
    return groups


def minhash_signatures(texts: Items[str]) -> np.ndarray:
    """Hash each text's shingles H ways and keep the least of each: equal entries estimate the resemblance.

    Parameters
    ----------
    texts : sequence of str
        N of them.

    Returns
    -------
    ndarray of uint64, shape (N, 128)
        The same on any machine.
    """
    rng = np.random.default_rng(0)  # fixed, so that signatures of different calls compare
    scale = rng.integers(1, _PRIME, _NUM_HASHES, dtype=np.uint64) | np.uint64(1)
    shift = rng.integers(0, _PRIME, _NUM_HASHES, dtype=np.uint64)
    signatures = np.empty((len(texts), _NUM_HASHES), dtype=np.uint64)
    for i, text in enumerate(texts):
        found = words(text.lower())
        shingles = {" ".join(found[j : j + _SHINGLE]) for j in range(max(1, len(found) - _SHINGLE + 1))}
        hashes = np.array([xxhash.xxh3_64_intdigest(shingle.encode()) for shingle in shingles], dtype=np.uint64)
        # products wrap around; the high half of the sum is then mixed down, for the low bits of a product are not
        mixed = hashes[:, None] * scale + shift
        signatures[i] = ((mixed ^ (mixed >> np.uint64(32))) * scale).min(0)
    return signatures
