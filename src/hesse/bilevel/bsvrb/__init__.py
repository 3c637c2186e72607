"""BSVRB: variance reduction over many lower problems, a few blocks and rows a step."""

from hesse.bilevel.bsvrb.baselines import RSVRB, BlockSOBA
from hesse.bilevel.bsvrb.msvr import MSVR
from hesse.bilevel.bsvrb.solver import BSVRB

__all__ = [
    "BSVRB",
    "MSVR",
    "RSVRB",
    "BlockSOBA",
]
