"""A few eigenpairs of a symmetric operator by thick-restart Lanczos, or near a shift by shift and invert.

Shapes: A is (N, N); K pairs asked for; P vectors in the basis.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError, SingularError
from hesse.linalg._arguments import at_least, single_operator, square_operator, wide_dtype
from hesse.linalg._random import gaussian_columns
from hesse.linalg.basic import Sparse
from hesse.linalg.eigen.result import EigenResult
from hesse.linalg.memory import require_memory
from hesse.linalg.operator import LinearOperator

__all__ = ["ThickRestart", "Which", "eigsh", "shift_inverse"]

Which = Literal["LM", "LA", "SA"]
_CHECK_EVERY = 5  # products between two looks at the Ritz values; a look costs O(P³)
_DENSE_ORDER = 2000  # up to here shift-invert factors a dense matrix: 32 MB in float64, about a second


@dataclass(frozen=True, slots=True)
class ThickRestart:
    """Where a run of `eigsh` stands after a product, and all that is needed to go on: pass it back as ``state``."""

    basis: Tensor  # (N, F + 1), orthonormal; the last column is the next to be multiplied
    T: Tensor  # (F, F), QᴴAQ of the first F columns
    coupling: Tensor  # (), length of what A maps the last of them to outside their span
    num_restarts: int
    num_matvecs: int
    num_kept: int  # leading columns that come from the last restart, not from a product since


def eigsh(
    operator: LinearOperator | Tensor,
    k: int = 6,
    *,
    which: Which = "LM",
    sigma: float | None = None,
    inverse: LinearOperator | Callable[[Tensor], Tensor] | None = None,
    tol: float | None = None,
    max_steps: int | None = None,
    basis_size: int | None = None,
    start: Tensor | None = None,
    state: ThickRestart | None = None,
    on_step: Callable[[ThickRestart], None] | None = None,
    verify: bool = True,
    generator: Generator | None = None,
) -> EigenResult:
    """Compute K eigenpairs of a symmetric operator by thick-restart Lanczos.

    A Krylov basis grows to P vectors; of its Ritz vectors the best are kept, the others dropped, and the basis grows
    again, until K pairs have converged. Vectors and recurrence are in float64 also for float32 products.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, symmetric (Hermitian).
    k : int, default 6
        1 <= K <= N.
    which : {"LM", "LA", "SA"}, default "LM"
        Largest magnitude, largest, or smallest eigenvalues; with ``sigma`` it refers to 1/(λ - sigma), so that "LM"
        finds those nearest to sigma. The smallest magnitude is ``sigma=0``.
    sigma : float, optional
        Turns shift and invert on: Lanczos on (A - sigma I)⁻¹. It must not be an eigenvalue; for the low end of a
        positive semi-definite operator take it a little below zero.
    inverse : LinearOperator or callable, optional
        How to apply (A - sigma I)⁻¹ to a block (N, B). Default: `shift_inverse`.
    tol : float, optional
        A pair has converged when its residual is at most tol times the Ritz value of largest magnitude. Default: 1e-10
        for float64 operators, 1e-5 otherwise.
    max_steps : int, optional
        Products at most before the final check, but K + 1 at least. Default: max(10 N, 1000).
    basis_size : int, optional
        P > K; more vectors, fewer products. Default: max(2 K + 1, 20), at most N.
    start : Tensor, shape (N,), optional
        First vector. Default: Gaussian.
    state : ThickRestart, optional
        Where an earlier run with the same arguments stopped: the numbers are those of one uninterrupted run.
    on_step : callable, optional
        Called with the state after every product but the final check, to save it or to show progress. Its tensors are
        views of memory that a later restart overwrites.
    verify : bool, default True
        Whether K further products, in one block, give the residuals. False takes those of the recurrence, which leave
        out what rounding, that of the products above all, adds; with ``sigma`` they are always made.
    generator : torch.Generator, optional
        Source of the start. Default: torch's global generator.

    Returns
    -------
    EigenResult
        Eigenvalues rising; ``num_steps`` counts restarts. Of an eigenvalue of multiplicity p a single starting vector
        is sure to find one copy only; use `lobpcg` with K >= p where that matters.

    Raises
    ------
    ShapeError
        If the operator is not square or a stack, or ``start`` does not fit it.
    ArgumentError
        If the operator is not symmetric, an argument is out of range, or ``inverse`` comes without ``sigma``.
    MemoryLimitError
        If N (2 P + 4) numbers in float64 would not fit.
    NumericalError
        If a product has NaN or Inf, or the operator is declared symmetric and is not.

    Notes
    -----
    O(N P) memory; O(N P²) work a restart beside the products.

    References
    ----------
    K. Wu, H. Simon (2000), SIAM J. Matrix Anal. Appl. 22(2).
    """
    # the first two products of the recurrence tell whether A is symmetric; those of an inverse do not
    operator = single_operator(
        "eigsh", square_operator("eigsh", operator, symmetric=True, tested=sigma is not None or state is not None)
    )
    n = operator.shape[0]
    if not 1 <= k <= n:
        raise ArgumentError(f"eigsh: expected 1 <= k <= {n}, got {k}")
    if which not in ("LM", "LA", "SA"):
        raise ArgumentError(f"eigsh: which must be LM, LA or SA, got {which!r}; for the smallest magnitude, sigma=0")
    if inverse is not None and sigma is None:
        raise ArgumentError("eigsh: inverse needs sigma, the shift that it belongs to")
    precision = tol if tol is not None else (1e-10 if operator.dtype in (torch.float64, torch.complex128) else 1e-5)
    at_least("eigsh", "tol", precision, 0)
    size = basis_size if basis_size is not None else max(2 * k + 1, 20)
    if size <= k and size < n:
        raise ArgumentError(f"eigsh: expected basis_size > k = {k}, got {size}")
    size = min(size, n)
    limit = max_steps if max_steps is not None else max(10 * n, 1000)
    at_least("eigsh", "max_steps", limit, 1)
    require_memory("eigsh", operator, size=size)
    work = torch.complex128 if operator.dtype.is_complex else torch.float64
    if state is not None:
        if start is not None:
            raise ArgumentError("eigsh: start and state exclude each other; the state holds its own vectors")
        if state.basis.shape[0] != n or not 1 <= state.basis.shape[1] <= size + 1 or state.basis.dtype != work:
            raise ShapeError(
                f"eigsh: the state has a basis {tuple(state.basis.shape)} of {state.basis.dtype}, this call needs "
                f"({n}, at most {size + 1}) of {work}"
            )
        first = state.basis[:, 0]
    elif start is None:
        first = gaussian_columns(n, 1, dtype=work, device=operator.device, generator=generator).squeeze(1)
    elif start.shape != (n,) or start.device != operator.device:
        raise ShapeError(f"eigsh: expected start of shape ({n},) on {operator.device}, got {tuple(start.shape)}")
    else:
        first = start.detach().to(work)
    if not float(torch.linalg.vector_norm(first)) > 0:
        raise ArgumentError("eigsh: start is zero or not finite")

    if sigma is None:
        apply_fn: Callable[[Tensor], Tensor] = operator.matmat
    elif inverse is None:
        apply_fn = shift_inverse(operator, sigma)
    else:
        apply_fn = inverse.matmat if isinstance(inverse, LinearOperator) else inverse

    def multiply(vector: Tensor) -> Tensor:
        return apply_fn(vector.to(operator.dtype).unsqueeze(1)).squeeze(1).to(work)

    unit = torch.finfo(operator.dtype).eps
    # q₁ carries the rounding of Aq₀, which a difference of two near operators enlarges
    symmetric_to = max(unit**0.5, 4 * n**0.5 * unit) if sigma is None else math.inf
    with torch.no_grad():
        found = _thick_restart(
            multiply, first, k, which, precision, size, limit, generator, state, on_step, symmetric_to
        )
        values, vectors, residuals, products = found.eigenvalues, found.eigenvectors, found.residuals, found.num_matvecs
        if verify or sigma is not None:
            # eigenvalues and residuals in terms of A itself, whatever the Ritz values were of
            images = operator.matmat(vectors.to(operator.dtype)).to(work)
            values = (vectors.conj() * images).sum(0).real
            residuals = torch.linalg.vector_norm(images - vectors * values, dim=0)
            products += k
        order = values.argsort()
        values, vectors, residuals = values[order], vectors[:, order], residuals[order]
    real = wide_dtype(operator.dtype).to_real() if operator.dtype.is_complex else wide_dtype(operator.dtype)
    return EigenResult(
        values.to(real), vectors.to(operator.dtype), residuals.to(real), found.converged, found.num_steps, products
    )


def shift_inverse(operator: LinearOperator, sigma: float) -> Callable[[Tensor], Tensor]:
    """Factor A - sigma I once and return the function that solves with it.

    The rule: the structure's own exact solve where there is one; a sparse LU factorisation by SciPy for a `Sparse`
    operator on the CPU; a dense LU factorisation for N <= 2000. Otherwise the caller must bring a solver.

    Parameters
    ----------
    operator : LinearOperator, shape (N, N)
        A.
    sigma : float
        The shift.

    Returns
    -------
    callable
        Maps (N, B) to (N, B).

    Raises
    ------
    ArgumentError
        If none of these applies.
    SingularError
        If sigma is an eigenvalue.
    """
    shifted = operator.shift(-sigma)
    n = operator.shape[0]
    if shifted.has_direct_solve:
        return shifted.solve
    if isinstance(operator, Sparse) and operator.device.type == "cpu":
        return _sparse_factors(operator, sigma)
    if n > _DENSE_ORDER:
        raise ArgumentError(
            f"shift_inverse: {type(operator).__name__} of order {n} has no exact solve and is too large to factor "
            f"(limit {_DENSE_ORDER}); pass inverse=, a function that solves (A - sigma I) x = b, say with minres"
        )
    dense = shifted.to_dense().detach().to(wide_dtype(operator.dtype))
    factors, pivots, failed = torch.linalg.lu_factor_ex(dense)
    if int(failed) != 0:
        raise SingularError(f"shift_inverse: sigma = {sigma} is an eigenvalue; move it a little")
    return lambda block: torch.linalg.lu_solve(factors, pivots, block.to(dense.dtype)).to(block.dtype)


def _sparse_factors(operator: Sparse, sigma: float) -> Callable[[Tensor], Tensor]:
    import numpy as np
    import scipy.sparse
    import scipy.sparse.linalg

    n = operator.shape[0]
    kind = np.complex128 if operator.dtype.is_complex else np.float64
    matrix = scipy.sparse.csr_array(
        (
            operator.values.detach().to(torch.complex128 if operator.dtype.is_complex else torch.float64).numpy(),
            operator.col.numpy(),
            operator.crow.numpy(),
        ),
        shape=operator.shape,
    )
    try:
        factors = scipy.sparse.linalg.splu(scipy.sparse.csc_array(matrix - sigma * scipy.sparse.eye_array(n)))
    except RuntimeError as error:
        raise SingularError(f"shift_inverse: sigma = {sigma} is an eigenvalue; move it a little") from error

    def solve(block: Tensor) -> Tensor:
        return torch.from_numpy(factors.solve(block.resolve_conj().numpy().astype(kind))).to(block.dtype)

    return solve


def _thick_restart(
    multiply: Callable[[Tensor], Tensor],
    start: Tensor,
    k: int,
    which: Which,
    tol: float,
    size: int,
    limit: int,
    generator: Generator | None,
    state: ThickRestart | None,
    on_step: Callable[[ThickRestart], None] | None,
    symmetric_to: float,
) -> EigenResult:
    n = start.shape[0]
    eps = torch.finfo(start.dtype).eps
    basis = start.new_zeros(size + 1, n).mT  # column after column: the sweeps read the filled ones alone
    T = start.new_zeros(size, size)
    basis[:, 0] = start / torch.linalg.vector_norm(start)
    filled, products, restarts, kept = 0, 0, 0, 0
    coupling = start.new_zeros(()).real
    if state is not None:
        filled, products, restarts, kept = len(state.T), state.num_matvecs, state.num_restarts, state.num_kept
        basis[:, : filled + 1], T[:filled, :filled] = state.basis, state.T
        coupling = state.coupling

    def enough() -> bool:
        # a look in between, so that a large basis is not filled for nothing; not where the recurrence broke down, as a
        # further copy of an eigenvalue may lie outside the invariant subspace
        due = filled % _CHECK_EVERY == 0 and filled > max(k, kept) and float(coupling) > 0
        return due and _ritz(T[:filled, :filled], coupling, k, which, tol)[3]

    while True:
        while filled < size and (products < limit or filled <= k) and not enough():
            image = multiply(basis[:, filled])
            products += 1
            if not bool(torch.isfinite(image).all()):
                raise NumericalError(f"eigsh: product {products} has NaN or Inf")
            known = basis[:, : filled + 1]
            inner = known.mH @ image
            if products == 2 and filled == 1 and float(coupling) > 0:
                sizes = float(T[0, 0].abs() + coupling + torch.linalg.vector_norm(image))  # of A q₀ and of A q₁
                _require_symmetric(float((inner[0] - coupling).abs()), sizes, symmetric_to)
            image = image - known @ inner
            again = known.mH @ image
            image, inner = image - known @ again, inner + again
            # column of T by its Hermitian mirror; the exact zeros of the recurrence come out as rounding and stay
            T[: filled + 1, filled] = inner
            T[filled, :filled] = inner[:filled].conj()
            T[filled, filled] = inner[filled].real
            filled += 1
            coupling = torch.linalg.vector_norm(image)
            if float(coupling) <= n * eps * float(T[:filled, :filled].abs().amax()):
                coupling = torch.zeros_like(coupling)
                if filled == n:
                    break
                image = _unseen(basis[:, :filled], generator)
            basis[:, filled] = image / torch.linalg.vector_norm(image)
            if on_step is not None:
                seen = ThickRestart(basis[:, : filled + 1], T[:filled, :filled], coupling, restarts, products, kept)
                on_step(seen)
        values, vectors, residuals, settled = _ritz(T[:filled, :filled], coupling, k, which, tol)
        if settled or filled == n or products >= limit:
            converged = settled or filled == n
            return EigenResult(values[:k], basis[:, :filled] @ vectors[:, :k], residuals, converged, restarts, products)
        # keep half of the room for Ritz vectors: enough to hold the unwanted neighbours back
        kept = min(max(k + (size - k) // 2, k), size - 1)
        basis[:, :kept] = basis[:, :filled] @ vectors[:, :kept]
        basis[:, kept] = basis[:, filled]
        T.zero_()
        T[range(kept), range(kept)] = values[:kept].to(T.dtype)
        filled, restarts = kept, restarts + 1


def _require_symmetric(gap: float, size: float, limit: float) -> None:
    # the gap is that of q₀ᴴAq₁ to q₁ᴴAq₀ = ‖Aq₀ - αq₀‖, for one random q₀
    if gap > limit * size:
        raise NumericalError(
            f"eigsh: the operator is declared symmetric, but <x, Ay> and <Ax, y> differ by {gap / size:.1e} of their "
            "size; construct it with is_symmetric=False, or symmetrise it"
        )


def _ritz(T: Tensor, coupling: Tensor, k: int, which: Which, tol: float) -> tuple[Tensor, Tensor, Tensor, bool]:
    # Ritz values and the coefficients of their vectors, the preferred first; residuals of the first k, and whether they
    # have converged
    values, vectors = torch.linalg.eigh(T)
    order = values.abs().argsort(descending=True) if which == "LM" else values.argsort(descending=which == "LA")
    residuals = coupling * vectors[-1, order[:k]].abs()
    return values[order], vectors[:, order], residuals, bool((residuals <= tol * values.abs().max()).all())


def _unseen(known: Tensor, generator: Generator | None) -> Tensor:
    fresh = gaussian_columns(known.shape[0], 1, dtype=known.dtype, device=known.device, generator=generator).squeeze(1)
    for _ in range(2):
        fresh = fresh - known @ (known.mH @ fresh)
    return fresh
