"""Alignment of a head's gradients and Hessians across domains, for models that must hold on domains not seen."""

from hesse.curvature.alignment._losses import LossName
from hesse.curvature.alignment.baselines import (
    coral_penalty,
    fishr_penalty,
    iga_penalty,
    irm_penalty,
    vrex_penalty,
)
from hesse.curvature.alignment.generalizer import DomainGeneralizer
from hesse.curvature.alignment.linear_head import (
    DiagonalMethod,
    head_gradient,
    head_hessian,
    head_hessian_diag,
    head_hvp,
)
from hesse.curvature.alignment.loss import HessianAlignmentLoss, Penalty, PenaltyName
from hesse.curvature.alignment.penalties import hessian_frobenius_penalty, hgp_penalty, hutchinson_penalty
from hesse.curvature.alignment.report import AlignmentReport, alignment_report, head_inputs

__all__ = [
    "AlignmentReport",
    "DiagonalMethod",
    "DomainGeneralizer",
    "HessianAlignmentLoss",
    "LossName",
    "Penalty",
    "PenaltyName",
    "alignment_report",
    "coral_penalty",
    "fishr_penalty",
    "head_gradient",
    "head_hessian",
    "head_hessian_diag",
    "head_hvp",
    "head_inputs",
    "hessian_frobenius_penalty",
    "hgp_penalty",
    "hutchinson_penalty",
    "iga_penalty",
    "irm_penalty",
    "vrex_penalty",
]
