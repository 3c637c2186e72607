"""Solvers of the damped Gauss-Newton system itself, for queries that the factors alone answer too coarsely."""

from hesse.influence.solvers.options import CG, PCG, FactorStrategy, LiSSA, Solver, solver_named
from hesse.influence.solvers.solve import Solved, solve
from hesse.influence.solvers.stored import StoredSolver, solved_self_scores
from hesse.influence.solvers.system import DampedGaussNewton, damped_ggn

__all__ = [
    "CG",
    "PCG",
    "DampedGaussNewton",
    "FactorStrategy",
    "LiSSA",
    "Solved",
    "Solver",
    "StoredSolver",
    "damped_ggn",
    "solve",
    "solved_self_scores",
    "solver_named",
]
