"""Every kind of artifact, damaged in every way, is refused: 100 %, with exit code 3."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hesse.errors import ArtifactError
from hesse.io import (
    MANIFEST_NAME,
    Manifest,
    atomic_write_json,
    load_tensors,
    open_array,
    read_json,
    read_manifest,
    save_array,
    save_tensors,
    tensor_metadata,
    verify_run,
    write_manifest,
)

TRUNCATIONS, HEADER_FLIPS, DATA_FLIPS = 300, 500, 300


def make_run(folder: Path, seed: int = 0) -> Manifest:
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"layer.{n}.{side}": torch.randn(6, 6, generator=generator) for n in range(3) for side in "AS"}
    files = {
        "a.safetensors": save_tensors(folder / "a.safetensors", tensors, {"seed": str(seed)}),
        "b.safetensors": save_tensors(
            folder / "b.safetensors", {name: -tensor for name, tensor in tensors.items()}, {"seed": str(seed)}
        ),
        "x.npy": save_array(folder / "x.npy", torch.randn(30, 20, generator=generator).numpy()),
        "y.json": atomic_write_json(
            folder / "y.json", {"seed": seed, "values": list(range(300)), "texts": ["é", "x" * 50]}
        ),
    }
    manifest = Manifest(
        "scores", {"seed": seed, "rate": 1e-30, "text": "é"}, {"model": "0" * 32}, {"fit": {"t": 1.5e20}}, files
    )
    write_manifest(folder, manifest)
    return manifest


def load_npy(path: Path, entry) -> object:
    return np.array(open_array(path, entry))


READERS: dict[str, Callable] = {
    "a.safetensors": load_tensors,
    "x.npy": load_npy,
    "y.json": lambda path, entry: read_json(path, entry=entry),
    MANIFEST_NAME: lambda path, _entry: read_manifest(path.parent),
}


@pytest.fixture
def run(tmp_path) -> tuple[Path, Manifest]:
    manifest = make_run(tmp_path / "run")
    return tmp_path / "run", manifest


def header_size(name: str, data: bytes) -> int:
    if name.endswith(".safetensors"):
        return 8 + int.from_bytes(data[:8], "little")
    return 128 if name.endswith(".npy") else len(data) // 2


def flip(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def damaged(name: str, data: bytes, kind: str) -> list[bytes]:
    rng = random.Random(f"{name} {kind}")
    head = header_size(name, data)
    if kind == "truncated":
        lengths = [0, 1, 7, 8, 9, len(data) - 1] + [rng.randrange(len(data)) for _ in range(TRUNCATIONS - 6)]
        return [data[:length] for length in lengths]
    if kind == "header flips":
        return [flip(data, rng.randrange(head), rng.randrange(8)) for _ in range(HEADER_FLIPS)]
    return [flip(data, rng.randrange(head, len(data)), rng.randrange(8)) for _ in range(DATA_FLIPS)]


@pytest.mark.parametrize("kind", ["truncated", "header flips", "data flips"])
@pytest.mark.parametrize("name", READERS)
def test_all_damage_is_refused(name, kind, run):
    """Oracle: the bytes differ from those written, so each must be refused, and the message names the file."""
    folder, manifest = run
    path, entry = folder / name, manifest.files.get(name)
    whole = path.read_bytes()
    READERS[name](path, entry)
    variants = damaged(name, whole, kind)
    refused = 0
    for data in variants:
        path.write_bytes(data)
        with pytest.raises(ArtifactError) as caught:
            READERS[name](path, entry)
        assert name in str(caught.value)
        refused += caught.value.exit_code == 3
    assert refused == len(variants)
    path.write_bytes(whole)
    READERS[name](path, entry)


def test_every_bit_of_a_manifest_counts(run):
    """Oracle: all single-bit changes of a whole manifest, not a sample of them."""
    folder, _ = run
    path = folder / MANIFEST_NAME
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            path.write_bytes(flip(whole, position, bit))
            with pytest.raises(ArtifactError):
                read_manifest(folder)


@pytest.mark.parametrize("name", ["a.safetensors", "x.npy"])
def test_truncation_is_noticed_even_without_an_entry(name, run):
    """Oracle: both formats say their size in their head."""
    folder, _ = run
    path = folder / name
    for data in damaged(name, path.read_bytes(), "truncated"):
        path.write_bytes(data)
        with pytest.raises(ArtifactError):
            READERS[name](path, None)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError):
        READERS[name](path, None)


def test_metadata_is_checked_too(run):
    """Oracle: a flipped bit in the data is noticed even when only the head is read."""
    folder, manifest = run
    path = folder / "a.safetensors"
    path.write_bytes(flip(path.read_bytes(), -1, 0))
    with pytest.raises(ArtifactError):
        tensor_metadata(path, manifest.files["a.safetensors"])


def test_longer_files_are_refused(run):
    """Oracle: the sizes differ."""
    folder, manifest = run
    for name, reader in READERS.items():
        path = folder / name
        path.write_bytes(path.read_bytes() + b"\n")
        with pytest.raises(ArtifactError):
            reader(path, manifest.files.get(name))


def test_swapped_shards(run):
    """Oracle: equal sizes, other content; verify names both."""
    folder, manifest = run
    a, b = folder / "a.safetensors", folder / "b.safetensors"
    one, two = a.read_bytes(), b.read_bytes()
    assert len(one) == len(two)
    a.write_bytes(two)
    b.write_bytes(one)
    for path in (a, b):
        with pytest.raises(ArtifactError, match=path.name):
            load_tensors(path, manifest.files[path.name])
    assert [problem.path for problem in verify_run(folder)] == ["a.safetensors", "b.safetensors"]


def test_manifest_of_another_run(run, tmp_path):
    """Oracle: the other run differs in its seed only; its manifest fits no file here, nor the settings asked for."""
    folder, manifest = run
    make_run(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / MANIFEST_NAME, folder / MANIFEST_NAME)
    foreign = read_manifest(folder)
    for name in ("a.safetensors", "b.safetensors", "x.npy", "y.json"):
        with pytest.raises(ArtifactError):
            READERS.get(name, load_tensors)(folder / name, foreign.files[name])
    with pytest.raises(ArtifactError, match="seed"):
        read_manifest(folder, config=manifest.config)
    assert [problem.path for problem in verify_run(folder)] == ["a.safetensors", "b.safetensors", "x.npy", "y.json"]


def test_missing_shard(run):
    """Oracle: the message names it; only that one is computed anew, and the run is whole again."""
    folder, manifest = run
    path = folder / "b.safetensors"
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(ArtifactError, match=r"b\.safetensors: the file is missing"):
        load_tensors(path, manifest.files["b.safetensors"])
    assert [problem.path for problem in verify_run(folder)] == ["b.safetensors"]
    path.write_bytes(data)
    assert verify_run(folder) == []


def test_verify_names_the_damaged_file(run):
    """Oracle: the one file that was changed, for each kind of file."""
    folder, _ = run
    for name in READERS:
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(flip(whole, len(whole) // 2, 3))
        assert name in [problem.path for problem in verify_run(folder)]
        path.write_bytes(whole)
        assert verify_run(folder) == []
