"""Normalised and Hessian-aided policy gradients, the policies they move, and environments to try them in."""

from hesse.rl.policy_gradient.baselines import Baseline, with_baseline, with_gae
from hesse.rl.policy_gradient.environments import (
    ActionSpace,
    CartPole,
    Continuous,
    Discrete,
    EnvStep,
    GymnasiumEnv,
    LinearQuadratic,
    Mixed,
    TabularMDP,
    VectorEnv,
)
from hesse.rl.policy_gradient.estimators import (
    policy_gradient,
    policy_hessian,
    policy_hvp,
    step_log_probs,
    trajectory_log_probs,
)
from hesse.rl.policy_gradient.history import History, Iteration
from hesse.rl.policy_gradient.methods import HARPG, NPGIGT, NormalizedMomentumPG, Reinforce, StormPG
from hesse.rl.policy_gradient.optimizer import PolicyOptimizer, SamplingPoint, StepInfo
from hesse.rl.policy_gradient.policies import (
    CategoricalPolicy,
    GaussianPolicy,
    MixedPolicy,
    Policy,
    flat_parameters,
    load_parameters,
    make_policy,
)
from hesse.rl.policy_gradient.rollout import TrajectoryBatch, collect
from hesse.rl.policy_gradient.training import train

__all__ = [
    "HARPG",
    "NPGIGT",
    "ActionSpace",
    "Baseline",
    "CartPole",
    "CategoricalPolicy",
    "Continuous",
    "Discrete",
    "EnvStep",
    "GaussianPolicy",
    "GymnasiumEnv",
    "History",
    "Iteration",
    "LinearQuadratic",
    "Mixed",
    "MixedPolicy",
    "NormalizedMomentumPG",
    "Policy",
    "PolicyOptimizer",
    "Reinforce",
    "SamplingPoint",
    "StepInfo",
    "StormPG",
    "TabularMDP",
    "TrajectoryBatch",
    "VectorEnv",
    "collect",
    "flat_parameters",
    "load_parameters",
    "make_policy",
    "policy_gradient",
    "policy_hessian",
    "policy_hvp",
    "step_log_probs",
    "train",
    "trajectory_log_probs",
    "with_baseline",
    "with_gae",
]
