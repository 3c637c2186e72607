"""Binding by orthogonal matrices: M_r v for a role r, undone exactly by the transpose.   Shapes: D dimension."""

from collections.abc import Sequence
from functools import reduce
from typing import get_args

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import LinearOperator, ProductOperator
from hesse.vsa.mbat.atoms import check_dim, normalised
from hesse.vsa.mbat.lru import LRU
from hesse.vsa.mbat.rotations import Family, Rotation, SignedPermutation, draw_rotation

__all__ = ["OrthogonalBinding", "Role"]

Role = str | Sequence[str]

_CACHE_BYTES = 256 << 20  # of matrices kept; a signed permutation of 1024 takes 12 KiB


class OrthogonalBinding:
    """A matrix M_r for every role r, drawn from the text r: <M x, M y> = <x, y>, M⁻¹ = Mᵀ, and M_a M_b ≠ M_b M_a.

    Parameters
    ----------
    dim : int, default 1024
        D.
    family : {"signed_permutation", "hadamard", "haar"}, default "signed_permutation"
        The first costs O(D) and rounds nothing; "hadamard", H D₁ H D₂, costs O(D log D), mixes all coordinates and
        needs D a power of two; "haar", uniform over all orthogonal matrices, costs O(D²) in time and memory: for
        D <= 1024.
    dtype : torch.dtype, default torch.float32
        Of operands: float32 or float64. The matrices of all families are exact to rounding in it.
    device : torch.device or str, default "cpu"
        Of operands.

    Raises
    ------
    ArgumentError
        If D is too small, no power of two where it must be, or the family unknown.
    ArgumentTypeError
        If ``dim`` is no int, or ``dtype`` neither float32 nor float64.

    Notes
    -----
    Matrices are kept, 256 MiB of them at most, the longest unused dropped first.

    References
    ----------
    S. I. Gallant (2022), arXiv 2202.04771.
    S. I. Gallant, T. W. Okaywe (2013), Neural Computation 25(8).

    Examples
    --------
    >>> binding = OrthogonalBinding(64)
    >>> v = torch.randn(64)
    >>> bool((binding.unbind("actor", binding.bind("actor", v)) == v).all())
    True
    """

    def __init__(
        self,
        dim: int = 1024,
        family: Family = "signed_permutation",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_dim("OrthogonalBinding", dim)
        if family not in get_args(Family):
            raise ArgumentError(
                f"OrthogonalBinding: family must be one of {', '.join(get_args(Family))}; got {family!r}"
            )
        if family == "hadamard" and dim & (dim - 1):
            raise ArgumentError(f"OrthogonalBinding: family 'hadamard' needs dim a power of two, got {dim}")
        if dtype not in (torch.float32, torch.float64):
            raise ArgumentTypeError(f"OrthogonalBinding: expected dtype float32 or float64, got {dtype}")
        self.dim = dim
        self.family: Family = family
        self.dtype = dtype
        self.device = torch.device(device)
        numbers = {"signed_permutation": 3 * dim, "hadamard": 2 * dim, "haar": dim * dim}[family]
        self._kept: LRU[tuple[str, ...], tuple[Rotation, ...]] = LRU(
            max(16, _CACHE_BYTES // (numbers * dtype.itemsize))
        )

    def bind(self, role: Role, v: Tensor) -> Tensor:
        """Return M_r v.

        Parameters
        ----------
        role : str or sequence of str
            r; of a sequence (a, b, c) the product M_a M_b M_c is meant, which the default family forms once.
        v : Tensor, shape (..., D)
            Vectors along the last axis.

        Returns
        -------
        Tensor, shape (..., D)
            Of the same lengths and inner products. Differentiable in v.

        Raises
        ------
        ShapeError
            If v does not fit.
        """
        for rotation in reversed(self._rotations(role)):
            v = rotation.apply(self._checked("bind", v))
        return v

    def unbind(self, role: Role, v: Tensor) -> Tensor:
        """Return M_rᵀ v, which undoes `bind`.

        Parameters
        ----------
        role : str or sequence of str
            As of `bind`.
        v : Tensor, shape (..., D)
            Vectors along the last axis.

        Returns
        -------
        Tensor, shape (..., D)
            Differentiable in v.

        Raises
        ------
        ShapeError
            If v does not fit.
        """
        for rotation in self._rotations(role):
            v = rotation.undo(self._checked("unbind", v))
        return v

    def operator(self, role: Role) -> LinearOperator:
        """Return M_r as an operator on columns; ``to_dense`` forms it.

        Parameters
        ----------
        role : str or sequence of str
            As of `bind`; not empty.

        Returns
        -------
        LinearOperator, shape (D, D)
            Whose ``H`` is its inverse.
        """
        operators = [rotation.operator() for rotation in self._rotations(role)]
        return operators[0] if len(operators) == 1 else ProductOperator(operators)

    def _checked(self, caller: str, v: Tensor) -> Tensor:
        if v.ndim < 1 or v.shape[-1] != self.dim or v.dtype != self.dtype or v.device != self.device:
            raise ShapeError(
                f"OrthogonalBinding.{caller}: expected (..., {self.dim}) {self.dtype} on {self.device}, got "
                f"{tuple(v.shape)} {v.dtype} on {v.device}"
            )
        return v

    def _rotations(self, role: Role) -> tuple[Rotation, ...]:
        path = (role,) if isinstance(role, str) else tuple(role) if isinstance(role, Sequence) else (role,)
        if not all(isinstance(step, str) for step in path):
            raise ArgumentTypeError(f"OrthogonalBinding: expected role as a text or a sequence of texts, got {role!r}")
        return self._kept.get_or_make(path, lambda: self._draw(path)) if path else ()

    def _draw(self, path: tuple[str, ...]) -> tuple[Rotation, ...]:
        if len(path) == 1:
            return (draw_rotation(self.family, normalised(path[0]), self.dim, self.dtype, self.device),)
        parts = [rotation for role in path for rotation in self._rotations(role)]
        composable = [part for part in parts if isinstance(part, SignedPermutation)]
        if len(composable) == len(parts):
            return (reduce(SignedPermutation.after, composable),)
        return tuple(parts)
