"""LV-HBA: constrained lower levels, single loop, gradients only, by the proximal Lagrangian value function v.

    min f(x, y)/c_k + g(x, y) - v(x, y, z)   over (x, y) in C, z in Z,   c_k = c₀ (k + 1)^p

Where g - v = 0, y solves the lower level and z are its multipliers; c_k -> ∞ makes the gap vanish.
Shapes: x (N,), y and θ (M,), z and λ (K,) for K rows of constraints, inequalities first.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hesse._values import check_finite
from hesse.bilevel.lv_hba.lagrangian import LowerLagrangian, solve_constrained_lower, solve_saddle
from hesse.bilevel.lv_hba.saddle_steps import SaddleMethod, lv_steps
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.solvers.base import BilevelSolver, positive
from hesse.bilevel.trace import TraceRow
from hesse.bilevel.tree import Tree
from hesse.curvature.batches import batch_size
from hesse.errors import ArgumentError, NumericalError

__all__ = ["LVHBA", "Certificate"]

_CONVEXITY_PAIRS = 4
_ANCHOR_RATIO = math.sqrt(2)  # of c between two kept iterates: extrapolation then uses one of c/2 to c/√2


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far the last pair can be trusted, and better ones made of it.

    Attributes
    ----------
    gap : float
        g(x, y) - v(x, y, z) on all data, in units of g: 0 where y solves the lower level and z are its multipliers.
    gap_residual : float
        Of the saddle that v was computed from; a gap below its size says nothing.
    violation : float
        max(c, |h|, 0) at (x, y), in the units of the rows.
    multipliers : Tensor, shape (K,)
        z, of the rows as the user wrote them; inequalities first, those are >= 0.
    at_bound : bool
        Whether a multiplier has come to its bound r.
    polished_y : pytree of Tensor
        The lower level solved at x from y, so that it is feasible and optimal up to ``polished_residual``.
    polished_multipliers : Tensor, shape (K,)
        Its multipliers, of the rows as written.
    polished_residual : float
        Of the first-order conditions of the lower level, with scaled rows.
    upper_value, polished_upper_value : float
        f at (x, y), which is fitted to f as far as c_k allows, and at (x, polished y).
    extrapolated : (pytree, pytree) or None
        x and y by Richardson's rule in 1/c from the last iterate and one of about half its c, projected on C; None
        before c has grown by half, or where a run that diverged has left nothing to project. Good where the error is
        near proportional to 1/c, which need not be.
    """

    gap: float
    gap_residual: float
    violation: float
    multipliers: Tensor
    at_bound: bool
    polished_y: Tree
    polished_multipliers: Tensor
    polished_residual: float
    upper_value: float
    polished_upper_value: float
    extrapolated: tuple[Tree, Tree] | None


class LVHBA(BilevelSolver):
    """Four gradients, two products with Jᵀ and a projection an iteration; no Hessian, no linear system, no inner loop.

    With s the rows of both kinds of constraints, all from the old (x, y, z) and the new (θ, λ):

        θ ← P_Y(θ - η [g_y(x, θ) + J_yᵀλ + (θ - y)/γ₁]),   λ ← P(λ - η [(λ - z)/γ₂ - s(x, θ)])
        d_x = f_x/c_k + g_x(x, y) - g_x(x, θ) - J_xᵀλ,   d_y = f_y/c_k + g_y(x, y) - (y - θ)/γ₁,   d_z = (z - λ)/γ₂
        (x, y) ← P_C(x - α d_x, y - α d_y),   z ← P_Z(z - β d_z)

    Parameters
    ----------
    problem : BilevelProblem
        g and every inequality convex in y, equations affine in y; the lower level may have many solutions. With
        constraints, ``project_joint`` must project on C = {(x, y) : x in X, y in Y, c <= 0, h = 0}, which must be
        convex; without, ``project_x`` and ``project_y`` are enough and this is a Moreau-envelope method. θ obeys
        ``project_y``. The start is projected first.
    gamma : tuple of float, default (1, 1)
        γ₁ and γ₂ > 0: lengths of the proximal terms. Longer ones bring y nearer to the lower solution at the same c,
        and make the saddle slower.
    lr_x : float or "auto"
        α. "auto": 1/(‖∇²f‖/c₀ + ‖∇²g‖ + 1/γ₁) with norms at the start, by power iteration.
    lr_y : float, optional
        α for y, where x and y differ in scale; C must then be a product, or ``project_joint`` project in that metric.
        Default: ``lr_x``.
    lr_saddle : float or "auto"
        η. "auto": from modulus ρ and norm L of the saddle's operator at the start, ρ/L² for "jacobi", 1/(2L) for the
        others. Where g_yy grows along the way, give a number: η ‖g_yy‖ above 2 diverges.
    lr_z : float or "auto"
        β, at most γ₂/2. "auto": 0.3 γ₂.
    c0, p : float, default 1.0 and 0.49
        c_k = c₀ (k + 1)^p, 0 < p < 1/2. The gap falls as k^(-p), the residual as k^(-(1 - 2p)/2); at fixed c the answer
        is O(1/c) off. p = 1/2 is taken with a warning: the theory ends below it.
    r : float, default 1e4
        Bound of the multipliers of the scaled rows.
    scale_rows : bool, default True
        Scale every row of the constraints to unit gradient at the start: a row that sums n entries has norm √n, and η
        would have to shrink with it.
    saddle : {"jacobi", "optimistic", "extragradient"}, default "jacobi"
        The step of (θ, λ). "jacobi" is the published one. "optimistic", F replaced by 2F - F_old, and "extragradient",
        two evaluations, stand η ~ 1/L instead of ρ/L².
    polish_steps : int, default 1000
        Steps of the saddle solver for each of gap and polished y, at the end of `run`. 0: the figures are taken at
        (θ, λ) and (y, z) as they are.
    seed : int, default 0
        Of power iteration and of the points at which C is tested.

    Raises
    ------
    ArgumentError
        If a setting is out of range, a projection is missing, the projected start does not meet the constraints, C is
        seen not to be convex, or a row has no gradient to be scaled by.

    Notes
    -----
    `step` returns c_k times the projected-gradient mapping of (x, y, z), N + M + K entries in units of f; its norm is
    the stationarity residual, what ``tol`` of `run` and ``estimate_norm`` speak of. Traces gain three metrics: "gap"
    (g - v with (θ, λ) in place of the saddle point), "violation" and "penalty" (c_k). Results carry a `Certificate` as
    ``extra["certificate"]``. Batches are drawn where the problem has samplers; the guarantee is for full gradients.

    The returned y is fitted to f as well as to g at finite c: judge x by the polished y.

    References
    ----------
    W. Yao, C. Yu, S. Zeng, J. Zhang (2024), ICLR, arXiv 2401.16164.
    """

    tensors: ClassVar[tuple[str, ...]] = ("x", "y", "z", "theta", "lam", "theta_slope", "lam_slope", "older", "newer")

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        gamma: tuple[float, float] = (1.0, 1.0),
        lr_x: float | Literal["auto"] = "auto",
        lr_y: float | None = None,
        lr_saddle: float | Literal["auto"] = "auto",
        lr_z: float | Literal["auto"] = "auto",
        c0: float = 1.0,
        p: float = 0.49,
        r: float = 1e4,
        scale_rows: bool = True,
        saddle: SaddleMethod = "jacobi",
        polish_steps: int = 1000,
        seed: int = 0,
    ) -> None:
        _check_settings(gamma, c0, p, r, saddle, polish_steps)
        _check_projections(problem)
        super().__init__(problem, seed=seed)
        check_finite("LVHBA", "x0", self.x)
        check_finite("LVHBA", "y0", self.y)
        self.gamma, self.c0, self.p, self.saddle, self.polish_steps = gamma, c0, p, saddle, polish_steps
        self.x, self.y = self._project(self.x, self.y)
        self.lagrangian = LowerLagrangian(self.oracle, self.x, self.y, scale_rows=scale_rows, bound=r)
        self._check_set()
        self.theta = self.oracle.project_y(self.y)
        self.z = torch.zeros_like(self.lagrangian.high)
        self.lam = torch.zeros_like(self.z)
        self.theta_slope: Tensor | None = None  # of the step before, for "optimistic"
        self.lam_slope: Tensor | None = None
        self.older: Tensor | None = None  # (x, y, c) of earlier iterates
        self.newer: Tensor | None = None
        steps = lv_steps(
            self.lagrangian,
            self.x,
            self.y,
            gamma,
            c0,
            method=saddle,
            lr_x=lr_x,
            lr_saddle=lr_saddle,
            lr_z=lr_z,
            generator=self.generator,
        )
        self.lr_x, self.lr_saddle, self.lr_z = steps
        self.lr_y = self.lr_x if lr_y is None else lr_y
        positive("LVHBA", lr_x=self.lr_x, lr_y=self.lr_y, lr_saddle=self.lr_saddle, lr_z=self.lr_z)

    @property
    def penalty(self) -> float:
        """c_k of the present iteration."""
        return self.c0 * (self.iteration + 1) ** self.p

    def step(self) -> Tensor:
        """Make an iteration.

        Returns
        -------
        Tensor, shape (N + M + K,)
            c_k ((x, y, z) - the next) / step sizes: zero at a stationary point.
        """
        x, y, z, c = self.x, self.y, self.z, self.penalty
        upper_batch, lower_batch = self.draw_upper(), self.draw_lower()
        self.theta, self.lam = self._move_saddle(lower_batch)
        by_x, by_y = self._penalized_gradients(c, upper_batch, lower_batch)
        by_x = by_x - self.lagrangian.gradient_x(x, self.theta, self.lam, lower_batch)
        by_y = by_y - (y - self.theta) / self.gamma[0]
        self._keep_anchor(c)
        self.x, self.y = self._project(x - self.lr_x * by_x, y - self.lr_y * by_y)
        self.z = self.lagrangian.confine(z - self.lr_z * (z - self.lam) / self.gamma[1])
        moves = ((x - self.x) / self.lr_x, (y - self.y) / self.lr_y, (z - self.z) / self.lr_z)
        return c * torch.cat(moves)

    def is_finite(self, estimate: Tensor) -> bool:
        """Look at what a step left.

        Parameters
        ----------
        estimate : Tensor, shape (N + M + K,)
            From `step`.

        Returns
        -------
        bool
            Whether all that lives on is finite.
        """
        return super().is_finite(estimate) and bool(torch.isfinite(torch.cat([self.theta, self.lam])).all())

    def extra(self) -> dict[str, Any]:
        """Certify the present state; see ``polish_steps`` for the price.

        Returns
        -------
        dict
            "certificate": a `Certificate`. What it takes is not counted.
        """
        counts = self.oracle.counts.copy()
        lagrangian, unflatten_y = self.lagrangian, self.problem.y_layout.unflatten
        at_bound = bool((self.lam.abs() >= lagrangian.high).any())
        if at_bound:
            warnings.warn(
                "LVHBA: a multiplier has come to its bound; raise r, or the lower level fails its constraint "
                "qualification",
                stacklevel=3,
            )
        found = solve_saddle(
            lagrangian,
            self.x,
            self.y,
            self.z,
            self.gamma,
            start=(self.theta, self.lam),
            tol=1e-8,
            max_steps=self.polish_steps,
        )
        polished = solve_constrained_lower(lagrangian, self.x, self.y, self.z, max_steps=self.polish_steps)
        with torch.no_grad():
            values = [float(self.oracle.value(self.x, y)) for y in (self.y, polished.theta)]
        certificate = Certificate(
            gap=self._gap(found.theta, found.lam),
            gap_residual=found.residual,
            violation=lagrangian.violation(self.x, self.y),
            multipliers=self.z * lagrangian.scale,
            at_bound=at_bound,
            polished_y=unflatten_y(polished.theta),
            polished_multipliers=polished.lam * lagrangian.scale,
            polished_residual=polished.residual,
            upper_value=values[0],
            polished_upper_value=values[1],
            extrapolated=self._extrapolate(),
        )
        self.oracle.counts = counts
        return {"certificate": certificate}

    def _move_saddle(self, batch: Any) -> tuple[Tensor, Tensor]:
        def slopes(theta: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
            return self.lagrangian.field(self.x, self.y, self.z, theta, lam, self.gamma, batch)

        def moved(along: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            theta = self.oracle.project_y(self.theta - self.lr_saddle * along[0])
            return theta, self.lagrangian.confine(self.lam - self.lr_saddle * along[1])

        now = slopes(self.theta, self.lam)
        if self.saddle == "jacobi":
            return moved(now)
        if self.saddle == "extragradient":
            return moved(slopes(*moved(now)))
        old = now if self.theta_slope is None or self.lam_slope is None else (self.theta_slope, self.lam_slope)
        self.theta_slope, self.lam_slope = now
        return moved((2 * now[0] - old[0], 2 * now[1] - old[1]))

    def _penalized_gradients(self, c: float, upper_batch: Any, lower_batch: Any) -> tuple[Tensor, Tensor]:
        # f/c + g in one backward
        oracle = self.oracle
        upper_held = oracle.full_batches[0] if upper_batch is None else upper_batch
        lower_held = oracle.full_batches[1] if lower_batch is None else lower_batch
        oracle.counts.upper_gradients += 1 if upper_held is None else batch_size(upper_held)
        oracle.counts.lower_gradients += 1 if lower_held is None else batch_size(lower_held)
        x, y = self.x.detach().requires_grad_(), self.y.detach().requires_grad_()
        with torch.enable_grad():
            value = oracle.value(x, y, upper_batch) / c + oracle.lower_value(x, y, lower_batch)
        by_x, by_y = torch.autograd.grad(value, (x, y), allow_unused=True, materialize_grads=True)
        return by_x, by_y

    def _project(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        problem = self.problem
        if problem.project_joint is None:
            return self.oracle.project_x(x), self.oracle.project_y(y)
        pair = problem.project_joint(problem.x_layout.unflatten(x), problem.y_layout.unflatten(y))
        return problem.x_layout.flatten(pair[0]), problem.y_layout.flatten(pair[1])

    def _keep_anchor(self, c: float) -> None:
        if self.newer is None or c >= _ANCHOR_RATIO * float(self.newer[-1]):
            self.older, self.newer = self.newer, torch.cat([self.x, self.y, self.x.new_tensor([c])])

    def _extrapolate(self) -> tuple[Tree, Tree] | None:
        if self.older is None:
            return None
        early, c = float(self.older[-1]), self.c0 * max(self.iteration, 1) ** self.p
        pair = torch.cat([self.x, self.y])
        both = (c * pair - early * self.older[:-1]) / (c - early)
        try:
            x, y = self._project(both[: len(self.x)], both[len(self.x) :])
        except NumericalError:  # a run that diverged still returns its last state, and says so
            return None
        return self.problem.x_layout.unflatten(x), self.problem.y_layout.unflatten(y)

    def _gap(self, theta: Tensor, lam: Tensor) -> float:
        with torch.no_grad():
            value = self.lagrangian.proximal(self.x, self.y, self.z, theta, lam, self.gamma)
            return float(self.oracle.lower_value(self.x, self.y) - value)

    def _row(self, estimate_norm: float) -> TraceRow:
        row = super()._row(estimate_norm)
        own = {
            "gap": self._gap(self.theta, self.lam),
            "violation": self.lagrangian.violation(self.x, self.y),
            "penalty": self.penalty,
        }
        return replace(row, metrics=row.metrics | own)

    def _check_set(self) -> None:
        if self.problem.project_joint is None:
            return
        eps = torch.finfo(self.x.dtype).eps

        def require(x: Tensor, y: Tensor, what: str) -> None:
            with torch.no_grad():
                excess = self.lagrangian.rows(x, y)
            excess[: self.lagrangian.num_inequalities].clamp_(min=0)
            size = max(1.0, float(x.abs().max()), float(y.abs().max()))
            worst = float(excess.abs().max()) if len(excess) else 0.0
            if not worst <= 1e4 * eps * size * (len(x) + len(y)) ** 0.5:
                raise ArgumentError(f"LVHBA: {what}: a constraint is off by {worst:.1e} there, in scaled rows")

        require(self.x, self.y, "project_joint does not give points that meet constraint and equality")

        def near() -> tuple[Tensor, Tensor]:
            noise = [
                torch.randn(v.shape, dtype=v.dtype, generator=self.generator).to(v.device) for v in (self.x, self.y)
            ]
            return self._project(*(v + (1 + v.abs().max()) * n for v, n in zip((self.x, self.y), noise, strict=True)))

        for _ in range(_CONVEXITY_PAIRS):
            (x, y), (u, w) = near(), near()
            require(
                (x + u) / 2, (y + w) / 2, "the set of project_joint is not convex, as a midpoint of two points shows"
            )


def _check_settings(gamma: tuple[float, float], c0: float, p: float, r: float, saddle: str, polish_steps: int) -> None:
    positive("LVHBA", gamma_1=gamma[0], gamma_2=gamma[1], c0=c0, r=r)
    if not 0 < p <= 0.5:
        raise ArgumentError(f"LVHBA: expected p between 0 and 1/2, got {p}")
    if p == 0.5:
        warnings.warn("LVHBA: with p = 1/2 the residual has no guarantee; 0.49 has", stacklevel=3)
    if saddle not in ("jacobi", "optimistic", "extragradient"):
        raise ArgumentError(f"LVHBA: saddle must be jacobi, optimistic or extragradient; got {saddle!r}")
    if polish_steps < 0:
        raise ArgumentError(f"LVHBA: expected polish_steps >= 0, got {polish_steps}")


def _check_projections(problem: BilevelProblem) -> None:
    for name in ("constraint", "equality"):
        if getattr(problem, name) is not None and problem.project_joint is None:
            raise ArgumentError(
                f"LVHBA: the problem has {name} and no project_joint; give the projection on all (x, y) that meet it, "
                "such as hesse.bilevel.stacked(Polyhedron(...))"
            )
