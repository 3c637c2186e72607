"""Every file call of every kind of write is made to fail once: the old state or the new one, never between."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hesse.errors import WriteError
from hesse.io import (
    ArrayWriter,
    Manifest,
    atomic_write_bytes,
    atomic_write_json,
    clean_temporaries,
    load_tensors,
    read_manifest,
    run_lock,
    save_array,
    save_tensors,
    verify_run,
    write_array_rows,
    write_manifest,
)
from hesse.io import calls as io_calls
from hesse.io.atomic import is_temporary

BLOCK = np.arange(12, dtype=np.float32).reshape(3, 4)
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.bfloat16)}


def write_blocks(path: Path) -> None:
    with ArrayWriter(path, (3, 8)) as writer:
        writer.write(BLOCK, columns=slice(0, 4))
        writer.write(BLOCK, columns=slice(4, 8))


WRITES: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: atomic_write_bytes(path, b"new" * 100),
    "json": lambda path: atomic_write_json(path, {"new": [1, 2.5, None]}),
    "tensors": lambda path: save_tensors(path, TENSORS, {"k": "v"}),
    "array": lambda path: save_array(path, BLOCK),
    "blocks": write_blocks,
    "rows": lambda path: write_array_rows(path, iter([BLOCK, BLOCK]), (6, 4)),
    "new folder": lambda path: atomic_write_bytes(path.parent / "sub" / "deeper" / "file", b"new"),
}


class Calls:
    """Record every call of the seam; make the n-th one fail, or come up short."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, fail: dict[int, int | str], *, remove_fails: bool = False
    ) -> None:
        self.names: list[str] = []
        for name in io_calls.__all__:
            monkeypatch.setattr(io_calls, name, self.wrap(name, getattr(io_calls, name), fail, remove_fails))

    def wrap(self, name, real, fail, remove_fails):
        def call(*args):
            index = len(self.names)
            self.names.append(name)
            fault = errno.EIO if name == "remove" and remove_fails else fail.get(index)
            if fault == "short" and name in {"write", "write_at"}:
                return real(args[0], args[1][: max(1, len(args[1]) // 2)], *args[2:])
            if isinstance(fault, int):
                if name == "close":
                    real(*args)  # the kernel frees the descriptor even if it reports an error
                raise OSError(fault, os.strerror(fault))
            return real(*args)

        return call


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not is_temporary(path.name))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if is_temporary(path.name)]


def run_once(write, folder: Path, monkeypatch, fail, **kwargs) -> tuple[Calls, BaseException | None]:
    error = None
    with monkeypatch.context() as patch:
        calls = Calls(patch, fail, **kwargs)
        try:
            write(folder / "file")
        except BaseException as caught:
            error = caught
    return calls, error


def fresh(tmp_path: Path, label: object) -> Path:
    folder = tmp_path / str(label)
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    return folder


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("kind", WRITES)
def test_fault_at_every_call(kind, code, tmp_path, monkeypatch):
    """Oracle: the folder before and the folder after an undisturbed write; nothing else may be seen."""
    write = WRITES[kind]
    model = fresh(tmp_path, "model")
    old = snapshot(model)
    calls, error = run_once(write, model, monkeypatch, {})
    new = snapshot(model)
    assert error is None
    assert old != new
    for n, name in enumerate(calls.names):
        folder = fresh(tmp_path, n)
        _, error = run_once(write, folder, monkeypatch, {n: code})
        assert isinstance(error, WriteError), (n, name)
        assert str(folder) in str(error), (n, name)
        assert "again" in str(error), (n, name)
        renamed = "rename" in calls.names[:n]
        assert snapshot(folder) == (new if renamed else old), (n, name)
        assert temporaries(folder) == [], (n, name)


@pytest.mark.parametrize("kind", WRITES)
def test_error_is_hesses_and_keeps_errno(kind, tmp_path, monkeypatch):
    """Oracle: the documented type and the errno that was put in, for each call that writes."""
    model = fresh(tmp_path, "model")
    calls, _ = run_once(WRITES[kind], model, monkeypatch, {})
    for n, name in enumerate(calls.names):
        if name in {"create", "write", "write_at", "sync", "rename", "make_folder", "open_folder"}:
            folder = fresh(tmp_path, n)
            _, error = run_once(WRITES[kind], folder, monkeypatch, {n: errno.ENOSPC})
            assert isinstance(error, WriteError)
            assert error.errno == errno.ENOSPC
            assert error.exit_code == 1
            assert "free some space" in str(error)


@pytest.mark.parametrize("kind", WRITES)
def test_short_writes_are_continued(kind, tmp_path, monkeypatch):
    """Oracle: the bytes of an undisturbed write. A short write is no error; one followed by a full disk is."""
    write = WRITES[kind]
    model = fresh(tmp_path, "model")
    old = snapshot(model)
    calls, _ = run_once(write, model, monkeypatch, {})
    new = snapshot(model)
    for n, name in enumerate(calls.names):
        if name not in {"write", "write_at"}:
            continue
        folder = fresh(tmp_path, n)
        _, error = run_once(write, folder, monkeypatch, {n: "short"})
        assert error is None
        assert snapshot(folder) == new
        folder = fresh(tmp_path, f"{n} full")
        _, error = run_once(write, folder, monkeypatch, {n: "short", n + 1: errno.ENOSPC})
        assert isinstance(error, WriteError)
        assert snapshot(folder) == old
    folder = fresh(tmp_path, "all short")
    _, error = run_once(write, folder, monkeypatch, dict.fromkeys(range(3000), "short"))
    assert error is None
    assert snapshot(folder) == new


def test_a_disk_that_takes_nothing_ends_in_an_error(tmp_path, monkeypatch):
    """Oracle: POSIX lets write return 0; the loop must then end."""
    monkeypatch.setattr(io_calls, "write", lambda _fd, _data: 0)
    with pytest.raises(WriteError, match="took no bytes"):
        atomic_write_bytes(tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", WRITES)
def test_what_stays_is_removed_by_the_next_run(kind, tmp_path, monkeypatch):
    """Oracle: the folder before. Two faults: a call, and then the removal of the temporary file."""
    write = WRITES[kind]
    model = fresh(tmp_path, "model")
    old = snapshot(model)
    calls, _ = run_once(write, model, monkeypatch, {})
    before_rename = calls.names.index("rename")
    left = 0
    for n in range(calls.names.index("create") + 1, before_rename + 1):
        folder = fresh(tmp_path, n)
        _, error = run_once(write, folder, monkeypatch, {n: errno.EIO}, remove_fails=True)
        assert isinstance(error, OSError)
        assert snapshot(folder) == old
        left += len(temporaries(folder))
        with run_lock(folder):
            assert temporaries(folder) == []
        assert snapshot(folder) == old
    assert left > 0


def commit_unit(path: Path) -> None:
    """One unit of work: a new shard, then the manifest that names it as well."""
    folder = path.parent
    manifest = read_manifest(folder, "units")
    entry = save_tensors(folder / "shards" / "1.safetensors", TENSORS)
    files = {**manifest.files, "shards/1.safetensors": entry}
    write_manifest(folder, Manifest("units", {}, files=files))


def start_units(folder: Path) -> None:
    entry = save_tensors(folder / "shards" / "0.safetensors", TENSORS)
    write_manifest(folder, Manifest("units", {}, files={"shards/0.safetensors": entry}))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_run_is_whole_after_a_fault_at_every_call(code, tmp_path, monkeypatch):
    """Oracle: the manifest of one unit or of two; every file it names loads against its entry; a rerun completes."""
    model = tmp_path / "model"
    start_units(model)
    calls, error = run_once(commit_unit, model, monkeypatch, {})
    assert error is None
    assert len(calls.names) > 15
    final = snapshot(model)
    for n in range(len(calls.names)):
        folder = tmp_path / str(n)
        start_units(folder)
        _, error = run_once(commit_unit, folder, monkeypatch, {n: code})
        manifest = read_manifest(folder, "units")
        assert len(manifest.files) in {1, 2}
        for name, entry in manifest.files.items():
            load_tensors(folder / name, entry)
        assert [p for p in verify_run(folder) if "not named" not in p.reason] == []
        commit_unit(folder / "file")
        assert snapshot(folder) == final
        assert verify_run(folder) == []


def test_order_of_calls(tmp_path, monkeypatch):
    """Oracle: the order that survives a power cut: data, sync of the file, rename, sync of the folder."""
    target = tmp_path / "file"
    synced: list[bool] = []
    real = io_calls.sync
    monkeypatch.setattr(io_calls, "sync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").is_dir()), real(fd))[1])
    calls, error = run_once(lambda path: atomic_write_bytes(path, b"data"), tmp_path, monkeypatch, {})
    assert error is None
    assert calls.names == ["create", "write", "sync", "close", "rename", "open_folder", "sync", "close"]
    assert synced == [False, True]
    assert target.read_bytes() == b"data"


@pytest.mark.parametrize("kind", ["tensors", "array", "blocks", "rows", "json"])
def test_every_write_has_that_order(kind, tmp_path, monkeypatch):
    """Oracle: the same order, whatever is written; after the file's sync nothing more is written to it."""
    calls, error = run_once(WRITES[kind], tmp_path, monkeypatch, {})
    assert error is None
    essential = [name for name in calls.names if name not in {"close", "read_into"}]
    writes = [name for name in essential if name in {"write", "write_at"}]
    assert essential == ["create", *writes, "sync", "rename", "open_folder", "sync"]


def test_a_new_folder_is_synced_into_the_one_above(tmp_path, monkeypatch):
    """Oracle: a folder's name lies in the folder above, which must be synced before files go into the new one."""
    calls, _ = run_once(WRITES["new folder"], tmp_path, monkeypatch, {})
    step = ["make_folder", "open_folder", "sync", "close"]
    assert calls.names[:8] == step * 2


@pytest.mark.parametrize("name", ["create", "write", "sync", "close", "rename"])
def test_an_interrupt_leaves_nothing(name, tmp_path, monkeypatch):
    """Oracle: the folder before, after KeyboardInterrupt at each call up to the rename."""
    folder = fresh(tmp_path, name)

    def interrupt(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(io_calls, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            atomic_write_bytes(folder / "file", b"new")
    assert snapshot(folder) == {"file": b"old"}
    assert temporaries(folder) == []


def test_clean_temporaries_takes_only_its_own(tmp_path):
    """Oracle: a list by hand; look-alikes stay, links are not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    run = tmp_path / "run"
    (run / "deep").mkdir(parents=True)
    mine = [run / ".hesse-tmp-12-0123456789abcdef", run / "deep" / ".hesse-tmp-7-ffffffffffffffff"]
    others = [run / ".hesse-tmp-x", run / "a.tmp", run / ".hesse-tmp-12-0123456789abcdef.txt", run / "manifest.json"]
    hidden = outside / ".hesse-tmp-12-0123456789abcdef"
    for path in [*mine, *others, hidden]:
        path.write_bytes(b"x")
    (run / "link").symlink_to(outside)
    assert clean_temporaries(run) == sorted(mine)
    assert all(path.exists() for path in [*others, hidden])
    assert clean_temporaries(tmp_path / "missing") == []
