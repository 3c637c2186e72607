"""Projected SGD in epochs: each starts from the last one's average, with half its step and twice its length.

a_{k+1} = a_k / 2,   T_{k+1} = 2 T_k,   D_{k+1} = D_k / √2
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hesse.bilevel.solvers.base import positive
from hesse.errors import ArgumentError
from hesse.linalg._arguments import at_least
from hesse.linalg.projections import Ball

__all__ = ["epoch_sgd"]


def epoch_sgd(
    grad_fn: Callable[[Tensor], Tensor],
    y0: Tensor,
    *,
    step: float,
    epochs: int,
    radius: float = math.inf,
    steps0: int,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Go near the minimiser of a strongly convex function known by noisy gradients.

    Parameters
    ----------
    grad_fn : callable
        y -> an unbiased estimate of the gradient, shape (M,).
    y0 : Tensor, shape (M,)
        Start.
    step : float
        a_1; 1 / (2L) for an L-smooth function.
    epochs : int
        K >= 0; 0 returns ``y0``.
    radius : float, default inf
        D_1, of the ball around an epoch's start that its iterates are kept in; at least ‖gradient‖ / μ. It serves
        heavy-tailed noise: with the default nothing is projected.
    steps0 : int
        T_1; about 4 L / μ, so that an epoch forgets its start.
    project : callable, optional
        Nearest point of a convex set, applied after the ball. Default: none.

    Returns
    -------
    Tensor, shape (M,)
        ‖y - y*‖² = O(noise² / (μ² steps)) with high probability, in (2^K - 1) T_1 steps.

    Raises
    ------
    ArgumentError
        If a setting is not positive.

    References
    ----------
    E. Hazan, S. Kale (2014), JMLR 15, "Beyond the regret minimization barrier".

    Examples
    --------
    >>> y = epoch_sgd(lambda y: y - 3, torch.zeros(1), step=0.5, epochs=4, steps0=8)
    >>> round(float(y), 2)
    3.0
    """
    positive("epoch_sgd", step=step, steps0=steps0)
    at_least("epoch_sgd", "epochs", epochs, 0)
    if not radius > 0:
        raise ArgumentError(f"epoch_sgd: expected radius > 0, got {radius}")
    y = y0.detach()
    for epoch in range(epochs):
        num_steps, size = steps0 * 2**epoch, step / 2**epoch
        ball = None if math.isinf(radius) else Ball(radius / 2 ** (epoch / 2), y)
        total = torch.zeros_like(y)
        for _ in range(num_steps):
            total = total + y
            y = y - size * grad_fn(y)
            y = y if ball is None else ball(y)
            y = y if project is None else project(y)
        y = total / num_steps
    return y
