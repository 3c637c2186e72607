"""Full-text search over the texts of a run, and which of them are the same text: one SQLite file a corpus.

The file is a cache beside other caches, never inside the run, and is made in the background: what needs no search works
before it is there. Shapes: R rows, in the order of the scores.
"""

import hashlib
import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hesse.errors import ArgumentError
from hesse.influence import Corpus

__all__ = ["SearchIndex", "search_folder"]

_VERSION = 1
_VALUES = 200  # a metadata key with more different values is no tag, and is left out of the filters
_WORD = re.compile(r"\w+")


def search_folder() -> Path:
    """Name the folder of the indexes.

    Returns
    -------
    Path
        ``$HESSE_CACHE/viewer``, else ``~/.cache/hesse/viewer``.
    """
    return Path(os.environ.get("HESSE_CACHE") or Path.home() / ".cache" / "hesse") / "viewer"


class SearchIndex:
    """Answers which rows hold some words, which carry a tag, and which share one text.

    Parameters
    ----------
    corpus : Corpus
        Texts of the scored rows.
    rows : list of str
        Ids of the R rows, in the order of the scores.
    folder : Path
        Where the file goes.
    """

    def __init__(self, corpus: Corpus, rows: list[str], folder: Path) -> None:
        self._corpus, self._rows = corpus, rows
        mark = hashlib.sha256(json.dumps([_VERSION, corpus.path.name, rows]).encode()).hexdigest()[:24]
        self._path = folder / f"{mark}.sqlite"
        self._ready = threading.Event()
        self._groups: np.ndarray | None = None
        self._error: Exception | None = None

    def start(self) -> None:
        """Build the file in the background, or open the one that is there."""
        threading.Thread(target=self._prepare, daemon=True, name="hesse-search-index").start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until searches can be answered.

        Parameters
        ----------
        seconds : float, optional
            At most so long.

        Returns
        -------
        bool
            Whether they can.
        """
        return self._ready.wait(seconds) and self._error is None

    @property
    def error(self) -> str | None:
        """What went wrong while the index was built."""
        return None if self._error is None else str(self._error)

    @property
    def groups(self) -> np.ndarray | None:
        """Number of the first row with the same text, white space aside, shape (R,); None while the index is built."""
        return self._groups

    def matching(self, words: str) -> np.ndarray:
        """Find the rows that hold all of some words; the last one may go on.

        Parameters
        ----------
        words : str
            As typed. Marks and case do not count.

        Returns
        -------
        ndarray of bool, shape (R,)
            Which rows.

        Raises
        ------
        ArgumentError
            If there is no word in it, or the index is not ready.
        """
        terms = _WORD.findall(words)
        if not terms:
            raise ArgumentError(f"text: expected words to search for, got {words!r}")
        asked = " ".join(f'"{term}"' for term in terms) + "*"
        return self._mask("SELECT rowid FROM texts WHERE texts MATCH ?", (asked,))

    def tagged(self, key: str, value: str) -> np.ndarray:
        """Find the rows whose metadata has a value.

        Parameters
        ----------
        key, value : str
            As listed in `tags`.

        Returns
        -------
        ndarray of bool, shape (R,)
            Which rows.
        """
        return self._mask("SELECT place FROM tags WHERE name = ? AND value = ?", (key, value))

    def tags(self) -> list[dict[str, object]]:
        """List the metadata that rows can be told apart by.

        Returns
        -------
        list of dict
            key, and values with their counts, the most frequent first; keys with over 200 values are left out.
        """
        with self._open() as database:
            counts = database.execute("SELECT name, value, COUNT(*) FROM tags GROUP BY name, value ORDER BY name")
            by_key: dict[str, list[tuple[str, int]]] = {}
            for name, value, count in counts:
                by_key.setdefault(name, []).append((value, count))
        return [
            {"key": key, "values": sorted(values, key=lambda item: (-item[1], item[0]))}
            for key, values in by_key.items()
            if 1 < len(values) <= _VALUES
        ]

    def _mask(self, statement: str, values: tuple[str, ...]) -> np.ndarray:
        if not self._ready.is_set():
            raise ArgumentError("text: the search index is still being built; ask again in a moment")
        mask = np.zeros(len(self._rows), dtype=bool)
        with self._open() as database:
            mask[[place for (place,) in database.execute(statement, values)]] = True
        return mask

    def _open(self) -> "_Closing":
        if self._error is not None:
            raise ArgumentError(f"text: the search index could not be built: {self._error}")
        return _Closing(f"file:{self._path}?mode=ro")

    def _prepare(self) -> None:
        try:
            if not self._path.exists():
                self._build()
            with _Closing(f"file:{self._path}?mode=ro") as database:
                found = database.execute("SELECT first FROM rows ORDER BY place").fetchall()
            self._groups = np.array([first for (first,) in found], dtype=np.int64)
        except (OSError, sqlite3.Error) as error:  # a thread has no caller: whoever asks is told
            self._error = error
        self._ready.set()

    def _build(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(f".{os.getpid()}.draft")
        draft.unlink(missing_ok=True)
        try:
            with _Closing(f"file:{draft}") as database:
                database.executescript(
                    "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                    "CREATE VIRTUAL TABLE texts USING fts5(text, content='');"
                    "CREATE TABLE rows(place INTEGER PRIMARY KEY, first INTEGER);"
                    "CREATE TABLE tags(name TEXT, value TEXT, place INTEGER);"
                )
                first_of: dict[bytes, int] = {}
                for place, text, tags in self._texts():
                    key = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
                    first = first_of.setdefault(key, place) if text else place
                    database.execute("INSERT INTO texts(rowid, text) VALUES (?, ?)", (place, text))
                    database.execute("INSERT INTO rows VALUES (?, ?)", (place, first))
                    database.executemany("INSERT INTO tags VALUES (?, ?, ?)", [(*tag, place) for tag in tags])
                database.execute("CREATE INDEX by_value ON tags(name, value)")
                database.commit()
            draft.replace(self._path)
        finally:
            draft.unlink(missing_ok=True)

    def _texts(self) -> Iterator[tuple[int, str, list[tuple[str, str]]]]:
        for place, row in enumerate(self._rows):
            metadata = self._corpus.metadata(self._corpus.sequences_of(row)[0])
            tags = [(key, str(value)) for key, value in metadata.items() if isinstance(value, (str, int, bool))]
            short = [(key, value) for key, value in tags if len(value) <= 80]
            yield place, self._corpus.row_text(row) or "", short


class _Closing:
    """A connection for one ``with`` block: searches run on whatever thread serves the request."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def __enter__(self) -> sqlite3.Connection:
        self._database = sqlite3.connect(self._uri, uri=True)
        return self._database

    def __exit__(self, *_: object) -> None:
        self._database.close()
