"""Faster directions than the gradient's, in the inner product of H¹: momentum, Anderson mixing, Newton.

Each maps (u, gradient) to the point to start from, a direction, and the root of minus the slope along it.
"""

from typing import Any

import torch
from torch import Tensor

from hesse.linalg import FunctionOperator, cg
from hesse.linalg._small_lstsq import small_lstsq
from hesse.pde.variational._spaces import GridSpace, Space

__all__ = ["Anderson", "Momentum", "newton_direction"]

_FORCING = 0.1  # inner residual of Newton's system, times √(relative gradient) once that is smaller


class Momentum:
    """Nesterov's extrapolation for a strongly convex function: y = u + (1 - √q)/(1 + √q) (u - u_before), q = α/β."""

    def __init__(self, space: Space, ratio: float) -> None:
        self.space, self.weight = space, (1 - ratio**0.5) / (1 + ratio**0.5)
        self.before: Any = None

    def __call__(self, u: Any, gradient: Any) -> tuple[Any, Any, float]:
        # the extrapolated point and the descent from there
        space = self.space
        if self.before is None:
            point = u
        else:
            point = space.step(u, space.step(u, self.before, -1.0), self.weight)
            gradient = space.gradient(point)
        self.before = u
        return point, space.step(space.zero(), gradient, -1.0), space.inner(gradient, gradient) ** 0.5


class Anderson:
    """Combine the last iterates so that the same combination of their gradients is smallest; fall back on descent.

    The direction is kept only if it descends at an angle of at least 0.01 from orthogonality to the gradient; else the
    memory is emptied and the gradient itself is taken.
    """

    def __init__(self, space: Space, memory: int = 5) -> None:
        self.space, self.memory = space, memory
        self.seen: list[tuple[Any, Any]] = []

    def __call__(self, u: Any, gradient: Any) -> tuple[Any, Any, float]:
        # u and a direction of unit step
        space = self.space
        self.seen = [*self.seen[-self.memory :], (u, gradient)]
        norm = space.inner(gradient, gradient) ** 0.5
        steepest = space.descent(gradient, searching=True)
        plain = (u, steepest, space.inner(steepest, steepest) ** 0.5)
        if len(self.seen) == 1:
            return plain
        moves = [(space.step(a, u, -1.0), space.step(g, gradient, -1.0)) for a, g in self.seen[:-1]]
        gram = torch.tensor([[space.inner(a, b) for _, b in moves] for _, a in moves], dtype=torch.float64)
        right = torch.tensor([-space.inner(a, gradient) for _, a in moves], dtype=torch.float64)
        gram.diagonal().add_(1e-14 * gram.diagonal().max())
        weights = small_lstsq(gram, right.unsqueeze(1)).squeeze(1).tolist()
        direction = steepest
        for weight, (move, change) in zip(weights, moves, strict=True):
            direction = space.step(space.step(direction, move, weight), change, -weight)
        slope = -space.inner(direction, gradient)
        if slope <= 0.01 * norm * space.inner(direction, direction) ** 0.5:
            self.seen = self.seen[-1:]
            return plain
        return u, direction, slope**0.5


def newton_direction(space: GridSpace, u: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, float]:
    """Solve E''(u) d = -DE(u) by conjugate gradients, preconditioned by the Riesz map.

    In the coordinates z = (shift - Δ)^½ d the preconditioned operator is symmetric with spectrum in [α, β], so the
    number of inner steps does not depend on the mesh.

    Parameters
    ----------
    space : GridSpace
        Where.
    u, gradient : Tensor, shape (K, ..., K)
        Iterate and Riesz representative of DE(u).

    Returns
    -------
    tuple
        u, the direction, and the root of minus the slope.
    """
    root = (space.shift + space.symbol).sqrt()

    def product(z: Tensor) -> Tensor:
        columns = [root * space.hvp(u, column.reshape(root.shape) / root) for column in z.T]
        return torch.stack([column.reshape(-1) for column in columns], dim=1)

    n = root.numel()
    operator = FunctionOperator(product, (n, n), dtype=u.dtype, device=u.device, is_symmetric=True, is_psd=True)
    relative = (space.inner(gradient, gradient) / max(space.inner(u, u), 1e-300)) ** 0.5
    right = -(root * gradient).reshape(-1)
    found = cg(operator, right, rtol=max(1e-12, min(_FORCING, relative)), max_steps=100)
    direction = found.x.reshape(root.shape) / root
    slope = -space.inner(direction, gradient)
    if slope <= 0:  # negative curvature of an energy that is not convex: the gradient still descends
        return u, -gradient, space.inner(gradient, gradient) ** 0.5
    return u, direction, slope**0.5
