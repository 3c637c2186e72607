"""Gradients of a corpus, projected and kept on disk, so that a new query costs one matrix product and no corpus pass.

    φ(z) = [ (Q_kᵀ D Q_k') ⊘ √(Λ_k + λ) ]_ℓ,     score(q, n) = (1/N) φ(q)·φ(z_n)        nats of f_q

Q_k and Q_k' are the k_out and k_in leading eigenvectors of S and A. With all of them the score is that of the whole
EK-FAC matrix. φ(q) is of the loss of the query, -f_q, as φ(z_n) is of its own: so proponents are positive.

Shapes: N sequences, Q queries, d = Σ_ℓ k_out·k_in numbers a sequence.
"""

import json
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hesse.curvature.block_basis import Basis, rows_times
from hesse.curvature.capture import BLOCK_ENTRIES, Captured
from hesse.errors import ArgumentError, ArtifactError, NumericalError
from hesse.influence.checks import check_ranking
from hesse.influence.examples import Examples, plan_batches, plan_units
from hesse.influence.factors import Factors
from hesse.influence.passes import Pass
from hesse.influence.prefilter.parts import build_parts, manifest_of
from hesse.influence.run import is_damaged
from hesse.influence.score import to_device
from hesse.influence.scores import sum_rows
from hesse.influence.streams import window
from hesse.io import (
    LOCK_NAME,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    atomic_write_bytes,
    check_file,
    config_hash,
    load_tensors,
    manifest_exists,
    read_manifest,
    run_lock,
    save_tensors,
    write_manifest,
)

__all__ = ["ProjectedIndex", "ProjectedScores", "Projection", "build_projected", "open_projected", "projection_of"]

KIND = "projected-index"

StoredDtype = Literal["float16", "bfloat16", "float32", "float64"]
_WINDOW = 256  # sequences brought into memory together


@dataclass(frozen=True, slots=True)
class Projection:
    """What a layer's gradients are multiplied with on both sides, and divided by."""

    left: Tensor  # (p, k_out)
    right: Tensor  # (m, k_in)
    scale: Tensor  # (k_out, k_in), 1 / √(Λ + λ)

    @property
    def size(self) -> int:
        """Numbers a sequence."""
        return self.scale.numel()

    def of(self, rows: Captured) -> Tensor:
        """Project the gradients of a batch, which are not formed.

        Parameters
        ----------
        rows : Captured
            Inputs and output gradients of this layer.

        Returns
        -------
        Tensor, shape (B, k_out·k_in)
            In the dtype of the projection.
        """
        grads = rows.grads.to(self.left.dtype) @ self.left
        inputs = rows_times(rows.inputs.to(self.right.dtype), self.right, has_bias=rows.layer.has_bias)
        return (torch.bmm(grads.transpose(1, 2), inputs) * self.scale).flatten(1)


@dataclass(frozen=True)
class ProjectedScores:
    """Scores of stored rows, in nats a copy; positive raises the completion's log-probability."""

    query_ids: list[str]
    train_ids: list[str]
    values: np.ndarray  # (Q, R)
    agreement: np.ndarray | None = None  # (Q,) correlation with full scores over a sample, if it was asked for

    def topk(self, query: int | str, k: int, sign: int = 1) -> list[tuple[str, float]]:
        """List the strongest proponents (sign +1) or opponents (-1), strongest first.

        Parameters
        ----------
        query : int or str
            Number or id.
        k : int
            At most so many.
        sign : {1, -1}, default 1
            Which end.

        Returns
        -------
        list of (id, score)
            Of the asked sign only.

        Raises
        ------
        ArgumentError
            If the query is unknown, ``k < 1`` or the sign is neither.
        """
        row = sign * self.values[check_ranking(query, k, sign, self.query_ids)]
        return [(self.train_ids[n], float(sign * row[n])) for n in np.argsort(-row, kind="stable")[:k] if row[n] > 0]


@dataclass(frozen=True)
class ProjectedIndex:
    """Stored gradients, opened for reading."""

    path: Path
    manifest: Manifest

    def __len__(self) -> int:
        return int(self.manifest.stages["build"]["sequences"])

    @property
    def k_in(self) -> int:
        """Eigenvectors of A, at most."""
        return int(self.manifest.config["k_in"])

    @property
    def k_out(self) -> int:
        """Eigenvectors of S, at most."""
        return int(self.manifest.config["k_out"])

    @property
    def num_bytes(self) -> int:
        """Size of the gradients on disk."""
        return sum(entry.size for name, entry in self.manifest.files.items() if name.endswith(".safetensors"))

    def parts(self) -> Iterator[tuple[range, Tensor]]:
        """Read the gradients, a part at a time, each compared with its checksum.

        Yields
        ------
        (range, Tensor)
            Numbers of the sequences, and their φ (n, d) as stored.
        """
        for unit in plan_units(len(self), int(self.manifest.config["part_size"])):
            name = _file(unit.start, "safetensors")
            yield unit, load_tensors(self.path / name, self._entry(name))["gradients"]

    def names(self) -> tuple[list[str], list[str]]:
        """Read the ids of all sequences and of the rows they were cut from.

        Returns
        -------
        ids, rows : list of str
            N each.
        """
        pairs: list[list[str]] = []
        for unit in plan_units(len(self), int(self.manifest.config["part_size"])):
            name = _file(unit.start, "jsonl")
            check_file(self.path / name, self._entry(name))
            pairs += [json.loads(line) for line in (self.path / name).read_text(encoding="utf-8").splitlines()]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    def score(self, run_pass: Pass, factors: Factors, queries: Examples, total: int) -> ProjectedScores:
        """Project the queries, and multiply.

        Parameters
        ----------
        run_pass : Pass
            The model with its loss and layers.
        factors : Factors
            Those that the index was built with.
        queries : Examples
            Labels on the completion only.
        total : int
            N of the scores.

        Returns
        -------
        ProjectedScores
            A row's sequences summed.

        Raises
        ------
        ArtifactError
            If the index was built with other factors, or a part is damaged.
        """
        if self.manifest.parents.get("factors") != _identity(factors):
            raise ArtifactError(
                f"{self.path}: the index was built with other factors than these; build it again with overwrite"
            )
        projections = projection_of(factors, self.k_in, self.k_out)
        asked = _features(run_pass, projections, queries, range(len(queries)), 2048, None, "queries")
        flat = np.concatenate(
            [(asked @ part.to(asked).T / total).cpu().numpy() for _unit, part in self.parts()], axis=1
        )
        _ids, rows = self.names()
        place = {name: i for i, name in enumerate(dict.fromkeys(rows))}
        columns = np.array([place[name] for name in rows])
        return ProjectedScores(list(queries.ids), list(place), sum_rows(flat.T, columns, len(place)).T)

    def _entry(self, name: str) -> FileEntry:
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path / name}: not named in the manifest; build the index again")
        return self.manifest.files[name]


def projection_of(factors: Factors, k_in: int, k_out: int) -> dict[str, Projection]:
    """Take the leading eigenvectors of both sides of every layer: those with the largest sums of Λ.

    Parameters
    ----------
    factors : Factors
        With eigenvalues.
    k_in, k_out : int
        How many of A and of S; where a layer has fewer, all.

    Returns
    -------
    dict of str to Projection
        By layer, in the dtype of the factors.

    Raises
    ------
    ArgumentError
        If ``k_in`` or ``k_out`` is below 1, or the strategy is the identity.
    """
    if k_in < 1 or k_out < 1:
        raise ArgumentError(f"k_in, k_out: expected >= 1, got {k_in} and {k_out}")
    out = {}
    for name, layer in factors.layers.items():
        damped = layer.damped()
        if damped is None or layer.table is None:
            raise ArgumentError("factors: the identity strategy has no eigenvectors to project on; fit ekfac")
        # Λ summed over the other side orders a basis as the eigenvalues of its own factor do under K-FAC
        kept_out = layer.table.sum(1).argsort(descending=True, stable=True)[:k_out]
        kept_in = layer.table.sum(0).argsort(descending=True, stable=True)[:k_in]
        scale = damped[kept_out][:, kept_in].rsqrt()
        out[name] = Projection(
            _columns(layer.left, layer.table, 0, kept_out), _columns(layer.right, layer.table, 1, kept_in), scale
        )
    return out


def build_projected(
    run_pass: Pass,
    factors: Factors,
    examples: Examples,
    folder: Path | str,
    *,
    k_in: int = 16,
    k_out: int = 16,
    dtype: StoredDtype = "float16",
    batch_tokens: int = 4096,
    part_size: int = 1024,
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> ProjectedIndex:
    """Project the gradient of every sequence, once; the same call again resumes, or opens what is there.

    Parameters
    ----------
    run_pass : Pass
        The model with its loss and layers.
    factors : Factors
        Fitted on it.
    examples : Examples
        N sequences.
    folder : path
        Made if missing.
    k_in, k_out : int, default 16
        Eigenvectors of A and of S: d = k_in·k_out numbers a layer and sequence.
    dtype : {"float16", "bfloat16", "float32", "float64"}, default "float16"
        Of what is stored.
    batch_tokens : int, default 4096
        Padded tokens a batch.
    part_size : int, default 1024
        Sequences held at once, and kept as one file.
    overwrite : bool, default False
        Replace an index of other data, factors or settings, or a damaged one.
    show_progress : bool, optional
        Show a bar; None if stderr is a terminal.

    Returns
    -------
    ProjectedIndex
        Complete.

    Raises
    ------
    ArgumentError
        If an option is out of range, or the folder holds something else.
    ArtifactError
        If it holds an index of other data, factors or settings, a damaged manifest, or one of another kind.
    NumericalError
        If a gradient does not fit the range of ``dtype``.

    Notes
    -----
    One forward and backward pass a sequence, and N·d numbers on disk.

    References
    ----------
    S. K. Choe et al. (2024), arXiv 2405.13954: projections of both sides, there on gradients stored with their inverse.
    """
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise ArgumentError(f"dtype: expected float16, bfloat16, float32 or float64, got {dtype!r}")
    if part_size < 1 or batch_tokens < 1:
        raise ArgumentError(f"part_size, batch_tokens: expected >= 1, got {part_size} and {batch_tokens}")
    projections, where = projection_of(factors, k_in, k_out), Path(folder)
    config = {"k_in": k_in, "k_out": k_out, "dtype": dtype, "part_size": part_size}
    parents = dict(factors.parents) | {"scored": examples.fingerprint(), "factors": _identity(factors)}
    stored = getattr(torch, dtype)
    with run_lock(where):
        if manifest_exists(where) and overwrite:
            _refuse_foreign(where)
            manifest = Manifest(KIND, config, parents)
            write_manifest(where, manifest)  # first: killed in between, what is left does not count
            for path in where.glob("part-*"):
                path.unlink()
        else:
            manifest = manifest_of(where, KIND, config, parents)

        def write(unit: range) -> dict[str, FileEntry]:
            names: list[tuple[str, str]] = []
            found = _features(run_pass, projections, examples, unit, batch_tokens, names, "dataset").to(stored)
            if not bool(torch.isfinite(found).all()):
                raise NumericalError(
                    f"index: a gradient of sequences {unit.start} to {unit.stop - 1} is NaN, or too large for "
                    f"{dtype}; store float32"
                )
            tensors, lines = _file(unit.start, "safetensors"), _file(unit.start, "jsonl")
            text = "".join(json.dumps(pair) + "\n" for pair in names)
            return {
                tensors: save_tensors(where / tensors, {"gradients": found}),
                lines: atomic_write_bytes(where / lines, text.encode()),
            }

        build_parts(where, manifest, len(examples), part_size, write, title="gradients", show_progress=show_progress)
    return open_projected(where)


def open_projected(folder: Path | str, *, model: str | None = None) -> ProjectedIndex:
    """Open an index; its files are compared with their checksums when they are read.

    Parameters
    ----------
    folder : path
        That `build_projected` filled.
    model : str, optional
        Hash of the model that it must be of. Default: any.

    Returns
    -------
    ProjectedIndex
        Ready to ask.

    Raises
    ------
    ArtifactError
        If there is none, it is not finished, or of another model.
    """
    manifest = read_manifest(folder, KIND, parents=None if model is None else {"model": model})
    if not manifest.stages.get("build", {}).get("done"):
        raise ArtifactError(f"{folder}: the index is not finished; build it again, it resumes")
    return ProjectedIndex(Path(folder), manifest)


def _identity(factors: Factors) -> str:
    # with the hashes of model and data these settings decide the factors
    return config_hash({key: value for key, value in factors.config.items() if key != "info"})


def _refuse_foreign(where: Path) -> None:
    # a manifest of another kind is nobody's to overwrite, and no damaged one beside files that an index does not have
    if not is_damaged(where):
        read_manifest(where, KIND)
    elif any(e.name not in (LOCK_NAME, MANIFEST_NAME) and not e.match("part-*") for e in where.iterdir()):
        raise ArgumentError(f"folder: {where} holds more than an index")


def _features(
    run_pass: Pass,
    projections: dict[str, Projection],
    examples: Examples,
    numbers: range,
    batch_tokens: int,
    names: list[tuple[str, str]] | None,
    argument: str,
) -> Tensor:
    # φ (n, d) of some sequences on the CPU, and their ids with their rows
    edges = np.cumsum([0, *(projection.size for projection in projections.values())])
    columns = {name: slice(int(a), int(b)) for name, a, b in zip(projections, edges[:-1], edges[1:], strict=True)}
    out = torch.zeros(len(numbers), int(edges[-1]), dtype=next(iter(projections.values())).scale.dtype)
    places: Items[int] = []

    def consume(rows: Captured) -> None:
        first = 0
        for block in rows.blocks(BLOCK_ENTRIES):
            found = projections[rows.layer.name].of(block)
            out[places[first : first + len(found)], columns[rows.layer.name]] += found.cpu()
            first += len(found)

    whole = None if hasattr(examples, "window") else examples.rows
    with run_pass.open(consume, argument):
        for unit in plan_units(numbers.stop, _WINDOW, numbers.start):
            view = window(examples, unit)
            if names is not None:
                rows = view.ids if whole is None else [whole[i] for i in unit]
                names += zip(view.ids, rows, strict=True)
            for inside in plan_batches(view.lengths, range(len(unit)), batch_tokens):
                places = [unit.start - numbers.start + place for place in inside]
                run_pass.empirical(to_device(view.batch(inside), run_pass), [view.ids[place] for place in inside])
    return out


def _columns(basis: Basis | None, table: Tensor, side: int, kept: Tensor) -> Tensor:
    # some columns of a basis, that of the weights where there is none
    if basis is None:
        return torch.eye(table.shape[side], dtype=table.dtype, device=table.device)[:, kept]
    whole = basis if isinstance(basis, Tensor) else basis.dense()
    return whole[:, kept].contiguous()


def _file(first: int, kind: str) -> str:
    return f"part-{first:012d}.{kind}"
