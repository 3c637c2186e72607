"""A block of extreme eigenpairs of a symmetric operator by LOBPCG, with a preconditioner and a warm start.

Shapes: A is (N, N); K pairs, one block.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least, single_operator, square_operator, wide_dtype
from hesse.linalg._random import gaussian_columns
from hesse.linalg.eigen.result import EigenResult
from hesse.linalg.operator import LinearOperator

__all__ = ["lobpcg"]

_REFRESH = 20  # steps after which A X is multiplied anew, to shed the rounding that updates gather


def lobpcg(
    operator: LinearOperator | Tensor,
    k: int = 6,
    *,
    which: Literal["LA", "SA"] = "SA",
    preconditioner: LinearOperator | Callable[[Tensor], Tensor] | None = None,
    start: Tensor | None = None,
    tol: float | None = None,
    max_steps: int = 500,
    generator: Generator | None = None,
) -> EigenResult:
    """Compute the K smallest (or largest) eigenpairs by Rayleigh-Ritz on span{X, T(AX - XΛ), P} in each step.

    X are the present vectors, T the preconditioner, P the last change of X. One product with the columns that have not
    converged yet a step, O(N K) memory. It finds multiple eigenvalues, and profits from a good start.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, symmetric (Hermitian).
    k : int, default 6
        1 <= K <= N / 3; for more, `eigsh` or a dense eigendecomposition.
    which : {"SA", "LA"}, default "SA"
        Smallest or largest eigenvalues.
    preconditioner : LinearOperator or callable, optional
        T ≈ A⁻¹ on blocks (N, B), positive definite; it matters for "SA". Default: none.
    start : Tensor, shape (N, K), optional
        First block. Default: Gaussian.
    tol : float, optional
        A pair has converged when its residual is at most tol times the largest Ritz value in magnitude seen. Default:
        1e-8 for float64 operators, 1e-5 otherwise.
    max_steps : int, default 500
        Steps at most.
    generator : torch.Generator, optional
        Source of the start. Default: torch's global generator.

    Returns
    -------
    EigenResult
        Eigenvalues rising.

    Raises
    ------
    ShapeError
        If the operator is not square or a stack, or ``start`` does not fit it.
    ArgumentError
        If the operator is not symmetric, or an argument is out of range.
    NumericalError
        If a product has NaN or Inf.

    References
    ----------
    A. V. Knyazev (2001), SIAM J. Sci. Comput. 23(2). U. Hetmaniuk, R. Lehoucq (2006), J. Comput. Phys. 218.
    """
    operator = single_operator("lobpcg", square_operator("lobpcg", operator, symmetric=True))
    n = operator.shape[0]
    if which not in ("LA", "SA"):
        raise ArgumentError(f"lobpcg: which must be LA or SA, got {which!r}")
    if not 1 <= k <= n // 3:
        raise ArgumentError(f"lobpcg: expected 1 <= k <= N / 3 = {n // 3}, got {k}; use eigsh or torch.linalg.eigh")
    at_least("lobpcg", "max_steps", max_steps, 1)
    precision = tol if tol is not None else (1e-8 if operator.dtype in (torch.float64, torch.complex128) else 1e-5)
    at_least("lobpcg", "tol", precision, 0)
    work = torch.complex128 if operator.dtype.is_complex else torch.float64
    if start is None:
        X = gaussian_columns(n, k, dtype=work, device=operator.device, generator=generator)
    elif start.shape != (n, k) or start.device != operator.device:
        raise ShapeError(f"lobpcg: expected start of shape ({n}, {k}) on {operator.device}, got {tuple(start.shape)}")
    else:
        X = start.detach().to(work)
    if preconditioner is None:
        condition: Callable[[Tensor], Tensor] = lambda block: block  # noqa: E731
    else:
        condition = preconditioner.matmat if isinstance(preconditioner, LinearOperator) else preconditioner

    num_matvecs = 0

    def multiply(block: Tensor) -> Tensor:
        nonlocal num_matvecs
        num_matvecs += block.shape[1]
        images = operator.matmat(block.to(operator.dtype)).to(work)
        if not bool(torch.isfinite(images).all()):
            raise NumericalError(f"lobpcg: the product with {type(operator).__name__} has NaN or Inf")
        return images

    sign = 1.0 if which == "SA" else -1.0
    with torch.no_grad():
        X = torch.linalg.qr(X).Q
        AX = multiply(X)
        values, X, AX = _rotate(X, AX, sign)
        P, AP = X[:, :0], X[:, :0]
        size, step, settled = values.abs().max(), 0, False
        for step in range(1, max_steps + 1):
            R = AX - X * values
            open_columns = torch.linalg.vector_norm(R, dim=0) > precision * size
            if not bool(open_columns.any()):
                AX = multiply(X)  # the verdict rests on a fresh product, not on the recurrence
                R = AX - X * values
                open_columns = torch.linalg.vector_norm(R, dim=0) > precision * size
                if not bool(open_columns.any()):
                    settled = True
                    break
            elif step % _REFRESH == 0:
                AX = multiply(X)
            W = condition(R[:, open_columns].to(operator.dtype)).to(work)
            W = W / torch.linalg.vector_norm(W, dim=0).clamp_min(torch.finfo(work).tiny)
            Z, AZ = torch.cat([W, P], dim=1), torch.cat([multiply(W), AP], dim=1)
            Z, AZ = _orthonormal(Z, AZ, X, AX)
            if Z.shape[1] == 0:
                break
            S, AS = torch.cat([X, Z], dim=1), torch.cat([AX, AZ], dim=1)
            inner = S.mH @ AS
            ritz, vectors = torch.linalg.eigh((inner + inner.mH) / 2 * sign)
            size = torch.maximum(size, ritz.abs().max())
            vectors, values = vectors[:, :k], ritz[:k] * sign
            P, AP = Z @ vectors[k:], AZ @ vectors[k:]
            X, AX = S @ vectors, AS @ vectors
        order = values.argsort()
        X, values = X[:, order], values[order]
        images = multiply(X)
        values = (X.conj() * images).sum(0).real
        residuals = torch.linalg.vector_norm(images - X * values, dim=0)
    real = wide_dtype(operator.dtype).to_real() if operator.dtype.is_complex else wide_dtype(operator.dtype)
    return EigenResult(values.to(real), X.to(operator.dtype), residuals.to(real), settled, step, num_matvecs)


def _rotate(X: Tensor, AX: Tensor, sign: float) -> tuple[Tensor, Tensor, Tensor]:
    inner = X.mH @ AX
    values, vectors = torch.linalg.eigh((inner + inner.mH) / 2 * sign)
    return values * sign, X @ vectors, AX @ vectors


def _orthonormal(Z: Tensor, AZ: Tensor, X: Tensor, AX: Tensor) -> tuple[Tensor, Tensor]:
    # orthogonal to X and among themselves, nearly dependent directions dropped; images follow by the same algebra
    for _ in range(2):
        inner = X.mH @ Z
        Z, AZ = Z - X @ inner, AZ - AX @ inner
        lengths = torch.linalg.vector_norm(Z, dim=0)
        used = lengths > 0
        Z, AZ = Z[:, used] / lengths[used], AZ[:, used] / lengths[used]
        if Z.shape[1] == 0:
            return Z, AZ
        weights, vectors = torch.linalg.eigh(Z.mH @ Z)
        kept = weights > 1e-12 * weights[-1]  # below, the direction is mostly rounding: squared lengths
        change = vectors[:, kept] * weights[kept].rsqrt()
        Z, AZ = Z @ change, AZ @ change
    return Z, AZ
