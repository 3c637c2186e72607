"""Other ways to turn records into vectors: hashed fields, text trigrams, and torchhd's commutative bindings."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import require_peer
from hesse.vsa import JSONEncoder

__all__ = ["commutative_soft", "exact_tokens", "hashed_fields", "ours", "text_trigrams", "torchhd_records"]

Vectors = Callable[[Sequence[Any], Sequence[Any]], tuple[Tensor, Tensor]]  # documents and queries, rows of length 1


def _rows(matrix: Any) -> Tensor:
    dense = torch.from_numpy(np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix)).float()
    return torch.nn.functional.normalize(dense)


def ours(documents: Sequence[Any], queries: Sequence[Any], **settings: Any) -> tuple[Tensor, Tensor]:
    """JSONEncoder with its defaults, but for the settings given."""
    encoder = JSONEncoder(**settings)
    return torch.cat(list(encoder.encode_many(documents))), torch.cat(list(encoder.encode_many(queries)))


def exact_tokens(documents: Sequence[Any], queries: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The same bindings, but no two different values are similar."""
    return ours(documents, queries, string="exact", number="exact")


def _fields(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _fields(below, f"{path}/{key}")
    elif isinstance(value, list):
        for below in value:
            yield from _fields(below, f"{path}/*")
    else:
        yield f"{path}={value}"


def hashed_fields(documents: Sequence[Any], queries: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """scikit-learn's HashingVectorizer on path=value, as many numbers as ours."""
    text = require_peer("sklearn.feature_extraction.text")
    hasher = text.HashingVectorizer(n_features=1024, analyzer=lambda record: list(_fields(record)))
    return _rows(hasher.transform(documents)), _rows(hasher.transform(queries))


def text_trigrams(documents: Sequence[Any], queries: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """scikit-learn's TF-IDF of the character trigrams of the JSON text, fitted on the documents."""
    text = require_peer("sklearn.feature_extraction.text")
    vectorizer = text.TfidfVectorizer(analyzer="char", ngram_range=(3, 3))
    fitted = vectorizer.fit_transform([json.dumps(record, ensure_ascii=False) for record in documents])
    return _rows(fitted), _rows(vectorizer.transform([json.dumps(record, ensure_ascii=False) for record in queries]))


def torchhd_records(vsa: str, seed: int) -> Vectors:
    """torchhd's record encoding: hash tables of random keys and values, nested tables bound by their keys alike.

    Arrays are tables with positions as keys. A value is one random vector, as torchhd's own examples have it.
    """
    hd = require_peer("torchhd")
    generator = torch.Generator().manual_seed(seed % 2**31)
    drawn: dict[str, Any] = {}

    def atom(token: str) -> Any:
        if token not in drawn:
            drawn[token] = hd.random(1, 1024, vsa=vsa, generator=generator)[0]
        return drawn[token]

    def record(value: Any) -> Any:
        if isinstance(value, dict | list) and value:
            pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
            keys = torch.stack([atom(f"key {key}") for key, _ in pairs])
            return hd.hash_table(keys, torch.stack([record(below) for _, below in pairs]))
        return atom(f"value {json.dumps(value)}")

    def encode(documents: Sequence[Any], queries: Sequence[Any]) -> tuple[Tensor, Tensor]:
        sides = (torch.stack([record(each).as_subclass(Tensor) for each in side]) for side in (documents, queries))
        left, right = (torch.nn.functional.normalize(side.float()) for side in sides)
        return left, right

    return encode


def commutative_soft(documents: Sequence[Any], queries: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Our codes of leaves under elementwise products with random signs, flat records only: what binding itself adds."""
    encoder, signs = JSONEncoder(), JSONEncoder(string="exact")

    def record(value: dict[str, Any]) -> Tensor:
        terms = [signs.encode(f"key {key}").sign() * encoder.encode(below) for key, below in value.items()]
        return torch.stack(terms).sum(0)

    left, right = (torch.nn.functional.normalize(torch.stack([record(x) for x in s])) for s in (documents, queries))
    return left, right
