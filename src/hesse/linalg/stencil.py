"""The Poisson operator on a masked grid, by shifted adds: no matrix, any number of dimensions.   Shapes: cells (h, w)
or (d, h, w), N of them in row-major order; operands (..., N, k).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.basic import Sparse
from hesse.linalg.operator import LinearOperator

__all__ = ["PoissonStencil"]


class PoissonStencil(LinearOperator):
    """-Δ by central differences on the fluid cells of a grid; zero elsewhere.

        (A x)_i = Σ_d Σ_neighbours (x_i - x_j) / h_d²

    summed over the neighbours that are fluid (x_j their value) or empty (x_j = 0, Dirichlet); a solid neighbour drops
    out (Neumann). Rows and columns of cells that are not fluid are zero: with them the operator is psd and singular,
    and CG on a right-hand side that vanishes there stays inside the fluid.

    Parameters
    ----------
    fluid : Tensor of bool, shape (h, w) or (d, h, w), or any number of dimensions
        Which cells carry an unknown.
    spacing : float or sequence of float, default 1.0
        Grid step h_d, in units of length, one a dimension or one for all.
    empty : Tensor of bool, of the shape of ``fluid``, optional
        Cells held at zero (free surface). Default: none inside the grid.
    boundary : {"dirichlet", "neumann"}, default "dirichlet"
        What lies beyond the grid: empty, or solid.
    dtype : torch.dtype, default torch.float32
        Of operands and results.

    Raises
    ------
    ArgumentTypeError
        If a mask is not boolean.
    ShapeError
        If masks or spacings do not fit.
    ArgumentError
        If a spacing is not positive, masks overlap, or the boundary is unknown.
    """

    _fields = ("fluid", "weights")

    def __init__(
        self,
        fluid: Tensor,
        spacing: float | Sequence[float] = 1.0,
        *,
        empty: Tensor | None = None,
        boundary: str = "dirichlet",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if fluid.dtype != torch.bool or (empty is not None and empty.dtype != torch.bool):
            raise ArgumentTypeError("PoissonStencil: expected boolean masks")
        if fluid.ndim == 0 or (empty is not None and empty.shape != fluid.shape):
            raise ShapeError(f"PoissonStencil: expected masks of one shape, got {tuple(fluid.shape)} and {empty}")
        steps = [float(spacing)] * fluid.ndim if isinstance(spacing, int | float) else [float(h) for h in spacing]
        if len(steps) != fluid.ndim:
            raise ShapeError(f"PoissonStencil: expected {fluid.ndim} spacings, got {len(steps)}")
        if min(steps) <= 0 or boundary not in ("dirichlet", "neumann"):
            raise ArgumentError(f"PoissonStencil: expected spacing > 0 and a boundary, got {spacing}, {boundary!r}")
        if empty is not None and bool((fluid & empty).any()):
            raise ArgumentError("PoissonStencil: a cell is both fluid and empty")
        order = math.prod(fluid.shape)
        super().__init__((order, order), dtype, fluid.device, is_psd=True)
        self.grid = tuple(fluid.shape)
        self.spacing = tuple(steps)
        self.fluid = fluid
        self.weights = self._count(fluid, empty, boundary == "dirichlet").to(dtype)

    def _count(self, fluid: Tensor, empty: Tensor | None, beyond: bool) -> Tensor:
        # the diagonal: Σ 1/h² over the neighbours that are fluid or empty
        open_cells = fluid if empty is None else fluid | empty
        total = torch.zeros(self.grid, dtype=torch.float64, device=fluid.device)
        for axis, h in enumerate(self.spacing):
            for side in (1, -1):
                total += _shifted(open_cells.double(), axis, side, fill=float(beyond)) / h**2
        return torch.where(fluid, total, 0)

    def _matmat(self, x: Tensor) -> Tensor:
        k = x.shape[-1]
        cells = x.reshape(*x.shape[:-2], *self.grid, k)
        inside = torch.where(self.fluid.unsqueeze(-1), cells, 0)
        out = self.weights.unsqueeze(-1) * inside
        lead = x.ndim - 2
        for axis, h in enumerate(self.spacing):
            length = self.grid[axis]
            if length == 1:
                continue
            at = lead + axis
            out.narrow(at, 0, length - 1).sub_(inside.narrow(at, 1, length - 1), alpha=1 / h**2)
            out.narrow(at, 1, length - 1).sub_(inside.narrow(at, 0, length - 1), alpha=1 / h**2)
        return torch.where(self.fluid.unsqueeze(-1), out, 0).reshape(x.shape)

    def to_csr(self) -> Sparse:
        """Write the stencil out as a matrix.

        Returns
        -------
        Sparse
            Of the same order; rows of cells that are not fluid are empty.
        """
        numbers = torch.arange(self.shape[0], device=self.device).reshape(self.grid)
        cells = numbers[self.fluid]
        rows, columns, values = [cells], [cells], [self.weights[self.fluid]]
        for axis, h in enumerate(self.spacing):
            length = self.grid[axis] - 1
            both = self.fluid.narrow(axis, 0, length) & self.fluid.narrow(axis, 1, length)
            near, far = numbers.narrow(axis, 0, length)[both], numbers.narrow(axis, 1, length)[both]
            rows += [near, far]
            columns += [far, near]
            values += [torch.full((2 * len(near),), -1 / h**2, dtype=self.dtype, device=self.device)]
        places = torch.stack([torch.cat(rows), torch.cat(columns)])
        matrix = torch.sparse_coo_tensor(places, torch.cat(values), self.shape, check_invariants=False)
        return Sparse(matrix, is_psd=True)

    def _diagonal(self) -> Tensor:
        return self.weights.flatten()


def _shifted(cells: Tensor, axis: int, side: int, *, fill: float) -> Tensor:
    # the neighbour's value on one side; beyond the grid, fill
    moved = torch.full_like(cells, fill)
    length = cells.shape[axis]
    source = cells.narrow(axis, 1 if side > 0 else 0, length - 1)
    moved.narrow(axis, 0 if side > 0 else 1, length - 1).copy_(source)
    return moved
