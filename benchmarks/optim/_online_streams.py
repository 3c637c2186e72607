"""Streams of losses for players of online learning, and the loop that plays them.

A stream gives the gradient at the points played in round t, and what all points cost against a comparator.
Shapes: T rounds, S runs side by side, n unknowns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from hesse.linalg import Ball, HNormBall
from hesse.optim import (
    DynamicState,
    OOMDRules,
    OOMDState,
    dynamic_init,
    dynamic_round,
    oomd_init,
    oomd_round,
    regret,
)

F64 = torch.float64
UNIT_BALL = Ball(1.0)
DIAMETER = 2.0

Player = tuple[Any, Callable[[Any, Tensor], Any]]  # first state, and (state, gradient) -> next state


@dataclass(frozen=True)
class Stream:
    """``gradient(t, x)`` for x (S, n); ``losses`` of points (T, S, n) as (T, S); ``comparator`` (S, n) or (T, S, n)."""

    gradient: Callable[[int, Tensor], Tensor]
    losses: Callable[[Tensor], Tensor]
    comparator: Tensor
    rounds: int

    def regret(self, player: Player) -> Tensor:
        """(S,)"""
        return regret(self.losses, play(player, self.gradient, self.rounds), self.comparator)


def play(player: Player, gradient: Callable[[int, Tensor], Tensor], rounds: int) -> Tensor:
    """Points played, (T, S, n)."""
    state, following = player
    plays = []
    for t in range(rounds):
        plays.append(state.play)
        state = following(state, gradient(t, state.play))
    return torch.stack(plays)


def optimistic(rules: OOMDRules, num_runs: int, n: int) -> tuple[OOMDState, Callable[[OOMDState, Tensor], OOMDState]]:
    return oomd_init(rules, torch.zeros(num_runs, n, dtype=F64)), partial(oomd_round, rules)


def ensemble(
    rules: OOMDRules, num_runs: int, n: int, rounds: int
) -> tuple[DynamicState, Callable[[DynamicState, Tensor], DynamicState]]:
    return dynamic_init(rules, torch.zeros(num_runs, n, dtype=F64), rounds), partial(dynamic_round, rules)


def baseline(player: Any, num_runs: int, n: int) -> Player:
    return player.init(torch.zeros(num_runs, n, dtype=F64)), player.round


def play_torch(
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    rates: tuple[float, ...],
    gradient: Callable[[int, Tensor], Tensor],
    rounds: int,
    num_runs: int,
    n: int,
) -> Tensor:
    """Points (rates, T, S, n) of a torch optimiser followed by the projection, all rates side by side."""
    points = [torch.zeros(num_runs, n, dtype=F64, requires_grad=True) for _ in rates]
    optimizer = make([{"params": [x], "lr": rate} for x, rate in zip(points, rates, strict=True)])
    plays = []
    for t in range(rounds):
        plays.append(torch.stack([x.detach() for x in points]))
        for x in points:
            x.grad = gradient(t, x.detach()).clone()
        optimizer.step()
        with torch.no_grad():
            for x in points:
                x.copy_(UNIT_BALL(x))
    return torch.stack(plays, 1)


def switching(rounds: int, block: int, noises: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gradients in the plane, mean (T, 1, 2) and noisy (T, S, 2): ±(1, 0) with a new sign every ``block`` rounds.

    ``noises`` (S,): square roots of the variances.
    """
    signs = 1 - 2 * ((torch.arange(rounds) // block) % 2)
    mean = torch.stack([signs, torch.zeros_like(signs)], -1).to(F64).unsqueeze(1)
    xi = torch.randn(rounds, len(noises), 2, dtype=F64, generator=generator)
    return mean, mean + (noises / 2**0.5).unsqueeze(-1) * xi


def linear(mean: Tensor, grads: Tensor) -> Stream:
    """⟨g_t, x⟩, with regret in expected losses."""
    total = mean.sum(0)
    best = -total / total.norm().clamp_min(1e-300)
    return Stream(lambda t, _: grads[t], lambda x: (mean * x).sum(-1), best.expand_as(grads[0]), len(grads))


@dataclass(frozen=True)
class Quadratics:
    """½ (x - c_t)ᵀA(x - c_t) + ⟨ξ_t, x⟩ with ‖ξ_t‖ = noise: σ² and Σ² are known to the last digit."""

    stream: Stream
    grad_bound: float
    variance: float  # σ²_{1:T}
    variation: Tensor  # Σ²_{1:T} (S,)


def quadratics(kind: str, rounds: int, noise: float, num_runs: int, generator: torch.Generator) -> Quadratics:
    n = 5
    basis = torch.linalg.qr(torch.randn(num_runs, n, n, dtype=F64, generator=generator)).Q
    values = torch.linspace(0.1, 1, n, dtype=F64)  # L = 1
    A = basis * values @ basis.mT
    centers = 0.8 * directions(num_runs, n, generator=generator).expand(rounds, num_runs, n).clone()
    if kind == "drift":
        centers = 0.8 * rotating(rounds, torch.full((num_runs,), float(rounds)), n, generator)
    elif kind == "corrupted":
        centers[49::50] *= -1
    xi = noise * directions(rounds, num_runs, n, generator=generator)
    pull = torch.einsum("sij,tsj->tsi", A, centers)
    unconstrained = torch.linalg.solve(A, (pull - xi).mean(0))
    best = torch.stack([HNormBall(A[s], 1.0)(unconstrained[s]) for s in range(num_runs)])

    def losses(x: Tensor) -> Tensor:
        gap = x - centers
        return torch.einsum("tsi,sij,tsj->ts", gap, A, gap) / 2 + (xi * x).sum(-1)

    stream = Stream(lambda t, x: torch.einsum("sij,sj->si", A, x) - pull[t] + xi[t], losses, best, rounds)
    variation = pull.diff(dim=0).square().sum((0, -1))
    return Quadratics(stream, 1.8 + noise, rounds * noise**2, variation)


def rotating(rounds: int, periods: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Unit vectors (T, S, n) turning in a plane drawn for each run, once in ``periods`` (S,) rounds."""
    plane = torch.linalg.qr(torch.randn(len(periods), n, 2, dtype=F64, generator=generator)).Q
    angle = 2 * math.pi * torch.arange(rounds, dtype=F64).unsqueeze(-1) / periods.to(F64)
    return torch.einsum("tsk,snk->tsn", torch.stack([angle.cos(), angle.sin()], -1), plane)


def targets(centers: Tensor, noise: Tensor, generator: torch.Generator, comparator: Tensor | None = None) -> Stream:
    """½‖x - c_t‖² with gradient noise of variance ``noise``² (S,); regret in expected losses, default: against c_t."""
    rounds, num_runs, n = centers.shape
    xi = torch.randn(rounds, num_runs, n, dtype=F64, generator=generator) * (noise / n**0.5).unsqueeze(-1)
    return Stream(
        lambda t, x: x - centers[t] + xi[t],
        lambda x: (x - centers).square().sum(-1) / 2,
        centers if comparator is None else comparator,
        rounds,
    )


def pieces(rounds: int, counts: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Targets (T, S, n) of norm 0.9 that stay for T/K rounds and then are drawn anew, K = counts (S,)."""
    drawn = 0.9 * directions(int(counts.max()), len(counts), n, generator=generator)
    which = torch.arange(rounds).unsqueeze(-1) * counts // rounds
    return drawn[which, torch.arange(len(counts))]


def logistic(features: Tensor) -> Stream:
    """log(1 + exp(-a_tᵀx)) for features (T, S, n); the best point of the ball by SciPy's SLSQP."""
    best = torch.stack([_best_logistic(features[:, s]) for s in range(features.shape[1])])
    return Stream(
        lambda t, x: -features[t] * torch.sigmoid(-(features[t] * x).sum(-1, keepdim=True)),
        lambda x: torch.nn.functional.softplus(-(features * x).sum(-1)),
        best,
        len(features),
    )


def smooth_features(rounds: int, period: int, noise: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Unit vectors whose entries swing slowly, with noise (S,) on top, clipped to the ball."""
    num_runs = len(noise)
    frequency = torch.randint(1, 4, (num_runs, n), generator=generator).to(F64)
    phase = 2 * math.pi * torch.rand(num_runs, n, dtype=F64, generator=generator)
    t = torch.arange(rounds, dtype=F64).reshape(-1, 1, 1)
    clean = torch.cos(2 * math.pi * frequency * t / period + phase)
    clean = clean / clean.norm(dim=-1, keepdim=True)
    xi = torch.randn(rounds, num_runs, n, dtype=F64, generator=generator) * (noise / n**0.5).unsqueeze(-1)
    return UNIT_BALL(clean + xi)


def labelled_features(rounds: int, drifts: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """y_t a_t with a_t iid on the sphere, y_t the side of a target, 2 % flipped; drifting targets turn once."""
    num_runs = len(drifts)
    a = directions(rounds, num_runs, n, generator=generator)
    target = rotating(rounds, torch.where(drifts, float(rounds), torch.inf), n, generator)
    flips = 1 - 2 * (torch.rand(rounds, num_runs, generator=generator) < 0.02).to(F64)
    return a * ((a * target).sum(-1).sign() * flips).unsqueeze(-1)


def mean_and_error(values: Tensor) -> list[float]:
    """Mean over runs and its standard error."""
    return [round(float(values.mean()), 3), round(float(values.std() / len(values) ** 0.5), 3)]


def directions(*shape: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(*shape, dtype=F64, generator=generator)
    return drawn / drawn.norm(dim=-1, keepdim=True)


def _best_logistic(features: Tensor) -> Tensor:
    a = features.numpy()

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        margins = a @ x
        return float(np.logaddexp(0, -margins).mean()), -(a / (1 + np.exp(margins))[:, None]).mean(0)

    inside = {"type": "ineq", "fun": lambda x: 1 - x @ x, "jac": lambda x: -2 * x}
    found = scipy.optimize.minimize(
        value, np.zeros(a.shape[1]), jac=True, method="SLSQP", constraints=[inside], options={"ftol": 1e-14}
    )
    return torch.from_numpy(found.x)
