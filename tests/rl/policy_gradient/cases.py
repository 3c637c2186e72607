"""A small decision process with exact derivatives, shared by the tests."""

import torch

from hesse.rl import CategoricalPolicy, TabularMDP, collect, flat_parameters, load_parameters

HORIZON, DISCOUNT = 6, 0.9


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def decision_process(seed=0):
    """6 states, 3 actions, a tabular softmax policy away from uniform, float64."""
    generator = seeded(seed)
    transitions = torch.rand(6, 3, 6, dtype=torch.float64, generator=generator) ** 3
    rewards = torch.rand(6, 3, dtype=torch.float64, generator=generator)
    start = torch.full((6,), 1 / 6, dtype=torch.float64)
    policy = CategoricalPolicy(6, 3, (), bias=False).double()
    load_parameters(policy, 0.3 * torch.randn(18, dtype=torch.float64, generator=generator))
    world = TabularMDP(transitions / transitions.sum(-1, keepdim=True), rewards, start)
    return world, policy, flat_parameters(policy)


def draw(world, policy, count, generator=None):
    return collect(world, policy, count, horizon=HORIZON, discount=DISCOUNT, generator=generator or seeded(7))
