"""
A Gaussian process that finds the frequencies
=============================================

A network asked for a fast oscillation learns the slow ones first, and often nothing else. :class:`hesse.pde.GPHM` puts
a comb of frequencies into the kernel of a Gaussian process, and lets the equation decide which teeth stay.
"""

# %%
# Three scales in one solution
# ----------------------------
# u'' = f on [0, 1], where u is sin x + 0.1 sin 20x + 0.05 cos 100x. The solver sees f at 150 points and u at both ends.

import math

import matplotlib.pyplot as plt
import torch

from hesse.pde.gp_hm import GPHM, Poisson


def solution(x):
    return torch.sin(x) + 0.1 * torch.sin(20 * x) + 0.05 * torch.cos(100 * x)


def source(x):
    return -torch.sin(x) - 40 * torch.sin(20 * x) - 500 * torch.cos(100 * x)


lines = [k / (2 * math.pi) for k in (1, 20, 100)]
steps, combs = [], []


def watch(step, model):
    steps.append(step)
    kernel = model.kernels_[0]
    combs.append((kernel.frequency.detach().abs().clone(), kernel.weight.detach().clone()))


model = GPHM(Poisson(), [(0, 1)], 150, solution, f_max=30, max_iter=300).fit(source, callback_fn=watch)
x = torch.linspace(0, 1, 700, dtype=torch.float64)
found, deviation = model.predict([x], return_std=True)
error = float((found - solution(x)).norm() / solution(x).norm())
print(f"relative error {error:.1e}, largest standard deviation {float(deviation.max()):.1e}")

# %%
# The comb thins out
# ------------------
# Each line is a tooth; its darkness is its weight. Dotted: the three frequencies that u really has. The slow one is
# invisible in f, whose size it changes by a thousandth, and is left to the teeth near zero.

frequencies = torch.stack([f for f, _ in combs])
weights = torch.stack([w / w.max() for _, w in combs])
figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
axis = axes[0, 0]
axis.plot(x, solution(x), color="0.7", linewidth=3, label="u")
axis.plot(x, found, color="C3", linewidth=1, label="GP-HM")
axis.set(title="solution", xlabel="x")
axis.legend(frameon=False)

axis = axes[0, 1]
strength = ((weights.log10() + 4) / 4).clamp(0, 1).numpy()
for tooth in range(frequencies.shape[1]):
    colours = plt.get_cmap("viridis_r")(strength[:, tooth])
    colours[:, 3] = strength[:, tooth]
    axis.scatter(steps, frequencies[:, tooth], c=colours, s=4, linewidths=0)
for line in lines:
    axis.axhline(line, color="k", linewidth=0.8, linestyle=":")
axis.set(title="teeth of the comb (faded below 1e-4 of the heaviest)", xlabel="step", ylabel="frequency")

axis = axes[1, 0]
axis.semilogy(x, (found - solution(x)).abs().clamp_min(1e-9), color="C3", linewidth=0.8, label="error")
axis.semilogy(x, deviation, color="0.3", label="standard deviation")
axis.set(title="what is left", xlabel="x")
axis.legend(frameon=False)

# %%
# Two dimensions
# --------------
# One kernel an axis: derivatives and the prior need no matrix larger than an axis. Here a product of two waves from
# 20 x 20 points.


def plane(x, y):
    return torch.sin(24 * x) * torch.sin(24 * y)


flat = GPHM(Poisson(), [(0, 1), (0, 1)], 20, plane, n_components=12, f_max=8, max_iter=60)
flat.fit(lambda x, y: -1152 * plane(x, y))
fine = torch.linspace(0, 1, 200, dtype=torch.float64)
picture = flat.predict([fine, fine])
truth = plane(fine[:, None], fine)
print(f"relative error {float((picture - truth).norm() / truth.norm()):.1e}")
axis = axes[1, 1]
image = axis.imshow(picture.T, origin="lower", extent=(0, 1, 0, 1), cmap="RdBu_r")
axis.set(title="sin 24x sin 24y from 20 x 20 points", xlabel="x", ylabel="y")
figure.colorbar(image, ax=axis)
plt.show()
