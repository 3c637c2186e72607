"""
Private training: what does noise on differences save?
======================================================

Differentially private gradient descent adds noise to every gradient, in proportion to the longest gradient a single
record could have. Near a minimum that is a bad bargain: the gradient is small and changes little from one round to the
next, but the noise stays as it was.

`Murata and Suzuki (2023) <https://arxiv.org/abs/2302.03884>`_ release the *change* of the gradient instead. A record
can move it by at most its smoothness times the length of the last step, so that the noise shrinks with the steps. From
time to time a whole gradient sets the sum of all noise back.
"""

import math

import matplotlib.pyplot as plt
import torch

from hesse.optim.diff2 import GaussianAccountant, LinearRecords, dp_gd, plan_noise, run_diff2

n, d, rounds = 40_000, 50, 150
generator = torch.Generator().manual_seed(0)
rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
rows /= rows.norm(dim=1, keepdim=True)
labels = torch.sign(rows @ torch.randn(d, generator=generator, dtype=torch.float64))


def slope(outputs, labels):
    """Derivative of the logistic loss by the output."""
    signs = labels[:, None]
    return -signs * torch.sigmoid(-signs * outputs)


def penalty_grad(x):
    """Gradient of a penalty that is not convex; it reads no data and needs no noise."""
    return 0.02 * x / (1 + x**2) ** 2


records, start = LinearRecords(rows, labels, slope), torch.zeros(d, dtype=torch.float64)

# %%
# The same budget, spent twice
# ----------------------------
# Both runs are (1, 1e-5)-differentially private, by the same accountant. The left picture shows the true gradient,
# which neither run sees; the right one the noise in each coordinate of what is released. With the step of 20 plain
# descent is soon at the level of its noise.

gradients, noises = {}, {}


def squared_gradient(x):
    """Exact and not private, for the picture only."""
    return float((records.gradient_sum(x, math.inf).total / n + penalty_grad(x)).square().sum())


common = {"lr": 20.0, "rounds": rounds, "epsilon": 1.0, "delta": 1e-5, "penalty_grad": penalty_grad}
watched = gradients["DP-GD"] = []
plain = dp_gd(
    records, start, clip=1.0, generator=generator, on_round=lambda _, x: watched.append(squared_gradient(x)), **common
)
noises["DP-GD"] = [plain.accountant.releases[0].multiplier * 2 / n] * rounds
also = gradients["DIFF2"] = []
result = run_diff2(
    [records],
    start,
    clip_grad=1.0,
    clip_diff=0.1,
    restart_interval=75,
    generator=generator,
    on_round=lambda info, x: also.append(squared_gradient(x)),
    **common,
)
noises["DIFF2"] = [info.noise_std for info in result.rounds]

COLOURS = {"DP-GD": "#e09f3e", "DIFF2": "#2a6f97"}
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), constrained_layout=True)
for name, colour in COLOURS.items():
    axes[0].semilogy(gradients[name], color=colour, label=name)
    axes[1].semilogy(noises[name], color=colour, label=name)
axes[0].set(xlabel="round", ylabel="‖∇f‖²", title="The gradient, at (1, 1e-5)")
axes[1].set(xlabel="round", ylabel="deviation in a coordinate", title="Noise of each release")
axes[1].annotate("restart: a whole gradient", (75, noises["DIFF2"][75]), (35, 1.1e-3), arrowprops={"arrowstyle": "->"})
axes[0].legend(frameon=False)
plt.show()
print(f"spent: {plain.accountant.epsilon(1e-5):.4f} and {result.privacy_spent(1e-5):.4f}")

# %%
# What a budget buys
# ------------------
# Noise follows from exact composition. Two conversions to ε are at hand: by Rényi divergences, which also covers
# batches drawn at random, and the exact one for full batches, which needs less noise for the same promise.

budgets = [0.1, 0.3, 1.0, 3.0, 10.0]
fig, axis = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
for method, line in (("rdp", "o-"), ("exact", "s--")):
    plans = [
        plan_noise(rounds, epsilon=e, delta=1e-5, clip_grad=1.0, clip_diff=0.1, restart_interval=75, method=method)
        for e in budgets
    ]
    axis.loglog(budgets, [p.restart_multiplier for p in plans], line, color="#9e2a2b", label=f"restarts, {method}")
    axis.loglog(
        budgets, [p.difference_multiplier for p in plans], line, color="#2a6f97", label=f"differences, {method}"
    )
axis.set(xlabel="ε at δ = 1e-5", ylabel="noise over sensitivity", title="150 rounds, two of them restarts")
axis.legend(frameon=False)
plt.show()

# %%
# When not to
# -----------
# With few records or a tight budget (n ε below some 5000) steps are driven by noise, differences are not small, and
# plain descent with fewer rounds is better. Batches drawn at random need another accountant again; DIFF2 refuses data
# of another size than it was planned for. This is how the spend of DP-SGD compares, for one pass over the data:

for batch in (200, 1000, 5000):
    spent = GaussianAccountant().add(1.0, count=n // batch, sampling_rate=batch / n)
    print(f"batches of {batch}: ε = {spent.epsilon(1e-5):.2f}")
