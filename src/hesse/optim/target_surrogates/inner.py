"""Solvers of the inner problem: lower the surrogate over the parameters, with the model alone and no oracle.

Shapes: outputs z (b, ..., p) with R numbers in all, P parameters in all.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from hesse.errors import ShapeError
from hesse.linalg import armijo
from hesse.optim.target_surrogates.schedules import DECREASE, GROWTH, SHRINK
from hesse.optim.target_surrogates.surrogate import Divergence, target_surrogate

__all__ = [
    "InnerOptions",
    "InnerProblem",
    "InnerResult",
    "armijo_descent",
    "dot",
    "lbfgs",
    "line",
    "optimizer_steps",
]

MIN_STEP = 1e-6  # the paper's: shorter steps of descent are not tried


@dataclass(frozen=True, slots=True)
class InnerOptions:
    """When the inner solver stops, and where descent starts its search."""

    num_steps: int
    tol: float  # of the norm of the surrogate's gradient; of LSQR for "gauss-newton"
    first_step: float
    min_progress: float  # stop at a step that lowers the surrogate by less than this part of what the first did


@dataclass(frozen=True, slots=True)
class InnerResult:
    """Where the inner solver stopped; the parameters hold the point."""

    value: float
    num_steps: int
    step: float | None = None  # the last step of descent, for a warm start


class InnerProblem:
    """The surrogate as a function of the parameters, which are changed in place.

    Parameters
    ----------
    model : callable
        () -> z of the present parameters, with graph.
    params : sequence of Tensor
        Leaves that require a gradient.
    decays : sequence of float
        Weight decay λ of each: (λ/2)‖θ‖² joins the surrogate.
    z : Tensor, shape (b, ...)
        Outputs at the present parameters with their graph, which the first gradient uses up.
    gradient : Tensor, shape (b, ...)
        G at z.
    eta : float or Tensor
        η.
    divergence : {"euclidean", "kl"} or Tensor
        D.
    """

    def __init__(
        self,
        model: Callable[[], Tensor],
        params: Sequence[Tensor],
        decays: Sequence[float],
        z: Tensor,
        gradient: Tensor,
        eta: float | Tensor,
        divergence: Divergence,
    ) -> None:
        self.model, self.params, self.decays = model, list(params), list(decays)
        self.z_t, self.gradient = z.detach(), gradient
        self.eta: float | Tensor = eta
        self.divergence: Divergence = divergence
        self.start = self.snapshot()
        self.num_forwards = 0

    def outputs(self) -> Tensor:
        """Evaluate the model.

        Returns
        -------
        Tensor, shape (b, ...)
            Outputs with their graph.

        Raises
        ------
        ShapeError
            If the shape is not the one of before.
        """
        self.num_forwards += 1
        z = self.model()
        if z.shape != self.z_t.shape:
            raise ShapeError(
                f"SSO: model_closure gave outputs {tuple(self.z_t.shape)}, then {tuple(z.shape)}: it must evaluate "
                "one batch, the same each time"
            )
        return z

    def value(self, z: Tensor) -> Tensor:
        """Add up surrogate and weight decay, for outputs z of the present parameters.

        Returns
        -------
        Tensor, shape ()
            Differentiable.
        """
        return self.penalty(target_surrogate(z, self.z_t, self.gradient, self.eta, self.divergence))

    def penalty(self, value: Tensor) -> Tensor:
        """Add (λ/2)‖θ‖² to a value.

        Returns
        -------
        Tensor, shape ()
            The sum.
        """
        for p, decay in zip(self.params, self.decays, strict=True):
            if decay:
                value = value + decay / 2 * p.to(value.dtype).square().sum()
        return value

    def gradients(self, value: Tensor) -> list[Tensor]:
        """Differentiate a value in every parameter.

        Returns
        -------
        list of Tensor
            Zeros where it does not depend on one.
        """
        return list(torch.autograd.grad(value, self.params, allow_unused=True, materialize_grads=True))

    def snapshot(self) -> list[Tensor]:
        """Copy the parameters.

        Returns
        -------
        list of Tensor
            One a parameter.
        """
        return [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def move(self, origin: Sequence[Tensor], direction: Sequence[Tensor] | None = None, step: float = 0.0) -> None:
        """Put the parameters at origin + step · direction."""
        for i, (p, at) in enumerate(zip(self.params, origin, strict=True)):
            p.copy_(at if direction is None else torch.add(at, direction[i], alpha=step))


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Take the inner product of two lists of tensors.

    Returns
    -------
    float
        Summed in float64.
    """
    return float(torch.stack([(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)]).sum())


def line(problem: InnerProblem, direction: Sequence[Tensor]) -> tuple[Callable[[float], float], list[Tensor]]:
    """Restrict the surrogate to a direction from the present parameters.

    Returns
    -------
    tuple of (callable, list of Tensor)
        Step length -> value, and a list that holds the outputs of the last trial, so that they serve on.
    """
    origin = problem.snapshot()
    last: list[Tensor] = []

    def value_at(step: float) -> float:
        problem.move(origin, direction, step)
        last[:] = [problem.outputs()]
        with torch.no_grad():
            return float(problem.value(last[0]))

    return value_at, last


def armijo_descent(problem: InnerProblem, z: Tensor, options: InnerOptions) -> InnerResult:
    """Gradient descent with Armijo backtracking: θ ← θ - s ∇g, s shrunk by 0.9 until g falls by ½ s ‖∇g‖².

    The first search starts at ``options.first_step``, each later one at 1.8 times the last step.

    Parameters
    ----------
    problem : InnerProblem
        The surrogate.
    z : Tensor, shape (b, ...)
        Outputs at the present parameters, with graph.
    options : InnerOptions
        Limits.

    Returns
    -------
    InnerResult
        Lower at every step. One evaluation of the model a trial, one backward pass a step.
    """
    step = options.first_step
    accepted, first_gain = None, 0.0
    value = problem.value(z)
    for count in range(options.num_steps):
        gradients = problem.gradients(value)
        square = dot(gradients, gradients)
        if not square**0.5 > options.tol:
            return InnerResult(float(value.detach()), count, accepted)
        origin = problem.snapshot()
        value_at, last = line(problem, gradients)
        trials = 1 + max(0, math.ceil(math.log(MIN_STEP / step) / math.log(SHRINK)))
        # a step of length -s along the gradient
        found = armijo(
            lambda s, at=value_at: at(-s),
            value.detach(),
            -square,
            initial_step=step,
            shrink=SHRINK,
            decrease=DECREASE,
            max_steps=trials,
        )
        if not found.converged:
            problem.move(origin)
            return InnerResult(float(value.detach()), count, accepted)
        gain = float(value.detach()) - found.value
        value = problem.value(last[0])
        accepted, step = found.step, found.step * GROWTH
        first_gain = first_gain or gain
        if gain < options.min_progress * first_gain:
            return InnerResult(found.value, count + 1, accepted)
    return InnerResult(float(value.detach()), options.num_steps, accepted)


def lbfgs(problem: InnerProblem, z: Tensor, options: InnerOptions) -> InnerResult:
    """L-BFGS with strong Wolfe line searches, started anew for every surrogate.

    Parameters
    ----------
    problem : InnerProblem
        The surrogate.
    z : Tensor, shape (b, ...)
        Outputs at the present parameters, with graph.
    options : InnerOptions
        ``num_steps`` and ``tol`` are used.

    Returns
    -------
    InnerResult
        The best point seen.
    """
    solver = LBFGS(
        problem.params,
        max_iter=options.num_steps,
        tolerance_grad=options.tol,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    best = _Best(problem)
    ready = [z]

    def closure() -> float:
        value = problem.value(ready.pop() if ready else problem.outputs())
        best.see(float(value.detach()))
        _give_gradients(problem, value)
        return float(value.detach())

    with _own_gradients(problem):
        solver.step(closure)
    return best.result(solver.state[problem.params[0]]["n_iter"])


def optimizer_steps(problem: InnerProblem, z: Tensor, options: InnerOptions, solver: Optimizer) -> InnerResult:
    """Run steps of a torch optimiser on the surrogate, and keep the best point they pass.

    Parameters
    ----------
    problem : InnerProblem
        The surrogate.
    z : Tensor, shape (b, ...)
        Outputs at the present parameters, with graph.
    options : InnerOptions
        Limits.
    solver : torch.optim.Optimizer
        Of the same parameters; its state goes on from surrogate to surrogate.

    Returns
    -------
    InnerResult
        The best point seen. One forward and one backward pass a step, and a last forward pass.
    """
    best, first_gain = _Best(problem), 0.0
    value = problem.value(z)
    best.see(float(value.detach()))
    count = 0
    with _own_gradients(problem):
        while count < options.num_steps:
            if not _give_gradients(problem, value) > options.tol:
                break
            solver.step()
            count += 1
            before, value = float(value.detach()), problem.value(problem.outputs())
            gain = before - float(value.detach())
            best.see(float(value.detach()))
            first_gain = first_gain or gain
            if options.min_progress and gain < options.min_progress * first_gain:
                break
    return best.result(count)


class _Best:
    """The lowest point seen, for solvers that may pass it by."""

    def __init__(self, problem: InnerProblem) -> None:
        self.problem, self.value, self.point = problem, math.inf, problem.start

    def see(self, value: float) -> None:
        if value < self.value:
            self.value, self.point = value, self.problem.snapshot()

    def result(self, num_steps: int) -> InnerResult:
        self.problem.move(self.point)
        return InnerResult(self.value, num_steps)


def _give_gradients(problem: InnerProblem, value: Tensor) -> float:
    # where an optimiser looks for them; None for a parameter that the value does not depend on. Returns their norm
    found = torch.autograd.grad(value, problem.params, allow_unused=True)
    for p, gradient in zip(problem.params, found, strict=True):
        p.grad = gradient
    there = [gradient for gradient in found if gradient is not None]
    return dot(there, there) ** 0.5


@contextmanager
def _own_gradients(problem: InnerProblem) -> Iterator[None]:
    # what the caller has in .grad comes back afterwards
    kept = [p.grad for p in problem.params]
    try:
        yield
    finally:
        for p, gradient in zip(problem.params, kept, strict=True):
            p.grad = gradient
