"""Bilevel problems whose lower solution and hypergradient are known."""

from hesse.bilevel.problems.exact import ExactProblem
from hesse.bilevel.problems.logistic import logistic
from hesse.bilevel.problems.quadratic import quadratic
from hesse.bilevel.problems.ridge import multi_ridge, ridge
from hesse.bilevel.problems.toys import box_quadratic, cosh_upper, equality_toy, inequality_toy

__all__ = [
    "ExactProblem",
    "box_quadratic",
    "cosh_upper",
    "equality_toy",
    "inequality_toy",
    "logistic",
    "multi_ridge",
    "quadratic",
    "ridge",
]
