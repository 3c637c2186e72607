"""Bilevel optimisation: one problem interface, hypergradients, solvers, and problems with known answers."""

from hesse.bilevel import problems, tasks
from hesse.bilevel.checks import ProblemReport, check_problem
from hesse.bilevel.constrained.lagrangian import ProximalValue, proximal_lagrangian_value
from hesse.bilevel.constrained.support_vectors import solve_support_vectors, support_vector_costs
from hesse.bilevel.counts import Budget, OracleCounts
from hesse.bilevel.hypergradients.degenerate import degenerate_hypergradient
from hesse.bilevel.hypergradients.error_bound import ErrorBound, proximal_error_bound
from hesse.bilevel.hypergradients.implicit import (
    HypergradientMethod,
    hypergradient,
    unrolled_hypergradient,
)
from hesse.bilevel.hypergradients.lower import LowerSolution, solve_lower
from hesse.bilevel.hypergradients.penalty import penalty_hypergradient
from hesse.bilevel.hypergradients.result import HyperGradient
from hesse.bilevel.msvr import MSVR
from hesse.bilevel.normalized_momentum import NormalizedMomentum
from hesse.bilevel.oracle import JointProducts, Oracle
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.problems import ExactProblem
from hesse.bilevel.projections import Polyhedron, SoftMarginRows, stacked
from hesse.bilevel.relaxed_smoothness import RelaxedSmoothness, SmoothnessFit, relaxed_smoothness
from hesse.bilevel.samplers import LoaderSampler, NoiseSampler, Sampler, TensorSampler
from hesse.bilevel.solvers import (
    AID,
    BOREP,
    BSVRB,
    F2SA,
    F3SA,
    ITD,
    LVHBA,
    MASOBA,
    RSVRB,
    SABA,
    SOBA,
    TTSA,
    AmIGO,
    BilevelSolver,
    BlockSOBA,
    Certificate,
    PenaltyBilevel,
    StocBiO,
)
from hesse.bilevel.solvers.epoch_sgd import epoch_sgd
from hesse.bilevel.trace import BilevelResult, TraceRow
from hesse.bilevel.trace_plot import plot_traces

__all__ = [
    "AID",
    "BOREP",
    "BSVRB",
    "F2SA",
    "F3SA",
    "ITD",
    "LVHBA",
    "MASOBA",
    "MSVR",
    "RSVRB",
    "SABA",
    "SOBA",
    "TTSA",
    "AmIGO",
    "BilevelProblem",
    "BilevelResult",
    "BilevelSolver",
    "BlockSOBA",
    "Budget",
    "Certificate",
    "ErrorBound",
    "ExactProblem",
    "HyperGradient",
    "HypergradientMethod",
    "JointProducts",
    "LoaderSampler",
    "LowerSolution",
    "NoiseSampler",
    "NormalizedMomentum",
    "Oracle",
    "OracleCounts",
    "PenaltyBilevel",
    "Polyhedron",
    "ProblemReport",
    "ProximalValue",
    "RelaxedSmoothness",
    "Sampler",
    "SmoothnessFit",
    "SoftMarginRows",
    "StocBiO",
    "TensorSampler",
    "TraceRow",
    "check_problem",
    "degenerate_hypergradient",
    "epoch_sgd",
    "hypergradient",
    "penalty_hypergradient",
    "plot_traces",
    "problems",
    "proximal_error_bound",
    "proximal_lagrangian_value",
    "relaxed_smoothness",
    "solve_lower",
    "solve_support_vectors",
    "stacked",
    "support_vector_costs",
    "tasks",
    "unrolled_hypergradient",
]
