"""Convex losses of the outputs f of a network: value, slope, curvature, proximal map and conjugate.

squared: ½ Σ (f_k - y_k)²;   hinge: (1/N) Σ max(0, 1 - y_k f_k);   bce: (1/N) Σ log(1 + exp(-y_k f_k)).
Shapes: f and y (..., N); y in {-1, 1} for hinge and bce.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from hesse.errors import ArgumentError

__all__ = ["LossName", "conjugate", "curvature", "loss_value", "proximal", "require_targets", "slope"]

LossName = Literal["squared", "hinge", "bce"]
"""Which loss: a sum of squares, or the mean of hinge or logistic losses."""

_NEWTON_STEPS = 20  # from inside a bracket, to rounding


def require_targets(call: str, kind: LossName, y: Tensor) -> None:
    """Refuse an unknown loss, targets with NaN or Inf, and labels other than -1 and 1.

    Parameters
    ----------
    call : str
        Who asks, for the message.
    kind : {"squared", "hinge", "bce"}
        The loss.
    y : Tensor
        Targets.

    Raises
    ------
    ArgumentError
        See above.
    """
    if kind not in get_args(LossName):
        raise ArgumentError(f"{call}: expected loss to be one of {get_args(LossName)}, got {kind!r}")
    if not bool(torch.isfinite(y).all()):
        raise ArgumentError(f"{call}: y has NaN or Inf")
    if kind != "squared" and not bool((y.abs() == 1).all()):
        raise ArgumentError(f"{call}: loss {kind!r} needs labels -1 and 1 in y")


def loss_value(kind: LossName, f: Tensor, y: Tensor) -> Tensor:
    """Evaluate the loss.

    Parameters
    ----------
    kind : {"squared", "hinge", "bce"}
        A sum for "squared", a mean for the others.
    f, y : Tensor, shape (..., N)
        Outputs and targets.

    Returns
    -------
    Tensor, shape (...)
        Differentiable; nats for "bce".
    """
    if kind == "squared":
        return (f - y).square().sum(-1) / 2
    return ((1 - y * f).clamp_min(0) if kind == "hinge" else softplus(-y * f)).mean(-1)


def slope(kind: LossName, f: Tensor, y: Tensor) -> Tensor:
    """Differentiate with respect to each output; at the kink of the hinge, 0.

    Parameters
    ----------
    kind : {"squared", "hinge", "bce"}
        The loss.
    f, y : Tensor, shape (..., N)
        Outputs and targets.

    Returns
    -------
    Tensor, shape (..., N)
        ∂l/∂f.
    """
    if kind == "squared":
        return f - y
    inner = (y * f < 1).to(f) if kind == "hinge" else torch.sigmoid(-y * f)
    return -y * inner / f.shape[-1]


def curvature(kind: LossName, f: Tensor, y: Tensor) -> Tensor:
    """Differentiate twice with respect to each output.

    Parameters
    ----------
    kind : {"squared", "hinge", "bce"}
        The loss; hinge has none.
    f, y : Tensor, shape (..., N)
        Outputs and targets.

    Returns
    -------
    Tensor, shape (..., N)
        ∂²l/∂f².
    """
    if kind == "squared":
        return torch.ones_like(f)
    if kind == "hinge":
        return torch.zeros_like(f)
    return torch.sigmoid(y * f) * torch.sigmoid(-y * f) / f.shape[-1]


def proximal(kind: LossName, f: Tensor, y: Tensor, step: float) -> Tensor:
    """argmin_u l(u) + ‖u - f‖²/(2 step), entry by entry.

    Parameters
    ----------
    kind : {"squared", "hinge", "bce"}
        The loss.
    f, y : Tensor, shape (..., N)
        Points and targets.
    step : float
        Positive.

    Returns
    -------
    Tensor, shape (..., N)
        Closed form, or for "bce" Newton's method inside a bracket that shrinks.
    """
    if kind == "squared":
        return (f + step * y) / (1 + step)
    size = step / f.shape[-1]
    margin = y * f
    if kind == "hinge":
        return y * torch.where(margin < 1, (margin + size).clamp_max(1), margin)
    low = margin
    high = margin + torch.minimum(torch.full_like(margin, size), (-margin).clamp_min(0) + math.log1p(size) + 1)
    point = (margin + size * torch.sigmoid(-margin)).minimum(high)
    for _ in range(_NEWTON_STEPS):
        off = torch.sigmoid(-point)
        excess = point - margin - size * off
        low, high = torch.where(excess < 0, point, low), torch.where(excess > 0, point, high)
        newton = point - excess / (1 + size * off * (1 - off))
        point = torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
    return y * point


def conjugate(kind: LossName, z: Tensor, y: Tensor) -> Tensor:
    """l*(z) = sup_f z·f - l(f); -l*(z) is the dual objective.

    Parameters
    ----------
    kind : {"squared", "hinge", "bce"}
        The loss.
    z : Tensor, shape (..., N)
        Dual variables; for hinge and bce those with -N y_k z_k outside [0, 1] are moved to the nearest end.
    y : Tensor, shape (..., N)
        Targets.

    Returns
    -------
    Tensor, shape (...)
        In the units of the loss.
    """
    if kind == "squared":
        return (z.square() / 2 + z * y).sum(-1)
    weight = (-y * z * z.shape[-1]).clamp(0, 1)
    if kind == "hinge":
        return -weight.mean(-1)
    logit = torch.logit(weight, eps=1e-15)
    return (weight * logsigmoid(logit) + (1 - weight) * logsigmoid(-logit)).mean(-1)
