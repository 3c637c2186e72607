"""Nearest neighbours among documents: exact search over float32, int8 or sign vectors.

Shapes: N documents, D dimension.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hesse._values import check_finite
from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError, ShapeError
from hesse.io import (
    FileEntry,
    Manifest,
    atomic_write_bytes,
    check_file,
    make_folder,
    open_array,
    read_manifest,
    save_array,
    write_manifest,
)
from hesse.vsa.mbat.encoder import JSONEncoder

__all__ = ["Hit", "JSONIndex", "Precision"]

Precision = Literal["float32", "int8", "sign"]

_KIND = "json index"
_BATCH = 256  # documents encoded at a time
_BLOCK = 8192  # rows of int8 widened at a time: 32 MiB at 1024 dimensions
_SETTINGS = ("dim", "family", "string", "number", "array", "dates", "soft_keys", "any_key")


@dataclass(frozen=True, slots=True)
class Hit:
    """A document found."""

    id: str
    score: float
    """Its cosine with the query; of sign vectors the estimate cos(π · share of signs that differ)."""


class JSONIndex:
    """Vectors of documents, by id, and exact search among them.

    Parameters
    ----------
    encoder : JSONEncoder
        Of all documents and queries. Do not change its settings afterwards.
    precision : {"float32", "int8", "sign"}, default "float32"
        4 bytes a coordinate; 1 byte, with a scale a document, which hardly costs recall; or 1 bit, which does where
        records are much alike. Queries are rounded for "sign" alone.

    Raises
    ------
    ArgumentError
        If the precision is unknown.
    """

    def __init__(self, encoder: JSONEncoder, precision: Precision = "float32") -> None:
        if precision not in get_args(Precision):
            raise ArgumentError(
                f"JSONIndex: precision must be one of {', '.join(get_args(Precision))}; got {precision!r}"
            )
        self.encoder = encoder
        self.precision: Precision = precision
        self._fingerprint = encoder.fingerprint
        self._place: dict[str, int] = {}
        self._names: list[str] | None = None  # in order, made when first needed
        self._blocks: list[NDArray[Any]] = []
        self._scales: list[NDArray[np.float32]] = []
        self._signs: NDArray[np.uint8] | None = None  # bits of all vectors, made when a shortlist is first asked for

    def __len__(self) -> int:
        return len(self._place)

    @property
    def ids(self) -> list[str]:
        """Ids in the order of addition."""
        return list(self._place)

    def add(self, documents: Iterable[Any], ids: Iterable[str] | None = None) -> None:
        """Add documents, 256 at a time, so that an iterable may be larger than memory.

        Parameters
        ----------
        documents : iterable
            JSON values.
        ids : iterable of str, optional
            As many. Default: "0", "1", ... by order of addition.

        Raises
        ------
        ArgumentError
            If an id is there already, or there are more or fewer ids than documents; batches before stay added.
        """
        rest, names = iter(documents), None if ids is None else iter(ids)
        while batch := list(islice(rest, _BATCH)):
            vectors = torch.cat(list(self._checked_encoder.encode_many(batch)))
            self.add_vectors(vectors, None if names is None else islice(names, len(batch)))
        if names is not None and next(names, None) is not None:
            raise ArgumentError("JSONIndex.add: there are more ids than documents")

    def add_vectors(self, vectors: Tensor, ids: Iterable[str] | None = None) -> None:
        """Add vectors of documents that are encoded already.

        Parameters
        ----------
        vectors : Tensor, shape (N, D)
            Of length 1, from this encoder.
        ids : iterable of str, optional
            N of them. Default: "0", "1", ... by order of addition.

        Raises
        ------
        ShapeError
            If the vectors have another length than those kept.
        ArgumentError
            If an id is there already, or there are more or fewer ids than vectors.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.encoder.dim:
            raise ShapeError(f"JSONIndex.add: expected vectors (N, {self.encoder.dim}), got {tuple(vectors.shape)}")
        count = len(self)
        names = [str(count + i) for i in range(len(vectors))] if ids is None else [str(name) for name in ids]
        if len(names) != len(vectors):
            raise ArgumentError(f"JSONIndex.add: {len(vectors)} documents came with {len(names)} ids")
        new = {name: count + i for i, name in enumerate(names)}
        if len(new) < len(names) or self._place.keys() & new.keys():
            twice = next(name for i, name in enumerate(names) if name in self._place or new[name] != count + i)
            raise ArgumentError(f"JSONIndex.add: id {twice!r} is there already; use update")
        rows, scales = self._rows(vectors)
        self._blocks.append(rows)
        self._scales.append(scales)
        self._place.update(new)
        self._names = self._signs = None

    def update(self, id: str, document: Any) -> None:  # noqa: A002 - the word for it
        """Put another document under an id.

        Parameters
        ----------
        id : str
            Of a document that is there.
        document : object
            JSON.

        Raises
        ------
        ArgumentError
            If there is no such id.
        """
        if id not in self._place:
            raise ArgumentError(f"JSONIndex.update: no document {id!r}; use add")
        rows, scales = self._rows(self._checked_encoder.encode(document).unsqueeze(0))
        self._merge()
        if not self._blocks[0].flags.writeable:  # as mapped from a file
            self._blocks[0], self._scales[0] = self._blocks[0].copy(), self._scales[0].copy()
        self._blocks[0][self._place[id]] = rows[0]
        self._scales[0][self._place[id]] = scales[0]
        self._signs = None

    def search(self, document: Any, k: int = 10, *, shortlist: int | None = None) -> list[Hit]:
        """Find the documents most like one.

        Parameters
        ----------
        document : object
            JSON; parts of it may be missing.
        k : int, default 10
            How many; fewer if the index is smaller.
        shortlist : int, optional
            Compare signs first, and only the best so many by what is kept: several times faster on large indices, at
            D / 8 bytes a document more. Default: compare all.

        Returns
        -------
        list of Hit
            Best first. O(N D), and exact for the precision kept unless there is a shortlist.

        Raises
        ------
        ArgumentError
            If ``k < 1``, or the shortlist is shorter than k, or of an index of signs.
        """
        return self.search_vector(self._checked_encoder.encode(document), k, shortlist=shortlist)

    def search_vector(self, vector: Tensor, k: int = 10, *, shortlist: int | None = None) -> list[Hit]:
        """Find the documents nearest to a vector.

        Parameters
        ----------
        vector : Tensor, shape (D,)
            Of length 1, from this encoder.
        k : int, default 10
            How many.
        shortlist : int, optional
            As of `search`.

        Returns
        -------
        list of Hit
            Best first.

        Raises
        ------
        ArgumentError
            As of `search`.
        ArgumentTypeError
            If k is no integer, or the vector no tensor.
        NumericalError
            If the vector is not finite: nothing is nearest to it.
        ShapeError
            If the vector has another length than those kept.
        """
        if not isinstance(k, int) or isinstance(k, bool):
            raise ArgumentTypeError(f"JSONIndex.search: expected k to be an integer, got {type(k).__name__}")
        if k < 1:
            raise ArgumentError(f"JSONIndex.search: expected k >= 1, got {k}")
        check_finite("JSONIndex.search", "vector", vector)
        if shortlist is not None and (shortlist < k or self.precision == "sign"):
            raise ArgumentError(
                f"JSONIndex.search: a shortlist holds at least k = {k} and is of float32 or int8 vectors, got "
                f"{shortlist} of {self.precision}"
            )
        if vector.shape != (self.encoder.dim,):
            raise ShapeError(f"JSONIndex.search: expected a vector of {self.encoder.dim}, got {tuple(vector.shape)}")
        if not len(self):
            return []
        self._merge()
        query = vector.detach().cpu().to(torch.float32).numpy()
        if shortlist is None or shortlist >= len(self):
            places, scores = np.arange(len(self)), self._scores(query)
        else:
            if self._signs is None:
                self._signs = np.packbits(self._blocks[0] < 0, axis=1)
            differing = _hamming(self._signs, query)
            places = np.argpartition(differing, shortlist - 1)[:shortlist]
            scores = (self._blocks[0][places].astype(np.float32) @ query) * self._scales[0][places]
        k = min(k, len(self))
        best = np.argpartition(-scores, k - 1)[:k]
        best = best[np.argsort(-scores[best], kind="stable")]
        if self._names is None:
            self._names = self.ids
        return [Hit(self._names[places[i]], float(scores[i])) for i in best]

    def save(self, folder: str | os.PathLike[str], *, also: Mapping[str, FileEntry] | None = None) -> None:
        """Write the index to a folder.

        Parameters
        ----------
        folder : str or PathLike
            Made if missing; an index in it is replaced.
        also : mapping of str to FileEntry, optional
            Further files that lie in the folder already, to be listed in its manifest.

        Raises
        ------
        WriteError
            If the operating system refuses.
        """
        self._merge()
        folder = Path(folder)
        make_folder(folder)
        none = self._rows(torch.zeros(0, self.encoder.dim))
        rows, scales = (self._blocks[0], self._scales[0]) if self._blocks else none
        names = "".join(json.dumps(name) + "\n" for name in self._place)
        files = {
            "vectors.npy": save_array(folder / "vectors.npy", rows),
            "scales.npy": save_array(folder / "scales.npy", scales),
            "ids.jsonl": atomic_write_bytes(folder / "ids.jsonl", names.encode()),
            **(also or {}),
        }
        config = {
            "fingerprint": self._fingerprint,
            "precision": self.precision,
            "encoder": self._encoder_settings(),
            "has_embedder": self.encoder.embedder is not None,
        }
        write_manifest(folder, Manifest(kind=_KIND, config=config, files=files))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], encoder: JSONEncoder | None = None) -> "JSONIndex":
        """Read an index; its vectors are mapped into memory, not copied.

        Parameters
        ----------
        folder : str or PathLike
            From `save`.
        encoder : JSONEncoder, optional
            The one it was made with. Default: made from the settings kept, which say all but an ``embedder``.

        Returns
        -------
        JSONIndex
            As saved.

        Raises
        ------
        ArtifactError
            If a file is missing or damaged, or the index is of another encoder.
        ArgumentError
            If it was made with an embedder, and no encoder is given.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, _KIND)
        config = manifest.config
        if encoder is None:
            if config["has_embedder"]:
                raise ArgumentError(f"JSONIndex.load: {folder} was made with an embedder; pass encoder=")
            encoder = _encoder_from(config["encoder"])
        if encoder.fingerprint != config["fingerprint"]:
            raise ArtifactError(
                f"{folder}: made by an encoder with fingerprint {config['fingerprint']}, this one has "
                f"{encoder.fingerprint}; their vectors cannot be compared"
            )
        check_file(folder / "ids.jsonl", manifest.files["ids.jsonl"])
        names = [json.loads(line) for line in (folder / "ids.jsonl").read_text("utf-8").splitlines()]
        rows, scales = (open_array(folder / name, manifest.files[name]) for name in ("vectors.npy", "scales.npy"))
        index = cls(encoder, config["precision"])
        index._place = {name: i for i, name in enumerate(names)}
        if not len(names) == len(index._place) == len(rows) == len(scales):
            raise ArtifactError(f"{folder}: {len(names)} ids do not fit {len(rows)} vectors")
        if names:
            index._blocks, index._scales = [rows], [scales]
        return index

    @property
    def _checked_encoder(self) -> JSONEncoder:
        if self.encoder.fingerprint != self._fingerprint:
            raise ArgumentError("JSONIndex: the encoder's settings were changed; its vectors no longer fit the index")
        return self.encoder

    def _encoder_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {name: getattr(self.encoder, name) for name in _SETTINGS}
        given = self.encoder.key_weights
        settings["array"] = list(settings["array"])
        settings["key_weights"] = given if given is None or isinstance(given, str) else dict(given)
        settings["statistics"] = {
            name: getattr(self.encoder, name)
            for name in ("num_documents_", "document_frequency_", "scale_")
            if hasattr(self.encoder, name)
        }
        return settings

    def _rows(self, vectors: Tensor) -> tuple[NDArray[Any], NDArray[np.float32]]:
        values = vectors.detach().cpu().to(torch.float32).numpy()
        ones = np.ones(len(values), dtype=np.float32)
        if self.precision == "float32":
            return values.copy(), ones  # the caller may go on writing to its own
        if self.precision == "sign":
            return np.packbits(values < 0, axis=1), ones
        scales = np.abs(values).max(axis=1, initial=0) / 127
        scales[scales == 0] = 1
        return np.rint(values / scales[:, None]).astype(np.int8), scales

    def _merge(self) -> None:
        if len(self._blocks) > 1:
            self._blocks, self._scales = [np.concatenate(self._blocks)], [np.concatenate(self._scales)]

    def _scores(self, query: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        rows = self._blocks[0]
        if self.precision == "float32":
            return rows @ query
        if self.precision == "int8":
            return np.concatenate([block.astype(np.float32) @ query for block in _blocks(rows)]) * self._scales[0]
        return np.cos(math.pi / self.encoder.dim * _hamming(rows, query))


def _blocks(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


def _hamming(rows: NDArray[np.uint8], query: NDArray[np.float32]) -> NDArray[np.int64]:
    signs = _words(np.packbits(query < 0)[None])
    return np.concatenate(
        [np.bitwise_count(_words(block) ^ signs).sum(axis=1, dtype=np.int64) for block in _blocks(rows)]
    )


def _words(rows: NDArray[np.uint8]) -> NDArray[Any]:
    # eight bytes at a time where the width allows it
    return np.ascontiguousarray(rows).view(np.uint64) if rows.shape[1] % 8 == 0 else rows


def _encoder_from(settings: dict[str, Any]) -> JSONEncoder:
    chosen = {name: settings[name] for name in (*_SETTINGS, "key_weights")}
    encoder = JSONEncoder(**{**chosen, "array": tuple(chosen["array"])})
    for name, value in settings["statistics"].items():
        setattr(encoder, name, value)
    return encoder
