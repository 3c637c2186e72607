"""What indexes on disk have in common: a folder of their own, built part by part, and taken up where it was left."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hesse._progress import progress
from hesse.errors import ArgumentError
from hesse.influence.examples import plan_units
from hesse.io import LOCK_NAME, FileEntry, Manifest, manifest_exists, read_manifest, write_manifest

__all__ = ["build_parts", "manifest_of"]


def manifest_of(where: Path, kind: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> Manifest:
    """Read the manifest of an index that is there, or begin one; the caller holds the folder's lock.

    Parameters
    ----------
    where : path
        The folder.
    kind, config, parents : str, mapping, mapping
        That the index must have, or will.

    Returns
    -------
    Manifest
        Empty if a file that it named was deleted: all is then computed anew.

    Raises
    ------
    ArgumentError
        If the folder holds something else.
    ArtifactError
        If it holds an index of other data or settings, or its manifest is damaged.
    """
    if manifest_exists(where):
        manifest = read_manifest(where, kind, config=dict(config), parents=dict(parents))
        whole = all((where / name).is_file() for name in manifest.files)
        return manifest if whole else replace(manifest, stages={}, files={})
    if any(entry.name != LOCK_NAME for entry in where.iterdir()):
        raise ArgumentError(f"folder: {where} is not empty and holds no index")
    return Manifest(kind, dict(config), dict(parents))


def build_parts(
    where: Path,
    manifest: Manifest,
    total: int,
    part_size: int,
    write_fn: Callable[[range], dict[str, FileEntry]],
    *,
    title: str,
    show_progress: bool | None,
) -> None:
    """Write the parts that are missing, the manifest after each; the caller holds the folder's lock.

    Parameters
    ----------
    where : path
        The folder.
    manifest : Manifest
        From `manifest_of`.
    total, part_size : int
        Sequences in all, and in a part.
    write_fn : callable
        (numbers of sequences) -> files written for them, by name.
    title : str
        Of the bar.
    show_progress : bool, optional
        Show it; None if stderr is a terminal.
    """
    done = int(manifest.stages.get("build", {}).get("sequences", 0))
    with progress(title, total, unit="sequences", enabled=show_progress) as advance:
        advance(done)
        for unit in plan_units(total, part_size, done):
            files = write_fn(unit)
            stages = {"build": {"sequences": unit.stop, "done": unit.stop == total}}
            manifest = replace(manifest, stages=stages, files=manifest.files | files)
            write_manifest(where, manifest)
            advance(len(unit))
