"""Variance-reduced bilevel optimisation over many lower problems, a few of them a step.

    G_i = ∇_x f_i - g_i,xy v_i,   v_i ≈ (g_i,yy)⁻¹ ∇_y f_i
    s_i, u_i or H_i ← MSVR estimates of ∇_y g_i, of g_i,yy v_i - ∇_y f_i (version 2), of g_i,yy (version 1)
    z ← (1 - b)(z - mean G_i(before)) + mean G_i(now),   x ← x - η z
    y_i ← y_i - τ s_i  and  v_i ← v_i - τ_v u_i  for all i

"Before" is the iterate of one step ago, on the same blocks and rows. Estimates of blocks that are not drawn do not
change, so that their steps are made up for when they are drawn next.
Shapes: m blocks, I drawn a step, N entries of x, D of y_i; what is "paired" has 2 I rows, the present ones first.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hesse.bilevel.bsvrb.blocks import BlockSolver
from hesse.bilevel.bsvrb.msvr import choose_gamma, msvr_update
from hesse.bilevel.problem import BilevelProblem
from hesse.errors import ArgumentError, SingularError
from hesse.linalg.psd_projection import clip_eigenvalues

__all__ = ["BSVRB"]

_SMALL_BLOCK = 64  # up to this many entries of y_i, a Hessian for each block is cheap to hold and to factor


class BSVRB(BlockSolver):
    """Blockwise stochastic variance-reduced bilevel optimisation.

    Version 1 tracks a Hessian for each block and inverts it; version 2 tracks the adjoint v_i by Hessian-vector
    products. Of a step: 2 I evaluations of either level; version 1 forms 2 I Hessians, version 2 makes 2 I products.

    Parameters
    ----------
    problem : BilevelProblem
        Made by `BilevelProblem.from_blocks`; every g_i strongly convex in y.
    version : {"auto", 1, 2}, default "auto"
        "auto" is 1 where D <= 64 and ``mu`` is given, else 2.
    blocks_per_step : int
        I.
    batch_size : int, optional
        B rows of either level a block, of the numbers in ``upper_rows`` and ``lower_rows`` of the problem. Default:
        whole blocks. Version 1 wants B >= D.
    lr : float
        η, the step of x. Version 1 tolerates less than version 2: the noise of an inverse enters.
    lr_lower : float
        τ, the step of y. Differences of gradients are multiplied by about m / I, so that it has to shrink with
        I / m: 0.02 at I / m = 0.1 where the curvature is about 1.
    lr_linear : float, optional
        τ_v, the step of v. Default: ``lr_lower``.
    alpha : float, default 0.1
        a in (0, 1], the weight of a new probe in the block estimates; 1 only with I = m.
    beta : float, default 0.05
        b in (0, 1], the weight of a new hypergradient.
    gamma : "msvr", "storm" or float, default "msvr"
        Multiple of the differences, see `MSVR`; others than the default are for comparison.
    mu : float or Tensor, shape (m,), optional
        Version 1 only, and required there: a lower bound of g_i,yy, at which the estimates' eigenvalues are clipped. A
        ridge penalty of g is one.
    radius : float, optional
        Γ: the adjoints are kept in this ball. Default: none. Missed steps are made as one and then projected, which
        is exact only where the ball is inactive on the way.
    lazy : bool, default True
        Make up for missed steps of a block when it is drawn, instead of moving all blocks in every step.
    init_batch : int, optional, default 128
        Rows a block of the warm start: cold estimates cost thousands of steps. None: whole blocks.
    init_steps : int, default 20
        Gradient steps of the warm start, of length 1 / ‖g_i,yy‖; v starts from conjugate gradients.
    seed : int, default 0
        Of blocks and rows.

    Raises
    ------
    ArgumentError
        If a setting is out of range, the problem has no blocks or confines y, or ``mu`` is missing for version 1.
    ArgumentTypeError
        If version 1 is asked for in half precision.

    Notes
    -----
    Memory: 2 m D² numbers for version 1, 6 m D for version 2. Time of a step: that of I blocks, whatever m, if lazy.

    References
    ----------
    Q. Hu, Z. Qiu, Z. Guo, L. Zhang, T. Yang (2023), ICML, arXiv 2305.18730. Its published script multiplies missed
    steps by the new estimate; here it is the old one, which makes lazy and eager runs the same.
    """

    tensors: ClassVar[tuple[str, ...]] = (
        "x", "y", "average", "started", "x_before", "y_before", "gradient", "last",
        "v", "v_before", "residual", "hessian", "hessian_before",
    )  # fmt: skip

    def __init__(
        self,
        problem: BilevelProblem,
        version: Literal["auto", 1, 2] = "auto",
        *,
        blocks_per_step: int,
        batch_size: int | None = None,
        lr: float,
        lr_lower: float,
        lr_linear: float | None = None,
        alpha: float = 0.1,
        beta: float = 0.05,
        gamma: str | float = "msvr",
        mu: float | Tensor | None = None,
        radius: float | None = None,
        lazy: bool = True,
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
        m, order = self.y.shape
        if version not in ("auto", 1, 2):
            raise ArgumentError(f"BSVRB: expected version to be 'auto', 1 or 2, got {version!r}")
        if version == "auto":
            version = 1 if order <= _SMALL_BLOCK and mu is not None else 2
        self.version, self.alpha, self.lazy = version, alpha, lazy
        self.gamma = choose_gamma(gamma, m, blocks_per_step, alpha)
        self.x_before, self.y_before = self.x, self.y.clone()
        self.gradient = torch.zeros_like(self.y)  # s
        self.last = torch.zeros(m, dtype=torch.int64, device=self.x.device)  # the step up to which y and v are moved
        self.v = self.v_before = self.residual = self.hessian = self.hessian_before = self.x.new_zeros(0)
        if version == 1:
            if mu is None:
                raise ArgumentError("BSVRB: version 1 needs mu > 0, a lower bound of g_i,yy: the ridge of g, say")
            self.mu = self._lower_bounds(mu)
            self.hessian, self.hessian_before = self.y.new_zeros(2, m, order, order)
        else:
            self.v, self.v_before, self.residual = self.y.new_zeros(3, m, order)

    def _start(self, part: Tensor, x: Tensor, y: Tensor, upper: Tensor | None, lower: Tensor | None) -> None:
        self.y_before[part] = y
        if self.version == 1:
            found = self.blocks.hessians(x, y, part, lower, torch.zeros_like(y))
            self.hessian[part] = self.hessian_before[part] = clip_eigenvalues(found.hessian, self.mu[part])
        else:
            f_y = self.blocks.upper(x, y, part, upper)[1]
            self.v[part] = self.v_before[part] = self._adjoint(part, x, y, f_y, lower)
            found = self.blocks.products(x, y, part, lower, self.v[part])
            self.residual[part] = found.hessian_product - f_y
        self.gradient[part] = found.gradient

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N,)
            z, the variance-reduced estimate that x has followed.
        """
        self.warm_start()
        index, upper, lower = self._draw_step()
        missed = self.iteration - self.last[index]
        count, both = len(index), index.repeat(2)
        x = torch.stack([self.x, self.x_before]).repeat_interleave(count, dim=0)
        y = _paired(self._moved_y(index, missed), self._moved_y(index, missed - 1), self.y_before[index], missed)
        f_x, f_y = self.blocks.upper(x, y, both, _twice(upper))
        if self.version == 1:
            hessian = self.hessian[index]
            v = _solve(_paired(hessian, hessian, self.hessian_before[index], missed), f_y)
            found = self.blocks.hessians(x, y, both, _twice(lower), v)
            second = clip_eigenvalues(self._tracked(hessian, found.hessian), self.mu[index])
        else:
            v = _paired(self._moved_v(index, missed), self._moved_v(index, missed - 1), self.v_before[index], missed)
            found = self.blocks.products(x, y, both, _twice(lower), v)
            second = self._tracked(self.residual[index], found.hessian_product - f_y)
        gradient = self._tracked(self.gradient[index], found.gradient)
        now, before = (f_x - found.jacobian_product).unflatten(0, (2, count)).mean(1)
        average = now if self.average is None else (1 - self.beta) * (self.average - before) + now
        followed = self._follow(average)
        self._require_finite(index, followed, gradient, second)

        self.gradient[index] = gradient
        if self.lazy:
            self._move_y(index, y[:count])
            self._move_second(index, second, index, v[:count])
        else:
            everyone = torch.arange(len(self.y), device=index.device)
            self._move_y(everyone, self.y.clone())
            self._move_second(index, second, everyone, self.v.clone())
        self.x_before, self.x, self.average = self.x, followed, average
        return average

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another solver of the same version and problem stood.

        Parameters
        ----------
        state : dict
            From `state_dict`.

        Raises
        ------
        ArgumentError
            If it is another solver's, or of the other version.
        """
        super().load_state_dict(state)
        m, order = self.y.shape
        expected = (m, order, order) if self.version == 1 else (0,)
        if self.hessian.shape != expected:
            raise ArgumentError(f"BSVRB.load_state_dict: the state is not of version {self.version}")

    def _tracked(self, held: Tensor, probes: Tensor) -> Tensor:
        now, before = probes.unflatten(0, (2, len(held)))
        return msvr_update(held, now, before, self.alpha, self.gamma)

    def _moved_y(self, index: Tensor, missed: Tensor) -> Tensor:
        return self.y[index] - missed.unsqueeze(1) * (self.lr_lower * self.gradient[index])

    def _moved_v(self, index: Tensor, missed: Tensor) -> Tensor:
        return self._in_ball(self.v[index] - missed.unsqueeze(1) * (self.lr_linear * self.residual[index]))

    def _move_y(self, moved: Tensor, now: Tensor) -> None:
        self.y_before[moved], self.y[moved] = now, now - self.lr_lower * self.gradient[moved]
        self.last[moved] = self.iteration + 1

    def _move_second(self, index: Tensor, second: Tensor, moved: Tensor, now: Tensor) -> None:
        # write the new Hessians, or the new residuals and what follows them; ``now`` is v of the blocks moved
        if self.version == 1:
            self.hessian_before[moved] = self.hessian[moved]
            self.hessian[index] = second
        else:
            self.residual[index] = second
            self.v_before[moved], self.v[moved] = now, self._in_ball(now - self.lr_linear * self.residual[moved])

    def lower_variable(self) -> Tensor:
        """Give y with all missed steps made.

        Returns
        -------
        Tensor, shape (M,)
            In the order of the problem's layout.
        """
        everyone = torch.arange(len(self.y), device=self.y.device)
        return self.blocks.flatten(self._moved_y(everyone, self.iteration - self.last))


def _paired(now: Tensor, earlier: Tensor, stored: Tensor, missed: Tensor) -> Tensor:
    # lay the present rows over those of one step ago: stored ones where the last step moved the block itself
    fresh = (missed == 0).reshape(-1, *(1 for _ in now.shape[1:]))
    return torch.cat([now, torch.where(fresh, stored, earlier)])


def _twice(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.repeat(2, 1)


def _solve(matrices: Tensor, right: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrices)
    if bool(info.any()):  # eigenvalues are at least mu, but for rounding
        raise SingularError(f"a Hessian clipped at mu cannot be factored in {matrices.dtype}; raise mu, or use float64")
    return torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
