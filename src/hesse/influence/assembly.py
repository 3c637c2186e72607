"""Joins what a scoring pass left in shards into the matrix of scores, rows and queries summed from their parts."""

import json
from collections.abc import Mapping
from collections.abc import Sequence as Items

import numpy as np
import torch

from hesse.influence.examples import Examples
from hesse.influence.run import RunFolder
from hesse.influence.scores import TOP_NAME, sum_rows
from hesse.influence.top import TopRows, row_names
from hesse.io import ArrayWriter, FileEntry, atomic_write_bytes, load_tensors, save_tensors

__all__ = ["assemble", "save_top", "sequence_values"]


def assemble(
    run: RunFolder,
    folder: str,
    index: dict[str, Items[str]],
    refined: Items[tuple[int, np.ndarray, np.ndarray]],
    *,
    wide: bool,
) -> dict[str, FileEntry]:
    """Join all shards into scores.npy (Q, R), a row's chunks summed, refined entries put in, a few queries at a time.

    Where each target of a query was scored, theirs go into targets.npy (P, R), and their sums into scores.npy.

    Parameters
    ----------
    run : RunFolder
        With all parts committed.
    folder : str
        Path of this question's scores inside the run.
    index : dict
        Ids: queries, rows, sequences, row_of_sequence, layers, targets.
    refined : sequence of (query or target, sequence numbers, values)
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
    state = run.stage(f"score:{folder}")
    names = [f"{folder}/part-{first:09d}.safetensors" for first, _stop in state["parts"]]
    files: dict[str, FileEntry] = {}
    scored = index["targets"] or index["queries"]
    relative = f"{folder}/{'targets' if index['targets'] else 'scores'}.npy"
    step = max(1, (64 << 20) // max(1, 8 * len(columns)))  # queries a block
    with ArrayWriter(run.path / relative, (len(scored), len(index["rows"])), dtype) as writer:
        for first in range(0, len(scored), step):
            stop = min(first + step, len(scored))
            flat = np.concatenate(
                [load_tensors(run.path / n, run.entry(n))["scores"][first:stop].numpy() for n in names], axis=1
            ).astype(dtype)
            for q in range(first, stop):
                if q in better:
                    flat[q - first, better[q][0]] = better[q][1]
            writer.write(sum_rows(flat.T, columns, len(index["rows"])).T, rows=slice(first, stop))
    files[relative] = writer.entry
    if index["targets"]:
        files[f"{folder}/scores.npy"] = _sum_targets(run, folder, index, dtype)
    files[f"{folder}/index.jsonl"] = _write_index(run, folder, index)
    return files


def save_top(
    run: RunFolder, folder: str, index: dict[str, Items[str]], best: TopRows, candidates: Examples
) -> dict[str, FileEntry]:
    """Write the best rows of every query, with the ids of those rows alone.

    Parameters
    ----------
    run : RunFolder
        The run.
    folder : str
        Path of this question's scores inside the run.
    index : dict
        Ids: queries, layers, targets.
    best : TopRows
        By the numbers of first sequences.
    candidates : Examples
        Knows the ids.

    Returns
    -------
    dict[str, FileEntry]
        The files written.
    """
    numbers = np.unique(best.numbers[best.numbers >= 0])
    places = np.where(best.numbers < 0, -1, np.searchsorted(numbers, best.numbers))
    tensors = {"values": torch.from_numpy(best.values), "places": torch.from_numpy(places)}
    relative = f"{folder}/{TOP_NAME}"
    rows = {"rows": row_names(candidates, numbers.tolist())}
    return {
        relative: save_tensors(run.path / relative, tensors),
        f"{folder}/index.jsonl": _write_index(run, folder, index | rows),
    }


def _write_index(run: RunFolder, folder: str, index: Mapping[str, Items[str]]) -> FileEntry:
    # one line a key: a corpus of millions would make one JSON value too large to be read back safely
    lines = "".join(json.dumps([key, name]) + "\n" for key, names in index.items() for name in names)
    return atomic_write_bytes(run.path / folder / "index.jsonl", lines.encode())


def _sum_targets(run: RunFolder, folder: str, index: dict[str, Items[str]], dtype: type[np.floating]) -> FileEntry:
    # a query's targets stand together, so that one query after the other is read and written
    targets = np.load(run.path / folder / "targets.npy", mmap_mode="r")
    owners = [name.rpartition("@")[0] for name in index["targets"]]
    with ArrayWriter(run.path / folder / "scores.npy", (len(index["queries"]), len(index["rows"])), dtype) as writer:
        for q, name in enumerate(index["queries"]):
            first = owners.index(name)
            total = targets[first : first + owners.count(name)].sum(0, keepdims=True)
            writer.write(total, rows=slice(q, q + 1))
    return writer.entry


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
    ndarray, shape (Q, N), or (P, N) of targets
        Before chunks are summed and entries refined.
    """
    state = run.stage(f"score:{folder}")
    names = [f"{folder}/part-{first:09d}.safetensors" for first, _stop in state["parts"]]
    return np.concatenate([load_tensors(run.path / n, run.entry(n))["scores"].numpy() for n in names], axis=1)
