"""
K-FAC beside SGD and Adam: what a step buys, and what it costs
==============================================================

Deep autoencoders are where first-order methods crawl: gradients shrink through a narrow waist, and the loss sits on a
plateau until some direction of tiny curvature is found. `Martens and Grosse (2015) <https://arxiv.org/abs/1503.05671>`_
precondition every layer with the inverse of a Kronecker product, A for its inputs and S for its output gradients, which
costs little more than a gradient. `George et al. (2018) <https://arxiv.org/abs/1806.03884>`_ measure the eigenvalues in
the basis of that product instead of multiplying them out.

Here :class:`hesse.optim.KFAC` trains an autoencoder 64-48-24-8-24-48-64 on scikit-learn's digits, and so do SGD with
momentum and Adam, each with three settings tried.
"""

import time
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from hesse.optim import KFAC

torch.set_num_threads(1)
COLOURS = {"SGD": "#9e2a2b", "Adam": "#e09f3e", "K-FAC": "#5aa469", "EK-FAC": "#2a6f97"}

pixels = torch.tensor(load_digits().data / 16, dtype=torch.float32)
pixels = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]
train, held_out = pixels[:1500], pixels[1500:]


def autoencoder(seed):
    torch.manual_seed(seed)
    sizes = [64, 48, 24, 8, 24, 48, 64]
    modules = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*modules[:-1])


def error(model, images):
    """Squared reconstruction error an image."""
    with torch.no_grad():
        return float((torch.sigmoid(model(images)) - images).square().sum() / len(images))


# %%
# The training loop is the usual one
# ----------------------------------
# Hooks read what the layers see; nothing else changes. The loss is the binary cross-entropy summed over pixels and
# averaged over images, so the likelihood is Bernoulli. ``kl_clip`` bounds a step by how far it moves the predictions,
# which is what makes lr = 1 safe on the plateau, where the curvature is nearly zero.


def optimiser(name, model, setting):
    if name == "SGD":
        return torch.optim.SGD(model.parameters(), lr=setting, momentum=0.9)
    if name == "Adam":
        return torch.optim.Adam(model.parameters(), lr=setting)
    correction = "ekfac" if name == "EK-FAC" else "kfac"
    every = {"update_every": 5, "eigen_every": 10}  # factors on every fifth step, their bases on every tenth
    return KFAC(model, lr=1.0, damping=setting, kl_clip=0.05, correction=correction, likelihood="bernoulli", **every)


def run(name, setting, steps, seed):
    """Steps made, seconds spent in them, and the error on the training images, every 20 steps."""
    model, generator, seconds = autoencoder(seed), torch.Generator().manual_seed(seed), 0.0
    optimizer = optimiser(name, model, setting)
    curve = [(0, 0.0, error(model, train))]
    for step in range(1, steps + 1):
        x = train[torch.randint(len(train), (250,), generator=generator)]
        start = time.perf_counter()
        optimizer.zero_grad()
        (binary_cross_entropy_with_logits(model(x), x, reduction="sum") / len(x)).backward()
        optimizer.step()
        seconds += time.perf_counter() - start
        if step % 20 == 0:
            curve.append((step, seconds, error(model, train)))
    return curve, error(model, held_out)


# %%
# Settings
# --------
# Three for each, judged by the error at the end of the budget from one initialisation that is not used again. SGD and
# Adam are tuned twice, for 300 steps and for 1000, which take about as long as 300 of K-FAC.

SETTINGS = {
    "SGD": (0.03, 0.1, 0.3),
    "Adam": (0.01, 0.02, 0.04),
    "K-FAC": (1.0, 3.0, 10.0),
    "EK-FAC": (0.3, 1.0, 3.0),
}
SHORT = dict.fromkeys(SETTINGS, 300)
LONG = {"SGD": 1000, "Adam": 1000, "K-FAC": 300, "EK-FAC": 300}


def best(name, steps):
    last = {setting: run(name, setting, steps, seed=0)[0][-1][2] for setting in SETTINGS[name]}
    return min(last, key=last.get)


short = {name: best(name, SHORT[name]) for name in SETTINGS}
long = {name: best(name, LONG[name]) if LONG[name] > SHORT[name] else short[name] for name in SETTINGS}
for name in SETTINGS:
    kind = "lr" if name in ("SGD", "Adam") else "damping"
    print(f"{name:7} {kind} {short[name]} for {SHORT[name]} steps, {long[name]} for {LONG[name]}")

# %%
# By steps, and by the clock
# --------------------------
# Three other initialisations; the line is the middle one, the band spans all three.

runs = {
    (name, steps): [run(name, chosen[name], steps, seed) for seed in (1, 2, 3)]
    for chosen, budget in ((short, SHORT), (long, LONG))
    for name, steps in budget.items()
    if budget is SHORT or steps > SHORT[name]
}
fig, axes = plt.subplots(1, 2, figsize=(9.5, 4), sharey=True, constrained_layout=True)
for axis, column, budget in ((axes[0], 0, SHORT), (axes[1], 1, LONG)):
    for name, colour in COLOURS.items():
        made = runs[name, budget[name]]
        curves = torch.tensor([curve for curve, _ in made])
        place, errors = curves[..., column].median(0).values, curves[..., 2]
        axis.plot(place, errors.median(0).values, color=colour, label=name)
        axis.fill_between(place, errors.amin(0), errors.amax(0), color=colour, alpha=0.2, linewidth=0)
        unseen = sorted(value for _, value in made)[1]
        print(f"{name:7} {budget[name]:5d} steps, {float(curves[:, -1, 1].median()):5.2f} s: held out {unseen:.3f}")
axes[0].set(xlabel="steps", ylabel="squared error an image", yscale="log", title="Per step")
axes[1].set(xlabel="seconds", title="Per second, one thread")
axes[0].set_yticks([1, 2, 5], ["1", "2", "5"])
axes[0].minorticks_off()
axes[1].legend(frameon=False)
plt.show()

# %%
# What to make of it
# ------------------
# Left, a step of either goes about three times as far as one of SGD or Adam. Right, most of that is spent again: on a
# network this small every operation is overhead, and the factors are many small operations. Read the right-hand panel
# before switching. ``update_every`` and ``eigen_every`` set what a step costs; what it buys depends on how badly
# conditioned the problem is.
