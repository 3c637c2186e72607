"""Queries: a prompt and the completion whose log-probability is to be traced back to the training data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hesse.errors import ArgumentError
from hesse.influence.sequences import Sequence, encode_pair, read_json_lines

__all__ = ["Query", "read_queries", "tokenize_query"]

_KEYS = ("id", "prompt", "completion")


@dataclass(frozen=True)
class Query:
    """The measurement f(θ) = log p(completion | prompt): a sum over the completion's tokens, in nats."""

    id: str
    prompt: str
    completion: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.completion:
            raise ArgumentError(f"query {self.id!r}: the completion is empty")


def read_queries(path: str | Path) -> list[Query]:
    """Read queries from JSON lines, one ``{"id", "prompt", "completion"}`` a line; further keys become metadata.

    Parameters
    ----------
    path : str or Path
        A .jsonl file in UTF-8. Blank lines are skipped.

    Returns
    -------
    list of Query
        In the order of the file, at least one.

    Raises
    ------
    ArgumentError
        If the file is missing, empty, malformed, or two queries share an id. Names file and line.
    """
    queries: list[Query] = []
    first_seen: dict[str, str] = {}
    for where, line in read_json_lines(Path(path)):
        query = _query(line, where)
        if query.id in first_seen:
            raise ArgumentError(f"{where}: the id {query.id!r} was used before, at {first_seen[query.id]}")
        first_seen[query.id] = where
        queries.append(query)
    if not queries:
        raise ArgumentError(f"queries: {path} holds no query")
    return queries


def tokenize_query(query: Query, tokenizer: Any, max_length: int, *, strict: bool = False) -> Sequence:
    """Tokenise prompt and completion jointly; only the completion is supervised.

    Parameters
    ----------
    query : Query
        What to trace.
    tokenizer : PreTrainedTokenizerFast
        The model's.
    max_length : int
        T. A longer query is refused: cutting its prompt would change what is asked.
    strict : bool, default False
        Raise if a token straddles the border of prompt and completion, rather than count it to the completion.

    Returns
    -------
    Sequence
        With the query's id, and its prompt and completion in ``metadata``.

    Raises
    ------
    ArgumentError
        If the completion is empty, has no token with a context, or the query is longer than ``max_length``.
    """
    tokens, labels, offsets = encode_pair(
        f"query {query.id!r}", query.prompt, query.completion, tokenizer, strict=strict
    )
    if len(tokens) > max_length:
        raise ArgumentError(
            f"query {query.id!r}: it has {len(tokens)} tokens, more than max_length {max_length}; shorten the prompt"
        )
    metadata = {**query.metadata, "prompt": query.prompt, "completion": query.completion}
    return Sequence(query.id, query.id, tokens, labels, query.prompt + query.completion, offsets, metadata)


def _query(line: Mapping[str, Any], where: str) -> Query:
    for key in _KEYS:
        if key not in line:
            raise ArgumentError(f'{where}: a query needs "id", "prompt" and "completion"; {key!r} is missing')
    name = line["id"]
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise ArgumentError(f"{where}: the id must be a string, got {json.dumps(name)}")
    for key in ("prompt", "completion"):
        if not isinstance(line[key], str):
            raise ArgumentError(f"{where}: query {str(name)!r}: {key} must be a string, got {type(line[key]).__name__}")
    if not line["completion"]:
        raise ArgumentError(f"{where}: query {str(name)!r}: the completion is empty")
    return Query(str(name), line["prompt"], line["completion"], {k: v for k, v in line.items() if k not in _KEYS})
