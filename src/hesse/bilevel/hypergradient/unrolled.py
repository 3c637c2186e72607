"""The gradient of f(x, y_K(x)) through K steps of gradient descent on g.   Shapes: N entries of x, M of y."""

from typing import Any

import torch
from torch import Generator, Tensor

from hesse.bilevel.hypergradient.adjoint import inverse_norm
from hesse.bilevel.hypergradient.result import HyperGradient
from hesse.bilevel.oracle import Oracle
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.tree import Tree
from hesse.errors import ArgumentError
from hesse.linalg._arguments import at_least

__all__ = ["unroll", "unrolled_hypergradient"]


def unrolled_hypergradient(
    problem: BilevelProblem,
    x: Tree,
    y: Tree | None = None,
    *,
    num_steps: int,
    step_size: float | None = None,
    truncation: int | None = None,
    upper_batch: Any = None,
    lower_batch: Any = None,
    generator: Generator | None = None,
) -> HyperGradient:
    """Differentiate f(x, y_K) through y_{k+1} = y_k - a g_y(x, y_k), in reverse.

    λ_K = f_y,   λ_k = λ_{k+1} - a g_yy λ_{k+1},   grad = f_x - a Σ_k g_xy λ_{k+1}    at (x, y_k)

    Parameters
    ----------
    problem : BilevelProblem
        The losses.
    x : pytree of Tensor
        Upper variable.
    y : pytree of Tensor, optional
        Start of the inner loop, held fixed. Default: ``problem.y0``.
    num_steps : int
        K >= 1.
    step_size : float, optional
        a > 0, below 2 / ‖g_yy‖. Default: 1 / ‖g_yy‖ at the start, by power iteration.
    truncation : int, optional
        Go back through the last so many steps only. Default: all.
    upper_batch, lower_batch : object, optional
        Batches; one lower batch for all steps. Default: all data.
    generator : torch.Generator, optional
        For power iteration. Default: torch's global generator.

    Returns
    -------
    HyperGradient
        Exact for f(x, y_K(x)); as an estimate of ∇Φ its error falls as (1 - a μ)^K.

    Raises
    ------
    ArgumentError
        If ``num_steps`` or ``truncation`` is below 1, or ``step_size`` is not positive.

    Notes
    -----
    One gradient a step forwards and one double backward a step backwards. What is kept are the iterates, K M numbers;
    the graph of a step is rebuilt on the way back, so that memory does not grow with the size of the graph times K.

    References
    ----------
    D. Maclaurin, D. Duvenaud, R. P. Adams (2015), ICML, arXiv 1502.03492; A. Shaban, C.-A. Cheng, N. Hatch, B. Boots
    (2019), AISTATS, arXiv 1810.10667, for truncation.
    """
    at_least("unrolled_hypergradient", "num_steps", num_steps, 1)
    if truncation is not None:
        at_least("unrolled_hypergradient", "truncation", truncation, 1)
    oracle = Oracle(problem)
    flat_x = problem.x_layout.flatten(x)
    flat_y = problem.y_layout.flatten(problem.y0 if y is None else y)
    if step_size is None:
        step_size = inverse_norm(oracle.lower_hessian(flat_x, flat_y, lower_batch), generator)
    elif not step_size > 0:
        raise ArgumentError(f"unrolled_hypergradient: expected step_size > 0, got {step_size}")
    grad, last = unroll(oracle, flat_x, flat_y, num_steps, step_size, truncation, upper_batch, lower_batch)
    return HyperGradient(
        grad=problem.x_layout.unflatten(grad),
        y=problem.y_layout.unflatten(last),
        adjoint=None,
        residual=float("nan"),
        lower_residual=float(oracle.lower_gradient(flat_x, last, lower_batch).norm()),
        converged=bool(torch.isfinite(grad).all()),
        approximate=True,
        method="unroll",
        num_steps=num_steps,
        counts=oracle.counts,
    )


def unroll(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    num_steps: int,
    step_size: float,
    truncation: int | None = None,
    upper_batch: Any = None,
    lower_batch: Any = None,
) -> tuple[Tensor, Tensor]:
    """Do the work of `unrolled_hypergradient` on flat vectors.

    Parameters
    ----------
    oracle : Oracle
        Counts the derivatives.
    x : Tensor, shape (N,)
        Upper variable.
    y : Tensor, shape (M,)
        Start of the inner loop.
    num_steps, step_size, truncation, upper_batch, lower_batch
        See `unrolled_hypergradient`.

    Returns
    -------
    grad, y : Tensor, shapes (N,) and (M,)
        The gradient and y_K.
    """
    iterates = []
    for _ in range(num_steps):
        iterates.append(y)
        y = y - step_size * oracle.lower_gradient(x, y, lower_batch)
    grad, cotangent = oracle.upper_gradients(x, y, upper_batch)
    for earlier in reversed(iterates if truncation is None else iterates[-truncation:]):
        products = oracle.joint(x, earlier, cotangent, lower_batch)
        grad = grad - step_size * products.jacobian_product
        cotangent = cotangent - step_size * products.hessian_product
    return grad, y
