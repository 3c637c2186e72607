"""
The inverse Fisher matrix of the last few gradients
===================================================

Preconditioning with the inverse of the empirical Fisher matrix needs d² numbers if it is formed, and d·m if it is not:
of m gradients it has only rank m, plus a multiple of the identity::

    F = λ I + (1/m) Σ_j g_j g_jᵀ

`Frantar, Kurtic and Alistarh (2021) <https://arxiv.org/abs/2107.03356>`_ multiply with its inverse exactly, keep the
last m gradients of a training run in a window, and step along F⁻¹g.
"""

from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from hesse.curvature import MFACInverse
from hesse.optim import MFAC

generator = torch.Generator().manual_seed(0)
COLOURS = {"M-FAC": "#2a6f97", "Adam": "#e09f3e", "SGD": "#9e2a2b", "static": "#9e2a2b", "woodbury": "#2a6f97"}

# %%
# Exact, and in which precision?
# ------------------------------
# On directions that no gradient has, F⁻¹ multiplies by 1/λ; on the gradients themselves by about m/‖g‖², which is far
# less. A recurrence that starts from x/λ must subtract nearly all of it again. In single precision, with the small
# damping that one wants, nothing is left of the answer. ``mode="static"`` is that recurrence; the default carries the
# sums in double precision and keeps G in single, at the same memory.

d, m = 300, 40
grads = torch.randn(m, d, generator=generator)
x = grads[4]
dampings = torch.logspace(-8, 0, 17).tolist()
fig, axis = plt.subplots(figsize=(6.5, 3.8), constrained_layout=True)
for mode in ("static", "woodbury"):
    errors = []
    for damping in dampings:
        F = damping * torch.eye(d, dtype=torch.float64) + grads.double().mT @ grads.double() / m
        exact = torch.linalg.solve(F, x.double())
        found = MFACInverse(grads, damping, mode=mode) @ x
        errors.append(float((found.double() - exact).norm() / exact.norm()))
    label = {"static": "recurrence in float32", "woodbury": "float32 gradients, float64 sums"}[mode]
    axis.loglog(dampings, errors, "o-", color=COLOURS[mode], markersize=4, label=label)
axis.axhline(1, color="0.6", linewidth=0.8)
axis.set(xlabel="damping λ", ylabel="relative error of F⁻¹g", title="A gradient out of the window, 300 coordinates")
axis.legend(frameon=False)
plt.show()

# %%
# Along and across the gradients
# ------------------------------
# Gradients of a small classifier, one an example. Seen in the plane of two of its weights, N(0, F⁻¹) is wide where
# the loss does not care: this is the picture behind Laplace approximations and behind pruning, where [F⁻¹]_ii says
# how much a weight may change. ``sample`` draws from it with two products.

digits = load_digits()
pictures = torch.as_tensor(digits.data / 16, dtype=torch.float32)
labels = torch.as_tensor(digits.target)
torch.manual_seed(0)
classifier = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


inverse = MFACInverse.from_module(
    classifier, loss_fn, (pictures, labels), num_grads=256, per_sample=True, damping=1e-3, generator=generator
)
spread = inverse.diagonal().sqrt()
weights = spread[: 64 * 16].reshape(16, 8, 8)
fig, axes = plt.subplots(2, 8, figsize=(9, 2.7), constrained_layout=True)
for axis, picture in zip(axes.flat, weights, strict=True):
    shown = axis.imshow(picture, cmap="viridis", vmin=float(weights.min()), vmax=float(weights.max()))
    axis.set_axis_off()
fig.colorbar(shown, ax=axes, label="√[F⁻¹]ᵢᵢ")
fig.suptitle("Freedom of the input weights of 16 hidden units, arranged as the pixels they read")
plt.show()

# %%
# The pixels at the edges are blank in every digit: their weights have no gradient and keep the full 1/√λ = 31.6. The
# correlations are there as well, one row of F⁻¹ a product.

centre = 3 * 64 + 27  # a pixel in the middle, read by the fourth unit
row = inverse.row(centre)[: 64 * 16].reshape(16, 8, 8) / (spread[centre] * weights)
row[3, 3, 3] = float("nan")
limit = float(row.nan_to_num().abs().max())
fig, axes = plt.subplots(2, 8, figsize=(9, 2.7), constrained_layout=True)
for axis, picture in zip(axes.flat, row, strict=True):
    shown = axis.imshow(picture, cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_axis_off()
fig.colorbar(shown, ax=axes, label="correlation")
fig.suptitle("… and how they would move with one of them (blank)")
plt.show()

# %%
# A window that follows the training
# ----------------------------------
# The optimiser replaces the oldest gradient at every step and solves a system of order m. Here an auto-encoder with
# eight numbers in the middle, each method with the step length that served it best.


def auto_encoder():
    torch.manual_seed(0)
    widths = (64, 48, 24, 8, 24, 48, 64)
    layers = []
    for i, (width, following) in enumerate(pairwise(widths)):
        layers += [nn.Linear(width, following), nn.Sigmoid() if i == len(widths) - 2 else nn.Tanh()]
    return nn.Sequential(*layers)


def train(make, epochs=20):
    model, order = auto_encoder(), torch.Generator().manual_seed(1)
    optimizer = make(model.parameters())
    losses = []
    for _ in range(epochs):
        for index in torch.randperm(len(pictures), generator=order).split(64):
            batch = pictures[index]
            optimizer.zero_grad()
            (model(batch) - batch).square().sum(1).mean().backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(float((model(pictures) - pictures).square().sum(1).mean()))
    return model, losses


methods = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-2),
    "M-FAC": lambda params: MFAC(params, lr=1e-2, window=64, damping=1e-3),
}
runs = {name: train(make) for name, make in methods.items()}
fig, axis = plt.subplots(figsize=(6.5, 3.8), constrained_layout=True)
for name, (_, losses) in runs.items():
    axis.semilogy(range(1, len(losses) + 1), losses, color=COLOURS[name], label=name)
axis.set_yticks([1, 1.5, 2, 3, 4, 5], ["1", "1.5", "2", "3", "4", "5"])
axis.minorticks_off()
axis.set_xticks([1, 5, 10, 15, 20])
axis.set(xlabel="epoch", ylabel="squared error a digit", title="Digits through eight numbers")
axis.legend(frameon=False)
plt.show()

# %%
# What came out of the eight numbers, the originals above.

with torch.no_grad():
    rows = [pictures[:12], *(model(pictures[:12]) for model, _ in runs.values())]
fig, axes = plt.subplots(len(rows), 12, figsize=(9, 3.2), constrained_layout=True)
for name, line, images in zip(["original", *runs], axes, rows, strict=True):
    for axis, image in zip(line, images, strict=True):
        axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    line[0].set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %%
# Damping
# -------
# M-FAC lives off the noise of mini-batches. Without noise consecutive gradients are nearly equal, their small
# differences span directions of tiny curvature, and F⁻¹ magnifies those: then use a damping near the squared length
# of a gradient. With noise, the damping and the window decide how long the steps are; tune the step length anew when
# you change them.
