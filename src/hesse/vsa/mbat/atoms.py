"""Vectors, orders and numbers that a text alone decides: no codebook is stored, and every process draws the same."""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "NAMESPACE",
    "atom",
    "check_dim",
    "gaussian_numbers",
    "normalised",
    "permutation",
    "sign_rows",
    "uniform_numbers",
]

NAMESPACE = "hesse.vsa/1"  # enters every hash; another recipe needs another one, or old vectors would mislead


def check_dim(caller: str, dim: int) -> None:
    """Refuse a dimension that is no positive whole number.

    Parameters
    ----------
    caller : str
        For the message.
    dim : int
        D.

    Raises
    ------
    ArgumentTypeError
        If it is no int.
    ArgumentError
        If it is below 2.
    """
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise ArgumentTypeError(f"{caller}: expected dim as an int, got {dim!r}")
    if dim < 2:
        raise ArgumentError(f"{caller}: expected dim >= 2, got {dim}")


def normalised(text: str) -> str:
    """Bring a text to Unicode's form NFC, so that é is one token however it was typed.

    Parameters
    ----------
    text : str
        Any.

    Returns
    -------
    str
        In NFC.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _stream(kind: str, token: str, num_bytes: int) -> bytes:
    # a lone surrogate, which JSON allows, has no UTF-8 of its own
    message = f"{kind}\0{token}".encode("utf-8", "surrogatepass")
    seed = hashlib.blake2b(message, digest_size=8, key=NAMESPACE.encode()).digest()
    return hashlib.shake_128(seed).digest(num_bytes)


def sign_rows(kind: str, tokens: Sequence[str], dim: int) -> NDArray[np.int8]:
    """Draw one row of signs a token.   Shapes: T tokens, D dimension.

    Parameters
    ----------
    kind : str
        Keeps tokens of different use apart.
    tokens : sequence of str
        In NFC already.
    dim : int
        D.

    Returns
    -------
    ndarray of int8, shape (T, D)
        Entries ±1, two microseconds a row.
    """
    num_bytes = -(-dim // 8)
    packed = np.frombuffer(b"".join(_stream(kind, token, num_bytes) for token in tokens), np.uint8)
    bits = np.unpackbits(packed.reshape(len(tokens), num_bytes), axis=1, count=dim).view(np.int8)
    return 1 - 2 * bits


def permutation(kind: str, token: str, dim: int) -> NDArray[np.int64]:
    """Draw an order of 0, ..., D-1.

    Parameters
    ----------
    kind, token : str
        What decides it.
    dim : int
        D.

    Returns
    -------
    ndarray of int64, shape (D,)
        Uniform but for ties among 64-bit words.
    """
    words = np.frombuffer(_stream(kind, token, 8 * dim), "<u8")
    return np.argsort(words, kind="stable")


def uniform_numbers(kind: str, token: str, count: int) -> NDArray[np.float64]:
    """Draw numbers between 0 and 1.

    Parameters
    ----------
    kind, token : str
        What decides them.
    count : int
        How many.

    Returns
    -------
    ndarray of float64, shape (count,)
        Neither 0 nor 1 is among them.
    """
    words = np.frombuffer(_stream(kind, token, 8 * count), "<u8")
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def gaussian_numbers(kind: str, token: str, count: int) -> NDArray[np.float64]:
    """Draw standard normal numbers by the transform of Box and Muller.

    Parameters
    ----------
    kind, token : str
        What decides them.
    count : int
        How many.

    Returns
    -------
    ndarray of float64, shape (count,)
        The last digit is the machine's logarithm and cosine's.
    """
    half = -(-count // 2)
    uniform = uniform_numbers(kind, token, 2 * half)
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * np.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def atom(
    token: str, dim: int = 1024, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the vector of a token: signs drawn from its hash, over √D.

    Parameters
    ----------
    token : str
        Any text; forms of Unicode that look alike (NFC) are one token.
    dim : int, default 1024
        D. Two tokens have inner product 0 ± 1/√D: 3 % at 1024.
    dtype : torch.dtype, default torch.float32
        Of the vector.
    device : torch.device or str, default "cpu"
        Where it goes.

    Returns
    -------
    Tensor, shape (D,)
        Of length 1. Equal in every process and on every machine.

    References
    ----------
    S. I. Gallant, T. W. Okaywe (2013), Neural Computation 25(8).
    """
    check_dim("atom", dim)
    signs = torch.from_numpy(sign_rows("atom", [normalised(token)], dim)[0])
    return signs.to(device, dtype) / dim**0.5
