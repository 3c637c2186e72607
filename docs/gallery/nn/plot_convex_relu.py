"""
A network without a seed lottery
================================

Train a small ReLU network by Adam from twenty starts and you get twenty networks. With weight decay the problem has a
convex twin: fix which rows each neuron is switched on for, give every such pattern a vector of its own, and the sum of
their lengths takes the place of the decay. `Pilanci and Ergen (2020) <https://arxiv.org/abs/2002.10553>`_ prove that
both have the same optimum; `Bai, Gautam and Sojoudi (2023) <https://arxiv.org/abs/2201.01965>`_ make it quick, by
sampling the patterns, and robust, by keeping each pattern through a ball around every row.
"""

import matplotlib.pyplot as plt
import torch

from hesse.nn import (
    ConvexReLUClassifier,
    ConvexReLURegressor,
    all_patterns,
    convex_objective,
    exact_relu,
    network_objective,
)

generator = torch.Generator().manual_seed(3)
F64 = torch.float64
BLUE, RED, GREY = "#2a6f97", "#9e2a2b", "0.6"

# %%
# Where Adam ends
# ---------------
# Twenty points of the plane and a bias: few enough to enumerate every pattern, so that the convex optimum is the global
# one. No start of Adam gets below it, and narrow networks stay far above.

X = torch.cat([torch.randn(20, 2, generator=generator, dtype=F64), torch.ones(20, 1, dtype=F64)], 1)
y = torch.randn(20, generator=generator, dtype=F64)
D = all_patterns(X)
beta = 0.1
best = float(convex_objective(exact_relu(X, y, D, beta=beta).V, X, y, D, beta))


def adam(width, starts=12, steps=1500):
    """Objective of every start at every step."""
    hidden = torch.randn(starts, width, 3, generator=generator, dtype=F64).div(3**0.5).requires_grad_()
    output = torch.randn(starts, width, generator=generator, dtype=F64).div(width**0.5).requires_grad_()
    optimizer = torch.optim.Adam([hidden, output], lr=1e-2)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        values = [network_objective(X, y, u, a, beta) for u, a in zip(hidden, output, strict=True)]
        objective = torch.stack(values)
        objective.sum().backward()
        optimizer.step()
        seen.append(objective.detach())
    return torch.stack(seen)


fig, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
for width, colour in ((5, RED), (50, BLUE)):
    lines = axis.plot(adam(width), color=colour, linewidth=0.9, alpha=0.7)
    lines[0].set_label(f"Adam, {width} neurons")
axis.axhline(best, color="black", linewidth=1.5, label=f"convex optimum, {D.shape[1]} patterns")
axis.set(xlabel="step", ylabel="objective", yscale="log", ylim=(0.9 * best, None))
axis.legend(frameon=False)
axis.set_title("Twelve starts each, one floor")
plt.show()

# %%
# How good is mine?
# -----------------
# With sampled patterns the fit says itself what is missing: the largest |zᵀ(Xu)₊| / β over fresh neurons u is above one
# as long as some neuron would help. ``refine`` adds the patterns that it asks for.

X = torch.randn(30, 3, generator=generator, dtype=F64)
y = torch.randn(30, generator=generator, dtype=F64)
rounds = range(9)
fits = [
    ConvexReLURegressor(n_patterns=10, beta=0.1, solver="exact", refine=count, random_state=0).fit(X, y)
    for count in rounds
]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
objectives = torch.tensor([fit.objective_ for fit in fits])
gaps = torch.tensor([fit.gap_ for fit in fits])
left.fill_between(rounds, objectives - gaps, objectives, color=BLUE, alpha=0.2, linewidth=0, label="gap")
left.plot(rounds, objectives, "o-", color=BLUE, label="objective")
left.set(xlabel="rounds of refinement", ylabel="objective")
left.legend(frameon=False)
right.semilogy(rounds, [fit.duality_certificate_ for fit in fits], "o-", color=BLUE)
right.axhline(1, color=GREY, linewidth=1)
right.set(xlabel="rounds of refinement", ylabel="certificate")
plt.show()

# %%
# Training for the worst case
# ---------------------------
# Around each point lies a square that no boundary should enter. Adversarial training attacks and hopes; here the worst
# case of each square is a term of a convex programme, exact for the network that comes out.

eps, points = 0.08, []
while len(points) < 34:
    point = 2 * torch.rand(2, generator=generator, dtype=F64) - 1
    if all(float((point - other).abs().max()) >= 2.2 * eps for other in points):
        points.append(point)
X = torch.stack(points)
y = torch.where(0.9 * torch.sin(6 * X[:, 0]) + X[:, 1] >= 0, 1.0, -1.0)
ticks = torch.linspace(-1.15, 1.15, 300, dtype=F64)
plane = torch.cartesian_prod(ticks, ticks)
corners = torch.cartesian_prod(*[torch.linspace(-eps, eps, 17, dtype=F64)] * 2)
fig, axes = plt.subplots(1, 2, figsize=(9.4, 4.9), sharey=True, constrained_layout=True)
for axis, title, radius in ((axes[0], "plain", 0.0), (axes[1], "robust", eps)):
    model = ConvexReLUClassifier(
        n_patterns=300, beta=1e-4, loss="hinge", robust_eps=radius, max_iter=3000, random_state=0
    ).fit(X, y)
    field = model.decision_function(plane).view(300, 300).T
    axis.contourf(ticks, ticks, field.sign(), levels=[-2, 0, 2], colors=[RED, BLUE], alpha=0.18)
    axis.contour(ticks, ticks, field, levels=[0], colors="black", linewidths=1)
    moved = (X.unsqueeze(1) + corners).flatten(0, 1)
    margins = y.unsqueeze(1) * model.decision_function(moved).view(len(X), -1)
    safe = margins.amin(1) > 0
    for point, label, kept in zip(X.tolist(), y.tolist(), safe.tolist(), strict=True):
        colour = BLUE if label > 0 else RED
        box = plt.Rectangle(
            (point[0] - eps, point[1] - eps), 2 * eps, 2 * eps, fill=not kept, color=colour, alpha=0.9 if kept else 0.45
        )
        axis.add_patch(box)
        axis.plot(*point, ".", color=colour)
    axis.set(title=f"{title}: {int(safe.sum())} of {len(X)} squares on the right side", xlabel="$x_1$", aspect="equal")
axes[0].set_ylabel("$x_2$")
fig.suptitle("Filled squares are cut by the boundary")
plt.show()
