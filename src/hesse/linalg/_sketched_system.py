"""The pieces of sketched least squares: a tall A multiplied block by block, and the factor R of the sketched A.

Shapes: A (N, D), b (N, K), S (M, N); P (D, D'), with A P nearly orthonormal and D' the numerical rank of S A.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hesse.errors import SingularError
from hesse.linalg._arguments import wide_dtype
from hesse.linalg.basic import Dense, FunctionOperator
from hesse.linalg.kronecker import Kronecker
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers.cg import cg
from hesse.linalg.tensor_sketch import TensorSRHT

__all__ = ["SketchedFactor", "TallMatrix", "factor_dims", "normal_solve"]

_BLOCK_COLUMNS = 64  # columns of an operator that are formed at a time
_ROW_NUMBERS = {"cpu": 1 << 17, "cuda": 1 << 27}  # entries of A that a row block holds: 1 MB stays in a core's cache


class TallMatrix:
    """A with its products in one dtype, float32 at least, whether it is stored or only multiplied by.

    Parameters
    ----------
    operator : LinearOperator, shape (N, D)
        A.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.dtype = wide_dtype(operator.dtype)
        self.dense = operator.matrix.to(self.dtype) if isinstance(operator, Dense) else None
        self.shape, self.device = operator.shape, operator.device

    def detached(self) -> "TallMatrix":
        """Cut A off the graph.

        Returns
        -------
        TallMatrix
            Around the same numbers.
        """
        own = self.operator.tensors()
        return TallMatrix(self.operator.with_tensors({name: tensor.detach() for name, tensor in own.items()}))

    def product(self, x: Tensor) -> Tensor:
        """Multiply: A X.

        Parameters
        ----------
        x : Tensor, shape (D, K)
            In the wide dtype.

        Returns
        -------
        Tensor, shape (N, K)
            In the wide dtype.
        """
        if self.dense is not None:
            return self.dense @ x
        return self.operator.matmat(x.to(self.operator.dtype)).to(self.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        """Multiply by the adjoint: Aᴴ Y.

        Parameters
        ----------
        y : Tensor, shape (N, K)
            In the wide dtype.

        Returns
        -------
        Tensor, shape (D, K)
            In the wide dtype.
        """
        if self.dense is not None:
            return self.dense.mH @ y
        return self.operator.rmatmat(y.to(self.operator.dtype)).to(self.dtype)

    def gram(self, x: Tensor) -> Tensor:
        """Multiply by AᴴA; a stored A is read once, not twice, because both products are made block by block.

        Parameters
        ----------
        x : Tensor, shape (D, K)
            In the wide dtype.

        Returns
        -------
        Tensor, shape (D, K)
            No gradient flows.
        """
        if self.dense is None:
            return self.adjoint(self.product(x))
        out = torch.zeros_like(x)
        for rows in self._row_blocks():
            block = self.dense[rows]
            out.addmm_(block.mH, block @ x)
        return out

    def residual(self, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the norm of r = b - A x and its image Aᴴ r, likewise in one pass.

        Parameters
        ----------
        b : Tensor, shape (N, K)
            Right-hand sides.
        x : Tensor, shape (D, K)
            Where.

        Returns
        -------
        tuple of Tensor
            ‖r‖ (K,) and Aᴴ r (D, K). No gradient flows.
        """
        if self.dense is None:
            r = b - self.product(x)
            return torch.linalg.vector_norm(r, dim=0), self.adjoint(r)
        image, norms = torch.zeros_like(x), []
        for rows in self._row_blocks():
            block = self.dense[rows]
            r = torch.addmm(b[rows], block, x, alpha=-1)
            image.addmm_(block.mH, r)
            norms.append(torch.linalg.vector_norm(r, dim=0))
        return torch.linalg.vector_norm(torch.stack(norms), dim=0), image

    def _row_blocks(self) -> Iterator[slice]:
        step = max(1, _ROW_NUMBERS.get(self.device.type, _ROW_NUMBERS["cpu"]) // self.shape[1])
        return (slice(start, start + step) for start in range(0, self.shape[0], step))

    def sketched(self, sketch: LinearOperator | None) -> Tensor:
        """Form S A, in one pass over A where it is stored, else from blocks of its columns.

        Parameters
        ----------
        sketch : LinearOperator, shape (M, N), optional
            S. Default: the identity.

        Returns
        -------
        Tensor, shape (M, D)
            Differentiable where the products are.
        """
        groups = _groups(self.operator)
        if isinstance(sketch, TensorSRHT) and groups is not None and factor_dims(self.operator) == sketch.dims:
            return sketch.apply_factors(*(group.to_dense().to(self.dtype) for group in groups))
        if self.dense is not None:
            return self.dense if sketch is None else sketch @ self.dense
        pieces = []
        for start in range(0, self.shape[1], _BLOCK_COLUMNS):
            width = min(_BLOCK_COLUMNS, self.shape[1] - start)
            units = torch.zeros(self.shape[1], width, dtype=self.dtype, device=self.device)
            units[torch.arange(start, start + width), torch.arange(width)] = 1
            columns = self.product(units)
            pieces.append(columns if sketch is None else sketch @ columns)
        return torch.cat(pieces, dim=1)


def factor_dims(operator: LinearOperator) -> tuple[int, int] | None:
    """Give the row counts of the two groups that the factors of a Kronecker product are folded into.

    Parameters
    ----------
    operator : LinearOperator
        A.

    Returns
    -------
    tuple of int, or None
        None for anything but a Kronecker product of two factors or more.
    """
    groups = _groups(operator)
    return None if groups is None else (groups[0].shape[0], groups[1].shape[0])


def _groups(operator: LinearOperator) -> tuple[Kronecker, Kronecker] | None:
    # split where the larger of the two groups has as few rows as it can
    if not isinstance(operator, Kronecker) or len(operator.factors) < 2:
        return None
    splits = [(operator.factors[:cut], operator.factors[cut:]) for cut in range(1, len(operator.factors))]
    pairs = [(Kronecker(left), Kronecker(right)) for left, right in splits]
    return min(pairs, key=lambda pair: max(pair[0].shape[0], pair[1].shape[0]))


@dataclass(frozen=True, slots=True)
class SketchedFactor:
    """P with (S A P)ᴴ(S A P) + damping PᴴP = I, and what is known of S A.

    P is the inverse of the triangle R of a QR decomposition, or the leading right singular vectors of R over their
    singular values where S A has not full rank.
    """

    triangle: Tensor | None  # (D, D), or None where P is stored
    basis: Tensor | None  # (D, D')
    projected: Tensor  # (D', K): Pᴴ (S A)ᴴ S b, so that the sketched solution is P times it
    singular_values: Tensor  # (D,) of S A with damping, descending

    @classmethod
    def build(cls, small_A: Tensor, small_b: Tensor, *, damping: float, rcond: float | None) -> "SketchedFactor":
        """Factor S A.

        Parameters
        ----------
        small_A : Tensor, shape (M, D)
            S A, M >= D.
        small_b : Tensor, shape (M, K)
            S b.
        damping : float
            Weight of ‖x‖².
        rcond : float or None
            Singular values below ``rcond`` times the largest are left out; None: they are an error.

        Returns
        -------
        SketchedFactor
            O(M D²).

        Raises
        ------
        SingularError
            If S A is numerically rank-deficient and ``rcond`` is None.
        """
        d = small_A.shape[1]
        if damping > 0:
            ridge = torch.eye(d, dtype=small_A.dtype, device=small_A.device) * damping**0.5
            small_A = torch.cat([small_A, ridge])
            small_b = torch.cat([small_b, small_b.new_zeros(d, small_b.shape[1])])
        Q, R = torch.linalg.qr(small_A)
        with torch.no_grad():
            values = torch.linalg.svdvals(R)
            top = float(values[0])
            floor = top * (max(small_A.shape) * torch.finfo(values.dtype).eps if rcond is None else rcond)
            rank = int((values > floor).sum()) if top > 0 else 0
        if rank == d:
            return cls(R, None, Q.mH @ small_b, values)
        if rcond is None:
            raise SingularError(
                f"sketched_lstsq: the sketched matrix has numerical rank {rank} of {d}; drop dependent columns, "
                "pass rcond= for the solution of least norm, or damping= for a ridge"
            )
        U, s, Vh = torch.linalg.svd(R)
        basis = Vh[:rank].mH / s[:rank]
        return cls(None, basis, U[:, :rank].mH @ (Q.mH @ small_b), values)

    def detached(self) -> "SketchedFactor":
        """Cut the factor off the graph.

        Returns
        -------
        SketchedFactor
            Around the same numbers.
        """
        triangle = None if self.triangle is None else self.triangle.detach()
        basis = None if self.basis is None else self.basis.detach()
        return SketchedFactor(triangle, basis, self.projected.detach(), self.singular_values)

    def apply(self, y: Tensor) -> Tensor:
        """Multiply: P Y.

        Parameters
        ----------
        y : Tensor, shape (D', K)
            Preconditioned unknowns.

        Returns
        -------
        Tensor, shape (D, K)
            Unknowns.
        """
        if self.triangle is not None:
            return torch.linalg.solve_triangular(self.triangle, y, upper=True)
        return y if self.basis is None else self.basis @ y

    def adjoint(self, v: Tensor) -> Tensor:
        """Multiply by the adjoint: Pᴴ V.

        Parameters
        ----------
        v : Tensor, shape (D, K)
            Such as a gradient.

        Returns
        -------
        Tensor, shape (D', K)
            In preconditioned coordinates.
        """
        if self.triangle is not None:
            return torch.linalg.solve_triangular(self.triangle.mH, v, upper=False)
        return v if self.basis is None else self.basis.mH @ v

    def condition(self) -> float:
        """Give the condition number of S A, over the singular values that were kept.

        Returns
        -------
        float
            NaN where none was.
        """
        kept = self.singular_values[: len(self.projected)]
        return float(kept[0] / kept[-1]) if len(kept) else math.nan

    def row_norms(self) -> Tensor:
        """Take the norms of the rows of P: the square roots of the diagonal of ((S A)ᴴ S A)⁻¹.

        Returns
        -------
        Tensor, shape (D,)
            O(D³).
        """
        if self.basis is not None:
            return torch.linalg.vector_norm(self.basis, dim=1)
        identity = torch.eye(len(self.singular_values), dtype=self.projected.dtype, device=self.projected.device)
        return torch.linalg.vector_norm(self.apply(identity), dim=1)


class HasGram(Protocol):
    """Whatever can be multiplied by AᴴA."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation."""
        ...

    @property
    def device(self) -> torch.device:
        """Where x lives."""
        ...

    def gram(self, x: Tensor) -> Tensor:
        """AᴴA x."""
        ...


def normal_solve(
    A: HasGram, factor: SketchedFactor, g: Tensor, *, damping: float, max_steps: int, rtol: float, atol: float = 0.0
) -> tuple[Tensor, int]:
    """Solve (AᴴA + damping I) z = g by conjugate gradients on the well-conditioned Pᴴ(AᴴA + damping I)P.

    Parameters
    ----------
    A : HasGram
        AᴴA, off the graph.
    factor : SketchedFactor
        P, likewise.
    g : Tensor, shape (D, K)
        Right-hand sides.
    damping : float
        Weight of ‖x‖².
    max_steps : int
        Limit.
    rtol, atol : float
        Stop where the preconditioned residual is below max(rtol ‖Pᴴg‖, atol).

    Returns
    -------
    tuple of Tensor and int
        z of shape (D, K), and the number of steps.
    """

    def product(y: Tensor) -> Tensor:
        x = factor.apply(y)
        image = A.gram(x)
        return factor.adjoint(image + damping * x if damping else image)

    right = factor.adjoint(g)
    order = len(right)
    normal = FunctionOperator(product, (order, order), dtype=A.dtype, device=A.device, is_psd=True)
    found = cg(normal, right, rtol=rtol, atol=atol, max_steps=max_steps, validate=False)
    return factor.apply(found.x), found.num_steps
