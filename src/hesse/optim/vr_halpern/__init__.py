"""Variance-reduced Halpern iteration for monotone inclusions over finite sums, its relatives, and certificates."""

from hesse.optim.vr_halpern.anchored import extra_anchored_gradient, extragradient, halpern
from hesse.optim.vr_halpern.finite_sum import FiniteSumOperator, lipschitz_estimate
from hesse.optim.vr_halpern.inclusion import Certificate, InclusionResult, inclusion_residual
from hesse.optim.vr_halpern.inexact import inexact_halpern, vr_forb
from hesse.optim.vr_halpern.saddle import MatrixGame, SaddleProblem, matrix_game, saddle_operator
from hesse.optim.vr_halpern.variance_reduced import HalpernState, vr_halpern

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
