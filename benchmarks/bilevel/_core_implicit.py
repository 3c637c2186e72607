"""The hypergradient of one ridge problem by two further peers: jaxopt through the optimum, higher through the steps.

Shapes: n rows, d features; x (d,) log penalties, y (d,) weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import require_peer
from hesse.bilevel import BilevelProblem

__all__ = ["by_higher", "by_jaxopt"]


def by_jaxopt(X: Tensor, t: Tensor, X_valid: Tensor, t_valid: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``custom_root`` of the same losses written in jax, at the lower solution, by its conjugate gradients at 1e-12."""
    jax: Any = require_peer("jax")
    jaxopt: Any = require_peer("jaxopt")
    jax.config.update("jax_enable_x64", True)  # arrays of this problem are float64
    jnp = jax.numpy
    rows, targets, held, wanted, at, solution = (jnp.asarray(a.numpy()) for a in (X, t, X_valid, t_valid, x, y))

    def lower(u: Any, penalties: Any) -> Any:
        return jnp.square(rows @ u - targets).mean() / 2 + (jnp.exp(penalties) * u * u).sum() / 2

    def solve(system: Any, right: Any) -> Any:
        return jaxopt.linear_solve.solve_cg(system, right, tol=1e-12, maxiter=1000)

    rooted = jaxopt.implicit_diff.custom_root(jax.grad(lower), solve=solve)(lambda _start, penalties: solution)

    def upper(penalties: Any) -> Any:
        return jnp.square(held @ rooted(None, penalties) - wanted).mean() / 2

    return torch.tensor(jax.grad(upper)(at).tolist(), dtype=x.dtype)


class _Weights(nn.Module):
    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = nn.Parameter(y.clone())


def by_higher(problem: BilevelProblem, x: Tensor, y: Tensor, num_steps: int, step_size: float) -> Tensor:
    """Its inner loop of SGD from y, kept whole and differentiated."""
    higher: Any = require_peer("higher")
    module, penalties = _Weights(y), x.clone().requires_grad_()
    optimizer = torch.optim.SGD(module.parameters(), lr=step_size)
    with higher.innerloop_ctx(module, optimizer) as (moving, inner):
        for _ in range(num_steps):
            inner.step(problem.lower(penalties, moving.y, None))
        return torch.autograd.grad(problem.upper(penalties, moving.y, None), penalties)[0]
