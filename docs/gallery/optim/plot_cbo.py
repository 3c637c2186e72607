"""
Particles that meet where it is low
===================================

Some objectives can only be evaluated: a simulator, a pipeline, a count of errors. Others have a gradient that leads
astray. Consensus-based optimisation sends out particles, lets them agree on a point, the mean weighted by exp(-α E),
and moves them there while each explores by as much as it is away.

`Riedl, Klock, Geldhauser and Fornasier (2023) <https://arxiv.org/abs/2306.09778>`_ show that the point they agree on
follows stochastic gradient descent, with noise enough to step over walls.
"""

import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch

from hesse.optim import CBO, ConsensusHopping, ModuleCBO, cloud_contraction, hop_shift, minimize_cbo

BLUE, GREEN, ORANGE, RED, GREY = "#2a6f97", "#5aa469", "#e09f3e", "#9e2a2b", "0.45"
torch.set_default_dtype(torch.float64)

# %%
# A canyon with walls
# -------------------
# The valley starts at (8, 8) and winds to the origin, the only global minimum. Ripples and walls stand across it.


def canyon(point):
    x, y = point[..., 0], point[..., 1]
    q = y - ((x - 1) * (x - 4).square() / 8 + 2)
    b = -x - 1.6 * y
    walls = 25 * (1 - torch.exp(-1.4 * q.square() * torch.exp(-0.002 * x**4)))
    bowl = 0.4 * x.square() + 0.2 * y.square()
    ripples = 1.1625 * (1 - torch.cos(0.75 * torch.pi * point)).sum(-1)
    ridge = 4 * torch.exp(1 - 2 * q**4) * (torch.sign(b) * (1 - torch.exp(-9 * b.square()))).clamp(min=0)
    return walls + bowl + ripples + ridge


start = torch.full((2,), 8.0)
clouds = []
with warnings.catch_warnings():
    # sigma = 1.6 is beyond the decay of the variance, as in the paper; hesse warns of it
    warnings.simplefilter("ignore")
    cbo = CBO(
        canyon, start, num_particles=200, dt=0.01, sigma=1.6, noise="isotropic", alpha=100.0, spread=0.5,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
met = cbo.run(250, tol=0, keep_path=True, callback=lambda swarm: clouds.append(swarm.x[0]))
hopping = ConsensusHopping(canyon, start, num_particles=200, alpha=100.0, generator=torch.Generator().manual_seed(0))
hopped = hopping.run(250, tol=0, keep_path=True)
x, descent = start.clone(), [start]
for _ in range(4000):
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(canyon(x), x)
    x = (x - 0.01 * gradient).detach()
    descent.append(x.clone())

grid_x, grid_y = torch.meshgrid(torch.linspace(-4, 10, 400), torch.linspace(-5, 13, 400), indexing="xy")
height = canyon(torch.stack([grid_x, grid_y], -1))
fig, axes = plt.subplots(1, 3, figsize=(12, 4.6), sharex=True, sharey=True, constrained_layout=True)
paths = (
    ("gradient descent, 4000 steps", torch.stack(descent), RED),
    ("consensus-based optimisation", met.history.consensus, BLUE),
    ("consensus hopping", hopped.history.consensus, GREEN),
)
for axis, (title, path, colour) in zip(axes, paths, strict=True):
    axis.contourf(grid_x, grid_y, height.sqrt(), 24, cmap="Greys_r", alpha=0.75)
    axis.plot(*path.T, color=colour, linewidth=1.8)
    axis.plot(*path[-1], "o", color=colour, markersize=9)
    axis.plot(0, 0, "*", color=ORANGE, markersize=15, markeredgecolor="black", markeredgewidth=0.6)
    axis.set(title=f"{title}\nends at E = {float(canyon(path[-1])):.2g}", xlim=(-4, 10), ylim=(-5, 13))
axes[1].scatter(*clouds[20].T, s=5, color=ORANGE, label="particles after 20 steps")
axes[1].legend(loc="lower right", fontsize=8)
plt.show()

# %%
# Gradient descent rolls into the first dip. The consensus is pulled over it by particles that happen to land lower.

# %%
# A hop is a gradient step
# ------------------------
# Consensus hopping draws a fresh cloud about its last consensus each time. On average it then moves by -α σ² ∇E, to
# first order: `hop_shift` measures by how much, with an error bar. On a quadratic the mean is known for every α.

hessian = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
quadratic = lambda v: 0.5 * (v @ hessian * v).sum(-1)  # noqa: E731
point, sigma = torch.tensor([1.0, -2.0]), 0.3
alphas = np.logspace(-2, 1, 13)
fig, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
fine = np.logspace(-2, 1, 100)
exact = [-a * sigma**2 * torch.linalg.solve(torch.eye(2) + a * sigma**2 * hessian, hessian @ point) for a in fine]
axis.plot(fine, [float(e.norm()) for e in exact], color=GREY, label="closed form")
axis.plot(fine, fine * sigma**2 * float((hessian @ point).norm()), "--", color=RED, label="gradient step α σ² ‖∇E‖")
hops = [
    hop_shift(quadratic, point, sigma=sigma, alpha=a, num_samples=100_000, generator=torch.Generator().manual_seed(0))
    for a in alphas
]
axis.errorbar(
    alphas,
    [float(h.shift.norm()) for h in hops],
    yerr=[2 * float(h.standard_error.norm()) for h in hops],
    fmt="o", color=BLUE, markersize=5, label="measured, ±2 standard errors",
)  # fmt: skip
axis.set(
    xscale="log", yscale="log", xlabel="α", ylabel="length of the mean hop", title="Small α: SGD. Large α: proximal"
)
axis.legend(frameon=False)
plt.show()

# %%
# How much noise?
# ---------------
# Beyond σ² = 2λ - λ² dt the variance of the cloud grows, and hesse warns. Paths may contract all the same: almost every
# particle comes home while few go far, which is what finds the minimum of Rastrigin's function in 20 dimensions. Twenty
# independent runs go side by side in one tensor.


def rastrigin(v):
    return (v.square() + 2.5 * (1 - torch.cos(2 * torch.pi * v))).sum(-1)


widths = (1.0, 2.0, 3.0, 4.0, 5.1, 6.0)
rates = [cloud_contraction(dt=0.01, drift=1.0, sigma=s, dim=20, isotropic=False) for s in widths]
success = []
for width in widths:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = minimize_cbo(
            rastrigin, bounds=(-3.0, 3.0), dim=20, num_particles=200, num_runs=20, dt=0.01, sigma=width, tol=0.0,
            max_steps=300, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    success.append(int((runs.x.abs() < 0.25).all(-1).sum()))
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
fine = np.linspace(0.1, 8, 100)
curves = [cloud_contraction(dt=0.01, drift=1.0, sigma=s, dim=20, isotropic=False) for s in fine]
left.plot(fine, [math.log(c.mean_square) / 2 for c in curves], color=RED, label="½ log of the mean square")
left.plot(fine, [c.log_rate for c in curves], color=BLUE, label="mean log, of a typical path")
left.axhline(0, color="0.3", linewidth=0.8)
left.set(xlabel="σ", ylabel="growth a step", title="The variance grows, paths contract")
left.legend(frameon=False)
right.bar([f"{w:g}" for w in widths], success, color=BLUE)
right.set(xlabel="σ", ylabel="runs of 20", ylim=(0, 20), title="Global minimum in 20 dimensions found by")
plt.show()

# %%
# A loss without a gradient
# -------------------------
# `ModuleCBO` trains a module by forward passes alone, all parameter vectors in one batched call. Here it minimises the
# number of wrong answers itself, which is flat wherever it has a derivative.

angle = torch.rand(400, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
inner = torch.arange(400) < 200
noise = 0.25 * torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
inputs = torch.where(inner, 0.8, 2.0)[:, None] * torch.stack([angle.cos(), angle.sin()], -1) + noise
model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def wrong(outputs, labels):
    return (outputs.argmax(-1) != labels).double().mean()


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of wide noise again
    trainer = ModuleCBO(
        model, wrong, num_particles=400, batch_size=400, sigma=2.0, spread=2.0, alpha=1000.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
labels, errors = inner.long(), []
for _ in range(30):
    trainer.fit([(inputs, labels)] * 4)  # an epoch of four steps on all examples
    trainer.load_consensus()
    with torch.no_grad():
        errors.append(float(wrong(model(inputs), labels)))

plane = torch.stack(torch.meshgrid(torch.linspace(-3, 3, 200), torch.linspace(-3, 3, 200), indexing="xy"), -1)
with torch.no_grad():
    decided = model(plane).diff(dim=-1).squeeze(-1)
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), constrained_layout=True)
left.plot(range(1, 31), errors, color=BLUE)
left.set(xlabel="epoch", ylabel="share of wrong answers", title="Minimised as it is", ylim=(0, None))
right.contourf(plane[..., 0], plane[..., 1], decided > 0, levels=[-0.5, 0.5, 1.5], colors=["#f3dcb4", "#bcd3e0"])
right.scatter(*inputs[inner].T, s=7, color=BLUE)
right.scatter(*inputs[~inner].T, s=7, color=ORANGE)
right.set(title="What it learnt", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
plt.show()
