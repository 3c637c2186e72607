"""Unfoldings of tensors and products of tensors with matrices, mode by mode.

Convention: modes count from 0; an unfolding keeps the order of the remaining modes, the last one running fastest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.operator import LinearOperator

__all__ = ["fold", "khatri_rao", "mode_product", "multi_mode_product", "unfold"]


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Lay the fibres of one mode side by side as columns.

    Parameters
    ----------
    tensor : Tensor, shape (n_0, …, n_d)
        Any tensor.
    mode : int
        k, negative ones from the end.

    Returns
    -------
    Tensor, shape (n_k, product of the other n_j)
        With this order, the unfolding of A_0 ⊗ … applied by modes is A_k X_(k) (⊗ of the other A_j)ᵀ.

    Raises
    ------
    ArgumentError
        If there is no such mode.
    """
    mode = _mode("unfold", tensor.ndim, mode)
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def fold(matrix: Tensor, mode: int, shape: Sequence[int]) -> Tensor:
    """Undo `unfold`.

    Parameters
    ----------
    matrix : Tensor, shape (n_k, product of the other n_j)
        An unfolding.
    mode : int
        k.
    shape : sequence of int
        (n_0, …, n_d) of the result.

    Returns
    -------
    Tensor, shape ``shape``
        The tensor whose unfolding is ``matrix``.

    Raises
    ------
    ArgumentError
        If there is no such mode.
    ShapeError
        If the matrix does not fit the shape.
    """
    mode = _mode("fold", len(shape), mode)
    rest = [n for j, n in enumerate(shape) if j != mode]
    expected = (shape[mode], torch.Size(rest).numel())
    if tuple(matrix.shape) != expected:
        raise ShapeError(f"fold: mode {mode} of {tuple(shape)} unfolds to {expected}, got {tuple(matrix.shape)}")
    return matrix.reshape(shape[mode], *rest).movedim(0, mode)


def mode_product(tensor: Tensor, matrix: Tensor | LinearOperator, mode: int) -> Tensor:
    """Multiply every fibre of one mode by a matrix: Y = X ×_k A, that is Y_(k) = A X_(k).

    Parameters
    ----------
    tensor : Tensor, shape (n_0, …, n_d)
        X.
    matrix : Tensor or LinearOperator, shape (m, n_k)
        A.
    mode : int
        k, negative ones from the end.

    Returns
    -------
    Tensor, shape (n_0, …, m, …, n_d)
        With m in place of n_k.

    Raises
    ------
    ArgumentError
        If there is no such mode.
    ShapeError
        If the matrix does not fit it.
    """
    mode = _mode("mode_product", tensor.ndim, mode)
    if len(matrix.shape) != 2 or matrix.shape[1] != tensor.shape[mode]:
        raise ShapeError(
            f"mode_product: mode {mode} of {tuple(tensor.shape)} needs a matrix (m, {tensor.shape[mode]}), got "
            f"{tuple(matrix.shape)}"
        )
    if isinstance(matrix, LinearOperator):
        shape = [*tensor.shape]
        shape[mode] = matrix.shape[0]
        return fold(matrix @ unfold(tensor, mode), mode, shape)
    return (tensor.movedim(mode, -1) @ matrix.mT).movedim(-1, mode)


def multi_mode_product(
    tensor: Tensor, matrices: Sequence[Tensor | LinearOperator | None], *, transpose: bool = False
) -> Tensor:
    """Multiply along all modes, X ×_0 A_0 ×_1 A_1 …; flattened, this is (A_0 ⊗ A_1 ⊗ …) x, the product never formed.

    Parameters
    ----------
    tensor : Tensor, shape (n_0, …, n_d)
        X.
    matrices : sequence of Tensor, LinearOperator or None
        A_k of shape (m_k, n_k), one a mode; None leaves a mode as it is.
    transpose : bool, default False
        Multiply by the A_kᵀ instead.

    Returns
    -------
    Tensor, shape (m_0, …, m_d)
        The modes that shrink most come first, which keeps intermediate tensors small.

    Raises
    ------
    ShapeError
        If their number or shapes do not fit.
    """
    if len(matrices) != tensor.ndim:
        raise ShapeError(
            f"multi_mode_product: expected {tensor.ndim} matrices, one a mode of {tuple(tensor.shape)}, "
            f"got {len(matrices)}"
        )
    present = [(k, m.T if transpose else m) for k, m in enumerate(matrices) if m is not None]
    for mode, matrix in sorted(present, key=lambda pair: pair[1].shape[0] / max(pair[1].shape[1], 1)):
        tensor = mode_product(tensor, matrix, mode)
    return tensor


def khatri_rao(matrices: Sequence[Tensor]) -> Tensor:
    """Take the columnwise Kronecker product.

    Parameters
    ----------
    matrices : sequence of Tensor, shapes (n_j, r)
        At least one; all with r columns.

    Returns
    -------
    Tensor, shape (product of n_j, r)
        Column c is the Kronecker product of the columns c, the last matrix running fastest: the unfolding of a sum of
        r rank-one tensors with factors B_j is B_k (khatri_rao of the others)ᵀ.

    Raises
    ------
    ArgumentError
        If there is no matrix.
    ShapeError
        If they are not matrices with equally many columns.
    """
    if not matrices:
        raise ArgumentError("khatri_rao: expected at least one matrix, got none")
    if any(m.ndim != 2 or m.shape[1] != matrices[0].shape[-1] for m in matrices):
        raise ShapeError(
            f"khatri_rao: expected matrices with equally many columns, got {[tuple(m.shape) for m in matrices]}"
        )
    out = matrices[0]
    for matrix in matrices[1:]:
        out = (out.unsqueeze(1) * matrix.unsqueeze(0)).reshape(-1, matrix.shape[1])
    return out


def _mode(call: str, ndim: int, mode: int) -> int:
    if not -ndim <= mode < ndim:
        raise ArgumentError(f"{call}: a tensor of {ndim} modes has no mode {mode}")
    return mode % ndim
