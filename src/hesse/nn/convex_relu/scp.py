"""Sampled convex programme: draw neurons, fit their output weights by an l1 problem, and measure what is left to gain.

The dual of training is min_z l*(z) subject to |zᵀ (X u)₊| <= β for all ‖u‖ <= 1; sampling u gives a finite programme.
Shapes: X (N, D), K neurons.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hesse.errors import ArgumentError
from hesse.linalg import fista
from hesse.nn.convex_relu.admm import _check
from hesse.nn.convex_relu.losses import LossName, conjugate, loss_value, slope

__all__ = ["SCPResult", "dual_bound", "duality_certificate", "sampled_relu", "violating_directions"]


@dataclass(frozen=True, slots=True)
class SCPResult:
    """Output weights of sampled neurons."""

    directions: Tensor  # (K, D), unit vectors
    weights: Tensor  # (K,)
    objective: float
    dual: Tensor  # (N,), slope of the loss at the outputs
    converged: bool
    num_steps: int


def sampled_relu(
    X: Tensor,
    y: Tensor,
    *,
    num_neurons: int = 2000,
    beta: float = 1e-2,
    loss: LossName = "squared",
    tol: float = 1e-6,
    max_steps: int = 2000,
    directions: Tensor | None = None,
    generator: Generator | None = None,
) -> SCPResult:
    """Solve min_a l((X U)₊ a, y) + β ‖a‖₁ over unit vectors u_j drawn evenly from the sphere.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows, float32 or float64.
    y : Tensor, shape (N,)
        Targets, or labels -1 and 1.
    num_neurons : int, default 2000
        K; `scenario_size` says what a guarantee takes.
    beta : float, default 1e-2
        Weight decay of the network that this is.
    loss : {"squared", "bce"}, default "squared"
        Smooth ones only.
    tol : float, default 1e-6
        Of FISTA: the gradient mapping against max(1, its first value).
    max_steps : int, default 2000
        Of FISTA.
    directions : Tensor, shape (K, D), optional
        Unit vectors to use instead of a draw.
    generator : torch.Generator, optional
        Default: torch's global generator.

    Returns
    -------
    SCPResult
        The network is u_j √|a_j|, sign(a_j) √|a_j|; its objective is at most this one.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or the loss is "hinge", which has corners.
    ShapeError
        If shapes or dtypes do not fit.

    Notes
    -----
    O(N K) a step and in memory.

    References
    ----------
    Y. Bai, T. Gautam, S. Sojoudi (2023), SIAM J. Math. Data Sci., arXiv 2201.01965.
    """
    _check(X, y, X, loss)
    if loss == "hinge":
        raise ArgumentError('sampled_relu: loss "hinge" has corners; use "bce", or admm_relu')
    if num_neurons < 1 or not beta >= 0:
        raise ArgumentError(f"sampled_relu: expected num_neurons >= 1 and beta >= 0, got {num_neurons} and {beta}")
    if directions is None:
        directions = _sphere(num_neurons, X, generator)
    features = (X @ directions.mT).clamp_min(0)
    steepest = torch.linalg.matrix_norm(features, 2).square() / (1 if loss == "squared" else 4 * len(X))
    found = fista(
        lambda a: loss_value(loss, features @ a, y),
        lambda a, step: a.sign() * (a.abs() - beta * step).clamp_min(0),
        X.new_zeros(len(directions)),
        gradient_fn=lambda a: features.mT @ slope(loss, features @ a, y),
        step=float(1 / steepest.clamp_min(1e-12)),
        tol=tol,
        max_steps=max_steps,
    )
    outputs = features @ found.x
    objective = float(loss_value(loss, outputs, y) + beta * found.x.abs().sum())
    return SCPResult(directions, found.x, objective, slope(loss, outputs, y), bool(found.converged), found.num_steps)


def duality_certificate(
    X: Tensor, z: Tensor, beta: float, *, num_directions: int = 2000, generator: Generator | None = None
) -> float:
    """Max |zᵀ (X u)₊| / β over fresh unit vectors u: at most 1 where no neuron drawn could lower the objective.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    z : Tensor, shape (N,)
        Slope of the loss at the outputs of a fit.
    beta : float
        Weight decay of the fit, positive.
    num_directions : int, default 2000
        Vectors to draw; the maximum over all of the sphere may be larger.
    generator : torch.Generator, optional
        Default: torch's global generator.

    Returns
    -------
    float
        Without a unit. Its excess over 1 is what column generation can still use.

    Raises
    ------
    ArgumentError
        If ``beta`` is not positive or no direction is asked for.
    """
    if not beta > 0 or num_directions < 1:
        raise ArgumentError(f"duality_certificate: expected beta > 0 and directions, got {beta}, {num_directions}")
    values = (X @ _sphere(num_directions, X, generator).mT).clamp_min(0).mT @ z
    return float(values.abs().max() / beta)


def dual_bound(z: Tensor, y: Tensor, certificate: float, loss: LossName = "squared") -> Tensor:
    """-l*(z / max(1, c)), a lower bound of the optimum if c bounds |zᵀ (X u)₊| / β over the whole sphere.

    Parameters
    ----------
    z : Tensor, shape (N,)
        Slope of the loss.
    y : Tensor, shape (N,)
        Targets.
    certificate : float
        c. From samples it is itself an estimate from below, and so is then the statement about the bound.
    loss : {"squared", "hinge", "bce"}, default "squared"
        The loss.

    Returns
    -------
    Tensor, shape ()
        In the units of the loss.
    """
    return -conjugate(loss, z / max(1.0, certificate), y)


def violating_directions(
    X: Tensor, z: Tensor, *, num_starts: int = 64, num_steps: int = 50, generator: Generator | None = None
) -> Tensor:
    """Climb |zᵀ (X u)₊| on the unit sphere from random starts: neurons, hence patterns, that would lower the objective.

    Parameters
    ----------
    X : Tensor, shape (N, D)
        Rows.
    z : Tensor, shape (N,)
        Slope of the loss at the outputs of a fit.
    num_starts : int, default 64
        Starts.
    num_steps : int, default 50
        Steps of projected gradient ascent, their length falling as 1/√step.
    generator : torch.Generator, optional
        Default: torch's global generator.

    Returns
    -------
    Tensor, shape (2 num_starts, D)
        For each start where it ended upwards and downwards; the steepest first.
    """
    u = _sphere(num_starts, X, generator).repeat(2, 1)
    sign = torch.ones(2 * num_starts, 1, dtype=X.dtype, device=X.device)
    sign[num_starts:] = -1
    for step in range(1, num_steps + 1):
        gradient = sign * (((X @ u.mT >= 0).to(X) * z.unsqueeze(1)).mT @ X)
        u = torch.nn.functional.normalize(u + step**-0.5 * torch.nn.functional.normalize(gradient, dim=1), dim=1)
    heights = sign.squeeze(1) * ((X @ u.mT).clamp_min(0).mT @ z)
    return u[heights.argsort(descending=True)]


def _sphere(count: int, X: Tensor, generator: Generator | None) -> Tensor:
    drawn = torch.randn(count, X.shape[1], dtype=X.dtype, device=X.device, generator=generator)
    return torch.nn.functional.normalize(drawn, dim=1)
