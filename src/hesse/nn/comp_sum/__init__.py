"""Comp-sum losses: the family around cross-entropy, its guarantees for zero-one error, and its adversarial form."""

from hesse.nn.comp_sum.adversarial import AdvCompSum, smooth_adversarial_loss, theorem_nu, warmed_up
from hesse.nn.comp_sum.baselines import mart_loss, pgd_at_loss, trades_loss
from hesse.nn.comp_sum.bounds import consistency_bound, consistency_transform, minimizability_gap, pointwise_infimum
from hesse.nn.comp_sum.curvature import comp_sum_hessian, comp_sum_output_hessian
from hesse.nn.comp_sum.losses import CompSumLoss, comp_sum_loss, phi

__all__ = [
    "AdvCompSum",
    "CompSumLoss",
    "comp_sum_hessian",
    "comp_sum_loss",
    "comp_sum_output_hessian",
    "consistency_bound",
    "consistency_transform",
    "mart_loss",
    "minimizability_gap",
    "pgd_at_loss",
    "phi",
    "pointwise_infimum",
    "smooth_adversarial_loss",
    "theorem_nu",
    "trades_loss",
    "warmed_up",
]
