"""What BSVRB is measured against, in the same interface and from the same warm start.

RSVRB: for every quantity h_i = ∇f_i, ∇_y g_i, g_i,xy, g_i,yy a table of unbiased STORM estimates over random blocks,
    e_i ← (1 - b) e_i + (m / I) (h_i(now) - (1 - b) h_i(before))  if i is drawn,   e_i ← (1 - b) e_i  if not.
BlockSOBA: one SGD step of y_i and v_i for the blocks drawn; x follows a moving average.
Shapes: m blocks, I drawn a step, N entries of x, D of y_i.
"""

from typing import ClassVar

import torch
from torch import Tensor

from hesse.bilevel.bsvrb.block_oracle import BlockMatrices, draw_blocks
from hesse.bilevel.bsvrb.blocks import BlockSolver
from hesse.bilevel.problem import BilevelProblem
from hesse.linalg.psd_projection import clip_eigenvalues

__all__ = ["RSVRB", "BlockSOBA"]


class BlockSOBA(BlockSolver):
    """Single loop over the blocks drawn, without variance reduction.

    Parameters
    ----------
    problem : BilevelProblem
        Made by `BilevelProblem.from_blocks`.
    blocks_per_step, batch_size, lr, lr_lower, lr_linear, radius, init_batch, init_steps, seed
        As of `BSVRB`.
    beta : float, default 0.05
        b in (0, 1], the weight of a new hypergradient in the moving average.

    Raises
    ------
    ArgumentError
        If a setting is out of range.

    References
    ----------
    M. Dagréou, P. Ablin, S. Vaiter, T. Moreau (2022), NeurIPS, arXiv 2201.13409: its single loop, a block at a time.
    """

    tensors: ClassVar[tuple[str, ...]] = ("x", "y", "average", "started", "v")

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        blocks_per_step: int,
        batch_size: int | None = None,
        lr: float,
        lr_lower: float,
        lr_linear: float | None = None,
        beta: float = 0.05,
        radius: float | None = None,
        init_batch: int | None = 128,
        init_steps: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(
            problem,
            blocks_per_step=blocks_per_step,
            batch_size=batch_size,
            lr=lr,
            lr_lower=lr_lower,
            lr_linear=lr_linear,
            beta=beta,
            radius=radius,
            init_batch=init_batch,
            init_steps=init_steps,
            seed=seed,
        )
        self.v = torch.zeros_like(self.y)

    def _start(self, part: Tensor, x: Tensor, y: Tensor, upper: Tensor | None, lower: Tensor | None) -> None:
        self.v[part] = self._adjoint(part, x, y, self.blocks.upper(x, y, part, upper)[1], lower)

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            The moving average that x has followed.
        """
        self.warm_start()
        index, upper, lower = self._draw_step()
        x, y, v = self.x.expand(len(index), -1), self.y[index], self.v[index]
        f_x, f_y = self.blocks.upper(x, y, index, upper)
        found = self.blocks.products(x, y, index, lower, v)
        estimate = (f_x - found.jacobian_product).mean(0)
        average = estimate if self.average is None else torch.lerp(self.average, estimate, self.beta)
        y = y - self.lr_lower * found.gradient
        v = self._in_ball(v - self.lr_linear * (found.hessian_product - f_y))
        followed = self._follow(average)
        self._require_finite(index, followed, y, v)
        self.y[index], self.v[index], self.x, self.average = y, v, followed, average
        return average


class RSVRB(BlockSolver):
    """Randomised stochastic variance-reduced bilevel optimisation: whole tables of unbiased estimates.

    Every table is touched in every step: O(m D (N + D)) time and memory.

    Parameters
    ----------
    problem : BilevelProblem
        Made by `BilevelProblem.from_blocks`.
    blocks_per_step, batch_size, lr, lr_lower, init_batch, init_steps, seed
        As of `BSVRB`.
    mu : float or Tensor, shape (m,)
        Lower bound of g_i,yy: where a Hessian is inverted, its eigenvalues are clipped there.
    beta : float, default 0.05
        b in (0, 1], of all estimates.

    Raises
    ------
    ArgumentError
        If a setting is out of range.

    References
    ----------
    Z. Guo, Q. Hu, L. Zhang, T. Yang (2021), arXiv 2105.02266.
    """

    tensors: ClassVar[tuple[str, ...]] = (
        "x", "y", "average", "started", "x_before", "y_before", "gradient", "upper_table", "mixed", "hessian",
    )  # fmt: skip

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        blocks_per_step: int,
        batch_size: int | None = None,
        lr: float,
        lr_lower: float,
        mu: float | Tensor,
        beta: float = 0.05,
        init_batch: int | None = 128,
        init_steps: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(
            problem,
            blocks_per_step=blocks_per_step,
            batch_size=batch_size,
            lr=lr,
            lr_lower=lr_lower,
            lr_linear=None,
            beta=beta,
            radius=None,
            init_batch=init_batch,
            init_steps=init_steps,
            seed=seed,
        )
        m, order = self.y.shape
        self.mu = self._lower_bounds(mu)
        self.x_before, self.y_before = self.x, self.y.clone()
        self.gradient = torch.zeros_like(self.y)
        self.upper_table = self.y.new_zeros(m, len(self.x) + order)  # f_x, then f_y
        self.mixed = self.y.new_zeros(m, len(self.x), order)
        self.hessian = self.y.new_zeros(m, order, order)

    def _start(self, part: Tensor, x: Tensor, y: Tensor, upper: Tensor | None, lower: Tensor | None) -> None:
        self.y_before[part] = y
        self.upper_table[part] = torch.cat(self.blocks.upper(x, y, part, upper), dim=1)
        found = self.blocks.matrices(x, y, part, lower)
        self.gradient[part], self.mixed[part], self.hessian[part] = found.gradient, found.jacobian, found.hessian

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            The estimate that x has followed.
        """
        self.warm_start()
        index, upper, lower = self._draw_step()
        now, upper_now = self._probe(self.x, self.y[index], index, upper, lower)
        before, upper_before = self._probe(self.x_before, self.y_before[index], index, upper, lower)
        gradient = self._tracked(self.gradient, index, now.gradient, before.gradient)
        upper_table = self._tracked(self.upper_table, index, upper_now, upper_before)
        mixed = self._tracked(self.mixed, index, now.jacobian, before.jacobian)
        hessian = self._tracked(self.hessian, index, now.hessian, before.hessian)

        others = draw_blocks(self.blocks.num_blocks, self.blocks_per_step, self.generator).to(self.x.device)
        estimate = self._estimate(others, upper_table, mixed, hessian)
        held = self._estimate(others, self.upper_table, self.mixed, self.hessian)
        average = estimate if self.average is None else (1 - self.beta) * (self.average - held) + estimate
        followed = self._follow(average)
        self._require_finite(index, followed, gradient[index], hessian[index])
        self.gradient, self.upper_table, self.mixed, self.hessian = gradient, upper_table, mixed, hessian
        self.y_before, self.y = self.y, self.y - self.lr_lower * gradient
        self.x_before, self.x, self.average = self.x, followed, average
        return average

    def _probe(
        self, x: Tensor, y: Tensor, index: Tensor, upper: Tensor | None, lower: Tensor | None
    ) -> tuple[BlockMatrices, Tensor]:
        x = x.expand(len(index), -1)
        above = torch.cat(self.blocks.upper(x, y, index, upper), dim=1)
        return self.blocks.matrices(x, y, index, lower), above

    def _tracked(self, table: Tensor, index: Tensor, now: Tensor, before: Tensor) -> Tensor:
        scale = self.blocks.num_blocks / len(index)
        return ((1 - self.beta) * table).index_add(0, index, scale * (now - (1 - self.beta) * before))

    def _estimate(self, index: Tensor, upper_table: Tensor, mixed: Tensor, hessian: Tensor) -> Tensor:
        f_x, f_y = upper_table[index].split([len(self.x), self.y.shape[1]], dim=1)
        v = torch.linalg.solve(clip_eigenvalues(hessian[index], self.mu[index]), f_y)
        return (f_x - torch.einsum("snd,sd->sn", mixed[index], v)).mean(0)
