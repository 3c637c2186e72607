"""One writer at a time, in this process and across processes."""

import json
import os
import signal
import socket
import time
from contextlib import ExitStack

import pytest

from hesse.errors import RunLockedError, WriteError
from hesse.io import LOCK_NAME, join_run_lock, run_lock

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def hold_in_child(folder) -> int:
    """Fork a child that takes the lock, says so, and sleeps."""
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with run_lock(folder):
                os.write(say, b"1")
                time.sleep(60)
        finally:
            os._exit(1)
    os.close(say)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    return pid


def test_a_second_writer_is_refused(tmp_path):
    """Oracle: pid and host of the holder; after kill -9 the lock is free again."""
    pid = hold_in_child(tmp_path)
    try:
        with (
            pytest.raises(RunLockedError, match=f"process {pid} on {socket.gethostname()}") as caught,
            run_lock(tmp_path),
        ):
            pytest.fail("two writers")
        assert isinstance(caught.value, OSError)
        assert str(tmp_path) in str(caught.value)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert (tmp_path / LOCK_NAME).exists()
    with run_lock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / LOCK_NAME).read_text()
    assert not (tmp_path / LOCK_NAME).exists()


def test_nor_a_second_one_in_the_same_process(tmp_path):
    """Oracle: the documented error; the first lock stays whole, and is freed by an exception too."""

    def fail_while_holding():
        with run_lock(tmp_path):
            for _ in range(2):
                with pytest.raises(RunLockedError, match=str(os.getpid())), run_lock(tmp_path):
                    pytest.fail("two writers")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_holding()
    with run_lock(tmp_path):
        pass


def test_other_runs_are_free(tmp_path):
    """Oracle: the lock belongs to its folder."""
    with run_lock(tmp_path / "a"), run_lock(tmp_path / "b"):
        assert (tmp_path / "a" / LOCK_NAME).exists()


@pytest.mark.parametrize("text", [b"", b"garbage \xff", b'{"pid": 99999999999999999999, "host": "x"}', b"x" * 10_000])
def test_an_unreadable_signature(text, tmp_path):
    """Oracle: refusal does not depend on what the file says."""
    with run_lock(tmp_path):
        (tmp_path / LOCK_NAME).write_bytes(text)
        with pytest.raises(RunLockedError, match="another process"), run_lock(tmp_path):
            pytest.fail("two writers")


@pytest.mark.parametrize("host", [None, "elsewhere"])
@pytest.mark.parametrize("alive", [True, False])
def test_only_a_dead_process_of_this_host_is_said_to_have_ended(alive, host, tmp_path):
    """Oracle: by hand; of a process on another host, this host's list of processes says nothing."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    signature = json.dumps({"pid": os.getpid() if alive else pid, "host": host or socket.gethostname()})
    with run_lock(tmp_path):
        (tmp_path / LOCK_NAME).write_text(signature)
        with pytest.raises(RunLockedError) as caught, run_lock(tmp_path):
            pytest.fail("two writers")
    assert ("It has ended" in str(caught.value)) == (not alive and host is None)


def test_a_holder_that_has_died_and_whose_workers_live(tmp_path):
    """Oracle: a forked grandchild shares the lock; the message says that the holder itself has ended."""
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        with run_lock(tmp_path):
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            os.write(say, worker.to_bytes(4, "little"))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    worker = int.from_bytes(os.read(ready, 4), "little")
    os.close(ready)
    os.close(say)
    try:
        with pytest.raises(RunLockedError, match="has ended, and its worker processes"), run_lock(tmp_path):
            pytest.fail("two writers")
    finally:
        os.kill(worker, signal.SIGKILL)
    for _ in range(200):  # the worker is init's child now, so it cannot be waited for
        try:
            with run_lock(tmp_path):
                return
        except RunLockedError:
            time.sleep(0.01)
    pytest.fail("the lock was not freed")


def test_a_lock_file_that_was_removed_in_between(tmp_path, monkeypatch):
    """Oracle: whoever locks a file that has no name any more must try again, or two would write."""
    from hesse.io import calls

    real, tries = calls.lock, []

    def lock(fd):
        real(fd)
        tries.append(fd)
        if len(tries) == 1:
            (tmp_path / LOCK_NAME).unlink()

    monkeypatch.setattr(calls, "lock", lock)
    with run_lock(tmp_path):
        assert (tmp_path / LOCK_NAME).exists()
    assert len(tries) == 2


def test_a_link_in_the_locks_place(tmp_path):
    """Oracle: the file it leads to keeps its content."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK_NAME).symlink_to(victim)
    with pytest.raises(WriteError, match=LOCK_NAME), run_lock(run):
        pytest.fail("followed")
    assert victim.read_bytes() == b"precious"


def test_many_processes_one_at_a_time(tmp_path):
    """Oracle: a counter incremented without any protection but the lock; 4 processes x 25 steps."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                done = 0
                while done < 25:
                    try:
                        with run_lock(tmp_path / "run"):
                            counter.write_text(str(int(counter.read_text()) + 1))
                            done += 1
                    except RunLockedError:
                        time.sleep(0.001)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert counter.read_text() == "100"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    """Oracle: the documented error and remedy."""
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match="writable"), run_lock(tmp_path):
        pytest.fail("wrote")


def fails_together(folder, members):
    with run_lock(folder, together=True):
        members.enter_context(join_run_lock(folder))
        raise ZeroDivisionError


def enter(lock):
    with lock:
        return


def test_a_lock_held_together(tmp_path):
    """Oracle: the kernel's lock: strangers are kept out until the last of a job has gone, however the first ended."""
    members = join_run_lock(tmp_path), join_run_lock(tmp_path)
    with (
        run_lock(tmp_path, together=True),
        members[0],
        members[1],
        pytest.raises(RunLockedError, match=str(os.getpid())),
    ):
        enter(run_lock(tmp_path))
    assert not (tmp_path / LOCK_NAME).exists()
    with run_lock(tmp_path), pytest.raises(RunLockedError):
        enter(join_run_lock(tmp_path))
    with ExitStack() as members:
        with pytest.raises(ZeroDivisionError):
            fails_together(tmp_path, members)
        with pytest.raises(RunLockedError):
            enter(run_lock(tmp_path))
    enter(run_lock(tmp_path))
