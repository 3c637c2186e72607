"""A sketch of Kronecker-structured rows that never forms them: TensorSRHT.

Shapes: S is (M, N₁N₂); vectors are x ⊗ y in row-major order, x of length N₁, y of length N₂. Factors A₁ (N₁, D₁) and
A₂ (N₂, D₂) have the sketch S (A₁ ⊗ A₂) of shape (M, D₁D₂).
"""

import math

import torch
from torch import Generator, Tensor

from hesse.errors import ShapeError
from hesse.linalg._arguments import at_least, same_numbers
from hesse.linalg._random import sign_columns
from hesse.linalg.operator import LinearOperator
from hesse.linalg.sketch import fwht

__all__ = ["TensorSRHT"]


class TensorSRHT(LinearOperator):
    """S (x ⊗ y) = P ((H D₁ x) ⊗ (H D₂ y)) / √M: both factors transformed alone, M pairs of rows drawn with replacement.

    H has entries ±1, D₁ and D₂ are independent random signs, and P picks entry (p, q) for M independent uniform pairs;
    E[SᵀS] = I. The factors are padded to powers of two each.

    Parameters
    ----------
    dims : tuple of int
        (N₁, N₂).
    m : int
        Rows of the sketch; may exceed N₁N₂.
    dtype : torch.dtype, default torch.float32
        Of the operands.
    device : torch.device or str, default "cpu"
        Where they live.
    generator : torch.Generator, optional
        Source of signs and rows. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If a dimension or m is below one.
    ShapeError
        If ``dims`` is not a pair.

    Notes
    -----
    `apply_factors` costs O(N₁ D₁ log N₁ + N₂ D₂ log N₂ + M D₁ D₂). A vector without that structure is transformed along
    both of its dimensions, O(N₁N₂ log(N₁N₂)).

    References
    ----------
    Z. Song, M. Ye, J. Yin, L. Zhang (2023), ICML, arXiv 2302.00248; T. D. Ahle et al. (2020), SODA, arXiv 1909.01410.
    """

    _fields = ("signs", "kept")

    def __init__(
        self,
        dims: tuple[int, int],
        m: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: Generator | None = None,
    ) -> None:
        if len(dims) != 2:
            raise ShapeError(
                f"TensorSRHT: expected two dimensions, got {tuple(dims)}; fold the factors into two groups"
            )
        for n in dims:
            at_least("TensorSRHT", "dims", n, 1)
        at_least("TensorSRHT", "m", m, 1)
        super().__init__((m, dims[0] * dims[1]), dtype, device)
        home = self.device if generator is None else generator.device
        self.dims = (int(dims[0]), int(dims[1]))
        self.padded = tuple(1 << (n - 1).bit_length() for n in self.dims)
        self.signs = tuple(
            sign_columns(n, 1, dtype=dtype, device=self.device, generator=generator).squeeze(-1) for n in self.dims
        )
        self.kept = tuple(
            torch.randint(size, (m,), generator=generator, device=home).to(self.device) for size in self.padded
        )

    def apply_factors(self, left: Tensor, right: Tensor) -> Tensor:
        """Sketch A₁ ⊗ A₂ without forming it.

        Parameters
        ----------
        left : Tensor, shape (N1, D1)
            A₁.
        right : Tensor, shape (N2, D2)
            A₂.

        Returns
        -------
        Tensor, shape (M, D1 * D2)
            S (A₁ ⊗ A₂): row by row the Kronecker product of rows of the two transforms. Differentiable.

        Raises
        ------
        ShapeError
            If shapes, dtypes or devices do not fit.
        """
        rows: list[Tensor] = []
        for i, (name, factor) in enumerate((("left", left), ("right", right))):
            same_numbers("TensorSRHT.apply_factors", name, factor, self)
            if factor.ndim != 2 or len(factor) != self.dims[i]:
                raise ShapeError(
                    f"TensorSRHT.apply_factors: expected {name} of shape ({self.dims[i]}, D), got {tuple(factor.shape)}"
                )
            rows.append(self._transform(factor, i, 0).index_select(0, self.kept[i]))
        paired = rows[0].unsqueeze(2) * rows[1].unsqueeze(1)
        return paired.flatten(1) / math.sqrt(self.shape[0])

    def _transform(self, x: Tensor, side: int, dim: int) -> Tensor:
        # H D x with entries ±1 along ``dim``, which is counted from the front
        tail = (1,) * (x.ndim - dim - 1)
        signed = x * self.signs[side].view(-1, *tail)
        size = self.padded[side]
        padding = [0, 0] * (x.ndim - dim - 1) + [0, size - self.dims[side]]
        return fwht(torch.nn.functional.pad(signed, padding), dim) * math.sqrt(size)

    def _matmat(self, x: Tensor) -> Tensor:
        grid = x.movedim(-2, 0).unflatten(0, self.dims)
        full = self._transform(self._transform(grid, 0, 0), 1, 1)
        return full[self.kept[0], self.kept[1]].movedim(0, -2) / math.sqrt(self.shape[0])

    def _rmatmat(self, y: Tensor) -> Tensor:
        rows = y.movedim(-2, 0)
        full = rows.new_zeros(*self.padded, *rows.shape[1:])
        full = full.index_put((self.kept[0], self.kept[1]), rows, accumulate=True)
        for side in (0, 1):
            tail = (1,) * (full.ndim - side - 1)
            back = fwht(full, side).narrow(side, 0, self.dims[side]) * math.sqrt(self.padded[side])
            full = back * self.signs[side].view(-1, *tail)
        return full.flatten(0, 1).movedim(0, -2) / math.sqrt(self.shape[0])
