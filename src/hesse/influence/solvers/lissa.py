"""LiSSA: the Neumann series of the damped curvature, one minibatch a term.

x ← x + α (b - (G_B + λI) x),     x₀ = αb,     E[x] → (G + λI)⁻¹ b      where α < 1 / (largest eigenvalue)
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hesse.errors import ConvergenceError
from hesse.influence.solvers.options import LiSSA
from hesse.influence.solvers.system import DampedGaussNewton
from hesse.linalg.eigen.power import power_iteration
from hesse.linalg.operator import LinearOperator

__all__ = ["lissa_columns"]

_MARGIN = 0.9  # of the largest step that the largest eigenvalue found allows: a minibatch not looked at may have more
_PROBED = 4  # minibatches a power iteration looks at
_POWER_STEPS = 10
_BLOWN_UP = 10.0  # times ‖b‖ / min λ, which no solution exceeds


def lissa_columns(system: DampedGaussNewton, b: Tensor, solver: LiSSA) -> tuple[Tensor, int, int]:
    """Iterate a block of right-hand sides; a column that has converged stays as it is.

    Parameters
    ----------
    system : DampedGaussNewton
        From `damped_ggn`.
    b : Tensor, shape (P, Q)
        Right-hand sides.
    solver : LiSSA
        Budget and step.

    Returns
    -------
    x : Tensor, shape (P, Q)
        Last iterate.
    num_steps : int
        Made.
    num_products : int
        In products with the whole matrix, rounded up, those of the power iteration among them.

    Raises
    ------
    ConvergenceError
        If the iterates blow up; names the step size.
    """
    drawn = _operators(system, solver)
    size = len(system.numbers) if solver.batch_size is None else min(solver.batch_size, len(system.numbers))
    step_size, spent = _step_size(system, solver)
    smallest = float(system.damping.min())
    limit = _BLOWN_UP * b.norm(dim=0) / smallest if smallest > 0 else torch.full_like(b[0], torch.inf)
    x = step_size * b
    live = x.norm(dim=0) > 0
    steps = 0
    for steps in range(1, solver.steps + 1):
        change = torch.where(live, step_size * (b - next(drawn) @ x), 0)
        x = x + change
        norms = x.norm(dim=0)
        if not bool((norms <= limit).all()):
            raise ConvergenceError(
                f"LiSSA: the iterates grew beyond every possible solution after {steps} steps of size {step_size:.3g}; "
                "pass a smaller step_size, or a larger batch_size"
            )
        live = live & (change.norm(dim=0) > solver.rtol * norms)
        if not bool(live.any()):
            break
    return x, steps, math.ceil((steps + spent) * size / len(system.numbers))


def _operators(system: DampedGaussNewton, solver: LiSSA) -> Iterator[LinearOperator]:
    if solver.batch_size is None or solver.batch_size >= len(system.numbers):
        whole = system.operator(columns=solver.columns)
        while True:
            yield whole
    generator = torch.Generator().manual_seed(solver.seed)
    while True:
        places = torch.randperm(len(system.numbers), generator=generator)[: solver.batch_size].tolist()
        yield system.operator(columns=solver.columns, numbers=[system.numbers[place] for place in places])


def _step_size(system: DampedGaussNewton, solver: LiSSA) -> tuple[float, int]:
    # of minibatches other than those of the iteration, so that their number does not change the draw
    if solver.step_size is not None:
        return solver.step_size, 0
    generator = torch.Generator(device=system.damping.device).manual_seed(solver.seed)
    drawn, largest, spent = _operators(system, solver), 0.0, 0
    whole = solver.batch_size is None or solver.batch_size >= len(system.numbers)
    for _probe in range(1 if whole else _PROBED):
        found = power_iteration(next(drawn), max_steps=_POWER_STEPS, tol=0.05, generator=generator)
        largest, spent = max(largest, float(found.eigenvalues[0])), spent + found.num_steps
    return _MARGIN / largest, spent
