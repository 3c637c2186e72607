"""Everything hesse writes to disk, and how it reads it back: atomic files, checksums, manifests, locks."""

from hesse.io.arrays import ArrayWriter, open_array, save_array, write_array_rows
from hesse.io.atomic import (
    FileWriter,
    atomic_write_bytes,
    atomic_writer,
    clean_temporaries,
    make_folder,
)
from hesse.io.checksum import FileEntry, check_file, hash_bytes, hash_file, hash_tensors
from hesse.io.json_files import atomic_write_json, encode_json, read_json
from hesse.io.lock import LOCK_NAME, join_run_lock, run_lock
from hesse.io.manifest import (
    SCHEMA,
    Manifest,
    add_sha256,
    config_hash,
    manifest_exists,
    manifest_hash,
    read_manifest,
    write_manifest,
)
from hesse.io.names import MANIFEST_NAME, file_path
from hesse.io.tensors import load_tensors, save_tensors, tensor_metadata
from hesse.io.verify import Problem, verify_run

__all__ = [
    "LOCK_NAME",
    "MANIFEST_NAME",
    "SCHEMA",
    "ArrayWriter",
    "FileEntry",
    "FileWriter",
    "Manifest",
    "Problem",
    "add_sha256",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_writer",
    "check_file",
    "clean_temporaries",
    "config_hash",
    "encode_json",
    "file_path",
    "hash_bytes",
    "hash_file",
    "hash_tensors",
    "join_run_lock",
    "load_tensors",
    "make_folder",
    "manifest_exists",
    "manifest_hash",
    "open_array",
    "read_json",
    "read_manifest",
    "run_lock",
    "save_array",
    "save_tensors",
    "tensor_metadata",
    "verify_run",
    "write_array_rows",
    "write_manifest",
]
