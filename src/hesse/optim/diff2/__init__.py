"""DIFF2: differentially private descent by gradient differences, its accountant, and what it is measured by."""

from hesse.optim.diff2.accountant import (
    GaussianAccountant,
    GaussianRelease,
    gaussian_delta,
    gaussian_epsilon,
    sampled_gaussian_rdp,
)
from hesse.optim.diff2.baselines import PrivateRun, dp_gd, dp_sgd
from hesse.optim.diff2.estimate import RoundInfo
from hesse.optim.diff2.federated import BVRLSGD, DIFF2Result, run_diff2
from hesse.optim.diff2.noise import gaussian_noise
from hesse.optim.diff2.optimizer import DIFF2
from hesse.optim.diff2.plan import LocalReleases, NoisePlan, best_interval, best_split, plan_noise
from hesse.optim.diff2.records import ClippedSum, LinearRecords, LossRecords, Records, module_loss

__all__ = [
    "BVRLSGD",
    "DIFF2",
    "ClippedSum",
    "DIFF2Result",
    "GaussianAccountant",
    "GaussianRelease",
    "LinearRecords",
    "LocalReleases",
    "LossRecords",
    "NoisePlan",
    "PrivateRun",
    "Records",
    "RoundInfo",
    "best_interval",
    "best_split",
    "dp_gd",
    "dp_sgd",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_noise",
    "module_loss",
    "plan_noise",
    "run_diff2",
    "sampled_gaussian_rdp",
]
