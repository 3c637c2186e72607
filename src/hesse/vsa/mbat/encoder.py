"""Any JSON document as one vector of fixed length, without schema or training: similar documents, similar vectors.

Shapes: N documents, D dimension.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hesse._estimator import Estimator
from hesse.errors import ArgumentError, ShapeError
from hesse.vsa.mbat.algebra import Codebook, unit
from hesse.vsa.mbat.atoms import NAMESPACE
from hesse.vsa.mbat.binding import OrthogonalBinding
from hesse.vsa.mbat.graph import build_graph, leaf_terms, node_vectors, root_vectors
from hesse.vsa.mbat.leaves import Embedder, LeafCoder, NumberMode, StringMode
from hesse.vsa.mbat.recipe import (
    ORDERED,
    Recipe,
    iter_leaves,
    key_role,
    parse_weights,
    pointer,
    position_role,
    step_pattern,
)
from hesse.vsa.mbat.rotations import Family

__all__ = ["Decoded", "Explanation", "JSONEncoder"]

KeyWeights = Literal["idf"] | Mapping[str, float]

_BATCH = 256


@dataclass(frozen=True, slots=True)
class Decoded:
    """What `JSONEncoder.get` read at a path."""

    value: Any
    """The codebook's best."""
    score: float
    """Its inner product with what was unbound: about 1/√n for a field among n, 0 ± 1/√D for a wrong one."""
    z_score: float
    """The score over 1/√D."""
    margin: float
    """``z_score`` minus √(2 ln N) + 2, where N wrong values reach at most: above 0 the value can be relied on."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why two documents are as similar as they are."""

    cosine: float
    contributions: dict[str, float]
    """By pattern, largest first: inner products of what both have bound in the same place."""
    rest: float
    """Inner products of different places, which are noise: ``cosine`` minus all contributions."""


@dataclass(frozen=True)
class _Engine:
    recipe: Recipe
    binding: OrthogonalBinding
    coder: LeafCoder


class JSONEncoder(Estimator):
    """Encode JSON by MBAT: soft codes of leaves, a matrix for every key, sums brought to length 1 at every level.

    An object is M_object unit(Σ_k w_k M_k enc(v_k)); an array unit(a M_array unit(Σ_i M_nextⁱ e_i) + b M_bag unit(Σ_i
    e_i)): one half knows the order, the other does not. A text is the unit vector along 0.4 atom(text) + 0.7
    unit(words) + 1.0 unit(trigrams). A number is M_number φ(u) with random cosines φ: <φ(u), φ(v)> is, within 1/√D,
    (e^(-(u-v)²/2) + e^(-8(u-v)²)) / 2. Since binding does not commute, ``{"a": {"b": 1}}`` and ``{"b": {"a": 1}}`` are
    as unrelated as two documents can be.

    Parameters
    ----------
    dim : int, default 1024
        D; 2048 for documents of more than 50 leaves that are to be decoded. Noise is 1/√D.
    family : {"signed_permutation", "hadamard", "haar"}, default "signed_permutation"
        As of `OrthogonalBinding`; the default is the fastest, and none is more exact.
    string : {"soft", "exact"}, default "soft"
        Texts that differ in a few letters are similar, or no two texts are.
    number : {"log", "linear", "exact"}, default "log"
        u = sign(x) log(1 + |x|): 100 is like 110 (0.96) and less like 150 (0.60). "linear": u = x over the range
        between the quartiles that `fit` finds at its pattern (1 where it found none). "exact": no two numbers are
        similar.
    array : (float, float), default (0.5, 0.5)
        Weights of the order and of the bag. Of arrays longer than 128 the order knows the first and last 64 items.
    key_weights : "idf" or mapping, optional
        Weights of patterns, which are JSON pointers with ``*`` for positions, as ``/orders/*/price``. "idf":
        log((1 + N) / (1 + N_pattern)) + 1, from `fit`. Default: all keys weigh the same.
    dates : bool, default False
        Read ISO dates as numbers, a year as 1. Off, because dates with errors in them are texts.
    soft_keys : float, default 0
        Weight of a second term by the key's letters and digits alone: "unitPrice" is then like "unit_price".
    any_key : float, default 0
        Weight of a further term that is the same for all keys: a value under a renamed key still counts.
    embedder : callable, optional
        Text to a vector of at most D numbers (always as many), in place of the code of texts.
    dtype : torch.dtype, default torch.float32
        Of vectors: float32 or float64.
    device : torch.device or str, default "cpu"
        Where vectors are made. Codes of leaves are drawn on the CPU.
    cache_size : int, default 32768
        How many codes of leaves are kept: 128 MiB at 1024 dimensions. The longest unused are dropped first.

    Attributes
    ----------
    num_documents_ : int
        Seen by `fit`.
    document_frequency_ : dict
        By pattern: how many documents have it.
    scale_ : dict
        By pattern: range between the quartiles of its numbers, where it is not 0.
    values_ : dict
        By pattern: its different texts, numbers and constants, in order of appearance.

    Notes
    -----
    Vectors depend on the settings alone: they are the same in every process, for every order of keys, and for every
    batch, up to rounding. Keys and texts are brought to NFC. 1 and 1.0 are one number, 1 and true are not. NaN and the
    infinities, and empty texts, arrays and objects, have vectors of their own. The weights of the parts, and the shape
    of the number code, are choices of this library, not of the paper. float32 and float64; not half precision.

    References
    ----------
    S. I. Gallant (2022), arXiv 2202.04771.

    Examples
    --------
    >>> encoder = JSONEncoder()
    >>> v, w = encoder.encode({"name": "Anna", "age": 41}), encoder.encode({"age": 42, "name": "Ana"})
    >>> bool(v @ w > 0.6)
    True
    """

    def __init__(
        self,
        dim: int = 1024,
        family: Family = "signed_permutation",
        string: StringMode = "soft",
        number: NumberMode = "log",
        array: tuple[float, float] = (0.5, 0.5),
        key_weights: KeyWeights | None = None,
        dates: bool = False,
        soft_keys: float = 0.0,
        any_key: float = 0.0,
        embedder: Embedder | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cache_size: int = 32768,
    ) -> None:
        self.dim = dim
        self.family: Family = family
        self.string: StringMode = string
        self.number: NumberMode = number
        self.array = array
        self.key_weights = key_weights
        self.dates = dates
        self.soft_keys = soft_keys
        self.any_key = any_key
        self.embedder = embedder
        self.dtype = dtype
        self.device = device
        self.cache_size = cache_size

    def fit(self, documents: Iterable[Any], y: object = None) -> Self:
        """Collect statistics; only ``key_weights="idf"``, ``number="linear"`` and `get` without a codebook need them.

        Parameters
        ----------
        documents : iterable
            JSON values; read once.
        y : object, optional
            Not used; scikit-learn passes it.

        Returns
        -------
        JSONEncoder
            Itself.

        Raises
        ------
        ArgumentError
            If there are no documents.
        ArgumentTypeError
            If something in one is not JSON; the message says where. Also a TypeError.
        """
        del y
        frequency: Counter[str] = Counter()
        numbers: dict[str, list[float]] = {}
        values: dict[str, dict[tuple[type, str], Any]] = {}
        count = 0
        kinds = Recipe("exact", False, (0.5, 0.5), 0.0, 0.0, {}, {})  # of leaves; a kind that is not JSON is refused
        for document in documents:
            count += 1
            patterns: set[str] = set()
            for pattern, value in iter_leaves(document):
                kinds.leaf(value, pattern)
                steps = pattern.split("/")
                patterns.update("/".join(steps[:i]) for i in range(2, len(steps) + 1))
                if not isinstance(value, dict | list | tuple):
                    values.setdefault(pattern, {}).setdefault((type(value), repr(value)), value)
                if isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value):
                    numbers.setdefault(pattern, []).append(float(value))
            frequency.update(patterns)
        if not count:
            raise ArgumentError("JSONEncoder.fit: expected at least one document, got none")
        spread = {
            pattern: float(np.subtract(*np.quantile(column, (0.75, 0.25)))) for pattern, column in numbers.items()
        }
        self.num_documents_ = count
        self.document_frequency_ = dict(frequency)
        self.scale_ = {pattern: scale for pattern, scale in spread.items() if 0 < scale < math.inf}
        self.values_ = {pattern: list(found.values()) for pattern, found in values.items()}
        self._made = None
        return self

    def encode(self, document: Any, *, at: str = "") -> Tensor:
        """Encode one document.

        Parameters
        ----------
        document : object
            dict, list, str, int, float, bool or None, nested as deep as memory allows; tuples count as lists.
        at : str, default ""
            Pattern at which it stands, if it is a part of another: weights and scales of patterns are looked up there.

        Returns
        -------
        Tensor, shape (D,)
            Of length 1.

        Raises
        ------
        ArgumentTypeError
            If something in it is not JSON; the message says where. Also a TypeError.
        ArgumentError
            If a setting is wrong, or needs `fit` first.
        """
        return self._encode([document], at)[0]

    def encode_many(self, documents: Iterable[Any], batch_size: int = _BATCH) -> Iterator[Tensor]:
        """Encode documents in batches, which is several times faster than one at a time.

        Parameters
        ----------
        documents : iterable
            JSON values; read as batches are asked for.
        batch_size : int, default 256
            Documents a batch. A batch holds a vector for every leaf and every inner node of its documents.

        Yields
        ------
        Tensor, shape (batch_size, D)
            Rows of length 1; the last batch may be shorter.

        Raises
        ------
        ArgumentTypeError
            As of `encode`.
        ArgumentError
            As of `encode`, or if ``batch_size < 1``.
        """
        if batch_size < 1:
            raise ArgumentError(f"JSONEncoder.encode_many: expected batch_size >= 1, got {batch_size}")
        rest = iter(documents)
        while batch := list(islice(rest, batch_size)):
            yield self._encode(batch)

    def transform(self, documents: Iterable[Any]) -> NDArray[Any]:
        """Encode documents for scikit-learn.

        Parameters
        ----------
        documents : iterable
            JSON values.

        Returns
        -------
        ndarray, shape (N, D)
            Rows of length 1.
        """
        batches = [batch.cpu().numpy() for batch in self.encode_many(documents)]
        return np.concatenate(batches) if batches else np.zeros((0, self._engine.binding.dim), dtype=np.float32)

    def fit_transform(self, documents: Sequence[Any], y: object = None) -> NDArray[Any]:
        """Do `fit`, then `transform`.

        Parameters
        ----------
        documents : sequence
            JSON values.
        y : object, optional
            Not used.

        Returns
        -------
        ndarray, shape (N, D)
            Rows of length 1.
        """
        return self.fit(documents, y).transform(documents)

    def codebook(self, values: Sequence[Any]) -> Codebook:
        """Make a codebook of values, as `get` reads them.

        Parameters
        ----------
        values : sequence
            Different JSON values; their JSON texts are the codebook's tokens.

        Returns
        -------
        Codebook
            Of their vectors.
        """
        tokens = [json.dumps(value, ensure_ascii=False) for value in values]
        return Codebook(tokens, vectors=torch.cat(list(self.encode_many(values))) if tokens else None)

    def get(self, vector: Tensor, path: str | Sequence[str | int], codebook: Codebook | None = None) -> Decoded:
        """Read a value back from a document's vector.

        Parameters
        ----------
        vector : Tensor, shape (D,)
            From `encode`, with these settings.
        path : str or sequence of str and int
            A JSON pointer, or keys and positions one by one: positions below 64.
        codebook : Codebook, optional
            Of the values that may stand there, from `codebook`. Default: those that `fit` saw there.

        Returns
        -------
        Decoded
            The best of the codebook. Reliable while √(D/n) > √(2 ln N) + 2 for a field among n and N values.

        Raises
        ------
        ShapeError
            If the vector does not fit.
        ArgumentError
            If there is no codebook, and `fit` saw nothing at the path.
        """
        binding = self._engine.binding
        if vector.shape != (binding.dim,):
            raise ShapeError(f"JSONEncoder.get: expected a vector of {binding.dim}, got shape {tuple(vector.shape)}")
        steps = pointer(path)
        if codebook is None:
            pattern = "".join(map(step_pattern, steps))
            seen = getattr(self, "values_", {}).get(pattern)
            if not seen:
                raise ArgumentError(f"JSONEncoder.get: fit saw no values at {pattern!r}; pass a codebook")
            codebook = self.codebook(seen)
        for step in steps:
            if isinstance(step, str):
                vector = binding.unbind(key_role(step), vector)
            else:
                role = position_role(step, step + 1)
                vector = binding.unbind((*ORDERED, *(role or ())), vector)
        token, score = codebook.cleanup(unit(vector))[0]
        z_score = score * binding.dim**0.5
        return Decoded(json.loads(token), score, z_score, z_score - (2 * math.log(len(codebook))) ** 0.5 - 2)

    def explain(self, query: Any, document: Any) -> Explanation:
        """Say which parts make two documents similar.

        Parameters
        ----------
        query, document : object
            JSON values.

        Returns
        -------
        Explanation
            Contributions by pattern, and what they leave.
        """
        left, left_vector = self._terms(query)
        right, right_vector = self._terms(document)
        cosine = float(left_vector @ right_vector)
        contributions: dict[str, float] = {}
        for place in left.keys() & right.keys():
            share = float(left[place] @ right[place])
            contributions[place[0]] = contributions.get(place[0], 0.0) + share
        ranked = dict(sorted(contributions.items(), key=lambda item: (-item[1], item[0])))
        return Explanation(cosine, ranked, cosine - sum(ranked.values()))

    @property
    def binding(self) -> OrthogonalBinding:
        """The matrices of roles; made anew when a setting is changed."""
        return self._engine.binding

    @property
    def recipe(self) -> Recipe:
        """How documents fall apart under these settings and statistics."""
        return self._engine.recipe

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the settings and statistics that decide vectors; equal ones can be compared."""
        recipe, binding = self._engine.recipe, self._engine.binding
        embedder = "" if self.embedder is None else getattr(self.embedder, "__qualname__", type(self.embedder).__name__)
        decisive = [
            NAMESPACE,
            binding.dim,
            binding.family,
            self.string,
            recipe.number,
            recipe.dates,
            list(recipe.array),
            recipe.soft_keys,
            recipe.any_key,
            dict(sorted(recipe.weights.items())),
            dict(sorted(recipe.scales.items())),
            embedder,
        ]
        return hashlib.blake2b(json.dumps(decisive).encode(), digest_size=8).hexdigest()

    def _terms(self, document: Any) -> tuple[dict[tuple[str, str], Tensor], Tensor]:
        engine = self._engine
        graph = build_graph([document], engine.recipe)
        vectors, lengths = node_vectors(graph, engine.coder, engine.binding)
        terms: dict[tuple[str, str], Tensor] = {}
        for term in leaf_terms(graph, lengths):
            v = vectors[term.leaf]
            for role in reversed(term.roles):  # one by one: products of whole paths are not worth keeping
                v = engine.binding.bind(role, v)
            place = (term.pattern, term.part)
            terms[place] = terms[place] + term.coefficient * v if place in terms else term.coefficient * v
        return terms, root_vectors(graph, vectors)[0]

    def _encode(self, documents: Sequence[Any], at: str = "") -> Tensor:
        engine = self._engine
        graph = build_graph(documents, engine.recipe, at)
        return root_vectors(graph, node_vectors(graph, engine.coder, engine.binding)[0])

    @property
    def _engine(self) -> _Engine:
        # rebuilt when a setting was changed; identity is enough, for settings are replaced and not altered
        settings = tuple(self.get_params().values())
        made = getattr(self, "_made", None)
        if made is None or any(old is not new for old, new in zip(made[0], settings, strict=True)):
            made = (settings, self._make_engine())
            self._made = made
        return made[1]

    def _make_engine(self) -> _Engine:
        caller = "JSONEncoder"
        for name, value, known in (
            ("string", self.string, get_args(StringMode)),
            ("number", self.number, get_args(NumberMode)),
        ):
            if value not in known:
                raise ArgumentError(f"{caller}: {name} must be one of {', '.join(known)}; got {value!r}")
        shares = tuple(float(share) for share in self.array)
        if len(shares) != 2 or not all(0 <= share < math.inf for share in shares) or not any(shares):
            raise ArgumentError(f"{caller}: expected array as two weights >= 0, not both 0; got {self.array!r}")
        for name, value in (("soft_keys", self.soft_keys), ("any_key", self.any_key), ("cache_size", self.cache_size)):
            if not 0 <= value < math.inf:
                raise ArgumentError(f"{caller}: expected {name} >= 0, got {value!r}")
        if isinstance(self.key_weights, str):
            if self.key_weights != "idf":
                raise ArgumentError(f"{caller}: key_weights must be 'idf' or a mapping, got {self.key_weights!r}")
            total = 1 + self._seen("key_weights='idf'").num_documents_
            weights = {
                pattern: math.log(total / (1 + count)) + 1 for pattern, count in self.document_frequency_.items()
            }
        else:
            weights = parse_weights(self.key_weights, caller)
        scales = self._seen("number='linear'").scale_ if self.number == "linear" else {}
        recipe = Recipe(
            self.number, bool(self.dates), (shares[0], shares[1]), self.soft_keys, self.any_key, weights, scales
        )
        binding = OrthogonalBinding(self.dim, self.family, dtype=self.dtype, device=self.device)
        return _Engine(recipe, binding, LeafCoder(binding, self.string, self.embedder, self.cache_size))

    def _seen(self, setting: str) -> Self:
        if not hasattr(self, "num_documents_"):
            raise ArgumentError(f"JSONEncoder: {setting} needs statistics; call fit first")
        return self


def _is_finite(value: float) -> bool:
    return -math.inf < value < math.inf and abs(value) < 1e308
