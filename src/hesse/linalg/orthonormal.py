"""Orthonormal bases of tall blocks by Cholesky factors of their Gram matrices, Householder where those would not do.

    G = BᴴB = RᴴR,   Q = B R⁻¹

Matrix products and one small factorisation take the place of column after column of reflections. A stack goes through
in one batch, and each product is one stretch of parallel work, which matters on a machine whose cores are busy.
Shapes: B is (..., N, L) with N >= L.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.errors import ArgumentTypeError, ShapeError

__all__ = ["range_basis", "thin_qr"]

_LOST = 0.5  # of QᴴQ - I in Frobenius norm: below it Q has a condition number under 2, which a second pass mends
_SMALLEST_PIVOT = 32.0  # times ε, of G relative to its largest: about where half of the digits of G have gone


def thin_qr(block: Tensor) -> tuple[Tensor, Tensor]:
    """Factor B = QR with QᴴQ = I to rounding, by CholeskyQR2; a block that it cannot do gets Householder reflections.

    The first pass loses orthogonality as κ(B)²ε, the second restores it. Whether it may is measured on the first
    pass's Q, so no block is trusted by an estimate: up to κ(B) ≈ ε^(-1/2) (3e3 in float32, 7e7 in float64) the fast way
    is taken, beyond it, and for zero, rank-deficient, tiny, huge and wide blocks, the other.

    Parameters
    ----------
    block : Tensor, shape (..., N, L)
        B, real or complex, float32 or wider.

    Returns
    -------
    Q : Tensor, shape (..., N, min(N, L))
        Orthonormal columns, whatever the rank of B.
    R : Tensor, shape (..., min(N, L), L)
        Upper triangular, its diagonal real and not negative. NaN where B holds NaN.

    Raises
    ------
    ArgumentTypeError
        If ``block`` is no floating or complex tensor, or one of half precision.
    ShapeError
        If it has fewer than two dimensions.

    Notes
    -----
    Cost: 6NL² flops in products and solves, O(NL) memory; one look at the result, which waits for a GPU. Differentiable
    where B has full column rank. Every block of a stack is judged by itself.

    References
    ----------
    Y. Yamamoto, Y. Nakatsukasa, Y. Yanagisawa, T. Fukaya (2015), Electron. Trans. Numer. Anal. 44.
    """
    _check("thin_qr", block)
    return _or_householder(block, _cholesky_twice)


def range_basis(block: Tensor) -> Tensor:
    """Find a well-conditioned basis Q = B R⁻¹ of the columns of B by one pass of CholeskyQR, cheaper than `thin_qr`.

    For what is multiplied and factored again, as between the steps of a power iteration: the span is that of B to
    rounding, but QᴴQ - I is only about κ(B)²ε.

    Parameters
    ----------
    block : Tensor, shape (..., N, L)
        B, real or complex, float32 or wider.

    Returns
    -------
    Tensor, shape (..., N, min(N, L))
        Where a pivot of the Gram matrix is below 32ε of the largest, columns orthonormal to rounding from Householder
        reflections.

    Raises
    ------
    ArgumentTypeError
        If ``block`` is no floating or complex tensor, or one of half precision.
    ShapeError
        If it has fewer than two dimensions.

    Notes
    -----
    Cost: 3NL² flops; otherwise as `thin_qr`.

    References
    ----------
    A. Stathopoulos, K. Wu (2002), SIAM J. Sci. Comput. 23(6).
    """
    _check("range_basis", block)
    return _or_householder(block, _cholesky_once)[0]


_Method = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # Q, R, and which blocks (...) came out well


def _or_householder(block: Tensor, method: _Method) -> tuple[Tensor, Tensor]:
    rows, columns = block.shape[-2:]
    if rows < columns or block.numel() == 0:
        return _householder(block)
    Q, R, well = method(block)
    if bool(well.all()):
        return Q, R
    if not bool(well.any()):
        return _householder(block)
    # cut apart before the work, not after: a gradient of zero times the NaN of a failed factorisation is NaN
    stack = block.reshape(-1, rows, columns)
    good, bad = well.reshape(-1).nonzero()[:, 0], (~well.reshape(-1)).nonzero()[:, 0]
    places = torch.cat([good, bad]).argsort()
    fast, slow = method(stack[good])[:2], _householder(stack[bad])
    Q, R = (
        torch.cat(pair)[places].reshape(*block.shape[:-2], *pair[0].shape[1:]) for pair in zip(fast, slow, strict=True)
    )
    return Q, R


def _cholesky_once(block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    lower, failed = torch.linalg.cholesky_ex(block.mH @ block)
    pivots = lower.diagonal(dim1=-2, dim2=-1).real.detach().square()
    enough = pivots.amin(-1) > _SMALLEST_PIVOT * torch.finfo(block.dtype).eps * pivots.amax(-1)
    return _divide(block, lower), lower.mH, (failed == 0) & enough


def _cholesky_twice(block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first, failed = torch.linalg.cholesky_ex(block.mH @ block)
    once = _divide(block, first)
    gram = once.mH @ once
    identity = torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
    kept = torch.linalg.matrix_norm(gram.detach() - identity) < _LOST  # false for NaN
    second, failed_again = torch.linalg.cholesky_ex(gram)
    return _divide(once, second), second.mH @ first.mH, (failed == 0) & (failed_again == 0) & kept


def _divide(block: Tensor, lower: Tensor) -> Tensor:
    # a solve, not a product with the inverse: B - QR stays at rounding, however ill-conditioned R
    return torch.linalg.solve_triangular(lower.mH, block, upper=True, left=False)


def _householder(block: Tensor) -> tuple[Tensor, Tensor]:
    Q, R = torch.linalg.qr(block)
    diagonal = R.diagonal(dim1=-2, dim2=-1).real.detach()
    signs = torch.where(diagonal < 0, -1.0, 1.0).to(Q.dtype)
    return Q * signs.unsqueeze(-2), R * signs.unsqueeze(-1)


def _check(call: str, block: Tensor) -> None:
    if not isinstance(block, Tensor) or not (block.is_floating_point() or block.is_complex()):
        found = block.dtype if isinstance(block, Tensor) else type(block).__name__
        raise ArgumentTypeError(f"{call}: expected a floating or complex tensor, got {found}")
    if block.dtype in (torch.float16, torch.bfloat16):
        raise ArgumentTypeError(
            f"{call}: expected float32 or wider, got {block.dtype}; convert the block with .float()"
        )
    if block.ndim < 2:
        raise ShapeError(f"{call}: expected a block (..., n, l), got shape {tuple(block.shape)}")
