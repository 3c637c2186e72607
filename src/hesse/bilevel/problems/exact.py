"""What a test problem knows about itself in closed form."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hesse.bilevel.problem import BilevelProblem

__all__ = ["ExactProblem"]


@dataclass(frozen=True, slots=True)
class ExactProblem:
    """A bilevel problem in one vector x and one tensor y, with its oracle.

    Attributes
    ----------
    problem : BilevelProblem
        To hand to a solver.
    lower_solution : callable
        x -> y*(x); where there are many, the one that f likes best.
    hypergradient : callable
        x -> ∇Φ(x), shaped like x.
    value : callable
        x -> Φ(x), a scalar.
    solution : Tensor or None
        The minimiser of Φ, where it is known.
    """

    problem: BilevelProblem
    lower_solution: Callable[[Tensor], Tensor]
    hypergradient: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    solution: Tensor | None = None
