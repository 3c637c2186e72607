"""The hypergradient where the lower level has many solutions, or constraints that bind: a pseudo-inverse of its system.

interior        ∇Φ = f_x - g_xy v,   v = (g_yy)⁺ f_y
constrained     ∇Φ = f_x - L_xy v - c_xᵀ μ,   [[L_yy, C], [Cᵀ, 0]] [v; μ] = [f_y; 0],   L = g + λᵀc, C = c_yᵀ

Shapes: N entries of x, M of y, p constraints that bind.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from hesse.bilevel.hypergradient.result import HyperGradient
from hesse.bilevel.oracle import Oracle
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.tree import Tree
from hesse.errors import ArgumentError, ShapeError
from hesse.linalg._arguments import at_least
from hesse.linalg._small_lstsq import small_lstsq
from hesse.linalg.basic import FunctionOperator
from hesse.linalg.projections import Box
from hesse.linalg.solvers.minres import minres

__all__ = ["degenerate_hypergradient"]


def degenerate_hypergradient(
    problem: BilevelProblem,
    x: Tree,
    y: Tree,
    *,
    active: Tree | None = None,
    rtol: float = 1e-10,
    max_steps: int | None = None,
    active_tol: float | None = None,
    upper_batch: Any = None,
    lower_batch: Any = None,
) -> HyperGradient:
    """Differentiate Φ(x) = min {f(x, y) : y solves the lower level}, at its solution y.

    Parameters
    ----------
    problem : BilevelProblem
        Its lower level may be confined by ``project_y`` if that is a `hesse.linalg.Box`, or by ``constraint`` and
        ``equality``, which may depend on x.
    x : pytree of Tensor
        Upper variable.
    y : pytree of Tensor
        The lower solution that f likes best. Another one, the shortest say, gives a wrong gradient and is found out:
        f_y is then not in the range of the system, and ``residual`` stays large.
    active : pytree or Tensor of bool, optional
        What binds at y: for a box shaped like y, True where an entry is held at its bound; for ``constraint`` of shape
        (p,). Default: bounds and constraints met to within ``active_tol``.
    rtol : float, default 1e-10
        Of MINRES, relative to ‖f_y‖.
    max_steps : int, optional
        Of MINRES. Default: min(10 (M + p), 1000).
    active_tol : float, optional
        >= 0. Default: the square root of the unit roundoff, 1.5e-8 in float64.
    upper_batch, lower_batch : object, optional
        Batches. Default: all data.

    Returns
    -------
    HyperGradient
        ``residual`` is that of the whole system, ``lower_residual`` the norm of L_y (over a box of its free part).
        Exact up to these where the binding constraints bind strictly (λ > 0) and their gradients are independent; else
        Φ has directional derivatives only.

    Raises
    ------
    ArgumentError
        If the set for y is neither a box nor given by functions, or a tolerance is negative.
    ShapeError
        If ``active`` is shaped otherwise than what it speaks of, or not boolean.

    Notes
    -----
    One double backward a step of MINRES and one at the end, and p backwards for C: meant for few constraints.

    References
    ----------
    J. Kwon, D. Kwon, S. Wright, R. Nowak (2024), ICLR, arXiv 2309.01753.
    """
    call = "degenerate_hypergradient"
    at_least(call, "rtol", rtol, 0)
    flat_x, flat_y = problem.x_layout.flatten(x), problem.y_layout.flatten(y)
    near = torch.finfo(flat_y.dtype).eps ** 0.5 if active_tol is None else active_tol
    at_least(call, "active_tol", near, 0)
    functions = problem.constraint is not None or problem.equality is not None
    if problem.project_y is not None and functions:
        raise ArgumentError(f"{call}: give the lower constraints once, as a Box, or as constraint and equality")
    if problem.project_joint is not None and not functions:
        raise ArgumentError(
            f"{call}: project_joint says nothing of what binds; give the set as constraint and equality"
        )
    held, columns, across, bound = torch.zeros_like(flat_y, dtype=torch.bool), None, None, problem
    if problem.project_y is not None:
        held = _held(problem, flat_y, active, near)
    elif functions:
        columns, across, bound = _binding(problem, flat_x, flat_y, active, near, lower_batch)
    elif active is not None:
        raise ArgumentError(f"{call}: active given, but the lower level has no set")
    oracle = Oracle(bound)
    upper_x, upper_y = oracle.upper_gradients(flat_x, flat_y, upper_batch)
    free = (~held).to(flat_y.dtype)
    order, count = len(flat_y), 0 if columns is None else columns.shape[1]
    curvature = oracle.lower_hessian(flat_x, flat_y, lower_batch)

    def product(block: Tensor) -> Tensor:
        top, bottom = block[:order], block[order:]
        above = free[:, None] * (curvature @ (free[:, None] * top))
        if columns is None:
            return above
        return torch.cat([above + columns @ bottom, columns.T @ top])

    system = FunctionOperator(
        product, (order + count, order + count), dtype=flat_y.dtype, device=flat_y.device, is_symmetric=True
    )
    right = torch.cat([free * upper_y, flat_y.new_zeros(count)])
    found = minres(system, right, rtol=rtol, max_steps=max_steps, validate=False)
    v, multipliers = found.x[:order], found.x[order:]
    products = oracle.joint(flat_x, flat_y, v, lower_batch)
    grad = upper_x - products.jacobian_product
    if across is not None:
        grad = grad - across @ multipliers
    return HyperGradient(
        grad=problem.x_layout.unflatten(grad),
        y=problem.y_layout.unflatten(flat_y),
        adjoint=problem.y_layout.unflatten(v),
        residual=float(found.residual),
        lower_residual=float((free * products.lower_gradient).norm()),
        converged=bool(found.converged),
        approximate=False,
        method="pseudo-inverse",
        num_steps=found.num_steps,
        counts=oracle.counts,
    )


def _held(problem: BilevelProblem, y: Tensor, active: Tree | None, tol: float) -> Tensor:
    if active is not None:
        layout = problem.y_layout
        leaves = tree_flatten(active)[0]
        if any(not isinstance(leaf, Tensor) or leaf.dtype != torch.bool for leaf in leaves):
            raise ShapeError("degenerate_hypergradient: expected active of booleans, shaped like y")
        as_numbers = tree_map(lambda leaf: leaf.to(layout.dtype), active)
        return layout.flatten(as_numbers) > 0
    box = problem.project_y
    if not isinstance(box, Box):
        raise ArgumentError(
            "degenerate_hypergradient: project_y is no Box; pass active for bounds, or give the set as constraint"
        )
    tree = problem.y_layout.unflatten(y)
    low, high = (
        torch.as_tensor(end, dtype=y.dtype, device=y.device).expand_as(tree).reshape(-1) for end in (box.low, box.high)
    )
    return (y <= low + tol) | (y >= high - tol)


def _binding(
    problem: BilevelProblem, x: Tensor, y: Tensor, active: Tree | None, tol: float, batch: Any
) -> tuple[Tensor, Tensor, BilevelProblem]:
    # C (M, p), c_xᵀ (N, p), and the problem whose lower loss is the Lagrangian
    inequality, equality = problem.constraint, problem.equality
    kept = torch.zeros(0, dtype=torch.long)
    if inequality is not None:
        with torch.no_grad():
            values = inequality(problem.x_layout.unflatten(x), problem.y_layout.unflatten(y))
        mask = values >= -tol if active is None else active
        if not isinstance(mask, Tensor) or mask.shape != values.shape or mask.dtype != torch.bool:
            raise ShapeError(f"degenerate_hypergradient: expected active of {len(values)} booleans, one a constraint")
        kept = mask.nonzero().flatten()

    def binding(x_tree: Tree, y_tree: Tree) -> Tensor:
        parts = []
        if inequality is not None:
            parts.append(inequality(x_tree, y_tree)[kept])
        if equality is not None:
            parts.append(equality(x_tree, y_tree))
        return torch.cat(parts)

    across, columns = _jacobians(problem, binding, x, y)
    gradient = Oracle(problem).lower_gradient(x, y, batch)
    multipliers = -small_lstsq(columns, gradient[:, None])[:, 0]

    def lagrangian(x_tree: Tree, y_tree: Tree, held: Any) -> Tensor:
        return problem.lower(x_tree, y_tree, held) + multipliers @ binding(x_tree, y_tree)

    return columns, across, replace(problem, lower=lagrangian)


def _jacobians(
    problem: BilevelProblem, function: Callable[[Tree, Tree], Tensor], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    with torch.enable_grad():
        values = function(problem.x_layout.unflatten(x), problem.y_layout.unflatten(y))
    across, along = x.new_zeros(len(x), len(values)), y.new_zeros(len(y), len(values))
    for j, value in enumerate(values):
        if value.requires_grad:
            by_x, by_y = torch.autograd.grad(
                value, (x, y), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            across[:, j], along[:, j] = by_x, by_y
    return across, along
