"""Peers that train parameters directly, every gradient of the loss counted as one call of the oracle."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

__all__ = ["fit", "lbfgs_path", "line_search_path"]


def fit(optimizer: Optimizer, losses: Sequence[Callable[[], Tensor]], decay: bool = False) -> None:
    """One step a loss; with ``decay`` the learning rate falls as 1/√t."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for t, loss in enumerate(losses, start=1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / t**0.5 if decay else rate
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def line_search_path(
    params: list[Tensor], losses: Callable[[int], Callable[[], Tensor]], steps: int, *, growth: float = 1.8
) -> Iterator[float]:
    """Gradient descent with Armijo's rule in the parameters (SLS): c = 1/2, shrink 0.9; yields the loss before a step.

    ``losses(t)`` is the loss of step t. The first trial is 10, later ones ``growth`` times the last step.
    """
    step = 10.0
    for t in range(steps):
        loss = losses(t)
        value = loss()
        yield float(value.detach())
        gradients = torch.autograd.grad(value, params)
        square = sum(float(g.square().sum()) for g in gradients)
        origin = [p.detach().clone() for p in params]
        with torch.no_grad():
            for _ in range(200):
                for p, at, g in zip(params, origin, gradients, strict=True):
                    p.copy_(at - step * g)
                if float(loss()) <= float(value) - 0.5 * step * square:
                    break
                step *= 0.9
        step *= growth


def lbfgs_path(params: list[Tensor], loss: Callable[[], Tensor], calls: int) -> None:
    """L-BFGS with strong Wolfe searches, stopped at a number of gradients."""

    class Spent(Exception):
        pass

    optimizer = LBFGS(
        params, max_iter=calls, max_eval=calls, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    best, best_point, used = float("inf"), [p.detach().clone() for p in params], 0

    def closure() -> float:
        nonlocal best, best_point, used
        if used == calls:
            raise Spent
        used += 1
        optimizer.zero_grad()
        value = loss()
        value.backward()
        if float(value.detach()) < best:
            best, best_point = float(value.detach()), [p.detach().clone() for p in params]
        return float(value.detach())

    try:
        optimizer.step(closure)
    except Spent:
        used = calls
    with torch.no_grad():
        for p, at in zip(params, best_point, strict=True):
            p.copy_(at)
