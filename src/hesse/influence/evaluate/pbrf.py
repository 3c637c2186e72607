"""Proximal Bregman response: the counterfactual that influence functions answer, solved without linearising.

    θ*(s) = argmin PBO(θ, s e_m),      response of f to sequence m = [f(θ*(s)) - f(θ*(-s))] / 2s     in nats a copy

Shapes: P tracked weights, K sequences asked about, N in the training set, Q queries.
"""

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hesse._progress import progress as show_progress
from hesse.errors import ArgumentError
from hesse.influence.engine import Influence
from hesse.influence.evaluate.functional import measure_many
from hesse.influence.evaluate.proximal import ProximalObjective, widened
from hesse.influence.examples import as_examples
from hesse.influence.factors import Factors
from hesse.influence.gradients import stacked_gradients
from hesse.influence.passes import Measurement, Pass
from hesse.influence.swapping import differentiable_attention

__all__ = ["AdamSolver", "NewtonCG", "ProximalResponse", "damped_ggn_scores", "pbrf", "respond"]

_HALVINGS = 8  # of a Newton step: beyond that, the gradient jumps (the kinks of ReLU) and no step helps
_ROUNDING = 1e-13  # of PBO in float64, whose terms are of order one
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class NewtonCG:
    """Damped Newton on PBO with G(θs) + λ for its curvature, and Armijo backtracking.

    Backtracking is not optional: without it full steps diverge where a whole sequence is removed from a small data set.

    Parameters
    ----------
    tol : float, default 1e-4
        Norm of the gradient of PBO over that at θs, at which a response counts as converged.
    max_steps : int, default 20
        Newton steps at most.
    cg_rtol : float, default 1e-2
        Of each direction, where CG solves for it: steps correct what is missing.
    cg_steps : int, default 200
        Of each direction.
    """

    tol: float = 1e-4
    max_steps: int = 20
    cg_rtol: float = 1e-2
    cg_steps: int = 200

    def __post_init__(self) -> None:
        if not (0 < self.tol < 1 and 0 < self.cg_rtol < 1) or self.max_steps < 1 or self.cg_steps < 1:
            raise ArgumentError(
                f"NewtonCG: expected 0 < tol, cg_rtol < 1 and max_steps, cg_steps >= 1, got {self.tol}, "
                f"{self.cg_rtol}, {self.max_steps}, {self.cg_steps}"
            )


@dataclass(frozen=True, slots=True)
class AdamSolver:
    """Adam on PBO with a cosine schedule: the published recipe, but on the whole data set, so that nothing is noise.

    Parameters
    ----------
    learning_rate : float, default 1e-4
        At the first step; the response moves weights by far less than training did.
    steps : int, default 500
        All of them are made.
    betas : tuple of float, default (0.9, 0.999)
        Of the two running means.
    tol : float, default 1e-2
        Relative gradient norm at which a response counts as converged.
    """

    learning_rate: float = 1e-4
    steps: int = 500
    betas: tuple[float, float] = (0.9, 0.999)
    tol: float = 1e-2

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or self.steps < 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise ArgumentError(
                f"AdamSolver: expected learning_rate > 0, steps >= 1 and 0 <= betas < 1, got {self.learning_rate}, "
                f"{self.steps}, {self.betas}"
            )


@dataclass(frozen=True, slots=True)
class ProximalResponse:
    """What adding and removing some of each sequence does to every query, in nats a copy."""

    values: NDArray[np.float64]  # (Q, K): the odd part, the derivative up to third order in s
    added: NDArray[np.float64]  # (Q, K): [f(s) - f(0)] / s
    removed: NDArray[np.float64]  # (Q, K): [f(0) - f(-s)] / s
    copies: float  # s
    points: list[int]
    gradient_norm: NDArray[np.float64]  # (2, K): of PBO, over that at θs; adding, removing
    converged: NDArray[np.bool_]  # (2, K)


def pbrf(
    influence: Influence,
    factors: Factors,
    dataset: Any,
    queries: Any,
    points: Items[int],
    *,
    copies: float = 0.1,
    solver: NewtonCG | AdamSolver | None = None,
    measurement: Measurement | None = None,
    at_once: int = 32,
    batch_tokens: int = 4096,
    progress: bool | None = None,
) -> ProximalResponse:
    """Solve for the response of the model to some of each sequence, added and removed.

    Parameters
    ----------
    influence : Influence
        Model, loss, tracked layers; all other weights are held fixed, as in its scores.
    factors : Factors
        Fitted on the same model: their λ_ℓ is the proximity.
    dataset : Examples, or anything `as_examples` takes
        The training set, N sequences.
    queries : Examples, or anything `as_examples` takes
        Q queries; one solve serves all of them.
    points : sequence of int
        K places in the training set.
    copies : float, default 0.1
        s; ε = s/N. A whole sequence (1) is outside the linear regime of a small data set: its difference to this one
        is the linearisation error.
    solver : NewtonCG or AdamSolver, default NewtonCG()
        How PBO is minimised.
    measurement : callable, optional
        (model, batch) -> (B,). Default: the log-probability of the labels.
    at_once : int, default 32
        Responses evaluated by one vectorised call.
    batch_tokens : int, default 4096
        Padded tokens a batch.
    progress : bool, optional
        Show a bar. Default: if stderr is a terminal.

    Returns
    -------
    ProximalResponse
        In nats a copy, positive where the sequence raises f: to be compared with scores.

    Raises
    ------
    ArgumentError
        If ``copies`` is not positive, a point is outside the data, or the factors have no damping.

    Notes
    -----
    A Newton step costs one solve with G + λ (a Cholesky factor made once up to 2048 tracked weights, else 10 to 40
    products) and a few passes over the data, for every point and both signs. Memory: all outputs on the training set,
    and P numbers a response, in float64. A model whose own code computes in float32 (the norms of some transformers)
    stops early, at the gradient norm that is reported. With ReLU the gradient jumps, and may not become small.

    References
    ----------
    J. Bae, N. Ng, A. Lo, M. Ghassemi, R. Grosse (2022), NeurIPS, arXiv 2209.05364.
    """
    examples, asked = as_examples(dataset), as_examples(queries, argument="queries")
    if not 0 < copies < math.inf:
        raise ArgumentError(f"copies: expected > 0, got {copies}")
    check_points(points, len(examples))
    chosen = NewtonCG() if solver is None else solver
    with differentiable_attention():
        objective = ProximalObjective(influence, factors, examples, batch_tokens=batch_tokens, at_once=at_once)
        moves = torch.zeros(2 * len(points), len(examples), dtype=torch.float64, device=objective.damping.device)
        moves[torch.arange(2 * len(points)), torch.tensor([*points, *points])] = copies
        moves[len(points) :] *= -1
        columns, relative = respond(objective, moves, chosen, progress=progress)
        columns = torch.cat([columns, torch.zeros_like(columns[:, :1])], 1)
        values = measure_many(
            objective.model, objective.moved(columns), widened(asked), objective.loss, measurement=measurement,
            at_once=at_once, batch_tokens=batch_tokens,
        ).numpy().T  # fmt: skip
    plus, minus, rest = values[:, : len(points)], values[:, len(points) : -1], values[:, -1:]
    norms = relative.reshape(2, -1).cpu().numpy()
    return ProximalResponse(
        (plus - minus) / (2 * copies),
        (plus - rest) / copies,
        (rest - minus) / copies,
        copies,
        [int(i) for i in points],
        norms,
        norms <= chosen.tol,
    )


def respond(
    objective: ProximalObjective, copies: Tensor, solver: NewtonCG | AdamSolver, *, progress: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Minimise PBO for every row of copies.

    Parameters
    ----------
    objective : ProximalObjective
        Of the trained model.
    copies : Tensor, shape (K, N)
        How many copies of each sequence are added.
    solver : NewtonCG or AdamSolver
        How.
    progress : bool, optional
        Show a bar.

    Returns
    -------
    columns : Tensor, shape (P, K)
        Displacements from θs.
    relative : Tensor, shape (K,)
        Norm of the gradient over that at θs.
    """
    start = torch.zeros(objective.layout.size, len(copies), dtype=torch.float64, device=copies.device)
    value, gradient = objective.value_and_gradient(start, copies)
    first = gradient.norm(dim=0).clamp_min(_TINY)
    minimise = _adam if isinstance(solver, AdamSolver) else _newton
    with show_progress("proximal responses", _steps(solver), unit="steps", enabled=progress) as advance:
        columns, gradient = minimise(objective, copies, solver, start, value, gradient, advance)
    return columns, gradient.norm(dim=0) / first


def _steps(solver: NewtonCG | AdamSolver) -> int:
    return solver.steps if isinstance(solver, AdamSolver) else solver.max_steps


def _newton(
    objective: ProximalObjective, copies: Tensor, solver: Any, x: Tensor, value: Tensor, grad: Tensor, advance: Any
) -> tuple[Tensor, Tensor]:
    solve = objective.solver(solver.cg_rtol, solver.cg_steps)
    limit = solver.tol * grad.norm(dim=0)
    live = grad.norm(dim=0) > _TINY
    for _ in range(solver.max_steps):
        at = (live & (grad.norm(dim=0) > limit)).nonzero().flatten()
        if not len(at):
            break
        direction = -solve(grad[:, at])
        x[:, at], value[at], grad[:, at], live[at] = _backtrack(
            objective, copies[at], x[:, at], value[at], grad[:, at], direction
        )
        advance(1)
    return x, grad


def _backtrack(
    objective: ProximalObjective, copies: Tensor, x: Tensor, value: Tensor, grad: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # every column halves its own step until PBO has fallen enough; the last result says which have found one
    slope = (grad * direction).sum(0)
    new_x, new_value, new_grad = x.clone(), value.clone(), grad.clone()
    moved = torch.zeros_like(slope, dtype=torch.bool)
    waiting, step = torch.arange(len(slope), device=slope.device), 1.0
    for _ in range(_HALVINGS):
        trial = x[:, waiting] + step * direction[:, waiting]
        reached, gradient = objective.value_and_gradient(trial, copies[waiting])
        enough = reached <= value[waiting] + 1e-4 * step * slope[waiting] + _ROUNDING
        done = waiting[enough]
        new_x[:, done], new_value[done], new_grad[:, done] = trial[:, enough], reached[enough], gradient[:, enough]
        moved[done] = True
        waiting, step = waiting[~enough], step / 2
        if not len(waiting):
            break
    return new_x, new_value, new_grad, moved


def _adam(
    objective: ProximalObjective, copies: Tensor, solver: Any, x: Tensor, _value: Tensor, grad: Tensor, advance: Any
) -> tuple[Tensor, Tensor]:
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    fast, slow = solver.betas
    for t in range(solver.steps):
        first.lerp_(grad, 1 - fast)
        second.mul_(slow).addcmul_(grad, grad, value=1 - slow)
        rate = solver.learning_rate * (1 + math.cos(math.pi * t / solver.steps)) / 2
        # no eps: gradients of a response are small numbers, and a weight without one does not move
        scale = (second / (1 - slow ** (t + 1))).sqrt_().clamp_min_(_TINY)
        x = x - rate / (1 - fast ** (t + 1)) * first / scale
        grad = objective.value_and_gradient(x, copies)[1]
        advance(1)
    return x, grad


def damped_ggn_scores(
    influence: Influence,
    factors: Factors,
    dataset: Any,
    queries: Any,
    points: Items[int] | None = None,
    *,
    measurement: Measurement | None = None,
    rtol: float = 1e-10,
    batch_tokens: int = 4096,
) -> NDArray[np.float64]:
    """-(1/N) ∇f_qᵀ (G + λ)⁻¹ ∇L(z_n) with G whole, layers together: what the proximal response tends to as s → 0.

    Parameters
    ----------
    influence, factors, dataset, queries, measurement, batch_tokens : see `pbrf`
        As there.
    points : sequence of int, optional
        K places in the training set. Default: all N.
    rtol : float, default 1e-10
        Of the residual of a solve, where it iterates.

    Returns
    -------
    ndarray of float64, shape (Q, K)
        Nats a copy.
    """
    examples, asked = as_examples(dataset), as_examples(queries, argument="queries")
    places = list(range(len(examples))) if points is None else list(points)
    check_points(places, len(examples))
    with differentiable_attention():
        objective = ProximalObjective(influence, factors, examples, batch_tokens=batch_tokens)
        system = objective.system
        run_pass = Pass(objective.model, objective.loss, system.layers)
        training = system.flatten(stacked_gradients(run_pass, widened(examples), numbers=places, argument="dataset"))
        asking = system.flatten(stacked_gradients(run_pass, widened(asked), measurement=measurement))
        solved = objective.solver(rtol, 5000)(asking)
    sign = 1 if measurement is None else -1  # f is minus the loss
    return sign * (solved.T @ training / len(examples)).cpu().numpy()


def check_points(points: Items[int], total: int) -> None:
    """Refuse places outside the data.

    Parameters
    ----------
    points : sequence of int
        Of sequences.
    total : int
        N.

    Raises
    ------
    ArgumentError
        If there is none, or one is out of range.
    """
    if not len(points) or min(points) < 0 or max(points) >= total:
        raise ArgumentError(f"points: expected at least one place from 0 to {total - 1}, got {list(points)[:5]}")
