"""
A quarter of the scan, fifty calls of the prior
===============================================

A scanner that stops early leaves many pictures that fit its data. A diffusion prior picks those that look right, but
most samplers differentiate the network at every one of a thousand steps to stay true to the data.
`Chung, Lee and Ye (2024) <https://arxiv.org/abs/2303.05754>`_ do neither: denoise, take five steps of conjugate
gradients towards the data, put noise back; fifty times.

The prior here is a mixture of Gaussians, one for each digit, whose denoiser is known in closed form. So is the best
possible answer, the mean of the exact posterior.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from hesse.generative import (
    DDS,
    DPS,
    DiffusionPrior,
    GaussianMixture,
    MultiCoilMRI,
    ParallelBeamCT,
    RealView,
    VariancePreserving,
    coil_maps,
    filtered_back_projection,
    mixture_posterior,
    sampling_mask,
)

generator = torch.Generator().manual_seed(0)
table = load_digits()
pixels = torch.from_numpy(table.images).unsqueeze(1) / 16
pictures = interpolate(pixels, (32, 32), mode="bilinear").flatten(1)

# %%
# One Gaussian a digit
# --------------------
# Each class is described by its mean, thirty directions and a little noise off them.

parts = []
for digit in range(10):
    rows = pictures[torch.from_numpy(table.target) == digit]
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    parts.append((len(rows) / len(pictures), rows.mean(0), vectors[:, -30:], values[-30:]))
weights, means, directions, variances = (list(column) for column in zip(*parts, strict=True))
mixture = GaussianMixture(
    torch.tensor(weights, dtype=torch.float64),
    torch.stack(means),
    torch.stack(directions),
    torch.stack(variances),
    torch.full((10,), 2e-4, dtype=torch.float64),
)
prior = DiffusionPrior.from_denoiser(
    lambda x, sigma: mixture.denoise(x.flatten(1), sigma).reshape(x.shape), VariancePreserving(), (1, 32, 32)
)
truth = mixture.sample(6, generator=generator)

# %%
# Four coils, an eighth of the frequencies
# ----------------------------------------
# Eight samples of every posterior take one call of ``sample``. Their spread shows where the data leave a choice. It is
# somewhat too small: the sampler is no exact solver of the reverse equation, and says so in its documentation.

sigma = 0.01
mask = sampling_mask((32, 32), "gaussian1d", 8.0, generator=generator)
mri = RealView(MultiCoilMRI(coil_maps(4, (32, 32), dtype=torch.complex128), mask), real_picture=True)
clean = mri.matvec(truth)
data = clean + sigma * torch.randn(clean.shape, dtype=clean.dtype, generator=generator)
samples = DDS(prior, mri, eta=0.5, gamma=15.0).sample(data, 8, sigma, generator=generator).flatten(2)
exact = mixture_posterior(mixture, mri, data, sigma)

panels = {
    "truth": truth,
    "zero-filled": mri.rmatvec(data),
    "DDS, one sample": samples[:, 0],
    "DDS, mean of 8": samples.mean(1),
    "exact posterior mean": exact.mean,
    "spread of the samples": samples.std(1) * 4,
}
fig, axes = plt.subplots(6, 6, figsize=(7.6, 7.9), constrained_layout=True)
for column, (title, rows) in zip(axes.T, panels.items(), strict=True):
    column[0].set_title(
        title.replace(", ", ",\n").replace("posterior ", "posterior\n").replace("spread ", "spread\n"), fontsize=9
    )
    for axis, picture in zip(column, rows, strict=True):
        axis.imshow(picture.reshape(32, 32), cmap="magma" if "spread" in title else "gray", vmin=0, vmax=1)
        axis.axis("off")
plt.show()

# %%
# How many calls?
# ---------------
# Each method with the best of three weights of the data. From few calls DDS gets the better picture, and none of its
# calls is differentiated; with enough of them DPS catches up. Noise of 0.05 instead of 0.01 would favour DPS from some
# twenty calls on: conjugate gradients know of noise only through the one number ``gamma``.


def decibels(found):
    return float(-10 * (found.reshape(truth.shape) - truth).square().mean(1).log10().mean())


calls = (5, 10, 20, 50, 100, 200)
samplers = {
    "DDS": [lambda n, g=g: DDS(prior, mri, n, eta=0.15, gamma=g) for g in (5.0, 15.0, 50.0)],
    "DPS": [lambda n, z=z: DPS(prior, mri, n, step_size=z) for z in (0.5, 1.0, 2.0)],
}
curves = {
    name: [max(decibels(make(n).sample(data, 1, sigma, generator=generator)) for make in makers) for n in calls]
    for name, makers in samplers.items()
}
fig, axis = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
axis.axhline(decibels(exact.mean), color="0.4", linestyle=":", label="exact posterior mean")
axis.semilogx(calls, curves["DDS"], "o-", color="#2a6f97", label="DDS")
axis.semilogx(calls, curves["DPS"], "s-", color="#9e2a2b", label="DPS")
axis.axhline(decibels(mri.rmatvec(data)), color="#e09f3e", linestyle="--", label="zero-filled")
axis.set(xlabel="calls of the prior", ylabel="PSNR, dB")
axis.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.35))
plt.show()

# %%
# Ninety degrees of tomography, from the first guess to the last
# --------------------------------------------------------------
# Any linear operator of ``hesse.linalg`` will do. Here rays come from one quadrant only, which back-projection cannot
# make up for. ``callback`` sees every step; drawn is the denoised picture with the data in it.

ct = ParallelBeamCT(32, torch.arange(0, 90, 6.0), dtype=torch.float64)
clean = ct.matvec(truth[:3])
sinogram = clean + 0.005 * torch.randn(clean.shape, dtype=clean.dtype, generator=generator)
states = []
DDS(prior, ct, gamma=50.0).sample(sinogram, 1, 0.005, generator=generator, callback=states.append)

shown = (1, 10, 20, 30, 50)
fig, axes = plt.subplots(3, 7, figsize=(9, 4.2), constrained_layout=True)
columns = {"truth": truth[:3], "filtered\nback-projection": filtered_back_projection(ct, sinogram)}
columns |= {f"step {n}": states[n - 1].denoised for n in shown}
for column, (title, rows) in zip(axes.T, columns.items(), strict=True):
    column[0].set_title(title, fontsize=9)
    for axis, picture in zip(column, rows, strict=True):
        axis.imshow(picture.reshape(32, 32), cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
plt.show()
