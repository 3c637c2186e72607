"""Files made to harm: none executes anything, none makes hesse take 64 MiB, each gives a clear error.

The files are made here, so that no scanner trips over the repository.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hesse.errors import ArtifactError
from hesse.io import (
    MANIFEST_NAME,
    SCHEMA,
    FileEntry,
    encode_json,
    hash_bytes,
    load_tensors,
    open_array,
    read_json,
    read_manifest,
    tensor_metadata,
    verify_run,
)

LIMIT = 64 << 20
CANARY = "HESSE_CANARY_TEST"


class Exec:
    """Unpickling it runs code."""

    def __reduce__(self):
        return exec, (f"import os; os.environ[{CANARY!r}] = '1'",)


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    text = header.encode("latin1")
    size = len(text) if length is None else length
    return b"\x93NUMPY" + version + size.to_bytes(2 if version[0] == 1 else 4, "little") + text + data


def object_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Exec()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([Exec()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": Exec()}, buffer)
    return buffer.getvalue()


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        for _ in range(200):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


def tensors_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def describe(descr: str, shape: str = "(1,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


PICKLES = {
    "pickle": lambda: pickle.dumps(Exec()),
    "pickle protocol 0": lambda: pickle.dumps(Exec(), protocol=0),
    "torch file": torch_file,
    "zip bomb": zip_bomb,
    "object array": object_npy,
    "npz of objects": npz,
}
TENSORS = PICKLES | {
    "head of 2^63 bytes": lambda: tensors_file(b"{}", length=1 << 63),
    "head of 2^64 - 1 bytes": lambda: tensors_file(b"{}", length=(1 << 64) - 1),
    "head one byte too long": lambda: tensors_file(b"{}", length=3),
    "head is a list": lambda: tensors_file([]),
    "head is deep": lambda: tensors_file(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "head is deep lists": lambda: tensors_file(b"[" * 1_000_000),
    "head is not UTF-8": lambda: tensors_file(b'{"\xff":1}'),
    "offsets beyond the file": lambda: tensors_file(one(offsets=(0, 1 << 62)), bytes(8)),
    "offsets that overlap": lambda: tensors_file(one() | {"b": one()["a"]}, bytes(8)),
    "offsets with a hole": lambda: tensors_file(one(offsets=(8, 16)), bytes(16)),
    "offsets backwards": lambda: tensors_file(one(offsets=(8, 0)), bytes(8)),
    "offsets negative": lambda: tensors_file(one(offsets=(-8, 0)), bytes(8)),
    "data nobody names": lambda: tensors_file({}, bytes(8)),
    "shape overflows": lambda: tensors_file(one(shape=(1 << 32, 1 << 32), offsets=(0, 0))),
    "shape huge": lambda: tensors_file(one(shape=(1 << 62,)), bytes(8)),
    "shape negative": lambda: tensors_file(one(shape=(-2,)), bytes(8)),
    "shape not fitting": lambda: tensors_file(one(shape=(3,)), bytes(8)),
    "unknown dtype": lambda: tensors_file(one(dtype="OBJ"), bytes(8)),
    "many names": lambda: tensors_file(b"{" + b",".join(b'"%d":1' % n for n in range(700_000)) + b"}"),
    "metadata not text": lambda: tensors_file({"__metadata__": {"a": {"b": 1}}}),
    "nothing": bytes,
}
ARRAYS = PICKLES | {
    "shape of 2^63": lambda: npy(describe("'<f4'", f"({1 << 63},)")),
    "shape product overflows": lambda: npy(describe("'<f8'", f"({1 << 40}, {1 << 40})")),
    "shape negative": lambda: npy(describe("'<f4'", "(-1,)")),
    "shape of 10^300": lambda: npy(describe("'<f4'", "(1" + "0" * 300 + ",)")),
    "shape of 1000 axes": lambda: npy(describe("'<f4'", "(" + "1, " * 1000 + ")")),
    "object dtype": lambda: npy(describe("'|O'"), pickle.dumps(Exec())),
    "record of objects": lambda: npy(describe("[('a', '|O')]"), bytes(8)),
    "record": lambda: npy(describe("[('a', '<f4')]"), bytes(4)),
    "text dtype": lambda: npy(describe("'<U1'"), bytes(4)),
    "a dtype of many parts": lambda: npy(describe("'f4,f4'"), bytes(8)),
    "a call as head": lambda: npy(f"__import__('os').environ.__setitem__({CANARY!r}, '1')\n"),
    "a call as dtype": lambda: npy(describe(f"__import__('os').environ.__setitem__({CANARY!r}, '1')")),
    "deep parentheses": lambda: npy("(" * 9000 + ")" * 900),
    "many signs": lambda: npy("-" * 9980 + "1"),
    "head of 4 GiB": lambda: npy("{}", version=b"\x02\x00", length=(1 << 32) - 1),
    "head of 60 kB": lambda: npy(describe("'<f4'") + " " * 60_000, bytes(4)),
    "version 3": lambda: npy(describe("'<f4'"), bytes(4), version=b"\x03\x00"),
    "version 9": lambda: npy(describe("'<f4'"), bytes(4), version=b"\x09\x00"),
    "an empty array of 2^62 columns that numpy cannot map": lambda: npy(
        describe("'<f8'", f"(0, {1 << 62}, {1 << 62})")
    ),
    "nothing": bytes,
}
JSON = PICKLES | {
    "deep lists": lambda: b"[" * 10_000_000,
    "deep objects": lambda: b'{"":' * 2_000_000,
    "many small lists": lambda: b"[" + b"[]," * 2_000_000 + b"0]",
    "many keys": lambda: b"{" + b",".join(b'"%d":0' % n for n in range(800_000)) + b"}",
    "a number of 10^6 digits": lambda: b"1" * 1_000_000,
    "quotes": lambda: b'"' + b'\\"' * 4_000_000,
    "quotes and commas": lambda: b'["' + b'\\",' * 3_000_000,
    "NaN": lambda: b"NaN",
    "code": lambda: b"__import__('os')",
    "YAML tag": lambda: b"!!python/object/apply:os.system ['true']\n",
    "nothing": bytes,
}
KINDS: dict[str, tuple[dict[str, Callable[[], bytes]], str, tuple[Callable[[Path], object], ...]]] = {
    "tensors": (TENSORS, "x.safetensors", (load_tensors, tensor_metadata)),
    "arrays": (ARRAYS, "x.npy", (open_array,)),
    "json": (JSON, "x.json", (read_json,)),
    "manifest": (JSON, MANIFEST_NAME, (lambda path: read_manifest(path.parent),)),
}
CASES = [(kind, name) for kind, (files, _, _) in KINDS.items() for name in files]


def peak_memory() -> int:
    """Most memory this process ever held since the last reset, in bytes, mapped files that were read included."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10


def reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_hostile_file(kind, name, tmp_path):
    """Oracle: the documented error names the file; no mark is left; the peak of memory rises by less than 64 MiB."""
    files, file_name, readers = KINDS[kind]
    path = tmp_path / file_name
    path.write_bytes(files[name]())
    for reader in readers:
        measured = reset_peak()
        before = peak_memory() if measured else 0
        with pytest.raises(ArtifactError) as caught:
            reader(path)
        if measured:
            assert peak_memory() - before < LIMIT
        assert file_name in str(caught.value)
        assert len(str(caught.value)) < 2000
        assert caught.value.exit_code == 3
        assert CANARY not in os.environ
    assert {entry.name for entry in tmp_path.iterdir()} == {file_name}


def test_the_canary_sings():
    """Oracle: unpickling the bomb leaves the mark, so its absence above means something."""
    try:
        pickle.loads(pickle.dumps(Exec()))
        assert CANARY in os.environ
    finally:
        os.environ.pop(CANARY, None)


@pytest.mark.parametrize("reader", [load_tensors, open_array, read_json])
def test_sparse_giants_are_refused_by_their_head(reader, tmp_path):
    """Oracle: a file of 1 TiB without content takes no memory and no time."""
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90 << 20) if reader is load_tensors else b"[")
        file.truncate(1 << 40)
    measured = reset_peak()
    before = peak_memory() if measured else 0
    with pytest.raises(ArtifactError):
        reader(path)
    assert not measured or peak_memory() - before < LIMIT
    with pytest.raises(ArtifactError, match="bytes"):
        reader(path, entry=FileEntry(8, "0" * 32))


@pytest.mark.parametrize("reader", [load_tensors, open_array, read_json])
def test_what_is_no_file(reader, tmp_path):
    """Oracle: a folder, a pipe (which would wait for ever), a device, a socket's place, a link to nowhere, a NUL."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in [
        tmp_path,
        tmp_path / "pipe",
        "/dev/zero",
        "/dev/null",
        tmp_path / "link",
        tmp_path / "loop",
        f"{tmp_path}/a\0b",
    ]:
        with pytest.raises(ArtifactError):
            reader(path)


NAMES = [
    "../secret",
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../secret",
    "..",
    ".",
    "",
    "a//b",
    "./a",
    "a\\..\\secret",
    "a\x00b",
    "a\nb",
    "~root/x",
    "file:///etc/passwd",
    "C:\\x",
    "\u2025/secret",
    "..\u2215secret",
    "%2e%2e%2fsecret",
    "x" * 5000,
    "manifest.json",
    ".hesse-lock",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out(name, tmp_path):
    """Oracle: the checksum of the manifest is right, the file exists and fits; the name alone is refused."""
    (tmp_path / "secret").write_bytes(b"secret")
    run = tmp_path / "run"
    (run / "a").mkdir(parents=True)
    fields = {
        "kind": "factors",
        "config": {},
        "parents": {},
        "stages": {},
        "files": {name: {"size": 6, "xxh3": hash_bytes(b"secret")}},
        "schema": SCHEMA,
        "created_by": {},
    }
    (run / MANIFEST_NAME).write_bytes(encode_json({**fields, "checksum": hash_bytes(encode_json(fields))}))
    with pytest.raises(ArtifactError, match="file name"):
        read_manifest(run)
    problems = verify_run(run)
    assert [problem.path for problem in problems] == [MANIFEST_NAME]


@pytest.mark.parametrize("where", ["file", "folder"])
def test_links_that_lead_out(where, tmp_path):
    """Oracle: the manifest and the file it names by a link are right; the link alone is refused."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"secret")
    run = tmp_path / "run"
    run.mkdir()
    if where == "file":
        (run / "sub").mkdir()
        (run / "sub" / "x").symlink_to(outside / "x")
    else:
        (run / "sub").symlink_to(outside)
    fields = {
        "kind": "factors",
        "config": {},
        "parents": {},
        "stages": {},
        "files": {"sub/x": {"size": 6, "xxh3": hash_bytes(b"secret")}},
        "schema": SCHEMA,
        "created_by": {},
    }
    (run / MANIFEST_NAME).write_bytes(encode_json({**fields, "checksum": hash_bytes(encode_json(fields))}))
    read_manifest(run)
    assert "symbolic link" in {problem.path: problem.reason for problem in verify_run(run)}["sub/x"]


def test_a_manifest_that_is_a_link(tmp_path):
    """Oracle: the documented error; a link could show the content of another file in an error."""
    (tmp_path / "secret").write_bytes(b"{}")
    run = tmp_path / "run"
    run.mkdir()
    (run / MANIFEST_NAME).symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="symbolic link"):
        read_manifest(run)
