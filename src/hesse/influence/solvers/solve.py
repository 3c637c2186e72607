"""Solves (G + λI) x = ∇f for stacked queries, and tells how far each answer is from solving it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ConvergenceError
from hesse.influence.solvers.lissa import lissa_columns
from hesse.influence.solvers.options import CG, PCG, Solver
from hesse.influence.solvers.system import DampedGaussNewton
from hesse.linalg.solvers import Status, cg

__all__ = ["Solved", "solve"]


@dataclass(frozen=True, slots=True)
class Solved:
    """Answers to a stack of queries.

    Attributes
    ----------
    matrices : dict of str to Tensor, shapes (Q, p, m)
        x, one stack a layer.
    residual : Tensor, shape (Q,)
        ‖b - (G + λI)x‖ / ‖b‖, computed afresh at the end: the error bar of a query, 0 for an exact answer. The score of
        a sequence with gradient g is off by at most ‖r‖‖g‖ / (N min λ); typically by far less.
    history : Tensor, shape (steps + 1, Q), or None
        Relative residuals by recurrence, the start first; of PCG the first row is that of the factors' own answer.
        LiSSA has none.
    num_steps : int
        Of the slowest query.
    num_products : int
        Products with G of the whole stack, all told; one with a minibatch counts by its share of the sequences, and is
        rounded up.
    """

    matrices: dict[str, Tensor]
    residual: Tensor
    history: Tensor | None
    num_steps: int
    num_products: int


@torch.no_grad()
def solve(system: DampedGaussNewton, gradients: Mapping[str, Tensor], solver: Solver) -> Solved:
    """Solve for stacked per-layer gradients.

    Parameters
    ----------
    system : DampedGaussNewton
        From `damped_ggn`.
    gradients : mapping of str to Tensor, shapes (Q, p, m)
        b, in the dtype of the model; see `hesse.influence.gradients.stacked_gradients`.
    solver : PCG, CG or LiSSA
        Method and budget.

    Returns
    -------
    Solved
        For every layer of ``gradients``; zero for a query whose gradient is zero.

    Raises
    ------
    ArgumentError
        If a layer is missing.
    ShapeError
        If a stack does not fit its layer.
    ConvergenceError
        If LiSSA diverges, or the curvature is not what it should be: a product had NaN or a negative quadratic form.

    Notes
    -----
    Products dominate: see `PCG`, `CG` and `LiSSA` for how many. Memory is some ten stacks of the gradients, and the
    activations of ``columns`` forward passes of one batch.
    """
    b = system.flatten(gradients)
    operator = system.operator(columns=solver.columns)
    norms = b.norm(dim=0)
    scale = torch.where(norms > 0, norms, torch.ones_like(norms))
    if isinstance(solver, PCG | CG):
        guided = isinstance(solver, PCG)
        found = cg(
            operator,
            b,
            x0=system.precondition(b) if guided else None,
            preconditioner=system.precondition if guided else None,
            rtol=solver.rtol,
            max_steps=solver.steps,
            record_history=True,
            validate=False,
        )
        if found.status >= Status.NEGATIVE_CURVATURE:
            raise ConvergenceError(
                f"{type(solver).__name__}: stopped after {found.num_steps} steps with {found.status.name}; the damped "
                "curvature of this model in this precision is not positive definite. Use float64 or a larger damping"
            )
        columns, residual, steps = found.x, found.residual, found.num_steps
        history = None if found.history is None else found.history / scale
        products = steps + 1 + guided
    else:
        columns, steps, products = lissa_columns(system, b, solver)
        residual, history = (b - operator @ columns).norm(dim=0), None
        products += 1
    matrices = system.unflatten(columns)
    absent = {name: torch.zeros_like(stack) for name, stack in gradients.items() if name not in matrices}
    return Solved(matrices | absent, residual / scale, history, steps, products)
