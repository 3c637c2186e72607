"""
Noise on the data, none on the samples
======================================

A curve in twenty dimensions has no density. Fit a generator f(z) + σ ε to points on it by maximum likelihood, and σ
goes to zero, the likelihood to infinity. What is then rewarded is closeness to the curve; how the points are spread
along it hardly matters any more.

`Chae, Kim, Kim and Lin (2023) <https://arxiv.org/abs/2105.04046>`_ blur the data a little before the fit, and leave the
noise out when they sample. The likelihood of the blurred data is bounded, σ settles at the size of the blur, and f(z)
is an estimate of the curve.
"""

import math
import warnings

import matplotlib.pyplot as plt
import torch

from hesse.generative import PerturbedGenerativeMLE, w1_distance

generator = torch.Generator().manual_seed(0)
frame = torch.linalg.qr(torch.randn(20, 2, generator=generator)).Q


def circles(count: int) -> torch.Tensor:
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    side = 2.0 * torch.randint(2, (count,), generator=generator) - 1
    return torch.stack([side + 0.6 * angle.cos(), 0.6 * angle.sin()], 1) @ frame.T


data, fresh = circles(1000), circles(1000)

# %%
# Two circles, three fits
# -----------------------
# A variational autoencoder of three layers, trained on two circles that lie in a plane of R²⁰. The library warns that
# the first fit is degenerate, or nearly so; its σ is far below that of any noise in the data, of which there is none.

fits = {}
for perturbation in (0.0, 0.05, 0.2):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fits[perturbation] = PerturbedGenerativeMLE(perturbation=perturbation, max_iter=2000).fit(data)

fig, axes = plt.subplots(1, 4, figsize=(13, 3.6), sharex=True, sharey=True, constrained_layout=True)
panels = {"the truth": fresh} | {
    f"s = {s:g},  σ = {fit.sigma_:.3f}": fit.sample(1000, generator=generator) for s, fit in fits.items()
}
for axis, (title, points), colour in zip(axes, panels.items(), ("0.35", "#9e2a2b", "#2a6f97", "#e09f3e"), strict=True):
    plane = points @ frame
    axis.scatter(*plane.T, s=5, alpha=0.45, color=colour, linewidth=0)
    w1 = w1_distance(points, circles(1000))
    axis.set(title=title, xlabel=f"W1 to fresh points {w1:.3f}", aspect="equal", xlim=(-1.9, 1.9), ylim=(-1.0, 1.0))
    axis.set_xticks([])
    axis.set_yticks([])
fig.suptitle("1000 samples without noise, in the plane of the circles")
plt.show()

# %%
# Where the mass went
# -------------------
# The same samples by their angle on either circle. An even spread is a straight line; jumps are places with too much
# mass, and flat parts are gaps.


def angles(points: torch.Tensor) -> torch.Tensor:
    plane = points @ frame
    side = plane[:, 0].sign()
    angle = torch.atan2(plane[:, 1], plane[:, 0] - side) % (2 * math.pi)
    return torch.where(side > 0, angle, angle + 2 * math.pi).sort().values / (4 * math.pi)


fig, axis = plt.subplots(figsize=(6.5, 4), constrained_layout=True)
share = torch.linspace(0, 1, 4000)
axis.axhline(0, color="0.35", linewidth=1)
for (s, fit), colour in zip(fits.items(), ("#9e2a2b", "#2a6f97", "#e09f3e"), strict=True):
    where = angles(fit.sample(4000, generator=generator))
    axis.plot(where, share - where, color=colour, label=f"s = {s:g}")
axis.axvline(0.5, color="0.8", linewidth=0.8)
axis.text(0.25, axis.get_ylim()[1], "right circle", ha="center", va="bottom", color="0.4")
axis.text(0.75, axis.get_ylim()[1], "left circle", ha="center", va="bottom", color="0.4")
axis.set(xlabel="place along the circles", ylabel="share of samples before it, minus what is due", xlim=(0, 1))
axis.legend(frameon=False)
plt.show()

# %%
# How much noise
# --------------
# Likelihoods of differently blurred data cannot be compared, but samples can be compared with held-out data. By default
# a whole ladder is fitted, from the largest noise down, each fit starting where the last one ended; the nearest wins.
# The last step, to no noise at all, undoes part of it: there the likelihood is unbounded again, wherever it starts.

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    ladder = PerturbedGenerativeMLE(max_iter=2000).fit(data)
levels = [rung.perturbation / ladder.scale_ for rung in ladder.path_]
with torch.no_grad():
    w1 = [w1_distance(rung.module(torch.randn(1000, 2, generator=generator)), fresh) for rung in ladder.path_]
floor = w1_distance(circles(1000), fresh)

fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), constrained_layout=True)
places = range(len(levels))
axes[0].plot(places, w1, "o-", color="#2a6f97", label="down the ladder, to fresh points")
axes[0].plot(places, [rung.w1 for rung in ladder.path_], "o:", color="#2a6f97", alpha=0.5, label="to held-out data")
cold = {s: w1_distance(fit.sample(1000, generator=generator), fresh) for s, fit in fits.items()}
axes[0].plot(
    [min(places, key=lambda k, s=s: abs(levels[k] - s)) for s in cold],
    list(cold.values()),
    "s",
    color="#9e2a2b",
    label="each from scratch, to fresh points",
)
axes[0].axhline(floor, color="0.5", linestyle="--", linewidth=0.9, label="two samples of the truth")
axes[0].set(xlabel="noise on the data, s", ylabel="W1", ylim=(0, None))
axes[0].set_xticks(places, [f"{level:.2g}" for level in levels])
axes[0].legend(frameon=False)
sigmas = [rung.sigma / ladder.scale_ for rung in ladder.path_]
axes[1].plot(places, sigmas, "o-", color="#5aa469", label="fitted σ")
axes[1].plot(places[:-1], levels[:-1], "_", color="0.3", markersize=18, label="s")
axes[1].set(yscale="log", xlabel="noise on the data, s", ylabel="in units of the scale")
axes[1].set_xticks(places, [f"{level:.2g}" for level in levels])
axes[1].legend(frameon=False)
plt.show()
print(f"chosen s = {ladder.perturbation_:.3f}, sigma = {ladder.sigma_:.3f}")

# %%
# When not to
# -----------
# The disease needs two things: data that are exactly singular, and training long enough for σ to collapse. On one
# circle in the plane σ stays near 0.03 for thousands of steps, and noise on the data only blurs. The ladder then stays
# at or near zero, which is the right answer.
