"""
What a score model can hide from its samples
============================================

A diffusion model's vector field is meant to be a score, hence a gradient, but the network may return what it likes.
Write v = ∇ log p + r. If div(p r) = 0, then as many points come in everywhere as r takes away: samples and likelihoods
stay exact, however large r is.

`Horvat and Pfister (2024) <https://arxiv.org/abs/2402.03845>`_ call this gauge freedom. It is no longer free once
the field itself is read, for instance to count the dimensions of the data.
"""

from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from hesse.generative import (
    Denoiser,
    EnergyScore,
    SphereScore,
    VectorNetwork,
    asymmetry,
    decompose,
    flow_log_density,
    intrinsic_dimension,
    probability_flow,
    train_denoiser,
)

generator = torch.Generator().manual_seed(0)
BLUE, RED, GREEN = "#2a6f97", "#9e2a2b", "#5aa469"
score = SphereScore(3)


def turned(amount, base=score):
    """The score plus a rotation about the z axis, a gauge field of the sphere."""

    def field(x, sigma):
        return base(x, sigma) + amount / sigma * torch.cat([-x[:, 1:2], x[:, :1], 0 * x[:, 2:]], 1)

    return field


# %%
# Two fields, one law
# -------------------
# The sphere's score in closed form, and the same with a rotation on top. Trajectories of the probability flow, seen
# from above, start at the same noise and end at different points, yet the points are spread alike, and the log density
# that the flow computes is the same number.

start = score.sample(600, 2.0, generator=generator)
levels = [2.0 * (0.02 / 2.0) ** (k / 160) for k in range(161)]
spots = score.sample(30, 0.05, generator=generator)
truth = score.log_density(spots, 0.05)
fig, axes = plt.subplots(1, 3, figsize=(12, 4.1), sharex=True, sharey=True, constrained_layout=True)
for axis, amount, colour in zip(axes, (0.0, 1.0, 3.0), (BLUE, GREEN, RED), strict=True):
    field, path = turned(amount), [start]
    for high, low in pairwise(levels):
        path.append(probability_flow(field, path[-1], high, low, num_steps=1))
    walk = torch.stack(path)
    axis.scatter(*walk[-1, :, :2].T, s=5, color="0.55", linewidth=0, alpha=0.7)
    axis.plot(walk[:, :12, 0], walk[:, :12, 1], color=colour, linewidth=1.1)
    axis.scatter(*walk[-1, :12, :2].T, s=22, color=colour, zorder=3)
    found = flow_log_density(
        field, spots, 0.05, 2.0, terminal_fn=lambda x: score.log_density(x, 2.0), num_steps=60 + int(40 * amount)
    )
    error = float((found - truth).abs().max())
    axis.set(
        title=f"rotation c = {amount:g}",
        xlabel=f"largest error of log p: {error:.0e} nats",
        aspect="equal",
        xlim=(-2.6, 2.6),
        ylim=(-2.6, 2.6),
    )
    axis.set_xticks([])
    axis.set_yticks([])
fig.suptitle("600 samples of the sphere, from above, and the way twelve of them took")
plt.show()

# %%
# The read-outs see it
# --------------------
# Three ways to count the dimensions of the sphere, now in R⁵, from the field at one noise level. The singular values of
# scores around a point should span the three normal directions; the rotation is larger than they are in one tangent
# direction, which is then taken for a normal one. The trace formula adds |r|² to its answer.
#
# `decompose` fits the gradient ∇φ nearest to v under p. What is left is r, and the estimates from ∇φ are right again.
# No true score is needed, only samples and the field.

sphere, sigma = SphereScore(5), 0.05
points = sphere.sample(200, generator=generator)
noised = sphere.sample(5000, sigma, generator=generator)
amounts = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0)
names = {"normal_bundle": "normal bundle", "flipd": "trace formula", "jacobian": "Jacobian"}
read = {name: [] for name in names}
mended = {name: [] for name in names}
for amount in amounts:
    field = turned(amount, sphere)
    split = decompose(field, noised, sigma, num_features=300, generator=generator)
    for name in names:
        for found, source in ((read, field), (mended, split.conservative)):
            estimate = intrinsic_dimension(source, points, sigma, method=name, generator=generator)
            found[name].append(float(estimate.dimension.mean()))

fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True, constrained_layout=True)
for axis, found, title in ((axes[0], read, "the field as it is"), (axes[1], mended, "its gradient part")):
    for name, colour, marker in zip(names, (RED, "#e09f3e", BLUE), "os^", strict=True):
        axis.plot(amounts, found[name], marker=marker, color=colour, label=names[name])
    axis.axhline(2, color="0.5", linestyle="--", linewidth=0.9)
    axis.set(title=title, xlabel="rotation c", ylim=(0, 8.5))
axes[0].set_ylabel("dimension, mean over points")
axes[0].legend(frameon=False)
plt.show()

# %%
# Trained networks
# ----------------
# One trunk, two uses: a free denoiser, and an energy whose gradient is the score. The singular values of the denoiser's
# Jacobian at data points should be two near one and three near zero; one half is the line between. The energy model
# learns sooner, in steps if not in seconds, each of which costs it about twice as much. Trained for three times as long
# the free model reads just as well: what went wrong before was the fit, not a rotation, and its asymmetry was small.
# An asymmetry near zero is therefore no sign that a field is right, nor is a larger one that it is wrong.

data = SphereScore(5).sample(20_000, generator=generator).float()
models = {}
for title, make, steps in (
    ("free, 1500 steps", Denoiser, 1500),
    ("free, 4500 steps", Denoiser, 4500),
    ("energy, 1500 steps", EnergyScore, 1500),
):
    torch.manual_seed(0)
    models[title] = make(VectorNetwork(5), 0.45)
    train_denoiser(models[title], data, data_sd=0.45, sigma_max=10.0, max_steps=steps, generator=generator)

fig, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True, constrained_layout=True)
for axis, (title, model), colour in zip(axes, models.items(), (RED, "#e09f3e", BLUE), strict=True):
    x = data[:300]
    found = intrinsic_dimension(model.score, x, sigma)
    for k in range(5):
        side = k + 1 + 0.3 * (torch.rand(len(x), generator=generator) - 0.5)
        axis.scatter(side, found.spectrum[:, k].detach(), s=6, color=colour, alpha=0.35, linewidth=0)
    axis.axhline(0.5, color="0.5", linestyle="--", linewidth=0.9)
    right = float((found.dimension == 2).float().mean())
    turn = float(asymmetry(model.score, x, sigma, generator=generator).detach())
    axis.set(title=title, xlabel=f"right at {right:.0%} of points; asymmetry {turn:.0e}")
    axis.set_xticks(range(1, 6))
axes[0].set_ylabel("singular value of the denoiser's Jacobian")
plt.show()
