"""A sparse inverted index over token ids, on disk: for every token the sequences that hold it, and how often.

Layout, one part for so many sequences, each part five files called ``part-<first sequence>.<name>.npy``:

    terms (V,) uint32       tokens that occur, rising     starts (V + 1,) uint64   where the postings of each begin
    documents (P,) uint32   sequences, from the part's first     counts (P,)       how often, in the narrowest type
    lengths (D,) uint32     tokens of every sequence

Shapes: N sequences in all, D of a part, V tokens, P pairs of a token and a sequence that holds it.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hesse.errors import ArgumentError, ArtifactError
from hesse.influence.examples import Examples, plan_units
from hesse.influence.prefilter.parts import build_parts, manifest_of
from hesse.influence.streams import token_rows
from hesse.io import (
    FileEntry,
    Manifest,
    open_array,
    read_manifest,
    run_lock,
    save_array,
)

__all__ = ["KIND", "IndexPart", "TokenIndex", "build_index", "open_index"]

KIND = "token-index"

_LAYOUT = 1
_NAMES = ("terms", "starts", "documents", "counts", "lengths")


@dataclass(frozen=True, slots=True)
class IndexPart:
    """A contiguous run of sequences, its arrays mapped from disk."""

    first: int  # number of its first sequence
    terms: np.ndarray  # (V,) uint32
    starts: np.ndarray  # (V + 1,) uint64
    documents: np.ndarray  # (P,) uint32
    counts: np.ndarray  # (P,)
    lengths: np.ndarray  # (D,) uint32

    def postings(self, term: int) -> tuple[np.ndarray, np.ndarray]:
        """Look a token up.

        Parameters
        ----------
        term : int
            Token id.

        Returns
        -------
        documents, counts : ndarray, shape (n,)
            Sequences of this part that hold it, rising, and how often; empty if none does.
        """
        place = int(np.searchsorted(self.terms, term))
        if place == len(self.terms) or self.terms[place] != term:
            return self.documents[:0], self.counts[:0]
        found = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return self.documents[found], self.counts[found]


@dataclass(frozen=True)
class TokenIndex:
    """An index opened for reading; only the postings of tokens that are asked for are read from disk."""

    path: Path
    manifest: Manifest
    parts: list[IndexPart]

    def __len__(self) -> int:
        return sum(len(part.lengths) for part in self.parts)

    @property
    def data(self) -> str:
        """Fingerprint of the sequences that it was built from."""
        return self.manifest.parents["data"]

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return sum(entry.size for entry in self.manifest.files.values())

    @cached_property
    def mean_length(self) -> float:
        """Tokens a sequence, on average."""
        return sum(int(part.lengths.sum(dtype=np.int64)) for part in self.parts) / len(self)

    @cached_property
    def frequencies(self) -> np.ndarray:
        """In how many sequences every token occurs, shape (largest token + 1,)."""
        largest = max((int(part.terms[-1]) for part in self.parts if len(part.terms)), default=-1)
        out = np.zeros(largest + 1, dtype=np.int64)
        for part in self.parts:
            out[part.terms] += np.diff(part.starts.astype(np.int64))
        return out


def build_index(
    examples: Examples,
    folder: Path | str,
    *,
    tokenizer: str | None = None,
    part_size: int = 8192,
    show_progress: bool | None = False,
) -> TokenIndex:
    """Build an index in one pass over the sequences; the same call again resumes, or opens what is there.

    Parameters
    ----------
    examples : Examples
        N token sequences.
    folder : path
        Made if missing.
    tokenizer : str, optional
        Hash of what cut them, kept and compared. Default: not known.
    part_size : int, default 8192
        Sequences held at once, and kept as one part: some 130 MB at 512 tokens each.
    show_progress : bool, optional
        Show a bar; None if stderr is a terminal.

    Returns
    -------
    TokenIndex
        Complete.

    Raises
    ------
    ArgumentError
        If the data are no token sequences, a token is outside of 0 to 2**32 - 1, the folder holds something else, or
        ``part_size < 1``.
    ArtifactError
        If the folder holds the index of other data, of another tokenizer or layout, or a damaged file.

    Notes
    -----
    O(tokens log tokens) time, memory of one part; 5 to 8 bytes a pair of token and sequence on disk.
    """
    if part_size < 1:
        raise ArgumentError(f"part_size: expected >= 1, got {part_size}")
    where = Path(folder)
    config = {"layout": _LAYOUT, "part_size": part_size}
    parents = {"data": examples.fingerprint(), "tokenizer": tokenizer or "not known"}
    with run_lock(where):
        manifest = manifest_of(where, KIND, config, parents)
        build_parts(
            where, manifest, len(examples), part_size, lambda unit: _write_part(where, examples, unit),
            title="index", show_progress=show_progress,
        )  # fmt: skip
    return open_index(where)


def open_index(folder: Path | str, *, data: str | None = None) -> TokenIndex:
    """Open an index, every file compared with its checksum.

    Parameters
    ----------
    folder : path
        That `build_index` filled.
    data : str, optional
        Fingerprint of the sequences that it must have been built from. Default: any.

    Returns
    -------
    TokenIndex
        Mapped into memory.

    Raises
    ------
    ArtifactError
        If there is none, it is not finished or of other data, or a file is missing or damaged; names it.
    """
    where = Path(folder)
    manifest = read_manifest(where, KIND, parents=None if data is None else {"data": data})
    if not manifest.stages.get("build", {}).get("done"):
        raise ArtifactError(f"{where}: the index is not finished; build it again, it resumes")
    size, total = int(manifest.config["part_size"]), int(manifest.stages["build"]["sequences"])
    parts = [_open_part(where, manifest, unit.start) for unit in plan_units(total, size)]
    index = TokenIndex(where, manifest, parts)
    if len(index) != total:
        raise ArtifactError(f"{where}: holds {len(index):,} sequences, its manifest says {total:,}; build it again")
    return index


def _write_part(where: Path, examples: Examples, unit: range) -> dict[str, FileEntry]:
    rows = list(token_rows(examples, unit))
    lengths = np.array([len(row) for row in rows], dtype=np.uint32)
    tokens = np.concatenate(rows).astype(np.int64)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < 1 << 32:
        raise ArgumentError(f"dataset: expected token ids from 0 to 2**32 - 1, got {tokens.min()} to {tokens.max()}")
    # one number a pair, which sorts by token and then by sequence: below 2**63, as a part has fewer than 2**31
    pairs = tokens * len(unit) + np.repeat(np.arange(len(unit)), lengths)
    pairs, counts = np.unique(pairs, return_counts=True)
    terms, starts = np.unique(pairs // len(unit), return_index=True)
    arrays = {
        "terms": terms.astype(np.uint32),
        "starts": np.append(starts, len(pairs)).astype(np.uint64),
        "documents": (pairs % len(unit)).astype(np.uint32),
        "counts": counts.astype(np.min_scalar_type(int(counts.max(initial=0)))),
        "lengths": lengths,
    }
    return {name: save_array(where / name, arrays[key]) for key in _NAMES for name in (_file(unit.start, key),)}


def _open_part(where: Path, manifest: Manifest, first: int) -> IndexPart:
    arrays = {}
    for key in _NAMES:
        name = _file(first, key)
        if name not in manifest.files:
            raise ArtifactError(f"{where / name}: not named in the manifest; build the index again")
        arrays[key] = open_array(where / name, manifest.files[name])
    return IndexPart(first, **arrays)


def _file(first: int, key: str) -> str:
    return f"part-{first:012d}.{key}.npy"
