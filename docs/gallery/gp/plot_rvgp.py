"""
Vector fields on a surface nobody has drawn
===========================================

Wind over a globe, currents in the cortex, the flow on a dynamical attractor: vectors are measured at some points of a
curved surface, and the surface itself is known by points alone. `RVGP` fills in the rest. A graph of neighbours gives
tangent planes, planes give parallel transport, transport gives a Laplacian of vector fields, and its smoothest
eigenfields are the basis of a Gaussian process (`Peach et al., 2024 <https://arxiv.org/abs/2309.16746>`_).
"""

import math

import matplotlib.pyplot as plt
import torch

from hesse.gp import RVGP, TangentBundle, furthest_point_sampling

INK, SEEN, WARM = "#264653", "#d1495b", "magma"

# %%
# A field with six zeros
# ----------------------
# 900 points of a sphere, every tenth of them measured, with noise. Its surface is not told: no mesh, no coordinates.

total = 900
order = torch.arange(total, dtype=torch.float64) + 0.5
z, angle = 1 - 2 * order / total, math.pi * (1 + 5**0.5) * order
X = torch.stack([(1 - z * z).sqrt() * angle.cos(), (1 - z * z).sqrt() * angle.sin(), z], dim=1)
axis = torch.tensor([0.75, 0.1, 0.65], dtype=torch.float64)
slope = X @ torch.diag(torch.tensor([1.3, -1.2, 0.1], dtype=torch.float64))
true = 0.35 * torch.linalg.cross(axis.expand_as(X), X) + slope - (slope * X).sum(1, keepdim=True) * X

bundle = TangentBundle(X, num_neighbors=20)
seen = furthest_point_sampling(X, 90)
noise = 0.15 * torch.randn(90, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
noise = bundle.ambient(seen, bundle.coordinates(seen, noise))
model = RVGP(bundle, num_eigenpairs=80).fit(seen, true[seen] + noise)
mean, covariance = model.predict(return_cov=True)
print(f"relative error {float((mean - true).norm() / true.norm()):.3f}, noise sd {model.noise_**0.5:.3f} (true 0.15)")

# %%
# Left what was measured, in the middle what is made of it, with the zeros that the winding numbers find: dots have
# index +1, crosses (saddles) -1. On a closed surface they sum to its Euler number, 2 here. Right the error bars.

east = torch.tensor([-0.42, 0.9, 0.0], dtype=torch.float64)
out = torch.tensor([0.82, 0.38, 0.42], dtype=torch.float64)
out = out / out.norm()
east = east - (east @ out) * out
east = east / east.norm()
view = torch.stack([east, torch.linalg.cross(out, east)], dim=1)


def arrows(axes, rows, field, colour, width, scale):
    """Draw the half of the sphere that faces us."""
    front = rows[(X[rows] @ out) > 0.05]
    at, by = X[front] @ view, field[(X[rows] @ out) > 0.05] @ view
    axes.quiver(*at.T, *by.T, color=colour, angles="xy", scale_units="xy", scale=scale, width=width, zorder=3)


def globe(axes, title):
    """A disc, without axes."""
    axes.add_patch(plt.Circle((0, 0), 1, color="#f3f1ea", zorder=0))
    axes.set(aspect="equal", xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), title=title)
    axes.axis("off")


every = torch.arange(total)
fig, axes = plt.subplots(1, 3, figsize=(12, 4.4), constrained_layout=True)
globe(axes[0], "measured: 90 of 900 points")
arrows(axes[0], seen, true[seen] + noise, SEEN, 0.009, 6)
globe(axes[1], "posterior mean and its zeros")
arrows(axes[1], every, mean, INK, 0.004, 11)
zeros = bundle.singularities(mean)
for index, marker in ((1, "o"), (-1, "X")):
    places = zeros.location[(zeros.index == index) & (zeros.location @ out > 0)] @ view
    axes[1].scatter(*places.T, s=110, marker=marker, color="#e9c46a", edgecolor=INK, linewidth=1.4, zorder=5)
globe(axes[2], "standard deviation")
front = every[(X @ out) > 0]
spread = (covariance.diagonal(dim1=1, dim2=2).sum(1) / 2).sqrt()
shown = axes[2].scatter(*(X[front] @ view).T, c=spread[front], cmap=WARM, s=45, zorder=2)
at = seen[(X[seen] @ out) > 0]
axes[2].scatter(*(X[at] @ view).T, s=14, color="white", edgecolor="black", linewidth=0.5, zorder=4)
fig.colorbar(shown, ax=axes[2], shrink=0.8)
plt.show()
print("indices:", sorted(zeros.index.tolist()), "sum", int(zeros.index.sum()))

# %%
# The spectrum of the connection
# ------------------------------
# On the sphere eigenvalues are l(l + 1) - 1, each 2(2l + 1) times. The graph of the paper, with weights 0 and 1, knows
# the first ones only roughly; self-tuned Gaussian weights, corrected for density, keep the steps flat. The higher steps
# come out lower than they should: the width of the graph.

fig, axis = plt.subplots(figsize=(7, 3.8), constrained_layout=True)
exact = torch.cat([torch.full((2 * (2 * k + 1),), k * (k + 1.0) - 1) for k in range(1, 6)])
axis.step(range(len(exact)), exact, where="mid", color="0.6", linewidth=5, alpha=0.5, label="sphere, exact")
arms = {"paper's graph, k = 10": TangentBundle(X, 10, graph="paper"), "default graph, k = 20": bundle}
for (name, arm), colour in zip(arms.items(), (SEEN, INK), strict=True):
    values = arm.eigenpairs(len(exact)).eigenvalues[: len(exact)]
    axis.plot(values / values[:6].mean(), ".", color=colour, markersize=4, label=name)
axis.set(xlabel="eigenfield", ylabel="eigenvalue", title="Multiplets of 6, 10, 14, 18, 22")
axis.legend(frameon=False)
plt.show()

# %%
# When distance misleads
# ----------------------
# A roll of paper whose sheets nearly touch. A process in the ambient coordinates takes neighbouring sheets for
# neighbours; along the surface they are far apart. The field turns as one goes along the sheet, 6 % of it is seen. The
# warning is to the point: at a few places an edge still leads across; more points, or fewer neighbours, would help.
#
# The opposite holds too: where sheets are well apart and the coordinates are known, as on the sphere above, an ambient
# process is simpler and more accurate. Use that there.

generator = torch.Generator().manual_seed(1)
t = torch.linspace(3 * math.pi, 7 * math.pi, 20001, dtype=torch.float64)
length = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(0.02 * (1 + t**2).sqrt(), t)])
flat = torch.rand(12000, 2, dtype=torch.float64, generator=generator) * torch.tensor([float(length[-1]), 0.6])
flat = flat[furthest_point_sampling(flat, 900)]
s, h = flat.unbind(1)
t = t[torch.searchsorted(length, s.contiguous()).clamp_max(len(t) - 1)]
roll = torch.stack([0.02 * t * t.cos(), h, 0.02 * t * t.sin()], dim=1)
along = torch.stack([t.cos() - t * t.sin(), torch.zeros_like(t), t.sin() + t * t.cos()], dim=1)
along = along / along.norm(dim=1, keepdim=True)
up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
field = (4 * s).cos()[:, None] * along + (4 * s).sin()[:, None] * up

seen = torch.randperm(900, generator=generator)[:54]
bundle = TangentBundle(roll, num_neighbors=7, dim=2)
found = RVGP(bundle, num_eigenpairs=80).fit(seen, field[seen]).predict()


def ambient(kappa):
    """A squared exponential of the coordinates, with the length scale that turns out best."""
    kernel = torch.exp(-torch.cdist(roll, roll[seen]).square() / (2 * kappa**2))
    return kernel @ torch.linalg.solve(kernel[seen] + 1e-3 * torch.eye(len(seen)), field[seen])


best = min((ambient(k) for k in torch.logspace(-2, 0.5, 30).tolist()), key=lambda f: float((f - field).norm()))
fig, axes = plt.subplots(1, 3, figsize=(12, 4.2), constrained_layout=True)
axes[0].scatter(roll[:, 0], roll[:, 2], c=s, cmap="viridis", s=8)
axes[0].set(aspect="equal", title="the roll from its end")
axes[0].axis("off")
for axis, guess, name in ((axes[1], found, "RVGP"), (axes[2], best, "ambient process, best length scale")):
    error = (guess - field).norm(dim=1)
    shown = axis.scatter(s, h, c=error, cmap=WARM, vmin=0, vmax=1.2, s=34)
    axis.scatter(s[seen], h[seen], s=16, color="white", edgecolor="black", linewidth=0.6)
    relative = float((guess - field).norm() / field.norm())
    axis.set(title=f"{name}: error {relative:.2f}", xlabel="along the sheet", ylabel="height")
fig.colorbar(shown, ax=axes[1:], label="length of the error")
plt.show()
