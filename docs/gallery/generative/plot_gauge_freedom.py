"""
What a diffusion model's samples do not say about its score
===========================================================

A network that denoises need not be the gradient of anything. Add to the true score a field r with div(p r) = 0:
samples and likelihoods stay as they were to the last digit. Whoever reads the field itself (the dimension of the data
from its Jacobian, a likelihood from its trace) reads r as well. `asymmetry` measures how far a field is from a
gradient, `decompose` splits it (`Horvat and Pfister, 2024 <https://arxiv.org/abs/2402.03845>`_).
"""

from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from hesse.generative import SphereScore, asymmetry, decompose, flow, intrinsic_dimension

INK, BAD, GOOD = "#264653", "#d1495b", "#2a9d8f"

# %%
# A rotation nobody sees
# Points of a sphere in five dimensions, whose noised score is known in closed form, and the same score with a rotation
# about one axis added. Both are followed from the same noise down to the data.

score = SphereScore(5)


def turned(amount):
    """The score, and a rotation about the third axis."""

    def field(x, sigma):
        turn = torch.cat([-x[:, 1:2], x[:, :1], 0 * x[:, 2:]], 1)
        return score(x, sigma) + amount / sigma * turn

    return field


generator = torch.Generator().manual_seed(0)
noise = score.sample(900, 3.0, generator=generator)
fields = {"score": score, "with rotation": turned(3.0)}
fig, axes = plt.subplots(1, 3, figsize=(12, 4), constrained_layout=True)
few = noise[:7]
for (name, field), colour in zip(fields.items(), (INK, BAD), strict=True):
    levels = torch.logspace(0.477, -2, 160).tolist()
    path, x = [few], few
    for high, low in pairwise(levels):
        x = flow(field, x, high, low, num_steps=1)
        path.append(x)
    path = torch.stack(path)
    for one in path.unbind(1):
        axes[0].plot(one[:, 0], one[:, 1], color=colour, lw=1)
    axes[0].plot([], [], color=colour, label=name)
axes[0].legend(frameon=False, loc="upper left")
axes[0].set(title="paths from the same noise", aspect="equal")
for axis, (name, field), colour in zip(axes[1:], fields.items(), (INK, BAD), strict=True):
    end = flow(field, noise, 3.0, 0.01, num_steps=160)
    axis.scatter(end[:, 0], end[:, 2], s=4, color=colour)
    off = float((end[:, :3].norm(dim=1) - 1).abs().mean())
    axis.set(title=f"{name}: {off:.3f} off the sphere", aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
plt.show()

# %%
# But the read-outs do
# The data have two dimensions. With the rotation the normal bundle loses one, and the trace formula drifts; the
# gradient part that `decompose` finds from samples reads as the true score does.

sigma = 0.05
points = score.sample(300, generator=generator)
near = score.sample(8000, sigma, generator=generator)
amounts = (0.0, 0.5, 1.0, 2.0, 3.0)
read = {method: {"as it is": [], "gradient part": []} for method in ("normal_bundle", "flipd")}
curl = []
for amount in amounts:
    field = turned(amount)
    split = decompose(field, near, sigma, generator=torch.Generator().manual_seed(1))
    curl.append(float(asymmetry(field, near[:1000], sigma, generator=torch.Generator().manual_seed(2))))
    for name, version in (("as it is", field), ("gradient part", split.conservative)):
        for method in read:
            found = intrinsic_dimension(
                version, points, sigma, method=method, generator=torch.Generator().manual_seed(3)
            )
            read[method][name].append(float(found.dimension.mean()))

fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
for axis, lines, title in zip(axes, read.values(), ("normal bundle", "trace formula"), strict=False):
    axis.axhline(2, color="0.8", lw=6)
    for (name, line), colour in zip(lines.items(), (BAD, GOOD), strict=True):
        axis.plot(amounts, line, "o-", color=colour, label=name)
    axis.set(title=title, xlabel="amount of rotation", ylabel="mean dimension")
axes[0].legend(frameon=False)
axes[2].plot(amounts, curl, "o-", color=INK)
axes[2].set(title="asymmetry of the field", xlabel="amount of rotation", ylim=(0, None))
plt.show()
for amount, value in zip(amounts, curl, strict=True):
    print(f"rotation {amount}: asymmetry {value:.3f}")

# %%
# **Limits.** `decompose` works at one noise level and needs samples of it; what its features do not resolve stays
# in the remainder. An energy model (`EnergyScore`) is a gradient by construction, at about twice the price of
# training; in ``benchmarks/results/gauge_freedom.json`` it reads dimensions better than a free network on every set
# tried, yet at its smallest noise level not reliably right.
