"""
Equilibria with a certificate: variance-reduced Halpern
=======================================================

Games, robust training and constrained problems have no single loss whose fall one could watch. What can be watched is
the residual of 0 ∈ F(u) + G(u): how far one plain step would move the point. It is zero at solutions and nowhere else,
and one pass over the data computes it.

Halpern's iteration pulls every step back to where it began, less and less, and so drives the residual of the *last*
point to zero. `Cai, Alacaoglu and Diakonikolas (2024) <https://arxiv.org/abs/2310.02987>`_ let it read √n of the n
components a step instead of all of them.
"""

import math

import matplotlib.pyplot as plt
import torch

from hesse.optim import (
    FiniteSumOperator,
    extra_anchored_gradient,
    extragradient,
    halpern,
    inclusion_residual,
    inexact_halpern,
    matrix_game,
    saddle_operator,
    vr_halpern,
)

BLUE, GREEN, ORANGE, RED, GREY = "#2a6f97", "#5aa469", "#e09f3e", "#9e2a2b", "0.45"
torch.set_default_dtype(torch.float64)

# %%
# Many components
# ---------------
# A game that is a sum: each component draws u to a point of its own and turns it about that point at the same time,
# along coordinates whose strengths lie between 1 and 10⁻⁵. Thirty passes over the data are allowed.


def rotated_sum(n, weakest, generator):
    lam = torch.logspace(weakest, 0, 10).repeat(2)
    scale = 1 + 0.3 * (2 * torch.rand(n, generator=generator) - 1)
    centers = 1 + torch.randn(n, 20, generator=generator)
    center = (scale[:, None] * centers).mean(0)

    def turn(u):
        first, second = u.chunk(2)
        return lam * (u + torch.cat([-second, first]) / 2)

    def component(u, index):
        return turn((scale[index, None] * (u - centers[index])).mean(0))

    return FiniteSumOperator(component, n, 20, full_fn=lambda u: turn(scale.mean() * u - center))


def curve(axis, result, colour, label):
    epochs = [c.evaluations / result.evaluations * result.epochs for c in result.residual_history]
    axis.semilogy(epochs, [c.residual for c in result.residual_history], ".-", color=colour, label=label)


u0 = torch.zeros(20)
games = {n: rotated_sum(n, -5, torch.Generator().manual_seed(n)) for n in (1_000, 10_000, 100_000)}
fig, axes = plt.subplots(1, 2, figsize=(9.5, 4), sharey=True, constrained_layout=True)
for axis, n in zip(axes, (1_000, 100_000), strict=True):
    op, budget = games[n], {"tol": 0.0, "max_epochs": 31}
    curve(axis, extra_anchored_gradient(op, u0, L=1.25, **budget), GREEN, "anchored extragradient")
    curve(axis, extragradient(op, u0, L=1.25, **budget), ORANGE, "extragradient")
    curve(axis, halpern(op, u0, L=1.25, **budget), GREY, "Halpern, full passes")
    ours = vr_halpern(op, u0, L=1.625, generator=torch.Generator().manual_seed(0), **budget)
    curve(axis, ours, BLUE, f"vr_halpern, {ours.num_steps} steps")
    axis.set(title=f"n = {n:,} components", xlabel="passes over the data")
    axis.legend(frameon=False, fontsize=8)
axes[0].set_ylabel("certified residual ‖F(u)‖")
fig.suptitle("√n components a step pay off once there are many")
plt.show()

# %%
# Every dot is a certificate. They cost nothing: they are made where the method reads all components anyway, every 1.5
# passes or so. With a thousand components there is no gain over full passes; it grows with a power of n below one half.

# %%
# Restarts
# --------
# Where the operator is strongly monotone, here with weakest strength 0.1, the pull to a start far away is what holds
# the iteration up. ``restart="residual-halving"`` moves the anchor to the present point whenever the residual has
# halved, and needs no constant for it. The fall becomes linear.

op = rotated_sum(10_000, -1, torch.Generator().manual_seed(1))
fig, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
curve(axis, halpern(op, u0, L=1.25, tol=0.0, max_epochs=150), GREY, "Halpern, full passes")
for restart, colour, label in ((None, ORANGE, "vr_halpern"), ("residual-halving", BLUE, "vr_halpern with restarts")):
    result = vr_halpern(
        op, u0, L=1.625, restart=restart, tol=0.0, max_epochs=150, generator=torch.Generator().manual_seed(0)
    )
    curve(axis, result, colour, label if restart is None else f"{label} ({result.num_restarts})")
axis.set(xlabel="passes over the data", ylabel="certified residual", title="Letting go of the anchor")
axis.legend(frameon=False)
plt.show()

# %%
# A game without cocoercivity
# ---------------------------
# A burglar picks one of 40 houses, a policeman a place to stand. House i holds w_i, and the burglar gets away with
# w_i (1 - exp(-0.8 |i - j|)) if the policeman stands at j. Both must mix, and the game is bilinear: monotone, and
# nothing more. The single-loop method has no proof here, and does leave the equilibrium; `inexact_halpern`, which works
# on the resolvent of F + G, does not. A callback measures both at the same η = 1; what it evaluates is not charged to
# the run.

houses = 40
wealth = torch.randn(houses, generator=torch.Generator().manual_seed(3)).abs()
away = (torch.arange(houses)[:, None] - torch.arange(houses)).abs()
game = matrix_game(wealth[:, None] * (1 - torch.exp(-0.8 * away)))
norm = float(torch.linalg.matrix_norm(game.matrix.to_dense()))
common = {"resolvent": game.resolvent, "tol": 0.0}
seen = []


def look(certificate, u):
    seen.append((certificate.evaluations, inclusion_residual(game.operator, u, resolvent=game.resolvent).residual))


vr_halpern(
    game.operator,
    game.start,
    step=5 / norm,
    max_epochs=2000,
    callback=look,
    generator=torch.Generator().manual_seed(0),
    **common,
)
p = 4 / houses
resolved = inexact_halpern(
    game.operator,
    game.start,
    L=norm,
    batch_size=4,
    inner_step=5 * math.sqrt(p * (1 - p)) / (math.sqrt(houses) + 1),
    max_epochs=6000,
    generator=torch.Generator().manual_seed(0),
    **common,
)
policeman, burglar = game.strategies(resolved.u)

fig, (street, axis) = plt.subplots(1, 2, figsize=(10.5, 4), width_ratios=(1.5, 1), constrained_layout=True)
places = range(houses)
street.bar(places, burglar, color=RED, label="burglar breaks in")
street.bar(places, -policeman, color=BLUE, label="policeman stands")
street.plot(places, 0.1 * wealth, "o", color=ORANGE, markersize=4, label="wealth / 10")
street.axhline(0, color="0.3", linewidth=0.8)
street.set(xlabel="house", ylabel="probability", title=f"Equilibrium, duality gap {game.duality_gap(resolved.u):.4f}")
street.legend(frameon=False, fontsize=8, loc="lower left")
axis.plot([at / houses for at, _ in seen], [residual for _, residual in seen], color=ORANGE, label="vr_halpern")
history = resolved.residual_history
axis.plot([c.evaluations / houses for c in history], [c.residual for c in history], color=BLUE, label="inexact_halpern")
axis.set(xscale="log", yscale="log", xlabel="passes over the data", ylabel="residual, η = 1", title="Two residuals")
axis.legend(frameon=False)
plt.show()

# %%
# A module against an adversary
# -----------------------------
# `saddle_operator` builds F = (∇_x f, -∇_y f) from a loss of one example. Here a regression that has no intercept is
# fitted against the worst common shift of its inputs, which pays for its length.

features = torch.randn(2000, 5, generator=torch.Generator().manual_seed(4))
targets = 1 + features.sum(1) + 0.3 * torch.randn(2000, generator=torch.Generator().manual_seed(5))
model = torch.nn.Linear(5, 1, bias=False)


def loss(x, y, example):
    inputs, target = example
    output = torch.func.functional_call(model, x, (inputs + y["shift"],)).squeeze()
    ridge = sum(w.square().sum() for w in x.values())
    return 0.5 * (output - target) ** 2 + 0.01 * ridge - 5 * y["shift"].square().sum()


problem = saddle_operator(loss, dict(model.named_parameters()), {"shift": torch.zeros(5)}, (features, targets))
result = vr_halpern(
    problem.operator, problem.start, L=20.0, restart="residual-halving", tol=1e-4, max_epochs=300,
    generator=torch.Generator().manual_seed(0),
)  # fmt: skip
weights, adversary = problem.parameters(result.u)
print(f"residual {result.residual:.1e} after {result.epochs:.0f} passes, {result.num_steps} steps")
print("weights", weights["weight"].numpy().round(3), " shift", adversary["shift"].numpy().round(3))
