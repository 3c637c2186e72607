"""The last m gradients of a run, and products with the inverse of their damped empirical Fisher matrix.

    F = λI + GᵀG/m,    F⁻¹g = Gᵀ K⁻¹ e  for g the row e of G,    K = λI + GGᵀ/m

Shapes: d coordinates, m rows of G.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from hesse.curvature.mfac._tiles import combine, multiply, pivots_are_rounding
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError, SingularError
from hesse.linalg._arguments import at_least, wide_dtype
from hesse.linalg.cholesky import cholesky_update

__all__ = ["GradientWindow"]

_UPDATE_FROM = 1024  # rows from which following the factor, O(m²), beats LAPACK factoring anew, O(m³)
_SMALL = torch.float64  # K loses definiteness in anything less


class GradientWindow:
    """A ring of m gradients with the Cholesky factor of K, which follows every new row.

    Rows start as zeros, which change nothing but the divisor: F has 1/m from the first gradient on.

    Parameters
    ----------
    dim : int
        d.
    size : int
        m, the gradients remembered.
    damping : float, default 1e-5
        λ > 0, in the units of a squared gradient.
    dtype : torch.dtype, default torch.float32
        In which G is stored; bfloat16 halves the memory, and F is then that of the rounded gradients.
    device : torch.device or str, optional
        Of everything. Default: the CPU.
    reduce_fn : callable, optional
        Returns the sum of a tensor over processes that each hold some of the coordinates, as an all-reduce does: only
        vectors of length m travel, one a right-hand side. Default: all coordinates are here.

    Raises
    ------
    ArgumentError
        If a number is out of range.
    ArgumentTypeError
        If the dtype is not a real floating one.

    Notes
    -----
    Memory d m of ``dtype`` and 2 m² of float64. A gradient costs two passes over G, O(dm), and the factor: O(m³), from
    1024 rows on O(m²). The row that leaves is always the oldest, so that taking it out is a rank-one *update* of what
    remains, which cannot fail; the new row is appended; every m gradients K is factored anew. The published recurrence
    needs O(m³) and subtracts nearly equal numbers.

    References
    ----------
    E. Frantar, E. Kurtic, D. Alistarh (2021), NeurIPS, arXiv 2107.03356.

    Examples
    --------
    >>> window = GradientWindow(2, size=4, damping=1.0)
    >>> window.push_and_solve(torch.tensor([2.0, 0.0]))
    tensor([1., 0.])
    """

    def __init__(
        self,
        dim: int,
        size: int,
        damping: float = 1e-5,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        reduce_fn: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        at_least("GradientWindow", "dim", dim, 1)
        at_least("GradientWindow", "size", size, 1)
        if not dtype.is_floating_point:
            raise ArgumentTypeError(f"GradientWindow: expected a real floating dtype, got {dtype}")
        self.damping = _positive(damping)
        self.reduce_fn = reduce_fn
        self.rows = torch.zeros(size, dim, dtype=dtype, device=device)  # G
        self.gram = torch.zeros(size, size, dtype=_SMALL, device=device)  # GGᵀ
        # of K, its rows and columns ordered from the oldest gradient to the newest
        self.factor = torch.eye(size, dtype=_SMALL, device=device) * self.damping**0.5
        self.oldest = 0  # the row that the next gradient takes
        self.num_pushes = 0

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return self.rows.shape[1]

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.rows.shape[0]

    @torch.no_grad()
    def push(self, gradient: Tensor) -> None:
        """Put a gradient in the place of the oldest.

        Parameters
        ----------
        gradient : Tensor, shape (d,)
            Copied, and rounded to the window's dtype.

        Raises
        ------
        ShapeError
            If it does not have d entries, or lives elsewhere.
        NumericalError
            If it has NaN or Inf in the window's dtype; the window stays as it was.
        SingularError
            If λ is below the rounding of GGᵀ/m in float64. The gradient is in then; raise λ by `set_damping`.
        """
        self._check("push", gradient, (self.dim,))
        row = gradient.to(self.rows.dtype)
        if not bool(torch.isfinite(row).all()):
            raise NumericalError(f"GradientWindow.push: the gradient has NaN or Inf in {row.dtype}")
        k = self.oldest
        self.rows[k] = row
        products = self._products(row.unsqueeze(-1)).squeeze(-1)
        self.gram[k] = products
        self.gram[:, k] = products
        self.oldest = (k + 1) % self.size
        self.num_pushes += 1
        in_order = products.roll(-self.oldest) / self.size
        in_order[-1] += self.damping
        anew = self.size < _UPDATE_FROM or self.num_pushes % self.size == 0
        self.factor = self._factored() if anew else self._followed(in_order)

    @torch.no_grad()
    def solve(self, x: Tensor) -> Tensor:
        """F⁻¹x for any x.

        Parameters
        ----------
        x : Tensor, shape (d,) or (d, k)
            Right-hand sides.

        Returns
        -------
        Tensor, shape of x
            In float32, or float64 if that is the window's dtype. Sums run in float64; for x in the span of a float32
            window that is rounded to float32 itself, expect no more than x has.

        Raises
        ------
        ShapeError
            If ``x`` does not fit.
        """
        self._check("solve", x, (self.dim, *x.shape[1:2]))
        columns = x.reshape(self.dim, -1)
        weights = self._weights(self._products(columns)) / -self.size
        found = combine(
            self.rows.unsqueeze(0),
            weights.unsqueeze(0),
            wide_dtype(self.rows.dtype),
            start=columns.unsqueeze(0),
            scale=1 / self.damping,
        )
        return found.reshape(x.shape)

    @torch.no_grad()
    def push_and_solve(self, gradient: Tensor) -> Tensor:
        """Push a gradient and multiply it with F⁻¹: Gᵀ K⁻¹ e, where nothing cancels.

        Parameters
        ----------
        gradient : Tensor, shape (d,)
            As of `push`.

        Returns
        -------
        Tensor, shape (d,)
            In float32, or float64 if that is the window's dtype; accurate to rounding whatever λ, and to ‖g‖²/λ
            roundings of float64 where gradients are parallel.

        Raises
        ------
        ShapeError, NumericalError, SingularError
            As `push`.
        """
        self.push(gradient)
        newest = torch.zeros(self.size, 1, dtype=_SMALL, device=self.rows.device)
        newest[self.oldest - 1] = 1
        weights = self._weights(newest)
        return combine(self.rows.unsqueeze(0), weights.unsqueeze(0), wide_dtype(self.rows.dtype)).reshape(-1)

    def set_damping(self, damping: float) -> None:
        """Change λ and factor K anew, O(m³).

        Parameters
        ----------
        damping : float
            λ > 0.

        Raises
        ------
        ArgumentError
            If it is not positive and finite.
        SingularError
            If it is below the rounding of GGᵀ/m.
        """
        self.damping = _positive(damping)
        self.factor = self._factored()

    def state_dict(self) -> dict[str, Any]:
        """Everything that `push` changes, by name.

        Returns
        -------
        dict of str to Tensor, int or float
            The tensors themselves, not copies.
        """
        return {
            "rows": self.rows,
            "gram": self.gram,
            "factor": self.factor,
            "oldest": self.oldest,
            "num_pushes": self.num_pushes,
            "damping": self.damping,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], *, reduce_fn: Callable[[Tensor], Tensor] | None = None) -> Self:
        """Rebuild a window around the tensors of `state_dict`, without copying them.

        Parameters
        ----------
        state : mapping
            From `state_dict`.
        reduce_fn : callable, optional
            As of the constructor.

        Returns
        -------
        GradientWindow
            It goes on exactly as the old one.

        Raises
        ------
        ArgumentError
            If entries are missing.
        ShapeError
            If the tensors do not fit each other.
        """
        names = ("rows", "gram", "factor", "oldest", "num_pushes", "damping")
        if missing := [name for name in names if name not in state]:
            raise ArgumentError(f"GradientWindow.from_state_dict: no entry for {', '.join(missing)}")
        rows, gram, factor = state["rows"], state["gram"], state["factor"]
        square = (rows.shape[0], rows.shape[0])
        if rows.ndim != 2 or gram.shape != square or factor.shape != square:
            raise ShapeError(
                f"GradientWindow.from_state_dict: rows {tuple(rows.shape)}, gram {tuple(gram.shape)} and factor "
                f"{tuple(factor.shape)} do not fit each other"
            )
        window = cls(1, 1, state["damping"], dtype=rows.dtype, device=rows.device, reduce_fn=reduce_fn)
        window.rows, window.gram, window.factor = rows, gram, factor
        window.oldest, window.num_pushes = int(state["oldest"]), int(state["num_pushes"])
        return window

    def _check(self, method: str, x: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(x.shape) != shape or x.device != self.rows.device:
            raise ShapeError(
                f"GradientWindow.{method}: expected shape {shape} on {self.rows.device}, got {tuple(x.shape)} on "
                f"{x.device}"
            )

    def _products(self, columns: Tensor) -> Tensor:
        found = multiply(self.rows.unsqueeze(0), columns.unsqueeze(0), _SMALL).squeeze(0)
        return found if self.reduce_fn is None else self.reduce_fn(found)

    def _weights(self, y: Tensor) -> Tensor:
        # K⁻¹y, in the order of the rows
        in_order = torch.cholesky_solve(y.roll(-self.oldest, 0), self.factor)
        return in_order.roll(self.oldest, 0)

    def _factored(self) -> Tensor:
        in_order = self.gram.roll((-self.oldest, -self.oldest), (0, 1)) / self.size
        in_order.diagonal().add_(self.damping)
        factor, failed = torch.linalg.cholesky_ex(in_order)
        if bool(failed != 0) or pivots_are_rounding(factor, in_order):
            raise SingularError(
                f"GradientWindow: damping {self.damping:g} is below the rounding of GGᵀ/m, whose diagonal reaches "
                f"{float(in_order.diagonal().max()):.2g}; use a larger damping"
            )
        return factor

    def _followed(self, newest: Tensor) -> Tensor:
        # without its first row and column, L Lᴴ gains their outer product; then the newest gradient is appended
        rest = cholesky_update(self.factor[1:, 1:], self.factor[1:, 0])
        last = torch.linalg.solve_triangular(rest, newest[:-1].unsqueeze(-1), upper=False).squeeze(-1)
        pivot = newest[-1] - last.square().sum()
        if not bool(pivot > self.size * torch.finfo(_SMALL).eps * newest[-1]):
            return self._factored()
        factor = torch.zeros_like(self.factor)
        factor[:-1, :-1] = rest
        factor[-1, :-1] = last
        factor[-1, -1] = pivot.sqrt()
        return factor


def _positive(damping: float) -> float:
    if not (damping > 0 and math.isfinite(damping)):
        raise ArgumentError(f"GradientWindow: expected a finite damping > 0, got {damping}")
    return float(damping)
