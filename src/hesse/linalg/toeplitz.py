"""Toeplitz matrices, T_ij = t_{i-j}: products by FFT, solves and determinants by Levinson's recursion.

Shapes: T is (..., M, N), given by its first column and row; memory O(M + N).
"""

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError, SingularError
from hesse.linalg._arguments import wide_dtype
from hesse.linalg.operator import LinearOperator, Scalar

__all__ = ["CirculantPreconditioner", "Toeplitz", "circulant_preconditioner"]

_DENSE_ORDER = 512  # below, the N steps of Levinson's recursion cost more than LAPACK's N³/3 flops


class Toeplitz(LinearOperator):
    """A matrix that is constant along its diagonals: a stationary kernel on a uniform grid, a convolution.

    Parameters
    ----------
    column : Tensor, shape (..., M)
        First column, t_0, t_1, …
    row : Tensor, shape (..., N), optional
        First row, t_0, t_{-1}, …; its first entry must be the column's. Default: the column's conjugate, which makes
        the matrix symmetric.
    is_psd : bool, default False
        Promise that T is positive semi-definite; a symmetric T that promises it has an exact solve.

    Raises
    ------
    ShapeError
        If the two do not fit each other in shape, dtype or device.
    ArgumentError
        If their first entries differ.

    Notes
    -----
    A product costs O((M + N) log(M + N)) a column. The solve needs a real positive definite T. Up to N = 512 it is a
    dense Cholesky factorisation, above it Levinson's recursion: O(N²) time a column and N short steps, O(N) memory
    (with gradients O(N²)), about as stable as Cholesky for such matrices. For N above some 10⁴, or many right-hand
    sides, `cg` with `circulant_preconditioner` is faster.

    References
    ----------
    N. Levinson (1947), J. Math. Phys. 25. G. Cybenko (1980), SIAM J. Sci. Stat. Comput. 1(3).
    """

    _fields = ("column", "row")

    def __init__(self, column: Tensor, row: Tensor | None = None, *, is_psd: bool = False) -> None:
        symmetric = row is None
        if row is None:
            row = column.conj()
        elif column.ndim < 1 or column.shape[:-1] != row.shape[:-1]:
            raise ShapeError(
                f"Toeplitz: expected column (..., m) and row (..., n), got {tuple(column.shape)} and {tuple(row.shape)}"
            )
        if column.ndim < 1 or column.shape[-1] == 0 or row.shape[-1] == 0:
            raise ShapeError(f"Toeplitz: expected a column of at least one entry, got shape {tuple(column.shape)}")
        if column.dtype != row.dtype or column.device != row.device:
            raise ShapeError(f"Toeplitz: column is {column.dtype} on {column.device}, row {row.dtype} on {row.device}")
        if not bool((column[..., 0] == row[..., 0]).all()):
            raise ArgumentError("Toeplitz: column and row must begin with the same entry, the one on the diagonal")
        super().__init__(
            (column.shape[-1], row.shape[-1]),
            column.dtype,
            column.device,
            batch_shape=tuple(column.shape[:-1]),
            is_symmetric=symmetric,
            is_psd=is_psd,
        )
        self.column = column
        self.row = row

    @property
    def _length(self) -> int:
        return 1 << (sum(self.shape) - 2).bit_length()  # a power of two >= m + n - 1

    def _spectrum(self) -> Tensor:
        # of the circulant that has T in its corner: t_0 … t_{m-1}, zeros, t_{-(n-1)} … t_{-1}
        wide = wide_dtype(self.dtype)
        m, n = self.shape
        gap = self.column.new_zeros(*self.batch_shape, self._length - m - n + 1)
        circle = torch.cat([self.column, gap, self.row[..., 1:].flip(-1)], dim=-1).to(wide)
        return (torch.fft.fft(circle) if wide.is_complex else torch.fft.rfft(circle)).unsqueeze(-1)

    def _multiply(self, spectrum: Tensor, x: Tensor, rows: int) -> Tensor:
        wide, length = wide_dtype(self.dtype), self._length
        if wide.is_complex:
            out = torch.fft.ifft(spectrum * torch.fft.fft(x.to(wide), n=length, dim=-2), dim=-2)
        else:
            out = torch.fft.irfft(spectrum * torch.fft.rfft(x.to(wide), n=length, dim=-2), n=length, dim=-2)
        return out[..., :rows, :].to(self.dtype)

    def _matmat(self, x: Tensor) -> Tensor:
        return self._multiply(self._spectrum(), x, self.shape[0])

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self._multiply(self._spectrum().conj(), y, self.shape[1])

    def _dense(self) -> Tensor:
        m, n = self.shape
        lags = torch.cat([self.row[..., 1:].flip(-1), self.column], dim=-1)  # t_{-(n-1)} … t_{m-1}
        place = torch.arange(m, device=self.device).unsqueeze(1) - torch.arange(n, device=self.device) + n - 1
        return lags[..., place]

    def _diagonal(self) -> Tensor:
        return self.column[..., :1].expand(*self.batch_shape, min(self.shape))

    def _rows(self, index: Tensor) -> Tensor:
        n = self.shape[1]
        lags = torch.cat([self.row[..., 1:].flip(-1), self.column], dim=-1)
        return lags[..., index.unsqueeze(1) - torch.arange(n, device=self.device) + n - 1]

    def _shifted(self, shift: Scalar) -> LinearOperator:
        amount = torch.as_tensor(shift, dtype=self.dtype, device=self.device)
        if self.shape[0] != self.shape[1] or amount.ndim > 0:
            return super()._shifted(shift)
        column = torch.cat([self.column[..., :1] + amount, self.column[..., 1:]], dim=-1)
        if not self.is_symmetric:
            return Toeplitz(column, torch.cat([column[..., :1], self.row[..., 1:]], dim=-1))
        if amount.is_complex() and bool(amount.imag != 0):
            return super()._shifted(shift)
        return Toeplitz(column, is_psd=self.is_psd and bool(amount.real >= 0))

    @property
    def has_direct_solve(self) -> bool:
        """Whether T is real and promised positive semi-definite: Levinson's recursion."""
        return self.is_psd and not self.dtype.is_complex

    def _solve(self, b: Tensor) -> Tensor:
        self._require_levinson("solve")
        if self.shape[0] <= _DENSE_ORDER:
            return torch.cholesky_solve(b.to(wide_dtype(self.dtype)), self._cholesky()).to(self.dtype)
        solution, _ = _levinson(self.column.to(wide_dtype(self.dtype)), b.to(wide_dtype(self.dtype)))
        return solution.to(self.dtype)

    def _logdet(self) -> Tensor:
        self._require_levinson("logdet")
        if self.shape[0] <= _DENSE_ORDER:
            return 2 * self._cholesky().diagonal(dim1=-2, dim2=-1).log().sum(-1)
        column = self.column.to(wide_dtype(self.dtype))
        _, logdet = _levinson(column, column.new_zeros(self.shape[0], 0))
        return logdet

    def _cholesky(self) -> Tensor:
        lower, failed = torch.linalg.cholesky_ex(self._dense().to(wide_dtype(self.dtype)))
        if bool((failed != 0).any()):
            raise SingularError("Toeplitz: not positive definite, although is_psd=True promises it; add a shift")
        return lower

    def _require_levinson(self, what: str) -> None:
        if not self.has_direct_solve:
            raise ArgumentTypeError(
                f"Toeplitz.{what}: Levinson's recursion needs a real matrix with is_psd=True; use hesse.linalg.solve"
            )


class CirculantPreconditioner(LinearOperator):
    """The inverse of a circulant matrix, applied by FFT.

    Parameters
    ----------
    eigenvalues : Tensor, shape (..., N)
        Of the circulant, real and positive, in the order of the FFT.
    dtype : torch.dtype
        Of the operands.

    Raises
    ------
    SingularError
        If an eigenvalue is not positive.
    """

    _fields = ("eigenvalues",)

    def __init__(self, eigenvalues: Tensor, dtype: torch.dtype) -> None:
        if not bool((eigenvalues > 0).all()):
            raise SingularError(
                f"CirculantPreconditioner: expected eigenvalues > 0, the smallest is {float(eigenvalues.min()):.3e}"
            )
        n = eigenvalues.shape[-1]
        super().__init__((n, n), dtype, eigenvalues.device, batch_shape=tuple(eigenvalues.shape[:-1]), is_psd=True)
        self.eigenvalues = eigenvalues

    def _matmat(self, x: Tensor) -> Tensor:
        out = torch.fft.ifft(torch.fft.fft(x.to(wide_dtype(x.dtype)), dim=-2) / self.eigenvalues.unsqueeze(-1), dim=-2)
        return out.to(self.dtype) if self.dtype.is_complex else out.real.to(self.dtype)


def circulant_preconditioner(toeplitz: Toeplitz) -> CirculantPreconditioner:
    """Build the inverse of the circulant nearest to T in the Frobenius norm, for conjugate gradients.

    Parameters
    ----------
    toeplitz : Toeplitz, shape (..., N, N)
        Symmetric positive definite.

    Returns
    -------
    CirculantPreconditioner
        Positive definite whenever T is. For kernels that decay within the grid the number of steps no longer grows
        with N.

    Raises
    ------
    ArgumentError
        If T is not symmetric.
    SingularError
        If the circulant is not positive definite: then T is not either.

    References
    ----------
    T. F. Chan (1988), SIAM J. Sci. Stat. Comput. 9(4).
    """
    if not toeplitz.is_symmetric:
        raise ArgumentError("circulant_preconditioner: expected a symmetric Toeplitz operator")
    n = toeplitz.shape[0]
    column = toeplitz.column.to(wide_dtype(toeplitz.dtype))
    j = torch.arange(n, device=column.device, dtype=column.real.dtype)
    # c_j averages the two diagonals that a circulant joins: t_j, n - j times, and t_{j-n}, j times
    opposite = torch.cat([column[..., :1], column[..., 1:].flip(-1).conj()], dim=-1)
    return CirculantPreconditioner(torch.fft.fft(((n - j) * column + j * opposite) / n).real, toeplitz.dtype)


def _levinson(column: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    # x_k solves with the leading block of order k, y_k is the predictor of the next entry; both grow by one a step
    n = column.shape[-1]
    if not bool((column[..., 0] > 0).all()):
        raise SingularError(f"Toeplitz: not positive definite, the diagonal is {float(column[..., 0].min()):.3e}")
    r = (column[..., 1:] / column[..., :1]).unsqueeze(-1)
    b = b / column[..., :1, None]
    x = b[..., :1, :]
    logdet = n * column[..., 0].log()
    if n == 1:
        return x, logdet
    y = -r[..., :1, :]
    reflection = y
    error = torch.ones_like(reflection)
    for k in range(1, n):
        error = error * (1 - reflection.square())
        if not bool((error > 0).all()):
            raise SingularError(f"Toeplitz: the leading block of order {k + 1} is not positive definite; add a shift")
        logdet = logdet + error.log()[..., 0, 0]
        flipped = y.flip(-2)
        head = r[..., :k, :]
        last = (b[..., k : k + 1, :] - (head.mT @ x.flip(-2))) / error
        x = torch.cat([x + flipped * last, last.expand(*x.shape[:-2], 1, x.shape[-1])], dim=-2)
        if k < n - 1:
            reflection = -(r[..., k : k + 1, :] + head.mT @ flipped) / error
            y = torch.cat([y + flipped * reflection, reflection], dim=-2)
    return x, logdet
