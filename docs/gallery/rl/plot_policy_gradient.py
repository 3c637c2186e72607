"""
Policy gradients that remember without lagging behind
=====================================================

REINFORCE estimates the gradient of the expected return from a batch of episodes, and the estimate is noisy. Averaging
over past batches calms it, but they were drawn at other parameters: momentum trades noise for bias.
`Fatkhullin, Barakat, Kireeva and He (2023) <https://arxiv.org/abs/2302.01734>`_ take the bias out in two ways. N-PG-IGT
samples at an extrapolated point, where the new gradient makes up for the age of the old ones; N-HARPG carries the old
estimate along with a Hessian-vector product from a few more episodes.
"""

import matplotlib.pyplot as plt
import torch

from hesse.rl import (
    HARPG,
    NPGIGT,
    CartPole,
    CategoricalPolicy,
    NormalizedMomentumPG,
    Reinforce,
    TabularMDP,
    collect,
    load_parameters,
    train,
)

COLOURS = {"single batch": "#adb5bd", "momentum": "#e09f3e", "N-PG-IGT": "#2a6f97", "N-HARPG": "#9e2a2b"}

# %%
# Errors against the exact gradient
# ---------------------------------
# In a small decision process the gradient is known, by backward induction. Every method takes steps of the same length,
# 0.1, with a constant weight of 0.01 for the newest batch of 200 episodes. Momentum lags behind the moving gradient;
# N-PG-IGT forgets where it came from much sooner. N-HARPG has no bias but pays with the noise of its Hessian products,
# which accumulates: it needs large batches or short horizons, and here it gains nothing.

generator = torch.Generator().manual_seed(0)
transitions = torch.rand(6, 3, 6, dtype=torch.float64, generator=generator) ** 5
rewards = torch.rand(6, 3, dtype=torch.float64, generator=generator)
start = torch.full((6,), 1 / 6, dtype=torch.float64)
world = TabularMDP(transitions / transitions.sum(-1, keepdim=True), rewards, start)


def errors(make, batch=200, steps=100):
    """‖d_t - ∇J(θ_t)‖² of each step."""
    policy = CategoricalPolicy(6, 3, (), bias=False).double()
    load_parameters(policy, torch.zeros(18, dtype=torch.float64))
    optimizer, generator, found = make(policy), torch.Generator().manual_seed(1), []
    for t in range(steps):
        batches = {}
        for point in optimizer.sampling_points(20 * batch if t == 0 else batch, generator=generator):
            load_parameters(policy, point.parameters)
            count = point.num_trajectories
            batches[point.name] = collect(world, policy, count, horizon=20, discount=0.9, generator=generator)
        exact = world.gradient(policy, optimizer.parameters, 20, 0.9)
        optimizer.step(batches)
        found.append(float((optimizer.direction - exact).square().sum()))
    return found


arms = {
    "single batch": lambda policy: NormalizedMomentumPG(policy, 0.1, 1.0, schedule=False),
    "momentum": lambda policy: NormalizedMomentumPG(policy, 0.1, 0.01, schedule=False),
    "N-PG-IGT": lambda policy: NPGIGT(policy, 0.1, 0.01, schedule=False, extrapolation_cap=None),
    "N-HARPG": lambda policy: HARPG(policy, 0.1, 0.01, schedule=False),
}
fig, axis = plt.subplots(figsize=(7.5, 4), constrained_layout=True)
for name, make in arms.items():
    axis.semilogy(errors(make), color=COLOURS[name], label=name, linewidth=1.2 if name == "single batch" else 2)
axis.set(xlabel="step", ylabel="squared error of the direction", title="The same episodes, remembered in four ways")
axis.legend(frameon=False, ncol=2)
plt.show()

# %%
# CartPole
# --------
# Learning curves over two seeds: the line is their mean, the band their range. All methods subtract the same baseline,
# fitted for each episode on the others of its batch. No ordering by one picture is fair.

curves = {
    "single batch": ("vanilla", lambda policy: Reinforce(policy, 0.005)),
    "momentum": ("N-MPG", lambda policy: NormalizedMomentumPG(policy, 1.0)),
    "N-PG-IGT": ("N-PG-IGT", lambda policy: NPGIGT(policy, 1.0)),
    "N-HARPG": ("N-HARPG", lambda policy: HARPG(policy, 0.2)),
}
fig, axis = plt.subplots(figsize=(7.5, 4), constrained_layout=True)
for key, (name, make) in curves.items():
    runs = []
    for seed in range(2):
        policy = CategoricalPolicy(4, 2, generator=torch.Generator().manual_seed(seed))
        runs.append(train(CartPole(), policy, make(policy), horizon=200, episodes=450, seed=seed).to_dict())
    returns = torch.tensor([run["mean_return"] for run in runs])
    smooth = returns.unfold(1, 4, 1).mean(-1)
    episodes = runs[0]["episodes"][3:]
    axis.fill_between(episodes, smooth.amin(0), smooth.amax(0), color=COLOURS[key], alpha=0.15, linewidth=0)
    axis.plot(episodes, smooth.mean(0), color=COLOURS[key], label=name, linewidth=2)
axis.axhline(200, color="0.6", linestyle=":", linewidth=1)
axis.set(xlabel="episodes, those for Hessian products included", ylabel="mean return of the last 4 batches")
axis.set_title("CartPole, 200 steps at most, 15 episodes a batch")
axis.legend(frameon=False)
plt.show()
