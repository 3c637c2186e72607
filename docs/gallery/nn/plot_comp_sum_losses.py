"""
Cross-entropy and its relatives
===============================

One number τ leads from the sum-exponential loss (0) over cross-entropy (1) to the mean absolute error (2). `Mao, Mohri
and Zhong (2023) <https://arxiv.org/abs/2304.07288>`_ give all of them the same kind of guarantee, a bound on the
zero-one error from the value of the loss, and turn them into losses for training against an adversary.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from hesse.nn import (
    PGDAttack,
    comp_sum_loss,
    consistency_bound,
    ensemble_attack,
    pgd,
    pgd_at_loss,
    smooth_adversarial_loss,
)

TAUS = (0.0, 0.5, 1.0, 1.5, 2.0)
COLOURS = dict(zip(TAUS, ("#9e2a2b", "#e09f3e", "0.25", "#5aa469", "#2a6f97"), strict=True))

# %%
# What a loss does, and what it promises
# --------------------------------------
# Small τ drives hard at examples that are still wrong; at τ = 2 an example of probability p pulls with p (1 - p), so
# that a label the network does not believe is let go. The price is in the guarantee: up to τ = 1 the number of classes
# does not matter, beyond it enters the bound as a factor (ten classes here). At τ = 2 the bound is a straight line,
# better for small excess losses and void for large ones.

p = torch.linspace(0.02, 0.99, 200)
logits = torch.stack([p.log(), (1 - p).log()], 1)  # two classes, the first is right
first = torch.zeros(len(p), dtype=torch.long)
gap = torch.logspace(-5, 0, 200, dtype=torch.float64)
fig, axes = plt.subplots(1, 3, figsize=(11, 3.5), constrained_layout=True)
for tau, colour in COLOURS.items():
    h = logits.clone().requires_grad_()
    loss = comp_sum_loss(h, first, tau, reduction="none")
    (slope,) = torch.autograd.grad(loss.sum(), h)
    axes[0].plot(p, loss.detach(), color=colour, label=f"τ = {tau:g}")
    axes[1].plot(p, slope[:, 0].abs(), color=colour)
    axes[2].loglog(gap, consistency_bound(gap, tau, 10), color=colour)
axes[0].set(title="Loss", xlabel="probability of the label", ylim=(0, 5))
axes[1].set(title="Pull on the label's score", xlabel="probability of the label", ylim=(0, 2))
axes[2].set(title="Bound on the excess error", xlabel="excess loss", ylim=(1e-3, 1.1))
axes[0].legend(frameon=False)
plt.show()

# %%
# Wrong labels
# ------------
# Handwritten digits with 40 % of the training labels replaced by wrong ones. Cross-entropy first learns the digits and
# then the mistakes, τ = 0 more so. Losses between cross-entropy and the absolute error mostly leave the mistakes alone;
# the absolute error itself never gets as far as they do.

pixels, digit = load_digits(return_X_y=True)
x = torch.as_tensor(pixels, dtype=torch.float32) / 16
y = torch.as_tensor(digit)
generator = torch.Generator().manual_seed(0)
order = torch.randperm(len(x), generator=generator)
train, test = order[:1200], order[1200:]
wrong = torch.rand(1200, generator=generator) < 0.4
noisy = torch.where(wrong, (y[train] + torch.randint(1, 10, (1200,), generator=generator)) % 10, y[train])


def network(activation):
    """64-128-128-10, the same start every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), activation(), nn.Linear(128, 128), activation(), nn.Linear(128, 10))


def accuracy(model, inputs):
    """In per cent, on the test digits."""
    with torch.no_grad():
        return 100 * float((model(inputs).argmax(1) == y[test]).double().mean())


fig, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
for tau in (0.0, 1.0, 1.5, 1.7, 2.0):
    model = network(nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = []
    for _ in range(80):
        for rows in torch.randperm(1200, generator=generator).split(100):
            optimizer.zero_grad()
            comp_sum_loss(model(x[train[rows]]), noisy[rows], tau).backward()
            optimizer.step()
        history.append(accuracy(model, x[test]))
    axis.plot(history, color=COLOURS.get(tau, "#40916c"), label=f"τ = {tau:g}", linestyle="--" if tau == 1.7 else "-")
axis.set(xlabel="epoch", ylabel="accuracy on clean digits, %", ylim=(50, 100), title="40 % of the labels are wrong")
axis.legend(frameon=False, ncols=5, loc="lower center")
plt.show()

# %%
# An adversary
# ------------
# ``smooth_adversarial_loss`` is the loss at the clean digit plus the largest change of its margins within the ball: no
# maximum of the loss itself. It keeps more clean accuracy than training on attacks (PGD-AT) and is about as robust;
# with τ = 0 and ν = 3 it is more robust, most clearly where the ball grows past the one of the training. Every accuracy
# is the worst of three attacks for each digit.

EPS = 0.15
attack = PGDAttack(EPS, num_steps=5, generator=generator)
objectives = {
    "plain": lambda net, a, b: comp_sum_loss(net(a), b),
    "PGD-AT": lambda net, a, b: pgd_at_loss(net, a, b, attack=attack),
    "ADV-COMP-SUM, τ = 0.2": lambda net, a, b: smooth_adversarial_loss(net, a, b, attack=attack, tau=0.2),
    "ADV-COMP-SUM, τ = 0, ν = 3": lambda net, a, b: smooth_adversarial_loss(net, a, b, attack=attack, tau=0.0, nu=3.0),
}
models = {}
for name, objective in objectives.items():
    models[name] = model = network(nn.SiLU)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=360)
    for _ in range(30):
        for rows in train[torch.randperm(1200, generator=generator)].split(100):
            optimizer.zero_grad()
            objective(model, x[rows], y[rows]).backward()
            optimizer.step()
            schedule.step()

radii = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
fig, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
for (name, model), colour in zip(models.items(), ("0.5", "#9e2a2b", "#2a6f97", "#5aa469"), strict=True):
    worst = [
        ensemble_attack(model, x[test], y[test], eps=eps, attacks=("ce", "dlr", "margin"), generator=generator)
        for eps in radii
    ]
    axis.plot(radii, [100 * result.robust_accuracy for result in worst], "o-", color=colour, label=name)
axis.axvline(EPS, color="0.8", zorder=0)
axis.text(EPS, 98, " radius of the training", color="0.5", va="top")
axis.set(xlabel="radius of the ball, ℓ∞", ylabel="robust accuracy, %", ylim=(0, 100))
axis.legend(frameon=False)
plt.show()

# %%
# What it takes to fool them
# --------------------------
# The same eight digits, each moved by the smallest radius (in steps of 0.02) at which the attack succeeds. Below each:
# what the network reads instead, and the radius. Specks will do for the plain network; the others have to be shown
# something half-way to another digit.

shown, label = x[test[:8]], y[test[:8]]
fig, axes = plt.subplots(4, 8, figsize=(9, 5.6), constrained_layout=True)
for axis, picture in zip(axes[0], shown, strict=True):
    axis.imshow(picture.view(8, 8), cmap="gray_r", vmin=0, vmax=1)
axes[0, 0].set_ylabel("clean", fontsize=8)
for line, name in zip(axes[1:], ("plain", "PGD-AT", "ADV-COMP-SUM, τ = 0.2"), strict=True):
    model, left = models[name], list(range(8))
    line[0].set_ylabel(name.removesuffix(", τ = 0.2"), fontsize=8)
    for step in range(1, 30):
        eps = 0.02 * step
        moved = pgd(model, shown, label, "margin", eps=eps, num_steps=40, generator=generator)
        read = model(moved).argmax(1)
        for i in [i for i in left if read[i] != label[i]]:
            left.remove(i)
            line[i].imshow(moved[i].view(8, 8), cmap="gray_r", vmin=0, vmax=1)
            line[i].set_xlabel(f"{int(read[i])}  at {eps:.2f}", color="#9e2a2b", labelpad=1, fontsize=8)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
plt.show()
