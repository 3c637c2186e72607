"""What a sequence of decisions cost, and how much the world moved meanwhile."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError

__all__ = ["gradient_variation", "online_to_batch_bound", "path_length", "regret"]


def regret(losses: Callable[[Tensor], Tensor], plays: Tensor, comparator: Tensor) -> Tensor:
    """Sum f_t(x_t) - f_t(u_t) over the rounds; negative where the plays were better than the comparator.

    Parameters
    ----------
    losses : callable
        All rounds at once: points (T, ..., n) ↦ (T, ...), the row t being f_t at point t.
    plays : Tensor, shape (T, ..., n)
        x_1 .. x_T.
    comparator : Tensor, shape (n,), (..., n) or (T, ..., n)
        One u for all rounds (static regret, with the best fixed point), or one a round (dynamic regret).

    Returns
    -------
    Tensor, shape (...)
        In the units of the losses.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Examples
    --------
    >>> slopes = torch.tensor([[1.0], [-1.0], [1.0]])
    >>> regret(lambda x: (slopes * x).sum(-1), torch.zeros(3, 1), torch.tensor([-1.0]))
    tensor(1.)
    """
    if plays.ndim < 2:
        raise ShapeError(f"regret: expected plays (T, ..., n), got shape {tuple(plays.shape)}")
    try:
        fixed = comparator.expand_as(plays)
    except RuntimeError as error:
        raise ShapeError(
            f"regret: a comparator of shape {tuple(comparator.shape)} for plays of shape {tuple(plays.shape)}"
        ) from error
    ours, theirs = losses(plays), losses(fixed)
    if ours.shape != plays.shape[:-1]:
        raise ShapeError(f"regret: expected losses of shape {tuple(plays.shape[:-1])}, got {tuple(ours.shape)}")
    return (ours - theirs).sum(0)


def online_to_batch_bound(losses: Tensor, *, loss_range: float, confidence: float = 0.95) -> Tensor:
    """Bound the risk of the average of the plays from above: mean loss + R √(ln(1/δ) / (2T)).

    For losses f_t drawn independently of one distribution, convex in expectation, with x_t chosen before f_t was seen:
    F((x_1 + ... + x_T) / T) is below the bound with probability ``confidence`` = 1 - δ. No held-out data are needed.

    Parameters
    ----------
    losses : Tensor, shape (T, ...)
        f_t(x_t), in nats or any unit.
    loss_range : float
        R > 0, the length of an interval that holds every loss.
    confidence : float, default 0.95
        Between 0 and 1.

    Returns
    -------
    Tensor, shape (...)
        In the unit of the losses.

    Raises
    ------
    ArgumentError
        If ``loss_range`` or ``confidence`` is out of range.
    ShapeError
        If there are no rounds.

    References
    ----------
    N. Cesa-Bianchi, A. Conconi, C. Gentile (2004), IEEE Trans. Inf. Theory 50(9).
    """
    if not (math.isfinite(loss_range) and loss_range > 0):
        raise ArgumentError(f"online_to_batch_bound: expected a finite loss_range > 0, got {loss_range}")
    if not 0 < confidence < 1:
        raise ArgumentError(f"online_to_batch_bound: expected 0 < confidence < 1, got {confidence}")
    if losses.ndim == 0 or len(losses) == 0:
        raise ShapeError(f"online_to_batch_bound: expected losses (T, ...), got shape {tuple(losses.shape)}")
    return losses.mean(0) + loss_range * math.sqrt(-math.log1p(-confidence) / (2 * len(losses)))


def path_length(comparators: Tensor) -> Tensor:
    """P = Σ_{t>=2} ‖u_t - u_{t-1}‖, how far a sequence of comparators travels.

    Parameters
    ----------
    comparators : Tensor, shape (T, ..., n)
        u_1 .. u_T.

    Returns
    -------
    Tensor, shape (...)
        In the units of u.

    Raises
    ------
    ShapeError
        If there are fewer than two dimensions.
    """
    _at_least_two("path_length", comparators)
    return torch.linalg.vector_norm(comparators.diff(dim=0), dim=-1).sum(0)


def gradient_variation(grads: Tensor) -> Tensor:
    """V = Σ_t ‖g_t - g_{t-1}‖² with g_0 = 0: what a player pays whose hint is the last gradient.

    For gradients at the points played this is V_T of the rounds; for expected gradients at a fixed point it bounds
    Σ²_{1:T} of the paper from below, up to the first term.

    Parameters
    ----------
    grads : Tensor, shape (T, ..., n)
        g_1 .. g_T.

    Returns
    -------
    Tensor, shape (...)
        In squared units of the gradient.

    Raises
    ------
    ShapeError
        If there are fewer than two dimensions.
    """
    _at_least_two("gradient_variation", grads)
    return grads.diff(dim=0, prepend=torch.zeros_like(grads[:1])).square().sum((0, -1))


def _at_least_two(name: str, vectors: Tensor) -> None:
    if vectors.ndim < 2:
        raise ShapeError(f"{name}: expected vectors (T, ..., n), got shape {tuple(vectors.shape)}")
