"""Files that are either the old state or the new one, whatever happens in between.

A write goes to a temporary file in the same folder, is synced, takes the target's place in one rename, and then the
folder is synced. A crash leaves at most the temporary file, which ``clean_temporaries`` removes.
"""

import errno
import os
import re
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from hesse.errors import ArgumentError, HesseError, WriteError
from hesse.io import calls
from hesse.io.checksum import FileEntry, hash_fd, new_hasher

__all__ = [
    "FileWriter",
    "WriteError",
    "atomic_write_bytes",
    "atomic_writer",
    "clean_temporaries",
    "is_temporary",
    "make_folder",
    "writing",
]

WRITE_BYTES = 8 << 20  # bytes per call: an interrupt is seen between two calls
TEMPORARY = re.compile(r"\.hesse-tmp-[0-9]+-[0-9a-f]{16}")


def _advice(code: int | None) -> str:
    if code in {errno.ENOSPC, errno.EDQUOT}:
        return "The disk or quota is full: free some space and run the same command again."
    if code in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "Make the folder writable or choose another, and run the same command again."
    if code == errno.EIO:
        return "The disk reports an error: check it, and run the same command again."
    return "Run the same command again."


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn an OSError of the block into a WriteError that names the path and says what to do.

    Parameters
    ----------
    path : Path
        The file that the caller asked for, not the temporary one.

    Yields
    ------
    None
        Nothing.

    Raises
    ------
    WriteError
        In place of any other OSError; ``errno`` is kept.
    OSError
        Hesse's own ones, unchanged: they name their file already.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, HesseError):
            raise
        code = error.errno or errno.EIO
        raise WriteError(code, f"cannot write: {error.strerror or error}. {_advice(code)}", str(path)) from error


def _write_all(fd: int, data: memoryview, offset: int | None) -> None:
    done = 0
    while done < len(data):
        piece = data[done : done + WRITE_BYTES]
        count = calls.write(fd, piece) if offset is None else calls.write_at(fd, piece, offset + done)
        if count <= 0:  # a disk that takes nothing and reports nothing would make this loop endless
            raise OSError(errno.EIO, "the disk took no bytes")
        done += count


class FileWriter:
    """The open temporary file of one atomic write; made by ``atomic_writer``.

    Parameters
    ----------
    fd : int
        Open for writing.
    path : Path
        The temporary file, for messages.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._hasher = new_hasher()
        self._size = 0
        self._by_offset = False
        self._entry: FileEntry | None = None

    @property
    def entry(self) -> FileEntry:
        """Size and checksum of the finished file.

        Raises
        ------
        ArgumentError
            If it is asked for before the end of the block.
        """
        if self._entry is None:
            raise ArgumentError(f"{self._path}: the entry is known once the file is in its place, after the block")
        return self._entry

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Parameters
        ----------
        data : bytes or memoryview
            Any length; a memoryview of bytes, contiguous.
        """
        view = memoryview(data)
        with writing(self._path):
            _write_all(self._fd, view, None)
        self._hasher.update(view)
        self._size += len(view)

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write bytes at an offset. The checksum is then taken from the whole file at the end, in one more pass.

        Parameters
        ----------
        data : bytes or memoryview
            Any length; a memoryview of bytes, contiguous.
        offset : int
            Position in bytes from the start of the file.
        """
        self._by_offset = True
        with writing(self._path):
            _write_all(self._fd, memoryview(data), offset)

    def finish(self) -> None:
        """Work out the entry; ``atomic_writer`` calls it, nobody else needs to."""
        if self._by_offset:
            self._entry = FileEntry(os.fstat(self._fd).st_size, hash_fd(self._fd))
        else:
            self._entry = FileEntry(self._size, self._hasher.hexdigest())


def _sync_folder(folder: Path) -> None:
    fd = calls.open_folder(folder)
    try:
        calls.sync(fd)
    finally:
        calls.close(fd)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder and the missing ones above it, so that they survive a power cut.

    Parameters
    ----------
    path : str or PathLike
        The folder; there is no error if it exists.

    Raises
    ------
    WriteError
        If it cannot be made, or if a file has that name.
    """
    path = Path(path)
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    with writing(path):
        calls.make_folder(path)
        _sync_folder(path.parent)


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Generator[FileWriter, None, None]:
    """Open a file for one atomic write: it takes its place at the end of the block, or not at all.

    Missing folders are made. The order is: write, sync the file, close, rename, sync the folder.

    Parameters
    ----------
    path : str or PathLike
        The target; replaced if it exists.

    Yields
    ------
    FileWriter
        With ``write`` and ``write_at``; after the block, with ``entry``.

    Raises
    ------
    WriteError
        If the operating system refuses a call. The target is then untouched, unless the only failure was syncing the
        folder after the rename: then it is the new file, whole.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.parent / f".hesse-tmp-{os.getpid()}-{secrets.token_hex(8)}"
    with writing(path):
        fd = calls.create(temporary)
    try:
        try:
            writer = FileWriter(fd, path)
            yield writer
            with writing(path):
                calls.sync(fd)
                writer.finish()
        finally:
            with writing(path):
                calls.close(fd)
        with writing(path):
            calls.rename(temporary, path)
    except BaseException:  # an interrupt too: the temporary file must not stay
        with suppress(OSError):  # the first error is the one to report; the next run removes what stays
            calls.remove(temporary)
        raise
    with writing(path):
        _sync_folder(path.parent)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> FileEntry:
    """Write bytes to a file in one step.

    Parameters
    ----------
    path : str or PathLike
        The target; replaced if it exists.
    data : bytes or memoryview
        The whole content.

    Returns
    -------
    FileEntry
        Size and checksum, for the manifest.

    Raises
    ------
    WriteError
        If the operating system refuses; the old file is then still there.
    """
    with atomic_writer(path) as writer:
        writer.write(data)
    return writer.entry


def is_temporary(name: str) -> bool:
    """Whether a file name is one that an unfinished atomic write leaves behind.

    Parameters
    ----------
    name : str
        The last part of a path.

    Returns
    -------
    bool
        True for hesse's own temporary names only.
    """
    return TEMPORARY.fullmatch(name) is not None


def clean_temporaries(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove what interrupted writes left in a folder and below; call it only while holding the folder's lock.

    Parameters
    ----------
    folder : str or PathLike
        A run's folder. Links are not followed.

    Returns
    -------
    list of Path
        What was removed, sorted.

    Raises
    ------
    WriteError
        If a file cannot be removed.
    """
    removed: list[Path] = []
    for parent, _folders, files in os.walk(folder):
        for name in files:
            if is_temporary(name):
                path = Path(parent, name)
                with writing(path):
                    calls.remove(path)
                removed.append(path)
    return sorted(removed)
