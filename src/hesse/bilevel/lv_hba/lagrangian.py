"""The proximal Lagrangian value function of a constrained lower level, and the saddle point it is made of.

    v(x, y, z) = min_θ max_λ  g(x, θ) + λᵀs(x, θ) + ‖θ - y‖²/(2γ₁) - ‖λ - z‖²/(2γ₂)

θ in the lower level's set, 0 <= λ <= r for inequalities and |λ| <= r for equations, s the rows of both.
Shapes: x (N,), y and θ (M,), s, z and λ (K,), inequalities first.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hesse.bilevel.oracle import Oracle
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.tree import Tree
from hesse.curvature.batches import batch_size
from hesse.errors import ArgumentError, ConvergenceError, ShapeError

__all__ = [
    "LowerLagrangian",
    "ProximalValue",
    "Saddle",
    "proximal_lagrangian_value",
    "solve_constrained_lower",
    "solve_saddle",
]

_ROWS_AT_ONCE = 64
_SHRINK, _GROW = 0.5, 1.1  # of the saddle solver's step
_INNER = 0.1  # accuracy of a proximal step, of the residual before it
_PROXIMAL = (10.0, 10.0)  # γ of the method of multipliers: long proximal steps, saddles still well conditioned


class LowerLagrangian:
    """g + λᵀs on flat vectors, with rows scaled to unit gradient; its derivatives are added to the oracle's counts.

    Parameters
    ----------
    oracle : Oracle
        Of the problem.
    x, y : Tensor, shapes (N,) and (M,)
        Where the rows' gradients are measured.
    scale_rows : bool, default True
        Divide row i by ‖∇s_i(x, y)‖, so that the saddle's step size does not depend on the units of a row or on how
        many entries it sums.
    bound : float, default 1e4
        r, for the multipliers of the scaled rows.

    Raises
    ------
    ShapeError
        If ``constraint`` or ``equality`` does not give a vector.
    ArgumentError
        If a row is to be scaled and its gradient is zero or not finite.
    """

    def __init__(self, oracle: Oracle, x: Tensor, y: Tensor, *, scale_rows: bool = True, bound: float = 1e4) -> None:
        self.oracle = oracle
        problem = oracle.problem
        counts = []
        for name in ("constraint", "equality"):
            function = getattr(problem, name)
            if function is None:
                counts.append(0)
                continue
            with torch.no_grad():
                found = function(problem.x_layout.unflatten(x), problem.y_layout.unflatten(y))
            if not isinstance(found, Tensor) or found.ndim != 1:
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ShapeError(f"{name}: expected a vector of rows, got {shape}")
            counts.append(len(found))
        self.num_inequalities, self.num_rows = counts[0], sum(counts)
        self.high = torch.full((self.num_rows,), float(bound), dtype=y.dtype, device=y.device)
        inequality = torch.arange(self.num_rows, device=y.device) < self.num_inequalities
        self.low = torch.where(inequality, 0, -self.high)
        self.scale = torch.ones_like(self.high)
        if scale_rows and self.num_rows:
            norms = self._row_norms(x, y)
            if not bool(((norms > 0) & torch.isfinite(norms)).all()):
                row = int(torch.nonzero(~((norms > 0) & torch.isfinite(norms)))[0])
                raise ArgumentError(
                    f"constraint row {row}: its gradient at the start is {float(norms[row])}, so that it cannot be "
                    f"scaled; drop the row, start elsewhere, or pass scale_rows=False"
                )
            self.scale = 1 / norms

    def rows(self, x: Tensor, y: Tensor) -> Tensor:
        """Evaluate the scaled rows.

        Parameters
        ----------
        x, y : Tensor, shapes (N,) and (M,)
            A pair.

        Returns
        -------
        Tensor, shape (K,)
            Differentiable; not counted.
        """
        problem = self.oracle.problem
        if not self.num_rows:
            return y.new_zeros(0)
        pair = problem.x_layout.unflatten(x), problem.y_layout.unflatten(y)
        found = [function(*pair) for function in (problem.constraint, problem.equality) if function is not None]
        return self.scale * torch.cat(found)

    def violation(self, x: Tensor, y: Tensor) -> float:
        """Measure how far a pair is from meeting the constraints, in the units the user wrote them.

        Parameters
        ----------
        x, y : Tensor, shapes (N,) and (M,)
            A pair.

        Returns
        -------
        float
            max(c, |h|, 0).
        """
        if not self.num_rows:
            return 0.0
        with torch.no_grad():
            rows = self.rows(x, y) / self.scale
        excess = torch.cat([rows[: self.num_inequalities], rows[self.num_inequalities :].abs()])
        return float(excess.clamp_min(0).max())

    def confine(self, multipliers: Tensor) -> Tensor:
        """Project on the box of multipliers.

        Parameters
        ----------
        multipliers : Tensor, shape (K,)
            Anywhere.

        Returns
        -------
        Tensor, shape (K,)
            In it.
        """
        return torch.minimum(torch.maximum(multipliers, self.low), self.high)

    def field(
        self,
        x: Tensor,
        y: Tensor,
        z: Tensor,
        theta: Tensor,
        lam: Tensor,
        gamma: tuple[float, float],
        batch: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Give the direction of ascent in θ and of descent in λ: a strongly monotone operator of the pair.

        Parameters
        ----------
        x, y, z : Tensor, shapes (N,), (M,) and (K,)
            Where v is asked for.
        theta, lam : Tensor, shapes (M,) and (K,)
            The pair.
        gamma : tuple of float
            γ₁ and γ₂.
        batch : object, optional
            Of the lower level. Default: all data.

        Returns
        -------
        d_theta, d_lam : Tensor, shapes (M,) and (K,)
            g_y + J_yᵀλ + (θ - y)/γ₁ and -s + (λ - z)/γ₂.
        """
        theta = theta.detach().requires_grad_()
        with torch.enable_grad():
            rows = self.rows(x, theta)
            value = self._lagrangian(x, theta, rows, lam, batch)
        slope = _gradients(value, (theta,))[0]
        return slope + (theta.detach() - y) / gamma[0], (lam - z) / gamma[1] - rows.detach()

    def gradient_x(self, x: Tensor, theta: Tensor, lam: Tensor, batch: Any = None) -> Tensor:
        """Differentiate by x.

        Parameters
        ----------
        x, theta, lam : Tensor, shapes (N,), (M,) and (K,)
            Where; at the saddle point this is ∂v/∂x.
        batch : object, optional
            Of the lower level. Default: all data.

        Returns
        -------
        Tensor, shape (N,)
            g_x + J_xᵀλ.
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = self._lagrangian(x, theta, self.rows(x, theta), lam, batch)
        return _gradients(value, (x,))[0]

    def proximal(
        self,
        x: Tensor,
        y: Tensor,
        z: Tensor,
        theta: Tensor,
        lam: Tensor,
        gamma: tuple[float, float],
        batch: Any = None,
    ) -> Tensor:
        """Evaluate the function whose saddle value is v.

        Parameters
        ----------
        x, y, z : Tensor, shapes (N,), (M,) and (K,)
            Where v is asked for.
        theta, lam : Tensor, shapes (M,) and (K,)
            Any pair.
        gamma : tuple of float
            γ₁ and γ₂.
        batch : object, optional
            Of the lower level. Default: all data.

        Returns
        -------
        Tensor, shape ()
            Differentiable; not counted.
        """
        near = (theta - y).square().sum() / (2 * gamma[0]) - (lam - z).square().sum() / (2 * gamma[1])
        return self.oracle.lower_value(x, theta, batch) + lam @ self.rows(x, theta) + near

    def _lagrangian(self, x: Tensor, theta: Tensor, rows: Tensor, lam: Tensor, batch: Any) -> Tensor:
        oracle = self.oracle
        held = oracle.full_batches[1] if batch is None else batch
        oracle.counts.lower_gradients += 1 if held is None else batch_size(held)
        oracle.counts.constraint_products += bool(self.num_rows)
        return oracle.lower_value(x, theta, batch) + lam @ rows

    def _row_norms(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        with torch.enable_grad():
            rows = self.rows(x, y)
        if not rows.requires_grad:
            return torch.zeros_like(rows)
        picks, norms = torch.eye(self.num_rows, dtype=y.dtype, device=y.device).split(_ROWS_AT_ONCE), []
        for block in picks:
            both = torch.autograd.grad(rows, (x, y), block, is_grads_batched=True, retain_graph=True, allow_unused=True)
            norms.append(torch.cat([part for part in both if part is not None], dim=1).norm(dim=1))
        self.oracle.counts.constraint_products += self.num_rows
        return torch.cat(norms)


@dataclass(frozen=True, slots=True)
class Saddle:
    """Where the saddle solver stopped."""

    theta: Tensor  # (M,)
    lam: Tensor  # (K,)
    residual: float  # ‖u - P(u - field(u))‖ of u = (θ, λ)
    converged: bool
    num_steps: int


def solve_saddle(
    lagrangian: LowerLagrangian,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    gamma: tuple[float, float],
    *,
    start: tuple[Tensor, Tensor] | None = None,
    tol: float = 1e-10,
    max_steps: int = 10_000,
) -> Saddle:
    """Find (θ*, λ*) of v(x, y, z) by the extragradient method with a step size that adapts.

    Parameters
    ----------
    lagrangian : LowerLagrangian
        Of the lower level; all data are used.
    x, y, z : Tensor, shapes (N,), (M,) and (K,)
        Where v is asked for; z of the scaled rows.
    gamma : tuple of float
        γ₁ and γ₂.
    start : tuple of Tensor, optional
        θ and λ. Default: y and z.
    tol : float, default 1e-10
        On the residual; the saddle point is at most (1 + L)/ρ times as far, with ρ = min(1/γ₁, 1/γ₂) and L the
        Lipschitz constant of the field. A residual of 4ε(‖θ‖ + ‖λ‖ + ‖y‖/γ₁ + ‖z‖/γ₂) is taken whatever ``tol``: it is
        what rounding leaves of the terms that cancel in it.
    max_steps : int, default 10,000
        Of two gradients each, or more while the step size is sought.

    Returns
    -------
    Saddle
        ``converged`` is False too where rounding hides any further progress.

    References
    ----------
    G. M. Korpelevich (1976), Ekonomika i Matematicheskie Metody 12; the adaptive step: A. N. Iusem, B. F. Svaiter
    (1997), Optimization 42.
    """
    oracle = lagrangian.oracle
    theta, lam = (y, z) if start is None else start

    def confined(point: tuple[Tensor, Tensor], direction: tuple[Tensor, Tensor], step: float) -> tuple[Tensor, Tensor]:
        return oracle.project_y(point[0] - step * direction[0]), lagrangian.confine(point[1] - step * direction[1])

    def distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
        return float((one[0] - other[0]).square().sum() + (one[1] - other[1]).square().sum()) ** 0.5

    def field(point: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return lagrangian.field(x, y, z, point[0], point[1], gamma)

    point = oracle.project_y(theta.detach()), lagrangian.confine(lam.detach())
    direction, step = field(point), min(gamma)
    eps = torch.finfo(y.dtype).eps
    least, fixed = eps * step, float(y.norm()) / gamma[0] + float(z.norm()) / gamma[1]

    def small(residual: float, point: tuple[Tensor, Tensor]) -> bool:
        return residual <= tol or residual <= 4 * eps * (fixed + float(point[0].norm()) + float(point[1].norm()))

    for count in range(max_steps):
        residual = distance(point, confined(point, direction, 1.0))
        if small(residual, point):
            return Saddle(*point, residual, True, count)
        while True:
            trial = confined(point, direction, step)
            moved = distance(trial, point)
            ahead = field(trial)
            if step * distance(ahead, direction) <= 0.9 * moved:
                break
            step *= _SHRINK
            if step < least:  # rounding, or NaN
                return Saddle(*point, residual, False, count)
        point = confined(point, ahead, step)
        direction, step = field(point), _GROW * step
    residual = distance(point, confined(point, direction, 1.0))
    return Saddle(*point, residual, small(residual, point), max_steps)


def solve_constrained_lower(
    lagrangian: LowerLagrangian,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    *,
    tol: float = 1e-8,
    max_steps: int = 2_000,
) -> Saddle:
    """Solve the lower level at x by the proximal method of multipliers: (y, z) ← (θ*, λ*) until they rest.

    Parameters
    ----------
    lagrangian : LowerLagrangian
        Of the lower level; all data are used.
    x, y, z : Tensor, shapes (N,), (M,) and (K,)
        Upper variable, held fixed, and the start.
    tol : float, default 1e-8
        On ‖u - P(u - field(u))‖ of the Lagrangian without proximal terms: zero at a solution with its multipliers.
    max_steps : int, default 2,000
        Steps of the saddle solver, over all proximal steps.

    Returns
    -------
    Saddle
        θ solves the lower level, λ are its multipliers (of the scaled rows). Where there are many solutions, one near
        the start.

    References
    ----------
    R. T. Rockafellar (1976), Math. Oper. Res. 1(2).
    """
    oracle, used = lagrangian.oracle, 0
    while True:
        d_y, d_z = lagrangian.field(x, y, z, y, z, _PROXIMAL)  # at their own centres the proximal terms vanish
        at_y, at_z = oracle.project_y(y - d_y) - y, lagrangian.confine(z - d_z) - z
        residual = float(at_y.square().sum() + at_z.square().sum()) ** 0.5
        if residual <= tol or used >= max_steps:
            return Saddle(y, z, residual, residual <= tol, used)
        found = solve_saddle(
            lagrangian, x, y, z, _PROXIMAL, tol=max(_INNER * residual, tol / 10), max_steps=max_steps - used
        )
        if found.num_steps == 0:
            return Saddle(y, z, residual, False, used)
        y, z, used = found.theta, found.lam, used + found.num_steps


@dataclass(frozen=True, slots=True)
class ProximalValue:
    """v and its gradients at a point."""

    value: Tensor  # (): differentiable in x, y and z, where they require a gradient
    theta: Tree  # like y
    lam: Tensor  # (K,)
    grad_x: Tree
    grad_y: Tree
    grad_z: Tensor  # (K,)
    residual: float  # of the saddle
    num_steps: int


def proximal_lagrangian_value(
    problem: BilevelProblem,
    x: Tree,
    y: Tree,
    z: Tensor,
    *,
    gamma: tuple[float, float] = (1.0, 1.0),
    r: float = 1e4,
    tol: float = 1e-10,
    max_steps: int = 100_000,
) -> ProximalValue:
    """Evaluate v(x, y, z) and its gradients from an accurate saddle point; no derivative of θ* or λ* appears.

    v_x = g_x(x, θ*) + J_xᵀλ*,   v_y = (y - θ*)/γ₁,   v_z = (λ* - z)/γ₂

    Parameters
    ----------
    problem : BilevelProblem
        With ``constraint``, ``equality``, both or neither; rows are taken as they are, not scaled.
    x, y : pytree of Tensor
        Shaped as the problem's.
    z : Tensor, shape (K,)
        Multipliers, inequalities first.
    gamma : tuple of float, default (1, 1)
        γ₁ and γ₂.
    r : float, default 1e4
        Bound of the multipliers.
    tol : float, default 1e-10
        On the saddle's residual, see `solve_saddle`; v is off by its square, the gradients by as much as itself, up to
        constants.
    max_steps : int, default 100,000
        Steps of the saddle solver.

    Returns
    -------
    ProximalValue
        g(x, y) - v >= 0 for (x, y) that meets the constraints and z within its bounds; it is 0 exactly where y solves
        the lower level and z are multipliers there.

    Raises
    ------
    ArgumentError
        If a γ or ``r`` is not positive.
    ShapeError
        If z does not have one entry a row.
    ConvergenceError
        If the saddle was not found to ``tol``.
    """
    if not (min(gamma) > 0 and r > 0):
        raise ArgumentError(f"proximal_lagrangian_value: expected gamma > 0 and r > 0, got {gamma} and {r}")
    flat_x, flat_y = problem.x_layout.flatten(x), problem.y_layout.flatten(y)
    lagrangian = LowerLagrangian(Oracle(problem), flat_x, flat_y, scale_rows=False, bound=r)
    if z.shape != (lagrangian.num_rows,):
        raise ShapeError(
            f"proximal_lagrangian_value: expected z of shape ({lagrangian.num_rows},), got {tuple(z.shape)}"
        )
    fixed = z.detach()
    found = solve_saddle(lagrangian, flat_x, flat_y, fixed, gamma, tol=tol, max_steps=max_steps)
    if not found.converged:
        raise ConvergenceError(
            f"proximal_lagrangian_value: residual {found.residual:.1e} after {found.num_steps} steps; raise tol or "
            f"max_steps, or scale the rows of the constraints"
        )
    grad_y, grad_z = (flat_y - found.theta) / gamma[0], (found.lam - fixed) / gamma[1]
    grad_x = lagrangian.gradient_x(flat_x, found.theta, found.lam)
    with torch.no_grad():
        value = lagrangian.proximal(flat_x, flat_y, fixed, found.theta, found.lam, gamma)
    trees = problem.x_layout.unflatten(grad_x), problem.y_layout.unflatten(grad_y)
    for variable, gradient in zip(tree_leaves((x, y, z)), tree_leaves((*trees, grad_z)), strict=True):
        # adds zero, and the gradient that Danskin's theorem gives
        value = value + (gradient * (variable - variable.detach())).sum()
    return ProximalValue(
        value, problem.y_layout.unflatten(found.theta), found.lam, *trees, grad_z, found.residual, found.num_steps
    )


def _gradients(value: Tensor, variables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not value.requires_grad:
        return tuple(torch.zeros_like(variable) for variable in variables)
    return torch.autograd.grad(value, variables, allow_unused=True, materialize_grads=True)
