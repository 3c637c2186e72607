"""Random matrices S with E[SᴴS] = I that shrink a tall problem: Gaussian, SRHT, CountSketch, sparse sign.

Shapes: S is (M, N), M rows kept of N. Each is a `LinearOperator`: ``S @ A`` sketches the columns of A.
"""

import math
from itertools import pairwise

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.linalg._arguments import at_least
from hesse.linalg._hadamard import sampled_hadamard
from hesse.linalg.operator import LinearOperator

__all__ = ["SRHT", "CountSketch", "GaussianSketch", "SparseSign", "fwht"]

_CACHE_NUMBERS = 1 << 20  # of a block that butterflies over its whole length still find in the cache
_WIDE = 32  # columns from which on wanted rows alone are cheaper, however many there are
_NARROW = 4  # ... and from which on they are where no more than one row in 64 is wanted


def fwht(x: Tensor, dim: int = -1) -> Tensor:
    """Multiply by the Walsh-Hadamard matrix along one dimension, orthonormally scaled.

    Parameters
    ----------
    x : Tensor, shape (..., n, ...)
        n must be a power of two. Not changed.
    dim : int, default -1
        The dimension of length n.

    Returns
    -------
    Tensor
        H x / √n, of the same shape; twice gives x back. O(n log n) a vector; differentiable.

    Raises
    ------
    ArgumentError
        If n is not a power of two.
    """
    n = x.shape[dim]
    if n < 1 or n & (n - 1):
        raise ArgumentError(f"fwht: expected a length that is a power of two along dim {dim}, got {n}; pad with zeros")
    moved = x.movedim(dim, -1)
    shape = moved.shape
    out = moved.reshape(*shape[:-1], n)
    half = 1
    while half < n:
        pairs = out.reshape(*shape[:-1], n // (2 * half), 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        out = torch.stack([first + second, first - second], dim=-2).reshape(*shape[:-1], n)
        half *= 2
    return (out / math.sqrt(n)).movedim(-1, dim)


class GaussianSketch(LinearOperator):
    """Independent normal entries of variance 1/M: the best guarantees of all sketches, and O(M N) a column.

    Parameters
    ----------
    n, m : int
        Length of the vectors, and of their sketches.
    dtype : torch.dtype, default torch.float32
        Of the entries, real.
    device : torch.device or str, default "cpu"
        Where they live.
    generator : torch.Generator, optional
        Source of the entries. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If n or m is below one.
    """

    _fields = ("matrix",)

    def __init__(
        self,
        n: int,
        m: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: Generator | None = None,
    ) -> None:
        _check_sizes("GaussianSketch", n, m)
        super().__init__((m, n), dtype, device)
        draw = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        home = _home(device, generator)
        self.matrix = torch.randn(m, n, generator=generator, dtype=draw, device=home).to(device, dtype) / math.sqrt(m)

    def _matmat(self, x: Tensor) -> Tensor:
        return self.matrix @ x

    def _rmatmat(self, y: Tensor) -> Tensor:
        return self.matrix.mH @ y

    def _dense(self) -> Tensor:
        return self.matrix


class SRHT(LinearOperator):
    """Subsampled randomised Hadamard transform √(N₂/M) P H D: random signs, a fast transform, M rows at random.

    N₂ is N rounded up to a power of two; the vectors are padded with zeros. O(N log N) a column, O(N) memory, and
    nearly the guarantees of a Gaussian sketch.

    Parameters
    ----------
    n, m : int
        Length of the vectors, and of their sketches; m <= N₂, as rows are drawn without replacement.
    dtype : torch.dtype, default torch.float32
        Of the operands.
    device : torch.device or str, default "cpu"
        Where they live.
    generator : torch.Generator, optional
        Source of signs and rows. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If n or m is below one, or m above N₂.

    References
    ----------
    N. Ailon, B. Chazelle (2009), SIAM J. Comput. 39(1). J. A. Tropp (2011), Adv. Adapt. Data Anal. 3, arXiv 1011.1595.
    """

    _fields = ("signs", "kept")

    def __init__(
        self,
        n: int,
        m: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: Generator | None = None,
    ) -> None:
        _check_sizes("SRHT", n, m)
        padded = 1 << (n - 1).bit_length()
        if m > padded:
            raise ArgumentError(f"SRHT: expected m <= {padded}, the length {n} padded to a power of two, got {m}")
        super().__init__((m, n), dtype, device)
        home = _home(device, generator)
        self.signs = _signs((n,), dtype, home, generator).to(device)
        self.kept = torch.randperm(padded, generator=generator, device=home)[:m].to(device)
        self.padded = padded

    def _matmat(self, x: Tensor) -> Tensor:
        m, columns = self.shape[0], x.numel() // self.shape[1]
        few = columns >= _WIDE or (columns >= _NARROW and 64 * m <= self.padded)
        if few and self.padded * columns >= _CACHE_NUMBERS:
            rows = x.movedim(-2, 0)
            wanted = sampled_hadamard(rows.flatten(1), self.signs, self.kept, self.padded) * m**-0.5
            return wanted.unflatten(1, rows.shape[1:]).movedim(0, -2)
        signed = x * self.signs.unsqueeze(-1)
        full = torch.nn.functional.pad(signed, (0, 0, 0, self.padded - self.shape[1]))
        return fwht(full, dim=-2).index_select(-2, self.kept) * math.sqrt(self.padded / self.shape[0])

    def _rmatmat(self, y: Tensor) -> Tensor:
        full = y.new_zeros(*y.shape[:-2], self.padded, y.shape[-1]).index_copy(-2, self.kept, y)
        spread = fwht(full, dim=-2)[..., : self.shape[1], :]
        return spread * self.signs.unsqueeze(-1) * math.sqrt(self.padded / self.shape[0])


class SparseSign(LinearOperator):
    """Each column of S has s entries ±1/√s, in one random row of each of s equal blocks of rows.

    O(s N) a column of A whatever M is. Eight entries make it a safe default where A is sparse or N huge.

    Parameters
    ----------
    n, m : int
        Length of the vectors, and of their sketches.
    s : int, default 8
        1 <= s <= m entries a column; 1 is `CountSketch`.
    dtype : torch.dtype, default torch.float32
        Of the entries.
    device : torch.device or str, default "cpu"
        Where they live.
    generator : torch.Generator, optional
        Source of rows and signs. Default: torch's global generator.

    Raises
    ------
    ArgumentError
        If n or m is below one, or s not between 1 and m.

    References
    ----------
    J. Nelson, H. L. Nguyen (2013), FOCS, arXiv 1211.1002.
    """

    _fields = ("buckets", "values")

    def __init__(
        self,
        n: int,
        m: int,
        s: int = 8,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: Generator | None = None,
    ) -> None:
        name = type(self).__name__
        _check_sizes(name, n, m)
        if not 1 <= s <= m:
            raise ArgumentError(f"{name}: expected 1 <= s <= m = {m}, got {s}")
        super().__init__((m, n), dtype, device)
        home = _home(device, generator)
        starts = [round(j * m / s) for j in range(s + 1)]
        picked = [torch.randint(low, high, (n,), generator=generator, device=home) for low, high in pairwise(starts)]
        self.buckets = torch.stack(picked).to(device)
        self.values = (_signs((s, n), dtype, home, generator) / math.sqrt(s)).to(device)

    def _matmat(self, x: Tensor) -> Tensor:
        out = x.new_zeros(*x.shape[:-2], self.shape[0], x.shape[-1])
        for rows, values in zip(self.buckets, self.values, strict=True):
            out = out.index_add(-2, rows, x * values.unsqueeze(-1))
        return out

    def _rmatmat(self, y: Tensor) -> Tensor:
        out = y.new_zeros(*y.shape[:-2], self.shape[1], y.shape[-1])
        for rows, values in zip(self.buckets, self.values, strict=True):
            out = out + y.index_select(-2, rows) * values.unsqueeze(-1)
        return out


class CountSketch(SparseSign):
    """One entry ±1 in each column of S: O(nnz(A)) to apply, and M of the order of d² for a d-dimensional subspace.

    Parameters
    ----------
    n, m : int
        Length of the vectors, and of their sketches.
    dtype : torch.dtype, default torch.float32
        Of the entries.
    device : torch.device or str, default "cpu"
        Where they live.
    generator : torch.Generator, optional
        Source of rows and signs. Default: torch's global generator.

    References
    ----------
    K. L. Clarkson, D. P. Woodruff (2013), STOC, arXiv 1207.6365.
    """

    def __init__(
        self,
        n: int,
        m: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: Generator | None = None,
    ) -> None:
        super().__init__(n, m, 1, dtype=dtype, device=device, generator=generator)


def _check_sizes(name: str, n: int, m: int) -> None:
    at_least(name, "n", n, 1)
    at_least(name, "m", m, 1)


def _home(device: torch.device | str, generator: Generator | None) -> torch.device:
    return torch.device(device) if generator is None else generator.device


def _signs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: Generator | None) -> Tensor:
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ArgumentTypeError(f"expected a floating or complex dtype, got {dtype}")
    return (torch.randint(2, shape, generator=generator, dtype=torch.int8, device=device) * 2 - 1).to(dtype)
