"""Manifests: round trips, identity, and refusal of everything else."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

import hesse
from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError
from hesse.io import (
    MANIFEST_NAME,
    SCHEMA,
    FileEntry,
    Manifest,
    add_sha256,
    atomic_write_bytes,
    config_hash,
    encode_json,
    hash_bytes,
    hash_file,
    manifest_exists,
    manifest_hash,
    read_manifest,
    save_tensors,
    verify_run,
    write_manifest,
)


def make_run(folder) -> Manifest:
    entry = save_tensors(folder / "shards" / "0.safetensors", {"a": torch.ones(3)})
    manifest = Manifest(
        kind="factors",
        config={"damping": 0.1, "layers": ["h.0", "h.1"]},
        parents={"model": "a" * 32},
        stages={"fit": {"seconds": 1.5, "tokens": 12}},
        files={"shards/0.safetensors": entry},
    )
    write_manifest(folder, manifest)
    return manifest


def forge(folder, **changes) -> None:
    """Write a manifest whose checksum is right and whose content is not."""
    fields = {
        "kind": "factors",
        "config": {},
        "parents": {},
        "stages": {},
        "files": {},
        "schema": SCHEMA,
        "created_by": {},
    }
    fields = {name: value for name, value in {**fields, **changes}.items() if value is not ...}
    fields["checksum"] = hash_bytes(encode_json(fields))
    atomic_write_bytes(folder / MANIFEST_NAME, encode_json(fields))


def test_round_trip(tmp_path):
    """Oracle: the manifest itself."""
    assert not manifest_exists(tmp_path)
    manifest = make_run(tmp_path)
    assert manifest_exists(tmp_path)
    assert read_manifest(tmp_path) == read_manifest(str(tmp_path), "factors") == manifest
    assert manifest.schema == SCHEMA
    assert manifest.created_by["hesse"] == hesse.__version__
    with pytest.raises(FrozenInstanceError):
        manifest.kind = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_forged_manifest_would_be_read_if_it_were_right(tmp_path):
    """Oracle: identity; so the refusals below are not refusals of the checksum."""
    forge(tmp_path)
    assert read_manifest(tmp_path) == Manifest("factors", {}, created_by={})


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": ...},
        {"kind": 3},
        {"extra": 1},
        {"config": []},
        {"parents": {"model": 3}},
        {"stages": {"fit": 3}},
        {"created_by": {"hesse": None}},
        {"schema": "1"},
        {"schema": 0},
        {"schema": True},
        {"schema": ...},
        {"files": []},
        {"files": {"a": 3}},
        {"files": {"a": {"size": 3}}},
        {"files": {"a": {"size": -1, "xxh3": "0" * 32}}},
        {"files": {"a": {"size": 1 << 63, "xxh3": "0" * 32}}},
        {"files": {"a": {"size": True, "xxh3": "0" * 32}}},
        {"files": {"a": {"size": 1.0, "xxh3": "0" * 32}}},
        {"files": {"a": {"size": 1, "xxh3": "0" * 31}}},
        {"files": {"a": {"size": 1, "xxh3": "G" * 32}}},
        {"files": {"a": {"size": 1, "xxh3": "0" * 32, "sha256": "0"}}},
        {"files": {"a": {"size": 1, "xxh3": "0" * 32, "path": "/etc"}}},
    ],
)
def test_wrong_fields(changes, tmp_path):
    """Oracle: the documented layout; the checksum is right in each."""
    forge(tmp_path, **changes)
    with pytest.raises(ArtifactError, match="not a manifest of hesse"):
        read_manifest(tmp_path)


def test_from_the_future(tmp_path):
    """Oracle: the message names both versions and the remedy."""
    forge(tmp_path, schema=SCHEMA + 1, created_by={"hesse": "9.9"}, unheard_of=1)
    with pytest.raises(ArtifactError, match=rf"9\.9.*{hesse.__version__}.*pip install -U hesse") as caught:
        read_manifest(tmp_path)
    assert caught.value.exit_code == 3


def test_another_kind_settings_parents(tmp_path):
    """Oracle: the message names what differs."""
    manifest = make_run(tmp_path)
    assert read_manifest(tmp_path, config=manifest.config, parents={"model": "a" * 32}) == manifest
    with pytest.raises(ArtifactError, match="holds 'factors', expected 'scores'"):
        read_manifest(tmp_path, "scores")
    with pytest.raises(ArtifactError, match=r"other settings \(damping, new\)"):
        read_manifest(tmp_path, config={**manifest.config, "damping": 0.2, "new": 1})
    with pytest.raises(ArtifactError, match="another model"):
        read_manifest(tmp_path, parents={"model": "b" * 32})
    with pytest.raises(ArtifactError, match="another data"):
        read_manifest(tmp_path, parents={"data": "b" * 32})


def test_missing(tmp_path):
    """Oracle: the documented error; a folder, a pipe or nothing in the manifest's place."""
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        read_manifest(tmp_path)
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        read_manifest(tmp_path / "none")
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(ArtifactError, match="plain file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("data", [b"[]", b"3", b"{}", b'{"schema": 1}\n'])
def test_other_json(data, tmp_path):
    """Oracle: no manifest of hesse has this text."""
    (tmp_path / MANIFEST_NAME).write_bytes(data)
    with pytest.raises(ArtifactError):
        read_manifest(tmp_path)


def test_write_refuses(tmp_path):
    """Oracle: the documented errors; the old manifest stays."""
    manifest = make_run(tmp_path)
    entry = manifest.files["shards/0.safetensors"]
    for bad, error, word in [
        (replace(manifest, schema=SCHEMA + 1), ArgumentError, "schema"),
        (replace(manifest, config={"a": float("nan")}), ArgumentError, "manifest"),
        (replace(manifest, config={"a": torch.ones(1)}), ArgumentTypeError, "manifest"),
        (replace(manifest, kind=3), ArgumentError, "kind"),
        (replace(manifest, parents={"a": 3}), ArgumentError, "parents"),
        (replace(manifest, files={"shards/1.safetensors": entry}), ArtifactError, "1.safetensors"),
        (replace(manifest, files={"shards": entry}), ArtifactError, "shards"),
        (replace(manifest, files={"shards/0.safetensors": FileEntry(1, entry.xxh3)}), ArtifactError, "1 bytes"),
        (replace(manifest, files={"../x": entry}), ArgumentError, "name"),
        (replace(manifest, files={"a": FileEntry(1, "zz")}), ArgumentError, "a: not an entry"),
        (replace(manifest, stages={"fit": {"parts": [0] * (1 << 20)}}), ArgumentError, "values"),
        (replace(manifest, stages={"fit": {"text": "x" * (33 << 20)}}), ArgumentError, "at most"),
    ]:
        with pytest.raises(error, match=word):
            write_manifest(tmp_path, bad)
    assert read_manifest(tmp_path) == manifest


def test_a_hundred_thousand_files(tmp_path):
    """Oracle: the manifest itself, with the shard numbers that scoring 25 million sequences notes beside them."""
    (tmp_path / "parts").mkdir()
    files = {}
    for number in range(100_000):
        name = f"parts/part-{256 * number:09d}.safetensors"
        (tmp_path / name).touch()
        files[name] = FileEntry(0, hash_bytes(b""))
    parts = [[256 * number, 256 * number + 256] for number in range(100_000)]
    manifest = Manifest("scores", {}, stages={"score": {"parts": parts}}, files=files)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    (tmp_path / "parts" / "part-000000256.safetensors").unlink()
    with pytest.raises(ArtifactError, match="part-000000256"):
        write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize("kind", ["a link", "a folder", "a link above it"])
def test_only_plain_files_are_named(kind, tmp_path):
    """Oracle: the documented error; what is behind the name has the right size."""
    folder = tmp_path / "run"
    for name in ("parts", "real"):
        (folder / name).mkdir(parents=True)
    (folder / "real" / "a").touch()
    size = 0
    if kind == "a link":
        (folder / "parts" / "a").symlink_to(folder / "real" / "a")
    elif kind == "a folder":
        (folder / "parts" / "a").mkdir()
        size = (folder / "parts" / "a").stat().st_size
    else:
        (folder / "parts").rmdir()
        (folder / "parts").symlink_to(folder / "real")
    with pytest.raises(ArtifactError, match="parts"):
        write_manifest(folder, Manifest("scores", {}, files={"parts/a": FileEntry(size, hash_bytes(b""))}))
    assert not manifest_exists(folder)


def test_hashes(tmp_path):
    """Oracle: the documented text; invariance to order, stages and versions; every other change counts."""
    manifest = make_run(tmp_path)
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    assert config_hash({"a": 1}) == hash_bytes(b'{\n "a": 1\n}\n')
    assert config_hash({"a": 1}) != config_hash({"a": 1.0})
    same = replace(manifest, stages={}, created_by={"hesse": "0.0"})
    assert manifest_hash(same) == manifest_hash(manifest)
    others = [
        replace(manifest, kind="scores"),
        replace(manifest, config={}),
        replace(manifest, parents={}),
        replace(manifest, files={}),
    ]
    assert len({manifest_hash(one) for one in [manifest, *others]}) == 5


def test_sha256_for_a_run_that_leaves_the_house(tmp_path):
    """Oracle: hash_file; verify_run asks for it only then, and finds a file forged to fit its xxh3."""
    manifest = make_run(tmp_path)
    name = "shards/0.safetensors"
    assert verify_run(tmp_path) == []
    assert [problem.path for problem in verify_run(tmp_path, sha256=True)] == [name]
    sealed = add_sha256(tmp_path, manifest)
    assert sealed.files[name].sha256 == hash_file(tmp_path / name, "sha256")
    write_manifest(tmp_path, sealed)
    assert read_manifest(tmp_path) == sealed
    assert verify_run(tmp_path, sha256=True) == []
    forged = replace(sealed.files[name], sha256="0" * 64)
    write_manifest(tmp_path, replace(sealed, files={name: forged}))
    assert verify_run(tmp_path) == []
    assert "sha256" in verify_run(tmp_path, sha256=True)[0].reason
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        add_sha256(tmp_path, manifest)
