"""Eigenvalue-corrected Kronecker factors: the Gauss-Newton block's diagonal in the basis of K-FAC, measured afresh.

    Λ = E_n[ (Q_Sᵀ D_n Q_A)^{∘2} ],  D_n = Σ_t δ_t ã_tᵀ,      (G + λI)⁻¹ V ≈ Q_S [ (Q_Sᵀ V Q_A) ⊘ (Λ + λ) ] Q_Aᵀ

Among all matrices with eigenvectors Q_S ⊗ Q_A this one is nearest to the block in Frobenius norm (George et al. 2018).
Shapes: B sequences, T positions, m columns (with bias), p outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.curvature.block_basis import Basis, left_times, right_times, rows_times
from hesse.curvature.capture import Captured
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError

__all__ = [
    "Absolute",
    "Damping",
    "Relative",
    "rotate",
    "rotate_back",
    "rotate_rows",
    "rotated_gradients",
    "second_moment",
    "sequence_gradients",
]

_LOOP = (
    1 << 15
)  # entries of D from which one product a sequence into a reused buffer beats a batched one: it stays in cache


@dataclass(frozen=True, slots=True)
class Relative:
    """λ = factor x mean eigenvalue of each weight matrix; invariant to the scale of the loss.

    The default, 0.1, is the usual heuristic.
    """

    factor: float = 0.1

    def __post_init__(self) -> None:
        _check_damping(self.factor)

    def of(self, table: Tensor) -> Tensor:
        """Work out λ of one weight matrix.

        Parameters
        ----------
        table : Tensor, shape (p, m)
            Its eigenvalues.

        Returns
        -------
        Tensor, shape ()
            In the dtype of the table.
        """
        return self.factor * table.mean(dtype=torch.float64).to(table.dtype)


@dataclass(frozen=True, slots=True)
class Absolute:
    """The same λ for every weight matrix, in the units of the Gauss-Newton matrix."""

    value: float

    def __post_init__(self) -> None:
        _check_damping(self.value)

    def of(self, table: Tensor) -> Tensor:
        """Work out λ of one weight matrix.

        Parameters
        ----------
        table : Tensor, shape (p, m)
            Its eigenvalues.

        Returns
        -------
        Tensor, shape ()
            In the dtype of the table.
        """
        return torch.as_tensor(self.value, dtype=table.dtype, device=table.device)


Damping = Relative | Absolute


def _check_damping(value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ArgumentError(f"damping: expected a finite number >= 0, got {value}")


def sequence_gradients(rows: Captured) -> Tensor:
    """Sum the outer products of a layer's rows: D_n = Σ_t δ_t ã_tᵀ, the gradient of every sequence.

    Parameters
    ----------
    rows : Captured
        Inputs and output gradients of one layer.

    Returns
    -------
    Tensor, shape (B, p, m)
        Bias column last, in the dtype of the rows.
    """
    weight = torch.bmm(rows.grads.transpose(1, 2), rows.inputs)
    if not rows.layer.has_bias:
        return weight
    return torch.cat([weight, rows.grads.sum(1)[..., None]], 2)


def rotate(matrix: Tensor, left: Basis, right: Basis) -> Tensor:
    """Q_Sᵀ V Q_A: into the eigenbasis.

    Parameters
    ----------
    matrix : Tensor, shape (..., p, m)
        V.
    left, right : Tensor or BlockBasis, shapes (p, p) and (m, m)
        Q_S and Q_A.

    Returns
    -------
    Tensor, shape (..., p, m)
        In the dtype of all three.
    """
    return right_times(left_times(left, matrix, transposed=True), right)


def rotate_back(
    matrix: Tensor, left: Basis, right: Basis, *, out: Tensor | None = None, scratch: Scratch | None = None
) -> Tensor:
    """Q_S V Q_Aᵀ: out of the eigenbasis.

    Parameters
    ----------
    matrix : Tensor, shape (..., p, m)
        V.
    left, right : Tensor or BlockBasis, shapes (p, p) and (m, m)
        Q_S and Q_A.
    out : Tensor, shape (..., p, m), optional
        Room for the result.
    scratch : Scratch, optional
        Room for V Q_Aᵀ.

    Returns
    -------
    Tensor, shape (..., p, m)
        In the dtype of all three.
    """
    room = None if scratch is None else scratch.take("half rotated", tuple(matrix.shape), matrix)
    return left_times(left, right_times(matrix, right, transposed=True, out=room), out=out)


def rotated_gradients(rows: Captured, left: Basis, right: Basis, scratch: Scratch) -> Tensor:
    """Q_Sᵀ D_n Q_A for every sequence, the rows rotated first where that is cheaper.

    Parameters
    ----------
    rows : Captured
        Inputs and output gradients of one layer.
    left, right : Tensor or BlockBasis, shapes (p, p) and (m, m)
        Q_S and Q_A, in the dtype of the products.
    scratch : Scratch
        Room for rotated rows and for the result, which is valid until the next call.

    Returns
    -------
    Tensor, shape (B, p, m)
        In the dtype of the bases.
    """
    if not _rows_first(rows, left, right):
        return rotate(sequence_gradients(rows).to(left.dtype), left, right)
    source = rows.grads.to(left.dtype)
    grads = right_times(source, left, out=scratch.take("rotated grads", source.shape, left))
    room = scratch.take("rotated inputs", (*rows.inputs.shape[:2], right.shape[1]), right)
    inputs = rotate_rows(rows, right, out=room)
    room = scratch.take("rotated gradients", (len(grads), left.shape[1], right.shape[1]), left)
    return torch.bmm(grads.transpose(1, 2), inputs, out=room)


def second_moment(
    rows: Captured, left: Basis, right: Basis, out: Tensor, scratch: Scratch, rotated_inputs: Tensor | None = None
) -> Tensor | None:
    """Add Σ_n (Q_Sᵀ D_n Q_A)^{∘2} over the sequences of one batch to ``out``.

    Parameters
    ----------
    rows : Captured
        Inputs and output gradients of one layer.
    left, right : Tensor or BlockBasis, shapes (p, p) and (m, m)
        Q_S and Q_A, in the dtype of the products.
    out : Tensor, shape (p, m)
        Changed in place; accumulates in its own dtype.
    scratch : Scratch
        Room for rotated rows; what is returned lives in it until the next call.
    rotated_inputs : Tensor, shape (B, T, m), optional
        ã Q_A, if a layer with the same input has computed it.

    Returns
    -------
    Tensor or None
        ã Q_A for the next layer with the same input, if it was computed.
    """
    if rows.grads.shape[1] == 1:  # D_n has rank one: the squares of its entries are products of squares
        grads = right_times(rows.grads[:, 0].to(left.dtype), left).to(out.dtype)
        rotated_inputs = rotate_rows(rows, right) if rotated_inputs is None else rotated_inputs
        out.addmm_(grads.square().T, rotated_inputs[:, 0].to(out.dtype).square())
        return rotated_inputs
    if rotated_inputs is None and not _rows_first(rows, left, right):
        out += rotate(sequence_gradients(rows).to(left.dtype), left, right).to(out.dtype).square().sum(0)
        return None
    source = rows.grads.to(left.dtype)
    grads = right_times(source, left, out=scratch.take("rotated grads", source.shape, left))
    if rotated_inputs is None:
        room = scratch.take("rotated inputs", (*rows.inputs.shape[:2], right.shape[1]), right)
        rotated_inputs = rotate_rows(rows, right, out=room)
    if out.numel() < _LOOP:
        out += torch.bmm(grads.transpose(1, 2), rotated_inputs).to(out.dtype).square().sum(0)
        return rotated_inputs
    buffer = scratch.take("rotated gradient", tuple(out.shape), left)
    for n in range(len(grads)):
        torch.mm(grads[n].T, rotated_inputs[n], out=buffer)
        wide = buffer.to(out.dtype)
        out.addcmul_(wide, wide)
    return rotated_inputs


def _rows_first(rows: Captured, left: Basis, right: Basis) -> bool:
    # 2T(m² + p²) flops a sequence for rotating rows, against 2pm(p + m) for rotating D
    positions, outputs, columns = rows.grads.shape[1], left.shape[0], right.shape[0]
    return positions * (columns**2 + outputs**2) < outputs * columns * (outputs + columns)


def rotate_rows(rows: Captured, right: Basis, out: Tensor | None = None) -> Tensor:
    """ã Q_A for every position, without building ã.

    Parameters
    ----------
    rows : Captured
        Inputs of one layer.
    right : Tensor or BlockBasis, shape (m, m)
        Q_A, in the dtype of the products.
    out : Tensor, shape (B, T, m), optional
        Room for the result.

    Returns
    -------
    Tensor, shape (B, T, m)
        Positions outside the mask hold numbers too; their gradients are zero.
    """
    x = rows.inputs.to(right.dtype)
    return rows_times(x, right, has_bias=rows.layer.has_bias, out=out)  # rows outside the mask meet zero gradients
