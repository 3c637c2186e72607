"""The field's standard bilevel solvers, one class each."""

from hesse.bilevel.solvers.aid import AID
from hesse.bilevel.solvers.base import BilevelSolver
from hesse.bilevel.solvers.block_baselines import RSVRB, BlockSOBA
from hesse.bilevel.solvers.bo_rep import BOREP
from hesse.bilevel.solvers.bsvrb import BSVRB
from hesse.bilevel.solvers.f2sa import F2SA, F3SA
from hesse.bilevel.solvers.itd import ITD
from hesse.bilevel.solvers.lv_hba import LVHBA, Certificate
from hesse.bilevel.solvers.penalty import PenaltyBilevel
from hesse.bilevel.solvers.saba import SABA
from hesse.bilevel.solvers.soba import MASOBA, SOBA
from hesse.bilevel.solvers.stocbio import AmIGO, StocBiO
from hesse.bilevel.solvers.ttsa import TTSA

__all__ = [
    "AID",
    "BOREP",
    "BSVRB",
    "F2SA",
    "F3SA",
    "ITD",
    "LVHBA",
    "MASOBA",
    "RSVRB",
    "SABA",
    "SOBA",
    "TTSA",
    "AmIGO",
    "BilevelSolver",
    "BlockSOBA",
    "Certificate",
    "PenaltyBilevel",
    "StocBiO",
]
