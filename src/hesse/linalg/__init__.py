"""Matrices that are only multiplied by: operators, solvers, eigenvalues, traces, sketches."""

from hesse.linalg.basic import Dense, Diagonal, FunctionOperator, Permutation, ScaledIdentity, Sparse
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.eigh import Eigh, EighKronecker
from hesse.linalg.kronecker import Kronecker, KroneckerSum
from hesse.linalg.low_rank import LowRank, LowRankPlusDiagonal
from hesse.linalg.operator import LinearOperator
from hesse.linalg.solvers import Solution, Status, cg, minres

__all__ = [
    "Dense",
    "Diagonal",
    "Eigh",
    "EighKronecker",
    "FunctionOperator",
    "Kronecker",
    "KroneckerSum",
    "LinearOperator",
    "LowRank",
    "LowRankPlusDiagonal",
    "Permutation",
    "ScaledIdentity",
    "Solution",
    "Sparse",
    "Status",
    "as_linear_operator",
    "cg",
    "minres",
]
