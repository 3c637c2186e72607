"""What solvers of many lower problems share: draws of blocks and rows, the warm start, stacks of one row a block.

Shapes: m blocks, I drawn a step, S in a part, N entries of x, D of y_i, B rows a block.
"""

import warnings
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from hesse.bilevel.bsvrb.block_oracle import BlockOracle, draw_blocks, draw_rows
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import BilevelSolver, positive
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError
from hesse.linalg._arguments import at_least
from hesse.linalg.basic import FunctionOperator
from hesse.linalg.projections import Ball
from hesse.linalg.solvers.cg import cg
from hesse.linalg.solvers.solution import Status

__all__ = ["BlockSolver"]

_PART = 1024  # blocks of the warm start that are worked on at once
_POWER_STEPS = 20
_ADJOINT_RTOL = 1e-6


class BlockSolver(BilevelSolver):
    """Φ(x) = (1/m) Σ_i f_i(x, y_i*(x)), with I blocks a step and B rows of each.

    A step works everything out first and writes to the stacks last, so that a step that fails leaves no trace.

    Parameters
    ----------
    problem : BilevelProblem
        Made by `BilevelProblem.from_blocks`, with no set for y.
    blocks_per_step : int
        I.
    batch_size : int, optional
        B, of either level. Default: whole blocks.
    lr, lr_lower : float
        Steps of x and of y.
    lr_linear : float, optional
        Step of the adjoints v. Default: ``lr_lower``.
    beta : float
        b in (0, 1], the weight of a new hypergradient.
    radius : float, optional
        The adjoints are kept in this ball, which must hold (g_i,yy)⁻¹ ∇_y f_i. Default: no ball.
    init_batch : int, optional
        Rows a block of the warm start. Default: whole blocks.
    init_steps : int
        Gradient steps of length 1 / ‖g_i,yy‖ that take y from the problem's start.
    seed : int
        Of blocks and rows.

    Raises
    ------
    ArgumentError
        If a setting is out of range, or the problem confines y.
    ArgumentTypeError
        If a solver that factors matrices is given half precision.
    """

    tensors: ClassVar[tuple[str, ...]] = ("x", "y", "average", "started")

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        blocks_per_step: int,
        batch_size: int | None,
        lr: float,
        lr_lower: float,
        lr_linear: float | None,
        beta: float,
        radius: float | None,
        init_batch: int | None,
        init_steps: int,
        seed: int,
    ) -> None:
        super().__init__(problem, seed=seed)
        call = type(self).__name__
        self.blocks = BlockOracle(self.oracle)
        if problem.project_y is not None or problem.constraint is not None or problem.equality is not None:
            raise ArgumentError(f"{call}: the lower level is confined to a set, where implicit formulas do not hold")
        if not 1 <= blocks_per_step <= self.blocks.num_blocks:
            raise ArgumentError(
                f"{call}: expected 1 <= blocks_per_step <= {self.blocks.num_blocks} blocks, got {blocks_per_step}"
            )
        for name, value in (("batch_size", batch_size), ("init_batch", init_batch)):
            if value is not None:
                at_least(call, name, value, 1)
        at_least(call, "init_steps", init_steps, 0)
        self.lr, self.lr_lower = lr, lr_lower
        self.lr_linear = lr_lower if lr_linear is None else lr_linear
        positive(call, lr=lr, lr_lower=lr_lower, lr_linear=self.lr_linear)
        if not 0 < beta <= 1:
            raise ArgumentError(f"{call}: expected 0 < beta <= 1, got {beta}")
        if radius is not None:
            positive(call, radius=radius)
        self.ball = None if radius is None else Ball(radius)
        self.blocks_per_step, self.batch_size, self.beta = blocks_per_step, batch_size, beta
        self.init_batch, self.init_steps = init_batch, init_steps
        self._warn_of_small_blocks(call)
        self.y = self.blocks.stack(self.y)
        self.average: Tensor | None = None  # (N,): what x follows
        self.started = torch.tensor(False)

    @abstractmethod
    def _start(self, part: Tensor, x: Tensor, y: Tensor, upper: Tensor | None, lower: Tensor | None) -> None:
        """Fill the rows ``part`` of the solver's own stacks from a large batch; x and y are (S, N) and (S, D)."""

    def warm_start(self) -> None:
        """Take y near the lower solutions at x0 and fill all estimates; the first step does it if it was not done.

        Raises
        ------
        NumericalError
            If g_yy is not positive definite there.

        Warns
        -----
        UserWarning
            If a step is longer than the largest curvature allows.
        """
        if self.started:
            return
        self.started, highest = torch.tensor(True), 0.0
        for part in torch.arange(self.blocks.num_blocks).split(_PART):
            upper = self._rows(part, self.problem.upper_rows, self.init_batch, whole=True)
            lower = self._rows(part, self.problem.lower_rows, self.init_batch, whole=True)
            part = part.to(self.x.device)
            x, y = self.x.expand(len(part), -1), self.y[part]
            curvatures = self._largest_curvatures(part, x, y, lower)
            highest = max(highest, float(curvatures.max()))
            for _ in range(self.init_steps):
                y = y - self.blocks.gradient(x, y, part, lower) / curvatures
            self.y[part] = y
            self._start(part, x, y, upper, lower)
        for name in ("lr_lower", "lr_linear"):
            if getattr(self, name) * highest > 1:
                warnings.warn(
                    f"{type(self).__name__}: {name}={getattr(self, name):g} times the largest curvature {highest:.3g} "
                    "exceeds 1; the steps of the lower level may diverge, lower it",
                    stacklevel=2,
                )

    def _largest_curvatures(self, part: Tensor, x: Tensor, y: Tensor, rows: Tensor | None) -> Tensor:
        # estimate ‖g_i,yy‖ of every block, (S, 1), by power iterations side by side
        vectors = torch.randn(y.shape, generator=self.generator, dtype=torch.float64).to(y)
        norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        for _ in range(_POWER_STEPS):
            vectors = self.blocks.products(x, y, part, rows, vectors / norms).hessian_product
            norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
            if not bool((norms > 0).all() and torch.isfinite(norms).all()):
                raise NumericalError(f"warm start: g_yy of block {int(part[norms.argmin()])} is zero or not finite")
        return norms

    def _hessian_operator(self, part: Tensor, x: Tensor, y: Tensor, rows: Tensor | None) -> FunctionOperator:
        # give the block diagonal matrix of all g_i,yy of a part

        def matmat(columns: Tensor) -> Tensor:
            found = [self.blocks.products(x, y, part, rows, column.reshape(y.shape)) for column in columns.mT]
            return torch.stack([one.hessian_product.reshape(-1) for one in found], dim=1)

        order = y.numel()
        return FunctionOperator(matmat, (order, order), dtype=y.dtype, device=y.device, is_symmetric=True)

    def _adjoint(self, part: Tensor, x: Tensor, y: Tensor, f_y: Tensor, rows: Tensor | None) -> Tensor:
        # solve g_i,yy v_i = ∇_y f_i for all blocks of a part as one system
        found = cg(self._hessian_operator(part, x, y, rows), f_y.reshape(-1), rtol=_ADJOINT_RTOL, validate=False)
        if found.status >= Status.NEGATIVE_CURVATURE:
            raise NumericalError(
                "warm start: g_yy is not positive definite on the first batch; raise init_batch, or add a ridge to g"
            )
        return self._in_ball(found.x.reshape(y.shape))

    def _in_ball(self, v: Tensor) -> Tensor:
        return v if self.ball is None else self.ball(v)

    def _lower_bounds(self, mu: float | Tensor) -> Tensor:
        # give a bound of g_i,yy for each block
        bounds = torch.as_tensor(mu, dtype=self.x.dtype, device=self.x.device)
        if bounds.shape not in ((), (self.blocks.num_blocks,)) or not bool((bounds > 0).all()):
            raise ArgumentError(f"{type(self).__name__}: expected mu > 0, one number or one for each block; got {mu}")
        if self.x.dtype not in (torch.float32, torch.float64):
            raise ArgumentTypeError(f"{type(self).__name__}: {self.x.dtype} allows no factorisation of Hessians")
        return bounds.expand(self.blocks.num_blocks)

    def _draw_step(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        # draw I blocks, and B rows of either level for each, counted as drawn
        index = draw_blocks(self.blocks.num_blocks, self.blocks_per_step, self.generator)
        upper = self._rows(index, self.problem.upper_rows, self.batch_size)
        lower = self._rows(index, self.problem.lower_rows, self.batch_size)
        return index.to(self.x.device), upper, lower

    def _rows(
        self, index: Tensor, sizes: int | Tensor | None, count: int | None, *, whole: bool = False
    ) -> Tensor | None:
        # draw rows on the variables' device; None, for whole blocks, where ``whole`` and no block has more
        rows = None
        if sizes is not None and count is not None:
            held = torch.as_tensor(sizes).cpu()
            if not (whole and count >= int(held.max())):
                rows = draw_rows(held[index] if held.ndim else held.expand(len(index)), count, self.generator)
        self.oracle.counts.samples += self.blocks.samples(index, rows, sizes)
        return None if rows is None else rows.to(self.x.device)

    def _follow(self, average: Tensor) -> Tensor:
        return self.oracle.project_x(self.x - self.lr * average)

    def _require_finite(self, index: Tensor, followed: Tensor, *rows: Tensor) -> None:
        # refuse the outcome of a step before it is written: the new x, and what was found for each block drawn
        bad = torch.stack([~torch.isfinite(part).flatten(1).all(1) for part in rows]).any(0)
        if bool(bad.any()):
            raise NumericalError(f"block {int(index[bad][0])} gave NaN or Inf; lower lr_lower, lr_linear or lr")
        if not bool(torch.isfinite(followed).all()):
            raise NumericalError("the step of x gave NaN or Inf; lower lr")

    def _warn_of_small_blocks(self, call: str) -> None:
        for name in ("upper_rows", "lower_rows"):
            sizes = getattr(self.problem, name)
            if sizes is None or self.batch_size is None:
                continue
            smallest = int(torch.as_tensor(sizes).min())
            if self.batch_size > smallest:
                warnings.warn(
                    f"{call}: batch_size={self.batch_size} exceeds the {smallest} rows of the smallest block "
                    f"({name}); draws that meet such a block are with replacement",
                    stacklevel=4,
                )

    def lower_variable(self) -> Tensor:
        """Give y in the order of the problem's layout.

        Returns
        -------
        Tensor, shape (M,)
            From the stack.
        """
        return self.blocks.flatten(self.y)

    def is_finite(self, estimate: Tensor) -> bool:
        """Look at what a step left: the blocks and x were looked at before they were written.

        Parameters
        ----------
        estimate : Tensor, shape (N,)
            Of the hypergradient.

        Returns
        -------
        bool
            Whether the estimate is free of NaN and Inf.
        """
        return bool(torch.isfinite(estimate).all())
