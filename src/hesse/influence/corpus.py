"""The texts of a run, kept beside its scores: what was scored, token by token, readable one sequence at a time.

Layout, inside the run: ``corpus/<name>/texts-<mark>.jsonl`` has one JSON object a sequence (text and metadata);
``corpus/<name>/tokens-<mark>.safetensors`` has token ids, targets and character spans end to end, ids as bytes, and
where each sequence starts. The mark is of their content: other texts of the same name never touch the files that the
manifest still names.   Shapes: N sequences, M tokens in all.
"""

import json
import math
import mmap
import re
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hesse.errors import ArgumentError, ArtifactError
from hesse.influence.run import open_folder
from hesse.influence.sequences import IGNORED, Sequence, fingerprint
from hesse.io import (
    FileEntry,
    atomic_writer,
    check_file,
    file_path,
    load_tensors,
    read_manifest,
    run_lock,
    save_tensors,
)

__all__ = ["Corpus", "find_corpus", "keep_corpus", "open_corpus", "save_corpus", "split_pieces"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def save_corpus(run_dir: Path | str, name: str, sequences: Items[Sequence]) -> dict[str, FileEntry]:
    """Write the sequences into a run; they count once the caller has put the entries into the manifest.

    Parameters
    ----------
    run_dir : Path or str
        The run's folder.
    name : str
        "train", "queries", or one of your own: letters, digits, ``_`` and ``-``.
    sequences : sequence of Sequence
        N of them, ids unique. Metadata is kept as JSON: what JSON has no word for is kept as its text.

    Returns
    -------
    dict of str to FileEntry
        By path inside the run.

    Raises
    ------
    ArgumentError
        If the name is not allowed, there is no sequence, an id repeats, or labels are not those of `Sequence`.
    WriteError
        If the operating system refuses.

    Notes
    -----
    O(text) time; 21 bytes a token beside the text.
    """
    _check_name(name)
    if not sequences:
        raise ArgumentError("sequences: there is nothing to save")
    if len({sequence.id for sequence in sequences}) < len(sequences):
        raise ArgumentError("sequences: an id occurs twice")
    for sequence in sequences:
        if ((sequence.labels != IGNORED) & (sequence.labels != sequence.input_ids)).any():
            raise ArgumentError(f"sequences: {sequence.id!r} has labels that are neither its input_ids nor {IGNORED}")
    mark = fingerprint(sequences)[:16]
    texts, tokens = f"corpus/{name}/texts-{mark}.jsonl", f"corpus/{name}/tokens-{mark}.safetensors"
    lines = [0]
    with atomic_writer(Path(run_dir) / texts) as writer:
        for sequence in sequences:
            line = json.dumps({"text": sequence.text, "metadata": _plain(sequence.metadata)}).encode() + b"\n"
            writer.write(line)
            lines.append(lines[-1] + len(line))
    tensors = {
        **_ragged("tokens", [s.input_ids for s in sequences], np.int64),
        **_ragged("ids", [_bytes(s.id) for s in sequences], np.uint8),
        **_ragged("rows", [_bytes(s.row) for s in sequences], np.uint8),
        "supervised": np.concatenate([s.labels != IGNORED for s in sequences]).astype(np.uint8),
        "spans": np.concatenate([_spans(s) for s in sequences]).astype(np.int32),
        "has_spans": np.array([s.offsets is not None for s in sequences], dtype=np.uint8),
        "lines": np.array(lines, dtype=np.int64),
    }
    entry = save_tensors(Path(run_dir) / tokens, {key: torch.from_numpy(value) for key, value in tensors.items()})
    return {texts: writer.entry, tokens: entry}


def keep_corpus(run_dir: Path | str, name: str, sequences: Items[Sequence]) -> None:
    """Save texts into a run and enter them in its manifest, unless it has these under this name already.

    Killed at any moment, the run keeps the old texts of that name or the new ones, whole.

    Parameters
    ----------
    run_dir : Path or str
        A run that exists.
    name : str
        As for `save_corpus`. What it held before is replaced.
    sequences : sequence of Sequence
        What was scored or asked.
    """
    mark = fingerprint(sequences)
    with run_lock(run_dir):
        run = open_folder(run_dir)
        kept = run.stage("corpus")
        if kept.get(name) != mark:
            old = [file for file in run.manifest.files if file.startswith(f"corpus/{name}/")]
            run.commit({"corpus": {**kept, name: mark}}, save_corpus(run_dir, name, sequences), old)


def find_corpus(run_dir: Path | str, mark: str) -> "Corpus | None":
    """Open the texts with this fingerprint, whatever their name.

    Parameters
    ----------
    run_dir : Path or str
        A run.
    mark : str
        From `hesse.influence.sequences.fingerprint`; scores record it of their queries and of their data.

    Returns
    -------
    Corpus or None
        None if the run does not keep them.
    """
    names = [name for name, kept in open_folder(run_dir).stage("corpus").items() if kept == mark]
    return open_corpus(run_dir, names[0]) if names else None


def open_corpus(run_dir: Path | str, name: str) -> "Corpus":
    """Open the texts that a run keeps under a name; files are checked against the manifest here, and read on demand.

    Parameters
    ----------
    run_dir : Path or str
        The run's folder.
    name : str
        As given to `save_corpus`.

    Returns
    -------
    Corpus
        Read-only.

    Raises
    ------
    ArgumentError
        If the run keeps no such texts.
    ArtifactError
        If the folder is no run, or a file is damaged.
    """
    _check_name(name)
    files = read_manifest(run_dir).files
    kept = sorted(path for path in files if path.startswith(f"corpus/{name}/"))
    if not kept:
        raise ArgumentError(f"run: {run_dir} keeps no texts called {name!r}")
    if [re.split("[-.]", Path(path).name)[0] for path in kept] != ["texts", "tokens"]:
        raise ArtifactError(f"{run_dir}: expected a file of texts and one of tokens called {name!r}, got {kept}")
    texts, tokens = (file_path(run_dir, path) for path in kept)
    check_file(texts, files[kept[0]])
    tensors = {key: value.numpy() for key, value in load_tensors(tokens, files[kept[1]]).items()}
    return Corpus(texts, tensors)


@dataclass(frozen=True)
class Corpus:
    """Texts and tokens of N sequences; only the lines asked for are read."""

    path: Path
    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["lines"]) - 1

    @cached_property
    def ids(self) -> list[str]:
        """Id of every sequence, in order."""
        return [bytes(part).decode() for part in _parts(self.arrays, "ids")]

    @cached_property
    def rows(self) -> list[str]:
        """Id of the row each sequence was cut from; several sequences may share it."""
        return [bytes(part).decode() for part in _parts(self.arrays, "rows")]

    def text(self, name: str) -> str | None:
        """Return the text of one sequence.

        Parameters
        ----------
        name : str
            Id of a sequence.

        Returns
        -------
        str or None
            None if it came as token ids without a tokenizer.
        """
        return self._line(self._place(name))["text"]

    def metadata(self, name: str) -> dict[str, Any]:
        """Return what else the row of this sequence held.

        Parameters
        ----------
        name : str
            Id of a sequence.

        Returns
        -------
        dict
            Its further keys.
        """
        return self._line(self._place(name))["metadata"]

    def pieces(self, name: str) -> list[str]:
        """Return one string a token, which together are the text.

        Parameters
        ----------
        name : str
            Id of a sequence.

        Returns
        -------
        list of str
            T pieces; empty for a special token or a part of a character.
        """
        return _pieces(self.sequence(name))

    def sequence(self, name: str) -> Sequence:
        """Return the sequence as it was saved.

        Parameters
        ----------
        name : str
            Id of a sequence.

        Returns
        -------
        Sequence
            Equal in ids, tokens, labels, text and spans.
        """
        return self._sequence(self._place(name))

    def sequences(self) -> list[Sequence]:
        """Return all of them; this reads everything.

        Returns
        -------
        list of Sequence
            In order.
        """
        return [self._sequence(i) for i in range(len(self))]

    def sequences_of(self, row: str) -> list[str]:
        """Return the ids of the sequences a row was cut into, in order.

        Parameters
        ----------
        row : str
            Id of a row.

        Returns
        -------
        list of str
            One id if it was not cut.

        Raises
        ------
        ArgumentError
            If there is no such row.
        """
        if row not in self._rows:
            raise ArgumentError(f"row: these texts have no {row!r}")
        return [self.ids[i] for i in self._rows[row]]

    def row_text(self, row: str) -> str | None:
        """Return the text of a whole row, its chunks put together.

        Parameters
        ----------
        row : str
            Id of a row.

        Returns
        -------
        str or None
            None if a chunk has none.
        """
        texts = [self.text(name) for name in self.sequences_of(row)]
        return None if any(text is None for text in texts) else "".join(text or "" for text in texts)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            rows.setdefault(row, []).append(i)
        return rows

    @cached_property
    def _file(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.path}: replaced by other texts since it was opened; open it again") from error

    def _place(self, name: str) -> int:
        if name not in self._places:
            raise ArgumentError(f"id: these texts have no {name!r}")
        return self._places[name]

    def _line(self, place: int) -> dict[str, Any]:
        start, stop = self.arrays["lines"][place : place + 2]
        try:
            return json.loads(self._file[start:stop])
        except ValueError as error:
            raise ArtifactError(
                f"{self.path}: line {place + 1} is not JSON ({error}); score again to write it anew"
            ) from error

    def _sequence(self, place: int) -> Sequence:
        start, stop = self.arrays["tokens.starts"][place : place + 2]
        tokens = self.arrays["tokens"][start:stop].copy()
        labels = np.where(self.arrays["supervised"][start:stop] != 0, tokens, IGNORED)
        offsets = self.arrays["spans"][start:stop].copy() if self.arrays["has_spans"][place] else None
        line = self._line(place)
        return Sequence(self.ids[place], self.rows[place], tokens, labels, line["text"], offsets, line["metadata"])


def split_pieces(text: str, offsets: np.ndarray) -> list[str]:
    """Cut a text at the ends of its tokens, so that the pieces put together are the text again.

    Parameters
    ----------
    text : str
        What was tokenised.
    offsets : ndarray, shape (T, 2)
        Character spans; special tokens have an empty one.

    Returns
    -------
    list of str
        T pieces. Characters that belong to no token go to the next one; those after the last, to the last.
    """
    pieces, cursor = [], 0
    for _start, end in offsets.tolist():
        stop = max(cursor, min(end, len(text)))
        pieces.append(text[cursor:stop])
        cursor = stop
    if pieces and cursor < len(text):
        last = max((i for i, piece in enumerate(pieces) if piece), default=len(pieces) - 1)
        pieces[last] += text[cursor:]
    return pieces


def _pieces(sequence: Sequence) -> list[str]:
    if sequence.text is None or sequence.offsets is None:
        return [f"[{token}]" for token in sequence.input_ids]
    return split_pieces(sequence.text, sequence.offsets)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ArgumentError(f"name: expected letters, digits, '_' and '-', got {name!r}")


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _spans(sequence: Sequence) -> np.ndarray:
    return np.zeros((len(sequence), 2), np.int32) if sequence.offsets is None else sequence.offsets


def _ragged(name: str, parts: list[np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return {name: np.concatenate(parts).astype(dtype), f"{name}.starts": starts}


def _parts(arrays: Mapping[str, np.ndarray], name: str) -> Iterator[np.ndarray]:
    return (arrays[name][start:stop] for start, stop in pairwise(arrays[f"{name}.starts"]))


def _plain(value: Any) -> Any:
    # JSON has no NaN, dates, bytes or arrays: their text says what they were
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
