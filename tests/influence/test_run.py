"""The folder of a run: what counts, what is removed, what is refused."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.influence._reliability import (
    BLOCKING,
    CASES,
    TRACKED,
    content,
    damages,
    finished_run,
    is_refused,
    memory_folder,
    read_everything,
    tiny_model,
    tiny_sequences,
    work,
)
from hesse.errors import ArgumentError, ArtifactError
from hesse.influence.engine import Influence
from hesse.influence.run import KIND, RunFolder, open_folder, remove_unnamed, start_folder, writing_run
from hesse.influence.scores import open_scores
from hesse.io import LOCK_NAME, MANIFEST_NAME, Manifest, run_lock, save_tensors, verify_run, write_manifest

CONFIG, PARENTS = {"seed": 0, "info": {}}, {"model": "a" * 32}
RESUME = {"resume": True, "overwrite": False}


def shard(run: RunFolder, name: str, value: float = 1.0):
    return {name: save_tensors(run.path / name, {"total": torch.full((3,), value)})}


def started(folder: Path) -> RunFolder:
    return start_folder(folder, CONFIG, PARENTS, **RESUME)


def test_a_commit_replaces_one_generation_by_the_next(tmp_path):
    """Oracle: the folder's listing after every step; the manifest is what counts."""
    run = started(tmp_path / "run")
    run.commit({"fit": {"sequences": 4}}, shard(run, "cov-4/a.A.safetensors"))
    run.commit({"fit": {"sequences": 8}}, shard(run, "cov-8/a.A.safetensors"), ["cov-4/a.A.safetensors"])
    assert content(run.path).keys() == {MANIFEST_NAME, "cov-8/a.A.safetensors"}
    assert not (run.path / "cov-4").exists()
    again = started(run.path)
    assert (again.manifest, again.stage("fit"), again.stage("score")) == (run.manifest, {"sequences": 8}, {})
    assert verify_run(run.path) == []


def test_a_file_replaced_under_its_own_name_is_kept(tmp_path):
    """Oracle: the file's bytes; a name both added and dropped is added."""
    run = started(tmp_path / "run")
    name = "lam/a.safetensors"
    run.commit({}, shard(run, name, 1.0))
    run.commit({}, shard(run, name, 2.0), [name])
    assert verify_run(run.path) == []
    assert run.entry(name) == open_folder(run.path).entry(name)


def test_an_entry_the_manifest_lacks(tmp_path):
    """Oracle: an ArtifactError with the file's name, not a KeyError."""
    with pytest.raises(ArtifactError, match=r"eig/a\.S\.safetensors.*not named"):
        started(tmp_path / "run").entry("eig/a.S.safetensors")


def test_other_settings_are_named_with_both_values(tmp_path):
    """Oracle: the message; notes under "info" do not count."""
    started(tmp_path / "run")
    start_folder(tmp_path / "run", CONFIG | {"info": {"note": "other"}}, PARENTS, **RESUME)
    with pytest.raises(ArgumentError, match=r"run_dir: .*differs in seed \(0 there, 5 now\)"):
        start_folder(tmp_path / "run", CONFIG | {"seed": 5}, PARENTS, **RESUME)
    with pytest.raises(ArgumentError, match=r"run_dir: .*differs in model"):
        start_folder(tmp_path / "run", CONFIG, {"model": "b" * 32}, **RESUME)
    with pytest.raises(ArgumentError, match="already holds this run"):
        start_folder(tmp_path / "run", CONFIG, PARENTS, resume=False, overwrite=False)


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path):
    """Oracle: the folder's listing."""
    run = started(tmp_path / "run")
    run.commit({"fit": {"done": True}}, shard(run, "eig/a.S.safetensors") | shard(run, "scores/x/part-0.safetensors"))
    new = start_folder(run.path, CONFIG | {"seed": 1}, PARENTS, resume=True, overwrite=True)
    assert new.manifest.stages == new.manifest.files == {}
    assert content(run.path).keys() == {MANIFEST_NAME}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(overwrite, tmp_path):
    """Oracle: its bytes; overwrite is for runs, not for folders."""
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "scores" / "x").mkdir(parents=True)
    (tmp_path / "scores" / "x" / "music").write_text("sonata")
    before = content(tmp_path)
    with pytest.raises(ArgumentError, match=r"run_dir: .*holds no run"):
        start_folder(tmp_path, CONFIG, PARENTS, resume=True, overwrite=overwrite)
    (tmp_path / MANIFEST_NAME).write_text("{}")
    with pytest.raises((ArgumentError, ArtifactError), match=r"run_dir: .*holds no run|manifest"):
        start_folder(tmp_path, CONFIG, PARENTS, resume=True, overwrite=overwrite)
    (tmp_path / MANIFEST_NAME).unlink()
    write_manifest(tmp_path, Manifest("another kind", {}))
    with pytest.raises(ArtifactError, match="another kind"):
        start_folder(tmp_path, CONFIG, PARENTS, resume=True, overwrite=overwrite)
    (tmp_path / MANIFEST_NAME).unlink()
    assert content(tmp_path) == before


def test_a_damaged_manifest_is_overwritten_only_when_asked(tmp_path):
    """Oracle: the advice in the message of the damage itself."""
    run = started(tmp_path / "run")
    run.commit({}, shard(run, "eig/a.S.safetensors"))
    data = (run.path / MANIFEST_NAME).read_bytes()
    (run.path / MANIFEST_NAME).write_bytes(data[:-9])
    with pytest.raises(ArtifactError, match="manifest"):
        started(run.path)
    start_folder(run.path, CONFIG, PARENTS, resume=True, overwrite=True)
    assert verify_run(run.path) == []
    assert content(run.path).keys() == {MANIFEST_NAME}


def test_what_no_manifest_names_is_removed_in_its_own_folders_only(tmp_path):
    """Oracle: the folder's listing; a reader's notes stay, whatever verify says of them."""
    run = started(tmp_path / "run")
    run.commit({}, shard(run, "eig/a.S.safetensors"))
    strays = ("cov-8/a.A", "eig/b.A", "lam-8/a", "lam/a", "queries/x/a", "scores/x/part-0", "corpus/train/texts")
    for stray in strays:
        shard(run, f"{stray}.safetensors")
    (run.path / "cov-12").mkdir()
    (run.path / "notes.md").write_text("mine")
    remove_unnamed(run)
    assert content(run.path).keys() == {MANIFEST_NAME, "eig/a.S.safetensors", "notes.md"}
    assert not (run.path / "cov-12").exists()
    assert not (run.path / "scores" / "x").exists()


def test_a_failure_leaves_nothing_that_was_not_committed(tmp_path):
    """Oracle: verify_run; and no folder at all where nothing had been committed."""
    with pytest.raises(ZeroDivisionError), writing_run(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    run = started(tmp_path / "run")

    def fail():
        with writing_run(run.path):
            run.commit({}, shard(run, "eig/a.S.safetensors"))
            shard(run, "eig/b.S.safetensors")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert verify_run(run.path) == []
    assert content(run.path).keys() == {MANIFEST_NAME, "eig/a.S.safetensors"}
    with run_lock(run.path):  # it was given back
        assert (run.path / LOCK_NAME).exists()


def test_opening_what_is_no_run(tmp_path):
    """Oracle: exit code 3 and the folder's name."""
    with pytest.raises(ArtifactError, match="not a run") as caught:
        open_folder(tmp_path)
    assert caught.value.exit_code == 3
    write_manifest(tmp_path, Manifest("corpus", {}))
    with pytest.raises(ArtifactError, match=KIND):
        open_folder(tmp_path)


@pytest.fixture(scope="module")
def whole():
    with memory_folder() as folder:
        finished_run(folder / "run")
        finished_run(folder / "other", seed=1)
        yield folder


@pytest.mark.slow
def test_every_damaged_file_is_refused_and_named(whole, tmp_path):
    """Oracle: the bytes as written. Truncated, flipped, swapped, foreign, pickled, missing: exit code 3."""
    folder = tmp_path / "run"
    shutil.copytree(whole / "run", folder)
    kinds = set()
    for what, name, harm in damages(folder, whole / "other", 1, random.Random(0)):
        data = (folder / name).read_bytes()
        harm(folder / name)
        kinds.add(name.split("/")[0])
        assert is_refused(folder), (what, name)
        problems = {problem.path for problem in verify_run(folder)}
        assert name in problems or (name == MANIFEST_NAME and problems), (what, name)
        (folder / name).write_bytes(data)
    assert kinds == {MANIFEST_NAME, "corpus", "eig", "lam", "scores"}
    read_everything(folder)


@pytest.mark.parametrize("kind", ["eig/", "lam/", "scores/", "corpus/train", "corpus/queries", "scores/ and lam/"])
def test_what_was_deleted_is_computed_anew(whole, kind, tmp_path):
    """Oracle: the bytes of the run before one of its files was deleted, after the commands that made it."""
    folder = tmp_path / "run"
    shutil.copytree(whole / "run", folder)
    before = content(folder)
    for part in kind.split(" and "):
        next(
            path for path in sorted(folder.rglob("*.*")) if path.relative_to(folder).as_posix().startswith(part)
        ).unlink()
    if kind != "scores/":
        with pytest.raises(ArtifactError, match="missing"):
            ask_again(folder)
    finished_run(folder)
    assert verify_run(folder) == []
    assert content(folder) == before


def ask_again(folder: Path) -> None:
    case = CASES[1]
    influence = Influence(tiny_model(), modules=TRACKED, **case.options)
    influence.score(tiny_sequences(3, 1, prompt=2), tiny_sequences(case.sequences), folder, **case.question, **BLOCKING)


def test_a_question_that_lost_a_shard_is_answered_again(whole, tmp_path):
    """Oracle: the scores before; nothing else of the run is touched."""
    folder = tmp_path / "run"
    shutil.copytree(whole / "run", folder)
    before = content(folder)
    next((folder / "scores").glob("*/part-*")).unlink()
    with pytest.raises(ArtifactError, match="part-"):
        read_everything(folder)
    ask_again(folder)
    assert verify_run(folder) == []
    after = content(folder)
    assert {name for name in before if not name.startswith("scores/") and name != MANIFEST_NAME} <= after.keys()
    assert [after[name] for name in before if name.endswith("scores.npy")] == [
        before[name] for name in before if name.endswith("scores.npy")
    ]


def test_two_shards_swapped(whole, tmp_path):
    """Oracle: the checksums, since shapes and sizes agree: equal layers of two blocks, equal parts of one question."""
    for stem in ("blocks.0.0.S", "blocks.1.0.S"), ("blocks.0.2.A", "blocks.1.2.A"):
        folder = tmp_path / stem[0]
        shutil.copytree(whole / "run", folder)
        first, second = (folder / "eig" / f"{name}.safetensors" for name in stem)
        held = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(held)
        with pytest.raises(ArtifactError, match="blocks"):
            read_everything(folder)
        assert [problem.path for problem in verify_run(folder)] == [f"eig/{name}.safetensors" for name in stem]


def test_a_damaged_shard_stops_the_resumption_too(tmp_path):
    """Oracle: the bytes of the damaged run: a fit does not go on from sums that are not those it wrote."""
    run_dir = tmp_path / "run"
    work(run_dir, CASES[0])
    victim = next((run_dir / "lam").iterdir())
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    before = content(run_dir)
    with pytest.raises(ArtifactError, match=victim.name):
        work(run_dir, CASES[0])
    assert content(run_dir) == before


def test_scores_are_not_opened_before_they_are_finished(tmp_path):
    """Oracle: the error and its advice."""
    run = started(tmp_path / "run")
    with pytest.raises(ArgumentError, match="holds no scores yet"):
        open_scores(run.path)
    run.commit({"score": {"latest": "scores/x"}, "score:scores/x": {"done": False}})
    with pytest.raises(ArgumentError, match="not finished"):
        open_scores(run.path)


def test_a_reader_keeps_what_it_has_opened(whole, tmp_path):
    """Oracle: the values read before the run was overwritten: a map stays readable when its file goes."""
    shutil.copytree(whole / "run", tmp_path / "run")
    scores = open_scores(tmp_path / "run")
    before = np.array(scores.values)
    with run_lock(tmp_path / "run"):
        start_folder(tmp_path / "run", CONFIG, PARENTS, resume=True, overwrite=True)
    assert np.array_equal(scores.values, before)


def test_a_damaged_run_with_indexes_is_overwritten_when_asked(tmp_path):
    """Oracle: the files of the indexes, which have manifests of their own and stay."""
    folder = tmp_path / "run"
    start_folder(folder, {"a": 1}, {}, resume=True, overwrite=False)
    for name in ("projected", "token-index-0123456789abcdef"):
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text("{}")
    (folder / "manifest.json").write_text("{")
    start_folder(folder, {"a": 2}, {}, resume=True, overwrite=True)
    assert open_folder(folder).manifest.config == {"a": 2}
    assert (folder / "projected" / "manifest.json").exists()
