"""Dynamical stability of SGD at a minimum: exact second moments, thresholds, typical runs, and what they control."""

from hesse.curvature.stability.coordinates import RangeCoordinates, batch_noise_factor, range_coordinates
from hesse.curvature.stability.linearise import Linearisation, LinearisedLoss, linearise
from hesse.curvature.stability.lyapunov import LyapunovExponent, lyapunov_exponent
from hesse.curvature.stability.monitor import (
    OptimizerDynamics,
    StabilityMonitor,
    StabilityRecord,
    batch_sharpness,
    optimizer_dynamics,
)
from hesse.curvature.stability.path_norm import path_norm
from hesse.curvature.stability.radius import second_moment_radius
from hesse.curvature.stability.report import StabilityReport, stability_report
from hesse.curvature.stability.second_moment import SecondMomentRadius
from hesse.curvature.stability.thresholds import (
    LearningRateBracket,
    StableLearningRate,
    learning_rate_bracket,
    loss_scaled_margin,
    max_stable_learning_rate,
    min_stable_batch_size,
)

__all__ = [
    "LearningRateBracket",
    "Linearisation",
    "LinearisedLoss",
    "LyapunovExponent",
    "OptimizerDynamics",
    "RangeCoordinates",
    "SecondMomentRadius",
    "StabilityMonitor",
    "StabilityRecord",
    "StabilityReport",
    "StableLearningRate",
    "batch_noise_factor",
    "batch_sharpness",
    "learning_rate_bracket",
    "linearise",
    "loss_scaled_margin",
    "lyapunov_exponent",
    "max_stable_learning_rate",
    "min_stable_batch_size",
    "optimizer_dynamics",
    "path_norm",
    "range_coordinates",
    "second_moment_radius",
    "stability_report",
]
