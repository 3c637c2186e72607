"""Bundles, sequences, phrases and cleanup: what vectors are made of, and how they are read back."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.vsa.mbat.atoms import atom
from hesse.vsa.mbat.binding import OrthogonalBinding

__all__ = ["Codebook", "Phrase", "bundle", "encode_phrase", "sequence_decode", "sequence_encode", "unit"]

Phrase: TypeAlias = "Sequence[tuple[str, Sequence[str | Phrase]]]"
"""Roles with their words; a word may be a phrase itself."""

_SEQUENCE = "sequence"


def unit(v: Tensor) -> Tensor:
    """Scale every vector to length 1; a zero vector stays zero.

    Parameters
    ----------
    v : Tensor, shape (..., D)
        Vectors along the last axis.

    Returns
    -------
    Tensor, shape (..., D)
        Differentiable away from zero.
    """
    length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return v / length.where(length > 0, 1)


def bundle(vectors: Sequence[Tensor] | Tensor, weights: Sequence[float] | Tensor | None = None) -> Tensor:
    """Add vectors: what is similar to a sum is similar to its terms.

    Parameters
    ----------
    vectors : sequence of N tensors of shape (D,), or Tensor, shape (N, D)
        N >= 1 terms.
    weights : N numbers, optional
        Default: 1 each.

    Returns
    -------
    Tensor, shape (D,)
        Not scaled to length 1. Differentiable.

    Raises
    ------
    ArgumentError
        If there are no vectors.
    ShapeError
        If there are not as many weights as vectors.
    """
    if len(vectors) == 0:
        raise ArgumentError("bundle: expected at least one vector, got none")
    stacked = vectors if isinstance(vectors, Tensor) else torch.stack(list(vectors))
    if weights is None:
        return stacked.sum(0)
    factors = torch.as_tensor(weights, dtype=stacked.dtype, device=stacked.device)
    if factors.shape != stacked.shape[:1]:
        raise ShapeError(f"bundle: expected {len(stacked)} weights, got shape {tuple(factors.shape)}")
    return factors @ stacked


def sequence_encode(vectors: Sequence[Tensor] | Tensor, binding: OrthogonalBinding, role: str = _SEQUENCE) -> Tensor:
    """Fold a sequence into one vector, s <- M s + v_i: item i of n carries M^(n-i).

    Parameters
    ----------
    vectors : sequence of N tensors of shape (D,), or Tensor, shape (N, D)
        First to last.
    binding : OrthogonalBinding
        Whose matrix of ``role`` is M.
    role : str, default "sequence"
        Which one.

    Returns
    -------
    Tensor, shape (D,)
        Zero for an empty sequence; not scaled.
    """
    state = torch.zeros(binding.dim, dtype=binding.dtype, device=binding.device)
    for v in vectors:
        state = binding.bind(role, state) + v
    return state


def sequence_decode(
    state: Tensor, length: int, codebook: "Codebook", binding: OrthogonalBinding, role: str = _SEQUENCE
) -> list[str]:
    """Read a sequence back, last item first: clean up, take the item away, unbind.

    Parameters
    ----------
    state : Tensor, shape (D,)
        From `sequence_encode`.
    length : int
        How many items.
    codebook : Codebook
        What the items may be.
    binding : OrthogonalBinding
        As when encoding.
    role : str, default "sequence"
        As when encoding.

    Returns
    -------
    list of str
        First to last. Right with high probability while √(D / length) > √(2 ln N) + 2 for N tokens.

    Raises
    ------
    ArgumentError
        If the length is negative.
    """
    if length < 0:
        raise ArgumentError(f"sequence_decode: expected length >= 0, got {length}")
    found: list[str] = []
    for _ in range(length):
        token, _score = codebook.cleanup(state)[0]
        found.append(token)
        state = binding.unbind(role, state - codebook.vector(token))
    return found[::-1]


def encode_phrase(phrase: "Phrase", binding: OrthogonalBinding) -> Tensor:
    """Encode roles with their words: Σ_r M_r (sum of the words' atoms).

    Parameters
    ----------
    phrase : sequence of (role, words)
        As ``[("actor", ["the", "smart", "girl"]), ("verb", ["saw"])]``; a word may be a phrase itself.
    binding : OrthogonalBinding
        The matrices of the roles.

    Returns
    -------
    Tensor, shape (D,)
        Not scaled: binding acts on sums of terms, so parts of a phrase can be taken out by `unbind`.

    Raises
    ------
    ArgumentError
        If the phrase, or the words of a role, are empty.

    References
    ----------
    S. I. Gallant, T. W. Okaywe (2013), Neural Computation 25(8).
    """
    if not phrase:
        raise ArgumentError("encode_phrase: expected at least one (role, words), got none")
    terms: list[Tensor] = []
    for role, words in phrase:
        parts = [
            atom(word, binding.dim, dtype=binding.dtype, device=binding.device)
            if isinstance(word, str)
            else encode_phrase(word, binding)
            for word in words
        ]
        if not parts:
            raise ArgumentError(f"encode_phrase: role {role!r} has no words")
        terms.append(binding.bind(role, bundle(parts)))
    return bundle(terms)


class Codebook:
    """Tokens and their vectors, to find the nearest.   Shapes: N tokens, D dimension.

    Parameters
    ----------
    tokens : sequence of str
        N >= 1 different ones.
    dim : int, default 1024
        D of their atoms; not read if vectors are given.
    vectors : Tensor, shape (N, D), optional
        Vectors of the tokens. Default: their atoms, float32.

    Raises
    ------
    ArgumentError
        If there are no tokens, or one stands twice.
    ShapeError
        If the vectors do not fit the tokens.
    """

    def __init__(self, tokens: Sequence[str], dim: int = 1024, *, vectors: Tensor | None = None) -> None:
        self.tokens = list(tokens)
        self._place = {token: i for i, token in enumerate(self.tokens)}
        if not self.tokens:
            raise ArgumentError("Codebook: expected at least one token, got none")
        if len(self._place) < len(self.tokens):
            raise ArgumentError("Codebook: a token stands twice")
        if vectors is None:
            vectors = torch.stack([atom(token, dim) for token in self.tokens])
        if vectors.ndim != 2 or len(vectors) != len(self.tokens):
            raise ShapeError(f"Codebook: expected vectors ({len(self.tokens)}, D), got shape {tuple(vectors.shape)}")
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.tokens)

    def vector(self, token: str) -> Tensor:
        """Look a token's vector up.

        Parameters
        ----------
        token : str
            One of the codebook's.

        Returns
        -------
        Tensor, shape (D,)
            A view.

        Raises
        ------
        ArgumentError
            If it is none of them.
        """
        if token not in self._place:
            raise ArgumentError(f"Codebook.vector: {token!r} is not in the codebook")
        return self.vectors[self._place[token]]

    def cleanup(self, v: Tensor, k: int = 1) -> list[tuple[str, float]]:
        """Find the tokens with the largest inner products.

        Parameters
        ----------
        v : Tensor, shape (D,)
            A noisy vector.
        k : int, default 1
            How many; fewer if the codebook is smaller.

        Returns
        -------
        list of (str, float)
            Token and inner product, best first. O(N D).

        Raises
        ------
        ArgumentError
            If ``k < 1``.
        ShapeError
            If v does not fit.
        """
        if k < 1:
            raise ArgumentError(f"Codebook.cleanup: expected k >= 1, got {k}")
        if v.shape != self.vectors.shape[1:]:
            raise ShapeError(
                f"Codebook.cleanup: expected a vector of {self.vectors.shape[1]}, got shape {tuple(v.shape)}"
            )
        best = (self.vectors @ v).topk(min(k, len(self)))
        return [(self.tokens[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
