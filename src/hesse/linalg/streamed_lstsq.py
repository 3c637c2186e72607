"""Least squares over rows that come in blocks and are never held together: `sketched_lstsq` for data on disk.

Shapes: A (N, D), b (N, K), S (M, N). The subsampled Hadamard transform of all rows is a sum over aligned groups of G
rows, G a power of two: with row numbers g G + i, H[r, g G + i] = (-1)^(bits that r // G and g share) H_G[r mod G, i].
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least, wide_dtype
from hesse.linalg._hadamard import parity_sign, sampled_hadamard
from hesse.linalg._refinement import SketchedSolveInfo, described, refined
from hesse.linalg._sketched_system import SketchedFactor
from hesse.linalg.sketch import SRHT
from hesse.linalg.sketched_lstsq import lstsq_sketch_size

__all__ = ["RowBlocks", "streamed_lstsq"]

RowBlocks = Iterable[tuple[Tensor, Tensor]] | Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Pairs (rows of A, entries of b): anything that can be walked again, or a function that starts a new walk."""

_GROUP_NUMBERS = 1 << 20  # of A that are transformed at a time: 8 MB


class _Options(TypedDict, total=False):
    eps: float | None
    delta: float
    theory: bool
    sketch_size: int | None
    refine: int
    tol: float
    damping: float
    rcond: float | None
    generator: Generator | None


@overload
def streamed_lstsq(
    blocks: RowBlocks, num_rows: int, *, return_info: Literal[False] = False, **options: Unpack[_Options]
) -> Tensor: ...
@overload
def streamed_lstsq(
    blocks: RowBlocks, num_rows: int, *, return_info: Literal[True], **options: Unpack[_Options]
) -> tuple[Tensor, SketchedSolveInfo]: ...
@torch.no_grad()
def streamed_lstsq(
    blocks: RowBlocks,
    num_rows: int,
    *,
    eps: float | None = None,
    delta: float = 0.05,
    theory: bool = False,
    sketch_size: int | None = None,
    refine: int = 0,
    tol: float = 0.0,
    damping: float = 0.0,
    rcond: float | None = None,
    return_info: bool = False,
    generator: Generator | None = None,
) -> Tensor | tuple[Tensor, SketchedSolveInfo]:
    """Minimise ‖S (A x - b)‖² + damping ‖x‖² in one pass over the rows; with more passes, ‖A x - b‖² + damping ‖x‖².

    The sketch is the SRHT of `sketched_lstsq`, with its bounds on single coordinates: one generator gives one solution,
    in whatever blocks the rows come.

    Parameters
    ----------
    blocks : iterable of pairs, or callable that returns one
        Rows of A, shape (n_i, D), and of b, shape (n_i,) or (n_i, K), in the same order at every walk. An iterator
        that is used up after one walk will do for ``refine=0`` without ``return_info``.
    num_rows : int
        N, the sum of the n_i; the transform needs it beforehand. N >= D.
    eps, delta, theory, sketch_size
        As in `sketched_lstsq`; the sketch never has more than N rows.
    refine : int, default 0
        0: one pass. 1: two passes, the second for a gradient step of fixed length in preconditioned coordinates, which
        multiplies the error by 2 √ρ / (1 + ρ) or less, ρ = D/M. More: so many steps of conjugate gradients, a pass
        each, and a pass for each of a few fresh residuals.
    tol : float, default 0.0
        As in `sketched_lstsq`.
    damping : float, default 0.0
        Weight of ‖x‖², in units of AᴴA.
    rcond : float, optional
        As in `sketched_lstsq`.
    return_info : bool, default False
        Also return how good the solution is; costs one more pass.
    generator : torch.Generator, optional
        Source of the sketch. Default: torch's global generator.

    Returns
    -------
    Tensor, shape (D,) or (D, K)
        x, in the dtype of the rows. No gradient flows.
    SketchedSolveInfo
        Only with ``return_info=True``.

    Raises
    ------
    ShapeError
        If the rows are not ``num_rows`` in all, are fewer than D, or do not fit one another.
    ArgumentError
        If a number is out of range, ``eps`` meets ``sketch_size``, or a second pass is needed and cannot be had.
    ArgumentTypeError
        If a block is not a pair of tensors.
    SingularError
        If S A is rank-deficient and neither ``rcond`` nor ``damping`` is given.
    NumericalError
        If A or b has NaN or Inf.

    Notes
    -----
    O(N D log M + M D²) time; memory M D numbers for the sketch, N signs, 8 MB for a group of rows, and one block.

    References
    ----------
    As `sketched_lstsq`; M. Pilanci, M. J. Wainwright (2016), J. Mach. Learn. Res. 17(53), for the single step.

    Examples
    --------
    >>> import torch
    >>> from hesse.linalg import streamed_lstsq
    >>> g = torch.Generator().manual_seed(0)
    >>> A = torch.randn(2000, 10, dtype=torch.float64, generator=g)
    >>> x = streamed_lstsq(lambda: zip(A.split(300), A.sum(1).split(300)), 2000, refine=40, generator=g)
    >>> bool((x - 1).abs().max() < 1e-13)
    True
    """
    _check(blocks, num_rows, eps, delta, sketch_size, refine, tol, damping, rcond, return_info)
    rows = _Rows(blocks, num_rows)
    size = min(num_rows, sketch_size or 0)
    if sketch_size is None:
        size = lstsq_sketch_size(num_rows, rows.width, eps=1.0 if eps is None else eps, delta=delta, theory=theory)
    if size < rows.width:
        raise ArgumentError(f"streamed_lstsq: expected a sketch of at least D = {rows.width} rows, got {size}")
    sketched = rows.sketched(size, generator)
    if not bool(torch.isfinite(sketched).all()):
        raise NumericalError("streamed_lstsq: A or b has NaN or Inf, or overflows in the sketch")
    small_A, small_b = sketched[:, : rows.width], sketched[:, rows.width :]
    factor = SketchedFactor.build(small_A, small_b, damping=damping, rcond=rcond)
    x, steps = factor.apply(factor.projected), 0
    freedom = size - len(factor.projected)
    left = torch.linalg.vector_norm(small_b - small_A @ x, dim=0)
    standard_error = left / freedom**0.5 if freedom else torch.full_like(left, torch.inf)
    if refine == 1:
        # eigenvalues of the preconditioned AᴴA lie between 1 / (1 ± √ρ)², ρ = D/M: the best fixed step for that range
        share = rows.width / size
        gradient = rows.residual(x)[1] - damping * x
        x = x + (1 - share) ** 2 / (1 + share) * factor.apply(factor.adjoint(gradient))
        steps = 1
    elif refine:
        x, steps = refined(rows, factor, x, damping=damping, limit=refine, tol=tol)
    found = (x.squeeze(-1) if rows.single else x).to(rows.own_dtype)
    if not return_info:
        return found
    return found, described(
        rows,
        factor,
        x,
        None if refine else standard_error,
        shape=torch.Size((num_rows,) if rows.single else (num_rows, x.shape[1])),
        damping=damping,
        delta=delta,
        tol=tol,
        sketch_size=size,
        num_sketches=1,
        two_sketch_error=None,
        num_steps=steps,
    )


def _check(
    blocks: RowBlocks,
    num_rows: int,
    eps: float | None,
    delta: float,
    sketch_size: int | None,
    refine: int,
    tol: float,
    damping: float,
    rcond: float | None,
    return_info: bool,
) -> None:
    call = "streamed_lstsq"
    if not callable(blocks) and not isinstance(blocks, Iterable):
        raise ArgumentTypeError(f"{call}: expected blocks to be iterable or callable, got {type(blocks).__name__}")
    at_least(call, "num_rows", num_rows, 1)
    at_least(call, "refine", refine, 0)
    at_least(call, "tol", tol, 0)
    at_least(call, "damping", damping, 0)
    if sketch_size is not None:
        at_least(call, "sketch_size", sketch_size, 1)
    if eps is not None and sketch_size is not None:
        raise ArgumentError(f"{call}: eps chooses the size of the sketch; leave it out, or sketch_size=")
    if rcond is not None and not 0 <= rcond < 1:
        raise ArgumentError(f"{call}: expected 0 <= rcond < 1, got {rcond}")
    if not 0 < delta < 1:
        raise ArgumentError(f"{call}: expected 0 < delta < 1, got {delta}")
    if isinstance(blocks, Iterator) and (refine or return_info):
        raise ArgumentError(
            f"{call}: refine and return_info walk over the rows again, and an iterator is used up after one walk; pass "
            "a list, a data loader, or a function that returns a new iterator"
        )


class _Rows:
    """The stream as a `Regression`: every property of it costs a pass, or was noted in the first one."""

    def __init__(self, blocks: RowBlocks, num_rows: int) -> None:
        self.blocks = blocks
        walk = iter(blocks()) if callable(blocks) else iter(blocks)
        first = next(walk, None)
        if first is None:
            raise ShapeError(f"streamed_lstsq: expected {num_rows} rows, the stream is empty")
        A, b = _pair(first)
        self.single, self.own_dtype, self.device = b.ndim == 1, A.dtype, A.device
        self.width = A.shape[1]
        self.num_targets = 1 if self.single else b.shape[1]
        self.shape = (num_rows, self.width)
        self.dtype = wide_dtype(A.dtype)
        self.sizes = torch.zeros(0)
        self._begun: tuple[tuple[Tensor, Tensor], Iterator[tuple[Tensor, Tensor]]] | None = (first, walk)
        if num_rows < self.width or self.width < 1 or self.num_targets < 1:
            raise ShapeError(
                f"streamed_lstsq: expected N >= D >= 1 and K >= 1, got N = {num_rows}, D = {self.width}, "
                f"K = {self.num_targets}"
            )

    def _walk(self) -> Iterator[tuple[Tensor, Tensor]]:
        # one pass of checked blocks in the wide dtype; the first goes on from the block that was looked at
        count = 0
        for A, b in self._raw():
            fits = A.shape[1:] == (self.width,) and b.shape == (
                (len(A),) if self.single else (len(A), self.num_targets)
            )
            kinds = {A.dtype, b.dtype} == {self.own_dtype} and {A.device, b.device} == {self.device}
            if not (fits and kinds):
                targets = "" if self.single else f", {self.num_targets}"
                raise ShapeError(
                    f"streamed_lstsq: after {count} rows expected blocks (n, {self.width}) and (n{targets}) of "
                    f"{self.own_dtype} on {self.device}, got {tuple(A.shape)} {A.dtype} and {tuple(b.shape)} {b.dtype} "
                    f"on {A.device} and {b.device}"
                )
            count += len(A)
            if count > self.shape[0]:
                break
            yield A.to(self.dtype), (b.unsqueeze(-1) if self.single else b).to(self.dtype)
        if count != self.shape[0]:
            raise ShapeError(
                f"streamed_lstsq: expected num_rows = {self.shape[0]} rows, the stream has "
                f"{count}{' or more' if count > self.shape[0] else ''}"
            )

    def _raw(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._begun is not None:
            (first, walk), self._begun = self._begun, None
            yield _pair(first)
            yield from map(_pair, walk)
        else:
            yield from map(_pair, self.blocks() if callable(self.blocks) else self.blocks)

    def sketched(self, size: int, generator: Generator | None) -> Tensor:
        """Form S [A, b] in one pass, and note ‖b‖.

        Parameters
        ----------
        size : int
            M.
        generator : torch.Generator, optional
            Source of the sketch.

        Returns
        -------
        Tensor, shape (M, D + K)
            The numbers of `SRHT` on all rows at once, up to rounding.
        """
        S = SRHT(self.shape[0], size, dtype=self.dtype, device=self.device, generator=generator)
        columns = self.width + self.num_targets
        group = min(S.padded, 1 << max(0, (_GROUP_NUMBERS // columns).bit_length() - 1))
        out = torch.zeros(size, columns, dtype=self.dtype, device=self.device)
        buffer = torch.zeros(group, columns, dtype=self.dtype, device=self.device)
        squares = torch.zeros(self.num_targets, dtype=self.dtype.to_real(), device=self.device)
        filled = start = 0

        def flush() -> None:
            sign = parity_sign(S.kept // group & start // group).to(self.dtype).unsqueeze(-1)
            signs = S.signs[start : start + filled]
            out.addcmul_(sampled_hadamard(buffer[:filled], signs, S.kept % group, group), sign)

        for A, b in self._walk():
            squares += b.abs().square().sum(0)
            taken = 0
            while taken < len(A):
                piece = min(len(A) - taken, group - filled)
                buffer[filled : filled + piece, : self.width] = A[taken : taken + piece]
                buffer[filled : filled + piece, self.width :] = b[taken : taken + piece]
                filled, taken = filled + piece, taken + piece
                if filled == group:
                    flush()
                    start, filled = start + group, 0
        if filled:
            flush()
        self.sizes = squares.sqrt()
        return out * size**-0.5

    def gram(self, x: Tensor) -> Tensor:
        """Multiply by AᴴA in one pass.

        Parameters
        ----------
        x : Tensor, shape (D, K)
            Where.

        Returns
        -------
        Tensor, shape (D, K)
            AᴴA x.
        """
        out = torch.zeros_like(x)
        for A, _ in self._walk():
            out.addmm_(A.mH, A @ x)
        return out

    def residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute ‖b - A x‖ and Aᴴ(b - A x) in one pass.

        Parameters
        ----------
        x : Tensor, shape (D, K)
            Where.

        Returns
        -------
        tuple of Tensor, shapes (K,) and (D, K)
            Norms and gradient.
        """
        image = torch.zeros_like(x)
        norm = torch.zeros_like(self.sizes)
        for A, b in self._walk():
            r = torch.addmm(b, A, x, alpha=-1)
            image.addmm_(A.mH, r)
            norm = torch.hypot(norm, torch.linalg.vector_norm(r, dim=0))
        return norm, image


def _pair(block: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    sound = isinstance(block, tuple | list) and len(block) == 2 and all(isinstance(t, Tensor) for t in block)
    if not sound or block[0].ndim != 2 or block[1].ndim not in (1, 2):
        what = type(block).__name__ if not sound else f"{tuple(block[0].shape)} and {tuple(block[1].shape)}"
        raise ArgumentTypeError(
            f"streamed_lstsq: expected every block to be a pair of tensors (n, D) and (n,) or (n, K), got {what}"
        )
    return block[0], block[1]
