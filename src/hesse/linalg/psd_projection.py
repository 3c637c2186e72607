"""The nearest symmetric matrix whose eigenvalues are at least a bound, in the Frobenius norm.

    Q max(Λ, μ) Qᵀ   of   (A + Aᵀ) / 2 = Q Λ Qᵀ

Shapes: N order of the matrices.
"""

import torch
from torch import Tensor

from hesse.errors import ArgumentTypeError, ShapeError

__all__ = ["clip_eigenvalues"]


@torch.no_grad()
def clip_eigenvalues(matrix: Tensor, low: float | Tensor) -> Tensor:
    """Project on {A = Aᵀ, A >= μ I}.

    A batched Cholesky of A - μ I tells which matrices are in the set already: an eigendecomposition, some ten times
    dearer, is made of the others only.

    Parameters
    ----------
    matrix : Tensor, shape (..., N, N)
        A, float32 or float64; its symmetric part is projected.
    low : float or Tensor that broadcasts to (...)
        μ, in the units of A; any sign.

    Returns
    -------
    Tensor, shape (..., N, N)
        The projections, without a graph. O(N³) each.

    Raises
    ------
    ShapeError
        If the matrices are not square.
    ArgumentTypeError
        If they are in half precision, for which torch has no factorisations, or complex.

    References
    ----------
    N. J. Higham (1988), Linear Algebra Appl. 103.
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ShapeError(f"clip_eigenvalues: expected square matrices, got shape {tuple(matrix.shape)}")
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ArgumentTypeError(f"clip_eigenvalues: expected float32 or float64, got {matrix.dtype}")
    order = matrix.shape[-1]
    bounds = torch.as_tensor(low, dtype=matrix.dtype, device=matrix.device).expand(matrix.shape[:-2]).reshape(-1)
    flat = ((matrix + matrix.mT) / 2).reshape(-1, order, order)
    unit = torch.eye(order, dtype=matrix.dtype, device=matrix.device)
    below = torch.linalg.cholesky_ex(flat - bounds[:, None, None] * unit).info > 0
    below &= torch.isfinite(flat).all(-1).all(-1)  # NaN is handed back: an eigendecomposition would raise on it
    if bool(below.any()):
        values, vectors = torch.linalg.eigh(flat[below])
        clipped = torch.maximum(values, bounds[below].unsqueeze(1))
        flat[below] = (vectors * clipped.unsqueeze(1)) @ vectors.mT
    return flat.reshape(matrix.shape)
