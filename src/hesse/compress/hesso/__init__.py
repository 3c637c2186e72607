"""HESSO: scores of groups, the choice among them, and the optimiser that takes them to zero."""

from hesse.compress.hesso.cric import CRIC
from hesse.compress.hesso.optimizer import HESSO
from hesse.compress.hesso.scores import (
    combine_scores,
    fisher_scores,
    group_scores,
    joint_curvature_scores,
    obs_scores,
)
from hesse.compress.hesso.selection import select_groups

__all__ = [
    "CRIC",
    "HESSO",
    "combine_scores",
    "fisher_scores",
    "group_scores",
    "joint_curvature_scores",
    "obs_scores",
    "select_groups",
]
