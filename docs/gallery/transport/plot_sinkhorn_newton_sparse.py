"""
Optimal transport to ten digits: Sinkhorn-Newton-Sparse
=======================================================

Sinkhorn's sweeps find an entropic transport plan quickly, and then refine it slowly: with weak regularisation each
sweep gains next to nothing. But a weakly regularised plan is nearly sparse, and with it the Hessian of the dual.
`Tang et al. (2024) <https://arxiv.org/abs/2401.12253>`_ change over to Newton steps that keep only its largest entries.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

from hesse.transport import entropic, proximal, sinkhorn, sinkhorn_newton

BLUE, ORANGE, GREY = "#2a6f97", "#e09f3e", "0.45"
torch.set_default_dtype(torch.float64)

# %%
# Mass of one digit, carried to another
# -------------------------------------
# Two pictures of 20 x 20 pixels are two distributions. The cost of a pair of pixels is their l1 distance: a hard case,
# since a great many plans are equally good.

SIZE = 20
pictures = torch.from_numpy(load_digits().images[[3, 0]])[:, None]
large = torch.nn.functional.interpolate(pictures, size=(SIZE, SIZE), mode="bilinear").flatten(1)
a, b = 0.99 * large / large.sum(1, keepdim=True) + 0.01 / SIZE**2
grid = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).double()
cost = torch.cdist(grid, grid, p=1)
cost /= cost.max()
reg = 1 / 1200

newton = sinkhorn_newton(a, b, cost, reg)
plain = sinkhorn_newton(a, b, cost, reg, continuation=False, num_polish=0, max_steps=30)
sweeps = sinkhorn(a, b, cost, reg, tol=1e-10, max_steps=8000)
print(f"{newton.num_steps} Newton steps and {newton.num_sweeps} sweeps: error {float(newton.marginal_error):.0e}")
print(f"{sweeps.num_sweeps} sweeps of Sinkhorn: error {float(sweeps.marginal_error):.0e}")

fig, (axis, picture) = plt.subplots(1, 2, figsize=(10.5, 4.2), width_ratios=(1.35, 1), constrained_layout=True)
for result, colour, label in (
    (sweeps, GREY, "Sinkhorn"),
    (plain, ORANGE, "without continuation"),
    (newton, BLUE, "sinkhorn_newton"),
):
    at = [step.num_sweeps + step.num_steps for step in result.history]
    axis.loglog(at, [float(step.error[0]) for step in result.history], color=colour, label=label, lw=1.6)
final = [step for step in newton.history if step.kind == "newton" and step.reg == reg]
axis.plot(
    [step.num_sweeps + step.num_steps for step in final], [float(s.error[0]) for s in final], "o", color=BLUE, ms=4
)
axis.set(xlabel="sweeps and Newton steps", ylabel="‖P1 - a‖₁ + ‖Pᵀ1 - b‖₁", title="Error of the marginals")
axis.legend(frameon=False)
plan = newton.plan
rows, columns = (plan > 3e-4).nonzero(as_tuple=True)
picture.imshow(a.view(SIZE, SIZE) - b.view(SIZE, SIZE), cmap="RdBu", vmin=-0.012, vmax=0.012)
for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
    if i != j:
        start, way = grid[i].flip(0), (grid[j] - grid[i]).flip(0)
        width = float(plan[i, j]) * 0.5
        picture.arrow(*start, *way, color="0.15", lw=200 * width, head_width=0.25, length_includes_head=True, alpha=0.5)
picture.set(title="Where the mass goes: blue to red", xticks=[], yticks=[])
plt.show()

# %%
# The saw is continuation: the regularisation is halved from stage to stage, which throws the error up, and a few cheap
# steps bring it down far enough for the next. Dots are the steps of the last stage. The paper's algorithm started at
# once where Newton's method is still blind, and never arrives.

# %%
# From entropic plans to the linear programme
# -------------------------------------------
# `proximal` goes on to the unregularised optimum and ends with a certificate from linear duality. On a random
# assignment the plan ends as a permutation.

prices = torch.rand(60, 60, generator=torch.Generator().manual_seed(0))
stages = [entropic(None, None, prices, 1 / eta) for eta in (20, 200)] + [proximal(None, None, prices, 1 / 1200)]
order = stages[-1].plan.argmax(1)
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.7), constrained_layout=True)
for axis, stage, title in zip(axes, stages, ("η = 20", "η = 200", "proximal points"), strict=True):
    axis.imshow((60 * stage.plan[:, order]).sqrt(), cmap="magma", vmin=0, vmax=1)
    axis.set(title=f"{title}: cost {float(stage.value):.5f}", xticks=[], yticks=[])
plt.show()
print(f"each row has one partner: {np.unique(order).size} of 60, certified: {bool(stages[-1].converged)}")

# %%
# Gradients
# ---------
# Plans are differentiable through their optimality conditions: one linear solve with the Newton operator, no unrolled
# sweeps. Here prices are learnt under which the market picks a matching that was wanted.

wanted = torch.randperm(12, generator=torch.Generator().manual_seed(1))
learnt = torch.rand(12, 12, generator=torch.Generator().manual_seed(2)).requires_grad_()
optimizer = torch.optim.Adam([learnt], lr=0.05)
losses = []
for _ in range(40):
    matched = sinkhorn_newton(None, None, learnt, 0.05).plan[torch.arange(12), wanted]
    loss = -(12 * matched).log().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(float(loss))
print(f"mean -log(12 P) of the wanted pairs: {losses[0]:.2f} before, {losses[-1]:.4f} after 40 steps")
