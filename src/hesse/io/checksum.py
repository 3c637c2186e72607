"""Size and checksum of a file, and of tensors: what a manifest remembers of each.

xxh3-128 finds accidents (bit rot, truncation, a mixed-up file) at memory speed; it does not resist somebody who forges
a file on purpose. SHA-256 does, at about a fifteenth of the speed, and only against a digest kept in a safe place.
"""

import hashlib
import json
import os
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
import xxhash
from torch import Tensor

from hesse.errors import ArgumentError, ArtifactError
from hesse.io import calls

__all__ = [
    "RECOMPUTE",
    "Algorithm",
    "FileEntry",
    "Hasher",
    "check_file",
    "checked_fd",
    "hash_bytes",
    "hash_fd",
    "hash_file",
    "hash_tensors",
    "new_hasher",
    "tensor_bytes",
]

Algorithm = Literal["xxh3", "sha256"]
"""``xxh3`` is xxh3-128 (32 hexadecimal digits), ``sha256`` is SHA-256 (64)."""

RECOMPUTE = "Delete this file and run the same command again: only this part is computed anew."
"""What to do about a damaged file; ends the message."""

CHUNK_BYTES = 1 << 20  # large enough for full disk speed, small enough to stay in cache while it is hashed


class Hasher(Protocol):
    """What hashlib and xxhash have in common."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Take in more bytes."""
        ...

    def hexdigest(self) -> str:
        """Digest of all bytes so far."""
        ...


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a manifest remembers of one file.

    Parameters
    ----------
    size : int
        Bytes.
    xxh3 : str
        xxh3-128 of the whole file, 32 hexadecimal digits.
    sha256 : str, optional
        SHA-256, 64 hexadecimal digits. Default: not recorded, since it costs 15 times as much as xxh3.
    """

    size: int
    xxh3: str
    sha256: str | None = None


def new_hasher(algorithm: Algorithm = "xxh3") -> Hasher:
    """Return an empty hasher.

    Parameters
    ----------
    algorithm : {"xxh3", "sha256"}, default "xxh3"
        Which checksum.

    Returns
    -------
    Hasher
        An object with ``update`` and ``hexdigest``.

    Raises
    ------
    ArgumentError
        If the algorithm has another name.
    """
    if algorithm == "xxh3":
        return xxhash.xxh3_128()
    if algorithm == "sha256":
        return hashlib.sha256()
    raise ArgumentError(f"algorithm: expected 'xxh3' or 'sha256', got {algorithm!r}")


def hash_bytes(data: bytes | memoryview, algorithm: Algorithm = "xxh3") -> str:
    """Return the checksum of bytes in memory.

    Parameters
    ----------
    data : bytes or memoryview
        Any length.
    algorithm : {"xxh3", "sha256"}, default "xxh3"
        Which checksum.

    Returns
    -------
    str
        Hexadecimal digits: 32 or 64.
    """
    hasher = new_hasher(algorithm)
    hasher.update(data)
    return hasher.hexdigest()


@contextmanager
def _regular_fd(path: Path) -> Generator[int, None, None]:
    try:
        fd = calls.open_to_read(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: the file is missing. Run the same command again to compute it.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ArtifactError(f"{path}: cannot be opened: {error}. Check that you may read it.") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ArtifactError(f"{path}: expected a plain file, found something else. Remove it.")
        yield fd
    finally:
        with suppress(OSError):  # nothing was written, so nothing can be lost
            calls.close(fd)


def hash_fd(fd: int, algorithm: Algorithm = "xxh3") -> str:
    """Return the checksum of an open file, from its start; an OSError of the disk passes through.

    Parameters
    ----------
    fd : int
        A descriptor that may be read; its position is at the end afterwards.
    algorithm : {"xxh3", "sha256"}, default "xxh3"
        Which checksum.

    Returns
    -------
    str
        Hexadecimal digits: 32 or 64.
    """
    hasher = new_hasher(algorithm)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    os.lseek(fd, 0, os.SEEK_SET)
    while count := calls.read_into(fd, buffer):
        hasher.update(buffer[:count])
    return hasher.hexdigest()


def _hash_path(fd: int, path: Path, algorithm: Algorithm) -> str:
    try:
        return hash_fd(fd, algorithm)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error}. Check the disk. {RECOMPUTE}") from error


def hash_file(path: str | os.PathLike[str], algorithm: Algorithm = "xxh3") -> str:
    """Return the checksum of a file, read in pieces of 1 MiB.

    Parameters
    ----------
    path : str or PathLike
        A plain file.
    algorithm : {"xxh3", "sha256"}, default "xxh3"
        Which checksum.

    Returns
    -------
    str
        Hexadecimal digits: 32 or 64.

    Raises
    ------
    ArtifactError
        If the file is missing, not a plain file, or cannot be read. Also an OSError.
    """
    path = Path(path)
    with _regular_fd(path) as fd:
        return _hash_path(fd, path, algorithm)


@contextmanager
def checked_fd(path: Path, entry: FileEntry | None, *, sha256: bool = False) -> Generator[int, None, None]:
    """Open a file, hold it against its entry, and hand out the descriptor of the very bytes that were checked.

    Parameters
    ----------
    path : Path
        The file.
    entry : FileEntry or None
        None: nothing to compare with, only that it is a plain file.
    sha256 : bool, default False
        Compare SHA-256 too, where the entry has one.

    Yields
    ------
    int
        A descriptor at the start of the file, closed at the end of the block.

    Raises
    ------
    ArtifactError
        If the file is missing, cannot be read, or differs from the entry.
    """
    with _regular_fd(path) as fd:
        if entry is not None:
            size = os.fstat(fd).st_size
            if size != entry.size:
                raise ArtifactError(f"{path}: damaged: {size:,} bytes, the manifest says {entry.size:,}. {RECOMPUTE}")
            found = _hash_path(fd, path, "xxh3")
            if found != entry.xxh3:
                raise ArtifactError(f"{path}: damaged: xxh3 is {found}, the manifest says {entry.xxh3}. {RECOMPUTE}")
            if sha256 and entry.sha256 is not None:
                found = _hash_path(fd, path, "sha256")
                if found != entry.sha256:
                    raise ArtifactError(
                        f"{path}: altered: sha256 is {found}, the manifest says {entry.sha256}. {RECOMPUTE}"
                    )
            os.lseek(fd, 0, os.SEEK_SET)
        yield fd


def check_file(path: str | os.PathLike[str], entry: FileEntry, *, sha256: bool = False) -> None:
    """Hold a file against its entry.

    Parameters
    ----------
    path : str or PathLike
        The file.
    entry : FileEntry
        Size and checksum it must have.
    sha256 : bool, default False
        Compare SHA-256 too, where the entry has one.

    Raises
    ------
    ArtifactError
        If the file is missing, cannot be read, or differs; the message names it and says what to do.
    """
    with checked_fd(Path(path), entry, sha256=sha256):
        return


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order, without a copy where it is contiguous and on the CPU.

    Parameters
    ----------
    tensor : Tensor, any shape
        Dense; any device and dtype. bfloat16, which numpy does not know, is fine.

    Returns
    -------
    memoryview
        One byte per item.

    Raises
    ------
    ArgumentError
        If the tensor is sparse, quantised, or has no data (``meta``).
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ArgumentError(
            f"tensors: expected dense tensors with data, got layout {tensor.layout}, dtype {tensor.dtype}, "
            f"device {tensor.device}"
        )
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def hash_tensors(tensors: Mapping[str, Tensor], algorithm: Algorithm = "xxh3") -> str:
    """Return one checksum of named tensors, such as a state dict: names, dtypes, shapes and bytes all count.

    The order of the mapping and the device do not count. One tensor at a time is brought to the CPU.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Dense, any dtype and shape.
    algorithm : {"xxh3", "sha256"}, default "xxh3"
        Which checksum.

    Returns
    -------
    str
        Hexadecimal digits: 32 or 64.

    Raises
    ------
    ArgumentError
        If a tensor is sparse, quantised, or has no data (``meta``).
    """
    hasher = new_hasher(algorithm)
    for name in sorted(tensors):
        tensor = tensors[name]
        # A JSON line before the bytes makes the whole stream decodable, so two different mappings never meet in one.
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        hasher.update(f"{head}\n".encode())
        hasher.update(tensor_bytes(tensor))
    return hasher.hexdigest()
