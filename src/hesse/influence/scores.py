"""The answer: how many nats each training sequence adds to each query, as a matrix on disk with its ids.

Positive: one more copy of the sequence raises the log-probability of the query's completion (a proponent); negative: it
lowers it.
"""

import bisect
import io
import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hesse._optional import require
from hesse.errors import ArgumentError
from hesse.influence.refined import place_of, refined_file
from hesse.influence.run import RunFolder, open_folder
from hesse.io import atomic_write_bytes, check_file, load_tensors, open_array

_LINES = 10_000
_KEYS = ("queries", "rows", "sequences", "row_of_sequence", "layers", "targets")

TOP_NAME = "top.safetensors"
"""File of the best rows, where only those are kept."""

__all__ = ["TOP_NAME", "Ranked", "Scores", "open_scores", "read_index", "sum_rows"]


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
        """Column names: ids of the rows of the scored data, a long row's chunks summed; only of those kept by top_k."""
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
        """Scores, shape (Q, R), memory-mapped.

        Raises
        ------
        ArgumentError
            If only the best rows were kept.
        """
        if self.top_k is not None:
            raise ArgumentError(
                f"values: only the {self.top_k} strongest rows of each sign were kept, see topk; score again without "
                "top_k for all of them"
            )
        relative = f"{self.folder}/scores.npy"
        return open_array(self.run.path / relative, self.run.entry(relative))

    @property
    def top_k(self) -> int | None:
        """How many rows of each sign were kept a query; None if all scores were."""
        return self.state.get("top_k")

    @cached_property
    def _top(self) -> tuple[np.ndarray, np.ndarray]:
        # values and columns, (Q, 2, K), strongest first
        relative = f"{self.folder}/{TOP_NAME}"
        tensors = load_tensors(self.run.path / relative, self.run.entry(relative))
        return tensors["values"].numpy(), tensors["places"].numpy()

    @property
    def layers(self) -> np.ndarray | None:
        """Scores before the sum over layers, (Q, R, L), or None if not asked for; they sum to ``values``."""
        if not self.state["per_layer"]:
            return None
        out = np.zeros((len(self.query_ids), len(self.train_ids), len(self.layer_names)), dtype=self.values.dtype)
        columns = self._columns
        for first, part in self._parts():
            layers = self._by_query(self._refined_layers(part["layers"].numpy(), first))
            np.add.at(out.swapaxes(0, 1), columns[first : first + layers.shape[1]], layers.swapaxes(0, 1))
        return out

    def layer_terms(self, query: int | str, row: str) -> np.ndarray | None:
        """Read the terms of one score, a layer each; they sum to the score.

        Parameters
        ----------
        query : int or str
            Number or id.
        row : str
            One of ``train_ids``.

        Returns
        -------
        ndarray, shape (L,), or None
            In the order of ``layer_names``; None if they were not asked for when scoring.

        Raises
        ------
        ArgumentError
            If the query or the row is unknown.
        """
        if not self.state["per_layer"]:
            return None
        number, column = self._query(query), self._place(row, self.row_places, "row")
        scored = self._scored(number)
        places = np.flatnonzero(self._columns == column).tolist()
        return np.sum([self._layers_of(target, place) for target in scored for place in places], axis=0)

    def targets(self, query: int | str) -> list[int] | None:
        """Name the tokens of a query whose log-probabilities add up to the measurement, where each was scored.

        Parameters
        ----------
        query : int or str
            Number or id.

        Returns
        -------
        list of int, or None
            C positions in the query's sequence, rising; None if scoring did not ask for them.

        Raises
        ------
        ArgumentError
            If the query is unknown.
        """
        places = self._places_of(query)
        return None if places is None else [int(self._index["targets"][place].rpartition("@")[2]) for place in places]

    def by_target(self, query: int | str) -> np.ndarray | None:
        """Read the scores of a query before the sum over its tokens.

        Parameters
        ----------
        query : int or str
            Number or id.

        Returns
        -------
        ndarray, shape (C, R), or None
            One row a target, in the order of `targets`; they sum to the query's row of ``values``.

        Raises
        ------
        ArgumentError
            If the query is unknown.
        """
        places = self._places_of(query)
        if places is None:
            return None
        relative = f"{self.folder}/targets.npy"
        return open_array(self.run.path / relative, self.run.entry(relative))[places]

    def pairs(self, query: int | str, sequence_id: str) -> np.ndarray | None:
        """Read the terms of one score, one a token of the query and of the sequence; they sum to the score.

        Parameters
        ----------
        query : int or str
            Number or id.
        sequence_id : str
            One of ``sequence_ids``.

        Returns
        -------
        ndarray, shape (C, T), or None
            Effect on the log-probability of each target of the update made at each position; None if scoring did not
            ask for both.

        Raises
        ------
        ArgumentError
            If the query or the sequence is unknown.
        """
        places = self._places_of(query)
        return None if places is None else self._terms(places.tolist(), sequence_id)

    def tokens(self, query: int | str, sequence_id: str) -> np.ndarray | None:
        """Read the terms of one score, a token each; they sum to the score.

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
        terms = self._terms(self._scored(self._query(query)), sequence_id)
        return None if terms is None else terms.sum(0)

    def topk(self, query: int | str, k: int, sign: int = 1, *, target: int | None = None) -> list[Ranked]:
        """List the strongest proponents (sign +1) or opponents (-1) of a query, strongest first.

        Parameters
        ----------
        query : int or str
            Number or id.
        k : int
            How many.
        sign : {1, -1}, default 1
            Which end.
        target : int, optional
            Rank by the effect on this token alone, one of `targets`. Default: on all of the completion.

        Returns
        -------
        list of Ranked
            Only entries of the asked sign.

        Raises
        ------
        ArgumentError
            If the query or the target is unknown, ``k < 1`` or the sign is neither.
        """
        if k < 1 or sign not in (1, -1):
            raise ArgumentError(f"topk: expected k >= 1 and sign 1 or -1, got k={k}, sign={sign}")
        if self.top_k is not None:
            return self._kept(self._query(query), k, sign)
        row = sign * self.ranked_by(query, target)
        k = min(k, len(row))
        best = np.argpartition(-row, k - 1)[:k]
        best = best[np.lexsort((best, -row[best]))]
        return [Ranked(i + 1, self.train_ids[n], float(sign * row[n])) for i, n in enumerate(best) if row[n] > 0]

    def _kept(self, number: int, k: int, sign: int) -> list[Ranked]:
        if self.top_k is not None and k > self.top_k:
            raise ArgumentError(
                f"topk: only {self.top_k} rows of each sign were kept, got k={k}; score again with more"
            )
        values, places = (part[number, 0 if sign > 0 else 1, :k] for part in self._top)
        return [
            Ranked(i + 1, self.train_ids[n], float(value))
            for i, (value, n) in enumerate(zip(values, places, strict=True))
            if n >= 0 and sign * value > 0
        ]

    def ranked_by(self, query: int | str, target: int | None = None) -> np.ndarray:
        """Read the scores of all rows for a query, or for one of its tokens.

        Parameters
        ----------
        query : int or str
            Number or id.
        target : int, optional
            One of `targets`.

        Returns
        -------
        ndarray, shape (R,)
            In nats.

        Raises
        ------
        ArgumentError
            If the query or the target is unknown.
        """
        if target is None:
            return np.asarray(self.values[self._query(query)])
        known, values = self.targets(query), self.by_target(query)
        if known is None or values is None:
            raise ArgumentError("target: these scores are of whole completions; score again with per_query_token")
        if target not in known:
            raise ArgumentError(f"target: expected one of {', '.join(map(str, known))}, got {target}")
        return values[known.index(target)]

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

    def to_dataframe(self) -> Any:
        """Return one row a pair: query_id, train_id, score in nats, as a pandas frame.

        Returns
        -------
        pandas.DataFrame
            Q · R rows.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.
        """
        pandas = require("pandas", extra="hf", feature="Scores.to_dataframe")
        columns = {
            "query_id": np.repeat(np.asarray(self.query_ids, dtype=object), len(self.train_ids)),
            "train_id": np.tile(np.asarray(self.train_ids, dtype=object), len(self.query_ids)),
            "score": np.asarray(self.values).reshape(-1),
        }
        return pandas.DataFrame(columns)

    def _repr_html_(self) -> str:
        from hesse.influence.notebook import scores_html

        return scores_html(self)

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
        return np.array([self.row_places[name] for name in self._index["row_of_sequence"]])

    @cached_property
    def row_places(self) -> dict[str, int]:
        """Column of every row, by id."""
        return {name: i for i, name in enumerate(self.train_ids)}

    @cached_property
    def _sequence_places(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.sequence_ids)}

    @cached_property
    def _query_places(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.query_ids)}

    @cached_property
    def _query_of_target(self) -> np.ndarray | None:
        if not self._index["targets"]:
            return None
        return np.array([self._query_places[name.rpartition("@")[0]] for name in self._index["targets"]])

    def _places_of(self, query: int | str) -> np.ndarray | None:
        number, owners = self._query(query), self._query_of_target
        return None if owners is None else np.flatnonzero(owners == number)

    def _by_query(self, terms: np.ndarray) -> np.ndarray:
        # what was scored, (P, ...), summed to queries, (Q, ...)
        return terms if self._query_of_target is None else sum_rows(terms, self._query_of_target, len(self.query_ids))

    def _scored(self, number: int) -> list[int]:
        # what was scored for a query: itself, or each of its targets
        places = self._places_of(number)
        return [number] if places is None else places.tolist()

    def _terms(self, scored: list[int], sequence_id: str) -> np.ndarray | None:
        # (P, T)
        if not self.state["per_token"]:
            return None
        place = self._place(sequence_id, self._sequence_places, "sequence_id")
        inside, part = self._shard(place)
        start, end = part["offsets"][inside : inside + 2].tolist()
        terms = part["tokens"][scored, start:end].numpy()
        for row, target in enumerate(scored):
            exact = self._refined(target)
            if (at := place_of(exact, place)) is not None:
                terms[row] = exact["tokens"][exact["offsets"][at] : exact["offsets"][at + 1]].numpy()
        return terms

    def _layers_of(self, target: int, place: int) -> np.ndarray:
        # (L,) of one sequence
        exact = self._refined(target)
        if (at := place_of(exact, place)) is not None:
            return exact["layers"][at].numpy()
        inside, part = self._shard(place)
        return part["layers"][target, inside].numpy()

    def _refined_layers(self, layers: np.ndarray, first: int) -> np.ndarray:
        # of the sequences from number ``first`` on, with those of refined scores in place
        layers = layers.copy()
        for target, terms in enumerate(layers):
            exact = self._refined(target)
            if exact:
                numbers = exact["numbers"].numpy()
                here = slice(*np.searchsorted(numbers, [first, first + len(terms)]))
                terms[numbers[here] - first] = exact["layers"][here].numpy()
        return layers

    def _refined(self, target: int) -> dict[str, torch.Tensor]:
        # terms of the refined scores of what was scored as number ``target``; empty if none are kept
        relative = refined_file(self.folder, target)
        return self._tensors(relative) if relative in self.run.manifest.files else {}

    def _shard(self, place: int) -> tuple[int, dict[str, torch.Tensor]]:
        # where in its shard a sequence lies, and the shard, whose tensors are views of its file
        firsts = [first for first, _stop in self.state["parts"]]
        first = firsts[bisect.bisect_right(firsts, place) - 1]
        return place - first, self._load(first)

    def _query(self, query: int | str) -> int:
        if isinstance(query, str):
            return self._place(query, self._query_places, "query")
        if not 0 <= query < len(self.query_ids):
            raise ArgumentError(f"query: expected 0 to {len(self.query_ids) - 1}, got {query}")
        return query

    def _place(self, name: str, places: dict[str, int], argument: str) -> int:
        if name not in places:
            known = ", ".join(list(places)[:5])
            raise ArgumentError(
                f"{argument}: no {name!r} in this run; known are {known}{', …' if len(places) > 5 else ''}"
            )
        return places[name]

    @cached_property
    def _compared(self) -> set[str]:
        return set()

    def _load(self, first: int) -> dict[str, torch.Tensor]:
        return self._tensors(f"{self.folder}/part-{first:09d}.safetensors")

    def _tensors(self, relative: str) -> dict[str, torch.Tensor]:
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


def sum_rows(terms: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Add up rows that belong together.

    Parameters
    ----------
    terms : ndarray, shape (P, ...)
        Rows.
    places : ndarray of int, shape (P,)
        Where each is added.
    count : int
        Q.

    Returns
    -------
    ndarray, shape (Q, ...)
        Sums.
    """
    out = np.zeros((count, *terms.shape[1:]), dtype=terms.dtype)
    np.add.at(out, places, terms)
    return out


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
        queries, rows, sequences, row_of_sequence, layers, and targets, which is empty unless each was scored.
    """
    relative = f"{folder}/index.jsonl"
    check_file(run.path / relative, run.entry(relative))
    index: dict[str, list[str]] = {key: [] for key in _KEYS}
    with (run.path / relative).open(encoding="utf-8") as lines:
        while block := list(itertools.islice(lines, _LINES)):  # one call a block is three times as fast as one a line
            for key, name in json.loads(f"[{','.join(block)}]"):
                index[key].append(name)
    return index
