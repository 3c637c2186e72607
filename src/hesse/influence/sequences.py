"""Training data as token sequences: read rows from files or data sets, tokenise them, cut long ones, pad batches.

A row is what the user has (a document, or a prompt with its completion); a sequence is what the model sees (at most
``max_length`` tokens). N, the size of the training set, counts sequences; a row's score is the sum over its sequences.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from hesse._optional import require
from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "IGNORED",
    "Row",
    "Sequence",
    "collate",
    "encode_pair",
    "fingerprint",
    "read_json_lines",
    "read_rows",
    "tokenize_rows",
]

IGNORED = -100
"""The label of a token that is not supervised, as in torch and transformers."""

Row = dict[str, Any]
"""What the user has: ``id`` and one of ``text``, ``prompt`` with ``completion``, ``input_ids``; others are metadata."""

_BATCH = 512  # texts a tokenizer call: enough to keep its threads busy, few enough to hold


@dataclass(frozen=True)
class Sequence:
    """One token sequence with its targets.

    ``labels[t]`` is ``input_ids[t]`` where token t is supervised and -100 elsewhere; the shift by one is the loss's
    business, so ``labels[0]`` is always -100. ``offsets`` (T, 2) are character spans in ``text``.
    """

    id: str
    row: str
    input_ids: np.ndarray  # (T,) int64
    labels: np.ndarray  # (T,) int64
    text: str | None = None
    offsets: np.ndarray | None = None  # (T, 2) int32
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)


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


def tokenize_rows(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, max_length: int, *, strict: bool = False
) -> list[Sequence]:
    """Tokenise rows and cut those longer than ``max_length`` into chunks.

    The tokenizer is called plainly: its own default special tokens, nothing appended. Of a ``text`` row every token but
    the first is supervised; of a ``prompt``/``completion`` row, tokenised jointly, every token from the first whose
    character span ends after the prompt. A chunk cannot predict its own first token, so that one is not supervised.

    Parameters
    ----------
    rows : iterable of mappings
        As `read_rows` returns them; plain dicts of the same forms are checked here too.
    tokenizer : PreTrainedTokenizerFast
        May be None when every row brings ``input_ids``.
    max_length : int
        T, at least 2 tokens. Chunks of row "a" are called "a#0", "a#1", ... in order and do not overlap.
    strict : bool, default False
        Raise if a token straddles the border of prompt and completion, rather than count it to the completion. Off by
        default: a space at the end of a prompt is enough for it.

    Returns
    -------
    list of Sequence
        In the order of the rows.

    Raises
    ------
    ArgumentError
        If a row has no tokens or no completion, two sequences share an id, or ``max_length < 2``. Names the row.

    Notes
    -----
    O(characters) time; everything is held in memory, about 20 bytes a token beside the text.
    """
    if max_length < 2:
        raise ArgumentError(f"max_length: expected >= 2 (one token to read, one to predict), got {max_length}")
    checked = read_rows(rows if isinstance(rows, list) else list(rows))
    sequences: list[Sequence] = []
    for start in range(0, len(checked), _BATCH):
        for whole in _encode(checked[start : start + _BATCH], tokenizer, strict):
            sequences.extend(_chunks(whole, max_length))
    seen: set[str] = set()
    for sequence in sequences:
        if sequence.id in seen:
            raise ArgumentError(f"rows: the id {sequence.id!r} is both a row's and a chunk's; rename that row")
        seen.add(sequence.id)
    return sequences


def encode_pair(
    name: str, prompt: str, completion: str, tokenizer: Any, *, strict: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokenise prompt + completion jointly and supervise the completion only.

    Parameters
    ----------
    name : str
        What to call it in an error, such as "query 'q1'".
    prompt, completion : str
        Joined as they are, without a space between.
    tokenizer : PreTrainedTokenizerFast
        Must give character offsets.
    strict : bool, default False
        Raise if a token straddles the border.

    Returns
    -------
    input_ids : ndarray of int64, shape (T,)
        Of the joined text.
    labels : ndarray of int64, shape (T,)
        -100 on the prompt and on the first token.
    offsets : ndarray of int32, shape (T, 2)
        Character spans in the joined text.

    Raises
    ------
    ArgumentError
        If the completion is empty or gets no token that has a context, or a token straddles and ``strict``.
    ArgumentTypeError
        If the tokenizer gives no offsets.
    """
    if not completion:
        raise ArgumentError(f"{name}: the completion is empty")
    (tokens,), spans = _call(tokenizer, [prompt + completion])
    if spans is None:
        raise ArgumentTypeError(
            f"{name}: finding where the completion starts needs a fast tokenizer (one with offsets)"
        )
    offsets = spans[0]
    inside = np.flatnonzero(offsets[:, 1] > len(prompt))
    first = int(inside[0]) if len(inside) else len(tokens)
    if first < len(tokens) and strict and offsets[first, 0] < len(prompt):
        begin, end = offsets[first]
        raise ArgumentError(
            f"{name}: the token {(prompt + completion)[begin:end]!r} straddles prompt and completion; move the border, "
            "or pass strict=False to count it to the completion"
        )
    labels = np.full_like(tokens, IGNORED)
    labels[max(first, 1) :] = tokens[max(first, 1) :]
    if not (labels != IGNORED).any():
        raise ArgumentError(
            f"{name}: no token of the completion has a token before it to predict it from; give a prompt"
        )
    return tokens, labels, offsets


def fingerprint(sequences: Iterable[Sequence]) -> str:
    """Hash ids, tokens and labels, in order.

    Parameters
    ----------
    sequences : iterable of Sequence
        A data set.

    Returns
    -------
    str
        xxh3-128 in hexadecimal: equal data, equal fingerprint, on any machine.
    """
    digest = xxhash.xxh3_128()
    for sequence in sequences:
        name = sequence.id.encode()
        # lengths go in first, so that no two data sets run together into the same bytes
        digest.update(np.array([len(name), len(sequence.input_ids)], dtype="<i8").tobytes())
        digest.update(name)
        digest.update(np.ascontiguousarray(sequence.input_ids, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(sequence.labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def collate(sequences: Items[Sequence], pad_id: int = 0, side: str = "right") -> dict[str, Tensor]:
    """Pad to the longest.

    Parameters
    ----------
    sequences : sequence of Sequence
        B of them, at least one.
    pad_id : int, default 0
        Fills ``input_ids``; its value never enters a score, since the padding is masked.
    side : {"right", "left"}, default "right"
        Where the padding goes. Left padding adds ``position_ids`` counted from each sequence's first token.

    Returns
    -------
    dict of Tensor
        ``input_ids``, ``attention_mask`` and ``labels``, int64 of shape (B, T).

    Raises
    ------
    ArgumentError
        If there is no sequence, or ``side`` is neither.
    """
    if side not in ("left", "right"):
        raise ArgumentError(f"side: expected 'left' or 'right', got {side!r}")
    if not sequences:
        raise ArgumentError("sequences: there is nothing to collate")
    lengths = np.array([len(s.input_ids) for s in sequences])
    shape = (len(sequences), int(lengths.max()))
    tokens, labels = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for i, sequence in enumerate(sequences):
        where = slice(0, lengths[i]) if side == "right" else slice(shape[1] - lengths[i], shape[1])
        tokens[i, where], labels[i, where], mask[i, where] = sequence.input_ids, sequence.labels, 1
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    if side == "left":
        batch["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)
    return {key: torch.from_numpy(value) for key, value in batch.items()}


def _encode(rows: Items[Row], tokenizer: Any, strict: bool) -> Iterator[Sequence]:
    # one uncut sequence a row; the plain texts go through the tokenizer in one call
    forms = [_form(row) for row in rows]
    texts = [row["text"] for row, form in zip(rows, forms, strict=True) if form == "text"]
    if tokenizer is None and set(forms) != {"input_ids"}:
        raise ArgumentError("tokenizer: rows of text need one")
    encoded, spans = _call(tokenizer, texts) if texts else ([], None)
    number = 0
    for row, form in zip(rows, forms, strict=True):
        name = row["id"]
        if form == "input_ids":
            tokens, labels = _token_arrays(row)
            text, offsets = (row.get("text"), None) if tokenizer is None else _decode(tokens, tokenizer)
        elif form == "prompt":
            text = row["prompt"] + row["completion"]
            tokens, labels, offsets = encode_pair(
                f"row {name!r}", row["prompt"], row["completion"], tokenizer, strict=strict
            )
        else:
            text, tokens, offsets = row["text"], encoded[number], None if spans is None else spans[number]
            labels = tokens.copy()
            number += 1
        if len(tokens) == 0:
            raise ArgumentError(f"row {name!r}: it has no tokens")
        labels[0] = IGNORED
        yield Sequence(name, name, tokens, labels, text, offsets, _metadata(row))


def _call(tokenizer: Any, texts: list[str]) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    # the tokenizer's plain call, with character spans when it can give them
    fast = bool(getattr(tokenizer, "is_fast", False))
    # truncation is off, so a warning about long texts would only mislead: they are cut into chunks afterwards
    output = tokenizer(texts, return_offsets_mapping=True, verbose=False) if fast else tokenizer(texts)
    tokens = [np.asarray(ids, dtype=np.int64) for ids in output["input_ids"]]
    if not fast:
        return tokens, None
    return tokens, [np.asarray(spans, dtype=np.int32).reshape(-1, 2) for spans in output["offset_mapping"]]


def _decode(tokens: np.ndarray, tokenizer: Any) -> tuple[str, np.ndarray]:
    # a readable text for a row that came as token ids: its tokens decoded one by one, so that every token has its span
    pieces = tokenizer.batch_decode([[int(token)] for token in tokens])
    ends = np.cumsum([len(piece) for piece in pieces])
    return "".join(pieces), np.stack([np.concatenate([[0], ends[:-1]]), ends], 1).astype(np.int32)


def _chunks(whole: Sequence, max_length: int) -> Iterator[Sequence]:
    # cut into runs of ``max_length`` tokens; the chunks' texts partition the row's text
    total = len(whole.input_ids)
    if total <= max_length:
        yield whole
        return
    cursor = 0
    for k, start in enumerate(range(0, total, max_length)):
        stop = min(start + max_length, total)
        labels = whole.labels[start:stop].copy()
        labels[0] = IGNORED
        text, offsets = None, None
        if whole.text is not None and whole.offsets is not None:
            spans = whole.offsets[start:stop]
            end = len(whole.text) if stop == total else max(cursor, int(spans[:, 1].max()))
            # a character whose bytes fall on both sides of the cut stays with the chunk before
            text, offsets = whole.text[cursor:end], np.clip(spans - cursor, 0, None).astype(np.int32)
            cursor = end
        yield Sequence(
            f"{whole.row}#{k}", whole.row, whole.input_ids[start:stop], labels, text, offsets, dict(whole.metadata)
        )


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
            parquet = require("pyarrow.parquet", extra="parquet", feature="reading .parquet data")
            return _open_parquet(parquet.ParquetFile(path), path)
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


def _open_parquet(file: Any, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    numbered, number = "id" not in file.schema_arrow.names, 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            yield f"{path}: row {number}", {"id": str(number), **row} if numbered else row
            number += 1


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
    form = _form(row, where)
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
        _token_arrays(row, where)
    return row


def _form(row: Mapping[str, Any], where: str = "row") -> str:
    # which of the three forms a row has: "input_ids", "prompt" or "text"
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


def _token_arrays(row: Mapping[str, Any], where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    # ``input_ids`` and ``labels`` of a tokenised row, without what its attention mask leaves out
    where = where or f"row {row['id']!r}"
    arrays = [_integers(row["input_ids"], f"{where}: input_ids")]
    for key in ("labels", "attention_mask"):
        arrays.append(arrays[0] if row.get(key) is None else _integers(row[key], f"{where}: {key}"))
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


def _integers(values: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ArgumentError(f"{where}: expected a flat list of integers ({error})") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ArgumentError(f"{where}: expected a flat list of integers, got shape {array.shape} of {array.dtype}")
    return array.astype(np.int64)


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    known = ("id", "text", "prompt", "completion", "input_ids", "labels", "attention_mask")
    return {key: value for key, value in row.items() if key not in known}
