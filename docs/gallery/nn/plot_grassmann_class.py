"""
Classes as subspaces
====================

A softmax layer gives each class a vector and draws all its features towards it. `Wang, Li and Zhang (2023)
<https://arxiv.org/abs/2308.01547>`_ give each class a subspace: a feature is scored by the length of its projection,
and may lie anywhere in the subspace. What varies within a class is then still there when it is asked for later.
"""

import math

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from hesse.nn import GrassmannLinear, class_subspaces, intra_class_variability
from hesse.optim import RiemannianSGD

pixels, digit = load_digits(return_X_y=True)
generator = torch.Generator().manual_seed(0)
order = torch.randperm(len(pixels), generator=generator)
x = torch.as_tensor(pixels, dtype=torch.float32)[order] / 16
y = torch.as_tensor(digit)[order]
coarse = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2, 0])[y]  # three classes, of four, three and three digits
train, test = slice(0, 1200), slice(1200, None)


def layer(fan_in, fan_out):
    """Linear, normalised over the batch."""
    return nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out)


def fit(features, make_head, labels=coarse, rows=train, epochs=30):
    """Train a network that ends in ``features`` numbers and a head; a RiemannianSGD moves all of it."""
    torch.manual_seed(0)
    last = [*layer(128, features), nn.ReLU()] if features > 3 else layer(128, features)
    body = nn.Sequential(*layer(64, 128), nn.ReLU(), *layer(128, 128), nn.ReLU(), *last)
    model = nn.Sequential(body, make_head())
    optimizer = RiemannianSGD(model.parameters(), lr=0.05, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * 18)
    seen, known = x[rows], labels[rows]
    for _ in range(epochs):
        for batch in torch.randperm(len(seen), generator=generator)[:1152].split(64):
            optimizer.zero_grad()
            cross_entropy(model(seen[batch]), known[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


# %%
# Three classes on a sphere
# -------------------------
# A network with three-dimensional features learns to tell three classes, each of three or four digits. Colours are the
# classes, shades the digits, which the network is never told. Softmax gathers each class at a point. A class that is a
# plane has a great circle of directions to use, and its digits lie apart along it.

SHADES = ("Reds", "Blues", "Greens")
heads = {
    "softmax over vectors": lambda: nn.Linear(3, 3),
    "lines, k = 1": lambda: GrassmannLinear(3, 3, 1),
    "planes, k = 2": lambda: GrassmannLinear(3, 3, 2),
}
colours = [(0.0, 0.0, 0.0, 0.0)] * 10
for c, shade in enumerate(SHADES):
    members = [d for d in range(10) if int(coarse[y == d][0]) == c]
    for place, d in enumerate(members):
        colours[d] = plt.get_cmap(shade)(0.4 + 0.55 * place / (len(members) - 1))
fig = plt.figure(figsize=(11, 4.2), constrained_layout=True)
u, v = torch.meshgrid(torch.linspace(0, 2 * math.pi, 40), torch.linspace(0, math.pi, 20), indexing="ij")
for number, (name, make_head) in enumerate(heads.items()):
    model = fit(3, make_head)
    with torch.no_grad():
        f = normalize(model[0](x[test]))
        right = 100 * float((model(x[test]).argmax(1) == coarse[test]).float().mean())
    axis = fig.add_subplot(1, 3, number + 1, projection="3d")
    axis.plot_wireframe(u.cos() * v.sin(), u.sin() * v.sin(), v.cos(), color="0.9", linewidth=0.4)
    for d in range(10):
        axis.scatter(*f[y[test] == d].T, color=colours[d], s=9, depthshade=False)
    if isinstance(model[1], GrassmannLinear):
        angle = torch.linspace(0, 2 * math.pi, 100)
        for c in range(3):
            S = model[1].subspace(c).detach()
            circle = S @ torch.stack([angle.cos(), angle.sin()]) if S.shape[1] == 2 else S * torch.tensor([-1.3, 1.3])
            axis.plot(*circle, color=plt.get_cmap(SHADES[c])(0.8), linewidth=1.2)
    axis.set_title(f"{name}\n{right:.1f} % of the classes right", fontsize=10, y=0.95)
    axis.set_box_aspect((1, 1, 1), zoom=1.3)
    axis.set_axis_off()
plt.show()

# %%
# What a later task can read
# --------------------------
# Networks with 64 features, trained on the three classes alone; then a logistic regression on the frozen features,
# scaled to unit length, reads the ten digits. The angle between features of one class says how much room it takes.
# This is one split and one start. Over the twenty of the benchmark, subspaces of four and of eight dimensions read as
# many digits as softmax over vectors, not more, and more than cosine softmax, at angles some 15° wider.

arms = {"linear": lambda: nn.Linear(64, 3)} | {
    str(k): (lambda k=k: GrassmannLinear(64, 3, k)) for k in (1, 2, 4, 8, 16, 32)
}
fine, angles = [], []
for make_head in arms.values():
    model = fit(64, make_head)
    with torch.no_grad():
        f = normalize(model[0](x))
    probe = LogisticRegression(C=100, max_iter=2000).fit(f[train], y[train])
    fine.append(100 * probe.score(f[test], y[test]))
    angles.append(math.degrees(intra_class_variability(f[test], coarse[test])))
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
for axis, values, title in zip(axes, (fine, angles), ("digits read, %", "angle within a class, °"), strict=True):
    axis.axhline(values[0], color="0.5", linestyle="--", label="softmax over vectors")
    axis.plot(list(arms)[1:], values[1:], "o-", color="#2a6f97", label="subspaces")
    axis.set(xlabel="dimensions of a class", title=title)
axes[1].legend(frameon=False)
plt.show()

# %%
# A trained network goes on with subspaces, and knows what it does not know
# --------------------------------------------------------------------------
# A network trained by softmax on the digits 0 to 6 is given a new head, without training: the subspace of each class
# is the span of the leading directions of its features, as many as keep 98 % of their energy. The length of the longest
# projection then says how well an image belongs to any class: digits 7 to 9, never seen, score lower.

known = torch.arange(1200)[y[:1200] < 7]
model = fit(64, lambda: nn.Linear(64, 7), labels=y, rows=known)
with torch.no_grad():
    f = model[0](x)
head = GrassmannLinear.from_subspaces(class_subspaces(f[known], y[known], 16, energy=0.98))
seen = y[test] < 7
with torch.no_grad():
    score = head.open_set_score(f[test])
    agree = [100 * float((net(f[test]).argmax(1) == y[test])[seen].float().mean()) for net in (model[1], head)]
fig, axis = plt.subplots(figsize=(7, 3.4), constrained_layout=True)
bins = torch.linspace(float(score.min()), 1, 50).tolist()
axis.hist(score[seen], bins, color="#2a6f97", alpha=0.7, density=True, label="digits 0 to 6, test images")
axis.hist(score[~seen], bins, color="#e09f3e", alpha=0.7, density=True, label="digits 7 to 9, never seen")
axis.set(
    xlabel="cosine of the angle to the nearest subspace",
    yticks=[],
    title=f"{min(head.subspace_dims)} to {max(head.subspace_dims)} dimensions a class; "
    f"right on the known: {agree[0]:.1f} % by softmax, {agree[1]:.1f} % by subspaces",
)
axis.title.set_fontsize(10)
axis.legend(frameon=False, loc="upper left")
plt.show()
