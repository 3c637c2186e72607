"""kill -9 at any moment: the run's folder holds the last complete state, and the same command completes it.

SIGKILL leaves the page cache alive, so this proves the order of the renames; that data reach the disk in that order is
the business of ``tests/io/test_calls.py``, which records the calls.
"""

import os
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hesse.io import (
    ArrayWriter,
    Manifest,
    calls,
    check_file,
    file_path,
    load_tensors,
    manifest_exists,
    read_manifest,
    run_lock,
    save_tensors,
    verify_run,
    write_manifest,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

UNITS = 4
ROWS = 3
KILLS = 60
CONFIG = {"units": UNITS}
# Left out of manifests here, since the comparison is of all bytes.
VERSION = {"hesse": "test"}


def work(folder: Path) -> None:
    """Take up the run and finish it: one shard a unit, a manifest after each, one array of blocks at the end."""
    with run_lock(folder):
        files = read_manifest(folder, "units", config=CONFIG).files if manifest_exists(folder) else {}
        for unit in range(UNITS):
            name = f"shards/{unit}.safetensors"
            if name not in files:
                tensor = torch.full((ROWS, 40), float(unit), dtype=torch.bfloat16)
                files = {**files, name: save_tensors(folder / name, {"scores": tensor})}
                write_manifest(folder, Manifest("units", CONFIG, files=files, created_by=VERSION))
        if "scores.npy" not in files:
            with ArrayWriter(folder / "scores.npy", (ROWS, 40 * UNITS)) as writer:
                for unit in range(UNITS):
                    name = f"shards/{unit}.safetensors"
                    block = load_tensors(folder / name, files[name])["scores"].float().numpy()
                    writer.write(block, columns=slice(40 * unit, 40 * unit + 40))
            files = {**files, "scores.npy": writer.entry}
            write_manifest(folder, Manifest("units", CONFIG, files=files, created_by=VERSION))


def in_child(task) -> int:
    """Fork, after the imports, a child that runs the task; it ends with 0 only if the task does."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    return pid


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_state(folder: Path) -> int:
    """Every file that the manifest names is whole; return how many it names."""
    if not manifest_exists(folder):
        return 0
    files = read_manifest(folder, "units", config=CONFIG).files
    for name, entry in files.items():
        check_file(file_path(folder, name), entry)
    return len(files)


def kill_at(folder: Path, index: int) -> None:
    """Run the work, and die in the moment before the seam's call of that number."""
    count = 0

    def wrap(real):
        def call(*args):
            nonlocal count
            if count == index:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return real(*args)

        return call

    for name in calls.__all__:
        setattr(calls, name, wrap(getattr(calls, name)))  # in the child only
    work(folder)


@pytest.fixture
def tmp_path(tmp_path):
    """A folder in memory where there is one: to wait for a disk at each sync takes long and shows nothing."""
    memory = Path("/dev/shm")  # noqa: S108  a fresh folder of our own is made in it
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    work(folder)
    assert verify_run(folder) == []
    assert len(content(folder)) == UNITS + 2
    scores = np.load(folder / "scores.npy", allow_pickle=False)
    assert np.array_equal(scores, np.repeat(np.arange(UNITS, dtype=np.float32), 40)[None].repeat(ROWS, 0))
    return content(folder)


def test_killed_at_random(uninterrupted, tmp_path):
    """Oracle: the files of an uninterrupted run, bit by bit; after each kill all that the manifest names is whole."""
    rng = random.Random(0)
    start = time.monotonic()
    os.waitpid(in_child(lambda: work(tmp_path / "timing")), 0)
    duration = time.monotonic() - start
    kills, runs, states, killed_early = 0, 0, set(), 0
    while kills < KILLS:
        folder = tmp_path / f"run{runs}"
        while True:
            pid = in_child(lambda folder=folder: work(folder))
            time.sleep(rng.uniform(0, 0.8 * duration))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            state = check_state(folder)
            states.add(state)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            kills += 1
            killed_early += state < UNITS + 1
        runs += 1
        assert content(folder) == uninterrupted
    assert killed_early >= KILLS // 2  # else the kills came too late to test anything
    assert len(states) >= 4


def test_killed_at_every_call(uninterrupted, tmp_path):
    """Oracle: as above, with the kill before each call of the seam in turn: no moment is left out by chance."""
    index = 0
    while True:
        folder = tmp_path / str(index)
        _, status = os.waitpid(in_child(lambda folder=folder, index=index: kill_at(folder, index)), 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        check_state(folder)
        work(folder)
        assert content(folder) == uninterrupted, index
        index += 1
    assert index > 90


def test_killed_while_taking_up_again(uninterrupted, tmp_path):
    """Oracle: as above; a run that is killed soon after every start still ends: no finished unit is redone."""
    rng = random.Random(1)
    kills = 0
    for number in range(5):
        folder = tmp_path / str(number)
        status = 9
        while not os.WIFEXITED(status):
            index = rng.randrange(30, 70)
            _, status = os.waitpid(in_child(lambda folder=folder, index=index: kill_at(folder, index)), 0)
            check_state(folder)
            kills += os.WIFSIGNALED(status)
            assert kills < 200
        assert content(folder) == uninterrupted
    assert kills >= 10


def test_a_real_limit_on_file_size(tmp_path):
    """Oracle: the kernel's own refusal (EFBIG) and not an injected one: the old file stays, whole, and nothing else."""
    import resource

    target = tmp_path / "file.npy"
    old = save_tensors(target, {"a": torch.zeros(10)})

    def task():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            with ArrayWriter(target, (100, 100)) as writer:
                writer.write(np.ones((100, 60)), columns=slice(0, 60))
                writer.write(np.ones((100, 40)), columns=slice(60, 100))
        except OSError as error:
            if str(target) in str(error) and type(error).__name__ == "WriteError":
                return
        raise SystemExit(2)

    _, status = os.waitpid(in_child(task), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    check_file(target, old)
    assert [path.name for path in tmp_path.iterdir()] == ["file.npy"]
