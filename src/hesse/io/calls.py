"""The few operating-system calls behind all of hesse.io, in one place so that a test can make the n-th one fail.

Callers write ``calls.sync(fd)``, never ``from ... import sync``: replacing the name here replaces it everywhere.
POSIX only, since a folder is opened to be synced and a lock is a ``flock``.
"""

# ruff: noqa: DOC201  one line says what each returns
import fcntl
import os
from pathlib import Path

__all__ = [
    "close",
    "create",
    "lock",
    "lock_together",
    "make_folder",
    "open_folder",
    "open_lock",
    "open_to_read",
    "read_into",
    "remove",
    "rename",
    "sync",
    "write",
    "write_at",
]


def create(path: Path) -> int:
    """Return the descriptor of a new file, never of an existing one, never through a link; the umask counts."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def open_to_read(path: Path) -> int:
    """Return a descriptor for reading; not blocking, so that a pipe set as a trap cannot hang the caller."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def open_folder(path: Path) -> int:
    """Return the descriptor of a folder, to sync the names in it."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_lock(path: Path) -> int:
    """Return the descriptor of a lock file, made if it is missing, never through a link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def read_into(fd: int, buffer: memoryview) -> int:
    """Return how many bytes were read from the file's position into the buffer; 0 at the end of the file."""
    return os.readv(fd, [buffer])


def write(fd: int, data: memoryview) -> int:
    """Return how many bytes were written at the file's position; it may be short."""
    return os.write(fd, data)


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """Return how many bytes were written at an offset, the position left alone; it may be short."""
    return os.pwrite(fd, data, offset)


def sync(fd: int) -> None:
    """Wait until the bytes, or a folder's names, are on the disk."""
    os.fsync(fd)


def close(fd: int) -> None:
    """Give the descriptor back."""
    os.close(fd)


def rename(source: Path, target: Path) -> None:
    """Put the source in the target's place in one step."""
    source.replace(target)


def remove(path: Path) -> None:
    """Remove a file."""
    path.unlink()


def make_folder(path: Path) -> None:
    """Make one folder; there is no error if it is there already."""
    path.mkdir(exist_ok=True)


def lock(fd: int) -> None:
    """Take the lock or raise BlockingIOError; the kernel frees it when the last process that holds the file ends."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_together(fd: int) -> None:
    """Take the lock so that others may take it in this way too, or raise BlockingIOError; gives up the one held."""
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
