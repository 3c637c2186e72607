"""Large arrays in .npy files: written block by block, read as memory maps, never with objects.   Shapes: Q, N."""

import math
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hesse.errors import ArgumentError, ArtifactError, ShapeError
from hesse.io.atomic import FileWriter, atomic_writer
from hesse.io.checksum import RECOMPUTE, FileEntry, checked_fd

__all__ = ["ArrayWriter", "open_array", "save_array", "write_array_rows"]

MAGIC = b"\x93NUMPY"
NUMBER_KINDS = "biufc"
MAX_HEADER_BYTES = 10_000  # numpy's own limit
# The head of a .npy file is Python text. A pattern reads all that numpy writes for numbers and nothing else: no
# objects, no records, and no Python parser for a hostile file to upset.
HEADER = re.compile(
    r"\{'descr': '(?P<descr>[<>|=]?[biufc][0-9]{1,2})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:[0-9]{1,19}, ?){0,32}(?:[0-9]{1,19})?)\),? *\} *\n"
)


def _check_dtype(dtype: np.dtype[Any], where: str) -> None:
    if dtype.kind not in NUMBER_KINDS:
        raise ArgumentError(f"{where}: expected an array of numbers, got dtype {dtype}")


def _encode_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape})
    length = len(text) + 1 + -(10 + len(text) + 1) % 64  # the data then starts on a multiple of 64
    return MAGIC + b"\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode("ascii") + b"\n"


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def save_array(path: str | os.PathLike[str], array: NDArray[Any]) -> FileEntry:
    """Write an array to a .npy file in one step, in row-major order.

    Parameters
    ----------
    path : str or PathLike
        The target; replaced if it exists.
    array : ndarray, any shape
        Numbers or bools.

    Returns
    -------
    FileEntry
        Size and checksum, for the manifest.

    Raises
    ------
    ArgumentError
        If the array holds objects, text or records.
    WriteError
        If the operating system refuses; the old file is then still there.
    """
    array = np.asarray(array)
    _check_dtype(array.dtype, "array")
    with atomic_writer(path) as writer:
        writer.write(_encode_header(array.shape, array.dtype))
        writer.write(_bytes_of(array))
    return writer.entry


class ArrayWriter:
    """Write a (Q, N) array block by block, in any order; the file takes its place at the end of the ``with`` block.

    Blocks are written at their offsets with ordinary calls and not through a memory map: on a full disk a call returns
    an error, where a map would kill the process. Memory: one block.

    Parameters
    ----------
    path : str or PathLike
        The target; replaced if it exists.
    shape : (int, int)
        Q rows of N numbers.
    dtype : dtype, default float32
        Numbers or bools; blocks are converted to it.

    Raises
    ------
    ShapeError
        If the shape is not two sizes >= 0.
    ArgumentError
        If the dtype is not numeric.

    Examples
    --------
    >>> with ArrayWriter(path, (2, 6)) as writer:  # doctest: +SKIP
    ...     writer.write(left_block, columns=slice(0, 3))
    ...     writer.write(right_block, columns=slice(3, 6))
    >>> entry = writer.entry  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str], shape: tuple[int, int], dtype: DTypeLike = np.float32) -> None:
        if len(shape) != 2 or min(shape) < 0:
            raise ShapeError(f"shape: expected (rows, columns), got {shape}")
        self.path = Path(path)
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = np.dtype(dtype)
        _check_dtype(self.dtype, "dtype")
        self._header = _encode_header(self.shape, self.dtype)
        self._stack = ExitStack()
        self._writer: FileWriter | None = None
        self._done: list[tuple[int, int, int, int]] = []  # rectangles, half open

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # closes the file again if the head cannot be written
            self._writer = stack.enter_context(atomic_writer(self.path))
            self._writer.write_at(self._header, 0)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            covered = sum((bottom - top) * (right - left) for top, bottom, left, right in self._done)
            if covered != math.prod(self.shape):
                error = ArgumentError(f"{self.path}: {covered:,} of {math.prod(self.shape):,} numbers were written")
                self._stack.__exit__(ArgumentError, error, None)
                raise error
        self._stack.__exit__(kind, error, trace)

    @property
    def entry(self) -> FileEntry:
        """Size and checksum of the finished file.

        Raises
        ------
        ArgumentError
            If it is asked for before the end of the block.
        """
        if self._writer is None:
            raise ArgumentError(f"{self.path}: use the writer in a with block first")
        return self._writer.entry

    def write(self, block: NDArray[Any], *, rows: slice = slice(None), columns: slice = slice(None)) -> None:
        """Write one block; each number of the array is written exactly once.

        Parameters
        ----------
        block : ndarray, shape (R, C)
            As many rows and columns as the slices take; converted to the writer's dtype.
        rows : slice, default all
            Which rows, step 1.
        columns : slice, default all
            Which columns, step 1. A block of whole rows is one call to the disk, any other one call a row.

        Raises
        ------
        ArgumentError
            If the writer is not open, a slice has a step, or the block overlaps an earlier one.
        ShapeError
            If the block does not have the shape that the slices ask for.
        """
        if self._writer is None:
            raise ArgumentError(f"{self.path}: use the writer in a with block")
        top, bottom, row_step = rows.indices(self.shape[0])
        left, right, column_step = columns.indices(self.shape[1])
        if (row_step, column_step) != (1, 1):
            raise ArgumentError(f"rows, columns: expected slices of step 1, got {rows} and {columns}")
        bottom, right = max(top, bottom), max(left, right)
        if block.shape != (bottom - top, right - left):
            raise ShapeError(f"block: expected shape {(bottom - top, right - left)}, got {block.shape}")
        if block.size == 0:
            return
        if any(top < y1 and y0 < bottom and left < x1 and x0 < right for y0, y1, x0, x1 in self._done):
            raise ArgumentError(f"{self.path}: rows {top}:{bottom}, columns {left}:{right} overlap an earlier block")
        data = _bytes_of(block.astype(self.dtype, copy=False))
        width = (right - left) * self.dtype.itemsize
        pieces = 1 if right - left == self.shape[1] else bottom - top
        length = len(data) // pieces
        for index in range(pieces):
            offset = len(self._header) + ((top + index) * self.shape[1] + left) * self.dtype.itemsize
            start = index * width if pieces > 1 else 0
            self._writer.write_at(data[start : start + length], offset)
        self._done.append((top, bottom, left, right))


def write_array_rows(
    path: str | os.PathLike[str],
    blocks: Iterable[NDArray[Any]],
    shape: tuple[int, int],
    *,
    dtype: DTypeLike = np.float32,
) -> FileEntry:
    """Write a (Q, N) array from blocks of whole rows, top to bottom.

    Parameters
    ----------
    path : str or PathLike
        The target; replaced if it exists.
    blocks : iterable of ndarray, shape (R, N), R free
        Consumed one at a time; together Q rows.
    shape : (int, int)
        Q rows of N numbers.
    dtype : dtype, default float32
        Numbers or bools; blocks are converted to it.

    Returns
    -------
    FileEntry
        Size and checksum, for the manifest.

    Raises
    ------
    ShapeError
        If a block is not two-dimensional or the rows do not come out right.
    WriteError
        If the operating system refuses; the old file is then still there.
    """
    top = 0
    with ArrayWriter(path, shape, dtype) as writer:
        for block in blocks:
            bottom = top + len(block)
            if bottom > shape[0]:
                raise ShapeError(f"blocks: expected {shape[0]} rows in all, got at least {bottom}")
            writer.write(block, rows=slice(top, bottom))
            top = bottom
        if top != shape[0]:
            raise ShapeError(f"blocks: expected {shape[0]} rows in all, got {top}")
    return writer.entry


def open_array(path: str | os.PathLike[str], entry: FileEntry | None = None) -> np.memmap[Any, np.dtype[Any]]:
    """Map a .npy file of numbers into memory, read-only.

    Parameters
    ----------
    path : str or PathLike
        The file.
    entry : FileEntry, optional
        Size and checksum from the manifest, compared first. Default: not compared; only the head and the size are.

    Returns
    -------
    memmap
        Shape and dtype as saved; it stays readable when the file is replaced.

    Raises
    ------
    ArtifactError
        If the file is missing, differs from its entry, is no .npy file of numbers, or has not the size its head says.
    """
    path = Path(path)
    with checked_fd(path, entry) as fd, os.fdopen(os.dup(fd), "rb") as file:
        try:
            return _map(file)
        except (ValueError, TypeError, OverflowError, OSError) as error:
            raise ArtifactError(f"{path}: damaged, or no .npy file of numbers: {error}. {RECOMPUTE}") from error


def _map(file: BinaryIO) -> np.memmap[Any, np.dtype[Any]]:
    shape, fortran_order, dtype, offset = _read_header(file.read(MAX_HEADER_BYTES))
    size, expected = os.fstat(file.fileno()).st_size, offset + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise ValueError(f"{size:,} bytes, its head asks for {expected:,}")
    # From the open file and not from its path: these are the bytes that were checked, even if the path was replaced.
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran_order else "C")


def _read_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    if head[:6] != MAGIC or head[6:8] not in {b"\x01\x00", b"\x02\x00"}:
        raise ValueError("the first bytes are not those of a .npy file")
    start = 10 if head[6] == 1 else 12
    offset = start + int.from_bytes(head[8:start], "little")
    if offset > len(head):
        raise ValueError(f"a head of {offset:,} bytes")
    match = HEADER.fullmatch(head[start:offset].decode("latin1"))
    if match is None:
        raise ValueError("its head does not describe an array of numbers")
    shape = tuple(int(size) for size in match["shape"].replace(" ", "").split(",") if size)
    return shape, match["fortran"] == "True", np.dtype(match["descr"]), offset
