"""The field's standard bilevel solvers, one class each."""

from hesse.bilevel.solvers.aid import AID
from hesse.bilevel.solvers.base import BilevelSolver
from hesse.bilevel.solvers.itd import ITD
from hesse.bilevel.solvers.saba import SABA
from hesse.bilevel.solvers.soba import MASOBA, SOBA
from hesse.bilevel.solvers.stocbio import AmIGO, StocBiO
from hesse.bilevel.solvers.ttsa import TTSA

__all__ = [
    "AID",
    "ITD",
    "MASOBA",
    "SABA",
    "SOBA",
    "TTSA",
    "AmIGO",
    "BilevelSolver",
    "StocBiO",
]
