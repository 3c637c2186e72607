"""Conformance suites: pass your own operator, optimiser or layer through the checks that the library's own pass."""

from hesse.testing.linear_operator import ConformanceError, check_linear_operator

__all__ = ["ConformanceError", "check_linear_operator"]
