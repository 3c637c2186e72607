"""How a JSON document falls apart: which roles and weights bind which parts, and which leaf is which key.

Nothing here knows vectors. A *pattern* is a JSON pointer whose array positions are ``*``, as in ``/orders/*/price``.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.vsa.mbat.atoms import normalised
from hesse.vsa.mbat.leaves import DAYS_A_YEAR, LeafKey, NumberMode, days_of, number_key

__all__ = [
    "BAG",
    "ENDS",
    "ORDERED",
    "Recipe",
    "RolePath",
    "iter_leaves",
    "key_role",
    "parse_json",
    "parse_weights",
    "pointer",
    "position_role",
    "step_pattern",
]

RolePath = tuple[str, ...]

ORDERED: RolePath = ("array",)
BAG: RolePath = ("bag",)
ENDS = 64  # of a long array: so many items from either end are bound to their places
_ANY_KEY: RolePath = ("object", "any key")
_NO_LETTER = re.compile(r"[\W_]+")
_CONSTANTS = {None: "null", True: "true", False: "false"}


def parse_json(text: str) -> Any:
    """Read JSON as it should be encoded: a key that stands twice is an error, NaN and Infinity are numbers.

    Parameters
    ----------
    text : str
        One document.

    Returns
    -------
    object
        dict, list, str, int, float, bool or None.

    Raises
    ------
    ArgumentError
        If it is no JSON, nests deeper than Python's parser goes, or an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except ArgumentError:
        raise
    except RecursionError as error:
        raise ArgumentError("parse_json: nested too deep for Python's parser") from error
    except ValueError as error:
        raise ArgumentError(f"parse_json: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ArgumentError(f"parse_json: key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


@lru_cache(maxsize=1 << 16)
def step_pattern(step: str | int) -> str:
    """Return a key or position as a step of a pattern.

    Parameters
    ----------
    step : str or int
        Key of an object, or position in an array.

    Returns
    -------
    str
        ``/key``, with ~ and / written ~0 and ~1 as in JSON pointers; ``/*`` for any position.
    """
    if isinstance(step, int):
        return "/*"
    key = step
    return "/" + key.replace("~", "~0").replace("/", "~1")


@lru_cache(maxsize=1 << 16)
def key_role(key: str) -> RolePath:
    """Return the role of an object's key.

    Parameters
    ----------
    key : str
        Any text.

    Returns
    -------
    tuple of str
        The object's matrix, then the key's.
    """
    return ("object", f"key {normalised(key)}")


@lru_cache(maxsize=1 << 16)
def _soft_role(key: str) -> RolePath:
    letters = _NO_LETTER.sub("", normalised(key.casefold()))
    return ("object", f"soft key {letters}")


_FRONT: tuple[RolePath, ...] = tuple(("next",) * i for i in range(2 * ENDS))
_BACK: tuple[RolePath, ...] = tuple(("last", *("next",) * i) for i in range(ENDS))


def position_role(place: int, length: int) -> RolePath | None:
    """Return the role of an array's item.

    Parameters
    ----------
    place : int
        0 for the first.
    length : int
        Of the array.

    Returns
    -------
    tuple of str or None
        M_next to the power of the place; in arrays of more than 128 items the last 64 count from the end, and those
        between have none.
    """
    if length <= 2 * ENDS or place < ENDS:
        return _FRONT[place]
    return _BACK[length - 1 - place] if place >= length - ENDS else None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings that decide which vector a document has, next to the matrices."""

    number: NumberMode
    dates: bool
    array: tuple[float, float]  # weights of an array's order and of its bag
    soft_keys: float
    any_key: float
    weights: Mapping[str, float] = field(default_factory=dict)  # by pattern, 1 where none stands
    scales: Mapping[str, float] = field(default_factory=dict)  # of linear numbers by pattern, 1 where none stands

    def leaf(self, value: Any, pattern: str) -> LeafKey | None:
        """Decide the code of a value.

        Parameters
        ----------
        value : object
            A part of a document.
        pattern : str
            Where it stands.

        Returns
        -------
        LeafKey or None
            None if the value holds others.

        Raises
        ------
        ArgumentTypeError
            If it is nothing that JSON knows.
        """
        if isinstance(value, str):
            if not value:
                return ("constant", "empty string")
            if self.dates and (days := days_of(value)) is not None:
                return ("date", days / DAYS_A_YEAR)
            return ("string", normalised(value))
        if value is None or isinstance(value, bool):
            return ("constant", _CONSTANTS[value])
        if isinstance(value, int | float):
            return number_key(value, self.number, self.scales.get(pattern, 1.0))
        if isinstance(value, dict):
            return None if value else ("constant", "empty object")
        if isinstance(value, list | tuple):
            return None if value else ("constant", "empty array")
        raise ArgumentTypeError(f"expected JSON values, got {type(value).__name__} at {pattern or 'the top'}")

    def key_terms(self, key: Any, pattern: str) -> list[tuple[RolePath, float]]:
        """Decide what binds an object's value.

        Parameters
        ----------
        key : str
            Its key.
        pattern : str
            Where the value stands.

        Returns
        -------
        list of (role, weight)
            The key's own matrix first; none if the weight is 0.

        Raises
        ------
        ArgumentTypeError
            If the key is no text.
        """
        if not isinstance(key, str):
            raise ArgumentTypeError(f"expected text as keys, got {key!r} at {pattern}")
        weight = self.weights.get(pattern, 1.0) if self.weights else 1.0
        if weight == 0:
            return []
        terms = [(key_role(key), weight)]
        if self.soft_keys:
            terms.append((_soft_role(key), weight * self.soft_keys))
        if self.any_key:
            terms.append((_ANY_KEY, weight * self.any_key))
        return terms


def iter_leaves(document: Any) -> Iterator[tuple[str, Any]]:
    """Walk over the values of a document that hold no others.

    Parameters
    ----------
    document : object
        JSON.

    Yields
    ------
    (str, object)
        Pattern and value, in order; empty objects and arrays among them.
    """
    stack: list[tuple[str, Any]] = [("", document)]
    while stack:
        pattern, value = stack.pop()
        if isinstance(value, dict) and value:
            stack.extend((pattern + step_pattern(str(key)), below) for key, below in reversed(value.items()))
        elif isinstance(value, list | tuple) and value:
            stack.extend((pattern + "/*", below) for below in reversed(value))
        else:
            yield pattern, value


def parse_weights(given: Mapping[str, float] | None, caller: str) -> dict[str, float]:
    """Check weights by pattern.

    Parameters
    ----------
    given : mapping, optional
        Pattern to weight.
    caller : str
        For the message.

    Returns
    -------
    dict
        A copy.

    Raises
    ------
    ArgumentError
        If a weight is negative or not finite.
    """
    weights = {str(pattern): float(weight) for pattern, weight in (given or {}).items()}
    for pattern, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ArgumentError(f"{caller}: expected weights >= 0, got {weight} for {pattern!r}")
    return weights


def pointer(path: "str | Sequence[str | int]") -> list[str | int]:
    """Read a path into a document.

    Parameters
    ----------
    path : str or sequence of str and int
        A JSON pointer, in which digits are array positions, or keys and positions one by one.

    Returns
    -------
    list of str and int
        Keys and positions.

    Raises
    ------
    ArgumentError
        If a pointer does not begin with "/", or a position is negative.
    """
    if not isinstance(path, str):
        steps = list(path)
    elif not path:
        steps = []
    elif not path.startswith("/"):
        raise ArgumentError(f"path: a JSON pointer begins with '/', got {path!r}")
    else:
        parts = [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]
        steps = [int(part) if part.isdecimal() and part.isascii() else part for part in parts]
    if any(isinstance(step, int) and step < 0 for step in steps):
        raise ArgumentError(f"path: expected positions >= 0, got {path!r}")
    return steps
