"""What a training run did, iteration by iteration, as numbers that can be kept and plotted."""

import math
from dataclasses import astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ArgumentError

__all__ = ["History", "Iteration"]


@dataclass(frozen=True, slots=True)
class Iteration:
    """One step of a training run; what does not apply is None."""

    step: int
    episodes: int  # drawn so far, those for Hessian-vector products included
    env_steps: int  # so far, of all episodes
    mean_return: float  # of the batch for the gradient, undiscounted
    direction_norm: float
    momentum: float
    learning_rate: float
    step_length: float
    hvp_norm: float | None
    evaluation: float | None  # mean return of fresh episodes at the new parameters


@dataclass(frozen=True, slots=True)
class History:
    """The iterations of a run, oldest first."""

    iterations: tuple[Iteration, ...]

    def mean_return(self, window: int = 4, *, episodes: int | None = None) -> float:
        """Average the returns of the last batches.

        Parameters
        ----------
        window : int, default 4
            Batches.
        episodes : int, optional
            Look at the run as it was when so many episodes had been drawn. Default: all.

        Returns
        -------
        float
            Undiscounted return an episode.

        Raises
        ------
        ArgumentError
            If there is no batch that early.
        """
        seen = [it.mean_return for it in self.iterations if episodes is None or it.episodes <= episodes][-window:]
        if not seen:
            raise ArgumentError(f"History.mean_return: no iteration has at most {episodes} episodes")
        return sum(seen) / len(seen)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return one list a column, JSON values only.

        Returns
        -------
        dict of str to list
            As the fields of `Iteration`.
        """
        return {field.name: [getattr(it, field.name) for it in self.iterations] for field in fields(Iteration)}

    def to_table(self) -> Tensor:
        """Return the numbers as one float64 matrix, NaN for None.

        Returns
        -------
        Tensor, shape (iterations, fields)
            The inverse of `from_table`.
        """
        rows = [[math.nan if value is None else float(value) for value in astuple(it)] for it in self.iterations]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(fields(Iteration)))

    @classmethod
    def from_table(cls, table: Tensor) -> "History":
        """Read what `to_table` wrote.

        Parameters
        ----------
        table : Tensor, shape (iterations, fields)
            The numbers.

        Returns
        -------
        History
            The same history.
        """
        rows: list[list[float]] = table.tolist()
        counts = [[int(value) for value in row[:3]] for row in rows]
        optional = [[None if math.isnan(value) else value for value in row[8:]] for row in rows]
        return cls(
            tuple(Iteration(*head, *row[3:8], *tail) for head, row, tail in zip(counts, rows, optional, strict=True))
        )
