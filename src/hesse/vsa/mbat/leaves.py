"""Codes of what JSON is made of: texts, numbers, dates and constants, each a vector of length 1.

Shapes: L leaves, D dimension.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hesse.errors import ArgumentError, NumericalError
from hesse.vsa.mbat.algebra import unit
from hesse.vsa.mbat.atoms import gaussian_numbers, normalised, sign_rows, uniform_numbers
from hesse.vsa.mbat.binding import OrthogonalBinding
from hesse.vsa.mbat.lru import LRU

__all__ = ["Embedder", "LeafCoder", "LeafKey", "NumberMode", "StringMode", "days_of", "number_key"]

StringMode = Literal["soft", "exact"]
NumberMode = Literal["log", "linear", "exact"]
Embedder = Callable[[str], Any]
LeafKey = tuple[str, str | float]  # kind, and what decides the code within it

WHOLE, WORDS, TRIGRAMS = 0.4, 0.7, 1.0  # shares of a text's code
LONG_TEXT = 256  # characters from which the words alone count
SIGMAS = (1.0, 4.0)  # widths of the number code's frequencies: kernels of width 1 and 1/4 in u
DAYS_A_YEAR = 365.25
_FAR = 1e12  # beyond it a cosine of u·w is noise whatever its argument
_WORD = re.compile(r"\w+")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?")


def days_of(text: str) -> float | None:
    """Read an ISO date, with or without a time, as days since 1970.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    float or None
        None if it is no date. A time without a zone counts as UTC.
    """
    if not _DATE.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:  # the 31st of February
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment.timestamp() - datetime.combine(date(1970, 1, 1), datetime.min.time(), UTC).timestamp()) / 86400


def number_key(value: float, mode: NumberMode, scale: float) -> LeafKey:
    """Decide a number's code.

    Parameters
    ----------
    value : float
        An int of any size, or a float; not a bool.
    mode : {"log", "linear", "exact"}
        u = sign(x) log(1 + |x|), u = x / scale, or a token of its own for every number.
    scale : float
        Of "linear".

    Returns
    -------
    LeafKey
        NaN and the infinities are constants.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return ("constant", repr(value))
    if mode == "exact":
        whole = value if isinstance(value, int) or not value.is_integer() else int(value)
        return ("constant", f"number {hex(whole) if isinstance(whole, int) else whole.hex()}")
    size, sign = abs(value), -1.0 if value < 0 else 1.0
    if mode == "log":  # log1p knows no int beyond the largest float, log does
        u = math.log1p(size) if size < 2**53 else math.log(size)
        return ("number", sign * u)
    if size > 1e308 or size / scale > _FAR:
        return ("number", sign * _FAR)
    return ("number", value / scale)


class LeafCoder:
    """From leaf keys to vectors, the last ones kept.

    Parameters
    ----------
    binding : OrthogonalBinding
        D, dtype and device; its matrices "number" and "date" set number codes apart from others.
    string : {"soft", "exact"}
        How texts are coded.
    embedder : callable, optional
        Text to a vector of at most D numbers, in place of the code of texts.
    capacity : int
        How many codes are kept.
    """

    def __init__(
        self, binding: OrthogonalBinding, string: StringMode, embedder: Embedder | None, capacity: int
    ) -> None:
        self._binding = binding
        self._string = string
        self._embedder = embedder
        self._kept: LRU[LeafKey, Tensor] = LRU(capacity)
        self._projection: Tensor | None = None
        dim = binding.dim
        widths = np.resize(SIGMAS, dim)  # in turn, so that any stretch of coordinates holds both
        self._frequencies = widths * gaussian_numbers("number", "frequencies", dim)
        self._phases = 2 * np.pi * uniform_numbers("number", "phases", dim)

    def codes(self, keys: Sequence[LeafKey]) -> Tensor:
        """Return the codes of leaves.

        Parameters
        ----------
        keys : sequence of LeafKey
            L different ones.

        Returns
        -------
        Tensor, shape (L, D)
            Rows of length 1, on the binding's device.
        """
        found = [self._kept.get(key) for key in keys]
        missing = [i for i, code in enumerate(found) if code is None]
        for kind in ("number", "date"):
            places = [i for i in missing if keys[i][0] == kind]
            for i, code in zip(places, self._numbers(kind, [float(keys[i][1]) for i in places]), strict=True):
                found[i] = code
        for i in missing:
            kind, token = keys[i]
            if kind == "string":
                found[i] = self._text(str(token))
            elif kind == "constant":
                found[i] = self._from_array(sign_rows("constant", [str(token)], self._binding.dim)[0])
        for i in missing:
            self._kept.put(keys[i], _known(found[i]))
        rows = [_known(code) for code in found]
        return torch.stack(rows) if rows else self._from_array(np.zeros((0, self._binding.dim)))

    def _numbers(self, kind: str, values: list[float]) -> list[Tensor]:
        if not values:
            return []
        angles = np.outer(np.array(values), self._frequencies) + self._phases
        # clones, because rows of one block would keep the whole block alive as long as one of them is kept
        rows = self._binding.bind(kind, self._from_array(np.cos(angles)))
        return [row.clone() for row in rows]

    def _text(self, text: str) -> Tensor:
        if self._embedder is not None:
            return self._embedded(text)
        if self._string == "exact":
            return self._from_array(sign_rows("whole", [text], self._binding.dim)[0])
        return self._from_array(soft_text(text, self._binding.dim))

    def _embedded(self, text: str) -> Tensor:
        given = self._embedder(text) if self._embedder is not None else None
        v = torch.as_tensor(given, dtype=self._binding.dtype, device=self._binding.device)
        dim = self._binding.dim
        if v.ndim != 1 or not 1 <= len(v) <= dim:
            raise ArgumentError(f"embedder: expected a vector of 1 to {dim} numbers, got shape {tuple(v.shape)}")
        if not bool(torch.isfinite(v).all()) or not bool(v.any()):
            raise NumericalError(f"embedder: gave a vector that is zero or not finite for {text[:40]!r}")
        if self._projection is None or self._projection.shape[1] != len(v):
            normal = gaussian_numbers("embedder", str(len(v)), dim * len(v)).reshape(dim, len(v))
            q, r = np.linalg.qr(normal)
            self._projection = torch.from_numpy(q * np.sign(np.diag(r))).to(v)
        return unit(self._projection @ v)

    def _from_array(self, array: NDArray[Any]) -> Tensor:
        return unit(torch.from_numpy(array).to(self._binding.device, self._binding.dtype))


def soft_text(text: str, dim: int) -> NDArray[np.float64]:
    """Code a text by itself, its words and its trigrams, so that similar texts have similar codes.

    Parameters
    ----------
    text : str
        Not empty, in NFC.
    dim : int
        D.

    Returns
    -------
    ndarray of float64, shape (D,)
        0.4 whole + 0.7 words + 1.0 trigrams, each of length 1 first; from 256 characters on words alone, each by the
        square root of its count. Not of length 1.
    """
    folded = normalised(text.casefold())
    words = Counter(_WORD.findall(folded))
    if len(text) >= LONG_TEXT and words:
        return _sum_of_signs("word", words, dim, root=True)
    padded = f" {folded} "
    trigrams = Counter(padded[i : i + 3] for i in range(len(padded) - 2))
    total = WHOLE / dim**0.5 * sign_rows("whole", [text], dim)[0].astype(np.float64)
    total = total + TRIGRAMS * _sum_of_signs("trigram", trigrams, dim)
    if words:
        total = total + WORDS * _sum_of_signs("word", words, dim)
    return total


def _sum_of_signs(kind: str, counts: Counter[str], dim: int, *, root: bool = False) -> NDArray[np.float64]:
    weights = np.array(list(counts.values()), dtype=np.float64)
    total = (np.sqrt(weights) if root else weights) @ sign_rows(kind, list(counts), dim).astype(np.float64)
    length = float(np.linalg.norm(total))
    return total / length if length > 0 else total


def _known(code: Tensor | None) -> Tensor:
    if code is None:
        raise NumericalError("LeafCoder: a leaf of unknown kind")
    return code
