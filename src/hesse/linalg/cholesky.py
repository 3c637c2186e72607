"""Cholesky factors that do not fail at rounding, and that follow small changes of the matrix in O(n²).

Shapes: A is (..., N, N), L its lower factor, A = L Lᴴ.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError, SingularError
from hesse.linalg._arguments import at_least, wide_dtype

__all__ = ["JitteredCholesky", "cholesky_downdate", "cholesky_update", "safe_cholesky"]


@dataclass(frozen=True, slots=True)
class JitteredCholesky:
    """L with L Lᴴ = A + jitter · I."""

    L: Tensor  # (..., N, N), lower triangular
    jitter: Tensor  # (...), what was added to the diagonal; 0 where A was positive definite by itself


def safe_cholesky(
    matrix: Tensor, *, jitter: float = 1e-8, growth: float = 10.0, max_jitter: float = 1e-3, relative: bool = True
) -> JitteredCholesky:
    """Factor A + jitter · I with the smallest jitter, out of 0, j, 10 j, …, that makes it positive definite.

    Parameters
    ----------
    matrix : Tensor, shape (..., N, N)
        A, symmetric (Hermitian); only the lower triangle is read. Each matrix of a stack gets its own jitter.
    jitter : float, default 1e-8
        First jitter to try after none at all; float32 rounding needs about 1e-6.
    growth : float, default 10.0
        Factor from one try to the next.
    max_jitter : float, default 1e-3
        The last jitter that still passes as rounding; beyond it the matrix is another one.
    relative : bool, default True
        Whether jitters are multiples of the mean of A's diagonal, else in the units of A.

    Returns
    -------
    JitteredCholesky
        Differentiable with respect to A; the jitter counts as a constant. Half precision is factored in float32.

    Raises
    ------
    ShapeError
        If the matrix is not square.
    ArgumentError
        If an argument is out of range.
    SingularError
        If the largest jitter does not suffice, or A has NaN or Inf.
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ShapeError(f"safe_cholesky: expected square matrices, got shape {tuple(matrix.shape)}")
    if not 0 < jitter <= max_jitter:
        raise ArgumentError(f"safe_cholesky: expected 0 < jitter <= max_jitter = {max_jitter}, got {jitter}")
    if not growth > 1:
        raise ArgumentError(f"safe_cholesky: expected growth > 1, got {growth}")
    work = matrix.to(wide_dtype(matrix.dtype))
    diagonal = work.diagonal(dim1=-2, dim2=-1).real
    size = diagonal.detach().mean(-1).clamp_min(0) if relative else torch.ones_like(diagonal[..., 0]).detach()
    if not bool(torch.isfinite(work.detach()).all()):
        raise SingularError("safe_cholesky: the matrix has NaN or Inf")
    lower, failed = torch.linalg.cholesky_ex(work)
    added = torch.zeros_like(size)
    amount, tried = jitter, 0.0
    eye = torch.eye(work.shape[-1], dtype=work.dtype, device=work.device)
    while bool((failed != 0).any()):
        if amount > max_jitter * (1 + 1e-9):
            least = float(torch.linalg.eigvalsh(work.detach()).min())
            raise SingularError(
                f"safe_cholesky: not positive definite even with jitter {tried:.1e}"
                f"{' of the mean diagonal' if relative else ''}; the smallest eigenvalue is {least:.3e}"
            )
        added = torch.where(failed != 0, amount * size, added)
        lower, failed = torch.linalg.cholesky_ex(work + added[..., None, None] * eye)
        tried, amount = amount, amount * growth
    return JitteredCholesky(lower.to(matrix.dtype), added)


def cholesky_update(L: Tensor, vectors: Tensor) -> Tensor:
    """Factor A + V Vᴴ from the factor of A, without forming either.

    Parameters
    ----------
    L : Tensor, shape (..., N, N)
        Lower factor of A, with a positive diagonal.
    vectors : Tensor, shape (..., N) or (..., N, K)
        V; K columns cost K times as much.

    Returns
    -------
    Tensor, shape (..., N, N)
        A new factor; differentiable. O(N²) a column, in a few whole-array operations.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    References
    ----------
    P. E. Gill, G. H. Golub, W. Murray, M. A. Saunders (1974), Math. Comp. 28(126).
    """
    for column in _columns("cholesky_update", L, vectors):
        L, _ = _rank_one(L, column, 1.0)
    return L


def cholesky_downdate(L: Tensor, vectors: Tensor) -> Tensor:
    """Factor A - V Vᴴ from the factor of A.

    Parameters
    ----------
    L : Tensor, shape (..., N, N)
        Lower factor of A, with a positive diagonal.
    vectors : Tensor, shape (..., N) or (..., N, K)
        V; one column after the other.

    Returns
    -------
    Tensor, shape (..., N, N)
        A new factor. A downdate that nearly loses definiteness loses digits: about eps / (1 - vᴴA⁻¹v) of them.

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    SingularError
        If A - V Vᴴ is not positive definite to rounding: refactor from scratch then.

    References
    ----------
    P. E. Gill, G. H. Golub, W. Murray, M. A. Saunders (1974), Math. Comp. 28(126).
    """
    n = L.shape[-1]
    for column in _columns("cholesky_downdate", L, vectors):
        L, left = _rank_one(L, column, -1.0)
        if not bool((left > n * torch.finfo(L.dtype).eps).all()):
            raise SingularError(
                f"cholesky_downdate: the matrix would lose definiteness: 1 - vᴴA⁻¹v = {float(left.min()):.2e}; refactor"
            )
    return L


def _columns(call: str, L: Tensor, vectors: Tensor) -> list[Tensor]:
    if L.ndim < 2 or L.shape[-1] != L.shape[-2]:
        raise ShapeError(f"{call}: expected a square factor, got shape {tuple(L.shape)}")
    if vectors.ndim >= 1 and vectors.shape == L.shape[:-1]:
        return [vectors]
    if vectors.ndim == L.ndim and vectors.shape[:-1] == L.shape[:-1]:
        return list(vectors.unbind(-1))
    raise ShapeError(
        f"{call}: a factor {tuple(L.shape)} needs vectors {tuple(L.shape[:-1])} or {(*L.shape[:-1], 'k')}, got "
        f"{tuple(vectors.shape)}"
    )


def _rank_one(L: Tensor, vector: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    # A ± v vᴴ = L (I ± w wᴴ) Lᴴ with w = L⁻¹v. The factor K of the middle has a closed form: with running sums
    # t_j = 1 ± Σ_{i<=j} |w_i|², K_jj = √(t_j / t_{j-1}) and K_ij = ± w_i w̄_j / √(t_j t_{j-1}) below. Hence column j of
    # L K needs only the sum of later columns of L times w: a reversed cumulative sum
    at_least("cholesky", "order", L.shape[-1], 1)
    w = torch.linalg.solve_triangular(L, vector.unsqueeze(-1), upper=False).squeeze(-1)
    t = 1 + sign * w.abs().square().cumsum(-1)
    before = torch.cat([torch.ones_like(t[..., :1]), t[..., :-1]], dim=-1)
    least = t[..., -1]
    safe, safe_before = t.clamp_min(torch.finfo(t.dtype).tiny), before.clamp_min(torch.finfo(t.dtype).tiny)
    weighted = L * w.unsqueeze(-2)
    later = weighted.flip(-1).cumsum(-1).flip(-1) - weighted
    coefficient = sign * w.conj() / (safe * safe_before).sqrt()
    return (L * (safe / safe_before).sqrt().unsqueeze(-2) + later * coefficient.unsqueeze(-2)).tril(), least
