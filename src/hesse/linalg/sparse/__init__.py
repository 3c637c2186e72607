"""Products of sparse matrices, and a counting model of the accelerator they were designed for."""

from hesse.linalg.sparse.graphs import rmat
from hesse.linalg.sparse.model import Dataflow, HashKind, Schedule, SpgemmCounts, WindowCounts, spgemm_model
from hesse.linalg.sparse.plan import SpgemmPlan, spgemm_symbolic
from hesse.linalg.sparse.product import Accumulator, Semiring, spgemm

__all__ = [
    "Accumulator",
    "Dataflow",
    "HashKind",
    "Schedule",
    "Semiring",
    "SpgemmCounts",
    "SpgemmPlan",
    "WindowCounts",
    "rmat",
    "spgemm",
    "spgemm_model",
    "spgemm_symbolic",
]
