"""Bilevel optimisation: one problem interface, hypergradients, solvers, and problems with known answers."""

from hesse.bilevel import problems, tasks
from hesse.bilevel.bo_rep import (
    BOREP,
    NormalizedMomentum,
    RelaxedSmoothness,
    SmoothnessFit,
    epoch_sgd,
    relaxed_smoothness,
)
from hesse.bilevel.bsvrb import BSVRB, MSVR, RSVRB, BlockSOBA
from hesse.bilevel.checks import ProblemReport, check_problem
from hesse.bilevel.counts import Budget, OracleCounts
from hesse.bilevel.hypergradient import (
    HyperGradient,
    HypergradientMethod,
    LowerSolution,
    hypergradient,
    solve_lower,
    unrolled_hypergradient,
)
from hesse.bilevel.lv_hba import (
    LVHBA,
    Certificate,
    ProximalValue,
    proximal_lagrangian_value,
    solve_support_vectors,
    support_vector_costs,
)
from hesse.bilevel.oracle import JointProducts, Oracle
from hesse.bilevel.penalty import (
    F2SA,
    F3SA,
    ErrorBound,
    PenaltyBilevel,
    degenerate_hypergradient,
    penalty_hypergradient,
    proximal_error_bound,
)
from hesse.bilevel.problem import BilevelProblem
from hesse.bilevel.problems import ExactProblem
from hesse.bilevel.projections import Polyhedron, SoftMarginRows, stacked
from hesse.bilevel.samplers import LoaderSampler, NoiseSampler, Sampler, TensorSampler
from hesse.bilevel.solvers import AID, ITD, MASOBA, SABA, SOBA, TTSA, AmIGO, BilevelSolver, StocBiO
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
