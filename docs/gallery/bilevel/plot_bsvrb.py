"""
A hundred models that share their hyper-parameters
==================================================

One penalty a feature, shared by a hundred regressions: a hundred lower problems under one upper variable. Solving all
of them for every step of the upper variable is out of the question, so BSVRB looks at ten of them at a time, at eight
rows of each, and remembers the rest.

.. math:: \\min_x \\frac1m \\sum_i f_i(x, y_i^*(x)), \\qquad y_i^*(x) = \\operatorname{argmin}_y g_i(x, y)

What it remembers would go stale while x moves. Each probe therefore looks at a block twice with the same rows, now and
one step ago, and the difference stands for the m / I steps in which the block was not looked at.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import minimize

from hesse.bilevel import BSVRB, MSVR, RSVRB, BlockSOBA, Budget, problems, tasks

# %%
# The estimator by itself
# -----------------------
# A hundred quantities drift steadily; ten are seen a step. The moving average lags, STORM's factor 1 - a hardly helps,
# because the difference of one step stands for one step. Multiplied by about m / I it keeps up, a little ahead even.

m, probed, alpha, steps = 100, 10, 0.1, 500
generator = torch.Generator().manual_seed(0)
phases = torch.rand(m, generator=generator) * 6.28
kinds = {"moving average": 0.0, "STORM's factor": "storm", "MSVR": "msvr"}
colours = {"moving average": "#e09f3e", "STORM's factor": "#5aa469", "MSVR": "#2a6f97"}
trackers = {name: MSVR(m, (), alpha, gamma) for name, gamma in kinds.items()}
held = {name: [] for name in kinds}
for t in range(steps):
    index = torch.randperm(m, generator=generator)[:probed]
    now, before = torch.sin(phases + 0.02 * t), torch.sin(phases + 0.02 * (t - 1))
    noise = 0.2 * torch.randn(probed, generator=generator)
    for name, tracker in trackers.items():
        tracker.update(index, now[index] + noise, before[index] + noise)
        held[name].append(float(tracker.value[0]))

fig, axis = plt.subplots(figsize=(7, 3.6), constrained_layout=True)
axis.plot(torch.sin(phases[0] + 0.02 * torch.arange(steps)), color="black", lw=1.5, label="the quantity")
for name, values in held.items():
    axis.step(range(steps), values, color=colours[name], lw=1.2, label=name)
axis.set(xlabel="step", ylabel="block 0", ylim=(-1.6, 2.2))
axis.legend(frameon=False, ncols=4, loc="upper center")
plt.show()

# %%
# A problem whose optimum is known
# --------------------------------
# A hundred ridge regressions of 30 rows: everything has a closed form, so that the gap to the optimum can be drawn.

bounds = (-5.0, 1.5)
case = problems.multi_ridge(100, 30, 20, noise=1.0, weak=0.3, bounds=bounds, seed=0)


def value_and_gradient(x):
    point = torch.from_numpy(x)
    return float(case.value(point)), case.hypergradient(point).numpy()


best = minimize(value_and_gradient, np.zeros(20), jac=True, method="L-BFGS-B", bounds=[bounds] * 20).fun

# %%
# Four solvers, the same samples
# ------------------------------
# All start from the same warm start and see ten blocks and eight rows a step. Version 1 of BSVRB keeps a Hessian for
# every block, version 2 only vectors. RSVRB keeps unbiased tables, whose noise grows with m / I; the single loop
# without variance reduction moves a block only when it meets it, by longer steps.

shared = {"blocks_per_step": 10, "batch_size": 8, "lr": 0.2}
solvers = {
    "BSVRB, version 1": BSVRB(case.problem, 1, mu=0.03, lr_lower=0.01, beta=0.3, alpha=0.05, **shared),
    "BSVRB, version 2": BSVRB(case.problem, 2, lr_lower=0.03, alpha=0.05, **shared),
    "RSVRB": RSVRB(case.problem, mu=0.03, lr_lower=0.01, **shared),
    "single loop": BlockSOBA(case.problem, lr_lower=0.1, **shared),
}
gaps = {}
for name, solver in solvers.items():
    gaps[name] = []
    result = solver.run(
        Budget(iterations=2000),
        lambda row, s=solver, g=gaps[name]: g.append(float(case.value(s.x)) - best),
        trace_every=10,
    )
    print(f"{name:18s} gap {gaps[name][-1]:.4f} after {result.counts.samples} samples")

fig, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
for (name, values), colour in zip(gaps.items(), ("#2a6f97", "#61a5c2", "#9e2a2b", "#e09f3e"), strict=True):
    axis.semilogy(10 * np.arange(len(values)), values, color=colour, label=name)
axis.set(xlabel="step: 10 of 100 blocks, 8 rows of each", ylabel="Φ(x) - Φ*")
axis.legend(frameon=False)
plt.show()

# %%
# What the penalties say
# ----------------------
# The first ten features have weights of scale 1, the others of scale 0.3: the learnt penalties tell them apart.

fig, axis = plt.subplots(figsize=(7, 3), constrained_layout=True)
axis.bar(range(20), solvers["BSVRB, version 2"].x.exp(), color=["#2a6f97"] * 10 + ["#e09f3e"] * 10)
axis.set(xlabel="feature", ylabel="penalty exp(x)", xticks=range(20))
plt.show()

# %%
# Losses of one's own
# -------------------
# A block's loss takes x, its own y, its number and the numbers of the rows drawn, and indexes its data with both. Here
# sixteen classifiers of different temperature share the weights of 400 training rows, a quarter of whose labels are
# wrong: `hesse.bilevel.tasks.temperature_blocks` is such a problem, and 30 lines to copy.

generator = torch.Generator().manual_seed(1)
labels = torch.where(torch.rand(700, generator=generator) < 0.5, -1.0, 1.0).double()
rows = torch.randn(700, 10, dtype=torch.float64, generator=generator) + 0.7 * labels[:, None]
wrong = torch.rand(400, generator=generator) < 0.25
noisy = torch.where(wrong, -labels[:400], labels[:400])
problem = tasks.temperature_blocks(
    rows[:400], noisy, rows[400:], labels[400:], torch.logspace(-0.3, 0.7, 16, dtype=torch.float64)
)
solver = BSVRB(problem, blocks_per_step=4, batch_size=32, lr=40.0, lr_lower=0.02)
weights = solver.run(Budget(iterations=1000), trace_every=1000).x.sigmoid()
auroc = float((weights[~wrong][:, None] > weights[wrong][None]).double().mean())
print(f"a right row outweighs a wrong one in {100 * auroc:.1f} % of pairs")
fig, axis = plt.subplots(figsize=(7, 3.2), constrained_layout=True)
for chosen, colour, name in ((~wrong, "#2a6f97", "label right"), (wrong, "#9e2a2b", "label wrong")):
    axis.hist(weights[chosen], bins=40, range=(0, 1), color=colour, alpha=0.6, label=name)
axis.set(xlabel="learnt weight of the row", ylabel="rows")
axis.legend(frameon=False)
plt.show()
