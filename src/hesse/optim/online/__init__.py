"""Online learning: optimistic mirror descent, its ensemble for moving targets, baselines, and regret."""

from hesse.optim.online.baselines import ONS, AdaGradNorm, BaselineState, Hedge, OnlineGradientDescent
from hesse.optim.online.dynamic import (
    DynamicState,
    dynamic_init,
    dynamic_play,
    dynamic_round,
    dynamic_step_sizes,
    dynamic_update,
)
from hesse.optim.online.optimizers import DynamicOMD, OptimisticOMD
from hesse.optim.online.regret import gradient_variation, online_to_batch_bound, path_length, regret
from hesse.optim.online.rounds import OOMDRules, OOMDState, oomd_init, oomd_play, oomd_round, oomd_update

__all__ = [
    "ONS",
    "AdaGradNorm",
    "BaselineState",
    "DynamicOMD",
    "DynamicState",
    "Hedge",
    "OOMDRules",
    "OOMDState",
    "OnlineGradientDescent",
    "OptimisticOMD",
    "dynamic_init",
    "dynamic_play",
    "dynamic_round",
    "dynamic_step_sizes",
    "dynamic_update",
    "gradient_variation",
    "online_to_batch_bound",
    "oomd_init",
    "oomd_play",
    "oomd_round",
    "oomd_update",
    "path_length",
    "regret",
]
