"""One writer at a time: a lock file with pid and host, held by the kernel so that kill -9 frees it."""

import json
import os
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from hesse.errors import RunLockedError
from hesse.io import calls
from hesse.io.atomic import clean_temporaries, make_folder, writing

__all__ = ["LOCK_NAME", "join_run_lock", "run_lock"]

LOCK_NAME = ".hesse-lock"
"""The lock file in a run's folder; it is there only while somebody writes, or after a crash."""


@contextmanager
def run_lock(folder: str | os.PathLike[str], *, together: bool = False) -> Generator[None, None, None]:
    """Hold a run's folder for writing; at the start, remove what an interrupted writer left in it.

    Parameters
    ----------
    folder : str or PathLike
        The run; made if it is missing.
    together : bool, default False
        Let other processes of the same job in with `join_run_lock`, once this one has cleaned the folder. If the block
        fails, the lock ends with the last of them.

    Yields
    ------
    None
        Nothing; the lock is held until the end of the block.

    Raises
    ------
    RunLockedError
        If another process, or another thread of this one, holds it; names pid and host. Also an OSError.
    WriteError
        If the folder is not writable.

    Notes
    -----
    The lock is a ``flock``: it ends with the process however that dies. Processes forked inside the block share it, so
    after a kill -9 it ends only with the last of them (the workers of a DataLoader: a few seconds).
    """
    folder = Path(folder)
    make_folder(folder)
    path = folder / LOCK_NAME
    fd = _acquire(path)
    finished = False
    try:
        clean_temporaries(folder)
        if together:
            _share(fd, path)
        yield
        finished = True
    finally:
        if finished or not together:  # else the others of the job hold this very file, and nobody may make another
            with suppress(OSError):  # a lock file that stays is harmless: only the kernel's lock counts
                calls.remove(path)
        calls.close(fd)


@contextmanager
def join_run_lock(folder: str | os.PathLike[str]) -> Generator[None, None, None]:
    """Hold a run's folder for writing beside a process of the same job that has it by ``run_lock(together=True)``.

    Parameters
    ----------
    folder : str or PathLike
        The run.

    Yields
    ------
    None
        Nothing; nobody else gets the lock before the end of the block, even if the first process has died.

    Raises
    ------
    RunLockedError
        If a process that is not of this job holds it. Also an OSError.
    WriteError
        If the folder is not writable.
    """
    path = Path(folder) / LOCK_NAME
    with writing(path):
        fd = calls.open_lock(path)
    try:
        _share(fd, path)
        yield
    finally:
        calls.close(fd)


def _acquire(path: Path) -> int:
    while True:
        with writing(path):
            fd = calls.open_lock(path)
            try:
                try:
                    calls.lock(fd)
                except BlockingIOError:
                    raise RunLockedError(_who(fd, path)) from None
                if _is_at(fd, path):
                    text = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
                    os.ftruncate(fd, 0)
                    calls.write_at(fd, memoryview(text), 0)
                    return fd
            except BaseException:
                calls.close(fd)
                raise
            # The holder removed the file between our open and our lock: what we hold has no name any more.
            calls.close(fd)


def _share(fd: int, path: Path) -> None:
    try:
        calls.lock_together(fd)
    except BlockingIOError:
        raise RunLockedError(_who(fd, path)) from None


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _who(fd: int, path: Path) -> str:
    text = os.pread(fd, 512, 0).decode("utf-8", "replace")
    pid_match, host_match = re.search(r'"pid": ([0-9]{1,9})\b', text), re.search(r'"host": "([A-Za-z0-9._-]*)"', text)
    if pid_match is None or host_match is None:  # the holder has the lock and has not yet signed it
        return f"{path.parent}: another process is writing to this run. Wait for it to end."
    pid, host = int(pid_match[1]), host_match[1]
    who = f"{path.parent}: process {pid} on {host} is writing to this run."
    if host == socket.gethostname() and not Path("/proc", str(pid)).exists() and Path("/proc/self").exists():
        return f"{who} It has ended, and its worker processes are ending: try again in a few seconds."
    return f"{who} Wait for it to end, or stop it; the lock frees itself."
