"""Training data as token sequences: rows tokenised, long ones cut, batches padded.

A row is what the user has (a document, or a prompt with its completion); a sequence is what the model sees (at most
``max_length`` tokens). N, the size of the training set, counts sequences; a row's score is the sum over its sequences.
"""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.influence.rows import IGNORED, Row, read_json_lines, read_rows, row_form, token_arrays

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
    forms = [row_form(row) for row in rows]
    texts = [row["text"] for row, form in zip(rows, forms, strict=True) if form == "text"]
    if tokenizer is None and set(forms) != {"input_ids"}:
        raise ArgumentError("tokenizer: rows of text need one")
    encoded, spans = _call(tokenizer, texts) if texts else ([], None)
    number = 0
    for row, form in zip(rows, forms, strict=True):
        name = row["id"]
        if form == "input_ids":
            tokens, labels = token_arrays(row)
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


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    known = ("id", "text", "prompt", "completion", "input_ids", "labels", "attention_mask")
    return {key: value for key, value in row.items() if key not in known}
