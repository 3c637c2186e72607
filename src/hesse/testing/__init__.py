"""Conformance suites: pass your own operator, optimiser or layer through the checks that the library's own pass."""

from hesse.testing.layer import check_layer
from hesse.testing.linear_operator import ConformanceError, check_linear_operator
from hesse.testing.optimizer import OptimizerProblem, check_optimizer

__all__ = ["ConformanceError", "OptimizerProblem", "check_layer", "check_linear_operator", "check_optimizer"]
