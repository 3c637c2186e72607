"""The noisy-label machine by implicit differentiation: a layer that solves its quadratic program, Adam on log costs.

Shapes: n training rows, d features; the program has n + d + 1 variables.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import require_peer
from hesse.bilevel import BilevelProblem, SoftMarginRows

__all__ = ["LAYERS", "PeerPath", "descend"]

Layer = Callable[[Tensor], dict[str, Tensor]]
"""log costs (n,) -> weight (d,) and bias (), differentiable."""


@dataclass(frozen=True, slots=True)
class PeerPath:
    """Where Adam went: the log costs after each step, and the seconds until then."""

    costs: list[Tensor]
    seconds: list[float]


def cvxpylayers_layer(X: Tensor, t: Tensor) -> Layer:
    """``cvxpylayers`` on the program as one would write it in cvxpy; its default solver."""
    cp: Any = require_peer("cvxpy")
    layers: Any = require_peer("cvxpylayers.torch")
    n, d = X.shape
    weight, bias, slack, root = cp.Variable(d), cp.Variable(), cp.Variable(n), cp.Parameter(n, nonneg=True)
    rows = (t.unsqueeze(1) * X).numpy()
    program = cp.Problem(
        cp.Minimize(0.5 * cp.sum_squares(weight) + 0.5 * cp.sum_squares(cp.multiply(root, slack))),
        [rows @ weight + t.numpy() * bias + slack >= 1],
    )
    layer = layers.CvxpyLayer(program, parameters=[root], variables=[weight, bias])

    def solve(x: Tensor) -> dict[str, Tensor]:
        found = layer((x / 2).exp())
        return {"weight": found[0].reshape(d), "bias": found[1].reshape(())}

    return solve


def qpth_layer(X: Tensor, t: Tensor) -> Layer:
    """``qpth`` with dense matrices; it wants a definite Q, so that the bias gets a weight of 10⁻⁶."""
    function: Any = require_peer("qpth.qp").QPFunction(verbose=-1, check_Q_spd=False)
    n, d = X.shape
    G = -torch.cat([SoftMarginRows(X, t).signed_rows, torch.eye(n, dtype=X.dtype)], dim=1)
    h, zero, none = -torch.ones(n, dtype=X.dtype), torch.zeros(n + d + 1, dtype=X.dtype), X.new_zeros(0)
    head = torch.cat([X.new_ones(d), X.new_full((1,), 1e-6)])

    def solve(x: Tensor) -> dict[str, Tensor]:
        found = function(torch.diag(torch.cat([head, x.exp()])), zero, G, h, none, none)[0]
        return {"weight": found[:d], "bias": found[d]}

    return solve


LAYERS: dict[str, Callable[[Tensor, Tensor], Layer]] = {"cvxpylayers": cvxpylayers_layer, "qpth": qpth_layer}


def descend(
    layer: Layer, problem: BilevelProblem, *, seconds: float, lr: float, max_steps: int | None = None
) -> PeerPath:
    """Minimise f(y*(x)) by Adam within the same bounds; building the layer and its first solve are not timed."""
    project: Any = problem.project_x
    x = problem.x0.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=lr)
    path = PeerPath([problem.x0.clone()], [0.0])
    layer(problem.x0)
    start = time.perf_counter()
    while path.seconds[-1] < seconds and (max_steps is None or len(path.costs) <= max_steps):
        adam.zero_grad()
        problem.upper(x, layer(x), None).backward()
        adam.step()
        with torch.no_grad():
            x.copy_(project(x))
        path.costs.append(x.detach().clone())
        path.seconds.append(time.perf_counter() - start)
    return path
