"""Environments that run many episodes at once."""

from hesse.rl.policy_gradient.environments.cartpole import CartPole
from hesse.rl.policy_gradient.environments.gymnasium_copies import GymnasiumEnv
from hesse.rl.policy_gradient.environments.linear_quadratic import LinearQuadratic
from hesse.rl.policy_gradient.environments.protocol import ActionSpace, Continuous, Discrete, EnvStep, Mixed, VectorEnv
from hesse.rl.policy_gradient.environments.tabular import TabularMDP

__all__ = [
    "ActionSpace",
    "CartPole",
    "Continuous",
    "Discrete",
    "EnvStep",
    "GymnasiumEnv",
    "LinearQuadratic",
    "Mixed",
    "TabularMDP",
    "VectorEnv",
]
