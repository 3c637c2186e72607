"""Optimistic mirror descent for a moving target: one player a step size, weighted by how each would have done.

Players i = 1..N run projected optimistic steps of sizes η_1 < ... < η_N; a weighted mean of their points is played:

    x_t = Σ_i p_{t,i} x_{t,i},   p_{t,i} ∝ exp(-ε_t (Σ_{s<t} ℓ_{s,i} + m_{t,i})),
    ℓ_{t,i} = ⟨g_t, x_{t,i}⟩ + λ ‖x_{t,i} - x_{t-1,i}‖²,   ε_t = min{1/(8D²L), √(ln N / (D² (1 + V_{t-1})))}

with m_{t,i} the same as ℓ_{t,i} for the hint M_t in place of g_t. One gradient a round, at x_t.
Shapes: n unknowns, N players; leading dimensions are runs of their own.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.optim.online.rounds import OOMDRules, check_positive

__all__ = ["DynamicState", "dynamic_init", "dynamic_play", "dynamic_round", "dynamic_step_sizes", "dynamic_update"]


class DynamicState(NamedTuple):
    """Where the ensemble stands between two rounds; tensors, batched alike, sums in float64."""

    play: Tensor  # x_t (..., n), to be handed to the loss
    points: Tensor  # x_{t,i} (..., N, n)
    centers: Tensor  # x̂_{t,i} (..., N, n)
    hint: Tensor  # M_t (..., n)
    losses: Tensor  # Σ_{s<t} ℓ_{s,i} (..., N)
    moves: Tensor  # ‖x_{t,i} - x_{t-1,i}‖² (..., N)
    weights: Tensor  # p_t (..., N)
    variation: Tensor  # V_{t-1} = Σ_{s<t} ‖g_s - M_s‖² (...)
    steps: Tensor  # η_i (..., N)


def dynamic_step_sizes(
    horizon: int, *, diameter: float, grad_bound: float, smoothness: float = 0.0
) -> tuple[float, ...]:
    """List the pool η_i = min{1/(8L), 2^{i-1} √(D²/(8G²T))}, i = 1..N, N = ⌈½ log₂(G²T/(8L²D²))⌉ + 1 but at least 1.

    Parameters
    ----------
    horizon : int
        T >= 1, in rounds.
    diameter, grad_bound : float
        D and G, > 0.
    smoothness : float, default 0.0
        L >= 0, of the expected losses. At 0, for linear losses, there is no cap, and N = ⌈½ log₂(1 + T)⌉ + 1 takes the
        steps up to about D/G.

    Returns
    -------
    tuple of float
        Rising; N grows as ½ log₂ T.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> dynamic_step_sizes(4000, diameter=2.0, grad_bound=2.0, smoothness=1.0)[-1]
    0.125
    """
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ArgumentError(f"expected an integer horizon >= 1, got {horizon!r}")
    check_positive("diameter", diameter)
    check_positive("grad_bound", grad_bound)
    if not (math.isfinite(smoothness) and smoothness >= 0):
        raise ArgumentError(f"expected a finite smoothness >= 0, got {smoothness}")
    least = diameter / (grad_bound * math.sqrt(8 * horizon))
    if smoothness == 0:
        return tuple(least * 2.0**i for i in range(math.ceil(math.log2(1 + horizon) / 2) + 1))
    cap = 1 / (8 * smoothness)
    span = grad_bound**2 * horizon / (8 * (smoothness * diameter) ** 2)
    return tuple(min(cap, least * 2.0**i) for i in range(max(1, math.ceil(math.log2(span) / 2) + 1)))


def dynamic_init(rules: OOMDRules, start: Tensor, horizon: int) -> DynamicState:
    """Set up round 1: all players at the point of X nearest to ``start``, equal weights, M_1 = 0.

    Parameters
    ----------
    rules : OOMDRules
        D, G, L and the projection, of the convex geometry; λ = 2L. Here G must be given.
    start : Tensor, shape (..., n)
        Any points; zeros if nothing is known.
    horizon : int
        T, the rounds to be played; it sets the pool of step sizes. Where it is not known, begin anew from
        the last play with T doubled, as `DynamicOMD` does.

    Returns
    -------
    DynamicState
        With the first point in ``play``.

    Raises
    ------
    ArgumentError
        If the horizon is out of range, G is missing, or the rules are of another geometry or have a prox.
    ShapeError
        If ``start`` has no dimension, or no unknowns.
    """
    if start.ndim == 0 or start.shape[-1] == 0:
        raise ShapeError(f"dynamic_init: expected start (..., n) with n >= 1, got shape {tuple(start.shape)}")
    if rules.geometry != "convex" or rules.prox is not None or rules.grad_bound is None:
        raise ArgumentError("dynamic_init: expected convex rules with a grad_bound and without a prox")
    sizes = dynamic_step_sizes(
        horizon, diameter=rules.diameter, grad_bound=rules.grad_bound, smoothness=rules.smoothness or 0.0
    )
    play = start if rules.projection is None else rules.projection(start)
    batch, num_players = start.shape[:-1], len(sizes)
    points = play.unsqueeze(-2).expand(*batch, num_players, -1)
    variation = start.new_zeros(batch, dtype=torch.float64)
    losses = start.new_zeros((*batch, num_players), dtype=torch.float64)
    return DynamicState(
        play=play,
        points=points,
        centers=points,
        hint=torch.zeros_like(play),
        losses=losses,
        moves=torch.zeros_like(losses),
        weights=losses + 1 / num_players,
        variation=variation,
        steps=start.new_tensor(sizes).expand(*batch, num_players),
    )


def dynamic_play(rules: OOMDRules, state: DynamicState, hint: Tensor) -> DynamicState:
    """Move the players by a hint, weigh them by it, and put their mean in ``play``.

    Parameters
    ----------
    rules : OOMDRules
        As in `dynamic_init`.
    state : DynamicState
        After `dynamic_update`.
    hint : Tensor, shape (..., n)
        M_t, a guess of the gradient at the point about to be played.

    Returns
    -------
    DynamicState
        With x_t in ``play``.
    """
    points = _descend(rules, state, hint)
    moves = (points - state.points).to(torch.float64).square().sum(-1)
    state = state._replace(points=points, moves=moves, hint=hint)
    # ε_t; ln N = 0 is right for a single player, who has nothing to weigh
    rate = (math.log(points.shape[-2]) / (1 + state.variation)).sqrt() / rules.diameter
    if rules.smoothness:
        rate = rate.clamp_max(1 / (8 * rules.diameter**2 * rules.smoothness))
    weights = torch.softmax(-rate.unsqueeze(-1) * (state.losses + _linearised(rules, state, hint)), dim=-1)
    # the mean as a step from one of the players: where all agree it is their point, to the last bit
    anchor = points[..., 0, :]
    play = anchor + (weights.to(points.dtype).unsqueeze(-1) * (points - anchor.unsqueeze(-2))).sum(-2)
    return state._replace(weights=weights, play=play)


def dynamic_update(rules: OOMDRules, state: DynamicState, grad: Tensor) -> DynamicState:
    """Let all players learn from the gradient at ``state.play``.

    Parameters
    ----------
    rules : OOMDRules
        As in `dynamic_init`.
    state : DynamicState
        From `dynamic_play` or `dynamic_init`.
    grad : Tensor, shape (..., n)
        g_t. It is not looked at: NaN in, NaN out.

    Returns
    -------
    DynamicState
        ``hint``, ``points`` and ``play`` as they were.
    """
    return state._replace(
        losses=state.losses + _linearised(rules, state, grad),
        centers=_descend(rules, state, grad),
        variation=state.variation + (grad - state.hint).to(torch.float64).square().sum(-1),
    )


def dynamic_round(rules: OOMDRules, state: DynamicState, grad: Tensor, hint: Tensor | None = None) -> DynamicState:
    """Take the gradient of this round and move on to the next one.

    Parameters
    ----------
    rules : OOMDRules
        As in `dynamic_init`.
    state : DynamicState
        Whose ``play`` was played.
    grad : Tensor, shape (..., n)
        g_t, at ``state.play``.
    hint : Tensor, shape (..., n), optional
        M_{t+1}. Default: g_t.

    Returns
    -------
    DynamicState
        With x_{t+1} in ``play``.

    Notes
    -----
    E Σ f_t(x_t) - f_t(u_t) = O(P + √(1 + P) (√σ² + √Σ²)) against every sequence u_t of path length P, with σ² the
    summed variance and Σ² the summed variation of the gradients; constants are not tight. O(nN) time and numbers, 2N
    projections. A single player costs less where the target stands still, by a constant.

    References
    ----------
    S. Chen, Y.-J. Zhang, W.-W. Tu, P. Zhao, L. Zhang (2024), JMLR, arXiv 2302.04552. P. Zhao, Y.-J. Zhang, L. Zhang,
    Z.-H. Zhou (2024), JMLR, arXiv 2112.14368, for the two layers and their correction.
    """
    return dynamic_play(rules, dynamic_update(rules, state, grad), grad if hint is None else hint)


def _descend(rules: OOMDRules, state: DynamicState, grad: Tensor) -> Tensor:
    moved = state.centers - state.steps.unsqueeze(-1) * grad.unsqueeze(-2)
    return moved if rules.projection is None else rules.projection(moved)


def _linearised(rules: OOMDRules, state: DynamicState, grad: Tensor) -> Tensor:
    # ⟨grad, x_i⟩ + 2L ‖x_{t,i} - x_{t-1,i}‖² (..., N): the second part charges players for moving
    inner = (state.points.to(torch.float64) @ grad.to(torch.float64).unsqueeze(-1)).squeeze(-1)
    return inner + 2 * (rules.smoothness or 0.0) * state.moves
