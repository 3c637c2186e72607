"""SOBA with SAGA's correction: derivatives of fixed batches are remembered, so that the noise dies out.

d̂ = d(batch_j) - table_j + Σ_i w_i table_i,   then table_j ← d(batch_j),   j drawn with probability w_j
"""

from typing import ClassVar

import torch
from torch import Tensor

from hesse.bilevel.oracle import JointProducts
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.samplers import TensorSampler
from hesse.bilevel.solvers.soba import SOBA
from hesse.errors import ArgumentTypeError

__all__ = ["SABA"]


class SABA(SOBA):
    """Constant steps, and the exact solution of finite sums; the first step is one pass over the data.

    The data are cut into n / B fixed batches; what is kept is (n / B)(2 M + N) numbers for the lower level and
    (n / B)(M + N) for the upper.

    Parameters
    ----------
    problem : BilevelProblem
        Both samplers `TensorSampler`; their batch sizes are used, their positions are not.
    lr, lr_lower, lr_linear
        Steps, as of `SOBA`.
    decay : float, default 0.0
        As of `SOBA`.
    seed : int, default 0
        Of the choice of batches.

    Raises
    ------
    ArgumentTypeError
        If a sampler is missing or of another kind.

    References
    ----------
    M. Dagréou, P. Ablin, S. Vaiter, T. Moreau (2022), NeurIPS, arXiv 2201.13409; A. Defazio, F. Bach, S. Lacoste-Julien
    (2014), NeurIPS, arXiv 1407.0202.
    """

    tensors: ClassVar[tuple[str, ...]] = ("x", "y", "v", "lower_table", "upper_table")

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lr_lower: float,
        lr_linear: float | None = None,
        decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(problem, lr=lr, lr_lower=lr_lower, lr_linear=lr_linear, decay=decay, seed=seed)
        lower, upper = problem.lower_sampler, problem.upper_sampler
        if not isinstance(lower, TensorSampler) or not isinstance(upper, TensorSampler):
            raise ArgumentTypeError("SABA: expected a TensorSampler for both levels: it keeps a table of fixed batches")
        self._lower, self._upper = lower, upper
        self.lower_table: Tensor | None = None  # (batches, 2 M + N)
        self.upper_table: Tensor | None = None  # (batches, N + M)

    def _derivatives(self) -> tuple[JointProducts, Tensor, Tensor]:
        if self.lower_table is None or self.upper_table is None:
            self.lower_table = torch.stack([self._lower_entry(part) for part in _parts(self._lower)])
            self.upper_table = torch.stack([self._upper_entry(part) for part in _parts(self._upper)])
            lower = _weights(self._lower).to(self.x) @ self.lower_table
            upper = _weights(self._upper).to(self.x) @ self.upper_table
        else:
            j, part = self._pick(self._lower)
            lower, self.lower_table = _corrected(
                self._lower_entry(part), j, self.lower_table, _weights(self._lower).to(self.x)
            )
            j, part = self._pick(self._upper)
            upper, self.upper_table = _corrected(
                self._upper_entry(part), j, self.upper_table, _weights(self._upper).to(self.x)
            )
        order, size = len(self.y), len(self.x)
        upper_x, upper_y = upper.split([size, order])
        return JointProducts(*lower.split([order, order, size])), upper_x, upper_y

    def _pick(self, sampler: TensorSampler) -> tuple[int, Tensor]:
        example = int(torch.randint(sampler.size, (), generator=self.generator))
        j = example // sampler.batch_size
        return j, _parts(sampler)[j]

    def _lower_entry(self, part: Tensor) -> Tensor:
        self.oracle.counts.samples += len(part)
        found = self.oracle.joint(self.x, self.y, self.v, self._lower.take(part))
        return torch.cat([found.lower_gradient, found.hessian_product, found.jacobian_product])

    def _upper_entry(self, part: Tensor) -> Tensor:
        self.oracle.counts.samples += len(part)
        return torch.cat(self.oracle.upper_gradients(self.x, self.y, self._upper.take(part)))


def _parts(sampler: TensorSampler) -> tuple[Tensor, ...]:
    return torch.arange(sampler.size).split(sampler.batch_size)


def _weights(sampler: TensorSampler) -> Tensor:
    return torch.tensor([len(part) / sampler.size for part in _parts(sampler)], dtype=torch.float64)


def _corrected(entry: Tensor, j: int, table: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    direction = entry - table[j] + weights @ table
    table = table.clone()  # the state before a step must survive it
    table[j] = entry
    return direction, table
