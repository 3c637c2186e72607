"""∇Φ: by implicit differentiation, by unrolling, by penalties, and how far each can be trusted."""

from hesse.bilevel.hypergradients.adjoint import Adjoint, AdjointMethod, inverse_norm, solve_adjoint
from hesse.bilevel.hypergradients.degenerate import degenerate_hypergradient
from hesse.bilevel.hypergradients.error_bound import ErrorBound, proximal_error_bound
from hesse.bilevel.hypergradients.implicit import (
    HypergradientMethod,
    hypergradient,
    unroll,
    unrolled_hypergradient,
)
from hesse.bilevel.hypergradients.lower import LowerSolution, solve_lower
from hesse.bilevel.hypergradients.penalty import (
    LowerSolver,
    PenaltyMinimum,
    gradient_lipschitz,
    minimise_penalty,
    penalty_hypergradient,
)
from hesse.bilevel.hypergradients.result import HyperGradient

__all__ = [
    "Adjoint",
    "AdjointMethod",
    "ErrorBound",
    "HyperGradient",
    "HypergradientMethod",
    "LowerSolution",
    "LowerSolver",
    "PenaltyMinimum",
    "degenerate_hypergradient",
    "gradient_lipschitz",
    "hypergradient",
    "inverse_norm",
    "minimise_penalty",
    "penalty_hypergradient",
    "proximal_error_bound",
    "solve_adjoint",
    "solve_lower",
    "unroll",
    "unrolled_hypergradient",
]
