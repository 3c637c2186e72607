"""
Gaunt products: multiply functions instead of tensors
=====================================================

Networks for molecules and point clouds carry features that turn with the frame: a scalar, a vector, and so on up to
some degree L. Their interaction is the Clebsch-Gordan product, at a cost that grows as the sixth power of L.
`Luo, Chen and Krishnapriyan (2024) <https://arxiv.org/abs/2401.10216>`_ read such a feature as the coefficients of a
function on the sphere. Multiplying two functions point by point commutes with rotations all by itself, and it is cheap.
"""

import time
from statistics import median

import matplotlib.pyplot as plt
import torch

from hesse.equivariant.gaunt import (
    antisymmetric_tensor_product,
    gaunt_many_body,
    gaunt_tensor_product,
    rotate,
    spherical_harmonics,
)

generator = torch.Generator().manual_seed(1)

# %%
# A product on the sphere
# -----------------------
# Two functions of degree 4, their product of degree 8, and their Poisson bracket, which holds the paths that the
# product leaves out: those with an odd sum of degrees, the cross product of vectors among them. The bracket vanishes
# where the two functions have parallel gradients.

polar, azimuth = torch.meshgrid(
    torch.linspace(0, torch.pi, 61, dtype=torch.float64),
    torch.linspace(-torch.pi, torch.pi, 121, dtype=torch.float64),
    indexing="ij",
)
longitude_latitude = azimuth.numpy(), (torch.pi / 2 - polar).numpy()
points = torch.stack([polar.sin() * azimuth.sin(), polar.cos(), polar.sin() * azimuth.cos()], -1)
decay = torch.cat([torch.full((2 * degree + 1,), 0.8**degree, dtype=torch.float64) for degree in range(5)])
x, y = (decay * torch.randn(25, dtype=torch.float64, generator=generator) for _ in range(2))
pictures = {
    "f": x,
    "g": y,
    "f · g": gaunt_tensor_product(x, y, 4, 4, 8),
    "{f, g}": antisymmetric_tensor_product(x, y, 4, 4, 7),
}
fig, axes = plt.subplots(1, 4, figsize=(11, 2.1), subplot_kw={"projection": "mollweide"}, constrained_layout=True)
for axis, (name, z) in zip(axes, pictures.items(), strict=True):
    values = (spherical_harmonics(round(len(z) ** 0.5) - 1, points) @ z).numpy()
    size = abs(values).max()
    axis.pcolormesh(*longitude_latitude, values, cmap="RdBu", vmin=-size, vmax=size, shading="gouraud")
    axis.contour(*longitude_latitude, values, levels=[0.0], colors="0.2", linewidths=0.8)
    axis.set(title=name, xticks=[], yticks=[])
plt.show()

# %%
# Turn the inputs, and the output turns
# -------------------------------------
# To round-off, at any degree, because the grid integrates every product of three harmonics exactly. In a mirror, the
# bracket changes sign beside: it makes pseudo-features, ``parity=-1``.

mirror = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator)).Q
mirror = -mirror * torch.linalg.det(mirror)
turned = [rotate(a[None], mirror)[0] for a in (x, y)]
for name, product, l3, parity in (
    ("product", gaunt_tensor_product, 8, 1),
    ("bracket", antisymmetric_tensor_product, 7, -1),
):
    wanted = rotate(product(x, y, 4, 4, l3)[None], mirror, parity=parity)[0]
    print(f"{name}: {(product(*turned, 4, 4, l3) - wanted).abs().max():.1e}")

# %%
# What it costs
# -------------
# 64 products L x L -> 2L. The back ends give the same numbers. "cg" sums over all coefficients, as a Clebsch-Gordan
# product does; "fourier" is the form of the paper, "dense" and "grid" take samples on the sphere, at once or order by
# order. On a CPU, the FFT loses to plain samples at all of these degrees.


def milliseconds(degree, backend):
    a, b = (torch.randn(64, (degree + 1) ** 2, generator=generator) for _ in range(2))
    taken = []
    for _ in range(9):
        start = time.process_time()
        gaunt_tensor_product(a, b, degree, degree, 2 * degree, backend=backend)
        taken.append(time.process_time() - start)
    return 1e3 * median(taken[2:])


ranges = {"cg": range(1, 7), "fourier": range(1, 11), "dense": range(1, 11), "grid": range(1, 17)}
fig, axis = plt.subplots(figsize=(6.5, 4), constrained_layout=True)
for (name, degrees), colour in zip(ranges.items(), ("#9e2a2b", "#e09f3e", "#5aa469", "#2a6f97"), strict=True):
    axis.loglog(
        degrees, [milliseconds(degree, name) for degree in degrees], "o-", color=colour, label=name, markersize=4
    )
axis.set(xlabel="largest degree L", ylabel="milliseconds", title="64 products in float32, processor time")
axis.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
axis.minorticks_off()
axis.legend(frameon=False)
plt.show()

# %%
# Blind in one eye
# ----------------
# A handedness is a pseudoscalar, and products of functions never make one. Four blocks can be put together in two ways
# that are mirror images. Any invariant built from products of their density's coefficients is the same for both; one
# bracket is enough to tell them apart.

left = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.float64)
right = left * torch.tensor([1, -1, 1])


def density(corners, power):
    """Σ |r|ᵖ Y(r) over the blocks, seen from their centre."""
    centred = corners - corners.mean(0)
    return (centred.norm(dim=-1, keepdim=True) ** power * spherical_harmonics(3, centred)).sum(0)


def invariants(corners):
    a, b = density(corners, 1), density(corners, 3)
    even = gaunt_many_body(a, 3, 3, 2)
    odd = antisymmetric_tensor_product(a, b, 3, 3, 3)
    return [gaunt_tensor_product(part, even, 3, 3, 0).item() for part in (b, odd)]


fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), constrained_layout=True)
values = {name: invariants(corners) for name, corners in (("left", left), ("right", right))}
for axis, place, title in zip(axes, (0, 1), ("products only", "with one bracket"), strict=True):
    axis.bar(values.keys(), [row[place] for row in values.values()], color=["#2a6f97", "#e09f3e"], width=0.5)
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set(title=title, ylabel="invariant of the shape")
    axis.margins(y=0.2)
plt.show()

# %%
# The price: a Clebsch-Gordan product has a free weight for every path, this one shares Gaunt's among all of them, times
# a weight a degree. `Xie et al. (2025) <https://arxiv.org/abs/2506.13523>`_ compare what that costs in expressive power
# with what it saves in time.
