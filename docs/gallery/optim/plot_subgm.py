"""
A matrix from measurements of which a third are nonsense: SubGM
===============================================================

A low-rank matrix is measured by inner products, some of them grossly wrong, and nobody knows the rank. Least squares
follows the outliers. The absolute residual does not, and sub-gradient steps from a *tiny* start find the rank by
themselves: directions of the truth grow exponentially, all others stay near where they began. This is the method of
`Ma and Fattahi (2023) <https://arxiv.org/abs/2202.08788>`_.
"""

import matplotlib.pyplot as plt
import torch

from hesse.optim.subgm import StepRule, SubGM, SymmetricMatrices, recover_psd, robust_matrix_completion

torch.set_num_threads(1)
F64 = torch.float64
BLUE, GREEN, ORANGE, RED, GREY = "#2a6f97", "#5aa469", "#e09f3e", "#9e2a2b", "0.6"

# %%
# As an estimator
# ---------------
# Order 20, rank 2, 2000 Gaussian measurements, three in ten of them off by N(0, 10²). The factor has all 20 columns.

generator = torch.Generator().manual_seed(0)
basis = torch.linalg.qr(torch.randn(20, 2, generator=generator, dtype=F64)).Q
truth = basis @ basis.mT
A = torch.randn(2000, 20, 20, generator=generator, dtype=F64)
wrong = torch.rand(2000, generator=generator) < 0.3
y = (A * truth).sum((1, 2)) + 10 * wrong * torch.randn(2000, generator=generator, dtype=F64)

model = SubGM(random_state=0).fit(A, y)
error = float((model.matrix_ - truth).norm() / truth.norm())
print(f"relative error {error:.1e}, rank {model.numerical_rank_}, {model.n_iter_} steps")

# %%
# How the rank finds itself
# -------------------------
# The singular values of U along the way. With a start of 10⁻⁸ the two that belong to the truth rise out of nothing and
# stop at one, while the eighteen others are left behind. Starting at one there is nothing to leave behind: the
# directions that the truth does not have shrink only as fast as the step.


def along_the_way(init_scale, steps=1500, every=25):
    packed, spectra, found = SymmetricMatrices.from_dense(A), [], None
    for stop in range(1, steps, every):
        found = recover_psd(packed, y, init_scale=init_scale, max_steps=stop, tol=0.0, resume=found)
        spectra.append(torch.linalg.svdvals(found.factor))
    gap = float((found.matrix - truth).norm() / truth.norm())
    return range(1, steps, every), torch.stack(spectra).clamp_min(1e-12), gap


fig, axes = plt.subplots(1, 2, figsize=(9.5, 4), sharey=True, constrained_layout=True)
for axis, init_scale in zip(axes, (1e-8, 1.0), strict=True):
    steps, spectra, gap = along_the_way(init_scale)
    axis.semilogy(steps, spectra[:, 2:], color=GREY, linewidth=0.8)
    axis.semilogy(steps, spectra[:, :2], color=BLUE, linewidth=2)
    axis.set(xlabel="step", title=f"start {init_scale:g}: error {gap:.1e}")
axes[0].set_ylabel("singular values of U")
axes[0].text(200, 2, "the two of the truth", color=BLUE)
axes[0].text(700, 5e-5, "the eighteen others", color="0.4")
axes[0].set_ylim(1e-9, 8)
plt.show()

# %%
# When every measurement is noisy
# -------------------------------
# Dense noise is another matter: the loss has minima that fit it. A part of the measurements, held out, says when to
# stop. Nothing of the truth is used for that, here it is only drawn for comparison.

noisy = (A * truth).sum((1, 2)) + torch.randn(2000, generator=generator, dtype=F64)
held = torch.rand(2000, generator=generator) < 0.1
packed, rule, found, path = SymmetricMatrices.from_dense(A), StepRule("geometric", decay=0.995), None, []
for stop in range(1, 700, 10):
    found = recover_psd(packed, noisy, rule=rule, max_steps=stop, tol=0.0, holdout=held, resume=found)
    path.append(float((found.last_factor @ found.last_factor.mT - truth).norm() / truth.norm()))
fig, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
axis.plot(range(1, 700, 10), path, color=RED, label="error, which nobody can see")
axis.plot(found.held_out_losses - found.held_out_losses.min(), color=BLUE, label="held-out loss above its least")
axis.plot(found.losses - found.losses.min(), color=ORANGE, label="training loss above its least")
axis.axvline(int(found.best_step), color="0.3", linestyle=":", label="where the hold-out stops")
axis.set(xlabel="step", ylim=(0, 1), title="The training loss falls on; the error does not")
axis.legend(frameon=False)
plt.show()

# %%
# A camera that does not move
# ---------------------------
# Frames of a still scene whose light changes have rank two; what moves in front is an outlier. Half of the pixels are
# lost as well. Single entries are not Gaussian measurements: the rank has to be given.

height, width, frames = 12, 32, 60
rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
scene = torch.stack([0.6 + 0.4 * torch.cos(columns / 4.0), rows / height + 0.2 * (columns > 20)])
light = torch.stack([1 + 0.3 * torch.sin(torch.arange(frames) / 6), 0.5 + torch.arange(frames) / frames], 1)
video = (light @ scene.flatten(1)).reshape(frames, height, width).to(F64)
for t in range(frames):  # a bright box that walks
    place = t * width // frames
    video[t, 5:11, place : place + 5] = 4.0
seen = torch.rand(video.shape, generator=generator) < 0.5
indices = seen.flatten(1).nonzero()
found = robust_matrix_completion(
    indices, video.flatten(1)[indices[:, 0], indices[:, 1]], (frames, height * width), rank=2, max_steps=600
)
background = found.matrix.reshape(video.shape)
t = 30
pictures = {
    "frame, half of it lost": torch.where(seen[t], video[t], torch.nan),
    "background": background[t],
    "what moves": video[t] - background[t],
}
fig, axes = plt.subplots(1, 3, figsize=(10.5, 1.9), constrained_layout=True)
for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture, cmap="magma", vmin=0, vmax=4)
    axis.set(title=title, xticks=[], yticks=[])
plt.show()
