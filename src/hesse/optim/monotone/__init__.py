"""Monotone inclusions over finite sums: Halpern iteration with variance reduction, its relatives, and certificates."""

from hesse.optim.monotone.anchored import extra_anchored_gradient, extragradient, halpern
from hesse.optim.monotone.finite_sum import FiniteSumOperator, lipschitz_estimate
from hesse.optim.monotone.inclusion import Certificate, InclusionResult, inclusion_residual
from hesse.optim.monotone.inexact import inexact_halpern, vr_forb
from hesse.optim.monotone.saddle import MatrixGame, SaddleProblem, matrix_game, saddle_operator
from hesse.optim.monotone.vr_halpern import HalpernState, vr_halpern

__all__ = [
    "Certificate",
    "FiniteSumOperator",
    "HalpernState",
    "InclusionResult",
    "MatrixGame",
    "SaddleProblem",
    "extra_anchored_gradient",
    "extragradient",
    "halpern",
    "inclusion_residual",
    "inexact_halpern",
    "lipschitz_estimate",
    "matrix_game",
    "saddle_operator",
    "vr_forb",
    "vr_halpern",
]
