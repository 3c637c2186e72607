"""LV-HBA: constrained lower levels by gradients of a proximal Lagrangian value function."""

from hesse.bilevel.lv_hba.lagrangian import ProximalValue, proximal_lagrangian_value
from hesse.bilevel.lv_hba.solver import LVHBA, Certificate
from hesse.bilevel.lv_hba.support_vectors import solve_support_vectors, support_vector_costs

__all__ = [
    "LVHBA",
    "Certificate",
    "ProximalValue",
    "proximal_lagrangian_value",
    "solve_support_vectors",
    "support_vector_costs",
]
