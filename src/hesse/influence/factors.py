"""The fitted curvature of a model: per layer the eigenbasis of its two Kronecker factors and a table of eigenvalues.

Shapes: p outputs, m columns (bias counted), V any stack of gradient matrices (..., p, m).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hesse.curvature.block_basis import Basis, BlockBasis
from hesse.curvature.capture import Captured
from hesse.curvature.ekfac import (
    Absolute,
    Damping,
    Relative,
    rotate,
    rotate_back,
    rotated_gradients,
    sequence_gradients,
)
from hesse.curvature.layers import TrackedLayer
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError, ShapeError
from hesse.io import Manifest, load_tensors
from hesse.linalg.eigh import EighKronecker
from hesse.linalg.operator import LinearOperator

__all__ = [
    "Factors",
    "LayerFactors",
    "basis_of",
    "basis_tensors",
    "check_against",
    "damping_text",
    "load_factors",
    "parse_damping",
]


@dataclass(frozen=True, slots=True)
class LayerFactors:
    """Q_S, Q_A and Λ of one weight matrix, with its damping; a basis of None is the identity.

    With no table either (strategy "identity") the inverse is the identity: the gradient dot product.
    """

    left: Basis | None  # (p, p)
    right: Basis | None  # (m, m)
    table: Tensor | None  # (p, m)
    damping: float

    def damped(self) -> Tensor | None:
        """Add the damping to the table.

        Returns
        -------
        Tensor or None
            Λ + λ, or None for the identity.
        """
        return None if self.table is None else self.table + self.damping

    def precondition(self, matrix: Tensor) -> Tensor:
        """(G + λI)⁻¹ V in the fitted basis: two products on each side and one division.

        Parameters
        ----------
        matrix : Tensor, shape (..., p, m)
            V, in the dtype of the factors.

        Returns
        -------
        Tensor, shape (..., p, m)
            V itself for the identity.
        """
        damped = self.damped()
        if damped is None:
            return matrix
        if self.left is None or self.right is None:
            return matrix / damped
        return rotate_back(rotate(matrix, self.left, self.right) / damped, self.left, self.right)

    @property
    def bases(self) -> tuple[Basis, Basis] | None:
        """Q_S and Q_A, or None where the basis is that of the weights."""
        return None if self.left is None or self.right is None else (self.left, self.right)

    def precondition_rows(self, rows: Captured, dtype: torch.dtype, scratch: Scratch) -> Tensor:
        """(Q_Sᵀ D_n Q_A) ⊘ (Λ + λ) of every sequence of a batch: (G + λI)⁻¹ D_n before it is rotated back.

        D_n is not formed where rotating its rows is cheaper.

        Parameters
        ----------
        rows : Captured
            Inputs and output gradients of this layer.
        dtype : dtype
            Of the result where the factors have no basis.
        scratch : Scratch
            Room for the result, which is valid until the next call.

        Returns
        -------
        Tensor, shape (B, p, m)
            In ``bases``; may be changed in place.
        """
        damped = self.damped()
        if damped is None or self.left is None or self.right is None:
            return self.precondition(sequence_gradients(rows).to(dtype))
        return rotated_gradients(rows, self.left, self.right, scratch).div_(damped)

    def with_bases(self, dtype: torch.dtype) -> "LayerFactors":
        """Convert the bases alone, for products in a narrower dtype.

        Parameters
        ----------
        dtype : dtype
            Of the products.

        Returns
        -------
        LayerFactors
            With the same table and damping.
        """
        left, right = (t if t is None else t.to(dtype) for t in (self.left, self.right))
        return LayerFactors(left, right, self.table, self.damping)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> "LayerFactors":
        """Convert every tensor.

        Parameters
        ----------
        dtype : dtype, optional
            Default: as it is.
        device : device, optional
            Default: where it is.

        Returns
        -------
        LayerFactors
            With the same damping.
        """
        left, right = (q if q is None else q.to(dtype=dtype, device=device) for q in (self.left, self.right))
        table = None if self.table is None else self.table.to(dtype=dtype, device=device)
        return LayerFactors(left, right, table, self.damping)


@dataclass(frozen=True)
class Factors:
    """All layers of one fitted run."""

    layers: Mapping[str, LayerFactors]
    num_sequences: int
    mean_tokens: float
    config: Mapping[str, Any]
    parents: Mapping[str, str] = field(default_factory=dict)  # hashes of the model and of its data

    def __repr__(self) -> str:
        strategy = self.config.get("strategy", "?")
        return f"Factors({strategy}, {len(self.layers)} layers, fitted on {self.num_sequences} sequences)"

    def _repr_html_(self) -> str:
        from hesse.influence.notebook import factors_html

        return factors_html(self)

    def __getitem__(self, name: str) -> LayerFactors:
        try:
            return self.layers[name]
        except KeyError:
            raise ArgumentError(f"factors: no layer {name!r}; fitted are {', '.join(self.layers)}") from None

    def eigenvalues(self, name: str) -> Tensor:
        """Λ of one layer, undamped, in units of the Gauss-Newton matrix of the mean loss.

        Parameters
        ----------
        name : str
            Layer.

        Returns
        -------
        Tensor, shape (p, m)
            Bias in the last column only if the basis is the identity.

        Raises
        ------
        ArgumentError
            If there is no such layer, or the strategy is the identity.
        """
        table = self[name].table
        if table is None:
            raise ArgumentError("factors: the identity strategy has no eigenvalues")
        return table

    def precondition(self, name: str, matrix: Tensor) -> Tensor:
        """(G + λI)⁻¹ V for one layer, V of shape (..., p, m).

        Parameters
        ----------
        name : str
            Layer.
        matrix : Tensor, shape (..., p, m)
            Gradient matrices, bias in the last column.

        Returns
        -------
        Tensor, shape (..., p, m)
            In the dtype of the factors.

        Raises
        ------
        ShapeError
            If the last two dimensions differ from those of the fitted layer.
        """
        layer = self[name]
        if layer.table is not None and matrix.shape[-2:] != layer.table.shape:
            raise ShapeError(
                f"precondition: layer {name!r} was fitted with shape {tuple(layer.table.shape)}, got "
                f"{tuple(matrix.shape)}"
            )
        return layer.precondition(matrix if layer.table is None else matrix.to(layer.table.dtype))

    def operator(self, name: str) -> LinearOperator:
        """G + λI of one layer as an operator of order p·m (row-major), whose ``solve`` is exact.

        Parameters
        ----------
        name : str
            Layer.

        Returns
        -------
        LinearOperator, shape (p·m, p·m)
            Symmetric, positive semi-definite.

        Raises
        ------
        ArgumentError
            If there is no such layer, or the strategy is the identity.
        """
        layer = self[name]
        damped = layer.damped()
        if damped is None:
            raise ArgumentError("factors: the identity strategy has no operator")
        eye = [torch.eye(n, dtype=damped.dtype, device=damped.device) for n in damped.shape]
        bases = [eye[i] if q is None else _whole(q) for i, q in enumerate((layer.left, layer.right))]
        return EighKronecker(bases, damped)

    def save_pretrained(
        self,
        folder: Path | str,
        *,
        model: str | None = None,
        revision: str | None = None,
        data: str | None = None,
        max_shard_bytes: int = 5 << 30,
        overwrite: bool = False,
    ) -> Path:
        """Write the factors as a folder to hand on, with a card: config.json, safetensors, README.md; no pickle.

        Parameters
        ----------
        folder : path
            Made if missing.
        model, revision, data : str, optional
            Names for the card. The hashes of the weights and of the data are kept in any case.
        max_shard_bytes : int, default 5 GiB
            Split into files of at most this size.
        overwrite : bool, default False
            Replace factors that are there.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ArgumentError
            If the folder holds something else, or factors.
        WriteError
            If the disk refuses.
        """
        from hesse.influence.pretrained import save_pretrained

        return save_pretrained(
            self,
            folder,
            model=model,
            revision=revision,
            data=data,
            max_shard_bytes=max_shard_bytes,
            overwrite=overwrite,
        )

    @classmethod
    def from_pretrained(
        cls, name_or_path: Path | str, *, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> "Factors":
        """Read what `save_pretrained` wrote, every file checked; ``parents["model"]`` says for which weights it holds.

        Parameters
        ----------
        name_or_path : path or str
            The folder, or the id of one on the Hugging Face hub. A folder that exists is never looked up.
        revision : str, optional
            Branch, tag or commit on the hub. Default: its main branch.
        device : device, default "cpu"
            Where the tensors go.

        Returns
        -------
        Factors
            As they were.

        Raises
        ------
        ArgumentError
            If there is no such folder, or it cannot be fetched.
        ArtifactError
            If it is damaged, or not the factors of hesse.
        MissingDependencyError
            For a hub id, if huggingface_hub is not installed.
        """
        from hesse.influence.pretrained import load_pretrained

        return load_pretrained(name_or_path, revision=revision, device=device)


def check_against(layers: Mapping[str, TrackedLayer], factors: Factors, run: str) -> None:
    """Refuse a model whose tracked layers are not those of the factors.

    Parameters
    ----------
    layers : mapping of str to TrackedLayer
        Of the model at hand.
    factors : Factors
        As loaded.
    run : str
        Where they came from, for the message.

    Raises
    ------
    ShapeError
        Naming the first layer that differs.
    """
    for name, layer in layers.items():
        table = factors[name].table
        if table is not None and table.shape != (layer.out_features, layer.columns):
            raise ShapeError(
                f"score: layer {name!r} has a gradient of shape {(layer.out_features, layer.columns)} but the factors "
                f"in {run} were "
                f"fitted on {tuple(table.shape)}: they belong to another model. Fit them again, or leave this layer "
                "out with modules=."
            )


def load_factors(folder: Path, manifest: Manifest, *, device: torch.device | str = "cpu") -> Factors:
    """Read the factors of a finished fit, each file checked against the manifest.

    Parameters
    ----------
    folder : Path
        The run.
    manifest : Manifest
        Of that run.
    device : device, default "cpu"
        Where the tensors go.

    Returns
    -------
    Factors
        In the dtype they were stored in.

    Raises
    ------
    ArgumentError
        If the fit has not finished.
    """
    state = manifest.stages.get("fit", {})
    if not state.get("done"):
        raise ArgumentError(f"score: the fit in {folder} has not finished; run fit again, it resumes")
    damping = parse_damping(manifest.config["damping"])
    layers: dict[str, LayerFactors] = {}
    loaded: dict[str, dict[str, Tensor]] = {}

    def read(relative: str) -> dict[str, Tensor]:
        if relative not in loaded:  # layers with one input share its basis
            loaded[relative] = load_tensors(folder / relative, manifest.files[relative], device=str(device))
        return loaded[relative]

    for name, entry in state["layers"].items():
        left = basis_of(read(entry["left"])) if entry.get("left") else None
        right = basis_of(read(entry["right"])) if entry.get("right") else None
        table = read(entry["table"])["table"] if entry.get("table") else None
        value = 0.0 if table is None else float(damping.of(table))
        if name in state.get("unreached", []):
            value = math.inf  # an expert that no training sequence reached: it takes no part in any score
        layers[name] = LayerFactors(left, right, table, value)
        if table is not None and layers[name].damping == 0 and not bool((table > 0).all()):
            raise ArgumentError(
                f"damping: layer {name!r} has zero eigenvalues (no gradient reaches part of it) and the damping is "
                "zero, so its block cannot "
                "be inverted; use damping=Absolute(...) or leave the layer out with modules="
            )
    return Factors(layers, int(state["num_sequences"]), float(state["mean_tokens"]), manifest.config, manifest.parents)


def basis_tensors(basis: Basis) -> dict[str, Tensor]:
    """Name the tensors of a basis as its file does.

    Parameters
    ----------
    basis : Tensor or BlockBasis
        As fitted.

    Returns
    -------
    dict of str to Tensor
        "vectors", or one of each block.
    """
    if isinstance(basis, Tensor):
        return {"vectors": basis}
    return {f"vectors.{i}": block for i, block in enumerate(basis.blocks)}


def basis_of(tensors: Mapping[str, Tensor]) -> Basis:
    """Read back what `basis_tensors` named.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Others may be among them.

    Returns
    -------
    Tensor or BlockBasis
        The basis.
    """
    if "vectors" in tensors:
        return tensors["vectors"]
    count = sum(name.startswith("vectors.") for name in tensors)
    return BlockBasis(tuple(tensors[f"vectors.{i}"] for i in range(count)))


def _whole(basis: Basis) -> Tensor:
    return basis if isinstance(basis, Tensor) else basis.dense()


def damping_text(damping: Damping) -> str:
    """Write a damping as the command line does: "0.1" is relative, "abs:1e-3" absolute.

    Parameters
    ----------
    damping : Relative or Absolute
        The damping.

    Returns
    -------
    str
        Read back by `parse_damping`.
    """
    return f"abs:{damping.value!r}" if isinstance(damping, Absolute) else repr(damping.factor)


def parse_damping(text: str | float) -> Damping:
    """Read a damping from "0.1" (relative to each matrix's mean eigenvalue) or "abs:X".

    Parameters
    ----------
    text : str or float
        As on the command line.

    Returns
    -------
    Damping
        Relative or Absolute.

    Raises
    ------
    ArgumentError
        If it is neither.
    """
    written = str(text)
    try:
        return Absolute(float(written[4:])) if written.startswith("abs:") else Relative(float(written))
    except ValueError as error:
        raise ArgumentError(f"damping: expected a number (relative) or abs:NUMBER, got {text!r}") from error
