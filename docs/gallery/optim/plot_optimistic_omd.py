"""
Optimistic mirror descent: playing against a world that moves, but not wildly
=============================================================================

In online learning a point is played, then a loss is revealed, and the next round has another loss. Regret is what the
plays cost beyond the best point in hindsight. Gradient descent keeps it at O(√T) whatever the losses do, and does
hardly better when they are kind. `Chen et al. (2024) <https://arxiv.org/abs/2302.04552>`_ study losses that are drawn
from a distribution that may drift: there *optimistic* mirror descent, which acts as if the last gradient came once
more, pays only for the noise and for the drift.
"""

import matplotlib.pyplot as plt
import torch

from hesse.linalg import Ball
from hesse.optim import (
    AdaGradNorm,
    OnlineGradientDescent,
    OOMDRules,
    OptimisticOMD,
    dynamic_init,
    dynamic_round,
    oomd_init,
    oomd_round,
)

torch.set_num_threads(1)
F64 = torch.float64
BALL, DIAMETER = Ball(1.0), 2.0
COLOURS = {"optimistic": "#2a6f97", "ensemble": "#5aa469", "OGD": "#9e2a2b", "AdaGrad-norm": "#e09f3e"}

# %%
# One round
# ---------
# The optimiser has a protocol of its own: :meth:`~hesse.optim.OptimisticOMD.play` puts the point in the parameters,
# ``step`` takes the gradient found there. Here a regression whose true weights swing to and fro; the prediction at
# each time is made before the answer is seen.

generator = torch.Generator().manual_seed(0)
weights = torch.zeros(3, requires_grad=True)
optimizer = OptimisticOMD([weights], diameter=DIAMETER, projection=BALL)
total = 0.0
for t in range(500):
    truth = torch.tensor([0.8, 0.3 * (-1) ** (t // 100), -0.4])
    x = torch.randn(8, 3, generator=generator)
    optimizer.play()
    optimizer.zero_grad()
    loss = (x @ weights - x @ truth).square().mean()
    loss.backward()
    optimizer.step()
    total += float(loss.detach())
print(f"mean squared error of the predictions: {total / 500:.4f}")
print(f"weights in play: {weights.detach().numpy().round(2)}, true ones: {truth.numpy()}")

# %%
# A tide
# ------
# Now a game where everything is visible. The loss is ⟨g, x⟩ in the unit disc, and the expected gradient is (1, 0) for
# 20 rounds, then (-1, 0), and so on. No fixed point is better than the centre. The pure functions play 20 games side by
# side. Steps of gradient descent shrink with the rounds, those of the optimistic player with what its hints have
# missed, which is little but for the turns and the noise. After 1900 rounds it still crosses most of the disc between
# two turns of the tide, and its regret goes on falling: it does better than any fixed point.


def play(state, following, gradient, rounds):
    plays = []
    for t in range(rounds):
        plays.append(state.play)
        state = following(state, gradient(t, state.play))
    return torch.stack(plays)


def players(num_runs, n, grad_bound, smoothness=0.0):
    start = torch.zeros(num_runs, n, dtype=F64)
    rules = OOMDRules(DIAMETER, grad_bound, smoothness, projection=BALL)
    ogd = OnlineGradientDescent(DIAMETER, grad_bound, projection=BALL)
    adagrad = AdaGradNorm(DIAMETER, BALL)
    return {
        "optimistic": (oomd_init(rules, start), lambda state, g: oomd_round(rules, state, g)),
        "OGD": (ogd.init(start), ogd.round),
        "AdaGrad-norm": (adagrad.init(start), adagrad.round),
    }


rounds, block, runs = 2000, 20, 20
sign = 1.0 - 2.0 * ((torch.arange(rounds) // block) % 2).to(F64)
mean = torch.stack([sign, 0 * sign], -1).unsqueeze(1)

fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), constrained_layout=True, width_ratios=(1.25, 1, 1))
for axis, noise in zip(axes[1:], (0.3, 1.5), strict=True):
    grads = mean + noise / 2**0.5 * torch.randn(rounds, runs, 2, dtype=F64, generator=generator)
    for name, (state, following) in players(runs, 2, 1 + noise).items():
        x = play(state, following, lambda t, _, g=grads: g[t], rounds)
        regret = (mean * x).sum(-1).cumsum(0)
        axis.plot(regret.mean(1), color=COLOURS[name], label=name)
        low, high = regret.quantile(0.1, dim=1), regret.quantile(0.9, dim=1)
        axis.fill_between(range(rounds), low, high, color=COLOURS[name], alpha=0.2, linewidth=0)
        if noise == 0.3:
            axes[0].plot(range(1900, 2000), x[1900:, 0, 0], color=COLOURS[name])
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set(title=f"noise {noise}", xlabel="round", ylabel="regret")
axes[0].fill_between(range(1900, 2000), -sign[1900:], step="post", color="0.88", linewidth=0)
axes[0].set(title="where they stand (grey: the best point)", xlabel="round", ylabel="first coordinate")
axes[1].legend(frameon=False, loc="center right")
plt.show()

# %%
# A target that jumps
# -------------------
# Steps that follow a moving target are too long for one that stands still, and how often it moves is not known
# beforehand. :func:`~hesse.optim.dynamic_round` runs a player for each of a handful of step sizes and weighs them by
# how they would have done: one gradient a round. The target stands still for 1500 rounds, then jumps every 25; the
# gradients are noisy. The weights move to the longer steps when the jumps begin.

rounds, runs, n, noise = 3000, 10, 5, 0.5
calm = rounds // 2
places = torch.randn(1 + calm // 25, runs, n, dtype=F64, generator=generator)
places = 0.9 * places / places.norm(dim=-1, keepdim=True)
target = places[(torch.arange(rounds) - calm).clamp_min(-1) // 25 + 1]
xi = noise / n**0.5 * torch.randn(rounds, runs, n, dtype=F64, generator=generator)


def gradient(t, x):
    return x - target[t] + xi[t]


rules = OOMDRules(DIAMETER, 2 + noise, smoothness=1.0, projection=BALL)
state = dynamic_init(rules, torch.zeros(runs, n, dtype=F64), rounds)
sizes, shares, plays = state.steps[0], [], []
for t in range(rounds):
    plays.append(state.play)
    shares.append(state.weights.mean(0))
    state = dynamic_round(rules, state, gradient(t, state.play))
found = {"ensemble": torch.stack(plays)}
found |= {name: play(*player, gradient, rounds) for name, player in players(runs, n, 2 + noise, 1.0).items()}

fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
for name, x in found.items():
    regret = ((x - target).square().sum(-1) / 2).cumsum(0).mean(1)
    axes[0].plot(regret, color=COLOURS[name], label=f"{name}: {regret[-1]:.0f}")
axes[0].axvline(calm, color="0.6", linewidth=0.8)
axes[0].set(title="dynamic regret: against the target itself", xlabel="round", ylabel="Σ ½‖x − target‖²")
axes[0].legend(frameon=False)
shades = plt.get_cmap("viridis")(torch.linspace(0.95, 0.1, len(sizes)).numpy())
axes[1].stackplot(range(rounds), torch.stack(shares).T, colors=shades, labels=[f"{size:.3f}" for size in sizes])
axes[1].axvline(calm, color="white", linewidth=0.8)
axes[1].set(title="weights of the players, by step size", xlabel="round", xlim=(0, rounds), ylim=(0, 1))
axes[1].legend(loc="upper left", fontsize=8, title="step", title_fontsize=8)
plt.show()

# %%
# Where not to use it
# -------------------
# The hint is the last gradient. Where each gradient says nothing about the next, say with independent examples and a
# margin loss, the hint is noise: the bound still holds, but an online Newton step or plain AdaGrad loses less. Where
# the sign turns round every time, the hint is always wrong. ``hint=`` takes a forecast of your own: zeros make it plain
# mirror descent with steps that adapt to the gradients seen.
