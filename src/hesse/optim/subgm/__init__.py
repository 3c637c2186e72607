"""SubGM: low-rank matrices from few measurements, some of them grossly wrong, by sub-gradients from a tiny start."""

from hesse.optim.subgm.completion import Completion, robust_matrix_completion
from hesse.optim.subgm.descent import RecoveryResult, l1_subgradient, numerical_rank, recover_psd
from hesse.optim.subgm.estimator import SubGM
from hesse.optim.subgm.measurements import (
    EntryMeasurements,
    Measurements,
    OperatorMeasurements,
    RankOneDifferences,
    SymmetricMatrices,
    as_measurements,
)
from hesse.optim.subgm.sign_rip import SignRIP, sign_rip_deviation
from hesse.optim.subgm.steps import StepRule
from hesse.optim.subgm.torch_optimizer import SubGMOptimizer

__all__ = [
    "Completion",
    "EntryMeasurements",
    "Measurements",
    "OperatorMeasurements",
    "RankOneDifferences",
    "RecoveryResult",
    "SignRIP",
    "StepRule",
    "SubGM",
    "SubGMOptimizer",
    "SymmetricMatrices",
    "as_measurements",
    "l1_subgradient",
    "numerical_rank",
    "recover_psd",
    "robust_matrix_completion",
    "sign_rip_deviation",
]
