"""Precision matrices P = τH + D of a Gaussian posterior over layers: determinant, quadratic forms, draws.

D is that of the prior: each layer has one precision, so that D is a multiple of the identity on its block. H sums over
the data.
Shapes: L layers, layer l with weights (p, m), bias in the last column, P = Σ p m weights in all,
B examples, T positions, C outputs, K draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hesse.curvature.capture import Captured
from hesse.curvature.ekfac import rotate, rotate_back, rotate_rows, sequence_gradients
from hesse.curvature.layers import TrackedLayer
from hesse.errors import ShapeError, SingularError

__all__ = ["DensePrecision", "LayerwisePrecision", "Precision", "read_precision"]

Blocks = dict[str, Tensor]
"""By layer, each (..., p, m)."""


class Precision(Protocol):
    """τH + D without τ and D, which change while H stays."""

    def log_determinant(self, tau: Tensor, priors: Tensor) -> Tensor:
        """Compute log det(τH + D), differentiable in both; ``tau`` is (), ``priors`` (L,)."""
        ...

    def covariance(self, rows: Mapping[str, list[Captured]], tau: Tensor, priors: Tensor) -> Tensor:
        """Compute J (τH + D)⁻¹ Jᵀ, (B, C, C), from what C cotangents e_c left at every layer."""
        ...

    def unwhiten(self, noise: Tensor, tau: Tensor, priors: Tensor) -> Blocks:
        """Turn standard normal numbers (K, P) into K draws of covariance (τH + D)⁻¹."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Name what there is to save."""
        ...


@dataclass(frozen=True, slots=True)
class LayerwisePrecision:
    """One block a layer, H = Q diag(table) Qᵀ with Q = Q_S ⊗ Q_A, or the identity where there is no basis."""

    tables: Mapping[str, Tensor]  # (p, m), float64
    bases: Mapping[str, tuple[Tensor, Tensor]]  # Q_S (p, p) and Q_A (m, m); empty for a diagonal H

    def _spectra(self, tau: Tensor, priors: Tensor) -> Blocks:
        return {name: table * tau + prior for (name, table), prior in zip(self.tables.items(), priors, strict=True)}

    def log_determinant(self, tau: Tensor, priors: Tensor) -> Tensor:
        """Sum the logarithms of the eigenvalues.

        Parameters
        ----------
        tau, priors : Tensor, shapes () and (L,)
            τ and the priors' precisions.

        Returns
        -------
        Tensor, shape ()
            In float64.
        """
        return torch.stack([spectrum.log().sum() for spectrum in self._spectra(tau, priors).values()]).sum()

    def covariance(self, rows: Mapping[str, list[Captured]], tau: Tensor, priors: Tensor) -> Tensor:
        """Add up the layers' shares of J P⁻¹ Jᵀ.

        Parameters
        ----------
        rows : mapping of str to list of Captured
            One for every output, of the same forward pass.
        tau, priors : Tensor, shapes () and (L,)
            τ and the priors' precisions.

        Returns
        -------
        Tensor, shape (B, C, C)
            In float64. B C p numbers where a layer is called at one position an example, B C p m otherwise.
        """
        spectra = self._spectra(tau, priors)
        return torch.stack([_share(rows[name], spectra[name], self.bases.get(name)) for name in spectra]).sum(0)

    def unwhiten(self, noise: Tensor, tau: Tensor, priors: Tensor) -> Blocks:
        """Divide by the square roots of the eigenvalues and rotate back.

        Parameters
        ----------
        noise : Tensor, shape (K, P)
            Standard normal numbers.
        tau, priors : Tensor, shapes () and (L,)
            τ and the priors' precisions.

        Returns
        -------
        dict of str to Tensor, shapes (K, p, m)
            Draws.
        """
        draws: Blocks = {}
        spectra = self._spectra(tau, priors)
        pieces = noise.split([spectrum.numel() for spectrum in spectra.values()], 1)
        for piece, (name, spectrum) in zip(pieces, spectra.items(), strict=True):
            scaled = piece.reshape(-1, *spectrum.shape) / spectrum.sqrt()
            if name in self.bases:
                left, right = self.bases[name]
                scaled = rotate_back(scaled.to(left.dtype), left, right)
            draws[name] = scaled
        return draws

    def tensors(self) -> dict[str, Tensor]:
        """Name what there is to save.

        Returns
        -------
        dict of str to Tensor
            "table i", and "left i" and "right i" if there are bases, i the number of the layer.
        """
        found: dict[str, Tensor] = {}
        for i, (name, table) in enumerate(self.tables.items()):
            found[f"table {i}"] = table
            if name in self.bases:
                found[f"left {i}"], found[f"right {i}"] = self.bases[name]
        return found


def _share(rows: list[Captured], spectrum: Tensor, basis: tuple[Tensor, Tensor] | None) -> Tensor:
    first = rows[0]
    if first.grads.shape[1] == 1:  # the gradient of an output is δ ãᵀ, and need not be formed
        grads = torch.stack([row.grads[:, 0] for row in rows], 1)
        if basis is None:
            inputs = first.inputs[:, 0]
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1) if first.layer.has_bias else inputs
        else:
            grads, inputs = grads.to(basis[0].dtype) @ basis[0], rotate_rows(first, basis[1])[:, 0]
        weights = inputs.double().square() @ (1 / spectrum).T
        scaled = grads.double() * weights.sqrt().unsqueeze(1)
        return scaled @ scaled.mT
    blocks = torch.stack([sequence_gradients(row) for row in rows], 1)
    if basis is not None:
        blocks = rotate(blocks.to(basis[0].dtype), *basis)
    whitened = (blocks / spectrum.sqrt()).flatten(2)
    return whitened @ whitened.mT


@dataclass(frozen=True, slots=True)
class DensePrecision:
    """H whole, layer after layer; factored anew for every τ and D, P³ / 3 multiplications."""

    matrix: Tensor  # (P, P), float64
    shapes: Mapping[str, tuple[int, int]]  # (p, m) of every layer

    def _sizes(self) -> list[int]:
        return [p * m for p, m in self.shapes.values()]

    def _cholesky(self, tau: Tensor, priors: Tensor) -> Tensor:
        sizes = torch.tensor(self._sizes(), device=priors.device)
        lower, info = torch.linalg.cholesky_ex(self.matrix * tau + torch.diag(priors.repeat_interleave(sizes)))
        if bool(info):
            raise SingularError(
                f"laplace: the precision of {len(self.matrix)} weights is not positive definite at prior_precision "
                f"{priors.min():.3g}; raise it"
            )
        return lower

    def log_determinant(self, tau: Tensor, priors: Tensor) -> Tensor:
        """Sum the logarithms of the Cholesky factor's diagonal.

        Parameters
        ----------
        tau, priors : Tensor, shapes () and (L,)
            τ and the priors' precisions.

        Returns
        -------
        Tensor, shape ()
            In float64.
        """
        return 2 * self._cholesky(tau, priors).diagonal().log().sum()

    def covariance(self, rows: Mapping[str, list[Captured]], tau: Tensor, priors: Tensor) -> Tensor:
        """Solve with the Cholesky factor.

        Parameters
        ----------
        rows : mapping of str to list of Captured
            One for every output, of the same forward pass.
        tau, priors : Tensor, shapes () and (L,)
            τ and the priors' precisions.

        Returns
        -------
        Tensor, shape (B, C, C)
            In float64, by way of B C P numbers.
        """
        blocks = {name: torch.stack([sequence_gradients(row).flatten(1) for row in rows[name]], 1) for name in rows}
        jacobian = torch.cat([blocks[name] for name in self.shapes], 2).to(self.matrix.dtype)
        lower = self._cholesky(tau, priors)
        whitened = torch.linalg.solve_triangular(lower, jacobian.flatten(0, 1).T, upper=False).T
        whitened = whitened.reshape(jacobian.shape)
        return whitened @ whitened.mT

    def unwhiten(self, noise: Tensor, tau: Tensor, priors: Tensor) -> Blocks:
        """Solve with the transposed Cholesky factor.

        Parameters
        ----------
        noise : Tensor, shape (K, P)
            Standard normal numbers.
        tau, priors : Tensor, shapes () and (L,)
            τ and the priors' precisions.

        Returns
        -------
        dict of str to Tensor, shapes (K, p, m)
            Draws.
        """
        upper = self._cholesky(tau, priors).T
        draws = torch.linalg.solve_triangular(upper, noise.T.to(upper.dtype), upper=True).T
        pieces = draws.split(self._sizes(), 1)
        return {
            name: piece.reshape(-1, *shape) for piece, (name, shape) in zip(pieces, self.shapes.items(), strict=True)
        }

    def tensors(self) -> dict[str, Tensor]:
        """Name what there is to save.

        Returns
        -------
        dict of str to Tensor
            "matrix".
        """
        return {"matrix": self.matrix}


def read_precision(tensors: Mapping[str, Tensor], layers: Mapping[str, TrackedLayer], structure: str) -> Precision:
    """Put together again what `Precision.tensors` named.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Others are passed over.
    layers : mapping of str to TrackedLayer
        In the order in which they were saved.
    structure : str
        "kron", "full" or "diag".

    Returns
    -------
    Precision
        H.

    Raises
    ------
    ShapeError
        If a tensor does not fit its layer.
    """

    def read(name: str, *shape: int) -> Tensor:
        if tensors[name].shape != shape:
            raise ShapeError(f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}")
        return tensors[name]

    shapes = {name: (layer.out_features, layer.columns) for name, layer in layers.items()}
    if structure == "full":
        order = sum(p * m for p, m in shapes.values())
        return DensePrecision(read("matrix", order, order), shapes)
    tables = {name: read(f"table {i}", *shape) for i, (name, shape) in enumerate(shapes.items())}
    if structure == "diag":
        return LayerwisePrecision(tables, {})
    bases = {
        name: (read(f"left {i}", p, p), read(f"right {i}", m, m)) for i, (name, (p, m)) in enumerate(shapes.items())
    }
    return LayerwisePrecision(tables, bases)
