"""The gradient of Φ(x) = f(x, y*(x)), by implicit differentiation or through an unrolled inner loop.

    ∇Φ = f_x - g_xy v,   g_yy v = f_y        all at y = y*(x)

Shapes: N entries of x, M of y.
"""

from typing import Any, Literal

from torch import Generator

from hesse._values import check_finite
from hesse.bilevel.hypergradient.adjoint import solve_adjoint
from hesse.bilevel.hypergradient.lower import solve_lower
from hesse.bilevel.hypergradient.result import HyperGradient
from hesse.bilevel.hypergradient.unrolled import unrolled_hypergradient
from hesse.bilevel.oracle import Oracle
from hesse.bilevel.penalty.hypergradient import penalty_hypergradient
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.tree import Tree
from hesse.errors import ArgumentError
from hesse.linalg.solvers._block import Preconditioner

__all__ = [
    "HypergradientMethod",
    "hypergradient",
]

HypergradientMethod = Literal["cg", "minres", "neumann", "nystrom", "dense", "inverse", "unroll", "penalty"]
_METHODS = ("cg", "minres", "neumann", "nystrom", "dense", "inverse", "unroll", "penalty")
_APPROXIMATE = ("nystrom", "inverse", "unroll")


def hypergradient(
    problem: BilevelProblem,
    x: Tree,
    y: Tree | None = None,
    *,
    method: HypergradientMethod = "cg",
    rtol: float = 1e-8,
    max_steps: int = 200,
    damping: float = 0.0,
    rank: int | None = None,
    step_size: float | None = None,
    sigma: float | None = None,
    preconditioner: Preconditioner | None = None,
    v0: Tree | None = None,
    lower_tol: float = 1e-10,
    upper_batch: Any = None,
    lower_batch: Any = None,
    generator: Generator | None = None,
) -> HyperGradient:
    """Compute ∇Φ(x).

    Parameters
    ----------
    problem : BilevelProblem
        The losses.
    x : pytree of Tensor
        Upper variable.
    y : pytree of Tensor, optional
        Lower variable, taken as the solution; for "unroll" and "penalty" the start of the inner loop. Default: the
        lower level is solved from ``problem.y0`` to ``lower_tol`` (for "unroll" and "penalty": ``problem.y0`` itself).
    method : {"cg", "minres", "neumann", "nystrom", "dense", "inverse", "unroll", "penalty"}, default "cg"
        How v comes about. "cg": g_yy positive definite. "minres": indefinite or singular g_yy; of all solutions the one
        of least norm. "neumann": v ← v - a (g_yy v - f_y). "nystrom": (damping · I + a rank-``rank`` sketch)⁻¹ f_y.
        "dense": by factorisation, M products, the oracle. "inverse": ``preconditioner`` applied once, as with K-FAC or
        EK-FAC factors; approximate. "unroll": no v, see `unrolled_hypergradient`. "penalty": no second derivatives, and
        lower levels with many solutions or a set for y; see `penalty_hypergradient`.
    rtol : float, default 1e-8
        Of the linear system: ‖g_yy v - f_y‖ <= rtol ‖f_y‖, for "cg", "minres" and "neumann".
    max_steps : int, default 200
        Of the linear solver; the number of inner steps for "unroll". Not for "penalty".
    damping : float, default 0.0
        Added to the diagonal of g_yy, which biases the answer; > 0 for "nystrom".
    rank : int, optional
        Of the sketch of "nystrom". Default: min(M, 50).
    step_size : float, optional
        a of "neumann", "unroll" and "penalty", at most 1 / ‖g_yy‖. Default: its inverse by power iteration.
    sigma : float, optional
        s > 0 of "penalty", whose error is of order s²; required for it.
    preconditioner : LinearOperator or callable, optional
        M ≈ g_yy⁻¹ on flat blocks (M, k), for "cg", "minres" and "inverse".
    v0 : pytree of Tensor, optional
        Start of "cg", "minres" and "neumann", as ``adjoint`` of the last call. Default: zero.
    lower_tol : float, default 1e-10
        ‖g_y‖ at which the lower level counts as solved, where it is solved here.
    upper_batch, lower_batch : object, optional
        Batches. Default: all data.
    generator : torch.Generator, optional
        For the sketch and power iteration. Default: torch's global generator.

    Returns
    -------
    HyperGradient
        Failure to converge is a value in it: see `HyperGradient.require`.

    Raises
    ------
    ArgumentError
        If an option is out of range or contradicts the method, or the lower loss does not depend on y.
    ShapeError
        If x, y or v0 is shaped otherwise than the problem's variables.
    NumericalError
        If "cg" meets negative curvature; the message names the Rayleigh quotient.

    Notes
    -----
    A step of "cg" is one backward through the recorded graph of g_y. Memory is that graph, once.

    References
    ----------
    F. Pedregosa (2016), ICML, arXiv 1602.02355; J. Lorraine, P. Vicol, D. Duvenaud (2020), AISTATS, arXiv 1911.02590,
    for "neumann"; R. Hataya, M. Yamada (2023), AISTATS, arXiv 2302.09726, for "nystrom".
    """
    if method not in _METHODS:
        raise ArgumentError(f"hypergradient: method must be one of {', '.join(_METHODS)}; got {method!r}")
    check_finite("hypergradient", "x", problem.x_layout.flatten(x))
    if y is not None:
        check_finite("hypergradient", "y", problem.y_layout.flatten(y))
    if method == "penalty":
        if sigma is None:
            raise ArgumentError("hypergradient: method='penalty' needs sigma > 0")
        return penalty_hypergradient(
            problem,
            x,
            sigma,
            z0=y,
            tol=lower_tol,
            step_size=step_size,
            upper_batch=upper_batch,
            lower_batch=lower_batch,
            generator=generator,
        )
    if sigma is not None:
        raise ArgumentError(f"hypergradient: sigma belongs to method='penalty', got sigma={sigma}, {method!r}")
    if method == "unroll":
        return unrolled_hypergradient(
            problem, x, y, num_steps=max_steps, step_size=step_size, upper_batch=upper_batch, lower_batch=lower_batch
        )
    oracle = Oracle(problem)
    flat_x, solved = problem.x_layout.flatten(x), True
    if y is None:
        start = problem.y_layout.flatten(problem.y0)
        lower = solve_lower(oracle, flat_x, start, tol=lower_tol, batch=lower_batch)
        flat_y, solved = lower.y, lower.converged
    else:
        flat_y = problem.y_layout.flatten(y)
    upper_x, upper_y = oracle.upper_gradients(flat_x, flat_y, upper_batch)
    adjoint = solve_adjoint(
        oracle,
        flat_x,
        flat_y,
        upper_y,
        method=method,
        rtol=rtol,
        max_steps=max_steps,
        damping=damping,
        rank=rank,
        step_size=step_size,
        preconditioner=preconditioner,
        v0=None if v0 is None else problem.y_layout.flatten(v0),
        batch=lower_batch,
        generator=generator,
    )
    products = oracle.joint(flat_x, flat_y, adjoint.v, lower_batch)
    return HyperGradient(
        grad=problem.x_layout.unflatten(upper_x - products.jacobian_product),
        y=problem.y_layout.unflatten(flat_y),
        adjoint=problem.y_layout.unflatten(adjoint.v),
        residual=float((products.hessian_product - upper_y).norm()),
        lower_residual=float(products.lower_gradient.norm()),
        converged=adjoint.converged and solved,
        approximate=method in _APPROXIMATE or damping > 0,
        method=method,
        num_steps=adjoint.num_steps,
        counts=oracle.counts,
    )
