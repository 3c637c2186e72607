"""Scores from a training run: a matrix in nats with its ids.   Shapes: Q queries, N sequences."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hesse.influence.checks import check_ranking
from hesse.influence.scores import Ranked
from hesse.io import atomic_write_bytes

__all__ = ["TrajectoryScores"]


@dataclass(frozen=True, slots=True)
class TrajectoryScores:
    """How many nats one more copy of each training sequence adds to each query; positive raises it."""

    values: Tensor  # (Q, N)
    query_ids: list[str]
    train_ids: list[str]
    measured: Tensor  # (Q,) the queries' values at the end of the run

    def to_npz(self, path: Path | str) -> None:
        """Write query_id (Q,), train_id (N,), score (Q, N) and measured (Q,) as an .npz without pickled objects.

        Parameters
        ----------
        path : path
            Replaced if it is there.
        """
        buffer = io.BytesIO()
        ids = np.asarray(self.query_ids), np.asarray(self.train_ids)
        values, measured = self.values.numpy(), self.measured.numpy()
        np.savez(buffer, query_id=ids[0], train_id=ids[1], score=values, measured=measured)
        atomic_write_bytes(Path(path), buffer.getvalue())

    def topk(self, query: int | str, k: int, sign: int = 1) -> list[Ranked]:
        """List the strongest proponents (sign +1) or opponents (-1) of a query, strongest first.

        Parameters
        ----------
        query : int or str
            Number or id.
        k : int
            How many.
        sign : {1, -1}, default 1
            Which end.

        Returns
        -------
        list of Ranked
            Only entries of the asked sign.

        Raises
        ------
        ArgumentError
            If the query is unknown, ``k < 1`` or the sign is neither.
        """
        row = sign * self.values[check_ranking(query, k, sign, self.query_ids)]
        order = torch.argsort(row, descending=True, stable=True)[:k].tolist()
        return [Ranked(i + 1, self.train_ids[n], float(sign * row[n])) for i, n in enumerate(order) if row[n] > 0]
