"""kill -9, a full disk, a second writer, other settings: a run of the influence engine holds its last complete state.

SIGKILL leaves the page cache alive, so this proves the order of the renames; that data reach the disk in that order is
the business of ``tests/io/test_calls.py``.
"""

import errno
import os
import random
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.influence._reliability import (
    CASES,
    TRACKED,
    Case,
    content,
    in_child,
    kill_until_done,
    memory_folder,
    tiny_model,
    tiny_sequences,
    work,
)
from hesse.errors import ArgumentError, ArtifactError, RunLockedError, WriteError
from hesse.influence.engine import Influence
from hesse.influence.run import open_folder
from hesse.influence.scores import open_scores
from hesse.io import MANIFEST_NAME, calls, check_file, file_path, manifest_exists, run_lock, verify_run

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

KILLS_A_CASE = 20
REFINED = CASES[1]
STEPS = {"batch_tokens": 24, "unit_size": 4, "checkpoint_seconds": 0.0, "progress": False}


@pytest.fixture
def tmp_path():
    """A folder in memory where there is one: to wait for a disk at each sync takes long and shows nothing."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def uninterrupted():
    with memory_folder() as folder:
        _, status = os.waitpid(in_child(lambda: work(folder / "run", REFINED)), 0)
        assert status == 0
        assert verify_run(folder / "run") == []
        yield content(folder / "run")


def all_whole(folder: Path) -> None:
    """Every file that the manifest names is as it says."""
    if manifest_exists(folder):
        for name, entry in open_folder(folder).manifest.files.items():
            check_file(file_path(folder, name), entry)


def held(folder: Path) -> dict[str, bytes]:
    """What counts of a run: the manifest and the files it names, not what a killed writer left beside them."""
    names = {MANIFEST_NAME, *open_folder(folder).manifest.files}
    return {name: data for name, data in content(folder).items() if name in names}


def killed(folder: Path, owner: object, name: str, index: int, counts, task=None) -> bool:
    """Run the task and die in the moment before that call of ``owner.name``; return whether it came to that."""

    def dying():
        real, seen = getattr(owner, name), 0

        def call(*args, **keywords):
            nonlocal seen
            if counts(args[-1]):
                if seen == index:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
            return real(*args, **keywords)

        setattr(owner, name, call)  # in the child only
        (task or partial(work, folder, REFINED))()

    _, status = os.waitpid(in_child(dying), 0)
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


def is_shard(path: Path) -> bool:
    return path.suffix == ".safetensors"


def is_manifest(path: Path) -> bool:
    return path.name == MANIFEST_NAME


def count_calls(folder: Path, monkeypatch, owner: object, name: str, counts) -> int:
    real, seen = getattr(owner, name), 0

    def call(*args, **keywords):
        nonlocal seen
        seen += counts(args[-1])
        return real(*args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, call)
        work(folder, REFINED)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_killed_at_random(case, tmp_path):
    """Oracle: the files of an uninterrupted run, bit by bit; after each kill all that the manifest names is whole."""
    count = kill_until_done(case, KILLS_A_CASE, 11, tmp_path)
    assert count.damaged_states == []
    assert (count.identical, count.verified) == (count.completed, count.completed)
    assert count.kills >= KILLS_A_CASE
    assert len(count.killed_in) >= 4  # stages, or the kills have shown nothing


@pytest.mark.slow
def test_killed_before_a_deletion(uninterrupted, tmp_path, monkeypatch):
    """Oracle: as above. The manifest no longer names these files: the next call removes them, fit or only score."""
    total = count_calls(tmp_path / "count", monkeypatch, Path, "unlink", is_shard)
    queries = 4  # layers, whose preconditioned queries go at the very end
    chosen = [*random.Random(0).sample(range(total - queries), 8), total - queries, total - 1]
    for index in chosen:
        folder = tmp_path / str(index)
        assert killed(folder, Path, "unlink", index, is_shard)
        all_whole(folder)
        assert verify_run(folder) != []
        if open_folder(folder).stage("fit").get("done") and index >= total - queries:
            influence = Influence(tiny_model(), modules=TRACKED)
            data, queries_asked = tiny_sequences(REFINED.sequences), tiny_sequences(3, 1, prompt=2)
            influence.score(queries_asked, data, folder, **REFINED.question, **STEPS)
        else:
            work(folder, REFINED)
        assert verify_run(folder) == []
        assert content(folder) == uninterrupted, index


@pytest.mark.slow
def test_killed_before_a_manifest(uninterrupted, tmp_path, monkeypatch):
    """Oracle: as above; the moment when every shard is in its place and none counts yet."""
    total = count_calls(tmp_path / "count", monkeypatch, calls, "rename", is_manifest)
    for index in range(0, total, 3):
        folder = tmp_path / str(index)
        assert killed(folder, calls, "rename", index, is_manifest)
        all_whole(folder)
        work(folder, REFINED)
        assert verify_run(folder) == []
        assert content(folder) == uninterrupted, index


def fit_and_score(folder: Path, dtype: torch.dtype, rank: int | None, **blocking) -> np.ndarray:
    settings = STEPS | blocking
    influence, data = Influence(tiny_model(dtype), modules=TRACKED), tiny_sequences(REFINED.sequences)
    influence.fit(data, folder, **settings)
    return np.array(influence.score(tiny_sequences(3, 1, prompt=2), data, folder, rank=rank, **settings).values)


@pytest.mark.parametrize(
    ("dtype", "rank", "tolerance"),
    [
        (torch.float32, None, 1e-5),
        (torch.float64, None, 1e-10),
        (torch.float64, 4, 1e-10),
        # kept in bfloat16: a difference in the last bit of the factors can round an entry of U or V to its neighbour
        (torch.float32, 4, 2.0**-8),
    ],
)
def test_another_batch_size_after_a_kill(dtype, rank, tolerance, tmp_path):
    """Oracle: the scores of an uninterrupted run, to rounding: batches and units are no part of the result."""
    expected = fit_and_score(tmp_path / "whole", dtype, rank)
    for index in (3, 10, 18, 26):
        folder = tmp_path / str(index)
        task = partial(fit_and_score, folder, dtype, rank)
        assert killed(folder, calls, "rename", index, is_manifest, task)
        found = fit_and_score(folder, dtype, rank, batch_tokens=4096, batch_size=1 + index % 3, unit_size=3)
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max(), index
        assert verify_run(folder) == []


def test_another_batch_size_while_scoring(tmp_path):
    """Oracle: as above, at 1e-5 with bfloat16 queries too: once in the run they are the same for every batch."""
    expected = fit_and_score(tmp_path / "whole", torch.float32, 4)
    folder = tmp_path / "run"
    assert killed(folder, calls, "rename", 26, is_manifest, partial(fit_and_score, folder, torch.float32, 4))
    assert any(
        state.get("sequences") and state.get("prepared") for state in open_folder(folder).manifest.stages.values()
    )
    found = fit_and_score(folder, torch.float32, 4, batch_size=3, unit_size=7)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def interrupted(folder: Path) -> None:
    """A run that was killed in the middle of its covariances."""
    assert killed(folder, calls, "rename", 3, is_manifest)
    assert open_folder(folder).stage("fit")["sequences"] > 0


OTHER_RUNS = {
    "order": ({}, lambda data: data[::-1], "data"),
    "fewer": ({}, lambda data: data[:-1], "num_sequences"),
    "seed": ({"seed": 1}, None, "seed"),
    "damping": ({"damping": 0.2}, None, "damping"),
    "strategy": ({"strategy": "kfac"}, None, "strategy"),
    "fisher": ({"fisher": "empirical"}, None, "fisher"),
    "positions": ({"positions": "attended"}, None, "positions"),
    "blocks": ({"blocks": 2}, None, "blocks"),
    "layers": ({"modules": r"^blocks\.0"}, None, "layers"),
}


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_other_settings_do_not_resume(change, tmp_path):
    """Oracle: the bytes of all that counts, unchanged; with overwrite, those of a run made afresh."""
    options, reorder, named = OTHER_RUNS[change]
    folder = tmp_path / "run"
    interrupted(folder)
    before = held(folder)
    influence = Influence(tiny_model(), **({"modules": TRACKED} | options))
    data = tiny_sequences(REFINED.sequences)
    data = data if reorder is None else reorder(data)
    with pytest.raises(ArgumentError, match=f"run_dir.*{named}"):
        influence.fit(data, folder, **STEPS)
    assert held(folder) == before
    influence.fit(data, folder, overwrite=True, **STEPS)
    influence.fit(data, tmp_path / "afresh", **STEPS)
    assert verify_run(folder) == []
    assert content(folder) == content(tmp_path / "afresh")


@pytest.mark.parametrize("parameter", ["blocks.0.0.weight", "blocks.1.2.bias", "embedding.weight", "head.weight"])
def test_other_weights_do_not_resume(parameter, tmp_path):
    """Oracle: the bytes of all that counts, unchanged, in fit and in score; untracked layers' weights count too."""
    model = tiny_model()
    with torch.no_grad():
        dict(model.named_parameters())[parameter].view(-1)[3] += 1e-3
    influence, data = Influence(model, modules=TRACKED), tiny_sequences(REFINED.sequences)
    interrupted(tmp_path / "run")
    before = held(tmp_path / "run")
    with pytest.raises(ArgumentError, match="model"):
        influence.fit(data, tmp_path / "run", **STEPS)
    assert held(tmp_path / "run") == before
    work(tmp_path / "done", REFINED)
    before = held(tmp_path / "done")
    with pytest.raises(ArtifactError, match="another model"):
        influence.score(tiny_sequences(2, 5, prompt=2), data, tmp_path / "done", **STEPS)
    assert held(tmp_path / "done") == before


def test_score_with_other_settings_is_refused(tmp_path):
    """Oracle: the damping of the fit, which alone is in the factors; another one asked for is not silently ignored."""
    work(tmp_path / "run", CASES[0])
    before = held(tmp_path / "run")
    other = Influence(tiny_model(), modules=TRACKED, damping=0.5)
    with pytest.raises(ArgumentError, match=r"run: .*damping \('0.1' there, '0.5' now\)"):
        other.score(tiny_sequences(2, 5, prompt=2), tiny_sequences(20), tmp_path / "run", **STEPS)
    assert held(tmp_path / "run") == before


def test_overwriting_survives_a_kill(tmp_path):
    """Oracle: a run made afresh; killed amid the deletions, the folder holds the new run, not the old without files."""
    work(tmp_path / "afresh", REFINED)
    for index in (0, 5):
        folder = tmp_path / str(index)
        work(folder, Case("old", {"seed": 1}, REFINED.question))

        def overwrite(folder=folder):
            influence = Influence(tiny_model(), modules=TRACKED)
            influence.fit(tiny_sequences(REFINED.sequences), folder, overwrite=True, **STEPS)

        assert killed(folder, Path, "unlink", index, is_shard, overwrite)
        all_whole(folder)
        work(folder, REFINED)
        assert content(folder) == content(tmp_path / "afresh")


def test_a_second_writer_is_refused(tmp_path):
    """Oracle: the pid of the process that holds the lock; nothing is written, and the lock ends with its holder."""
    folder = tmp_path / "run"
    work(folder, CASES[0])
    before = held(folder)
    ready, done = os.pipe(), os.pipe()

    def hold():
        with run_lock(folder):
            os.write(ready[1], b"x")
            os.read(done[0], 1)

    pid = in_child(hold)
    os.read(ready[0], 1)
    influence, data = Influence(tiny_model(), modules=TRACKED), tiny_sequences(20)
    try:
        for call in (
            lambda: influence.fit(data, folder, **STEPS),
            lambda: influence.score(tiny_sequences(3, 9, prompt=2), data, folder, **STEPS),
        ):
            with pytest.raises(RunLockedError, match=f"process {pid}"):
                call()
        assert held(folder) == before
        open_scores(folder).topk(0, 3)  # a reader is not kept out
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for end in (*ready, *done):
            os.close(end)
    influence.score(tiny_sequences(3, 9, prompt=2), data, folder, **STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["write", "sync", "rename"])
def test_a_full_disk(fault, uninterrupted, tmp_path, monkeypatch):
    """Oracle: the uninterrupted run, bit by bit, once there is room; until then the last complete state alone."""
    total = count_calls(tmp_path / "count", monkeypatch, calls, fault, lambda _last: True)
    for index in [0, 1, *random.Random(1).sample(range(2, total), 7), total - 1]:
        folder, seen, real = tmp_path / str(index), 0, getattr(calls, fault)

        def refuse(*args, index=index, real=real):
            nonlocal seen
            seen += 1
            if seen > index:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(calls, fault, refuse)
            with pytest.raises(WriteError, match="full"):
                work(folder, REFINED)
        assert not folder.exists() or verify_run(folder) == [], index
        work(folder, REFINED)
        assert content(folder) == uninterrupted, index
