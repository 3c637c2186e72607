"""JSON Lines, read one record at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["RECORDS_NAME", "read_records", "record_id"]

RECORDS_NAME = "records.jsonl"  # in the folder of an index


def read_records(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Read a file of JSON Lines without holding it.

    Parameters
    ----------
    path : Path
        UTF-8, one document a line; blank lines are passed over.

    Yields
    ------
    (int, str, object)
        Number of the line from 1, its text, and the document.

    Raises
    ------
    ArgumentError
        If the file cannot be read, or a line is no JSON or has a key twice; the message says which.
    """
    from hesse.errors import ArgumentError
    from hesse.vsa import parse_json

    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if not text:
                    continue
                try:
                    document = parse_json(text)
                except ArgumentError as error:
                    raise ArgumentError(f"{path}, line {number}: {error}") from error
                yield number, text, document
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def record_id(document: Any, number: int, field: str | None) -> str:
    """Name a record.

    Parameters
    ----------
    document : object
        The record.
    number : int
        Of its line.
    field : str, optional
        Key that holds its id. Default: the line's number is its id.

    Returns
    -------
    str
        A text as it is, anything else as JSON.

    Raises
    ------
    ArgumentError
        If the record has no such key.
    """
    from hesse.errors import ArgumentError

    if field is None:
        return str(number)
    if not isinstance(document, dict) or field not in document:
        raise ArgumentError(f"line {number}: the record has no key {field!r}; leave --id out to count lines")
    value = document[field]
    return value if isinstance(value, str) else json.dumps(value)
