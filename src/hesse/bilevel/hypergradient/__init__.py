"""∇Φ by implicit differentiation or by unrolling, and how far it can be trusted."""

from hesse.bilevel.hypergradient.adjoint import Adjoint, AdjointMethod, inverse_norm, solve_adjoint
from hesse.bilevel.hypergradient.implicit import HypergradientMethod, hypergradient
from hesse.bilevel.hypergradient.lower import LowerSolution, solve_lower
from hesse.bilevel.hypergradient.result import HyperGradient
from hesse.bilevel.hypergradient.unrolled import unroll, unrolled_hypergradient

__all__ = [
    "Adjoint",
    "AdjointMethod",
    "HyperGradient",
    "HypergradientMethod",
    "LowerSolution",
    "hypergradient",
    "inverse_norm",
    "solve_adjoint",
    "solve_lower",
    "unroll",
    "unrolled_hypergradient",
]
