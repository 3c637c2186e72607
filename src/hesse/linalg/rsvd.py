"""The leading singular triplets of a matrix, a stack of matrices or an operator, by products with random blocks.

Shapes: A is (..., M, N); K rank asked for; L = K + oversampling columns of the random block.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentTypeError, ShapeError
from hesse.linalg._arguments import at_least, wide_dtype
from hesse.linalg._random import gaussian_columns, sign_columns
from hesse.linalg.operator import LinearOperator
from hesse.linalg.orthonormal import range_basis, thin_qr

__all__ = ["TruncatedSVD", "rsvd"]

_ERROR_PROBES = 8  # extra products with an operator, to see how much of it was left out


@dataclass(frozen=True, slots=True)
class TruncatedSVD:
    """A ≈ U diag(S) Vᴴ, and how much of A that is."""

    U: Tensor  # (..., M, K)
    S: Tensor  # (..., K), falling
    V: Tensor  # (..., N, K)
    captured: Tensor  # (...), ‖A_K‖²_F / ‖A‖²_F in [0, 1]; 1 for a zero matrix
    captured_standard_error: Tensor  # (...), zero where ‖A‖_F is known exactly
    num_matvecs: int  # products with A and with its adjoint together


def rsvd(
    matrix: Tensor | LinearOperator,
    rank: int,
    *,
    num_power_steps: int = 2,
    oversampling: int = 8,
    generator: Generator | None = None,
) -> TruncatedSVD:
    """Compute the leading ``rank`` singular triplets, A ≈ U diag(S) Vᴴ, by a randomised range finder.

    With Ω a Gaussian N × L block, Q = orth((A Aᴴ)^q A Ω) and the singular value decomposition of Qᴴ A gives the
    triplets. The error is about that of the best rank-L approximation, up to a factor (N/L)^(1/(4q+2)) in the norm.

    Parameters
    ----------
    matrix : Tensor, shape (..., M, N), or LinearOperator
        A, real or complex. Half precision is computed in float32 and the result rounded back.
    rank : int
        K >= 1. At most min(M, N) triplets exist, and at most so many are returned.
    num_power_steps : int, default 2
        q, multiplications by A Aᴴ, orthonormalised in between. Two make the result as good as exact unless the
        spectrum is nearly flat; 0 is enough only where singular values fall fast.
    oversampling : int, default 8
        Further columns of Ω; they raise accuracy for next to nothing. If K + oversampling >= min(M, N), a tensor gets
        a full decomposition instead, which is then exact and no dearer.
    generator : torch.Generator, optional
        Source of Ω. All matrices of a stack share one Ω, so a stack cut in pieces gives the same numbers. Default:
        torch's global generator.

    Returns
    -------
    TruncatedSVD
        ``captured`` is exact for tensors; for operators it is estimated from 8 more products, with its standard error.

    Raises
    ------
    ArgumentError
        If ``rank < 1``, ``oversampling < 0`` or ``num_power_steps < 0``.
    ArgumentTypeError
        If ``matrix`` is neither a floating tensor nor an operator.
    ShapeError
        If it has fewer than two dimensions or an empty one.

    Notes
    -----
    Cost: 2(q + 1) products with blocks of L columns, O((M + N) L²) for the factorisations (`thin_qr` at the end,
    `range_basis` in between), O((M + N) L) memory.
    Differentiable, with the usual singular-value gradients (they need distinct singular values).

    References
    ----------
    N. Halko, P.-G. Martinsson, J. A. Tropp (2011), SIAM Review 53(2), arXiv 0909.4061.
    """
    at_least("rsvd", "rank", rank, 1)
    at_least("rsvd", "num_power_steps", num_power_steps, 0)
    at_least("rsvd", "oversampling", oversampling, 0)
    shape = _matrix_shape(matrix)
    dtype = matrix.dtype
    kept = min(rank, *shape)
    width = min(rank + oversampling, *shape)
    if isinstance(matrix, Tensor):
        dense = matrix.to(wide_dtype(dtype))
        if width == min(shape):
            U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
            num_matvecs = shape[1]
        else:
            U, S, Vh = _range_svd(dense, shape, width, num_power_steps, generator)
            num_matvecs = (2 * num_power_steps + 2) * width
        U, S, V = U[..., :kept], S[..., :kept], Vh.mH[..., :kept]
        captured, error = _captured_of_tensor(dense, S)
    else:
        U, S, Vh = _range_svd(matrix, shape, width, num_power_steps, generator)
        U, S, V = U[..., :kept], S[..., :kept], Vh.mH[..., :kept]
        captured, error = _captured_of_operator(matrix, U, S, V, generator)
        num_matvecs = (2 * num_power_steps + 2) * width + _ERROR_PROBES
    real = dtype.to_real() if dtype.is_complex else dtype
    return TruncatedSVD(U.to(dtype), S.to(real), V.to(dtype), captured.to(real), error.to(real), num_matvecs)


def _matrix_shape(matrix: Tensor | LinearOperator) -> tuple[int, int]:
    if isinstance(matrix, LinearOperator):
        shape = matrix.shape
    elif isinstance(matrix, Tensor):
        if not (matrix.is_floating_point() or matrix.is_complex()):
            raise ArgumentTypeError(
                f"rsvd: expected a floating or complex tensor, got {matrix.dtype}; convert it first"
            )
        if matrix.ndim < 2:
            raise ShapeError(f"rsvd: expected a matrix (..., m, n), got shape {tuple(matrix.shape)}")
        shape = (matrix.shape[-2], matrix.shape[-1])
    else:
        raise ArgumentTypeError(f"rsvd: expected a tensor or a LinearOperator, got {type(matrix).__name__}")
    if min(shape) == 0:
        raise ShapeError(f"rsvd: expected a matrix with rows and columns, got shape {shape}")
    return shape


def _range_svd(
    matrix: Tensor | LinearOperator,
    shape: tuple[int, int],
    width: int,
    num_power_steps: int,
    generator: Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = wide_dtype(matrix.dtype)

    def forward(block: Tensor) -> Tensor:
        return (matrix @ block.to(matrix.dtype)).to(wide)

    def adjoint(block: Tensor) -> Tensor:
        block = block.to(matrix.dtype)
        # (QᴴA)ᴴ, not AᴴQ: a matrix stored by rows is read in its order
        return ((block.mH @ matrix).mH if isinstance(matrix, Tensor) else matrix.rmatmat(block)).to(wide)

    # one name for the block throughout, so that no earlier one is kept
    block_ML = forward(gaussian_columns(shape[1], width, dtype=wide, device=matrix.device, generator=generator))
    for _ in range(num_power_steps):  # in between only the span counts
        block_ML = forward(range_basis(adjoint(range_basis(block_ML))))
    block_ML = thin_qr(block_ML)[0]
    # QR first: the SVD then runs on an L x L triangle, not on an L x N block
    right_NL, triangle_LL = thin_qr(adjoint(block_ML))
    left, S, right_h = torch.linalg.svd(triangle_LL.mH)
    return block_ML @ left, S, right_h @ right_NL.mH


def _captured_of_tensor(dense: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.linalg.matrix_norm(dense).square()
    kept = S.square().sum(-1)
    ratio = torch.where(total > 0, kept / torch.where(total > 0, total, torch.ones_like(total)), torch.ones_like(total))
    return ratio.clamp(max=1.0), torch.zeros_like(ratio)


def _captured_of_operator(
    operator: LinearOperator, U: Tensor, S: Tensor, V: Tensor, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    # U diag(S) V^H is a projection of A, so what was left out, R = A - U diag(S) V^H, is orthogonal to it:
    # |A|^2 = |S|^2 + |R|^2, and E|Rz|^2 = |R|^2 for sign vectors z
    signs = sign_columns(
        operator.shape[1], _ERROR_PROBES, dtype=operator.dtype, device=operator.device, generator=generator
    )
    missed = (operator @ signs).to(U.dtype) - U @ (S.unsqueeze(-1) * (V.mH @ signs.to(U.dtype)))
    samples = torch.linalg.vector_norm(missed, dim=-2).square()
    kept, left_out = S.square().sum(-1), samples.mean(-1)
    spread = samples.std(-1) / _ERROR_PROBES**0.5
    total = kept + left_out
    safe = torch.where(total > 0, total, torch.ones_like(total))
    captured = torch.where(total > 0, kept / safe, torch.ones_like(total))
    return captured, kept * spread / safe.square()
