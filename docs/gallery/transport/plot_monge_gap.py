"""
Two maps with the same image: which one is cheap?
=================================================

A network T is to carry one cloud of points to another. A loss that compares T(x) with the target, as the Sinkhorn
divergence does, is content with *any* map that has the right image: points may cross, turn, or change sides. The Monge
gap of `Uscidda and Cuturi (2023) <https://arxiv.org/abs/2302.04953>`_ compares what the pairs (x, T(x)) cost with what
the best pairing of the same points would. It is zero for optimal maps alone, for any cost, and says nothing about the
target; the two together say all.
"""

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.collections import LineCollection
from sklearn.datasets import make_moons, make_s_curve

from hesse.transport import MongeMap, monge_gap, optimality_ratio

BLUE, RED, GREY = "#2a6f97", "#9e2a2b", "0.75"


def turned(points, angle):
    c, s = math.cos(angle), math.sin(angle)
    return torch.as_tensor(points).float() @ torch.tensor([[c, s], [-s, c]])


moon, _ = make_moons(n_samples=(2500, 0), noise=0.05, random_state=0)
letter, _ = make_s_curve(n_samples=2500, noise=0.05, random_state=1)
X = turned(moon, math.pi / 6) + torch.tensor([0.0, -0.5])
Y = 0.6 * turned(letter[:, [2, 0]].copy(), math.pi / 2) + torch.tensor([1.0, -2.0])
train, test = X[:2000], X[2000:]

# %%
# With and without
# ----------------
# The cost is the distance |x - y|. Both networks start at the same random weights and see the same batches. The image
# is about as good in both pictures; the routes are not.

settings = {"cost": "euclidean", "form": "direct", "max_iter": 600, "batch_size": 200}
fits = {lam: MongeMap(lam=lam, **settings).fit(train, Y) for lam in (0.0, 1.0)}

fig, axes = plt.subplots(1, 2, figsize=(10, 5), sharex=True, sharey=True, constrained_layout=True)
for axis, (lam, model) in zip(axes, fits.items(), strict=True):
    images = model.transform(test)
    found = optimality_ratio(test, images, "euclidean")
    axis.scatter(*Y[:800].T, s=6, color=GREY, label="target")
    axis.scatter(*test.T, s=6, color=BLUE, label="source")
    axis.add_collection(LineCollection(torch.stack([test, images], 1)[:90].numpy(), colors="0.35", linewidths=0.6))
    axis.scatter(*images.T, s=6, color=RED, label="T(source)")
    axis.set(aspect="equal", xticks=[], yticks=[])
    axis.set_title(f"{'with' if lam else 'without'} the gap: {100 * found.ratio:.1f} % dearer than need be")
axes[0].legend(frameon=False, loc="lower left", markerscale=3)
plt.show()

# %%
# What the number means
# ---------------------
# The gap of a batch is computed with entropic transport, whose bias shifts its zero: for an optimal map the value lies
# between -eps log n and 0 under the convention used by default. Turn the optimal map x → x + (3, 0) by an angle about
# the centre of its image, and follow the gap: it grows from its least value whatever eps is, and the exact one from
# zero. Only the slope matters in training.

x = torch.randn(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
angles = torch.linspace(-math.pi, math.pi, 49, dtype=torch.float64)
fig, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
for eps, shade in ((0.0, "#012a4a"), (0.1, "#2a6f97"), (1.0, "#7fb3d5")):
    gaps = []
    for angle in angles:
        c, s = angle.cos(), angle.sin()
        images = x @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])]) + torch.tensor([3.0, 0.0])
        gaps.append(float(monge_gap(x, images, eps=eps)))
    axis.plot(angles, gaps, color=shade, label=f"eps = {eps:g}" if eps else "exact")
axis.axhline(0, color="0.7", linewidth=0.8)
axis.set(xlabel="angle of the turn, rad", ylabel="Monge gap, squared units", title="Every turn is seen")
axis.legend(frameon=False)
plt.show()

# %%
# On a sphere
# -----------
# Any cost will do. For half the squared angle the map x → normalise(x + F(x)) never leaves the sphere. Costs and
# divergence have different curvature here, so the gap gets more weight.

generator = torch.Generator().manual_seed(2)


def cloud(centre, n):
    return torch.nn.functional.normalize(torch.tensor(centre) + 0.3 * torch.randn(n, 3, generator=generator), dim=1)


north, east = cloud([0.0, 0.0, 1.0], 2000), cloud([0.7, -0.7, 0.0], 2000)
globe = MongeMap(cost="geodesic", lam=5.0, max_iter=300, batch_size=200).fit(north, east)
fresh = cloud([0.0, 0.0, 1.0], 150)
images = globe.transform(fresh)
print(f"{100 * optimality_ratio(fresh, images, 'geodesic').ratio:.2f} % dearer than the best pairing")

fig = plt.figure(figsize=(6, 6), constrained_layout=True)
axis = fig.add_subplot(projection="3d")
u, v = torch.meshgrid(torch.linspace(0, 2 * math.pi, 49), torch.linspace(0, math.pi, 25), indexing="ij")
shell = [(u.cos() * v.sin()).numpy(), (u.sin() * v.sin()).numpy(), v.cos().numpy()]
axis.plot_wireframe(*shell, color="0.88", linewidth=0.5)
for start, end in zip(fresh[:60], images[:60], strict=True):
    steps = torch.linspace(0, 1, 20).unsqueeze(1)
    arc = torch.nn.functional.normalize(start + steps * (end - start), dim=1)
    axis.plot(*arc.T, color="0.4", linewidth=0.7)
axis.scatter(*fresh.T, s=8, color=BLUE, label="source")
axis.scatter(*images.T, s=8, color=RED, label="T(source)")
axis.set_axis_off()
axis.set_box_aspect((1, 1, 1), zoom=1.3)
axis.view_init(elev=25, azim=-75)
axis.legend(frameon=False)
plt.show()
