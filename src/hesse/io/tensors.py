"""Tensors in safetensors files: written in one step in pieces, checked against their entry before they are parsed."""

import json
import os
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError
from hesse.io.atomic import atomic_writer
from hesse.io.checksum import RECOMPUTE, FileEntry, checked_fd, tensor_bytes

__all__ = ["load_tensors", "save_tensors", "tensor_metadata"]

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}
MAX_HEADER_BYTES = 8 << 20  # about 80,000 tensors; the parser needs several times as much memory


def _check_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentTypeError(f"tensors: expected text -> Tensor, got {name!r} -> {type(tensor).__name__}")
        if name == "__metadata__":
            raise ArgumentError("tensors: the name '__metadata__' belongs to the file format; use another")
        if tensor.dtype not in DTYPES:
            raise ArgumentError(
                f"tensors[{name!r}]: dtype {tensor.dtype} has no place in safetensors; convert it first"
            )
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentTypeError(f"metadata: expected text -> text, got {key!r} -> {type(value).__name__}")


def _encode_header(tensors: Mapping[str, Tensor], names: list[str], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    return text + b" " * (-len(text) % 8)  # the data then starts on a multiple of 8


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> FileEntry:
    """Write named tensors to a safetensors file in one step; equal tensors give equal bytes, whatever their order.

    Parameters
    ----------
    path : str or PathLike
        The target; replaced if it exists.
    tensors : mapping of str to Tensor
        Dense, any device and shape; bool, integers, complex64 or any floating dtype, bfloat16 and float8 among them.
        Tensors that share memory are written once each. NaN stays NaN.
    metadata : mapping of str to str, optional
        Kept in the file's head. Default: none.

    Returns
    -------
    FileEntry
        Size and checksum, for the manifest.

    Raises
    ------
    ArgumentTypeError
        If a name is not text or a value not a tensor.
    ArgumentError
        If a tensor is sparse, without data, or of a dtype that the format lacks.
    WriteError
        If the operating system refuses; the old file is then still there.

    Notes
    -----
    One tensor at a time is brought to the CPU: the memory needed beyond the input is that of the largest tensor that
    is not already contiguous and on the CPU.
    """
    metadata = metadata or {}
    _check_tensors(tensors, metadata)
    # Wide dtypes first, so that every tensor starts on a multiple of its own item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = _encode_header(tensors, names, metadata)
    if len(header) > MAX_HEADER_BYTES:
        raise ArgumentError(
            f"tensors: {len(tensors):,} tensors need a head of {len(header):,} bytes, at most {MAX_HEADER_BYTES:,} are "
            "read back. Spread them over several files."
        )
    with atomic_writer(path) as writer:
        writer.write(struct.pack("<Q", len(header)) + header)
        for name in names:
            writer.write(tensor_bytes(tensors[name]))
    return writer.entry


def _check_header(fd: int, path: Path) -> None:
    size = os.fstat(fd).st_size
    head = os.pread(fd, 8, 0)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise ArtifactError(
            f"{path}: damaged, or no safetensors file: {size:,} bytes, head of {length:,} bytes. {RECOMPUTE}"
        )


def _check_unchanged(fd: int, path: Path) -> None:
    before, now = os.fstat(fd), path.stat()
    if not os.path.samestat(before, now) or (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
        raise ArtifactError(f"{path}: changed while it was read. Run the same command again.")


@contextmanager
def _opened(path: Path, entry: FileEntry | None) -> Generator[Any, None, None]:
    with checked_fd(path, entry) as fd:
        _check_header(fd, path)
        try:
            with cast("Any", safe_open)(path, framework="pt") as file:
                yield file
            _check_unchanged(fd, path)  # the parser opened the path anew: it must be the file that was checked
        except ArtifactError:
            raise
        except (SafetensorError, OSError, ValueError, TypeError, OverflowError, RuntimeError, AttributeError) as error:
            raise ArtifactError(f"{path}: damaged, or no safetensors file: {error}. {RECOMPUTE}") from error


def load_tensors(
    path: str | os.PathLike[str], entry: FileEntry | None = None, *, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Read a safetensors file.

    Parameters
    ----------
    path : str or PathLike
        The file.
    entry : FileEntry, optional
        Size and checksum from the manifest, compared before anything is parsed. Default: not compared; the format
        itself notices truncation, but no changed value.
    device : str or torch.device, default "cpu"
        Where the tensors go. On the CPU they are private views of the file: writing to them does not change it.

    Returns
    -------
    dict of str to Tensor
        Dtypes and shapes as saved.

    Raises
    ------
    ArtifactError
        If the file is missing, differs from its entry, or is no safetensors file; names it and says what to do.
    ArgumentError
        If the device has no such name.

    Notes
    -----
    Comparing costs one pass over the file: 0.07 s beside 0.27 s for loading 128 MiB.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ArgumentError(f"device: {device!r}: {error}") from error
    with _opened(Path(path), entry) as file:
        tensors = {str(name): cast("Tensor", file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def tensor_metadata(path: str | os.PathLike[str], entry: FileEntry | None = None) -> dict[str, str]:
    """Read what ``save_tensors`` was given as metadata, and no tensor.

    Parameters
    ----------
    path : str or PathLike
        The file.
    entry : FileEntry, optional
        As in ``load_tensors``.

    Returns
    -------
    dict of str to str
        Empty if there was none.

    Raises
    ------
    ArtifactError
        If the file is missing, differs from its entry, or is no safetensors file.
    """
    with _opened(Path(path), entry) as file:
        found = file.metadata()
    return dict(found or {})
