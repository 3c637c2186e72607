"""Bilevel problems by penalties: gradients of both losses alone, also where the lower level has many solutions."""

from hesse.bilevel.penalty.degenerate import degenerate_hypergradient
from hesse.bilevel.penalty.error_bound import ErrorBound, proximal_error_bound
from hesse.bilevel.penalty.f2sa import F2SA, F3SA
from hesse.bilevel.penalty.hypergradient import penalty_hypergradient
from hesse.bilevel.penalty.solver import PenaltyBilevel

__all__ = [
    "F2SA",
    "F3SA",
    "ErrorBound",
    "PenaltyBilevel",
    "degenerate_hypergradient",
    "penalty_hypergradient",
    "proximal_error_bound",
]
