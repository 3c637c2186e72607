"""A Newton direction that is only as accurate as descent of the merit function needs.

Shapes: z = (dx, dλ), (K,) with K = N + M; Γ (K, K).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from hesse.linalg import gaussian_kaczmarz, minres, randomized_kaczmarz, sketch_and_project
from hesse.linalg.solvers.kaczmarz import SketchName
from hesse.optim.adasketch.kkt import KKTSystem

__all__ = ["AccuracyName", "Direction", "Penalties", "Rules", "SolverName", "newton_direction"]

SolverName = Literal[
    "block-gaussian", "gaussian", "kaczmarz", "block-kaczmarz", "countsketch", "srht", "minres", "exact"
]
AccuracyName = Literal["practical", "theory"]

_SKETCHES: dict[SolverName, SketchName] = {
    "block-gaussian": "gaussian",
    "block-kaczmarz": "rows",
    "countsketch": "countsketch",
    "srht": "srht",
}
ETA1_LIMIT, ETA2_LIMIT = 1e8, 1e-8  # beyond them a direction is taken as it is: the problem has no such constants


@dataclass(frozen=True, slots=True)
class Rules:
    """The constants of a run, checked by `adasketch_newton`, which documents them."""

    solver: SolverName
    block_size: int
    row_sampling: Literal["norm", "uniform"]
    accuracy: AccuracyName
    superlinear: bool
    kappa: float
    delta_floor: float
    beta: float
    nu: float
    max_inner_steps: int


@dataclass(frozen=True, slots=True)
class Penalties:
    """η₁, η₂ and δ, which only ever move one way."""

    eta1: float
    eta2: float
    delta: float

    def bounded(self, system: KKTSystem, rules: Rules) -> "Penalties":
        """Lower δ to what the present system allows, (1/2 - β) η₂ / ((1 + η₁ + η₂) Υ² Ψ²), but not below its floor.

        Parameters
        ----------
        system : KKTSystem
            Gives Υ and Ψ.
        rules : Rules
            Gives β and the floor.

        Returns
        -------
        Penalties
            With the same η.
        """
        trial = (0.5 - rules.beta) * self.eta2 / (1 + self.eta1 + self.eta2) / (system.upsilon * system.psi) ** 2
        return Penalties(self.eta1, self.eta2, max(min(self.delta, trial), rules.delta_floor))

    def tightened(self, system: KKTSystem, rules: Rules) -> "Penalties":
        """Weigh infeasibility by ν² more and the gradient by ν less.

        Parameters
        ----------
        system : KKTSystem
            As in `bounded`.
        rules : Rules
            Gives ν.

        Returns
        -------
        Penalties
            With δ / ν⁴ or what the system allows.
        """
        nu = rules.nu
        return Penalties(self.eta1 * nu**2, self.eta2 / nu, self.delta / nu**4).bounded(system, rules)

    @property
    def exhausted(self) -> bool:
        """Whether the weights have left the range in which they mean anything."""
        return self.eta1 > ETA1_LIMIT or self.eta2 < ETA2_LIMIT


@dataclass(frozen=True, slots=True)
class Direction:
    """What the inner solve came to."""

    z: Tensor  # (K,)
    slope: float  # ∇Aᵀz
    residual: float  # ‖Γz - b‖
    target: float  # what it was to reach last
    num_steps: int  # of the inner solver: rows, blocks, products, or 1 for the exact one
    num_flops: float
    descends: bool  # ∇Aᵀz <= -(η₂/2) ‖∇L‖², as the proof wants
    penalties: Penalties

    @property
    def accurate(self) -> bool:
        """Whether the inner cap left the accuracy unmet (False) or not."""
        return self.residual <= self.target


def newton_direction(
    system: KKTSystem,
    gradient_fn: Callable[[float, float], Tensor],
    penalties: Penalties,
    rules: Rules,
    generator: Generator | None,
) -> Direction:
    """Solve Γ z = b until z descends on the merit function, tightening the weights where it does not.

    Parameters
    ----------
    system : KKTSystem
        Γ and b; ‖b‖ is the KKT residual.
    gradient_fn : callable
        (η₁, η₂) ↦ ∇A, shape (K,).
    penalties : Penalties
        Of the step before.
    rules : Rules
        Solver and accuracy.
    generator : torch.Generator or None
        Of the sketches.

    Returns
    -------
    Direction
        ``slope`` may be positive if the inner cap came first.
    """
    kkt = float(torch.linalg.vector_norm(system.rhs))
    theta = min(1.0, kkt) if rules.superlinear else 1.0
    kappa = rules.kappa
    penalties = penalties.bounded(system, rules)
    z = torch.zeros_like(system.rhs)
    residual, steps, flops = kkt, 0, 0.0
    while True:
        if rules.accuracy == "theory":
            target = theta * penalties.delta * kkt / (system.norm * system.psi)
        else:
            target = kappa * theta * kkt
        # no solver gets below what rounding does to Γz - b
        target = max(target, 4 * torch.finfo(z.dtype).eps * (system.norm * float(torch.linalg.vector_norm(z)) + kkt))
        if residual > target and steps < rules.max_inner_steps:
            z, residual, taken, spent = _advance(system, z, target, rules.max_inner_steps - steps, rules, generator)
            steps, flops = steps + taken, flops + spent
        slope = float(gradient_fn(penalties.eta1, penalties.eta2) @ z)
        descends = slope <= -penalties.eta2 / 2 * kkt**2
        capped = steps >= rules.max_inner_steps and residual > target
        if descends or penalties.exhausted or capped or not math.isfinite(slope):
            return Direction(z, slope, residual, target, steps, flops, descends, penalties)
        penalties = penalties.tightened(system, rules)
        kappa /= 2


def _advance(
    system: KKTSystem, z: Tensor, target: float, budget: int, rules: Rules, generator: Generator | None
) -> tuple[Tensor, float, int, float]:
    # z, its residual, inner steps and flops (a multiply-add counts two)
    operator, b, size = system.operator, system.rhs, len(system.rhs)
    product = 2.0 * system.entries
    if rules.solver == "exact":
        z = torch.linalg.solve(operator.to_dense(), b)
        residual = float(torch.linalg.vector_norm(operator.matvec(z) - b))
        return z, residual, 1, 2 / 3 * size**3
    common = {"rtol": 0.0, "atol": target, "max_steps": budget}
    if rules.solver == "minres":
        found = minres(operator, b, x0=z, validate=False, **common)
        flops = found.num_steps * (product + 18 * size)
    elif rules.solver == "kaczmarz":
        found = randomized_kaczmarz(operator, b, start=z, sampling=rules.row_sampling, generator=generator, **common)
        # a row is read twice, for its gap and for the update; each look at the residual is a product
        flops = found.num_steps * 2 * product / size + _looks(found.history) * product
    elif rules.solver == "gaussian":
        found = gaussian_kaczmarz(operator, b, start=z, generator=generator, **common)
        flops = found.num_steps * (product + 6 * size) + _looks(found.history) * product
    else:
        width = min(rules.block_size, size)
        found = sketch_and_project(
            operator,
            b,
            sketch=_SKETCHES[rules.solver],
            block_size=width,
            start=z,
            generator=generator,
            **common,
        )
        mixing = product * (1 / size if rules.solver == "block-kaczmarz" else 1) * width
        flops = found.num_steps * (mixing + 4 * width**2 * size + 4 * width * size) + _looks(found.history) * product
    return found.x, float(found.residual), max(found.num_steps, 1), flops


def _looks(history: Tensor | None) -> int:
    return 0 if history is None else len(history)
