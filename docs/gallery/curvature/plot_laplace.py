"""
A Laplace posterior: error bars, and a prior chosen without held-out data
=========================================================================

A trained network is the mode of a posterior over its weights. The Gauss-Newton matrix at that mode says how sharp it
is, so a Gaussian with that precision is a posterior one can compute with: error bars for predictions, and the marginal
likelihood of the prior and the noise (`MacKay 1992 <https://doi.org/10.1162/neco.1992.4.3.448>`_,
`Daxberger et al. 2021 <https://arxiv.org/abs/2106.14806>`_). It costs one pass over the data after training.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from hesse.curvature import laplace

generator = torch.Generator().manual_seed(0)
COLOURS = {"last layer": "#e09f3e", "all layers, Kronecker": "#5aa469", "all layers, full": "#2a6f97"}

# %%
# Training
# --------
# A noisy curve with a gap in the data, and a small network trained to the mode of the posterior under the prior N(0, I)
# on every weight and noise of standard deviation 0.1: squared error / (2 σ²) plus ‖θ‖² / 2.

noise = 0.1
x = torch.cat([torch.rand(40, 1, generator=generator) * 1.3 - 2, torch.rand(40, 1, generator=generator) * 1.3 + 0.7])
x = x.double()
y = torch.sin(3 * x) * 0.6 + x / 4 + noise * torch.randn(x.shape, generator=generator).double()

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)).double()
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2000, tolerance_change=1e-10, line_search_fn="strong_wolfe")


def objective():
    optimizer.zero_grad()
    penalty = sum(p.square().sum() for p in model.parameters())
    loss = (model(x) - y).square().sum() / (2 * noise**2) + penalty / 2
    loss.backward()
    return loss


optimizer.step(objective)
print(f"objective at the mode: {float(objective().detach()):.2f}")

# %%
# Error bars
# ----------
# The posterior over the last layer alone takes the features for granted: the gap between the data costs it little
# certainty. The full matrix over all weights opens up in the gap and outside. The Kronecker factors of every layer are
# far smaller, and on this problem far more confident: they leave out how weights of different layers can make up for
# each other, and average the data before multiplying. What a structure loses can be seen only by comparing it.

options = {"prior_precision": 1.0, "sigma_noise": noise}
posteriors = {
    "last layer": laplace(model, [(x, y)], "gaussian", **options),
    "all layers, Kronecker": laplace(model, [(x, y)], "gaussian", subset="all", **options),
    "all layers, full": laplace(model, [(x, y)], "gaussian", subset="all", structure="full", **options),
}
grid = torch.linspace(-3, 3, 240, dtype=torch.float64).unsqueeze(1)
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), sharey=True, constrained_layout=True)
for axis, (name, posterior) in zip(axes, posteriors.items(), strict=True):
    predicted = posterior.predictive(grid)
    mean, spread = predicted.mean[:, 0], predicted.variance[:, 0].sqrt()
    axis.fill_between(grid[:, 0], mean - 2 * spread, mean + 2 * spread, color=COLOURS[name], alpha=0.25, linewidth=0)
    axis.plot(grid, mean, color=COLOURS[name])
    axis.plot(x, y, ".", color="0.3", markersize=4)
    axis.set(title=name, xlabel="input", ylim=(-2.5, 2.5))
axes[0].set_ylabel("output ± 2 standard deviations")
plt.show()

# %%
# Which prior, which noise?
# -------------------------
# The marginal likelihood answers without held-out data, and its gradient is at hand. The mode was found for one prior;
# another one moves the mode, so that values far from δ = 1 hold for the present mode, not for a network trained anew.
# Maxima are to be compared, not levels: the last layer's curve counts the other weights as known.

posterior = posteriors["all layers, Kronecker"]
best = posterior.optimize_prior_precision(noise=True)
print(f"prior precision {float(best.prior_precision):.2f}, noise {float(best.sigma_noise):.3f} (true: {noise})")

deltas = torch.logspace(-2, 1, 61, dtype=torch.float64)
sigmas = torch.logspace(-1.6, -0.4, 61, dtype=torch.float64)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
for name, colour in COLOURS.items():
    evidence = [float(posteriors[name].log_marginal_likelihood(d)) for d in deltas]
    axes[0].plot(deltas, evidence, color=colour, label=name)
    evidence = [float(posteriors[name].log_marginal_likelihood(sigma_noise=s)) for s in sigmas]
    axes[1].plot(sigmas, evidence, color=colour)
axes[0].set(xscale="log", xlabel="prior precision δ", ylabel="log marginal likelihood (nats)")
axes[1].set(xscale="log", xlabel="noise σ", ylim=(-150, None))
axes[1].set_xticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
axes[1].minorticks_off()
axes[1].axvline(noise, color="0.6", linestyle=":", linewidth=1)
axes[1].annotate("true", (noise, -140), xytext=(4, 0), textcoords="offset points", color="0.4")
axes[0].legend(frameon=False)
plt.show()

# %%
# Draws
# -----
# Weights drawn from the posterior give whole functions: of the model linearised at the mode, which the error bars and
# the evidence are about, and of the network itself. The two part company where the Gaussian is wider than the region in
# which the network is nearly linear (`Immer et al. 2021 <https://arxiv.org/abs/2008.08400>`_), which is why
# ``predictive`` uses the first.

full = posteriors["all layers, full"]
mode = {name: p.detach() for name, p in model.named_parameters()}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, constrained_layout=True)
for draw in full.samples(12, generator=generator):
    weights = full.layout.unflatten(draw)
    shift = {name: weights[name] - mode[name] for name in mode}
    centre, change = torch.func.jvp(lambda at: torch.func.functional_call(model, at, (grid,)), (mode,), (shift,))
    axes[0].plot(grid, (centre + change).detach(), color="#2a6f97", alpha=0.5, linewidth=1)
    network = torch.func.functional_call(model, weights, (grid,)).detach()
    axes[1].plot(grid, network, color="#9e2a2b", alpha=0.5, linewidth=1)
for axis, title in zip(axes, ("linearised", "the network itself"), strict=True):
    axis.plot(x, y, ".", color="0.3", markersize=4)
    axis.set(title=f"Twelve draws, {title}", xlabel="input", ylim=(-2.5, 2.5))
axes[0].set_ylabel("output")
plt.show()
