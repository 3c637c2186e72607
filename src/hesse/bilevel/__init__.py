"""Bilevel optimisation: one problem interface, hypergradients, solvers, and problems with known answers."""

from hesse.bilevel import problems, tasks
from hesse.bilevel.checks import ProblemReport, check_problem
from hesse.bilevel.counts import Budget, OracleCounts
from hesse.bilevel.hypergradient import (
    HyperGradient,
    HypergradientMethod,
    hypergradient,
    unrolled_hypergradient,
)
from hesse.bilevel.lower import LowerSolution, solve_lower
from hesse.bilevel.oracle import JointProducts, Oracle
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.problems import ExactProblem
from hesse.bilevel.samplers import LoaderSampler, NoiseSampler, Sampler, TensorSampler
from hesse.bilevel.solvers import AID, ITD, MASOBA, SABA, SOBA, TTSA, AmIGO, BilevelSolver, StocBiO
from hesse.bilevel.trace import BilevelResult, TraceRow
from hesse.bilevel.trace_plot import plot_traces

__all__ = [
    "AID",
    "ITD",
    "MASOBA",
    "SABA",
    "SOBA",
    "TTSA",
    "AmIGO",
    "BilevelProblem",
    "BilevelResult",
    "BilevelSolver",
    "Budget",
    "ExactProblem",
    "HyperGradient",
    "HypergradientMethod",
    "JointProducts",
    "LoaderSampler",
    "LowerSolution",
    "NoiseSampler",
    "Oracle",
    "OracleCounts",
    "ProblemReport",
    "Sampler",
    "StocBiO",
    "TensorSampler",
    "TraceRow",
    "check_problem",
    "hypergradient",
    "plot_traces",
    "problems",
    "solve_lower",
    "tasks",
    "unrolled_hypergradient",
]
