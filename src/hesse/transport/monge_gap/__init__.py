"""The Monge gap: a regulariser that makes a map optimal for a cost, and an estimator of maps trained with it."""

from hesse.transport.monge_gap.conservative import conservative_penalty
from hesse.transport.monge_gap.divergence import sinkhorn_divergence
from hesse.transport.monge_gap.gap import Entropy, Optimality, monge_gap, optimality_ratio
from hesse.transport.monge_gap.map import MongeMap

__all__ = [
    "Entropy",
    "MongeMap",
    "Optimality",
    "conservative_penalty",
    "monge_gap",
    "optimality_ratio",
    "sinkhorn_divergence",
]
