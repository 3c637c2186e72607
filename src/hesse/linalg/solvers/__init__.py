"""Iterative solvers of linear systems, one a file."""

from hesse.linalg.solvers.block_cg import block_cg
from hesse.linalg.solvers.cg import cg
from hesse.linalg.solvers.deflation import Deflation
from hesse.linalg.solvers.fista import fista
from hesse.linalg.solvers.gaussian_kaczmarz import gaussian_kaczmarz
from hesse.linalg.solvers.gmres import gmres
from hesse.linalg.solvers.kaczmarz import randomized_kaczmarz, sketch_and_project
from hesse.linalg.solvers.lsmr import lsmr
from hesse.linalg.solvers.lsqr import lsqr
from hesse.linalg.solvers.minres import minres
from hesse.linalg.solvers.multishift import multishift_cg
from hesse.linalg.solvers.preconditioners import jacobi, pivoted_cholesky, pivoted_cholesky_preconditioner
from hesse.linalg.solvers.recycling import recycled_cg
from hesse.linalg.solvers.solution import Solution, Status

__all__ = [
    "Deflation",
    "Solution",
    "Status",
    "block_cg",
    "cg",
    "fista",
    "gaussian_kaczmarz",
    "gmres",
    "jacobi",
    "lsmr",
    "lsqr",
    "minres",
    "multishift_cg",
    "pivoted_cholesky",
    "pivoted_cholesky_preconditioner",
    "randomized_kaczmarz",
    "recycled_cg",
    "sketch_and_project",
]
