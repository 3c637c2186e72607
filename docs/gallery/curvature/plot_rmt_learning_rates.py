"""
Batch size and learning rate: what a batch sees of the curvature
================================================================

The Hessian of a small batch is sharper than that of the whole data: averaging few examples leaves noise, and the
largest eigenvalue feels the noise first. `Granziol, Zohren and Roberts (2022) <https://arxiv.org/abs/2006.09092>`_ put
this into random matrix theory and read learning rates off it. Here the noise is measured along single directions, which
makes the difference for real networks: one measurement predicts the sharpness of batches of any size, and how a
learning rate carries over from one size to another.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from hesse.curvature import (
    CurvatureScheduler,
    batch_extremal_eigenvalues,
    critical_batch_size,
    curvature_noise,
    hessian,
    max_learning_rate,
    scale_learning_rate,
    wigner_spike,
)
from hesse.linalg import eigsh

BLUE, RED, GREY = "#2a6f97", "#9e2a2b", "0.55"
generator = torch.Generator().manual_seed(0)

# %%
# One eigenvalue in noise
# -----------------------
# A symmetric matrix of independent noise has eigenvalues between -R and R. Add one eigenvalue l of our own: above R/2
# it stands out, pushed up to l + R²/(4l), and its eigenvector still points our way; below, it drowns.

order, spikes = 600, torch.linspace(0.1, 3, 15)
found = []
for spike in spikes:
    matrix = torch.randn(order, order, generator=generator, dtype=torch.float64)
    matrix = (matrix + matrix.T) / (2 * order) ** 0.5  # R = 2
    matrix[0, 0] += spike
    values, vectors = torch.linalg.eigh(matrix)
    found.append((float(values[-1]), float(vectors[0, -1] ** 2)))
curve = torch.linspace(0.1, 3, 200)
theory = wigner_spike(curve, 2.0)

fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
axes[0].plot(curve, theory.value, color=BLUE, label="theory")
axes[0].plot(spikes, [value for value, _ in found], "o", color=RED, markersize=4, label="matrices of order 600")
axes[0].plot(curve, curve, ":", color=GREY, label="without noise")
axes[0].set(xlabel="own eigenvalue l", ylabel="largest eigenvalue")
axes[0].legend(frameon=False)
axes[1].plot(curve, theory.overlap, color=BLUE)
axes[1].plot(spikes, [overlap for _, overlap in found], "o", color=RED, markersize=4)
axes[1].set(xlabel="own eigenvalue l", ylabel="overlap of eigenvectors")
plt.show()

# %%
# The noise of a network has directions
# -------------------------------------
# A small network on pictures of digits, after three epochs. Averaged over all directions the Hessians of single
# examples hardly vary; along the leading eigenvector they vary a hundred times more.

table = load_digits()
x = torch.tensor(table.data)
spread = x.std(0)
x = (x - x.mean(0)) / torch.where(spread > 0, spread, 1.0)
y = torch.tensor(table.target)


def loss_fn(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()


def epoch(model, optimizer, batch_size):
    for rows in torch.randperm(len(x), generator=generator).split(batch_size):
        optimizer.zero_grad()
        loss_fn(model, (x[rows], y[rows])).backward()
        optimizer.step()


model = network()
optimizer = torch.optim.Adam(model.parameters(), 0.01)
for _ in range(3):
    epoch(model, optimizer, 32)
noise = curvature_noise(loss_fn, model, (x, y), generator=generator)
print(f"largest eigenvalue       {noise.eigenvalues[0]:.3f}")
print(f"variance, all directions {noise.p_sigma2:.3f} ± {noise.p_sigma2_error:.3f}")
print(f"along the leading one    {noise.directional[0]:.3f} ± {noise.directional_error[0]:.3f}")
print(f"along the noisiest       {noise.largest_variance:.3f} ± {noise.largest_variance_error:.3f}")

# %%
# Hence the theorem with one variance for all directions says that batches see what the whole data sees, while with the
# variances where they are the prediction follows the measurement down to batches of four.

sizes = torch.tensor([4, 8, 16, 32, 64, 128, 256, 512, 1024])
measured = []
for size in sizes.tolist():
    rows = [torch.randperm(len(x), generator=generator)[:size] for _ in range(16)]
    tops = [eigsh(hessian(loss_fn, model, (x[r], y[r]), keep_graph=True), 1, which="LA", tol=1e-2) for r in rows]
    measured.append(torch.cat([top.eigenvalues for top in tops]))
measured = torch.stack(measured)
fine = torch.logspace(0.6, 3.01, 100)

fig, axis = plt.subplots(figsize=(6.5, 4), constrained_layout=True)
axis.errorbar(sizes, measured.mean(1), 2 * measured.std(1) / 4, fmt="o", color=RED, label="measured, 16 batches each")
axis.plot(fine, batch_extremal_eigenvalues(noise, fine).largest, color=BLUE, label="directional")
axis.plot(fine, batch_extremal_eigenvalues(noise, fine, model="isotropic").largest, "--", color=GREY, label="isotropic")
axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="largest eigenvalue of the batch's Hessian")
axis.legend(frameon=False)
plt.show()

# %%
# From sharpness to learning rate
# -------------------------------
# A step α is stable in mean square along the leading eigenvector as long as α < 2 / (l + s²/(b l)): in proportion to
# the batch size while noise dominates, constant beyond a critical size. A rate tuned at one size is carried to another
# at the same share of this limit. Momentum ρ raises the limit of large batches to 1 + ρ times as much; that of small
# ones it divides by what it multiplies the effective step with.

print(f"critical batch size {critical_batch_size(noise):.0f}")
print(f"0.5 at batch 16 becomes {scale_learning_rate(0.5, 16, 256, noise=noise):.2f} at batch 256")

fig, axis = plt.subplots(figsize=(6.5, 4), constrained_layout=True)
for momentum, shade in ((0.0, "#a9d6e5"), (0.5, BLUE), (0.9, "#012a4a")):
    axis.plot(fine, max_learning_rate(noise, fine, momentum=momentum), color=shade, label=f"SGD, momentum {momentum}")
adaptive = max_learning_rate(noise, fine, optimizer="adaptive", kappa=0.05)
axis.plot(fine, adaptive, "--", color=RED, label="adaptive, ∝ √B")
axis.axvline(float(critical_batch_size(noise)), color=GREY, linewidth=0.8)
axis.text(1.05 * float(critical_batch_size(noise)), 0.12, "critical size", color=GREY, fontsize=9)
axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="largest stable learning rate", ylim=(0.1, 30))
axis.legend(frameon=False)
plt.show()

# %%
# Letting the curvature drive
# ---------------------------
# A few Lanczos steps on a part of the data give both ends of the spectrum, and Polyak's formula the rate and momentum.
# The scheduler does so after every epoch. It is a heuristic: curvature falls as the loss does, and the rate follows it.

B = 32
model = network()
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
scheduler = CurvatureScheduler(optimizer, model, loss_fn, (x, y), batch_size=B, subsample_size=512, generator=generator)
losses, rates, momenta = [], [], []
for _ in range(12):
    rates.append(scheduler.get_last_lr()[0])
    momenta.append(optimizer.param_groups[0]["momentum"])
    epoch(model, optimizer, B)
    scheduler.step()
    with torch.no_grad():
        losses.append(float(loss_fn(model, (x, y))))

fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
axes[0].semilogy(range(1, 13), losses, "o-", color=BLUE, markersize=4)
axes[0].set(xlabel="epoch", ylabel="training loss, nats")
axes[1].semilogy(range(1, 13), rates, "o-", color=BLUE, markersize=4, label="learning rate")
axes[1].semilogy(range(1, 13), momenta, "s-", color=RED, markersize=4, label="momentum")
axes[1].set(xlabel="epoch")
axes[1].legend(frameon=False)
plt.show()
