"""The linear system of a Newton step on the KKT conditions, made invertible, with the constants of its accuracy.

    [B  Gᵀ] [dx]       [∇ₓL]
    [G  0 ] [dλ]  =  - [ c  ]

Shapes: N variables, M constraints; G (M, N), B (N, N).
"""

from dataclasses import dataclass
from typing import Any, Literal

import scipy.linalg
import torch
from torch import Generator, Tensor

from hesse.linalg import Dense, FunctionOperator, LinearOperator, eigsh
from hesse.optim.adasketch.problem import Point

__all__ = [
    "HessianForm",
    "KKTSystem",
    "RowSpace",
    "ShiftName",
    "dependence",
    "dependent_rows",
    "kkt_system",
    "row_space",
]

HessianForm = Literal["dense", "products"]
ShiftName = Literal["norm", "least"]

_NORM_PROBES = 8  # a Frobenius norm to a relative standard error of about 1 / (2 √8) or better, enough for a bound


@dataclass(frozen=True, slots=True)
class RowSpace:
    """The span of the constraints' gradients."""

    basis: Tensor  # (N, M), orthonormal
    smallest: float  # ξ_G, the smallest eigenvalue of G Gᵀ; infinite for M = 0
    size: float  # ‖G‖_F

    def is_deficient(self, rank_tol: float) -> bool:
        """Whether ξ_G < rank_tol · max(1, ‖G‖²_F).

        Parameters
        ----------
        rank_tol : float
            Relative to rows of unit length or more.

        Returns
        -------
        bool
            False without constraints.
        """
        return self.smallest < rank_tol * max(1.0, self.size**2)


def row_space(jacobian: Tensor) -> RowSpace:
    """Factor Gᵀ = Q R and read off the smallest singular value.

    Parameters
    ----------
    jacobian : Tensor, shape (M, N)
        G, M <= N.

    Returns
    -------
    RowSpace
        O(M² N).
    """
    factors = torch.linalg.qr(jacobian.T)
    smallest = float(torch.linalg.svdvals(factors.R)[-1] ** 2) if len(jacobian) else float("inf")
    return RowSpace(factors.Q, smallest, float(torch.linalg.matrix_norm(jacobian)))


def dependent_rows(jacobian: Tensor, rank_tol: float) -> list[int]:
    """Name the constraints whose gradients are combinations of the others', by QR with pivots.

    Parameters
    ----------
    jacobian : Tensor, shape (M, N)
        G.
    rank_tol : float
        As in `RowSpace.is_deficient`.

    Returns
    -------
    list of int
        Row numbers, rising; the last ones in the order of pivots, so that one of each dependent pair is named.
    """
    numbers = jacobian.detach().cpu().double().numpy()
    factors: Any = scipy.linalg.qr(numbers.T, mode="r", pivoting=True)
    triangle, order = factors
    lengths = abs(triangle.diagonal())
    floor = rank_tol**0.5 * max(1.0, float(torch.linalg.matrix_norm(jacobian)))
    weak = [int(row) for row, length in zip(order, lengths, strict=True) if length < floor]
    return sorted(weak or [int(order[-1])])


@dataclass(frozen=True, slots=True)
class KKTSystem:
    """Γ z = b, and what the accuracy test needs to know of Γ."""

    operator: LinearOperator  # Γ, (N + M, N + M), symmetric
    rhs: Tensor  # b, (N + M,)
    norm: float  # ‖Γ‖_F
    psi: float  # Ψ, a bound on ‖Γ⁻¹‖ up to a constant
    upsilon: float  # Υ = max(‖G‖_F, ‖H‖_F, 1)
    regularized: bool  # whether B differs from H
    entries: int  # nonzeros of Γ; for a Hessian of products those of a dense one


def kkt_system(
    point: Point,
    jacobian: Tensor,
    rows: RowSpace,
    hessian: LinearOperator,
    *,
    form: HessianForm,
    shift_by: ShiftName = "norm",
    xi_b: float,
    curvature_tol: float,
    psi_factor: float,
    generator: Generator | None,
) -> KKTSystem:
    """Assemble Γ with B = H where H is positive on the constraints' null space, else B = H + s I.

    s = ξ_B + ‖H‖_F, or ξ_B - λ_min(ZᵀHZ), the least that makes B >= ξ_B on the null space.

    Ψ = psi_factor · max(‖B‖²_F, 1) / (min(ξ_G, 1) min(ξ_B, 1)).

    Parameters
    ----------
    point : Point
        Where.
    jacobian : Tensor, shape (M, N)
        G, of full row rank.
    rows : RowSpace
        Of G.
    hessian : LinearOperator, shape (N, N)
        H = ∇²ₓL.
    form : {"dense", "products"}
        Whether Γ is formed. Products leave H as it is: its smallest eigenvalue on the null space comes from Lanczos,
        its Frobenius norm from eight random signs.
    shift_by : {"norm", "least"}, default "norm"
        Which s, see above.
    xi_b, curvature_tol, psi_factor : float
        ξ_B > 0, the least eigenvalue of ZᵀHZ that passes, and the constant of Ψ.
    generator : torch.Generator or None
        Of the random vectors of ``form="products"``.

    Returns
    -------
    KKTSystem
        O(N³) in time for "dense".
    """
    m, n = jacobian.shape
    matrix = hessian.to_dense() if form == "dense" else None
    if matrix is not None:
        matrix = (matrix + matrix.T) / 2
        size = float(torch.linalg.matrix_norm(matrix))
        smallest = _smallest_dense(matrix, jacobian)
        diagonal_sum = float(matrix.trace())
    else:
        home = point.x.device if generator is None else generator.device
        bits = torch.randint(2, (n, _NORM_PROBES), generator=generator, device=home)
        signs = (2 * bits - 1).to(point.x)
        images = hessian.matmat(signs)
        size = float(torch.linalg.matrix_norm(images)) / _NORM_PROBES**0.5
        smallest = _smallest_product(hessian, rows.basis, size, generator)
        diagonal_sum = float((signs * images).sum()) / _NORM_PROBES
    regularized = smallest < curvature_tol
    shift = xi_b + (size if shift_by == "norm" else -smallest) if regularized else 0.0
    # ‖H + s I‖² = ‖H‖² + 2 s tr H + n s²
    squared = max(size**2 + 2 * shift * diagonal_sum + n * shift**2, 0.0)
    if matrix is not None:
        body = matrix + shift * torch.eye(n, dtype=matrix.dtype, device=matrix.device)
        gamma = torch.cat([torch.cat([body, jacobian.T], 1), torch.cat([jacobian, jacobian.new_zeros(m, m)], 1)])
        operator: LinearOperator = Dense(gamma, is_symmetric=True)
        entries = int(torch.count_nonzero(gamma))
    else:
        operator = _block_operator(hessian, jacobian, shift)
        entries = n * n + 2 * int(torch.count_nonzero(jacobian))
    return KKTSystem(
        operator,
        -torch.cat([point.gradient, point.con]),
        norm=(squared + 2 * rows.size**2) ** 0.5,
        psi=psi_factor * max(squared, 1.0) / (min(rows.smallest, 1.0) * min(xi_b, 1.0)),
        upsilon=max(rows.size, size, 1.0),
        regularized=regularized,
        entries=entries,
    )


def _smallest_dense(matrix: Tensor, jacobian: Tensor) -> float:
    m, n = jacobian.shape
    if m == n:
        return float("inf")
    if m:
        null = torch.linalg.qr(jacobian.T, mode="complete").Q[:, m:]
        matrix = null.T @ matrix @ null
    return float(torch.linalg.eigvalsh(matrix)[0])


def _smallest_product(hessian: LinearOperator, basis: Tensor, size: float, generator: Generator | None) -> float:
    n, m = basis.shape
    if m == n:
        return float("inf")

    def projected(columns: Tensor) -> Tensor:
        # P H P + σ Q Qᵀ: the eigenvalues of ZᵀHZ, and σ above them all M times
        inside = basis @ (basis.T @ columns)
        image = hessian.matmat(columns - inside)
        return image - basis @ (basis.T @ image) + 2 * (size + 1) * inside

    operator = FunctionOperator(projected, (n, n), dtype=basis.dtype, device=basis.device, is_symmetric=True)
    # six digits decide a sign; the default of ten would multiply the products
    return float(eigsh(operator, 1, which="SA", tol=1e-6, generator=generator).eigenvalues[0])


def _block_operator(hessian: LinearOperator, jacobian: Tensor, shift: float) -> LinearOperator:
    m, n = jacobian.shape

    def product(columns: Tensor) -> Tensor:
        upper, lower = columns[:n], columns[n:]
        return torch.cat([hessian.matmat(upper) + shift * upper + jacobian.T @ lower, jacobian @ upper])

    return FunctionOperator(product, (n + m, n + m), dtype=jacobian.dtype, device=jacobian.device, is_symmetric=True)


def dependence(jacobian: Tensor, rows: RowSpace, rank_tol: float, step: int) -> str:
    """Say which constraints are to blame.

    Parameters
    ----------
    jacobian : Tensor, shape (M, N)
        G.
    rows : RowSpace
        Of G.
    rank_tol : float
        The tolerance that was missed.
    step : int
        Outer step, for the message.

    Returns
    -------
    str
        For a SingularError.
    """
    blamed = ", ".join(map(str, dependent_rows(jacobian, rank_tol)))
    return (
        f"adasketch_newton: at step {step} the constraints' gradients are dependent: smallest eigenvalue of G Gᵀ "
        f"{rows.smallest:.1e}, allowed {rank_tol * max(1.0, rows.size**2):.1e}. Constraint rows {blamed} (from 0) "
        "are combinations of the others: leave them out, or start elsewhere"
    )
