"""Is a score true? Retraining, the proximal response, and what both say about scores, with error bars."""

from hesse.influence.evaluate.agreement import Mislabelling, Stability, detect_mislabelled, stability
from hesse.influence.evaluate.export import export_scores, metric_tensors
from hesse.influence.evaluate.lds import LdsResult, Reliability, bootstrap_interval, draw_masks, lds, reliability
from hesse.influence.evaluate.loo import STAGES, LooGap, loo_gap
from hesse.influence.evaluate.pbrf import AdamSolver, NewtonCG, ProximalResponse, damped_ggn_scores, pbrf
from hesse.influence.evaluate.removal import Qld, RemovalCurve, TailPatch, qld, removal_curve, tail_patch
from hesse.influence.evaluate.training import cosine_rates, retrain, train_many, train_model
from hesse.influence.evaluate.validation import FineTuning, Validation, validate

__all__ = [
    "STAGES",
    "AdamSolver",
    "FineTuning",
    "LdsResult",
    "LooGap",
    "Mislabelling",
    "NewtonCG",
    "ProximalResponse",
    "Qld",
    "Reliability",
    "RemovalCurve",
    "Stability",
    "TailPatch",
    "Validation",
    "bootstrap_interval",
    "cosine_rates",
    "damped_ggn_scores",
    "detect_mislabelled",
    "draw_masks",
    "export_scores",
    "lds",
    "loo_gap",
    "metric_tensors",
    "pbrf",
    "qld",
    "reliability",
    "removal_curve",
    "retrain",
    "stability",
    "tail_patch",
    "train_many",
    "train_model",
    "validate",
]
