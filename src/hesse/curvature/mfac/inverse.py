"""The inverse of a damped empirical Fisher matrix as an operator, in the memory of the gradients it is made of.

    F = λI + GᵀG/m,    F⁻¹x = (x - Gᵀ K⁻¹ G x / m) / λ,    K = λI + GGᵀ/m

Exact for this F. Shapes: m gradients in R^d are the rows of G (m, d); B blocks of S coordinates, K columns.
"""

import math
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Generator, Tensor, nn

from hesse._values import check_present
from hesse.curvature.mfac._tiles import column_tiles, combine, gram, multiply, pivots_are_rounding
from hesse.curvature.mfac._unrolled import unrolled_rows
from hesse.curvature.mfac.gradients import Fisher, Loss, gradient_rows
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError, SingularError
from hesse.linalg import BlockDiagonal, LinearOperator, LowRankPlusDiagonal
from hesse.linalg._arguments import wide_dtype
from hesse.linalg._random import gaussian_columns

__all__ = ["MFACInverse"]

Mode = Literal["woodbury", "static"]
_DEFAULT_PAGE = 64


class MFACInverse(LinearOperator):
    """F⁻¹ for F = λI + GᵀG/m, or for its diagonal blocks; no d x d matrix is formed.

    Parameters
    ----------
    grads : Tensor, shape (m, d)
        G: one gradient a row, of single examples or of mini-batches. Kept, not copied. Half precision is storage only:
        products take and give float32.
    damping : float, default 1e-5
        λ > 0, in the units of a squared gradient. Along directions that no gradient has, F⁻¹ is 1/λ.
    block_size : int, optional
        Cut the coordinates into consecutive blocks of this size, the last one shorter, and invert each by itself.
        Default: one block, so that all coordinates are correlated.
    mode : {"woodbury", "static"}, default "woodbury"
        "woodbury" factors a matrix of order min(m, S) a block and keeps G. "static" runs the recurrence of the paper,
        which needs a second matrix like G but is worked off in pages and gives single entries in O(m); in float32 it
        is wrong where λ is small (see Notes).
    dtype_small : torch.dtype, optional
        Of the small matrices and of the sums over coordinates: float32 or float64. Default: float64 for "woodbury",
        where G is converted tile by tile; the operator's own for "static", whose v_j are kept in it.
    page_size : int, optional
        Rows to a page of "static". Default: 64.
    page_device : torch.device or str, optional
        Where the pages of "static" are worked on; two of them must fit there. Default: where ``grads`` are.

    Raises
    ------
    ArgumentError
        If an option is out of range, or of the other mode.
    ArgumentTypeError
        If ``grads`` is not a real floating tensor.
    ShapeError
        If ``grads`` is not a matrix with at least one row and column.
    NumericalError
        If a gradient has NaN or Inf.
    SingularError
        If λ is below the rounding of GGᵀ/m in ``dtype_small``, or the recurrence of "static" loses q_j > 0.

    Notes
    -----
    Preparation O(d m²) time, a product with k columns O(d m k), memory O(dm) and O(m²); with blocks of S < m
    coordinates O(d S²) and O(d S). Differentiable with respect to ``grads`` and operands, but for "static".

    In the span of the gradients F⁻¹ is about m/‖g‖², elsewhere 1/λ: the small one of the two is a difference, all
    rounding unless the sums carry the digits. Hence double precision inside, also for float32; for a right-hand side
    known by its coefficients, Gᵀc, `inverse_of_combination` needs no subtraction at all.

    References
    ----------
    E. Frantar, E. Kurtic, D. Alistarh (2021), NeurIPS, arXiv 2107.03356.

    Examples
    --------
    >>> inverse = MFACInverse(torch.tensor([[2.0, 0.0, 0.0]]), damping=1.0)
    >>> inverse @ torch.tensor([1.0, 1.0, 0.0])
    tensor([0.2000, 1.0000, 0.0000])
    """

    _fields: ClassVar[tuple[str, ...]] = ("grads", "unrolled", "factors")

    def __init__(
        self,
        grads: Tensor,
        damping: float = 1e-5,
        block_size: int | None = None,
        mode: Mode = "woodbury",
        dtype_small: torch.dtype | None = None,
        *,
        page_size: int | None = None,
        page_device: torch.device | str | None = None,
    ) -> None:
        _check_grads(grads)
        d = grads.shape[1]
        dtype = wide_dtype(grads.dtype)
        if not (damping > 0 and math.isfinite(damping)):
            raise ArgumentError(f"MFACInverse: expected a finite damping > 0, got {damping}")
        if block_size is not None and block_size < 1:
            raise ArgumentError(f"MFACInverse: expected block_size >= 1, got {block_size}")
        if mode not in ("woodbury", "static"):
            raise ArgumentError(f"MFACInverse: mode must be 'woodbury' or 'static', got {mode!r}")
        if mode == "woodbury" and (page_size, page_device) != (None, None):
            raise ArgumentError("MFACInverse: page_size and page_device belong to mode='static'")
        if page_size is not None and page_size < 1:
            raise ArgumentError(f"MFACInverse: expected page_size >= 1, got {page_size}")
        small = dtype_small or (torch.float64 if mode == "woodbury" else dtype)
        if small not in (torch.float32, torch.float64) or torch.finfo(small).eps > torch.finfo(dtype).eps:
            raise ArgumentError(f"MFACInverse: dtype_small must be float64, or float32 for float32; got {small}")
        super().__init__((d, d), dtype, grads.device, is_psd=True)
        self.grads = grads
        self.damping = float(damping)
        self.block_size = min(block_size or d, d)
        self.mode: Mode = mode
        self.dtype_small = small
        self.page_size = page_size or _DEFAULT_PAGE
        self.page_device = page_device
        self.unrolled: Tensor | None = None
        if mode == "woodbury":
            self.factors = tuple(self._cholesky(rows) for rows in self._parts(grads))
        else:
            pairs = [
                unrolled_rows(rows, self.damping, dtype=small, page_size=self.page_size, page_device=page_device)
                for rows in self._parts(grads)
            ]
            flat = [V.movedim(0, 1).flatten(1) for V, _ in pairs]
            self.unrolled = torch.cat(flat, dim=1) if len(flat) > 1 else flat[0]
            self.factors = tuple(q for _, q in pairs)
            if not all(bool((torch.isfinite(q) & (q > 0)).all()) for q in self.factors):
                raise SingularError(
                    f"MFACInverse: the recurrence has lost all digits in {small}; use a larger damping, "
                    "dtype_small=torch.float64, or mode='woodbury'"
                )

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        loss_fn: Loss,
        data: Any,
        num_grads: int = 256,
        batch_size: int = 32,
        *,
        per_sample: bool = False,
        mask: Any = None,
        fisher: Fisher = "empirical",
        generator: Generator | None = None,
        **options: Any,
    ) -> Self:
        """Collect the gradients from a module and invert their Fisher matrix.

        Parameters
        ----------
        module, loss_fn, data, num_grads, batch_size, per_sample, mask, fisher, generator
            As of `gradient_rows`, with 256 gradients of 32 examples each unless said otherwise.
        **options
            Of the constructor: ``damping``, ``block_size``, ...

        Returns
        -------
        MFACInverse
            Of order P, or of the number of coordinates that ``mask`` leaves.
        """
        rows = gradient_rows(
            module,
            loss_fn,
            data,
            num_grads,
            batch_size,
            per_sample=per_sample,
            mask=mask,
            fisher=fisher,
            generator=generator,
        )
        return cls(rows, **options)

    # ------------------------------------------------------------------------------------------ products

    def _matmat(self, x: Tensor) -> Tensor:
        parts = zip(self._parts(self._rows_kept), self.factors, self._pieces(x), strict=True)
        return torch.cat([self._apply(*part).flatten(-3, -2) for part in parts], dim=-2)

    def _apply(self, rows: Tensor, factor: Tensor, x: Tensor) -> Tensor:
        if self._is_primal(rows):
            return _both_triangles(factor, x.to(self.dtype_small)).to(self.dtype)
        weights = self._weights(factor, multiply(rows, x, self.dtype_small))
        return combine(rows, -weights, self.dtype, start=x, scale=1 / self.damping)

    def _weights(self, factor: Tensor, y: Tensor) -> Tensor:
        # what multiplies the kept rows in λF⁻¹x = x - rowsᵀ weights, for y = rows x
        if self.unrolled is not None:
            return y / factor.unsqueeze(-1) * self.damping
        return _both_triangles(factor, y) / len(self.grads)

    def _solve(self, b: Tensor) -> Tensor:
        found = []
        for rows, piece in zip(self._parts(self.grads), self._pieces(b), strict=True):
            weights = multiply(rows, piece, self.dtype_small) / (self.damping * len(self.grads))
            found.append(combine(rows, weights, self.dtype, start=piece, scale=self.damping).flatten(-3, -2))
        return torch.cat(found, dim=-2)

    @property
    def has_direct_solve(self) -> bool:
        """True: F⁻¹x = b is solved by a product with F."""
        return True

    def inverse_of_combination(self, coefficients: Tensor) -> Tensor:
        """F⁻¹Gᵀc = Gᵀ K⁻¹ c, without the subtraction that a product with Gᵀc would make.

        Parameters
        ----------
        coefficients : Tensor, shape (m,), (m, k) or (B, m, k)
            c; a unit vector picks one of the gradients. With three axes every one of the B blocks has its own.

        Returns
        -------
        Tensor, shape (d,) or (d, k)
            Accurate to rounding whatever λ; to ‖g‖²/λ roundings of ``dtype_small`` where gradients are parallel.
            "static" must subtract.

        Raises
        ------
        ShapeError
            If the coefficients are not m.
        """
        m, num_blocks = len(self.grads), sum(len(factor) for factor in self.factors)
        wanted = {1: (m,), 2: (m,), 3: (num_blocks, m)}.get(coefficients.ndim)
        if wanted is None or coefficients.shape[: len(wanted)] != wanted:
            raise ShapeError(
                f"MFACInverse.inverse_of_combination: expected ({m},), ({m}, k) or ({num_blocks}, {m}, k) "
                f"coefficients, got {tuple(coefficients.shape)}"
            )
        c = coefficients.to(device=self.device, dtype=self.dtype_small)
        if coefficients.ndim < 3:
            c = c.reshape(m, -1).expand(num_blocks, -1, -1)
        pieces = c.split([len(factor) for factor in self.factors])
        found = torch.cat([self._in_span(i, piece) for i, piece in enumerate(pieces)])
        return found.squeeze(-1) if coefficients.ndim == 1 else found

    def _in_span(self, index: int, c_BMK: Tensor) -> Tensor:
        # F⁻¹Gᵀc of one part, every block with coefficients of its own
        rows, factor = self._parts(self.grads)[index], self.factors[index]
        if self.unrolled is None and not self._is_primal(rows):
            return combine(rows, _both_triangles(factor, c_BMK), self.dtype).flatten(0, 1)
        combination = combine(rows, c_BMK, self.dtype_small)
        return self._apply(self._parts(self._rows_kept)[index], factor, combination).flatten(0, 1)

    def sample(self, num_samples: int = 1, *, generator: Generator | None = None) -> Tensor:
        """Draw from N(0, F⁻¹), as a Laplace approximation needs: √λ F⁻¹z + F⁻¹Gᵀy/√m with z and y standard normal.

        Parameters
        ----------
        num_samples : int, default 1
            How many, at the cost of two products each.
        generator : torch.Generator, optional
            Source of the numbers. Default: torch's global generator.

        Returns
        -------
        Tensor, shape (num_samples, d)
            Independent rows with covariance F⁻¹, exactly.

        Raises
        ------
        ArgumentError
            If ``num_samples < 1``.
        """
        if num_samples < 1:
            raise ArgumentError(f"MFACInverse.sample: expected num_samples >= 1, got {num_samples}")
        m, d = self.grads.shape

        def draw(n: int) -> Tensor:
            return gaussian_columns(n, num_samples, dtype=self.dtype, device=self.device, generator=generator)

        outside = self.matmat(draw(d)) * self.damping**0.5
        inside = [
            self._in_span(i, draw(len(factor) * m).to(self.dtype_small).unflatten(0, (-1, m)))
            for i, factor in enumerate(self.factors)
        ]
        return (outside + torch.cat(inside) / m**0.5).mT.contiguous()

    # ------------------------------------------------------------------------------------------ entries and the matrix

    def _diagonal(self) -> Tensor:
        found = []
        for rows, factor in zip(self._parts(self._rows_kept), self.factors, strict=True):
            if self._is_primal(rows):
                found.append(torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1).flatten())
                continue
            for blocks, columns in column_tiles(rows, self.dtype_small):
                sums = [self._roots(rows[blocks, :, column], factor[blocks]).square().sum(-2) for column in columns]
                found.append((1 / self.damping - torch.cat(sums, -1)).flatten())
        return torch.cat(found).to(self.dtype)

    def _roots(self, rows: Tensor, factor: Tensor) -> Tensor:
        # U with F⁻¹ = I/λ - UᵀU, for some columns of the rows
        columns = rows.to(self.dtype_small)
        if self.unrolled is not None:
            return columns / factor.sqrt().unsqueeze(-1)
        return torch.linalg.solve_triangular(factor, columns, upper=False) / (self.damping * len(self.grads)) ** 0.5

    def element(self, i: int, j: int) -> Tensor:
        """Read one entry.

        Parameters
        ----------
        i, j : int
            Row and column, from 0.

        Returns
        -------
        Tensor, shape ()
            [F⁻¹]_ij in O(m²), in O(m) for "static"; zero outside the blocks.

        Raises
        ------
        ArgumentError
            If there is no such entry.
        """
        d, s = self.shape[0], self.block_size
        if not (0 <= i < d and 0 <= j < d):
            raise ArgumentError(f"MFACInverse.element: expected 0 <= i, j < {d}, got ({i}, {j})")
        if i // s != j // s:
            return self.grads.new_zeros((), dtype=self.dtype)
        part, block = divmod(i // s, d // s)
        rows = self._parts(self._rows_kept)[part][block]
        factor, at = self.factors[part][block], [i % s, j % s]
        if self._is_primal(rows):
            unit = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)[:, at]
            left, right = torch.linalg.solve_triangular(factor, unit, upper=False).unbind(-1)
            return (left @ right).to(self.dtype)
        left, right = self._roots(rows[:, at], factor).unbind(-1)
        return ((i == j) / self.damping - left @ right).to(self.dtype)

    def row(self, i: int) -> Tensor:
        """Read one row (and, by symmetry, column): one product.

        Parameters
        ----------
        i : int
            Its number, from 0.

        Returns
        -------
        Tensor, shape (d,)
            [F⁻¹]_i.

        Raises
        ------
        ArgumentError
            If there is no such row.
        """
        if not 0 <= i < self.shape[0]:
            raise ArgumentError(f"MFACInverse.row: expected 0 <= i < {self.shape[0]}, got {i}")
        return self.rows(torch.tensor([i], device=self.device)).squeeze(0)

    def _logdet(self) -> Tensor:
        m = len(self.grads)
        total = torch.zeros((), dtype=self.dtype_small, device=self.device)  # of F
        for rows, factor in zip(self._parts(self.grads), self.factors, strict=True):
            num_blocks, _, s = rows.shape
            if self.unrolled is not None:
                total = total + num_blocks * s * math.log(self.damping) + (factor / m).log().sum()
                continue
            free = 0 if self._is_primal(rows) else s - m
            total = total + num_blocks * free * math.log(self.damping)
            total = total + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum()
        return -total.to(self.dtype)

    @property
    def forward_operator(self) -> LinearOperator:
        """F itself, shape (d, d): products, diagonal, determinant; its own solve is Woodbury's in one precision."""
        rows = self.grads.to(self.dtype)
        blocks = []
        for piece in rows.split(self.block_size, dim=1):
            diagonal = rows.new_full((1,), self.damping).expand(piece.shape[1])
            blocks.append(LowRankPlusDiagonal(diagonal, piece.mT, rows.new_full((len(rows),), 1 / len(rows))))
        return blocks[0] if len(blocks) == 1 else BlockDiagonal(blocks)

    # ------------------------------------------------------------------------------------------ blocks

    @property
    def _rows_kept(self) -> Tensor:
        return self.grads if self.unrolled is None else self.unrolled

    def _is_primal(self, rows: Tensor) -> bool:
        # whether the d-sided matrix of a block is the smaller one
        return self.unrolled is None and rows.shape[-1] <= rows.shape[-2]

    def _parts(self, matrix: Tensor) -> list[Tensor]:
        # (m, d) as the full blocks (B, m, S), then the short one (1, m, rest), if any: views
        whole = self.shape[0] // self.block_size * self.block_size
        parts = [matrix[:, :whole].unflatten(1, (-1, self.block_size)).movedim(1, 0)]
        return parts if whole == self.shape[0] else [*parts, matrix[:, whole:].unsqueeze(0)]

    def _pieces(self, x: Tensor) -> list[Tensor]:
        # the same of operands (..., d, k): (..., B, S, k)
        whole = self.shape[0] // self.block_size * self.block_size
        pieces = [x[..., :whole, :].unflatten(-2, (-1, self.block_size))]
        return pieces if whole == self.shape[0] else [*pieces, x[..., whole:, :].unsqueeze(-3)]

    def _cholesky(self, rows: Tensor) -> Tensor:
        small = gram(rows.mT if self._is_primal(rows) else rows, self.dtype_small) / len(self.grads)
        eye = torch.eye(small.shape[-1], dtype=small.dtype, device=small.device)
        damped = small + self.damping * eye
        factor, failed = torch.linalg.cholesky_ex(damped)
        if bool((failed != 0).any()) or pivots_are_rounding(factor, damped):
            size = float(small.detach().diagonal(dim1=-2, dim2=-1).max())
            raise SingularError(
                f"MFACInverse: damping {self.damping:g} is below the rounding of GGᵀ/m, whose diagonal reaches "
                f"{size:.2g}, in {small.dtype}; use a larger damping"
                + (", or dtype_small=torch.float64" if small.dtype == torch.float32 else "")
            )
        return factor

    def _mapped(self, change: Any, prefix: str, dtype: torch.dtype, device: torch.device) -> Self:
        if dtype == self.dtype:
            return super()._mapped(change, prefix, dtype, device)
        # rounded gradients have another inverse: cast factors would not belong to them
        pages = {} if self.mode == "woodbury" else {"page_size": self.page_size, "page_device": self.page_device}
        small = torch.promote_types(self.dtype_small, dtype)
        return type(self)(
            change(f"{prefix}grads", self.grads), self.damping, self.block_size, self.mode, small, **pages
        )


def _both_triangles(factor: Tensor, y: Tensor) -> Tensor:
    # the triangle is taken explicitly because the derivative of cholesky_solve fills the other one too
    return torch.cholesky_solve(y, factor.tril())


def _check_grads(grads: Tensor) -> None:
    if not isinstance(grads, Tensor) or not grads.is_floating_point():
        kind = grads.dtype if isinstance(grads, Tensor) else type(grads).__name__
        raise ArgumentTypeError(f"MFACInverse: expected grads as a real floating tensor, got {kind}")
    if grads.ndim != 2 or 0 in grads.shape:
        raise ShapeError(f"MFACInverse: expected grads of shape (m, d), one gradient a row, got {tuple(grads.shape)}")
    check_present("MFACInverse", "grads", grads)
    finite = torch.isfinite(grads).all(1)
    if not bool(finite.all()):
        raise NumericalError(f"MFACInverse: gradient {int((~finite).nonzero()[0])} has NaN or Inf; leave it out")
