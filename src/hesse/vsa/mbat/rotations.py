"""Three families of orthogonal matrices drawn from a text: what is stored of one, and its products with rows.

Shapes: D dimension; vectors are the last axis of (..., D).
"""

from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from hesse.linalg import Dense, Diagonal, FunctionOperator, LinearOperator, Permutation, ProductOperator, fwht
from hesse.vsa.mbat.atoms import gaussian_numbers, permutation, sign_rows

__all__ = ["Family", "HaarRotation", "HadamardRotation", "Rotation", "SignedPermutation", "draw_rotation"]

Family = Literal["signed_permutation", "hadamard", "haar"]


class Rotation(Protocol):
    """An orthogonal matrix M, known by its products."""

    def apply(self, x: Tensor) -> Tensor:
        """Return M x for every vector of x, shape (..., D)."""
        ...

    def undo(self, y: Tensor) -> Tensor:
        """Return Mᵀ y for every vector of y, shape (..., D)."""
        ...

    def operator(self) -> LinearOperator:
        """Return M as an operator on columns."""
        ...


@dataclass(frozen=True, slots=True)
class SignedPermutation:
    """(M x)_i = signs_i · x at index_i: D products, no sum, hence no rounding at all."""

    index: Tensor  # (D,) int64
    signs: Tensor  # (D,)

    def apply(self, x: Tensor) -> Tensor:
        """Return M x for every vector of x."""  # noqa: DOC201
        return x.gather(-1, self.index.expand(x.shape)) * self.signs

    def undo(self, y: Tensor) -> Tensor:
        """Return Mᵀ y for every vector of y."""  # noqa: DOC201
        return torch.empty_like(y).scatter(-1, self.index.expand(y.shape), y * self.signs)

    def after(self, first: Self) -> "SignedPermutation":
        """Return M N for N = ``first``: signed permutations are a group."""  # noqa: DOC201
        return SignedPermutation(first.index[self.index], self.signs * first.signs[self.index])

    def operator(self) -> LinearOperator:
        """Return M as an operator on columns."""  # noqa: DOC201
        return ProductOperator((Diagonal(self.signs), Permutation(self.index, dtype=self.signs.dtype)))


@dataclass(frozen=True, slots=True)
class HadamardRotation:
    """M = H diag(outer) H diag(inner), H the orthonormal Walsh-Hadamard matrix: O(D log D)."""

    inner: Tensor  # (D,)
    outer: Tensor  # (D,)

    def apply(self, x: Tensor) -> Tensor:
        """Return M x for every vector of x."""  # noqa: DOC201
        return fwht(self.outer * fwht(self.inner * x))

    def undo(self, y: Tensor) -> Tensor:
        """Return Mᵀ y for every vector of y."""  # noqa: DOC201
        return self.inner * fwht(self.outer * fwht(y))

    def operator(self) -> LinearOperator:
        """Return M as an operator on columns."""  # noqa: DOC201
        dim = len(self.inner)
        return FunctionOperator(
            lambda x, inner, outer: HadamardRotation(inner, outer).apply(x.mT).mT,
            (dim, dim),
            dtype=self.inner.dtype,
            device=self.inner.device,
            rmatmat_fn=lambda y, inner, outer: HadamardRotation(inner, outer).undo(y.mT).mT,
            tensors=(self.inner, self.outer),
        )


@dataclass(frozen=True, slots=True)
class HaarRotation:
    """M uniform over all orthogonal matrices: D² numbers, D² products."""

    matrix: Tensor  # (D, D)

    def apply(self, x: Tensor) -> Tensor:
        """Return M x for every vector of x."""  # noqa: DOC201
        return x @ self.matrix.mT

    def undo(self, y: Tensor) -> Tensor:
        """Return Mᵀ y for every vector of y."""  # noqa: DOC201
        return y @ self.matrix

    def operator(self) -> LinearOperator:
        """Return M as an operator on columns."""  # noqa: DOC201
        return Dense(self.matrix)


def draw_rotation(family: Family, role: str, dim: int, dtype: torch.dtype, device: torch.device) -> Rotation:
    """Draw the matrix of a role.

    Parameters
    ----------
    family : {"signed_permutation", "hadamard", "haar"}
        Checked by the caller, as is that D is a power of two for "hadamard".
    role : str
        What decides it, with D and the family.
    dim : int
        D.
    dtype : torch.dtype
        Of operands.
    device : torch.device
        Where its numbers go.

    Returns
    -------
    Rotation
        The same in every process.
    """
    if family == "signed_permutation":
        signs = torch.from_numpy(sign_rows("role signs", [role], dim)[0]).to(device, dtype)
        return SignedPermutation(torch.from_numpy(permutation("role order", role, dim)).to(device), signs)
    if family == "hadamard":
        inner, outer = (
            torch.from_numpy(sign_rows(f"role {place}", [role], dim)[0]).to(device, dtype)
            for place in ("inner", "outer")
        )
        return HadamardRotation(inner, outer)
    normal = gaussian_numbers("role normal", role, dim * dim).reshape(dim, dim)
    q, r = np.linalg.qr(normal)
    # without the signs of R's diagonal Q would lean to LAPACK's choice of sign, and not be uniform
    return HaarRotation(torch.from_numpy(q * np.sign(np.diag(r))).to(device, dtype))
