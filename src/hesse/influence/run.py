"""A run on disk: a folder whose manifest, written last, names every file that counts.

A stage flushes its state to new files, then the manifest is replaced, then the files it no longer names are removed;
killed at any moment, the folder holds the last complete state. Folder layout:

    manifest.json                        config, hashes, counts, state of every stage
    cov-<n>/<layer>.{A,S}.safetensors    sums over the first n sequences, while fitting
    eig/<layer>.{A,S}.safetensors        eigenbases        lam-<n>/<layer>.safetensors   eigenvalue tables
    queries/<hash>/…, scores/<hash>/…    preconditioned queries, scores of one question
    projected/, token-index-<hash>/      indexes, each with a manifest of its own
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hesse.errors import ArgumentError, ArtifactError, MemoryLimitError
from hesse.influence.distributed import ALONE, Team
from hesse.io import (
    LOCK_NAME,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    config_hash,
    join_run_lock,
    manifest_exists,
    read_manifest,
    run_lock,
    write_manifest,
)

__all__ = [
    "KIND",
    "RunFolder",
    "forget_missing",
    "is_damaged",
    "keeping_latest",
    "open_folder",
    "remove_unnamed",
    "start_folder",
    "writing_run",
]

KIND = "influence-run"

_OWNED = (
    "cov-*/*",
    "eig/*",
    "lam-*/*",
    "lam/*",
    "queries/*/*",
    "scores/*/*",
    "corpus/*/*",
)  # where this layout puts files
_BESIDE = ("projected", "token-index-*")  # indexes with manifests of their own, which any run may take up


@dataclass(slots=True)
class RunFolder:
    """A folder and its manifest as last written."""

    path: Path
    manifest: Manifest
    team: Team = ALONE  # of several, each has the manifest, and rank 0 writes it

    def stage(self, name: str) -> dict[str, Any]:
        """Look up the state of a stage.

        Parameters
        ----------
        name : str
            Of the stage.

        Returns
        -------
        dict
            A copy; empty if the stage has not begun.
        """
        return dict(self.manifest.stages.get(name, {}))

    def entry(self, name: str) -> FileEntry:
        """Size and checksum of a file that the manifest must name.

        Parameters
        ----------
        name : str
            Path relative to the run.

        Returns
        -------
        FileEntry
            To compare the file with.

        Raises
        ------
        ArtifactError
            If the manifest does not name it.
        """
        try:
            return self.manifest.files[name]
        except KeyError:
            raise ArtifactError(
                f"{self.path / name}: not named in the manifest. Run the same command again with --overwrite."
            ) from None

    def commit(
        self, stages: Mapping[str, dict[str, Any]], add: Mapping[str, FileEntry] | None = None, drop: Iterable[str] = ()
    ) -> None:
        """Make new files count and old ones not, in one replacement of the manifest; then delete the old ones.

        Of a team all ranks call it, with the same stages and each with the files that it wrote.

        Parameters
        ----------
        stages : mapping of str to dict
            Stage states to replace.
        add : mapping of str to FileEntry, optional
            Files written since the last commit, by path relative to the run.
        drop : iterable of str
            Files that no longer count.
        """
        fresh = self.team.merge(add or {})
        dropped = set(drop) - set(fresh)
        files = {name: entry for name, entry in self.manifest.files.items() if name not in dropped} | fresh
        self.manifest = replace(self.manifest, stages=self.manifest.stages | dict(stages), files=files)
        self.team.first(lambda: self._write(dropped))

    def _write(self, dropped: set[str]) -> None:
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


def start_folder(
    path: Path | str, config: Mapping[str, Any], parents: Mapping[str, str], *, resume: bool, overwrite: bool
) -> RunFolder:
    """Create a run, or take up one made with the same settings; call it holding the folder's lock.

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
        Whether a run with other settings, or with a damaged manifest, may be deleted.

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
    damaged = overwrite and manifest_exists(folder) and is_damaged(folder)
    if manifest_exists(folder) and not damaged:
        found = RunFolder(folder, read_manifest(folder, KIND))
        differing = _differences(found.manifest, fresh)
        if not differing and resume and not overwrite:
            remove_unnamed(found)
            forget_missing(found, factors=True)
            return found
        if not overwrite:
            raise ArgumentError(
                f"run_dir: {folder} holds a run that differs in {', '.join(differing)}; "
                "choose another folder or pass overwrite"
                if differing
                else f"run_dir: {folder} already holds this run; pass resume=True or overwrite=True"
            )
    elif folder.exists() and any(
        entry.name != LOCK_NAME and not (damaged and _is_owned(entry)) for entry in folder.iterdir()
    ):
        raise ArgumentError(f"run_dir: {folder} is not empty and holds no run")
    folder.mkdir(parents=True, exist_ok=True)
    # the new manifest first: killed between the two, a process leaves files that do not count, and no manifest
    # without its files
    write_manifest(folder, fresh)
    run = RunFolder(folder, fresh)
    remove_unnamed(run)
    return run


@contextmanager
def writing_run(path: Path | str, team: Team = ALONE) -> Iterator[None]:
    """Hold the lock of a run; if the block fails, remove what it did not commit, and a folder that it only just made.

    Parameters
    ----------
    path : Path
        The folder; made if missing.
    team : Team, default alone
        Whose processes hold the lock together, until the last of them has ended.

    Yields
    ------
    None
        The lock is held until the end of the block.

    Raises
    ------
    ArgumentError
        If a file has that name.
    MemoryLimitError
        If the block runs out of memory, on a GPU or here.
    """
    folder = Path(path)
    was_there = folder.exists()
    try:
        with _told_when_full(folder), ExitStack() as stack:
            team.first(lambda: _take_lock(stack, folder, team))
            if not team.is_first:
                stack.enter_context(join_run_lock(folder))
            try:
                with team.watching():
                    yield
                team.meet()  # nobody is in the folder any more when it is given back
            except BaseException:
                # the first error is the one to report; what stays behind the next call removes
                with suppress(OSError, ArgumentError):
                    if team.is_first and manifest_exists(folder):
                        remove_unnamed(open_folder(folder))
                raise
    except BaseException:
        if not was_there and team.is_first:
            with suppress(OSError):  # not empty: it holds a run by now
                folder.rmdir()
        raise


@contextmanager
def _told_when_full(folder: Path) -> Iterator[None]:
    # torch says how much was asked for; what to do, and that nothing is lost, only the run knows
    try:
        yield
    except MemoryLimitError:
        raise
    except (MemoryError, RuntimeError) as error:
        # the CPU's allocator raises a RuntimeError of no kind of its own
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        cause = str(error).splitlines()[0] if str(error) else "no more memory"
        raise MemoryLimitError(
            f"batch_tokens: a batch did not fit in memory ({cause}). What {folder} held stays there: the same call "
            "with a smaller batch_tokens, or with batch_size=1, goes on from it"
        ) from error


def _take_lock(stack: ExitStack, folder: Path, team: Team) -> None:
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"run_dir: {folder} is a file, not a folder")
    stack.enter_context(run_lock(folder, together=team.size > 1))


@contextmanager
def keeping_latest(path: Path | str) -> Iterator[None]:
    """Leave the latest question of a run what it was, whatever is asked inside the block.

    Parameters
    ----------
    path : Path
        The folder of a run, whose lock nobody holds.

    Yields
    ------
    None
        A block that fails has left it as it was anyway, unless it finished a question first.
    """
    latest = open_folder(path).stage("score")
    yield
    with writing_run(path):
        open_folder(path).commit({"score": latest})


def remove_unnamed(run: RunFolder) -> None:
    """Delete what a killed process never committed, or dropped and never deleted; only in folders this layout owns.

    Parameters
    ----------
    run : RunFolder
        Whose lock the caller holds.
    """
    parents: set[Path] = set()
    for pattern in _OWNED:
        for path in run.path.glob(pattern):
            parents.add(path.parent)
            if path.is_file() and path.relative_to(run.path).as_posix() not in run.manifest.files:
                path.unlink()
    for pattern in {pattern.removesuffix("/*") for pattern in _OWNED}:
        parents.update(run.path.glob(pattern))  # empty ones too
    for parent in sorted(parents):
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def forget_missing(run: RunFolder, *, factors: bool) -> None:
    """Begin again whatever lost a file: the fit, a question, kept texts. Deleting one is how a damaged one is mended.

    Parameters
    ----------
    run : RunFolder
        Whose lock the caller holds.
    factors : bool
        Whether the caller can make factors and texts anew, and not only scores.

    Raises
    ------
    ArtifactError
        If a file is missing that the caller cannot make anew.
    """
    missing = [name for name in run.manifest.files if not (run.path / name).is_file()]
    lost = {_part(name) for name in missing}
    others = [name for name in missing if not factors and not _part(name).startswith("scores/")]
    if others:
        raise ArtifactError(f"{run.path / others[0]}: missing. Run `hesse influence fit` again: it is computed anew.")
    if not lost:
        return
    corpora = {name: mark for name, mark in run.stage("corpus").items() if f"corpus/{name}" not in lost}
    stages: dict[str, dict[str, Any]] = {f"score:{part}": {} for part in lost if part.startswith("scores/")}
    stages |= ({"fit": {}} if "fit" in lost else {}) | ({"corpus": corpora} if run.stage("corpus") else {})
    run.commit(stages, drop=[name for name in run.manifest.files if _part(name) in lost])


def _part(name: str) -> str:
    # what is computed in one go: a question with its queries, texts of one name, all factors
    parts = name.split("/")
    if parts[0] in ("scores", "queries"):
        return f"scores/{parts[1]}"
    return "/".join(parts[:2]) if parts[0] == "corpus" else "fit"


def _differences(found: Manifest, wanted: Manifest) -> list[str]:
    # names of the settings in which two runs differ, with both values
    mine = {key: value for key, value in found.config.items() if key != "info"} | found.parents
    theirs = {key: value for key, value in wanted.config.items() if key != "info"} | wanted.parents
    if config_hash(mine) == config_hash(theirs):
        return []
    keys = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    return [f"{key} ({mine.get(key)!r} there, {theirs.get(key)!r} now)" for key in keys]


def is_damaged(folder: Path) -> bool:
    """Tell whether a manifest is there that cannot be read; one of another kind can, and is nobody's to overwrite.

    Parameters
    ----------
    folder : Path
        With a manifest.

    Returns
    -------
    bool
        Whether what it named is lost.
    """
    try:
        read_manifest(folder)
    except ArtifactError:
        return True
    return False


def _is_owned(entry: Path) -> bool:
    # a name at the top of a run that this layout uses
    patterns = [MANIFEST_NAME, *_BESIDE, *(pattern.split("/")[0] for pattern in _OWNED)]
    return any(entry.match(pattern) for pattern in patterns)
