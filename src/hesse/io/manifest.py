"""The manifest of a run: which files it has, their checksums, and what they were computed from. Written last.

A file that the manifest does not name does not exist for hesse; a file it names must be there as it says.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import hesse
from hesse.errors import ArgumentError, ArtifactError, HesseError
from hesse.io.atomic import atomic_write_bytes
from hesse.io.checksum import FileEntry, checked_fd, hash_bytes, hash_file
from hesse.io.json_files import encode_json, read_json
from hesse.io.names import MANIFEST_NAME, check_names, file_path

__all__ = [
    "SCHEMA",
    "Manifest",
    "add_sha256",
    "config_hash",
    "manifest_exists",
    "manifest_hash",
    "read_manifest",
    "write_manifest",
]

SCHEMA = 1
"""Version of the layout that this hesse writes; it reads this one and, from 2 on, the earlier ones."""

# Room for more than 100,000 files with a shard's two numbers each: 25 million sequences at the default shard size. That
# many cost 16 MiB on disk and 1.4 s a rewrite, once a checkpoint. Both limits together bound the memory that a hostile
# manifest can ask for: 230 MiB at worst, 8 bytes for each of its own.
MAX_MANIFEST_BYTES = 32 << 20
MAX_MANIFEST_VALUES = 1 << 20
FIELDS = {"kind", "config", "parents", "stages", "files", "schema", "created_by"}


def _this_version() -> dict[str, str]:
    return {"hesse": hesse.__version__}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run's folder holds.

    Parameters
    ----------
    kind : str
        What it is: "factors", "scores", ...
    config : dict
        The resolved settings, JSON values only.
    parents : dict of str to str, default empty
        Hashes of what it was computed from: model, data, factors.
    stages : dict of str to dict, default empty
        Notes on each stage, such as time and counts. No part of the run's identity.
    files : dict of str to FileEntry, default empty
        Every file, by its name inside the folder; parts are separated by "/".
    schema : int, default SCHEMA
        Version of this layout.
    created_by : dict of str to str, default the version of hesse
        Library versions. No part of the run's identity.
    """

    kind: str
    config: dict[str, Any]
    parents: dict[str, str] = field(default_factory=dict[str, str])
    stages: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    files: dict[str, FileEntry] = field(default_factory=dict[str, FileEntry])
    schema: int = SCHEMA
    created_by: dict[str, str] = field(default_factory=_this_version)


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the xxh3-128 of settings; the order of the keys does not count.

    Parameters
    ----------
    config : mapping of str to JSON values
        No NaN, no Inf, no tensors, no paths.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    return hash_bytes(encode_json(dict(config), "config"))


def manifest_hash(manifest: Manifest) -> str:
    """Return the identity of a run: kind, settings, parents and files, but not when, how fast and by which version.

    Parameters
    ----------
    manifest : Manifest
        The run.

    Returns
    -------
    str
        32 hexadecimal digits, to be written among the parents of what is computed from it.
    """
    fields = _as_json(manifest)
    return config_hash({name: fields[name] for name in ("kind", "config", "parents", "files")})


def _as_json(manifest: Manifest) -> dict[str, Any]:
    files: dict[str, dict[str, Any]] = {}
    for name, entry in manifest.files.items():
        files[name] = {"size": entry.size, "xxh3": entry.xxh3}
        if entry.sha256 is not None:
            files[name]["sha256"] = entry.sha256
    return {
        "kind": manifest.kind,
        "config": manifest.config,
        "parents": manifest.parents,
        "stages": manifest.stages,
        "files": files,
        "schema": manifest.schema,
        "created_by": manifest.created_by,
    }


def _encode(fields: dict[str, Any]) -> bytes:
    # The checksum covers the text without it, so a flipped bit anywhere in the file is noticed. It is the first of the
    # sorted keys: put in front of the others here, since encoding twice would double the time of a large manifest.
    text = encode_json(fields, "manifest", max_values=MAX_MANIFEST_VALUES)
    return b'{\n "checksum": "%s",' % hash_bytes(text).encode("ascii") + text[1:]


def manifest_exists(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder has a manifest, so that its run was finished at least once.

    Parameters
    ----------
    folder : str or PathLike
        The run; it may be missing.

    Returns
    -------
    bool
        True even if the manifest is damaged: ``read_manifest`` says so.
    """
    return os.path.lexists(Path(folder, MANIFEST_NAME))


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> FileEntry:
    """Write the manifest in one step; to be called last, when every file it names is in its place.

    Parameters
    ----------
    folder : str or PathLike
        The run.
    manifest : Manifest
        JSON values only in its dicts.

    Returns
    -------
    FileEntry
        Size and checksum of the manifest itself.

    Raises
    ------
    ArgumentError
        If a file name is not allowed, a value is not finite, or the schema is not the one this hesse writes.
    ArgumentTypeError
        If a dict holds something that JSON cannot.
    ArtifactError
        If a file that it names is missing or has another size.
    WriteError
        If the operating system refuses; the old manifest is then still there.
    """
    check_names(manifest.files)
    if manifest.schema != SCHEMA:
        raise ArgumentError(f"manifest: expected schema {SCHEMA}, got {manifest.schema}")
    data = _encode(_as_json(manifest))
    try:
        _parse(_as_json(manifest))
    except ValueError as error:
        raise ArgumentError(f"manifest: {error}") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArgumentError(f"manifest: {len(data):,} bytes, at most {MAX_MANIFEST_BYTES:,} are read back")
    _check_sizes(Path(folder), manifest.files)
    return atomic_write_bytes(Path(folder, MANIFEST_NAME), data)


def _check_sizes(folder: Path, files: Mapping[str, FileEntry]) -> None:
    parents: dict[str, Path] = {}  # looked at once each: a run may have 100,000 files in one folder
    for name, entry in files.items():
        parent, _, last = name.rpartition("/")
        if parent not in parents:
            parents[parent] = file_path(folder, parent) if parent else folder
        path = parents[parent] / last
        try:
            found = path.lstat()
        except OSError:
            found = None
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
            raise ArtifactError(
                f"{path}: missing, no plain file, or not of {entry.size:,} bytes; write files first, the manifest last"
            )


def read_manifest(
    folder: str | os.PathLike[str],
    kind: str | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    parents: Mapping[str, str] | None = None,
) -> Manifest:
    """Read and check the manifest of a run; the files it names are checked when they are loaded.

    Parameters
    ----------
    folder : str or PathLike
        The run.
    kind : str, optional
        What it must be. Default: anything.
    config : mapping, optional
        Settings that it must have been computed with, all of them. Default: any.
    parents : mapping of str to str, optional
        Hashes that it must have been computed from; others may be there too. Default: any.

    Returns
    -------
    Manifest
        As written.

    Raises
    ------
    ArtifactError
        If there is none, it is damaged, from a newer hesse, of another kind, or of other settings or parents.
    """
    path = Path(folder, MANIFEST_NAME)
    if path.is_symlink():
        raise ArtifactError(f"{path}: a symbolic link inside a run is not followed. Put the file itself there.")
    if not manifest_exists(folder):
        raise ArtifactError(f"{folder}: no manifest.json: not a run of hesse, or one that was never finished.")
    fields = read_json(path, max_bytes=MAX_MANIFEST_BYTES, max_values=MAX_MANIFEST_VALUES)
    if not isinstance(fields, dict):
        raise ArtifactError(f"{path}: not a manifest of hesse.")
    fields = cast("dict[str, Any]", fields)
    _check_schema(path, fields)
    fields.pop("checksum", None)
    try:
        expected = _encode(fields)
    except HesseError as error:
        raise ArtifactError(f"{path}: damaged: {error}. Run the same command again with --overwrite.") from error
    with checked_fd(path, FileEntry(len(expected), hash_bytes(expected))):
        pass
    try:
        manifest = _parse(fields)
        check_names(manifest.files)
    except ValueError as error:  # ArgumentError is one
        raise ArtifactError(f"{path}: not a manifest of hesse: {error}") from error
    _check_identity(path, manifest, kind, config, parents)
    return manifest


def _check_schema(path: Path, fields: dict[str, Any]) -> None:
    schema = fields.get("schema")
    if type(schema) is not int or schema < 1:
        raise ArtifactError(f"{path}: not a manifest of hesse: schema {schema!r}.")
    if schema > SCHEMA:
        raise ArtifactError(
            f"{path}: written by a newer hesse (schema {schema}, created by {fields.get('created_by')!r}); this is "
            f"{hesse.__version__} and reads up to schema {SCHEMA}. Upgrade: pip install -U hesse"
        )


def _check_identity(
    path: Path,
    manifest: Manifest,
    kind: str | None,
    config: Mapping[str, Any] | None,
    parents: Mapping[str, str] | None,
) -> None:
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path}: holds {manifest.kind!r}, expected {kind!r}. Give the folder of a {kind!r} run.")
    if config is not None and config_hash(config) != config_hash(manifest.config):
        names = sorted(config.keys() | manifest.config.keys())
        other = [name for name in names if manifest.config.get(name) != config.get(name)]
        raise ArtifactError(
            f"{path}: computed with other settings ({', '.join(other)}). "
            "Use the same ones, another folder, or --overwrite."
        )
    for name, value in (parents or {}).items():
        if manifest.parents.get(name) != value:
            raise ArtifactError(
                f"{path}: computed from another {name} ({manifest.parents.get(name)}, now {value}). "
                "Use the same one, another folder, or --overwrite."
            )


TEXT_TABLES = ("parents", "created_by")
TABLES = ("config", "parents", "stages", "files", "created_by")


def _parse(fields: dict[str, Any]) -> Manifest:
    if fields.keys() != FIELDS:
        raise ValueError(f"fields {sorted(fields.keys() ^ FIELDS)} are missing or unknown")
    if not isinstance(fields["kind"], str):
        raise ValueError("kind is not text")
    for name in TABLES:
        if not isinstance(fields[name], dict):
            raise ValueError(f"{name} is not a table")
    for name in TEXT_TABLES:
        if not all(isinstance(value, str) for value in fields[name].values()):
            raise ValueError(f"{name} holds something other than text")
    if not all(isinstance(value, dict) for value in fields["stages"].values()):
        raise ValueError("stages holds something other than tables")
    files = {name: _parse_entry(name, value) for name, value in cast("dict[str, Any]", fields["files"]).items()}
    return Manifest(
        kind=fields["kind"],
        config=fields["config"],
        parents=fields["parents"],
        stages=fields["stages"],
        files=files,
        schema=fields["schema"],
        created_by=fields["created_by"],
    )


def _parse_entry(name: str, value: Any) -> FileEntry:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: not an entry")
    entry = cast("dict[str, Any]", value)
    size, xxh3, sha256 = entry.get("size"), entry.get("xxh3"), entry.get("sha256")
    good = (
        entry.keys() <= {"size", "xxh3", "sha256"}
        and type(size) is int
        and 0 <= size < 1 << 63
        and _is_digest(xxh3, 32)
        and (sha256 is None or _is_digest(sha256, 64))
    )
    if not good:
        raise ValueError(f"{name}: not an entry")
    return FileEntry(cast("int", size), cast("str", xxh3), cast("str | None", sha256))


def _is_digest(value: object, length: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{length}}}", value) is not None


def add_sha256(folder: str | os.PathLike[str], manifest: Manifest) -> Manifest:
    """Return the manifest with the SHA-256 of every file, for a run that leaves the house; write it yourself.

    Parameters
    ----------
    folder : str or PathLike
        The run.
    manifest : Manifest
        Its files are read twice.

    Returns
    -------
    Manifest
        Entries with size, xxh3 and sha256.

    Raises
    ------
    ArtifactError
        If a file is missing or differs from its entry.
    """
    files: dict[str, FileEntry] = {}
    for name, entry in manifest.files.items():
        path = file_path(folder, name)
        with checked_fd(path, entry):
            files[name] = replace(entry, sha256=hash_file(path, "sha256"))
    return replace(manifest, files=files)
