"""verify_run names every problem and nothing else."""

import numpy as np
import torch

from hesse.io import LOCK_NAME, MANIFEST_NAME, Manifest, Problem, save_array, save_tensors, verify_run, write_manifest


def make_run(folder) -> None:
    files = {
        f"shards/{n}.safetensors": save_tensors(folder / f"shards/{n}.safetensors", {"a": torch.ones(n + 1)})
        for n in range(3)
    }
    files["x.npy"] = save_array(folder / "x.npy", np.arange(5.0))
    write_manifest(folder, Manifest("scores", {}, files=files))


def test_a_whole_run_has_no_problem(tmp_path):
    """Oracle: what was just written, with a lock held, and a run inside a run."""
    make_run(tmp_path)
    make_run(tmp_path / "sub" / "factors")
    (tmp_path / LOCK_NAME).write_bytes(b"")
    assert verify_run(tmp_path) == verify_run(str(tmp_path)) == []


def test_every_problem_is_named(tmp_path):
    """Oracle: a list by hand of what was done to the run."""
    make_run(tmp_path)
    make_run(tmp_path / "factors")
    shard = tmp_path / "shards"
    (shard / "0.safetensors").unlink()
    data = bytearray((shard / "1.safetensors").read_bytes())
    data[-1] ^= 1
    (shard / "1.safetensors").write_bytes(data)
    (tmp_path / "x.npy").write_bytes(b"short")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    (shard / ".hesse-tmp-1-0123456789abcdef").write_bytes(b"half")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "linked folder").symlink_to("/etc")
    (shard / "2.safetensors").unlink()
    (shard / "2.safetensors").symlink_to(shard / "1.safetensors")
    (tmp_path / "factors" / "x.npy").unlink()
    found = {problem.path: problem.reason for problem in verify_run(tmp_path)}
    words = {
        "factors/x.npy": "missing",
        "link": "symbolic link",
        "linked folder": "symbolic link",
        "notes.txt": "not named",
        "shards/.hesse-tmp-1-0123456789abcdef": "interrupted",
        "shards/0.safetensors": "missing",
        "shards/1.safetensors": "xxh3",
        "shards/2.safetensors": "symbolic link",
        "x.npy": "bytes",
    }
    assert found.keys() == words.keys()
    assert all(word in found[path] for path, word in words.items())
    assert list(found) == sorted(found)


def test_no_manifest_and_a_damaged_one(tmp_path):
    """Oracle: the manifest itself is the first problem; without it every file is a stranger."""
    make_run(tmp_path)
    path = tmp_path / MANIFEST_NAME
    data = path.read_bytes()
    path.write_bytes(data.replace(b"scores", b"factor"))
    assert MANIFEST_NAME in {problem.path for problem in verify_run(tmp_path)}
    path.unlink()
    problems = verify_run(tmp_path)
    assert Problem("x.npy", "not named in the manifest. Move it out of the run's folder.") in problems
    assert "no manifest" in next(problem for problem in problems if problem.path == MANIFEST_NAME).reason
    assert [problem.path for problem in verify_run(tmp_path / "none")] == [MANIFEST_NAME]
