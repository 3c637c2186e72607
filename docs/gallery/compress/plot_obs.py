"""
Dropping weights, and letting the others make up for it
=======================================================

The smallest weight is not the one that matters least: a neighbour may be able to take over the work of a large one.
Optimal Brain Surgeon asks the curvature F of the loss. Dropping weight i costs, after the best move of all others::

    ρ_i = w_i² / (2 [F⁻¹]_ii),        δ = -F⁻¹ e_i w_i / [F⁻¹]_ii

F has a row for every weight. `Frantar, Kurtic and Alistarh (2021) <https://arxiv.org/abs/2107.03356>`_ take the
empirical Fisher matrix of some hundred gradients, whose inverse needs no matrix of that size: see the page on
`MFACInverse`.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from hesse.compress import (
    Blocks,
    NOfM,
    OBSPruner,
    attached_masks,
    geometric_sparsities,
    gradual_prune,
)
from hesse.optim import MFAC

digits = load_digits()
order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
pictures = torch.as_tensor(digits.data / 16, dtype=torch.float32)[order]
labels = torch.as_tensor(digits.target)[order]
train, test = (pictures[:1300], labels[:1300]), (pictures[1300:], labels[1300:])


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train_epoch(model, optimizer, generator):
    for index in torch.randperm(1300, generator=generator).split(64):
        optimizer.zero_grad()
        loss_fn(model, (train[0][index], train[1][index])).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model):
    return float((model(test[0]).argmax(1) == test[1]).float().mean())


torch.manual_seed(0)
dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer, generator = torch.optim.Adam(dense.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
for _ in range(40):
    train_epoch(dense, optimizer, generator)
print(f"test accuracy with all weights: {accuracy(dense):.3f}")

# %%
# In one shot
# -----------
# How far can the trained network be cut without any training afterwards? By magnitude, by the diagonal of F, and by
# all of F. ``recompute`` splits the way into rounds that take new gradients: the quadratic model is good near the
# present weights only, and in one round the far end is out of its sight. ``joint`` moves the weights that stay to the
# model's optimum for all that go at once; the published update adds up what is right for each of them alone.

OPTIONS = {"num_grads": 256, "batch_size": 8, "damping": 1e-5}


def surgeon(**options):
    def prune(model, sparsity):
        pruner = OBSPruner(model, loss_fn, generator=torch.Generator().manual_seed(1), **OPTIONS, **options)
        pruner.prune(sparsity, train)

    return prune


@torch.no_grad()
def by_magnitude(model, sparsity):
    matrices = [p for p in model.parameters() if p.ndim > 1]
    sizes = torch.cat([p.abs().flatten() for p in matrices])
    limit = sizes.sort().values[round(sparsity * len(sizes))]
    for p in matrices:
        p.masked_fill_(p.abs() < limit, 0)


arms = {
    "magnitude": (by_magnitude, {"color": "0.5"}),
    "diagonal, 8 rounds": (surgeon(block_size=1, recompute=8), {"color": "#e09f3e"}),
    "M-FAC, 1 round": (surgeon(recompute=1), {"color": "#2a6f97", "linestyle": ":"}),
    "M-FAC, 8 rounds": (surgeon(recompute=8), {"color": "#2a6f97"}),
    "M-FAC, 8 rounds, joint": (surgeon(recompute=8, joint=True), {"color": "#9e2a2b"}),
}
sparsities = [0.6, 0.7, 0.8, 0.9, 0.95]
figure, axis = plt.subplots(figsize=(6.5, 4), constrained_layout=True)
for name, (prune, style) in arms.items():
    found = []
    for sparsity in sparsities:
        model = copy.deepcopy(dense)
        prune(model, sparsity)
        found.append(accuracy(model))
    axis.plot(sparsities, found, marker="o", markersize=4, label=name, **style)
axis.axhline(accuracy(dense), color="0.8", linewidth=0.8)
axis.set(xlabel="share of the weights dropped", ylabel="test accuracy", title="Right after pruning, no training")
axis.legend(frameon=False)
plt.show()

# %%
# What is left
# ------------
# The pixels that a network of a tenth of the weights still reads: the number of first-layer weights a pixel keeps. The
# bright spot at the left edge is a pixel that is set in a single training picture: Adam has made its weights large on
# that one occasion. Size takes that for importance; M-FAC lets a part of them go.

model = copy.deepcopy(dense)
pruner = OBSPruner(model, loss_fn, generator=torch.Generator().manual_seed(1), recompute=8, joint=True, **OPTIONS)
masks = pruner.prune(0.9, train)
figure, axes = plt.subplots(1, 3, figsize=(8.5, 2.9), constrained_layout=True)
reads = masks["0.weight"].sum(0).reshape(8, 8)
smallest = copy.deepcopy(dense)
by_magnitude(smallest, 0.9)
shown = {
    "spread of the pixels": train[0].std(0).reshape(8, 8),
    "weights a pixel keeps: M-FAC": reads,
    "magnitude": (smallest[0].weight != 0).sum(0).reshape(8, 8),
}
for axis, (title, values) in zip(axes, shown.items(), strict=True):
    figure.colorbar(axis.imshow(values.numpy(), cmap="viridis", vmin=0), ax=axis, shrink=0.85)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
plt.show()

# %%
# ``rounds`` tells what the model expected of every round, in nats: where it rises steeply, the next weights are dear.

print("share dropped   expected rise of the loss")
for done in pruner.rounds:
    print(f"{done.sparsity:13.3f}   {done.predicted_increase:.2e}")

# %%
# Patterns that hardware likes
# ----------------------------
# Two of every four weights along the inputs, or tiles that go as wholes. A tile is judged by its weights together,
# ½ w_Bᵀ [F⁻¹]_BB⁻¹ w_B. All at half of the weights, or three quarters:

patterns = {"single weights": None, "2 of 4": NOfM(2, 4), "1 of 4": NOfM(1, 4), "tiles of 1 x 4": Blocks(1, 4)}
print("pattern          0.5    0.75")
for name, pattern in patterns.items():
    line = f"{name:15}"
    for sparsity in (0.5, 0.75):
        if pattern is not None and sparsity > pattern.max_sparsity:
            continue
        model = copy.deepcopy(dense)
        # the last layer has ten rows of 32: every pattern fits
        surgeon(pattern=pattern, recompute=8, joint=True)(model, sparsity)
        line += f"  {accuracy(model):.3f}"
    print(line)

# %%
# Gradually, with training in between
# -----------------------------------
# ``gradual_prune`` prunes a little, trains under masks, and goes on; in the last epoch before the next step the
# learning rate falls, for the quadratic model expects weights at rest. Attached masks hold the dropped weights at zero
# whatever the optimiser does, and no gradient reaches them.

model = copy.deepcopy(dense)
optimizer, generator = torch.optim.Adam(model.parameters(), lr=3e-3), torch.Generator().manual_seed(2)
accuracies = []


def epoch(module, factor):
    for group in optimizer.param_groups:
        group["lr"] = 3e-3 * factor
    train_epoch(module, optimizer, generator)
    accuracies.append(accuracy(module))


pruner = OBSPruner(
    model, loss_fn, generator=torch.Generator().manual_seed(1), recompute=4, joint=True, min_keep=10, **OPTIONS
)
steps = gradual_prune(pruner, geometric_sparsities(0.96, 4), train, epoch, prune_every=6)
figure, axis = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
axis.plot(range(1, len(accuracies) + 1), accuracies, "o-", color="#2a6f97", markersize=3)
for i, step in enumerate(steps):
    axis.axvline(6 * i + 0.5, color="0.8", linewidth=0.8)
    axis.text(6 * i + 0.8, 0.02, f"{step.sparsity:.1%}", transform=axis.get_xaxis_transform(), color="0.4", fontsize=9)
axis.set(xlabel="epoch", ylabel="test accuracy", title="Four steps of pruning, six epochs after each")
plt.show()

# %%
# Fine-tuning by M-FAC with ``sparse=True`` remembers gradients of the living weights only. At the end
# ``remove_masks`` leaves a plain network with zeros, under its plain names.

before = accuracy(model)
optimizer = MFAC(model.parameters(), lr=1e-3, window=64, damping=1e-2, sparse=True)
for _ in range(4):
    train_epoch(model, optimizer, generator)
kept = sum(int(mask.sum()) for mask in attached_masks(model).values())
pruner.remove_masks()
print(f"{kept} of 6464 weights: test accuracy {before:.3f}, fine-tuned {accuracy(model):.3f}")
print(", ".join(model.state_dict()))
