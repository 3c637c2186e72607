"""Names of files inside a run: which are allowed, and that they stay inside."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from hesse.errors import ArgumentError, ArtifactError
from hesse.io.atomic import is_temporary
from hesse.io.lock import LOCK_NAME

__all__ = ["MANIFEST_NAME", "check_names", "file_path"]

MANIFEST_NAME = "manifest.json"
"""The manifest's name in the run's folder."""

NAME = re.compile(r"[A-Za-z0-9._/-]{1,255}")


def check_names(names: Iterable[str]) -> None:
    """Refuse names that could leave the folder or pass for hesse's own files.

    Parameters
    ----------
    names : iterable of str
        Letters, digits, ``.``, ``_``, ``-``, parts separated by ``/``, 255 characters at most.

    Raises
    ------
    ArgumentError
        If a name has other characters, an empty part, ``.`` or ``..`` as a part, or is the manifest's, the lock's or a
        temporary file's.
    """
    for name in names:
        parts = name.split("/")
        reserved = name == MANIFEST_NAME or parts[-1] == LOCK_NAME or is_temporary(parts[-1])
        if not NAME.fullmatch(name) or reserved or any(part in {"", ".", ".."} for part in parts):
            raise ArgumentError(
                f"file name {name!r}: expected letters, digits, '.', '_', '-' and single '/' inside the run's folder"
            )


def file_path(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a file that a manifest names, once it is sure to lie inside the folder.

    Parameters
    ----------
    folder : str or PathLike
        The run.
    name : str
        As in ``Manifest.files``.

    Returns
    -------
    Path
        ``folder / name``. The file may be missing.

    Raises
    ------
    ArtifactError
        If the name is not allowed, or if any part of it below the folder is a symbolic link.
    """
    try:
        check_names([name])
    except ArgumentError as error:
        raise ArtifactError(f"{folder}: {error}") from error
    path = Path(folder)
    for part in name.split("/"):
        path /= part
        if path.is_symlink():
            raise ArtifactError(f"{path}: a symbolic link inside a run is not followed. Put the file itself there.")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ArtifactError(f"{path}: lies outside {folder}")
    return path
