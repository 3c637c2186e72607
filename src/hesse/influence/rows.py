"""Rows of text, of prompt and completion, or of token ids: read from files, data sets and lists, and checked."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hesse._optional import require
from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = ["IGNORED", "Row", "integers", "read_json_lines", "read_rows", "row_form", "token_arrays"]

IGNORED = -100
"""The label of a token that is not supervised, as in torch and transformers."""

Row = dict[str, Any]
"""What the user has: ``id`` and one of ``text``, ``prompt`` with ``completion``, ``input_ids``; others are metadata."""


def read_rows(source: Any, limit: int | None = None, *, split: str = "train") -> list[Row]:
    """Read rows of text, of prompt and completion, or of token ids.

    ``{"id", "text"}``, ``{"id", "prompt", "completion"}`` or ``{"id", "input_ids"[, "labels"]}``; others are metadata.

    Parameters
    ----------
    source : str, Path, list of dicts, or datasets.Dataset
        A ``.jsonl`` file (one object a line, every one with an id); a ``.txt`` file (documents are paragraphs,
        separated by blank lines); a ``.parquet`` file; a data set's folder, or its id on the Hugging Face hub; or rows.
        Text paragraphs, and tables or lists that have no ``id`` at all, are numbered "0", "1", ... in order.
    limit : int, optional
        Read this many rows at most. Default: all.
    split : str, default "train"
        Which split, if a Hugging Face data set has several.

    Returns
    -------
    list of dict
        Each with a string ``id``.

    Raises
    ------
    ArgumentError
        If the source is missing or empty, a row is malformed, or an id is missing or repeated. Names file and line.
    ArgumentTypeError
        If the source is none of these.
    MissingDependencyError
        If pyarrow or datasets is needed and not installed.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit: expected >= 1, got {limit}")
    rows: list[Row] = []
    first_seen: dict[str, str] = {}
    for where, raw in islice(_open(source, split), limit):
        row = _checked(raw, where)
        if row["id"] in first_seen:
            raise ArgumentError(f"{where}: the id {row['id']!r} was used before, at {first_seen[row['id']]}")
        first_seen[row["id"]] = where
        rows.append(row)
    if not rows:
        raise ArgumentError(f"data: {source if isinstance(source, (str, Path)) else 'the data set'} holds no rows")
    return rows


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) for every line that is not blank.

    Parameters
    ----------
    path : Path
        UTF-8, one JSON object a line.

    Yields
    ------
    tuple of str and dict
        Where it stood, and what it holds.

    Raises
    ------
    ArgumentError
        If the file is missing, or a line is not UTF-8 or not a JSON object. Names file and line.
    """
    if not path.is_file():
        raise ArgumentError(f"data: there is no file {path}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                value = json.loads(text) if text.strip() else None
            except (ValueError, RecursionError) as error:
                raise ArgumentError(f"{where}: not a line of JSON ({error})") from error
            if not text.strip():
                continue
            if not isinstance(value, dict):
                raise ArgumentError(f"{where}: expected a JSON object, got {type(value).__name__}")
            yield where, value


def _open(source: Any, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # yield (where, row) from whatever the source is
    if isinstance(source, (str, Path)):
        path = Path(source)
        suffix = path.suffix.lower()
        if path.is_dir():
            return _open_table(_load_folder(path, split), str(path))
        if suffix in (".jsonl", ".txt", ".parquet") and not path.is_file():
            raise ArgumentError(f"data: there is no file {path}")
        if suffix == ".jsonl":
            return read_json_lines(path)
        if suffix == ".txt":
            return _open_text(path)
        if suffix == ".parquet":
            return _open_parquet(path)
        if path.is_file():
            raise ArgumentError(f"data: {path}: expected .jsonl, .txt or .parquet, got {suffix or 'no suffix'!r}")
        return _open_table(_load_hub(str(source), split), str(source))
    if isinstance(source, Mapping) and split in source:
        return _open_table(source[split], "data")
    if isinstance(source, Mapping):
        raise ArgumentError(f"data: no split {split!r}; there are {', '.join(map(str, source))}")
    if isinstance(source, (list, tuple)) or hasattr(source, "column_names"):
        return _open_table(source, "data")
    raise ArgumentTypeError(f"data: expected a path, a data set or a list of dicts, got {type(source).__name__}")


def _open_table(table: Any, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # rows in memory or of a data set, numbered if none of them has an id
    columns = getattr(table, "column_names", None)
    numbered = "id" not in columns if columns else not any(isinstance(row, Mapping) and "id" in row for row in table)
    for number, row in enumerate(table):
        where = f"{name}: row {number}"
        if not isinstance(row, Mapping):
            raise ArgumentTypeError(f"{where}: expected a dict, got {type(row).__name__}")
        yield where, {"id": str(number), **row} if numbered else row


def _open_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    arrow = require("pyarrow", extra="parquet", feature="reading .parquet data")
    parquet = require("pyarrow.parquet", extra="parquet", feature="reading .parquet data")
    try:
        file, number = parquet.ParquetFile(path), 0
        numbered = "id" not in file.schema_arrow.names
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                yield f"{path}: row {number}", {"id": str(number), **row} if numbered else row
                number += 1
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: damaged, or no Parquet file ({error})") from error


def _open_text(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: not UTF-8 text ({error})") from error
    paragraphs = (part.strip("\n") for part in re.split(r"\n(?:[^\S\n]*\n)+", text))
    for number, paragraph in enumerate(part for part in paragraphs if part.strip()):
        yield f"{path}: paragraph {number}", {"id": str(number), "text": paragraph}


def _load_folder(path: Path, split: str) -> Any:
    datasets = require("datasets", extra="hf", feature="reading a data set's folder")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, Mapping) and split not in loaded:
            raise ArgumentError(f"data: {path} has no split {split!r}; it has {', '.join(map(str, loaded))}")
        return loaded[split] if isinstance(loaded, Mapping) else loaded
    return _load_hub(str(path), split)


def _load_hub(name: str, split: str) -> Any:
    if not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ArgumentError(f"data: there is no file or folder {name}")
    datasets = require("datasets", extra="hf", feature="reading a Hugging Face data set")
    try:
        return datasets.load_dataset(name, split=split)
    except (
        OSError,
        ValueError,
    ) as error:  # not found, offline, no such split or configuration: all derive from these two
        raise ArgumentError(
            f"data: {name} is neither a file here nor a data set that could be loaded ({error})"
        ) from error


def _checked(raw: Mapping[str, Any], where: str) -> Row:
    # the row with its id as a string, or an error that says what is wrong with it
    name = raw.get("id")
    if name is None:
        raise ArgumentError(f'{where}: the row has no "id"')
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise ArgumentError(f"{where}: the id must be a string, got {type(name).__name__}")
    row = {**raw, "id": str(name)}
    if not row["id"]:
        raise ArgumentError(f"{where}: the id is empty")
    form = row_form(row, where)
    for key in ("id", *{"text": ("text",), "prompt": ("prompt", "completion"), "input_ids": ()}[form]):
        if not isinstance(row[key], str):
            raise ArgumentError(f"{where}: {key} must be a string, got {type(row[key]).__name__}")
        try:
            row[key].encode()
        except UnicodeEncodeError as error:
            raise ArgumentError(f"{where}: {key} is not valid Unicode ({error})") from error
    if form == "text" and not row["text"]:
        raise ArgumentError(f"{where}: the text is empty")
    if form == "prompt" and not row["completion"]:
        raise ArgumentError(f"{where}: the completion is empty")
    if form == "input_ids":
        token_arrays(row, where)
    return row


def row_form(row: Mapping[str, Any], where: str = "row") -> str:
    """Tell which of the three forms a row has.

    Parameters
    ----------
    row : mapping
        As the user gave it.
    where : str, default "row"
        What to call it in an error.

    Returns
    -------
    str
        "input_ids", "prompt" or "text".

    Raises
    ------
    ArgumentError
        If it has none of them, half of one, or two.
    """
    has = {key: row.get(key) is not None for key in ("input_ids", "prompt", "completion", "text")}
    if has["input_ids"]:
        return "input_ids"
    if has["prompt"] != has["completion"]:
        raise ArgumentError(
            f"{where}: prompt and completion come together; {'completion' if has['prompt'] else 'prompt'} is missing"
        )
    if has["prompt"] and has["text"]:
        raise ArgumentError(f"{where}: it has both text and prompt with completion; keep one of them")
    if not has["prompt"] and not has["text"]:
        raise ArgumentError(
            f"{where}: expected text, prompt with completion, or input_ids; got {', '.join(map(str, row))}"
        )
    return "prompt" if has["prompt"] else "text"


def token_arrays(row: Mapping[str, Any], where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a tokenised row, without what its attention mask leaves out.

    Parameters
    ----------
    row : mapping
        With ``input_ids``, and perhaps ``labels`` (default: every token) and ``attention_mask``.
    where : str, optional
        What to call it in an error. Default: its id.

    Returns
    -------
    input_ids : ndarray of int64, shape (T,)
        At least one.
    labels : ndarray of int64, shape (T,)
        The same, or -100.

    Raises
    ------
    ArgumentError
        If they are not flat lists of integers of one length, or a label is neither its token nor -100.
    """
    where = where or f"row {row['id']!r}"
    arrays = [integers(row["input_ids"], f"{where}: input_ids")]
    for key in ("labels", "attention_mask"):
        arrays.append(arrays[0] if row.get(key) is None else integers(row[key], f"{where}: {key}"))
        if arrays[-1].shape != arrays[0].shape:
            raise ArgumentError(f"{where}: {len(arrays[0])} input_ids but {len(arrays[-1])} in {key}")
    tokens, labels, mask = arrays
    if row.get("attention_mask") is not None:
        tokens, labels = tokens[mask != 0], labels[mask != 0]
    if len(tokens) == 0:
        raise ArgumentError(f"{where}: input_ids is empty")
    if tokens.min() < 0:
        raise ArgumentError(f"{where}: input_ids holds a negative number")
    if ((labels != IGNORED) & (labels != tokens)).any():
        raise ArgumentError(
            f"{where}: labels must equal input_ids or be {IGNORED}; they are not shifted, the loss does that"
        )
    return tokens.copy(), labels.copy()


def integers(values: Any, where: str) -> np.ndarray:
    """Read a flat list of integers.

    Parameters
    ----------
    values : array_like
        Of the user.
    where : str
        What to call it in an error.

    Returns
    -------
    ndarray of int64, shape (T,)
        A copy.

    Raises
    ------
    ArgumentError
        If it is anything else.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ArgumentError(f"{where}: expected a flat list of integers ({error})") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ArgumentError(f"{where}: expected a flat list of integers, got shape {array.shape} of {array.dtype}")
    return array.astype(np.int64)
