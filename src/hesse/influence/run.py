"""A run on disk: a folder whose manifest, written last, names every file that counts.

A stage flushes its state to new files, then the manifest is replaced, then the files it no longer names are removed; killed at
any moment, the folder holds the last complete state. Folder layout:

    manifest.json                        config, hashes, counts, state of every stage
    cov-<n>/<layer>.{A,S}.safetensors    sums over the first n sequences, while fitting
    eig/<layer>.{A,S}.safetensors        eigenbases        lam-<n>/<layer>.safetensors   eigenvalue tables
    queries/<hash>/…, scores/<hash>/…    preconditioned queries, scores of one question
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hesse.errors import ArgumentError
from hesse.io import LOCK_NAME, FileEntry, Manifest, config_hash, manifest_exists, read_manifest, write_manifest

__all__ = ["KIND", "RunFolder", "open_folder", "start_folder"]

KIND = "influence-run"


@dataclass(slots=True)
class RunFolder:
    """A folder and its manifest as last written."""

    path: Path
    manifest: Manifest

    def stage(self, name: str) -> dict[str, Any]:
        """State of a stage, empty if it has not begun."""
        return dict(self.manifest.stages.get(name, {}))

    def commit(self, stages: Mapping[str, dict[str, Any]], add: Mapping[str, FileEntry] | None = None, drop: Iterable[str] = ()) -> None:
        """Make new files count and old ones not, in one replacement of the manifest; then delete the old ones.

        Parameters
        ----------
        stages : mapping of str to dict
            Stage states to replace.
        add : mapping of str to FileEntry, optional
            Files written since the last commit, by path relative to the run.
        drop : iterable of str
            Files that no longer count.
        """
        dropped = set(drop) - set(add or {})
        files = {name: entry for name, entry in self.manifest.files.items() if name not in dropped} | dict(add or {})
        self.manifest = replace(self.manifest, stages=self.manifest.stages | dict(stages), files=files)
        write_manifest(self.path, self.manifest)
        for name in sorted(dropped):
            (self.path / name).unlink(missing_ok=True)
        for parent in sorted({(self.path / name).parent for name in dropped}):
            if parent != self.path and parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def open_folder(path: Path | str) -> RunFolder:
    """Open a run that exists.

    Parameters
    ----------
    path : Path
        The folder.

    Returns
    -------
    RunFolder
        With its manifest read and checked.
    """
    folder = Path(path)
    return RunFolder(folder, read_manifest(folder, KIND))


def start_folder(path: Path | str, config: Mapping[str, Any], parents: Mapping[str, str], *, resume: bool, overwrite: bool) -> RunFolder:
    """Create a run, or take up the one that is there if it was made with the same settings; call it holding the folder's lock.

    Parameters
    ----------
    path : Path
        The folder; created if missing.
    config : mapping
        Settings; everything but its key "info" decides whether two runs are the same.
    parents : mapping of str to str
        Hashes of what the run was made from (model, data).
    resume : bool
        Whether a run that is there may be taken up.
    overwrite : bool
        Whether a run with other settings may be deleted.

    Returns
    -------
    RunFolder
        Ready to commit to.

    Raises
    ------
    ArgumentError
        If the folder holds something else, or a run with other settings.
    """
    folder = Path(path)
    fresh = Manifest(kind=KIND, config=dict(config), parents=dict(parents), stages={}, files={})
    if manifest_exists(folder):
        found = RunFolder(folder, read_manifest(folder, KIND))
        differing = _differences(found.manifest, fresh)
        if not differing and resume and not overwrite:
            _remove_strangers(found)
            return found
        if not overwrite:
            raise ArgumentError(
                f"run_dir: {folder} holds a run that differs in {', '.join(differing)}; choose another folder or pass overwrite"
                if differing
                else f"run_dir: {folder} already holds this run; pass resume=True or overwrite=True"
            )
        found.commit({}, drop=list(found.manifest.files))
    elif folder.exists() and any(entry.name != LOCK_NAME for entry in folder.iterdir()):
        raise ArgumentError(f"run_dir: {folder} is not empty and holds no run")
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, fresh)
    return RunFolder(folder, fresh)


def _differences(found: Manifest, wanted: Manifest) -> list[str]:
    """Names of the settings in which two runs differ, with both values."""
    mine = {key: value for key, value in found.config.items() if key != "info"} | found.parents
    theirs = {key: value for key, value in wanted.config.items() if key != "info"} | wanted.parents
    if config_hash(mine) == config_hash(theirs):
        return []
    keys = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    return [f"{key} ({mine.get(key)!r} there, {theirs.get(key)!r} now)" for key in keys]


def _remove_strangers(run: RunFolder) -> None:
    """Delete shards that a killed process wrote but never committed: only in the folders this layout owns."""
    for pattern in ("cov-*/*", "eig/*", "lam-*/*", "queries/*/*", "scores/*/*"):
        for path in run.path.glob(pattern):
            if path.is_file() and path.relative_to(run.path).as_posix() not in run.manifest.files:
                path.unlink()
    for pattern in ("cov-*", "lam-*"):
        for path in run.path.glob(pattern):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
