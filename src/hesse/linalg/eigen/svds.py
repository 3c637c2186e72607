"""The largest singular triplets of an operator by restarted Golub-Kahan bidiagonalisation.

Shapes: A is (M, N); K triplets asked for; P vectors in each basis.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least, single_operator, wide_dtype
from hesse.linalg._random import gaussian_columns
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.operator import LinearOperator

__all__ = ["SingularTriplets", "svds"]


@dataclass(frozen=True, slots=True)
class SingularTriplets:
    """A V = U diag(S) and AᴴU = V diag(S), each as far as ``residuals`` says."""

    U: Tensor  # (M, K)
    S: Tensor  # (K,), falling
    V: Tensor  # (N, K)
    residuals: Tensor  # (K,), √(‖A v - σ u‖² + ‖Aᴴu - σ v‖²) from final products
    converged: bool
    num_steps: int  # restarts
    num_matvecs: int  # products with A and with its adjoint together


def svds(
    operator: LinearOperator | Tensor,
    k: int = 6,
    *,
    tol: float | None = None,
    max_steps: int | None = None,
    basis_size: int | None = None,
    start: Tensor | None = None,
    generator: Generator | None = None,
) -> SingularTriplets:
    """Compute the K largest singular triplets to high accuracy; `rsvd` is cheaper where two digits do.

    Bases of left and right vectors grow by A V = U B, AᴴU = V Bᴴ + r eᴴ, fully orthogonalised; the best singular
    vectors of B are kept at each restart. It never squares the condition, as an eigensolver on AᴴA would.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (M, N)
        A, with its adjoint.
    k : int, default 6
        1 <= K <= min(M, N).
    tol : float, optional
        A triplet has converged when ‖Aᴴu - σ v‖ <= tol · σ₁. Default: 1e-10 for float64 operators, 1e-5 otherwise.
    max_steps : int, optional
        Products at most before the final check. Default: max(20 min(M, N), 1000).
    basis_size : int, optional
        P > K. Default: max(2 K + 1, 20), at most min(M, N).
    start : Tensor, shape (N,), optional
        First right vector. Default: Gaussian.
    generator : torch.Generator, optional
        Source of the start. Default: torch's global generator.

    Returns
    -------
    SingularTriplets
        Of the operator's dtype; the recurrence is in float64.

    Raises
    ------
    ShapeError
        If the operator is a stack, or ``start`` does not fit it.
    ArgumentError
        If an argument is out of range, or ``start`` is zero.
    NumericalError
        If a product has NaN or Inf.

    Notes
    -----
    O((M + N) P) memory; O((M + N) P²) work a restart beside the products.

    References
    ----------
    J. Baglama, L. Reichel (2005), SIAM J. Sci. Comput. 27(1).
    """
    operator = single_operator("svds", as_linear_operator(operator))
    m, n = operator.shape
    least = min(m, n)
    if not 1 <= k <= least:
        raise ArgumentError(f"svds: expected 1 <= k <= min(m, n) = {least}, got {k}")
    precision = tol if tol is not None else (1e-10 if operator.dtype in (torch.float64, torch.complex128) else 1e-5)
    at_least("svds", "tol", precision, 0)
    size = basis_size if basis_size is not None else max(2 * k + 1, 20)
    if size <= k and size < least:
        raise ArgumentError(f"svds: expected basis_size > k = {k}, got {size}")
    limit = max_steps if max_steps is not None else max(20 * least, 1000)
    at_least("svds", "max_steps", limit, 1)
    work = torch.complex128 if operator.dtype.is_complex else torch.float64
    if start is None:
        first = gaussian_columns(least, 1, dtype=work, device=operator.device, generator=generator).squeeze(1)
    elif start.shape != (n,) or start.device != operator.device:
        raise ShapeError(f"svds: expected start of shape ({n},) on {operator.device}, got {tuple(start.shape)}")
    else:
        first = start.detach().to(work)
        if m < n:
            first = operator.matvec(first.to(operator.dtype)).detach().to(work)
    if not float(torch.linalg.vector_norm(first)) > 0:
        raise ArgumentError("svds: start is zero, not finite, or in the null space of the operator")

    def forward(block: Tensor) -> Tensor:
        return operator.matmat(block.to(operator.dtype)).to(work)

    def adjoint(block: Tensor) -> Tensor:
        return operator.rmatmat(block.to(operator.dtype)).to(work)

    with torch.no_grad():
        # the run starts on the shorter side: its basis can then span that side whole, and nothing is left over
        maps = (forward, adjoint) if n <= m else (adjoint, forward)
        U, S, V, settled, restarts, products = _bidiagonalise(
            *maps, first, max(m, n), k, precision, min(size, least), limit, generator
        )
        if n > m:
            U, V = V, U
        residuals = torch.hypot(
            torch.linalg.vector_norm(forward(V) - U * S, dim=0), torch.linalg.vector_norm(adjoint(U) - V * S, dim=0)
        )
    wide = wide_dtype(operator.dtype)
    real = wide.to_real() if wide.is_complex else wide
    kind = operator.dtype
    return SingularTriplets(U.to(kind), S.to(real), V.to(kind), residuals.to(real), settled, restarts, products + 2 * k)


def _bidiagonalise(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    start: Tensor,
    m: int,
    k: int,
    tol: float,
    size: int,
    limit: int,
    generator: Generator | None,
) -> tuple[Tensor, Tensor, Tensor, bool, int, int]:
    n = start.shape[0]
    tiny = max(m, n) * torch.finfo(start.dtype).eps
    right, left = start.new_zeros(n, size + 1), start.new_zeros(m, size)
    B = start.new_zeros(size, size)
    right[:, 0] = start / torch.linalg.vector_norm(start)
    filled, products, restarts = 0, 0, 0
    while True:
        coupling = start.new_zeros(()).real
        while filled < size:
            image = forward(right[:, filled : filled + 1]).squeeze(1)
            image, inner = _project_out(image, left[:, :filled])
            B[:filled, filled] = inner
            length = torch.linalg.vector_norm(image)
            if float(length) <= tiny * float(B.abs().amax()):
                # A v lies in the span of the left vectors: any further direction has coupling zero
                length = torch.zeros_like(length)
                image = _unseen(left[:, :filled], generator)
            B[filled, filled] = length
            left[:, filled] = image / torch.linalg.vector_norm(image)
            image = adjoint(left[:, filled : filled + 1]).squeeze(1)
            products += 2
            if not bool(torch.isfinite(image).all()) or not bool(torch.isfinite(B).all()):
                raise NumericalError(f"svds: product {products} has NaN or Inf")
            filled += 1
            image, _ = _project_out(image, right[:, :filled])
            coupling = torch.linalg.vector_norm(image)
            if float(coupling) <= tiny * float(B.abs().amax()):
                coupling = torch.zeros_like(coupling)
                if filled == n:
                    break
                image = _unseen(right[:, :filled], generator)
            right[:, filled] = image / torch.linalg.vector_norm(image)
        X, S, Yh = torch.linalg.svd(B[:filled, :filled])
        residuals = coupling * X[-1].abs()
        settled = bool((residuals[:k] <= tol * S[0]).all())
        exhausted = filled == min(m, n) and float(coupling) <= tiny * float(S[0])
        if settled or exhausted or products >= limit:
            V = right[:, :filled] @ Yh.mH[:, :k]
            return left[:, :filled] @ X[:, :k], S[:k], V, settled or exhausted, restarts, products
        p = min(k + (size - k) // 2, size - 1)
        right[:, :p] = right[:, :filled] @ Yh.mH[:, :p]
        right[:, p] = right[:, filled]
        left[:, :p] = left[:, :filled] @ X[:, :p]
        B.zero_()
        B[range(p), range(p)] = S[:p].to(B.dtype)
        filled, restarts = p, restarts + 1


def _project_out(vector: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    inner = known.mH @ vector
    vector = vector - known @ inner
    again = known.mH @ vector
    return vector - known @ again, inner + again


def _unseen(known: Tensor, generator: Generator | None) -> Tensor:
    fresh = gaussian_columns(known.shape[0], 1, dtype=known.dtype, device=known.device, generator=generator)
    return _project_out(fresh.squeeze(1), known)[0]
