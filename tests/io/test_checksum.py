"""Checksums of bytes, files and tensors."""

import hashlib
import itertools

import pytest
import torch
import xxhash

from hesse.errors import ArgumentError, ArtifactError
from hesse.io import FileEntry, check_file, hash_bytes, hash_file, hash_tensors

DATA = bytes(range(256)) * 9000  # more than two pieces of 1 MiB


@pytest.mark.parametrize("data", [b"", b"a", DATA])
def test_bytes_and_files_agree_with_the_libraries(data, tmp_path):
    """Oracle: xxhash and hashlib in one call."""
    path = tmp_path / "file"
    path.write_bytes(data)
    assert hash_bytes(data) == hash_file(path) == xxhash.xxh3_128(data).hexdigest()
    assert hash_bytes(data, "sha256") == hash_file(path, "sha256") == hashlib.sha256(data).hexdigest()


def test_known_values():
    """Oracle: the published values for empty input; they are in files, so they must never change."""
    assert hash_bytes(b"") == "99aa06d3014798d86001c324468d497f"
    assert hash_bytes(b"", "sha256").startswith("e3b0c44298fc1c14")
    tensors = {"b": torch.tensor([1.5, -2.0]), "a": torch.tensor([[1, 2]], dtype=torch.int8)}
    stream = b'["a", "torch.int8", [1, 2]]\n\x01\x02["b", "torch.float32", [2]]\n' + b"\x00\x00\xc0\x3f\x00\x00\x00\xc0"
    assert hash_tensors(tensors) == hash_bytes(stream)
    assert hash_tensors(tensors, "sha256") == hash_bytes(stream, "sha256")


def test_tensor_hash_ignores_order_layout_and_grad():
    """Oracle: invariance: order of names, strides, requires_grad, parameters, conjugate views."""
    a, b = torch.arange(6.0).reshape(2, 3), torch.tensor([1, 2], dtype=torch.bfloat16)
    wanted = hash_tensors({"a": a, "b": b})
    assert hash_tensors({"b": b, "a": a}) == wanted
    assert hash_tensors({"a": a.t().contiguous().t(), "b": b}) == wanted
    assert hash_tensors({"a": torch.nn.Parameter(a), "b": b}) == wanted
    z = torch.tensor([1 + 2j, 3 - 1j])
    assert hash_tensors({"z": z.conj()}) == hash_tensors({"z": z.conj().resolve_conj()})


def test_tensor_hash_sees_every_difference():
    """Oracle: all of these mappings differ, so all hashes do, pair by pair."""
    a = torch.arange(6.0)
    bits = a.clone()
    bits.view(torch.int32)[3] ^= 1
    mappings = [
        {},
        {"a": a},
        {"b": a},
        {"a": bits},
        {"a": a.reshape(2, 3)},
        {"a": a.reshape(3, 2)},
        {"a": a.double()},
        {"a": a.bfloat16()},
        {"a": a.half()},
        {"a": a, "b": a},
        {"a": a[:3], "b": a[3:]},
        {"a": a.view(torch.int32)},
        {"a": torch.tensor(0.0)},
        {"a": torch.zeros(0)},
        {"a": torch.tensor(-0.0)},
        {"a": torch.tensor(float("nan"))},
    ]
    hashes = [hash_tensors(mapping) for mapping in mappings]
    assert all(one != other for one, other in itertools.combinations(hashes, 2))


@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")])
def test_tensors_without_dense_data_are_refused(tensor):
    """Oracle: the documented error."""
    with pytest.raises(ArgumentError, match="dense tensors with data"):
        hash_tensors({"a": tensor})


def test_unknown_algorithm():
    """Oracle: the documented error names the argument."""
    with pytest.raises(ArgumentError, match="algorithm"):
        hash_bytes(b"", "md5")  # pyright: ignore[reportArgumentType]


def test_check_file(tmp_path):
    """Oracle: the entry that was taken from the file, and entries changed in one field."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    entry = FileEntry(len(DATA), hash_bytes(DATA), hash_bytes(DATA, "sha256"))
    check_file(path, entry, sha256=True)
    for wrong, word in [
        (FileEntry(len(DATA) - 1, entry.xxh3), "bytes"),
        (FileEntry(len(DATA), "0" * 32), "xxh3"),
        (FileEntry(len(DATA), entry.xxh3, "0" * 64), "sha256"),
    ]:
        with pytest.raises(ArtifactError, match=word) as caught:
            check_file(path, wrong, sha256=True)
        assert str(path) in str(caught.value)
        assert "run the same command again" in str(caught.value)
    check_file(path, FileEntry(len(DATA), entry.xxh3, "0" * 64))  # sha256 only on demand
    with pytest.raises(ArtifactError, match="missing"):
        check_file(tmp_path / "none", entry)
    with pytest.raises(ArtifactError, match="plain file"):
        check_file(tmp_path, entry)


def test_a_disk_that_cannot_be_read(tmp_path, monkeypatch):
    """Oracle: EIO while reading is hesse's error with the path, not a wrong checksum."""
    from hesse.io import calls

    path = tmp_path / "file"
    path.write_bytes(b"data")

    def fail(_fd, _buffer):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(calls, "read_into", fail)
    with pytest.raises(ArtifactError, match=r"file: cannot be read.*Input/output"):
        hash_file(path)
