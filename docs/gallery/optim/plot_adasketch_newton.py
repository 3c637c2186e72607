"""
Constraints that hold exactly: sketched Newton steps
====================================================

A penalty makes a constraint likely; a multiplier makes it hold. Newton's method on the conditions ∇L = 0, c = 0 finds
both variables and multipliers in a handful of steps, but each step asks for a linear system, and a point between two
steps needs a yardstick: the Lagrangian is none, for its KKT points are saddles.

`Hong, Na, Mahoney and Kolar (2023) <https://arxiv.org/abs/2305.18379>`_ take an exact augmented Lagrangian as the
yardstick, and solve the systems by random projections that stop as soon as the direction descends on it.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

from hesse.optim import AugmentedLagrangianMerit, ConstrainedModule, adasketch_newton

BLUE, GREEN, ORANGE, RED, GREY = "#2a6f97", "#5aa469", "#e09f3e", "#9e2a2b", "0.45"
torch.set_default_dtype(torch.float64)

# %%
# A yardstick
# -----------
# x₁ - ‖x‖⁴/4 on the unit circle is least at (-1, 0). With the multiplier of that point, λ = 1, the Lagrangian has a
# saddle there: it falls on both sides of the circle. (η₁/2) ‖c‖² and (η₂/2) ‖∇L‖² make a valley of it. Crosses are
# Newton's steps with exact solves, dots those made of random row projections.


def fun(x):
    return x[0] - (x @ x) ** 2 / 4


def con(x):
    return (x @ x).reshape(1) - 1


def path(x0, solver):
    points = [x0]
    result = adasketch_newton(
        fun,
        con,
        x0,
        solver=solver,
        callback=lambda _step, x, _lam: points.append(x),
        generator=torch.Generator().manual_seed(0),
    )
    return torch.stack(points), result.require()


start = torch.tensor([0.5, 1.3])
exact, solution = path(start, "exact")
rows, sketched = path(start, "kaczmarz")
merit = AugmentedLagrangianMerit(fun, con, eta1=1.0, eta2=0.1)
line = torch.linspace(-1.6, 1.6, 100)
grid = torch.cartesian_prod(line, line)
lagrangian = torch.vmap(lambda x: fun(x) + solution.lam @ con(x))(grid)
valley = torch.vmap(lambda x: merit.value(x, solution.lam))(grid)
circle = torch.vmap(con)(grid).reshape(100, 100).T

fig, axes = plt.subplots(1, 2, figsize=(9.5, 5.2), sharey=True, constrained_layout=True)
for axis, values, title in ((axes[0], lagrangian, "Lagrangian"), (axes[1], valley, "exact augmented Lagrangian")):
    low, high = values.quantile(torch.tensor([0.02, 0.9]))
    height = values.clamp(low, high).reshape(100, 100).T
    axis.contourf(line, line, height, levels=28, cmap="YlGnBu_r")
    axis.contour(line, line, circle, levels=[0.0], colors="white", linewidths=2)
    axis.plot(*exact.T, "x-", color=RED, linewidth=1, label=f"exact, {len(exact) - 1} steps")
    axis.plot(*rows.T, "o-", color=ORANGE, markersize=4, linewidth=1, label=f"Kaczmarz, {len(rows) - 1} steps")
    axis.plot(*solution.x, "*", color="white", markersize=13, markeredgecolor="0.2")
    axis.set(title=f"{title} at λ = 1", xlabel="x₁", aspect="equal")
axes[0].set_ylabel("x₂")
axes[1].legend(loc="lower right", fontsize=8)
plt.show()

# %%
# How accurate is enough?
# -----------------------
# A classifier whose weights satisfy five linear equations and have length one. The constants of the paper's proof ask
# for a residual near 1e-9 of the right-hand side; a tenth will do as long as the direction descends, which is tested
# anyway. That is the default, ``accuracy="practical"``.

generator = torch.Generator().manual_seed(1)
features = torch.randn(400, 16, generator=generator)
signs = torch.where(torch.rand(400, generator=generator) < torch.sigmoid(2 * features[:, 0]), 1.0, -1.0)
equations = torch.randn(5, 16, generator=generator)


def loss(x):
    return torch.nn.functional.softplus(-signs * (features @ x)).mean()


def conditions(x):
    return torch.cat([equations @ x - 0.1, (x @ x - 1).reshape(1)])


fig, axis = plt.subplots(figsize=(7.5, 4.2), constrained_layout=True)
for solver, accuracy, colour, label in (
    ("kaczmarz", "theory", ORANGE, "one equation, theory"),
    ("kaczmarz", "practical", ORANGE, "one equation, practical"),
    ("gaussian", "practical", BLUE, "one combination, practical"),
    ("block-gaussian", "theory", GREEN, "eight combinations, theory"),
    ("block-gaussian", "practical", GREEN, "eight combinations, practical"),
):
    result = adasketch_newton(
        loss,
        conditions,
        torch.ones(16),
        solver=solver,
        block_size=8,
        accuracy=accuracy,
        generator=torch.Generator().manual_seed(2),
    )
    work = torch.tensor([step.num_inner_steps for step in result.history]).cumsum(0)
    style = "." + ("--" if accuracy == "theory" else "-")
    axis.loglog(work, [step.kkt for step in result.history], style, color=colour, label=label)
axis.axhline(1e-4, color=GREY, linewidth=0.8)
axis.set(xlabel="projections so far", ylabel="KKT residual", title="A few Newton steps more, a fraction of the work")
axis.legend(frameon=False, fontsize=8)
plt.show()

# %%
# A controlled field
# ------------------
# Row projections lose to Krylov methods where the system is ill-conditioned, as every discretised Laplacian is. The
# outer method is the same: here ``solver="minres"`` and ``hessian="products"``, so that nothing of the size 800 x 800
# is formed. A source z is sought that makes the solution w of -Δw = z look like a picture, at small cost.

size = 20
h = 2 / (size + 1)
line = torch.linspace(-1, 1, size + 2)[1:-1]
radius = (line[:, None] ** 2 + line**2).sqrt()
picture = ((radius - 0.55).abs() < 0.18).to(torch.float64)


def cost(x):
    return 0.5 * (x[: size**2] - picture.reshape(-1)).square().sum() + 1e-4 * x[size**2 :].square().sum()


def poisson(x):
    w = nn.functional.pad(x[: size**2].reshape(size, size), (1, 1, 1, 1))
    around = w[1:-1, :-2] + w[:-2, 1:-1] + w[1:-1, 2:] + w[2:, 1:-1]
    return (around - 4 * w[1:-1, 1:-1]).reshape(-1) + h**2 * x[size**2 :]


result = adasketch_newton(
    cost,
    poisson,
    torch.zeros(2 * size**2),
    solver="minres",
    hessian="products",
    kappa=0.01,
    max_inner_steps=4000,
    rank_tol=1e-12,
    generator=torch.Generator().manual_seed(0),
)
state, source = result.x.reshape(2, size, size)
fig, axes = plt.subplots(1, 3, figsize=(10, 3.3), constrained_layout=True)
for axis, field, title in (
    (axes[0], picture, "wanted"),
    (axes[1], state, "reached, w"),
    (axes[2], source, "source, z"),
):
    bound = float(field.abs().max())
    fig.colorbar(axis.imshow(field, cmap="RdBu_r", vmin=-bound, vmax=bound, extent=(-1, 1, -1, 1)), ax=axis)
    axis.set(title=title, xticks=[], yticks=[])
fig.suptitle(f"{result.num_steps} Newton steps, {result.num_inner_steps} products; violation {result.violation:.0e}")
plt.show()

# %%
# A network that keeps its word
# -----------------------------
# `ConstrainedModule` makes a vector problem of a module. Forty noisy points, a small network, and three things known
# for certain: it passes through the origin, ends at 1, and is flat there.

generator = torch.Generator().manual_seed(4)
x = torch.rand(40, 1, generator=generator)
y = torch.sin(0.5 * math.pi * x) + 0.2 * torch.randn(40, 1, generator=generator)
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))


def objective(model):
    decay = sum(p.square().sum() for p in model.parameters())
    return (model(x) - y).square().mean() + 3e-3 * decay


def slope_at_end(model):
    return torch.func.jacrev(lambda t: model(t.reshape(1, 1)).reshape(()))(torch.tensor(1.0))


known = [lambda m: m(torch.zeros(1, 1)), lambda m: m(torch.ones(1, 1)) - 1, slope_at_end]
line = torch.linspace(-0.1, 1.2, 200).unsqueeze(1)
initial = ConstrainedModule(network, objective, known).x0
fig, axis = plt.subplots(figsize=(7.5, 4), constrained_layout=True)
axis.plot(x, y, "o", color="0.7", markersize=4)
for constraints, colour, label in (([], GREY, "free"), (known, RED, "constrained")):
    problem = ConstrainedModule(network, objective, constraints)
    result = adasketch_newton(
        problem.fun,
        problem.con,
        initial,
        shift="least",
        xi_b=1e-3,
        tol=1e-5,
        max_steps=200,
        generator=torch.Generator().manual_seed(5),
    )
    problem.load_(result.x)
    with torch.no_grad():
        axis.plot(line, network(line), color=colour, linewidth=2, label=f"{label}, {result.num_steps} steps")
    print(f"{label}: {result.status}, KKT {result.kkt:.1e}, violation {result.violation:.1e}")
axis.plot([0, 1], [0, 1], "s", color=RED, markersize=7)
axis.plot([0.88, 1.12], [1, 1], color=RED, linewidth=1, linestyle=":")
axis.set(xlabel="input", ylabel="output", title="Two values and a slope, exactly")
axis.legend(frameon=False)
plt.show()
