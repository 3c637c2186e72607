"""Tensors on disk: exact round trips, the library's own reader and writer as oracles, and refusals."""

import numpy as np
import pytest
import safetensors.torch
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ArtifactError
from hesse.io import FileEntry, check_file, load_tensors, save_tensors, tensor_metadata
from hesse.io.tensors import DTYPES


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def cases() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {
        str(dtype).removeprefix("torch."): torch.randint(0, 100, (3, 5), generator=generator).to(dtype)
        for dtype in DTYPES
    }
    return made | {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 7),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "strided": torch.arange(12.0).reshape(3, 4).t()[1:, ::2],
        "grad": torch.ones(2, requires_grad=True),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "name with / and \u00fc": torch.ones(1),
    }


def test_round_trip_is_bit_exact(tmp_path):
    """Oracle: the tensors themselves, NaN payloads and minus zero included."""
    tensors = cases()
    entry = save_tensors(tmp_path / "x.safetensors", tensors, {"unit": "nats"})
    found = load_tensors(tmp_path / "x.safetensors", entry)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert bits(found[name]) == bits(tensor.resolve_conj()), name
        assert not found[name].requires_grad
    assert tensor_metadata(tmp_path / "x.safetensors", entry) == {"unit": "nats"}
    check_file(tmp_path / "x.safetensors", entry)


def test_bytes_are_those_of_the_library(tmp_path):
    """Oracle: safetensors.torch.save on the same tensors, and its reader."""
    tensors = {
        name: tensor.detach().resolve_conj().contiguous() for name, tensor in cases().items() if "name" not in name
    }
    save_tensors(tmp_path / "x.safetensors", tensors)
    data = (tmp_path / "x.safetensors").read_bytes()
    theirs = safetensors.torch.load(data)
    assert {name: bits(tensor) for name, tensor in theirs.items()} == {name: bits(t) for name, t in tensors.items()}
    one = {"w": torch.arange(6.0).reshape(2, 3)}
    save_tensors(tmp_path / "one.safetensors", one, {"a": "b"})
    assert (tmp_path / "one.safetensors").read_bytes() == safetensors.torch.save(one, {"a": "b"})


def test_foreign_files_are_read(tmp_path):
    """Oracle: what the library wrote."""
    tensors = {"w": torch.randn(4, 3), "b": torch.zeros(0)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    found = load_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert tensor_metadata(tmp_path / "x.safetensors") == {"format": "pt"}


def test_equal_tensors_give_equal_bytes(tmp_path):
    """Oracle: invariance to the order of the mapping and to strides; metadata counts."""
    a, b = torch.randn(3, 4), torch.ones(2)
    one = save_tensors(tmp_path / "1", {"a": a, "b": b}, {"x": "1", "y": "2"})
    two = save_tensors(tmp_path / "2", {"b": b, "a": a.t().contiguous().t()}, {"y": "2", "x": "1"})
    three = save_tensors(tmp_path / "3", {"a": a, "b": b})
    assert one == two != three


def test_empty_mapping(tmp_path):
    """Oracle: identity."""
    entry = save_tensors(tmp_path / "x", {})
    assert load_tensors(tmp_path / "x", entry) == {}
    assert tensor_metadata(tmp_path / "x") == {}


def test_loaded_tensors_do_not_change_the_file(tmp_path):
    """Oracle: the file's checksum before; and a replaced file leaves loaded tensors alone."""
    entry = save_tensors(tmp_path / "x", {"a": torch.zeros(1000)})
    found = load_tensors(tmp_path / "x", entry)["a"]
    found += 1
    check_file(tmp_path / "x", entry)
    save_tensors(tmp_path / "x", {"a": torch.full((1000,), 7.0)})
    assert torch.equal(found, torch.ones(1000))


def test_writing_over_the_file_that_is_loaded(tmp_path):
    """Oracle: arithmetic; the tensors are views of the very file that is replaced."""
    save_tensors(tmp_path / "x", {"a": torch.arange(1000.0)})
    save_tensors(tmp_path / "x", {"a": load_tensors(tmp_path / "x")["a"] * 2, "b": load_tensors(tmp_path / "x")["a"]})
    found = load_tensors(tmp_path / "x")
    assert torch.equal(found["a"], torch.arange(1000.0) * 2)
    assert torch.equal(found["b"], torch.arange(1000.0))


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "word"),
    [
        ({1: torch.ones(1)}, None, ArgumentTypeError, "tensors"),
        ({"a": [1.0]}, None, ArgumentTypeError, "list"),
        ({"a": np.ones(1)}, None, ArgumentTypeError, "ndarray"),
        ({"__metadata__": torch.ones(1)}, None, ArgumentError, "__metadata__"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, None, ArgumentError, "complex128"),
        ({"a": torch.eye(2).to_sparse()}, None, ArgumentError, "dense"),
        ({"a": torch.ones(1, device="meta")}, None, ArgumentError, "meta"),
        ({"a": torch.ones(1)}, {"a": 1}, ArgumentTypeError, "metadata"),
        ({}, {"a": "x" * (9 << 20)}, ArgumentError, "several files"),
    ],
)
def test_bad_input(tensors, metadata, error, word, tmp_path):
    """Oracle: the documented error names the argument, and no file is left."""
    with pytest.raises(error, match=word):
        save_tensors(tmp_path / "x", tensors, metadata)
    assert list(tmp_path.iterdir()) == []


def test_bad_device(tmp_path):
    """Oracle: the documented error names the argument."""
    save_tensors(tmp_path / "x", {"a": torch.ones(1)})
    with pytest.raises(ArgumentError, match="device"):
        load_tensors(tmp_path / "x", device="gpu9000")


def test_wrong_entry_is_refused_before_parsing(tmp_path):
    """Oracle: a pickle with the entry of another file is refused for its size, and for its checksum."""
    (tmp_path / "x").write_bytes(b"\x80\x04N.")
    with pytest.raises(ArtifactError, match=r"4 bytes, the manifest says 5"):
        load_tensors(tmp_path / "x", FileEntry(5, "0" * 32))
    with pytest.raises(ArtifactError, match="xxh3"):
        load_tensors(tmp_path / "x", FileEntry(4, "0" * 32))


def test_a_file_replaced_while_it_is_read(tmp_path, monkeypatch):
    """Oracle: the file that was checked must be the file that is parsed."""
    from hesse.io import tensors as module

    entry = save_tensors(tmp_path / "x", {"a": torch.ones(3)})
    real = module.safe_open

    def swap(path, **kwargs):
        save_tensors(tmp_path / "x", {"a": torch.zeros(3)})
        return real(path, **kwargs)

    monkeypatch.setattr(module, "safe_open", swap)
    with pytest.raises(ArtifactError, match="changed while it was read"):
        load_tensors(tmp_path / "x", entry)


def test_a_head_of_just_the_limit_is_written_and_read(tmp_path, monkeypatch):
    """Oracle: the file's own first eight bytes: what fits is kept, one byte less of room refuses both ways."""
    tensors, path = {"a": torch.arange(3.0), "b": torch.ones(2)}, tmp_path / "x.safetensors"
    entry = save_tensors(path, tensors)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    monkeypatch.setattr("hesse.io.tensors.MAX_HEADER_BYTES", length)
    assert save_tensors(path, tensors) == entry
    torch.testing.assert_close(load_tensors(path), tensors)
    monkeypatch.setattr("hesse.io.tensors.MAX_HEADER_BYTES", length - 1)
    with pytest.raises(ArgumentError, match=f"head of {length:,} bytes"):
        save_tensors(path, tensors)
    with pytest.raises(ArtifactError, match=f"head of {length:,} bytes"):
        load_tensors(path)
