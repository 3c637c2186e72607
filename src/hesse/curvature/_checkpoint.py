"""The folder of a long run: after every step it holds all that is needed to go on, whole, whenever the process dies."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from hesse.errors import ArtifactError
from hesse.io import (
    FileEntry,
    Manifest,
    file_path,
    hash_tensors,
    load_tensors,
    manifest_exists,
    read_manifest,
    run_lock,
    save_tensors,
    write_manifest,
)
from hesse.linalg._random import gaussian_columns
from hesse.linalg.operator import LinearOperator

__all__ = ["Checkpoint", "Folder", "open_checkpoint"]

Folder = str | os.PathLike[str]


class Checkpoint:
    """What a run has saved: rows that only grow, and a state that each step replaces.

    The manifest is written last, so that a step is saved whole or not at all; files that it does not name are remains
    of an interrupted step and are removed when the run goes on.

    Parameters
    ----------
    folder : Path
        The run.
    manifest : Manifest
        As it stands.
    device : torch.device
        Where loaded tensors go.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        self.folder = folder
        self.manifest = manifest
        self.device = device

    @property
    def num_saves(self) -> int:
        """Steps saved so far."""
        return int(self.manifest.stages.get("progress", {}).get("num_saves", 0))

    def load_state(self) -> dict[str, Tensor]:
        """Read the state of the last step.

        Returns
        -------
        dict of str to Tensor
            Empty if nothing was saved yet.
        """
        return self._load("state")[0] if self._names("state") else {}

    def load_rows(self) -> list[dict[str, Tensor]]:
        """Read the rows in the order in which they were appended.

        Returns
        -------
        list of dict of str to Tensor
            One a step that appended.
        """
        return self._load("rows")

    def save(
        self, state: Mapping[str, Tensor], row: Mapping[str, Tensor] | None = None, *, restart: bool = False
    ) -> None:
        """Save a step.

        Parameters
        ----------
        state : mapping of str to Tensor
            Replaces the last one.
        row : mapping of str to Tensor, optional
            Appended to the rows.
        restart : bool, default False
            Drop the earlier rows.
        """
        number, folder = self.num_saves, self.folder
        old = {*self._names("state"), *(self._names("rows") if restart else ())}
        files = {name: entry for name, entry in self.manifest.files.items() if name not in old}
        for kind, tensors in (("rows", row), ("state", state)):
            if tensors is not None:
                name = f"{kind}-{number:06d}.safetensors"
                files[name] = save_tensors(folder / name, tensors)
        self._write(files, number + 1)
        for name in old:
            (folder / name).unlink(missing_ok=True)

    def _write(self, files: dict[str, FileEntry], num_saves: int) -> None:
        before = self.manifest
        stages = {**before.stages, "progress": {"num_saves": num_saves}}
        self.manifest = Manifest(before.kind, before.config, before.parents, stages, files)
        write_manifest(self.folder, self.manifest)

    def _names(self, kind: str) -> list[str]:
        return sorted(name for name in self.manifest.files if name.startswith(f"{kind}-"))

    def _load(self, kind: str) -> list[dict[str, Tensor]]:
        return [
            load_tensors(file_path(self.folder, name), self.manifest.files[name], device=self.device)
            for name in self._names(kind)
        ]


@contextmanager
def open_checkpoint(
    folder: Folder, kind: str, config: Mapping[str, Any], operator: LinearOperator
) -> Iterator[Checkpoint]:
    """Begin a run in a folder, or go on with the one that is there.

    Parameters
    ----------
    folder : str or PathLike
        Made if it is missing; locked until the end of the block.
    kind : str
        What is computed.
    config : mapping of str to JSON values
        The settings that decide the numbers.
    operator : LinearOperator, shape (N, N)
        Its tensors are hashed, and one product with a fixed vector is compared with that of the run's beginning: a
        resumed run must not mix two matrices.

    Yields
    ------
    Checkpoint
        To load from and to save to.

    Raises
    ------
    ArtifactError
        If the folder holds a run of other settings, of other parameters, or of an operator that multiplies otherwise
        (other data, another loss).
    RunLockedError
        If another process is writing to it.
    """
    folder = Path(folder)
    settings = {**config, "order": operator.shape[0], "dtype": str(operator.dtype)}
    parents = {"tensors": hash_tensors(operator.state_dict())}
    with run_lock(folder):
        fingerprint = _fingerprint(operator)
        if manifest_exists(folder):
            manifest = read_manifest(folder, kind, config=settings, parents=parents)
            _compare(folder, manifest, fingerprint, operator.dtype)
        else:
            manifest = Manifest(kind, settings, parents, {"fingerprint": {"value": fingerprint}})  # written by save
        for path in folder.glob("*-??????.safetensors"):
            if path.name not in manifest.files:
                path.unlink()
        yield Checkpoint(folder, manifest, operator.device)


def _fingerprint(operator: LinearOperator) -> float:
    # the length of A times a fixed vector: zero only for the zero matrix, where a quadratic form may vanish by chance
    vector = gaussian_columns(
        operator.shape[0], 1, dtype=operator.dtype, device=operator.device, generator=Generator().manual_seed(0)
    )
    with torch.no_grad():
        return float(torch.linalg.vector_norm(operator.matmat(vector).double()))


def _compare(folder: Path, manifest: Manifest, fingerprint: float, dtype: torch.dtype) -> None:
    before = float(manifest.stages.get("fingerprint", {}).get("value", float("nan")))
    # another machine may round otherwise; other data do not agree to half the digits
    if not abs(before - fingerprint) <= torch.finfo(dtype).eps ** 0.5 * abs(before):
        raise ArtifactError(
            f"{folder}: the run was begun with an operator that maps a fixed vector to length {before:.9g}, this one "
            f"to {fingerprint:.9g}: other data, another loss or another reduction. Use the same, or another folder."
        )
