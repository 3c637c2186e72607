"""JSON files: one text for each value, written in one step, read without trust."""

import json
import math
import os
from pathlib import Path
from typing import Any, cast

import numpy as np

from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError
from hesse.io import calls
from hesse.io.atomic import atomic_write_bytes
from hesse.io.checksum import RECOMPUTE, FileEntry, checked_fd

__all__ = ["atomic_write_json", "encode_json", "read_json"]

MAX_JSON_VALUES = 1 << 18  # a container of 3 bytes takes 72 in memory: this many stay near 20 MiB
CHUNK_BYTES = 1 << 20
DELIMITERS = b",:[{"  # each value but the first comes with one


def _check_keys(value: object, where: str) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            for key, below in cast("dict[object, object]", item).items():
                if not isinstance(key, str):
                    raise ArgumentTypeError(
                        f"{where}: expected text as keys, got {key!r}, which would come back as text"
                    )
                stack.append(below)
        elif isinstance(item, list | tuple):
            stack.extend(cast("list[object]", item))


def encode_json(value: object, where: str = "value", *, max_values: int = MAX_JSON_VALUES) -> bytes:
    """Return the one JSON text hesse writes for a value: sorted keys, indent 1, ASCII, a newline at the end.

    Parameters
    ----------
    value : object
        dict with text keys, list, tuple (comes back as a list), text, int, finite float, bool, None.
    where : str, default "value"
        Name for the error message.
    max_values : int, default 2¹⁸
        As for ``read_json``, which must be given as many to read the text back.

    Returns
    -------
    bytes
        ASCII.

    Raises
    ------
    ArgumentTypeError
        If something in it is of another type. Also a TypeError.
    ArgumentError
        If it holds NaN or Inf, contains itself, or has more than ``max_values`` values. Also a ValueError.
    """
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False, indent=1)
    except TypeError as error:
        raise ArgumentTypeError(f"{where}: cannot be written as JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{where}: cannot be written as JSON: {error}") from error
    _check_keys(value, where)
    data = f"{text}\n".encode("ascii")
    if _has_many_values(data, max_values):
        raise ArgumentError(f"{where}: more than {max_values:,} JSON values are not read back: use save_array")
    return data


def atomic_write_json(path: str | os.PathLike[str], obj: object) -> FileEntry:
    """Write a value as JSON in one step; equal values give equal bytes.

    Parameters
    ----------
    path : str or PathLike
        The target; replaced if it exists.
    obj : object
        dict with text keys, list, tuple (comes back as a list), text, int, finite float, bool, None.

    Returns
    -------
    FileEntry
        Size and checksum, for the manifest.

    Raises
    ------
    ArgumentTypeError
        If something in it is of another type.
    ArgumentError
        If it holds NaN or Inf.
    WriteError
        If the operating system refuses; the old file is then still there.
    """
    return atomic_write_bytes(path, encode_json(obj, str(path)))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _depth(value: object) -> int:
    deepest, level = 0, [value]
    while level:
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(cast("dict[str, object]", item).values())
            elif isinstance(item, list):
                below.extend(cast("list[object]", item))
        deepest += any(isinstance(item, dict | list) for item in level)
        level = below
    return deepest


def _has_many_values(data: bytes | bytearray, limit: int) -> bool:
    if sum(data.count(mark) for mark in DELIMITERS) <= limit:
        return False
    # Now exactly, without those inside strings, in pieces so that it takes no memory to refuse a large file.
    count, inside, carry = 0, 0, b""
    for start in range(0, len(data), CHUNK_BYTES):
        piece = carry + bytes(data[start : start + CHUNK_BYTES])
        body = piece.rstrip(b"\\")  # a backslash stays together with what it escapes
        carry = piece[len(body) :]
        text = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
        quotes = np.cumsum(text == ord('"'), dtype=np.uint8) + np.uint8(inside)  # only its parity matters
        count += int(np.count_nonzero(np.isin(text, np.frombuffer(DELIMITERS, np.uint8)) & (quotes % 2 == 0)))
        inside = int(quotes[-1]) % 2 if len(quotes) else inside
        if count > limit:
            return True
    return False


def read_json(
    path: str | os.PathLike[str],
    *,
    max_bytes: int = 64 << 20,
    max_values: int = MAX_JSON_VALUES,
    max_depth: int = 64,
    entry: FileEntry | None = None,
) -> Any:
    """Read a JSON file that may be damaged or hostile.

    Parameters
    ----------
    path : str or PathLike
        The file.
    max_bytes : int, default 64 MiB
        Refuse a larger file before it is read.
    max_values : int, default 2¹⁸
        Refuse more values, whatever the size of the file: a few bytes of text can ask for many of memory.
    max_depth : int, default 64
        Refuse lists and objects nested deeper.
    entry : FileEntry, optional
        Size and checksum to hold it against first. Default: not compared.

    Returns
    -------
    Any
        The value.

    Raises
    ------
    ArtifactError
        If the file is missing, too large, not UTF-8, not JSON (NaN, Inf and a key that occurs twice are not), or nested
        too deep.
    """
    path = Path(path)
    with checked_fd(path, entry) as fd:
        size = os.fstat(fd).st_size
        if size > max_bytes:
            raise ArtifactError(f"{path}: {size:,} bytes of JSON, at most {max_bytes:,} are read. {RECOMPUTE}")
        data = _read_all(fd, size, path)
    if _has_many_values(data, max_values):
        raise ArtifactError(f"{path}: more than {max_values:,} JSON values. {RECOMPUTE}")
    try:
        text = data.decode("utf-8")
        del data  # the text alone is needed, and may be four times as large
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ArtifactError(f"{path}: JSON nested deeper than {max_depth}. {RECOMPUTE}") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ArtifactError(f"{path}: damaged, not JSON: {error}. {RECOMPUTE}") from error
    if _depth(value) > max_depth:
        raise ArtifactError(f"{path}: JSON nested deeper than {max_depth}. {RECOMPUTE}")
    return value


def _read_all(fd: int, size: int, path: Path) -> bytearray:
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    try:
        while done < size and (count := calls.read_into(fd, view[done:])):
            done += count
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error}. Check the disk. {RECOMPUTE}") from error
    if done < size:
        raise ArtifactError(f"{path}: ended after {done:,} of {size:,} bytes while it was read. {RECOMPUTE}")
    return buffer
