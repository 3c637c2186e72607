"""Kronecker factors of the Gauss-Newton block of a layer: A from its inputs, S from its output gradients.

    A = (1/M) Σ_t ã_t ã_tᵀ,   S = (1/M) Σ_t δ_t δ_tᵀ,   G ≈ T̄ · S ⊗ A

with M the number of positions, T̄ = M / N their mean number a sequence, and δ from labels drawn from the model.
Shapes: B sequences, T positions, m columns (with bias), p outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.curvature.capture import Captured
from hesse.errors import ArgumentError, NumericalError

__all__ = [
    "FactorEigen",
    "InputFactor",
    "OutputFactor",
    "add_gram_",
    "add_gram_with_ones_",
    "eigendecompose",
    "kept_rows",
    "mirror_",
    "num_positions",
    "reduce_positions",
]

_LEAF = 256  # below this order a plain product beats the split: measured on 2 cores, 1024 to 4096 rows


@dataclass(slots=True)
class InputFactor:
    """Running sum of ã ãᵀ, upper triangle only until `mirror_`; ``count`` positions so far."""

    total: Tensor  # (m, m)
    count: int = 0

    @classmethod
    def zeros(cls, columns: int, *, dtype: torch.dtype, device: torch.device) -> "InputFactor":
        """Start an empty sum.

        Parameters
        ----------
        columns : int
            Its order m.
        dtype : dtype
            Of the accumulation: float32 or wider.
        device : device
            Of the accumulation.

        Returns
        -------
        InputFactor
            With no positions.
        """
        return cls(torch.zeros(columns, columns, dtype=dtype, device=device))

    def add_(self, rows: Captured) -> None:
        """Add every position of one batch."""
        x = kept_rows(rows.inputs, rows.mask)
        add_gram_with_ones_(self.total, x)
        self.count += len(x)


@dataclass(slots=True)
class OutputFactor:
    """Running sum of δ δᵀ, upper triangle only until `mirror_`; ``count`` positions so far."""

    total: Tensor  # (p, p)
    count: int = 0

    @classmethod
    def zeros(cls, outputs: int, *, dtype: torch.dtype, device: torch.device) -> "OutputFactor":
        """Start an empty sum.

        Parameters
        ----------
        outputs : int
            Its order p.
        dtype : dtype
            Of the accumulation: float32 or wider.
        device : device
            Of the accumulation.

        Returns
        -------
        OutputFactor
            With no positions.
        """
        return cls(torch.zeros(outputs, outputs, dtype=dtype, device=device))

    def add_(self, rows: Captured, *, count: bool = True) -> None:
        """Add every position of one batch; ``count=False`` for a further draw of labels on the same positions."""
        d = rows.grads.flatten(0, 1)
        add_gram_(self.total, d)  # positions outside the mask are zero rows
        if count:
            self.count += num_positions(rows)


def reduce_positions(rows: Captured) -> Captured:
    """Collapse T: ā = mean of ã, δ̄ = sum of δ, the "reduce" setting of weight sharing; for pooled heads, not for LMs.

    Parameters
    ----------
    rows : Captured
        Inputs and output gradients of one layer.

    Returns
    -------
    Captured
        With one position a sequence and no mask.
    """
    if rows.mask is None:
        inputs = rows.inputs.mean(1, keepdim=True)
    else:
        weight = rows.mask.to(rows.inputs.dtype)[..., None]
        inputs = (rows.inputs * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return Captured(rows.layer, inputs, rows.grads.sum(1, keepdim=True), None, rows.layer.name)


def add_gram_(total: Tensor, rows: Tensor) -> None:
    """Add XᵀX to the upper triangle of ``total``: halves split until the blocks are small, so about half the flops.

    Parameters
    ----------
    total : Tensor, shape (n, n)
        Changed in place; below the diagonal only within small diagonal blocks. Complete it with `mirror_`.
    rows : Tensor, shape (K, n)
        X. Multiplied in its own dtype, in float32 at least: sums of bfloat16 products that are rounded to bfloat16 turn
        the eigenvectors, and scores with them (correlation 0.991 in place of 0.9995 on a small language model).
        A ``total`` in float64 makes the order of batches matter no more than its last bits do.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    n = total.shape[0]
    if n <= _LEAF:
        _add_product_(total, rows.T, rows)
        return
    half = n // 2
    add_gram_(total[:half, :half], rows[:, :half])
    _add_product_(total[:half, half:], rows[:, :half].T, rows[:, half:])
    add_gram_(total[half:, half:], rows[:, half:])


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def add_gram_with_ones_(total: Tensor, rows: Tensor) -> None:
    """Add X̃ᵀX̃ as `add_gram_` does, X̃ being X with a column of ones where ``total`` has one column more than X.

    Parameters
    ----------
    total : Tensor, shape (n, n) or (n + 1, n + 1)
        Changed in place.
    rows : Tensor, shape (K, n)
        X.
    """
    n = rows.shape[1]
    add_gram_(total[:n, :n], rows)
    if n < len(total):
        total[:n, n] += rows.sum(0, dtype=total.dtype)
        total[n, n] += len(rows)


def num_positions(rows: Captured) -> int:
    """Count the positions of a batch that a layer was captured at.

    Parameters
    ----------
    rows : Captured
        Of one layer.

    Returns
    -------
    int
        Those inside the mask, or all.
    """
    return rows.grads.shape[0] * rows.grads.shape[1] if rows.mask is None else int(rows.mask.sum())


def mirror_(total: Tensor) -> Tensor:
    """Copy the upper triangle onto the lower one, in place.

    Parameters
    ----------
    total : Tensor, shape (n, n)
        Changed in place.

    Returns
    -------
    Tensor, shape (n, n)
        The same tensor.
    """
    upper = torch.triu(total, 1)
    return total.triu_().add_(upper.T)


def kept_rows(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Join the positions of all sequences, without those outside the mask.

    Parameters
    ----------
    rows : Tensor, shape (B, T, n)
        Of one layer.
    mask : Tensor of bool, shape (B, T), optional
        Which positions count. Default: all.

    Returns
    -------
    Tensor, shape (M, n)
        A view where all count.
    """
    flat = rows.flatten(0, 1)
    return flat if mask is None or bool(mask.all()) else flat[mask.flatten()]


@dataclass(frozen=True, slots=True)
class FactorEigen:
    """C = Q diag(values) Qᵀ, values ascending and clipped at zero."""

    values: Tensor  # (n,)
    vectors: Tensor  # (n, n)


def eigendecompose(total: Tensor, count: int, *, name: str, dtype: torch.dtype = torch.float64) -> FactorEigen:
    """Eigendecompose C = total / count.

    Parameters
    ----------
    total : Tensor, shape (n, n)
        Symmetric sum, both triangles.
    count : int
        Number of rows summed.
    name : str
        Of the layer and factor, for messages.
    dtype : dtype, default float64
        To compute in. float32 takes half the time, and is enough for sums of bfloat16 rows.

    Returns
    -------
    FactorEigen
        In ``dtype``; the caller stores it in that of the run.

    Raises
    ------
    ArgumentError
        If there are no rows.
    NumericalError
        If the sum holds NaN or Inf, or the eigensolver fails even with jitter.
    """
    if count < 1:
        raise ArgumentError(f"fit: {name} has seen no position that carries a gradient")
    matrix = total.to(dtype) / count
    if not bool(torch.isfinite(matrix).all()):
        raise NumericalError(f"fit: the covariance of {name} holds NaN or Inf")
    values, vectors = _eigh(matrix, name)
    # rows in order, as they come back from a file: products round by how a matrix lies in memory
    return FactorEigen(values.to(dtype).clamp(min=0), vectors.to(dtype).contiguous())


def _eigh(matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    matrix = (matrix + matrix.T) / 2
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        # repeated or tiny eigenvalues can defeat the divide-and-conquer solver; a jitter far below rounding of the
        # input separates them, in float64 because float32 would round it away
        matrix = matrix.double()
        jitter = 1e-12 * matrix.trace() / len(matrix)
        try:
            return torch.linalg.eigh(matrix + jitter * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
        except torch.linalg.LinAlgError as error:
            raise NumericalError(
                f"fit: the eigensolver failed on {name}, with a jitter of 1e-12 of the mean eigenvalue as well"
            ) from error
