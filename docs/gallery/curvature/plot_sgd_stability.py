"""
Can SGD stay at this minimum?
=============================

Gradient descent stays at a minimum if the learning rate η is at most 2/λ₁, λ₁ the largest eigenvalue of the Hessian:
one direction decides. SGD is shaken by its batches and needs more. `Wu and Su (2023)
<https://arxiv.org/abs/2305.17490>`_ show that for batches of one the *trace* must be at most 2/η, all directions
together, and that for simple networks the trace is a norm of the weights, which is why the minima SGD stays at
generalise.

Here the second moment of SGD, linearised at a minimum without residuals, is computed exactly for any batch size, from
the gradients of the outputs alone.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from hesse.curvature.stability import (
    learning_rate_bracket,
    linearise,
    lyapunov_exponent,
    max_stable_learning_rate,
    range_coordinates,
    second_moment_radius,
    stability_report,
)

generator = torch.Generator().manual_seed(0)
F64 = torch.float64
BLUE, RED, GREY = "#2a6f97", "#9e2a2b", "0.5"

# %%
# A minimum and a verdict
# -----------------------
# A diagonal linear network f(x) = (u² - v²)·x, 40 samples of a sparse linear function in 100 dimensions. Gradient
# descent with a small step finds a minimum. Would SGD with η = 0.03 stay there?


class Diagonal(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.u = nn.Parameter(torch.full((d,), 0.3, dtype=F64))
        self.v = nn.Parameter(torch.full((d,), 0.3, dtype=F64))

    def forward(self, x):
        return x @ (self.u.square() - self.v.square())


n, d = 40, 100
x = torch.randn(n, d, dtype=F64, generator=generator)
truth = torch.zeros(d, dtype=F64)
truth[:5] = 1
y = x @ truth


def train(lr, steps, batch=None, net=None):
    """Run SGD (without ``batch`` gradient descent) on half the squared error; the net and the losses along the way."""
    net, losses = net or Diagonal(d), []
    optimizer = torch.optim.SGD(net.parameters(), lr)
    for _ in range(steps):
        index = slice(None) if batch is None else torch.randint(n, (batch,), generator=generator)
        optimizer.zero_grad()
        loss = (net(x[index]) - y[index]).square().mean() / 2
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(float((net(x) - y).square().mean() / 2))
    return net, losses


minimum, _ = train(0.05, 3000)
print(stability_report(minimum, (x, y), lr=0.03, batch_size=1, loss="half_mse", generator=generator))

# %%
# Three thresholds
# ----------------
# The mean square of the distance grows where the spectral radius exceeds one. That threshold lies between two bounds
# made of norms, shaded, which need no eigenvalue but λ₁. The typical run is another matter: mean squares are carried by
# rare runs, and almost every run still contracts a little beyond, until the Lyapunov exponent turns positive.

at = range_coordinates(linearise(minimum, (x, y), "half_mse").features)
fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), constrained_layout=True)
for axis, batch in zip(axes, (1, 4, 16), strict=True):
    threshold = float(max_stable_learning_rate(at, batch))
    bracket = learning_rate_bracket(at, batch)
    grid = torch.linspace(0.4, 1.5, 12, dtype=F64) * threshold
    axis.axvspan(bracket.sufficient, bracket.upper, color=GREY, alpha=0.15, linewidth=0)
    axis.plot(grid, [float(second_moment_radius(at, float(lr), batch)) for lr in grid], color=BLUE, label="mean square")
    typical = [
        2 * lyapunov_exponent(at, float(lr), batch, num_steps=800, num_runs=4, generator=generator).value for lr in grid
    ]
    axis.plot(grid, torch.tensor(typical).exp(), color=RED, label="typical run")
    axis.axhline(1, color="0.7", linewidth=0.8)
    axis.axvline(threshold, color=BLUE, linestyle=":")
    axis.set(title=f"batch of {batch}", xlabel="η")
axes[0].set_ylabel("growth of ‖θ - θ*‖² a step")
axes[0].legend(frameon=False)
plt.show()

# %%
# What it buys
# ------------
# Train with SGD and with gradient descent at several learning rates, each to the bottom. At SGD's minima η Tr(H) never
# reaches 2; a larger η leaves smaller traces, and because the trace is about 4 Σ (u² + v²), smaller weights and a
# smaller error. Gradient descent keeps η λ₁ below 2 and nothing else.

arms = {"SGD, batch of one": ((0.004, 0.01, 0.016, 0.022, 0.028), 1), "gradient descent": ((0.02, 0.1, 0.2, 0.3), None)}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
for (name, (rates, batch)), colour in zip(arms.items(), (BLUE, RED), strict=True):
    traces, errors = [], []
    for lr in rates:
        net, _ = train(lr, 5000 if batch else 1500, batch)
        features = linearise(net, (x, y), "half_mse").features
        traces.append(lr * float(features.square().sum()) / n)
        beta = (net.u.square() - net.v.square()).detach()
        errors.append(float((beta - truth).norm() / truth.norm()))
    axes[0].plot(rates, traces, "o-", color=colour, label=name)
    axes[1].plot(rates, errors, "o-", color=colour, label=name)
axes[0].axhline(2, color="0.7", linewidth=0.8)
axes[0].set(xscale="log", yscale="log", xlabel="η", ylabel="η Tr(H) where it ended")
axes[1].set(xscale="log", xlabel="η", ylabel="error of β, relative", ylim=(0, None))
axes[0].legend(frameon=False)
plt.show()

# %%
# Escape
# ------
# From the first minimum, a nudge of 0.001 and batches of one. With half the threshold SGD falls back; with one and a
# half times it, it leaves, and settles where the trace is smaller.

threshold = float(max_stable_learning_rate(at, 1))
fig, axis = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
for factor, colour in ((0.5, BLUE), (1.5, RED)):
    for repeat in range(3):
        net = Diagonal(d)
        net.load_state_dict(minimum.state_dict())
        nudge = linearise(net, (x, y), "half_mse").features.squeeze(1).mT @ torch.randn(
            n, dtype=F64, generator=generator
        )
        with torch.no_grad():
            for parameter, part in zip(net.parameters(), (1e-3 * nudge / nudge.norm()).split(d), strict=True):
                parameter += part
        net, losses = train(factor * threshold, 1500, 1, net)
        axis.semilogy(losses, color=colour, linewidth=0.8, label=f"{factor} η*" if repeat == 0 else None)
    trace = float(linearise(net, (x, y), "half_mse").features.square().sum()) / n
    print(f"{factor} η*: trace {float(at.eigenvalues.sum()):.1f} before, {trace:.1f} after the last run")
axis.set(xlabel="step", ylabel="loss", ylim=(1e-14, 10))
axis.legend(frameon=False)
plt.show()
