"""The answer: how many nats each training sequence adds to each query, as a matrix on disk with its ids.

Positive: one more copy of the sequence raises the log-probability of the query's completion (a proponent); negative: it
lowers it.
"""

import io
import json
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hesse._optional import require
from hesse.errors import ArgumentError
from hesse.influence.run import RunFolder, open_folder
from hesse.io import ArrayWriter, FileEntry, atomic_write_bytes, check_file, load_tensors, open_array

__all__ = ["Ranked", "Scores", "assemble", "open_scores"]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One line of an answer."""

    rank: int
    id: str
    score: float


@dataclass(frozen=True)
class Scores:
    """Scores of one question, in nats a copy, read from a run.

    ``values`` is a read-only memory map; per-layer and per-token parts are read shard by shard when asked for, each
    compared with its checksum the first time.
    """

    run: RunFolder
    folder: str
    state: dict[str, Any]

    @cached_property
    def _index(self) -> dict[str, list[str]]:
        return read_index(self.run, self.folder)

    @property
    def query_ids(self) -> list[str]:
        """Row names."""
        return self._index["queries"]

    @property
    def train_ids(self) -> list[str]:
        """Column names: ids of the rows of the scored data, a long row's chunks summed."""
        return self._index["rows"]

    @property
    def sequence_ids(self) -> list[str]:
        """Ids of the sequences (chunks) that were scored one by one."""
        return self._index["sequences"]

    @property
    def layer_names(self) -> list[str]:
        """Tracked layers, in the order of the last axis of ``layers``."""
        return self._index["layers"]

    @cached_property
    def values(self) -> np.ndarray:
        """Scores, shape (Q, R), memory-mapped."""
        relative = f"{self.folder}/scores.npy"
        return open_array(self.run.path / relative, self.run.entry(relative))

    @property
    def layers(self) -> np.ndarray | None:
        """Scores before the sum over layers, (Q, R, L), or None if not asked for; they sum to the unrefined ones."""
        if not self.state["per_layer"]:
            return None
        out = np.zeros((len(self.query_ids), len(self.train_ids), len(self.layer_names)), dtype=self.values.dtype)
        columns = self._columns
        for first, part in self._parts():
            layers = part["layers"].numpy()
            np.add.at(out.swapaxes(0, 1), columns[first : first + layers.shape[1]], layers.swapaxes(0, 1))
        return out

    def tokens(self, query: int | str, sequence_id: str) -> np.ndarray | None:
        """Read the terms of one score, a token each; they sum to the unrefined score.

        The value at a position is the effect of the update made *at* that position of the network, which receives loss
        gradients from later tokens through attention; it is not "training on predicting that token".

        Parameters
        ----------
        query : int or str
            Number or id.
        sequence_id : str
            One of ``sequence_ids``.

        Returns
        -------
        ndarray, shape (T,), or None
            None if they were not asked for when scoring.

        Raises
        ------
        ArgumentError
            If the query or the sequence is unknown.
        """
        if not self.state["per_token"]:
            return None
        place = self._place(sequence_id, self.sequence_ids, "sequence_id")
        for first, stop in self.state["parts"]:
            if first <= place < stop:
                part = self._load(first)
                start, end = (int(part["offsets"][place - first + i]) for i in (0, 1))
                return part["tokens"][self._query(query), start:end].numpy()
        raise ArgumentError(f"sequence_id: {sequence_id!r} is in no part of these scores")

    def topk(self, query: int | str, k: int, sign: int = 1) -> list[Ranked]:
        """List the strongest proponents (sign +1) or opponents (-1) of a query, strongest first.

        Parameters
        ----------
        query : int or str
            Number or id.
        k : int
            How many.
        sign : {1, -1}, default 1
            Which end.

        Returns
        -------
        list of Ranked
            Only entries of the asked sign.

        Raises
        ------
        ArgumentError
            If the query is unknown, ``k < 1`` or the sign is neither.
        """
        if k < 1 or sign not in (1, -1):
            raise ArgumentError(f"topk: expected k >= 1 and sign 1 or -1, got k={k}, sign={sign}")
        row = sign * np.asarray(self.values[self._query(query)])
        k = min(k, len(row))
        best = np.argpartition(-row, k - 1)[:k]
        best = best[np.lexsort((best, -row[best]))]
        return [Ranked(i + 1, self.train_ids[n], float(sign * row[n])) for i, n in enumerate(best) if row[n] > 0]

    def to_dict(self) -> dict[str, Any]:
        """Everything but shards, as plain Python.

        Returns
        -------
        dict
            units, query_ids, train_ids and scores, as nested lists.
        """
        return {
            "units": self.state.get("units", "nats"),
            "query_ids": self.query_ids,
            "train_ids": self.train_ids,
            "scores": self.values.tolist(),
        }

    def to_npz(self, path: Path | str) -> None:
        """Write query_id (Q,), train_id (R,) and score (Q, R) as an .npz without pickled objects."""
        buffer = io.BytesIO()
        ids = np.asarray(self.query_ids), np.asarray(self.train_ids)
        np.savez(buffer, query_id=ids[0], train_id=ids[1], score=np.asarray(self.values))
        atomic_write_bytes(Path(path), buffer.getvalue())

    def to_parquet(self, path: Path | str) -> None:
        """Write one row a pair: query_id, train_id, score in nats. Needs the extra ``parquet``."""
        arrow = require("pyarrow", extra="parquet", feature="Scores.to_parquet")
        parquet = require("pyarrow.parquet", extra="parquet", feature="Scores.to_parquet")
        schema = arrow.schema(
            [
                ("query_id", arrow.string()),
                ("train_id", arrow.string()),
                ("score", arrow.from_numpy_dtype(self.values.dtype)),
            ]
        )

        buffer = io.BytesIO()
        with parquet.ParquetWriter(buffer, schema) as writer:
            for q, name in enumerate(self.query_ids):
                columns = [
                    arrow.array([name] * len(self.train_ids)),
                    arrow.array(self.train_ids),
                    arrow.array(np.array(self.values[q])),
                ]
                writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
        atomic_write_bytes(Path(path), buffer.getvalue())

    @cached_property
    def _columns(self) -> np.ndarray:
        place = {name: i for i, name in enumerate(self.train_ids)}
        return np.array([place[name] for name in self._index["row_of_sequence"]])

    def _query(self, query: int | str) -> int:
        if isinstance(query, str):
            return self._place(query, self.query_ids, "query")
        if not 0 <= query < len(self.query_ids):
            raise ArgumentError(f"query: expected 0 to {len(self.query_ids) - 1}, got {query}")
        return query

    def _place(self, name: str, names: list[str], argument: str) -> int:
        try:
            return names.index(name)
        except ValueError:
            raise ArgumentError(
                f"{argument}: no {name!r} in this run; known are "
                f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
            ) from None

    @cached_property
    def _compared(self) -> set[str]:
        return set()

    def _load(self, first: int) -> dict[str, torch.Tensor]:
        relative = f"{self.folder}/part-{first:09d}.safetensors"
        known = relative in self._compared
        tensors = load_tensors(self.run.path / relative, None if known else self.run.entry(relative))
        self._compared.add(relative)
        return tensors

    def _parts(self) -> Any:
        for first, _stop in self.state["parts"]:
            yield first, self._load(first)


def open_scores(run: RunFolder | Path | str, folder: str | None = None) -> Scores:
    """Open finished scores of a run, by default those asked for last.

    Parameters
    ----------
    run : RunFolder or path
        The run.
    folder : str, optional
        A question of it.

    Returns
    -------
    Scores
        Ready to read.

    Raises
    ------
    ArgumentError
        If nothing has been scored, or the scoring has not finished.
    """
    opened = run if isinstance(run, RunFolder) else open_folder(run)
    latest = folder or opened.stage("score").get("latest")
    if latest is None:
        raise ArgumentError(f"run: {opened.path} holds no scores yet; run `hesse influence score` first")
    state = opened.stage(f"score:{latest}")
    if not state.get("done"):
        raise ArgumentError(f"run: the scores in {opened.path} are not finished; the same score command again resumes")
    return Scores(opened, latest, state)


def assemble(
    run: RunFolder,
    folder: str,
    index: dict[str, list[str]],
    refined: Items[tuple[int, np.ndarray, np.ndarray]],
    *,
    wide: bool,
) -> dict[str, FileEntry]:
    """Join all shards into scores.npy (Q, R), a row's chunks summed, refined entries put in, a few queries at a time.

    Parameters
    ----------
    run : RunFolder
        With all parts committed.
    folder : str
        Path of this question's scores inside the run.
    index : dict
        Ids: queries, rows, sequences, row_of_sequence, layers.
    refined : sequence of (query, sequence numbers, values)
        May be empty.
    wide : bool
        float64 instead of float32.

    Returns
    -------
    dict[str, FileEntry]
        The files written.
    """
    place = {name: i for i, name in enumerate(index["rows"])}
    columns = np.array([place[name] for name in index["row_of_sequence"]])
    dtype = np.float64 if wide else np.float32
    better = {q: (numbers, values) for q, numbers, values in refined}
    relative = f"{folder}/scores.npy"
    state = run.stage(f"score:{folder}")
    names = [f"{folder}/part-{first:09d}.safetensors" for first, _stop in state["parts"]]
    files: dict[str, FileEntry] = {}
    step = max(1, (64 << 20) // max(1, 8 * len(columns)))  # queries a block
    with ArrayWriter(run.path / relative, (len(index["queries"]), len(index["rows"])), dtype) as writer:
        for first in range(0, len(index["queries"]), step):
            stop = min(first + step, len(index["queries"]))
            flat = np.concatenate(
                [load_tensors(run.path / n, run.entry(n))["scores"][first:stop].numpy() for n in names], axis=1
            ).astype(dtype)
            for q in range(first, stop):
                if q in better:
                    flat[q - first, better[q][0]] = better[q][1]
            block = np.zeros((stop - first, len(index["rows"])), dtype=dtype)
            np.add.at(block.T, columns, flat.T)
            writer.write(block, rows=slice(first, stop))
    files[relative] = writer.entry
    # one line a key: a corpus of millions would make one JSON value too large to be read back safely
    lines = "".join(json.dumps([key, name]) + "\n" for key, names in index.items() for name in names)
    files[f"{folder}/index.jsonl"] = atomic_write_bytes(run.path / folder / "index.jsonl", lines.encode())
    return files


def read_index(run: RunFolder, folder: str) -> dict[str, list[str]]:
    """Read back the ids that `assemble` wrote.

    Parameters
    ----------
    run : RunFolder
        The run.
    folder : str
        Path of the scores inside it.

    Returns
    -------
    dict of str to list
        queries, rows, sequences, row_of_sequence and layers.
    """
    relative = f"{folder}/index.jsonl"
    check_file(run.path / relative, run.entry(relative))
    index: dict[str, list[str]] = {key: [] for key in ("queries", "rows", "sequences", "row_of_sequence", "layers")}
    with (run.path / relative).open(encoding="utf-8") as lines:
        for line in lines:
            key, name = json.loads(line)
            index[key].append(name)
    return index


def sequence_values(run: RunFolder, folder: str) -> np.ndarray:
    """Read the scores of the first pass by sequence.

    Parameters
    ----------
    run : RunFolder
        The run.
    folder : str
        Path of the scores inside it.

    Returns
    -------
    ndarray, shape (Q, N)
        Before chunks are summed and entries refined.
    """
    state = run.stage(f"score:{folder}")
    names = [f"{folder}/part-{first:09d}.safetensors" for first, _stop in state["parts"]]
    return np.concatenate([load_tensors(run.path / n, run.entry(n))["scores"].numpy() for n in names], axis=1)
