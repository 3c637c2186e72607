"""Estimates of diag(A) from products with A (and Aᴴ) alone.   Shapes: N order of A, K random columns."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError
from hesse.linalg._arguments import at_least, single_operator, square_operator, wide_dtype
from hesse.linalg._leave_one_out import probe_range
from hesse.linalg._random import sign_columns
from hesse.linalg.operator import LinearOperator

__all__ = ["DiagonalEstimate", "diagonal", "hutchinson_diagonal", "xdiag"]


@dataclass(frozen=True, slots=True)
class DiagonalEstimate:
    """A diagonal with the spread that sampling left in each entry."""

    value: Tensor  # (..., N); float32 if the operator is in half precision
    standard_error: Tensor  # (..., N), real
    num_matvecs: int


def hutchinson_diagonal(
    operator: LinearOperator | Tensor,
    num_probes: int = 100,
    *,
    chunk_size: int | None = None,
    generator: Generator | None = None,
) -> DiagonalEstimate:
    """Average z ⊙ Az over random sign vectors z: unbiased, and exact for diagonal A.

    The variance of entry i is the squared norm of the rest of row i, divided by K.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (..., N, N)
        A, in any floating dtype; it need not be symmetric. Matrices of a stack share the probes.
    num_probes : int, default 100
        K >= 2 products with A.
    chunk_size : int, optional
        Probes to a product, O(N · chunk_size) memory; it does not change the numbers drawn. Default: all at once.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.

    Returns
    -------
    DiagonalEstimate
        Differentiable where the products are.

    Raises
    ------
    ShapeError
        If the operator is not square.
    ArgumentError
        If ``num_probes < 2``.

    References
    ----------
    C. Bekas, E. Kokiopoulou, Y. Saad (2007), Appl. Numer. Math. 57.
    """
    operator = square_operator("hutchinson_diagonal", operator)
    at_least("hutchinson_diagonal", "num_probes", num_probes, 2)
    if chunk_size is not None:
        at_least("hutchinson_diagonal", "chunk_size", chunk_size, 1)
    n, wide = operator.shape[0], wide_dtype(operator.dtype)
    mean = torch.zeros(*operator.batch_shape, n, dtype=wide, device=operator.device)
    squares = torch.zeros_like(mean.real)
    size, seen = chunk_size or num_probes, 0
    while seen < num_probes:
        width = min(size, num_probes - seen)
        signs = sign_columns(n, width, dtype=operator.dtype, device=operator.device, generator=generator)
        samples = signs.to(wide) * operator.matmat(signs).to(wide)
        # running mean and sum of squared deviations, merged chunk by chunk: no cancellation, O(N) memory
        inner = samples.mean(-1)
        gap, total = inner - mean, seen + width
        squares = (
            squares
            + (samples - inner.unsqueeze(-1)).abs().square().sum(-1)
            + gap.abs().square() * (seen * width / total)
        )
        mean = mean + gap * (width / total)
        seen = total
    return DiagonalEstimate(mean, (squares / (num_probes - 1) / num_probes).sqrt(), num_probes)


def xdiag(
    operator: LinearOperator | Tensor, num_matvecs: int = 100, *, generator: Generator | None = None
) -> DiagonalEstimate:
    """Estimate the diagonal so that every product with A serves as range finder and as probe (XDiag).

    With Ω of K = m/2 sign columns, each column ω in turn is left out: diag(Q₋Q₋ᴴA) exactly, where Q₋ spans A times the
    others, plus ω ⊙ (I - Q₋Q₋ᴴ) A ω. The answer is the mean of the K estimates.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A, with its adjoint; it need not be symmetric.
    num_matvecs : int, default 100
        m >= 4 products, an even number is used: m/2 with A, m/2 with Aᴴ.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.

    Returns
    -------
    DiagonalEstimate
        The standard error is the spread of the K estimates over √K. If A Ω has dependent columns, the range found is
        used whole and the remaining products probe what lies outside. If m/2 >= N, the diagonal is read off with N
        products.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack.
    ArgumentError
        If ``num_matvecs < 4``.

    References
    ----------
    E. N. Epperly, J. A. Tropp, R. J. Webber (2024), SIAM J. Matrix Anal. Appl. 45(1), arXiv 2301.07825.
    """
    operator = single_operator("xdiag", square_operator("xdiag", operator))
    at_least("xdiag", "num_matvecs", num_matvecs, 4)
    n, k, wide = operator.shape[0], num_matvecs // 2, wide_dtype(operator.dtype)
    if k >= n:
        return _exact(operator)
    omega_NK = sign_columns(n, k, dtype=operator.dtype, device=operator.device, generator=generator)
    found = probe_range(operator.matmat(omega_NK).to(wide))
    Q, R, S = found.Q, found.R, found.S
    Z = operator.rmatmat(Q.to(operator.dtype)).to(wide)
    on_range = (Q * Z.conj()).sum(1)
    if S is None:
        left = max(2, k - Q.shape[1])
        signs = sign_columns(n, left, dtype=operator.dtype, device=operator.device, generator=generator)
        images = operator.matmat(signs).to(wide)
        samples = on_range.unsqueeze(1) + signs * (images - Q @ (Q.mH @ images))
        used = k + Q.shape[1] + left
    else:
        QS, ZS = Q @ S, Z @ S
        samples = on_range.unsqueeze(1) - QS * ZS.conj() + omega_NK * QS * (S.conj() * R).sum(0)
        used = 2 * k
    spread = (samples - samples.mean(1, keepdim=True)).abs().square().sum(1)
    count = samples.shape[1]
    return DiagonalEstimate(samples.mean(1), (spread / (count - 1) / count).sqrt(), used)


def diagonal(
    operator: LinearOperator | Tensor,
    num_matvecs: int = 100,
    *,
    method: str = "auto",
    generator: Generator | None = None,
) -> DiagonalEstimate:
    """Take the diagonal by the method named, or by the rule below.

    Parameters
    ----------
    operator : LinearOperator or Tensor, shape (N, N)
        A.
    num_matvecs : int, default 100
        Products allowed.
    method : {"auto", "exact", "hutchinson", "xdiag"}, default "auto"
        "auto" reads the diagonal where N <= num_matvecs, else takes "xdiag"; on a flat spectrum, or without an
        adjoint, "hutchinson" is the better choice.
    generator : torch.Generator, optional
        Source of the signs. Default: torch's global generator.

    Returns
    -------
    DiagonalEstimate
        Its ``standard_error`` is zero where the diagonal is exact.

    Raises
    ------
    ShapeError
        If the operator is not square, or a stack with "xdiag".
    ArgumentError
        If the method is unknown, or ``num_matvecs`` too small for it.
    """
    operator = square_operator("diagonal", operator)
    if method == "auto":
        method = "exact" if operator.shape[0] <= num_matvecs else "xdiag"
    if method == "exact":
        return _exact(operator)
    if method == "hutchinson":
        return hutchinson_diagonal(operator, num_matvecs, generator=generator)
    if method == "xdiag":
        return xdiag(operator, num_matvecs, generator=generator)
    raise ArgumentError(f"diagonal: method must be auto, exact, hutchinson or xdiag; got {method!r}")


def _exact(operator: LinearOperator) -> DiagonalEstimate:
    value = operator.diagonal().to(wide_dtype(operator.dtype))
    return DiagonalEstimate(value, torch.zeros_like(value.real), operator.shape[0])
