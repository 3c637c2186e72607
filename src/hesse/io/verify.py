"""Check a finished run file by file against its manifest; what ``hesse verify`` prints."""

import os
from dataclasses import dataclass
from pathlib import Path

from hesse.errors import ArtifactError
from hesse.io.atomic import is_temporary
from hesse.io.checksum import check_file
from hesse.io.lock import LOCK_NAME
from hesse.io.manifest import manifest_exists, read_manifest
from hesse.io.names import MANIFEST_NAME, file_path

__all__ = ["Problem", "verify_run"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as the manifest says.

    Parameters
    ----------
    path : str
        The file's name inside the run's folder.
    reason : str
        What is wrong and what to do.
    """

    path: str
    reason: str


def verify_run(folder: str | os.PathLike[str], *, sha256: bool = False) -> list[Problem]:
    """Compare every file of a run with its manifest; a folder below that has a manifest of its own is checked by it.

    Parameters
    ----------
    folder : str or PathLike
        The run.
    sha256 : bool, default False
        Compare SHA-256 too, 15 times slower; a file without a recorded one is then a problem. Against somebody who
        alters files on purpose this helps only if the manifest itself was kept safe.

    Returns
    -------
    list of Problem
        Empty if all is well; sorted by path. Missing, damaged and altered files, temporary files of an interrupted run,
        files that no manifest names, symbolic links, and a damaged or missing manifest.
    """
    root = Path(folder)
    found: dict[str, str] = {}
    known: set[str] = set()
    _verify_manifest(root, "", sha256, found, known)
    for parent, folders, files in os.walk(root):
        where = Path(parent)
        prefix = "" if where == root else f"{where.relative_to(root).as_posix()}/"
        for name in folders:
            if (where / name).is_symlink():
                found.setdefault(prefix + name, "a symbolic link: not followed. Remove it.")
            elif manifest_exists(where / name):
                _verify_manifest(where / name, f"{prefix}{name}/", sha256, found, known)
        for name in files:
            reason = _stranger(where / name)
            if prefix + name not in known and reason:
                found.setdefault(prefix + name, reason)
    return [Problem(path, reason) for path, reason in sorted(found.items())]


def _verify_manifest(folder: Path, prefix: str, sha256: bool, found: dict[str, str], known: set[str]) -> None:
    known.add(prefix + MANIFEST_NAME)
    try:
        manifest = read_manifest(folder)
    except ArtifactError as error:
        found[prefix + MANIFEST_NAME] = str(error)
        return
    for name, entry in manifest.files.items():
        known.add(prefix + name)
        try:
            check_file(file_path(folder, name), entry, sha256=sha256)
        except ArtifactError as error:
            found[prefix + name] = str(error)
        else:
            if sha256 and entry.sha256 is None:
                found[prefix + name] = "no sha256 was recorded for it."


def _stranger(path: Path) -> str | None:
    if path.is_symlink():
        return "a symbolic link: not followed. Remove it."
    if is_temporary(path.name):
        return "left by an interrupted run. Run the same command again: it is removed."
    if path.name == LOCK_NAME:
        return None
    return "not named in the manifest. Move it out of the run's folder."
