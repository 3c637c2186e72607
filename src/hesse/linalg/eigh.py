"""Operators given by an orthonormal eigenbasis: any function of them is a function of a table of eigenvalues.

Shapes: bases Q_i (..., n_i, n_i), table (..., n_1, ..., n_p), N = Π n_i; a shaped operand is (..., n_1, ..., n_p).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError, SingularError
from hesse.linalg.operator import LinearOperator, Scalar

__all__ = ["Eigh", "EighKronecker", "each_mode"]


class EighKronecker(LinearOperator):
    """(Q₁ ⊗ ⋯ ⊗ Q_p) diag(table) (Q₁ ⊗ ⋯ ⊗ Q_p)^H with any table: the shape of K-FAC, EK-FAC and fast Poisson solves.

    A product costs two passes over the bases and O(N) memory. Where a caller holds matrices V = reshape(v), the
    methods on shaped operands save the copies that a block of columns needs.

    Parameters
    ----------
    bases : sequence of Tensor, shapes (..., n_i, n_i)
        Orthonormal columns; not checked, see `hesse.testing.check_linear_operator`.
    table : Tensor, shape (..., n_1, ..., n_p)
        Eigenvalue of each tuple of columns, real.
    is_psd : bool, optional
        Default: read off the table, one pass.

    Raises
    ------
    ShapeError
        If bases and table do not fit, or dtypes or devices differ.
    ArgumentError
        If there is no basis.
    """

    _fields = ("bases", "table")

    def __init__(self, bases: Sequence[Tensor], table: Tensor, *, is_psd: bool | None = None) -> None:
        if not bases:
            raise ArgumentError("EighKronecker: expected at least one basis")
        sizes = [int(q.shape[-1]) for q in bases]
        for i, q in enumerate(bases):
            if q.ndim < 2 or q.shape[-2] != q.shape[-1]:
                raise ShapeError(f"EighKronecker: basis {i} has shape {tuple(q.shape)}, expected (..., n, n)")
            if q.dtype != bases[0].dtype or q.device != table.device or table.dtype != q.dtype.to_real():
                raise ShapeError(
                    f"EighKronecker: basis {i} is {q.dtype} on {q.device}, the table {table.dtype} on {table.device}; "
                    "expected one real dtype for the table, its own or complex kin for the bases, and one device"
                )
        if list(table.shape[-len(sizes) :]) != sizes:
            raise ShapeError(f"EighKronecker: the table is {tuple(table.shape)}, the bases ask for (..., {sizes})")
        order = math.prod(sizes)
        lead = table.shape[: table.ndim - len(sizes)]
        super().__init__(
            (order, order),
            bases[0].dtype,
            table.device,
            batch_shape=tuple(torch.broadcast_shapes(lead, *(q.shape[:-2] for q in bases))),
            is_symmetric=True,
            is_psd=bool((table >= 0).all()) if is_psd is None else is_psd,
        )
        self.bases = tuple(bases)
        self.table = table

    @property
    def sizes(self) -> tuple[int, ...]:
        """(n_1, ..., n_p)."""
        return tuple(int(q.shape[-1]) for q in self.bases)

    def _matmat(self, x: Tensor) -> Tensor:
        return self._filtered(x, self.table)

    def _filtered(self, x: Tensor, table: Tensor) -> Tensor:
        if len(self.bases) == 1:
            q = self.bases[0]
            return q @ (table.unsqueeze(-1) * (q.mH @ x))
        order = range(len(self.bases))
        inside = each_mode([q.mH.matmul for q in self.bases], self.sizes, x, order)
        flat = table.flatten(-len(self.bases)).unsqueeze(-1)
        return each_mode([q.matmul for q in self.bases], self.sizes, inside * flat, order)

    @property
    def has_direct_solve(self) -> bool:
        """True: division in the eigenbasis."""
        return True

    def _solve(self, b: Tensor) -> Tensor:
        return self._filtered(b, _reciprocal("EighKronecker.solve", self.table))

    def _logdet(self) -> Tensor:
        total = self.table.abs().log().flatten(-len(self.bases)).sum(-1)
        return total.expand(self.batch_shape)

    def _trace(self) -> Tensor:
        return self.table.flatten(-len(self.bases)).sum(-1).to(self.dtype).expand(self.batch_shape)

    def _diagonal(self) -> Tensor:
        squares = [(q.abs() ** 2).matmul for q in self.bases]
        column = self.table.flatten(-len(self.bases)).unsqueeze(-1)
        out = each_mode(squares, self.sizes, column, range(len(squares))).squeeze(-1)
        return out.to(self.dtype).expand(*self.batch_shape, self.shape[0])

    def _shifted(self, shift: Scalar) -> LinearOperator:
        if isinstance(shift, complex) or (isinstance(shift, Tensor) and shift.is_complex()):
            return super()._shifted(shift)
        if isinstance(shift, Tensor) and shift.ndim:
            shift = shift[(..., *[None] * len(self.bases))]
        return EighKronecker(self.bases, self.table + shift)

    @property
    def has_spectral_form(self) -> bool:
        """True: this is one."""
        return True

    def _spectral_form(self) -> "EighKronecker":
        return self

    def map_spectrum(self, function: Callable[[Tensor], Tensor]) -> "EighKronecker":
        """Apply a function to the operator: f(A) = Q f(table) Q^H.

        Parameters
        ----------
        function : callable
            Elementwise, real, from the table to a table of the same shape.

        Returns
        -------
        EighKronecker
            In the same bases.
        """
        return EighKronecker(self.bases, function(self.table))

    def power(self, exponent: float) -> "EighKronecker":
        """Raise to a real power.

        Parameters
        ----------
        exponent : float
            Any, if the table is positive; a whole number otherwise.

        Returns
        -------
        EighKronecker
            In the same bases.

        Raises
        ------
        ArgumentError
            If the table has negative entries and the exponent is fractional.
        SingularError
            If the table has a zero and the exponent is negative.
        """
        if not float(exponent).is_integer() and bool((self.table < 0).any()):
            raise ArgumentError(f"EighKronecker.power: exponent {exponent} of a negative eigenvalue is not real")
        if exponent < 0:
            _reciprocal("EighKronecker.power", self.table)
        return self.map_spectrum(lambda table: table**exponent)

    def pinv(self, rtol: float | None = None) -> "EighKronecker":
        """Take the Moore-Penrose inverse.

        Parameters
        ----------
        rtol : float, optional
            Entries below ``rtol`` times the largest magnitude count as zero. Default: N eps.

        Returns
        -------
        EighKronecker
            In the same bases.
        """
        size = self.table.abs()
        cut = (self.shape[0] * torch.finfo(self.table.dtype).eps if rtol is None else rtol) * size.max()
        keep = size > cut
        return self.map_spectrum(lambda table: torch.where(keep, 1 / torch.where(keep, table, 1), 0))

    def damped_inverse(self, damping: float | Tensor) -> "EighKronecker":
        """Invert A + damping · I exactly: Q [1 / (table + damping)] Q^H.

        Parameters
        ----------
        damping : float or Tensor, shape ()
            The shift, in the units of A.

        Returns
        -------
        EighKronecker
            The inverse as an operator.

        Raises
        ------
        SingularError
            If an entry of the damped table is zero.
        """
        return self.map_spectrum(lambda table: _reciprocal("EighKronecker.damped_inverse", table + damping))

    def multiply_shaped(self, v: Tensor) -> Tensor:
        """Multiply operands that keep the shape of the table.

        Parameters
        ----------
        v : Tensor, shape (..., n_1, ..., n_p)
            For p = 2, a stack of matrices.

        Returns
        -------
        Tensor, shape (..., n_1, ..., n_p)
            reshape(A vec(v)) for each.

        Raises
        ------
        ShapeError
            If ``v`` does not fit the table in shape, dtype or device.
        """
        return self._filtered_shaped("multiply_shaped", v, self.table)

    def solve_shaped(self, v: Tensor, damping: float | Tensor = 0.0) -> Tensor:
        """Solve (A + damping · I) vec(x) = vec(v) for operands that keep the shape of the table.

        Parameters
        ----------
        v : Tensor, shape (..., n_1, ..., n_p)
            For p = 2: Q₁ [ (Q₁^H v Q₂*) / (table + damping) ] Q₂ᵀ, four products of matrices each.
        damping : float or Tensor, shape (), default 0.0
            The shift, in the units of A.

        Returns
        -------
        Tensor, shape (..., n_1, ..., n_p)
            The solutions.

        Raises
        ------
        ShapeError
            If ``v`` does not fit the table in shape, dtype or device.
        SingularError
            If an entry of the damped table is zero.
        """
        return self._filtered_shaped("solve_shaped", v, _reciprocal("EighKronecker.solve_shaped", self.table + damping))

    def _filtered_shaped(self, name: str, v: Tensor, table: Tensor) -> Tensor:
        p = len(self.bases)
        if v.shape[-p:] != self.sizes or v.dtype != self.dtype or v.device != self.device:
            raise ShapeError(
                f"EighKronecker.{name}: expected (..., *{self.sizes}) {self.dtype} on {self.device}, "
                f"got {tuple(v.shape)} {v.dtype} on {v.device}"
            )
        if self.batch_shape:
            return self._filtered(v.flatten(-p).unsqueeze(-1), table).reshape(*v.shape)
        if p == 2:
            left, right = self.bases
            return left @ ((left.mH @ v @ right.conj()) * table) @ right.mT
        lead = v.ndim - p
        for i, q in enumerate(self.bases):
            v = (v.movedim(lead + i, -1) @ q.conj()).movedim(-1, lead + i)
        v = v * table
        for i, q in enumerate(self.bases):
            v = (v.movedim(lead + i, -1) @ q.mT).movedim(-1, lead + i)
        return v


class Eigh(LinearOperator):
    """Q diag(values) Q^H with r orthonormal columns; of full rank, everything about it is exact.

    Parameters
    ----------
    basis : Tensor, shape (..., n, r)
        Q, r <= n, orthonormal columns; not checked.
    values : Tensor, shape (..., r)
        Real eigenvalues; the other n - r are zero.
    is_psd : bool, optional
        Default: read off the values.

    Raises
    ------
    ShapeError
        If basis and values do not fit.
    """

    _fields = ("basis", "values")

    def __init__(self, basis: Tensor, values: Tensor, *, is_psd: bool | None = None) -> None:
        fits = basis.ndim >= 2 and values.ndim >= 1 and basis.shape[-1] == values.shape[-1] <= basis.shape[-2]
        if not fits or values.dtype != basis.dtype.to_real() or values.device != basis.device:
            raise ShapeError(
                f"Eigh: expected basis (..., n, r) and real values (..., r) with r <= n, got {tuple(basis.shape)} "
                f"{basis.dtype} on {basis.device} and {tuple(values.shape)} {values.dtype} on {values.device}"
            )
        n = basis.shape[-2]
        super().__init__(
            (n, n),
            basis.dtype,
            basis.device,
            batch_shape=tuple(torch.broadcast_shapes(basis.shape[:-2], values.shape[:-1])),
            is_symmetric=True,
            is_psd=bool((values >= 0).all()) if is_psd is None else is_psd,
        )
        self.basis = basis
        self.values = values

    def _matmat(self, x: Tensor) -> Tensor:
        return self.basis @ (self.values.unsqueeze(-1) * (self.basis.mH @ x))

    @property
    def has_direct_solve(self) -> bool:
        """Whether the rank is full."""
        return self.basis.shape[-1] == self.shape[0]

    @property
    def has_spectral_form(self) -> bool:
        """True: this is one."""
        return True

    def _spectral_form(self) -> "Eigh":
        return self

    def _solve(self, b: Tensor) -> Tensor:
        if not self.has_direct_solve:
            raise SingularError(f"Eigh.solve: rank {self.basis.shape[-1]} of {self.shape[0]}; add a shift")
        return self.basis @ (_reciprocal("Eigh.solve", self.values).unsqueeze(-1) * (self.basis.mH @ b))

    def _logdet(self) -> Tensor:
        if not self.has_direct_solve:
            return self.values.new_full(self.batch_shape, -torch.inf)
        return self.values.abs().log().sum(-1).expand(self.batch_shape)

    def _trace(self) -> Tensor:
        return self.values.sum(-1).to(self.dtype).expand(self.batch_shape)

    def _diagonal(self) -> Tensor:
        return ((self.basis.abs() ** 2) @ self.values.unsqueeze(-1)).squeeze(-1).to(self.dtype)

    def _shifted(self, shift: Scalar) -> LinearOperator:
        if isinstance(shift, complex) or (isinstance(shift, Tensor) and shift.is_complex()):
            return super()._shifted(shift)
        amount = shift.unsqueeze(-1) if isinstance(shift, Tensor) else shift
        if self.has_direct_solve:
            return Eigh(self.basis, self.values + amount)
        from hesse.linalg.low_rank import LowRankPlusDiagonal

        diagonal = (self.values.new_zeros(self.shape[0]) + amount).to(self.dtype)
        return LowRankPlusDiagonal(diagonal, self.basis, self.values.to(self.dtype))


def each_mode(
    products: Sequence[Callable[[Tensor], Tensor]], sizes: Sequence[int], x: Tensor, order: Sequence[int]
) -> Tensor:
    """Apply one product to each mode of the rows of a block of columns.

    Parameters
    ----------
    products : sequence of callable
        ``products[i]`` maps (..., n_i, c) to (..., m_i, c).
    sizes : sequence of int
        (n_1, ..., n_p).
    x : Tensor, shape (..., N, k)
        Rows in row-major order of the modes.
    order : sequence of int
        Which modes, in which order.

    Returns
    -------
    Tensor, shape (..., M, k)
        Each mode is brought to the rows and everything else becomes one wide block of columns: one product a mode.
    """
    p, k, lead = len(sizes), x.shape[-1], x.ndim - 2
    grid = x.reshape(*x.shape[:-2], *sizes, k)
    for i in order:
        moved = grid.movedim(lead + i, lead)
        rest = moved.shape[lead + 1 :]
        out = products[i](moved.flatten(lead + 1))
        lead = out.ndim - 2  # a batch of factors may have widened the batch
        grid = out.reshape(*out.shape[:-1], *rest).movedim(lead, lead + i)
    return grid.flatten(lead, lead + p - 1)


def _reciprocal(name: str, table: Tensor) -> Tensor:
    if bool((table == 0).any()):
        raise SingularError(f"{name}: an eigenvalue is exactly zero; add damping, or use pinv")
    return 1 / table
