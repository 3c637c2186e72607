"""A low-rank approximation of a positive semi-definite operator from one random block, and its preconditioner.

Shapes: N order of A, L rank.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least, single_operator, square_operator, wide_dtype
from hesse.linalg._random import gaussian_columns
from hesse.linalg.memory import require_memory
from hesse.linalg.operator import LinearOperator

__all__ = ["Nystrom", "NystromPreconditioner", "nystrom", "nystrom_preconditioner"]


@dataclass(frozen=True, slots=True)
class Nystrom:
    """A ≈ U diag(eigenvalues) Uᴴ, never above A; and what was left out."""

    U: Tensor  # (N, L), orthonormal columns
    eigenvalues: Tensor  # (L,), falling, >= 0
    residual_trace: Tensor  # (), estimate of tr(A - U diag U^H), without bias but for one column less
    residual_standard_error: Tensor  # ()
    num_matvecs: int

    def preconditioner(self, shift: float) -> "NystromPreconditioner":
        """Approximate the inverse of A + shift · I, up to a factor.

        Parameters
        ----------
        shift : float
            μ > 0, in the units of A.

        Returns
        -------
        NystromPreconditioner
            To be handed to a solver as ``preconditioner``.
        """
        return NystromPreconditioner(self.U, self.eigenvalues, shift)


class NystromPreconditioner(LinearOperator):
    """P⁻¹ v = (λ_L + μ) U (Λ + μ)⁻¹ Uᴴ v + (v - U Uᴴ v), which brings the spectrum of A + μI close to λ_L + μ.

    Parameters
    ----------
    U : Tensor, shape (N, L)
        Orthonormal columns: approximate eigenvectors of A.
    eigenvalues : Tensor, shape (L,)
        Falling, >= 0; the last one, λ_L, stands for all that was left out.
    shift : float
        μ > 0, the multiple of the identity that A is solved with.

    Raises
    ------
    ArgumentError
        If ``shift <= 0``.
    ShapeError
        If the shapes do not fit together.

    References
    ----------
    Z. Frangella, J. A. Tropp, M. Udell (2023), SIAM J. Matrix Anal. Appl. 44(2), arXiv 2110.02820.
    """

    _fields: ClassVar[tuple[str, ...]] = ("U", "eigenvalues")

    def __init__(self, U: Tensor, eigenvalues: Tensor, shift: float) -> None:
        if not shift > 0:
            raise ArgumentError(f"NystromPreconditioner: expected shift > 0, got {shift}")
        if U.ndim != 2 or eigenvalues.shape != U.shape[1:]:
            raise ShapeError(
                f"NystromPreconditioner: expected U (n, l) and eigenvalues (l,), got {tuple(U.shape)} and "
                f"{tuple(eigenvalues.shape)}"
            )
        super().__init__((U.shape[0], U.shape[0]), U.dtype, U.device, is_psd=True)
        self.U = U
        self.eigenvalues = eigenvalues
        self.mu = float(shift)

    def _matmat(self, x: Tensor) -> Tensor:
        if self.U.shape[1] == 0:
            return x
        weights = (self.eigenvalues[-1] + self.mu) / (self.eigenvalues + self.mu) - 1
        return x + self.U @ (weights.unsqueeze(-1).to(x.dtype) * (self.U.mH @ x))


def nystrom(operator: LinearOperator | Tensor, rank: int = 50, *, generator: Generator | None = None) -> Nystrom:
    """Approximate A by (AΩ)(ΩᴴAΩ)⁻¹(AΩ)ᴴ for an orthonormal random N × L block Ω.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, positive semi-definite; an operator must declare it, a tensor is tested by the factorisation.
    rank : int, default 50
        L >= 1 products in one block; at most N are used. Fifty fit the effective dimension of most kernels.
    generator : torch.Generator, optional
        Source of Ω. Default: torch's global generator.

    Returns
    -------
    Nystrom
        The mean squared error in the trace norm is that of the best approximation of a somewhat smaller rank.
        ``residual_trace`` costs no product: it is the leave-one-out estimate of `xnystrace`.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack.
    ArgumentError
        If ``rank < 1``, or the operator is not declared positive semi-definite.
    NumericalError
        If the operator turns out to have negative eigenvalues.
    MemoryLimitError
        If 6 N L numbers would not fit.

    Notes
    -----
    One product with L columns, O(N L²) work, O(N L) memory. A shift of √N eps ‖AΩ‖ keeps the factorisation stable and
    is subtracted from the eigenvalues. Half precision is computed in float32 and ``U`` rounded back.

    References
    ----------
    Z. Frangella, J. A. Tropp, M. Udell (2023), SIAM J. Matrix Anal. Appl. 44(2), arXiv 2110.02820.
    """
    operator = _psd_operator("nystrom", operator)
    at_least("nystrom", "rank", rank, 1)
    require_memory("nystrom", operator, size=min(rank, operator.shape[0]))
    omega, images = _probe(operator, None, None, min(rank, operator.shape[0]), generator)
    return _from_probes(operator, omega, images)


def nystrom_preconditioner(
    operator: LinearOperator | Tensor,
    shift: float,
    *,
    initial_rank: int = 50,
    max_rank: int | None = None,
    generator: Generator | None = None,
) -> NystromPreconditioner:
    """Build a preconditioner for A + shift · I whose rank grows until it is good enough.

    The rank doubles until the smallest eigenvalue kept is at most 10 · shift (then about a constant number of conjugate
    gradient steps remains), or ``max_rank`` is reached. Products already made are kept.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, positive semi-definite, without the shift.
    shift : float
        μ > 0.
    initial_rank : int, default 50
        First rank tried.
    max_rank : int, optional
        Last rank tried; O(N · max_rank) memory. Default: the smaller of N and 1000.
    generator : torch.Generator, optional
        Source of the random block. Default: torch's global generator.

    Returns
    -------
    NystromPreconditioner
        With ``eigenvalues`` and ``U`` for inspection.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack.
    ArgumentError
        If ``shift <= 0``, ``initial_rank < 1``, or ``max_rank < initial_rank``.
    NumericalError
        If the operator turns out to have negative eigenvalues.

    References
    ----------
    Z. Frangella, J. A. Tropp, M. Udell (2023), SIAM J. Matrix Anal. Appl. 44(2), section 5, arXiv 2110.02820.
    """
    operator = _psd_operator("nystrom_preconditioner", operator)
    n = operator.shape[0]
    if not shift > 0:
        raise ArgumentError(f"nystrom_preconditioner: expected shift > 0, got {shift}")
    at_least("nystrom_preconditioner", "initial_rank", initial_rank, 1)
    if max_rank is not None:
        at_least("nystrom_preconditioner", "max_rank", max_rank, initial_rank)
    last = min(n, max_rank if max_rank is not None else max(1000, initial_rank))
    rank = min(initial_rank, last)
    omega, images = _probe(operator, None, None, rank, generator)
    while True:
        found = _from_probes(operator, omega, images)
        if rank == last or bool(found.eigenvalues[-1] <= 10 * shift):
            return found.preconditioner(shift)
        grown = min(2 * rank, last)
        omega, images = _probe(operator, omega, images, grown - rank, generator)
        rank = grown


def _psd_operator(call: str, operator: LinearOperator | Tensor) -> LinearOperator:
    if not isinstance(operator, Tensor) and not operator.is_psd:
        raise ArgumentError(
            f"{call}: {type(operator).__name__} is not declared positive semi-definite; construct it with is_psd=True "
            "if it is"
        )
    return single_operator(call, square_operator(call, operator, symmetric=True))


def _probe(
    operator: LinearOperator, omega: Tensor | None, images: Tensor | None, width: int, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    # further orthonormal columns, and their images; the old ones stay as they are
    wide = wide_dtype(operator.dtype)
    fresh = gaussian_columns(operator.shape[0], width, dtype=wide, device=operator.device, generator=generator)
    if omega is not None:
        for _ in range(2):  # twice is enough for orthogonality to rounding
            fresh = fresh - omega @ (omega.mH @ fresh)
    fresh = torch.linalg.qr(fresh).Q
    new_images = operator.matmat(fresh.to(operator.dtype)).to(wide)
    if omega is None or images is None:
        return fresh, new_images
    return torch.cat([omega, fresh], dim=1), torch.cat([images, new_images], dim=1)


def _from_probes(operator: LinearOperator, omega: Tensor, images: Tensor) -> Nystrom:
    n, rank = images.shape
    shift = n**0.5 * torch.finfo(images.dtype).eps * torch.linalg.matrix_norm(images)
    if bool(shift == 0):
        zero = images.real.new_zeros(rank)
        return Nystrom(omega.to(operator.dtype), zero, zero.sum(), zero.sum(), rank)
    images = images + shift * omega
    core = omega.mH @ images
    lower, failed = torch.linalg.cholesky_ex((core + core.mH) / 2)
    if int(failed) != 0 or not bool(torch.isfinite(lower).all()):
        raise NumericalError(
            f"nystrom: Ωᴴ A Ω is not positive definite: {type(operator).__name__} has negative eigenvalues, is not "
            "symmetric, or gives NaN; a Gauss-Newton or Fisher operator is positive semi-definite, a Hessian is not"
        )
    B = torch.linalg.solve_triangular(lower, images.mH, upper=False).mH
    U, values, _ = torch.linalg.svd(B, full_matrices=False)
    eigenvalues = (values.square() - shift).clamp_min(0)
    # leaving column i out of Ω leaves 1 / (ΩᴴAΩ)⁻¹_ii of A in its direction: see `xnystrace`
    identity = torch.eye(rank, dtype=core.dtype, device=core.device)
    alone = torch.linalg.solve_triangular(lower, identity, upper=False).abs().square().sum(0)
    missed = ((1 / alone - shift) * (n - rank + 1)).clamp_min(0)
    spread = missed.std() / rank**0.5 if rank > 1 else missed.new_full((), torch.inf)
    if rank == n:
        missed, spread = torch.zeros_like(missed), torch.zeros_like(spread)
    return Nystrom(U.to(operator.dtype), eigenvalues, missed.mean(), spread, rank)
