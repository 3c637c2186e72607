"""BO-REP: normalised momentum and a lower level that waits, for upper losses of unbounded smoothness."""

from hesse.bilevel.bo_rep.epoch_sgd import epoch_sgd
from hesse.bilevel.bo_rep.normalized_momentum import NormalizedMomentum
from hesse.bilevel.bo_rep.relaxed_smoothness import RelaxedSmoothness, SmoothnessFit, relaxed_smoothness
from hesse.bilevel.bo_rep.solver import BOREP

__all__ = [
    "BOREP",
    "NormalizedMomentum",
    "RelaxedSmoothness",
    "SmoothnessFit",
    "epoch_sgd",
    "relaxed_smoothness",
]
