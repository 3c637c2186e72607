"""Which weights must go together, and how many of a group may go.   Shapes: U units of S weights, C groups of M."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError

__all__ = ["Blocks", "NOfM", "Pattern", "Unstructured"]


class Pattern(Protocol):
    """Cuts a parameter into units, which are dropped whole, and says which of them compete with each other."""

    @property
    def unit_size(self) -> int:
        """S, weights to a unit."""
        ...

    @property
    def max_sparsity(self) -> float:
        """The largest share of weights that can be dropped."""
        ...

    def units(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Cut a parameter of this name and shape: (U, S) places in it, every weight in one unit."""
        ...

    def groups(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, int] | None:
        """Find the units among which at most so many may be dropped: (C, M) numbers and the limit; None if any may."""
        ...


@dataclass(frozen=True, slots=True)
class Unstructured:
    """Every weight by itself."""

    @property
    def unit_size(self) -> int:
        """One."""
        return 1

    @property
    def max_sparsity(self) -> float:
        """All may go."""
        return 1.0

    def units(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Cut a parameter into weights.

        Parameters
        ----------
        name : str
            Of the parameter.
        shape : tuple of int
            Of the parameter.

        Returns
        -------
        Tensor, shape (U, 1)
            All places in order.
        """
        return torch.arange(math.prod(shape)).unsqueeze(1)

    def groups(self, name: str, shape: tuple[int, ...]) -> None:
        """Set no limit.

        Parameters
        ----------
        name : str
            Of the parameter.
        shape : tuple of int
            Of the parameter.
        """
        return


@dataclass(frozen=True, slots=True)
class NOfM:
    """At most n weights are left of every m consecutive ones along the inputs, axis 1: 2 of 4 is what GPUs speed up.

    Parameters
    ----------
    n : int, default 2
        1 <= n < m.
    m : int, default 4
        Must divide axis 1 of every parameter.

    Raises
    ------
    ArgumentError
        If the two do not fit.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ArgumentError(f"NOfM: expected 1 <= n < m, got n={self.n}, m={self.m}")

    @property
    def unit_size(self) -> int:
        """One."""
        return 1

    @property
    def max_sparsity(self) -> float:
        """1 - n/m."""
        return 1 - self.n / self.m

    def units(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Cut a parameter into weights.

        Parameters
        ----------
        name : str
            Of the parameter.
        shape : tuple of int
            Of the parameter.

        Returns
        -------
        Tensor, shape (U, 1)
            All places in order.
        """
        return torch.arange(math.prod(shape)).unsqueeze(1)

    def groups(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, int]:
        """Find the runs of m.

        Parameters
        ----------
        name : str
            Of the parameter, for the message.
        shape : tuple of int
            Of the parameter: (outputs, inputs, ...).

        Returns
        -------
        tuple of Tensor, shape (C, m), and int
            The runs, and m - n.

        Raises
        ------
        ShapeError
            If there is no axis 1, or m does not divide it.
        """
        if len(shape) < 2 or shape[1] % self.m:
            raise ShapeError(f"NOfM: {self.m} must divide axis 1 of {name}, which is {shape}; leave it out by include=")
        places = torch.arange(math.prod(shape)).reshape(shape).movedim(1, -1)
        return places.reshape(-1, self.m), self.m - self.n


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rectangles of a parameter seen as a matrix (outputs, everything else) go as wholes.

    Parameters
    ----------
    num_rows : int, default 1
        Must divide the outputs of every parameter.
    num_columns : int, default 4
        Must divide the rest.

    Raises
    ------
    ArgumentError
        If a number is below one.
    """

    num_rows: int = 1
    num_columns: int = 4

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.num_columns < 1:
            raise ArgumentError(
                f"Blocks: expected at least one row and column, got {self.num_rows}, {self.num_columns}"
            )

    @property
    def unit_size(self) -> int:
        """Weights to a rectangle."""
        return self.num_rows * self.num_columns

    @property
    def max_sparsity(self) -> float:
        """All may go."""
        return 1.0

    def units(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Cut a parameter into rectangles.

        Parameters
        ----------
        name : str
            Of the parameter, for the message.
        shape : tuple of int
            Of the parameter.

        Returns
        -------
        Tensor, shape (U, S)
            Row by row.

        Raises
        ------
        ShapeError
            If the rectangles do not tile it.
        """
        rows = shape[0] if shape else 0
        columns = math.prod(shape[1:])
        if len(shape) < 2 or rows % self.num_rows or columns % self.num_columns:
            raise ShapeError(
                f"Blocks: {self.num_rows} x {self.num_columns} does not tile {name}, which is {rows} x {columns} as a "
                "matrix; leave it out by include="
            )
        tiles = torch.arange(rows * columns).reshape(
            rows // self.num_rows, self.num_rows, columns // self.num_columns, self.num_columns
        )
        return tiles.movedim(1, 2).reshape(-1, self.unit_size)

    def groups(self, name: str, shape: tuple[int, ...]) -> None:
        """Set no limit.

        Parameters
        ----------
        name : str
            Of the parameter.
        shape : tuple of int
            Of the parameter.
        """
        return
