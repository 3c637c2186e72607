"""What a fit of GP-HM works on: the grid, the right-hand side, and the equation for a second process.

Shapes: grid (N_1, …, N_d).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.pde.gp_hm.equations import Derivatives, Equation, Orders, linearize
from hesse.pde.gp_hm.system import Conditions

__all__ = ["Problem", "Sum", "make_grids", "orders_used"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What a fit works on."""

    equation: Equation
    source: Tensor
    conditions: Conditions
    orders: tuple[frozenset[int], ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """F[first + u] as an equation in u: what a second Gaussian process adds to a first one."""

    equation: Equation
    first: Tensor
    first_derivatives: dict[Orders, Tensor]

    @property
    def is_linear(self) -> bool:
        """Whether F is."""
        return self.equation.is_linear

    def residual(self, u: Tensor, d: Derivatives) -> Tensor:
        """Evaluate F[first + u].

        Parameters
        ----------
        u : Tensor, shape of the grid
            What is added.
        d : Derivatives
            Of u.

        Returns
        -------
        Tensor, shape of the grid
            F.
        """
        both = Derivatives(d.dim, lambda orders: self.first_derivatives[orders] + d.mixed(orders))
        return self.equation.residual(self.first + u, both)


def orders_used(equation: Equation, like: Tensor) -> list[Orders]:
    """List the derivatives that an equation asks for, by running it on zeros.

    Parameters
    ----------
    equation : Equation
        F.
    like : Tensor, shape of the grid
        For the shape.

    Returns
    -------
    list of orders
        Without u itself, unless the equation asks for it as a derivative.
    """
    probe = Derivatives(like.ndim, lambda _orders: torch.zeros_like(like))
    linearize(equation, torch.zeros_like(like), probe)
    return list(probe.seen)


def make_grids(domain: Sequence[tuple[float, float]], n_grid: int | Sequence[int] | Sequence[Tensor]) -> list[Tensor]:
    """Build the axes' points.

    Parameters
    ----------
    domain : sequence of (float, float)
        Intervals.
    n_grid : int or sequence of int or of Tensor
        Numbers of points, or the points.

    Returns
    -------
    list of Tensor, shapes (N_j,)
        In float64, faces included.

    Raises
    ------
    ArgumentError
        If there are too few points, they do not increase, or they miss the faces.
    """
    sizes = [n_grid] * len(domain) if isinstance(n_grid, int) else list(n_grid)
    if len(sizes) != len(domain):
        raise ArgumentError(f"GPHM: expected n_grid for each of {len(domain)} axes, got {len(sizes)}")
    grids = []
    for axis, (size, (low, high)) in enumerate(zip(sizes, domain, strict=True)):
        grid = size.to(torch.float64) if isinstance(size, Tensor) else None
        if grid is None:
            if int(size) < 3:
                raise ArgumentError(f"GPHM: expected at least 3 points an axis, got {size} on axis {axis}")
            grid = torch.linspace(low, high, int(size), dtype=torch.float64)
        ends = torch.tensor([low, high], dtype=torch.float64)
        if grid.ndim != 1 or len(grid) < 3 or not bool((grid.diff() > 0).all()):
            raise ArgumentError(f"GPHM: the coordinates of axis {axis} must be at least 3 and increasing")
        if not torch.allclose(grid[[0, -1]], ends):
            raise ArgumentError(f"GPHM: the coordinates of axis {axis} must begin and end at {low} and {high}")
        grids.append(grid)
    return grids
