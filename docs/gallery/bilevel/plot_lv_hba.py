"""
When the lower level has limits that move
=========================================

A lower level with constraints that couple both variables has a solution with corners: wherever the active set changes,
implicit differentiation breaks. LV-HBA needs none: it walks in x, y and the multipliers z at once, by gradients alone.

.. math:: \\min f(x, y)/c_k + g(x, y) - v(x, y, z) \\quad\\text{over}\\quad (x, y) \\in C,\\ z \\ge 0

v is the proximal Lagrangian value function of the lower level; the gap g - v is never negative on C, and zero exactly
where y solves the lower level and z are its multipliers. As :math:`c_k` grows, the gap has to go.
"""

import matplotlib.pyplot as plt
import torch

from hesse.bilevel import (
    LVHBA,
    BilevelProblem,
    Budget,
    problems,
    solve_support_vectors,
    stacked,
    support_vector_costs,
)
from hesse.linalg import Halfspace

# %%
# Two numbers and one limit
# -------------------------
# The lower level wants y = x, and may not exceed 1 - x/2. Its solution, the thick line, has a corner at x = 2/3. The
# upper level would like to sit at the star. Wherever a run starts, it is drawn to the line, and along it to the best
# point there is.

target = torch.tensor([1.5, 1.0], dtype=torch.float64)


def make_problem(x, y):
    return BilevelProblem(
        upper=lambda x, y, batch: ((x - target[0]).square() / 2 + (y - target[1]).square()).sum(),
        lower=lambda x, y, batch: (y - x).square().sum() / 2,
        x0=torch.tensor([x], dtype=torch.float64),
        y0=torch.tensor([y], dtype=torch.float64),
        constraint=lambda x, y: y + x / 2 - 1,
        project_joint=stacked(Halfspace(torch.tensor([0.5, 1.0], dtype=torch.float64), 1.0)),
    )


paths, results = [], []
for x, y in ((-0.6, 1.2), (-0.7, -0.7), (0.4, -0.8), (1.9, -0.6), (2.3, -0.2)):
    solver, path = LVHBA(make_problem(x, y), c0=0.5), []
    follow = lambda row, solver=solver, path=path: path.append((float(solver.x[0]), float(solver.y[0])))  # noqa: E731
    results.append(solver.run(Budget(iterations=1500), follow))
    paths.append(torch.tensor(path))

grid_x, grid_y = torch.meshgrid(torch.linspace(-1, 2.6, 200), torch.linspace(-1.4, 1.5, 200), indexing="xy")
height = (grid_x - 1.5).square() / 2 + (grid_y - 1).square()
fig, axis = plt.subplots(figsize=(7.5, 5), constrained_layout=True)
axis.contour(grid_x, grid_y, height, levels=12, colors="#b8c4cc", linewidths=0.8)
line = torch.linspace(-1.4, 2.6, 300)
axis.fill_between(line, 1 - line / 2, 1.5, color="#9e2a2b", alpha=0.12, lw=0)
axis.plot(line, torch.minimum(line, 1 - line / 2), color="#2a6f97", lw=4, alpha=0.5, label="lower solution y*(x)")
for path in paths:
    axis.plot(*path.T, color="#e09f3e", lw=1.6)
    axis.plot(*path[0], "o", color="#e09f3e", ms=5)
axis.plot(*paths[0][-1], "o", color="#9e2a2b", ms=8, label="where all runs end")
axis.plot(*target, "*", color="#4a4a4a", ms=13, label="best for f alone")
axis.text(1.9, 0.75, "not allowed", color="#9e2a2b")
axis.set(xlabel="x", ylabel="y", xlim=(-1, 2.6), ylim=(-1.4, 1.5))
axis.legend(frameon=False, loc="lower right")
plt.show()

# %%
# A certificate with every result
# -------------------------------
# How large is the gap, are the constraints met, what are the multipliers? At finite c the pair is fitted to f as well
# as to g, so the lower level is solved once more at the final x ("polished"). On the right branch y = 1 - x/2, the
# solution is x = 1 with multiplier x - y = 1/2. Along the way the gap is taken at the running θ and λ; it means
# something once they have caught up.

certificate = results[0].extra["certificate"]
print(
    f"gap {certificate.gap:.1e}, violation {certificate.violation:.1e}, multiplier {certificate.multipliers.item():.4f}"
)
print(f"x = {results[0].x.item():.4f}, y = {results[0].y.item():.4f}, polished {certificate.polished_y.item():.4f}")

fig, axis = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
for result in results:
    axis.semilogy(result.column("iteration"), result.column("gap"), color="#2a6f97", alpha=0.6)
axis.set(xlabel="iteration", ylabel="gap g - v along the way", xlim=(0, 600), ylim=(1e-8, 1))
plt.show()

# %%
# Where the error does fall as 1/c, two iterates extrapolated to c = ∞ are far better than the last. Here 2,000 lower
# variables have infinitely many solutions, of which f likes one best.

case = problems.equality_toy(1000)
result = LVHBA(case.problem).run(Budget(iterations=1000), trace_every=1000)


def error(x):
    return float((x - case.solution).norm() / case.solution.norm())


print(f"error of x {error(result.x):.1e}, extrapolated {error(result.extra['certificate'].extrapolated[0]):.1e}")

# %%
# Three hundred hyper-parameters with three hundred constraints
# -------------------------------------------------------------
# A support-vector machine whose training labels are often wrong, and one cost for the margin error of every row,
# learnt so that forty trusted rows come out right. Its lower level has one constraint a row.

generator = torch.Generator().manual_seed(3)


def clouds(count):
    side = torch.randint(2, (count,), generator=generator).double() * 2 - 1
    spread = torch.randn(count, 2, dtype=torch.float64, generator=generator) * torch.tensor([0.45, 0.9])
    return spread + side[:, None] * torch.tensor([0.7, 0.4]), side


X, clean = clouds(300)
X_valid, t_valid = clouds(40)
X_test, t_test = clouds(2000)
odds = torch.where(clean * X[:, 1] > 0.3, 0.7, 0.15)  # wrong labels are not spread evenly: they turn the line
wrong = torch.rand(300, generator=generator) < odds
t = torch.where(wrong, -clean, clean)
print(f"{100 * wrong.double().mean():.0f} % of the labels are wrong")

problem = support_vector_costs(X, t, X_valid, t_valid)
solver = LVHBA(
    problem, gamma=(10.0, 10.0), lr_x=2.5, lr_y=0.05, lr_saddle=0.05, lr_z=0.1, c0=0.01, p=0.3, polish_steps=0
)
learnt = solver.run(Budget(iterations=1500), trace_every=50).x

# %%
# The learnt costs are judged by the exact machine at them, never by the raw y, which was fitted to the trusted rows.


def accuracy(y):
    return float(((X_test @ y["weight"] + y["bias"]).sign() == t_test).double().mean())


def loss(y):
    return float(problem.upper(None, y, None))


shared = min((solve_support_vectors(X, t, cost) for cost in torch.logspace(-5, 2, 24).double()), key=loss)
own = solve_support_vectors(X, t, learnt.exp())
trusted = solve_support_vectors(X_valid, t_valid, torch.tensor(1.0))
auroc = float((learnt[~wrong][:, None] > learnt[wrong][None]).double().mean())
print(f"test accuracy: learnt costs {accuracy(own):.3f}, best shared cost {accuracy(shared):.3f}")
print(f"               trusted rows alone {accuracy(trusted):.3f}; AUROC of wrong labels {auroc:.3f}")

fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), constrained_layout=True, width_ratios=(1.25, 1))
size = 4 + 50 * (learnt - learnt.min()) / (learnt.max() - learnt.min())
for side, colour in ((1, "#2a6f97"), (-1, "#e09f3e")):
    right = (t == side) & ~wrong
    axes[0].scatter(*X[right].T, s=size[right], color=colour, alpha=0.6, lw=0)
    spoilt = (t == side) & wrong
    axes[0].scatter(*X[spoilt].T, s=size[spoilt], color=colour, edgecolor="#9e2a2b", lw=0.9)
reach = torch.tensor([-3.0, 3.0], dtype=torch.float64)
for y, style, name in ((own, "-", "learnt costs"), (shared, "--", "best shared cost"), (trusted, ":", "trusted alone")):
    line = -(y["weight"][0] * reach + y["bias"]) / y["weight"][1]
    axes[0].plot(reach, line, style, color="#333333", label=f"{name}: {accuracy(y):.3f}")
axes[0].set(xlim=(-2.3, 2.3), ylim=(-2.8, 2.8), title="size: learnt cost; rim: wrong label")
axes[0].legend(frameon=True, loc="upper right", fontsize=8)
for chosen, colour, name in ((~wrong, "#2a6f97", "label right"), (wrong, "#9e2a2b", "label wrong")):
    axes[1].hist(learnt[chosen], bins=30, color=colour, alpha=0.6, label=name)
axes[1].set(xlabel="learnt log cost", ylabel="rows")
axes[1].legend(frameon=False)
plt.show()
