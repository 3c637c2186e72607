"""The hypergradient of penalised logistic regression by hesse, torchopt and betty, at one point and one residual.

Module-level functions, so that the memory of each can be measured in a process of its own.
Shapes: n rows, d features; y (d,) solves the lower level at log penalties x (d,).
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from benchmarks.peers import require_peer
from hesse.bilevel import BilevelProblem, Oracle, hypergradient, solve_lower
from hesse.linalg import cg, hutchinson_diagonal

__all__ = ["ARMS", "Point", "by_betty", "by_hesse", "by_hesse_jacobi", "by_torchopt", "cold_logistic", "large_logistic"]


@dataclass(frozen=True, slots=True)
class Point:
    """Where the hypergradient is asked for, and how finely."""

    problem: BilevelProblem
    x: Tensor  # (d,)
    y: Tensor  # (d,), the lower solution
    diagonal: Tensor  # (d,): of g_yy
    rtol: float
    num_steps: int  # of plain conjugate gradients to rtol: what the peer that cannot stop by itself is told
    warm: Tensor  # (d,): v of the point a step before


def _problem(n: int, d: int, seed: int) -> BilevelProblem:
    g = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1.5, d, dtype=torch.float64)
    X, X_valid = (torch.randn(rows, d, dtype=torch.float64, generator=g) * scales for rows in (n, n // 4))
    w = torch.randn(d, dtype=torch.float64, generator=g)
    t, t_valid = (torch.sign(A @ w + torch.randn(len(A), dtype=torch.float64, generator=g)) for A in (X, X_valid))
    return BilevelProblem(
        upper=lambda x, y, batch: softplus(-t_valid * (X_valid @ y)).mean(),
        lower=lambda x, y, batch: softplus(-t * (X @ y)).mean() + (x.exp() * y.square()).sum() / 2,
        x0=torch.full((d,), -7.0, dtype=torch.float64) + torch.randn(d, dtype=torch.float64, generator=g),
        y0=torch.zeros(d, dtype=torch.float64),
    )


def large_logistic(n: int, d: int, seed: int, rtol: float = 1e-6) -> Point:
    """Features whose scales span a factor of thirty, as they come from tables; float64."""
    problem = _problem(n, d, seed)
    oracle, x = Oracle(problem), problem.x0
    before = solve_lower(oracle, x, problem.y0, tol=1e-8).y
    earlier = hypergradient(problem, x, before, rtol=rtol, max_steps=1000)
    x = x - 0.1 * earlier.grad / earlier.grad.abs().max()  # the next point of a descent
    y = solve_lower(oracle, x, before, tol=1e-8).y
    operator = oracle.lower_hessian(x, y)
    diagonal = hutchinson_diagonal(operator, 30, generator=torch.Generator().manual_seed(seed)).value.clamp_min(1e-6)
    steps = cg(operator, oracle.upper_gradients(x, y)[1], rtol=rtol, max_steps=1000, validate=False).num_steps
    return Point(problem, x, y, diagonal, rtol, steps, torch.as_tensor(earlier.adjoint))


def cold_logistic(n: int, d: int, seed: int) -> Point:
    """The same losses at a start that costs nothing to find, and a few steps: memory is the same at every point."""
    problem = _problem(n, d, seed)
    zero = torch.zeros(d, dtype=torch.float64)
    return Point(problem, problem.x0, zero, zero + 1, 1e-2, 5, zero)


def by_hesse(point: Point) -> Tensor:
    """Conjugate gradients, cold, without a preconditioner: what the peers do."""
    return hypergradient(point.problem, point.x, point.y, rtol=point.rtol, max_steps=1000).grad


def by_hesse_jacobi(point: Point) -> Tensor:
    """Warm from the last point's v, and preconditioned by the diagonal of g_yy."""
    return hypergradient(
        point.problem,
        point.x,
        point.y,
        rtol=point.rtol,
        max_steps=1000,
        v0=point.warm,
        preconditioner=lambda block: block / point.diagonal.unsqueeze(1),
    ).grad


def by_torchopt(point: Point) -> Tensor:
    """``custom_root`` around a solver that has nothing left to do; its CG stops at the same relative residual."""
    torchopt: Any = require_peer("torchopt")
    problem = point.problem

    def optimality(y: Tensor, x: Tensor) -> Tensor:
        return torch.func.grad(lambda u: problem.lower(x, u, None))(y)

    solver = torchopt.linear_solve.solve_cg(maxiter=1000, rtol=point.rtol, atol=0.0)
    rooted = torchopt.diff.implicit.custom_root(optimality, argnums=1, solve=solver)(lambda y, x: y)
    x = point.x.clone().requires_grad_()
    y = rooted(point.y.clone().requires_grad_(), x)
    return torch.autograd.grad(problem.upper(x, y, None), x)[0]


def by_betty(point: Point) -> Tensor:
    """``betty.hypergradient.cg`` on a stand-in for its problem classes; the number of steps has to be told.

    Version 0.1.1 forms each new direction from the residual of the step before, and so does not converge: its error
    stands in the rows, its time is that of the same number of products.
    """
    require_peer("betty")
    from betty.hypergradient.cg import cg as betty_cg  # pyright: ignore[reportMissingImports]

    problem, x, y = point.problem, point.x.clone().requires_grad_(), point.y.clone().requires_grad_()
    upper = SimpleNamespace(trainable_parameters=lambda: [x])
    lower = SimpleNamespace(
        paths=[],
        config=SimpleNamespace(cg_iterations=point.num_steps, cg_alpha=1.0),
        cur_batch=None,
        training_step_exec=lambda batch: problem.lower(x, y, None),
        trainable_parameters=lambda: [y],
        parameters=lambda: [y],
    )
    vector = torch.autograd.grad(problem.upper(x, y, None), y)
    gradients: Any = betty_cg(vector, lower, upper)
    return gradients[0]


ARMS = {"hesse, plain": by_hesse, "hesse": by_hesse_jacobi, "torchopt": by_torchopt, "betty": by_betty}
