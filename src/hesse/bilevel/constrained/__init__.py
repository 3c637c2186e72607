"""Lower levels with constraints: Lagrangians, their saddle points, and support-vector machines solved exactly."""

from hesse.bilevel.constrained.lagrangian import (
    LowerLagrangian,
    ProximalValue,
    Saddle,
    proximal_lagrangian_value,
    solve_constrained_lower,
    solve_saddle,
)
from hesse.bilevel.constrained.saddle_steps import SaddleMethod, lv_steps, saddle_operator
from hesse.bilevel.constrained.support_vectors import solve_support_vectors, support_vector_costs

__all__ = [
    "LowerLagrangian",
    "ProximalValue",
    "Saddle",
    "SaddleMethod",
    "lv_steps",
    "proximal_lagrangian_value",
    "saddle_operator",
    "solve_constrained_lower",
    "solve_saddle",
    "solve_support_vectors",
    "support_vector_costs",
]
