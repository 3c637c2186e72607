"""
The spectrum of a trained network
=================================

The Hessian of a network's loss has as many rows and columns as there are parameters: it is never formed. A product with
it costs a few gradients, and from products alone come its extreme eigenvalues, the density of all the others, its trace
and its diagonal, each with an error that is known.
"""

import tempfile

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.curvature import (
    eigenvalue_density,
    exact_fisher,
    hessian,
    plot_density,
    sampled_fisher,
    sampled_trace,
    top_eigenpairs,
)

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)

# %%
# A model, a loss, a loader
# -------------------------
# The loss is written as for training. The loader is streamed, one batch in memory at a time, in every product; it must
# give the same batches each time, so one that shuffles is refused. ``weighted_mean`` makes the matrix that of the mean
# over all examples although the last batch is smaller.

pictures, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
data = TensorDataset((pictures / 16).float()[:1500], labels[:1500])
model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 10))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


start = hessian(loss_fn, model, data[:], keep_graph=True)
before = eigenvalue_density(start, num_probes=6, num_steps=60, generator=generator)

optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
for _ in range(4):
    for batch in DataLoader(data, batch_size=100, shuffle=True, generator=generator):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
model.eval()

streamed = hessian(loss_fn, model, DataLoader(data, batch_size=400), reduction="weighted_mean")
print(f"{streamed.shape[0]} parameters, loss {loss_fn(model, data[:]).item():.3f}")

# %%
# All in memory: keep the graph
# -----------------------------
# Where the batch fits, the graph of its gradient can be kept between products, which then cost less. The operator
# follows the parameters: ``start`` was made before training, and is now the Hessian of the trained network.

vector = torch.randn(streamed.shape[0], generator=generator)
with torch.no_grad():
    gap = (start @ vector - streamed @ vector).norm() / (start @ vector).norm()
print(f"one batch, graph kept, against four streamed: {float(gap):.1e}")

# %%
# Before and after
# ----------------
# At random weights the eigenvalues fill one bulk. Training piles nearly all of them up at zero and leaves about as many
# outliers as there are classes. The shaded band is one standard error over the six probes, and the dotted lines are the
# extreme Ritz values, of which each has an eigenvalue within its residual.

after = eigenvalue_density(start, num_probes=6, num_steps=60, generator=generator)
fig, axes = plt.subplots(2, 1, figsize=(7, 6), constrained_layout=True)
for axis, density, title in ((axes[0], before, "random weights"), (axes[1], after, "trained")):
    plot_density(density, order=streamed.shape[0], axes=axis)
    axis.set_title(title)
plt.show()

# %%
# The outliers
# ------------
# Thick-restart Lanczos, to a residual of 1e-5 of the largest. The largest eigenvalue λ, the sharpness, bounds the step
# of gradient descent by 2 / λ.

top = top_eigenpairs(start, 15, which="LA", generator=generator)
sharpness = float(top.eigenvalues[-1])
fig, axis = plt.subplots(figsize=(6.5, 3.4), constrained_layout=True)
axis.bar(range(1, 16), top.eigenvalues.flip(0), color="#2a6f97")
axis.set_xticks(range(1, 16, 2))
axis.set(xlabel="rank", ylabel="eigenvalue", title=f"gradient descent is stable up to a step of {2 / sharpness:.2f}")
plt.show()

# %%
# Layer by layer
# --------------
# ``per_layer`` cuts the diagonal blocks out. Sampled traces carry their standard errors, so it is plain how many probes
# were enough; with ``rtol`` they stop by themselves.

traces = {name: sampled_trace(block, 400, rtol=0.05, generator=generator) for name, block in start.per_layer().items()}
fig, axis = plt.subplots(figsize=(6.5, 3), constrained_layout=True)
axis.bar(
    [f"layer {name}" for name in traces],
    [float(t.value) for t in traces.values()],
    yerr=[float(t.standard_error) for t in traces.values()],
    color=["#2a6f97", "#5aa469", "#e09f3e"],
    capsize=4,
)
axis.set(ylabel="trace", title=", ".join(f"{t.num_matvecs} probes" for t in traces.values()))
plt.show()

# %%
# Exact and sampled Fisher
# ------------------------
# With labels drawn from the model the Fisher matrix becomes a sum of outer products; one label an example is an
# unbiased but noisy copy of the exact one, which for a softmax is the Gauss-Newton matrix. Eigenvalues say how noisy:
# drawn labels stretch the spectrum, and more of them shrink it back.


def outputs_fn(model, batch):
    return model(batch[0])


exact = exact_fisher(outputs_fn, model, data[:], keep_graph=True)
fig, axis = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
for count, colour in ((1, "#e09f3e"), (4, "#5aa469"), (16, "#2a6f97")):
    sampled = sampled_fisher(outputs_fn, model, data[:], num_samples=count, keep_graph=True)
    values = top_eigenpairs(sampled, 20, generator=generator).eigenvalues.flip(0)
    axis.plot(
        range(1, 21), values, "o-", color=colour, markersize=4, label=f"{count} label{'s' * (count > 1)} an example"
    )
axis.plot(range(1, 21), top_eigenpairs(exact, 20, generator=generator).eigenvalues.flip(0), color="0.2", label="exact")
axis.set_xticks(range(1, 21, 3))
axis.set(yscale="log", xlabel="rank", ylabel="eigenvalue", title="Fisher matrix")
axis.legend(frameon=False)
plt.show()

# %%
# Hours, and a crash
# ------------------
# With ``run=`` every Lanczos step is saved. Here a "crash" comes after 40 passes; the same call goes on where it
# stopped, and the numbers are those of a run that was never interrupted, to the last bit. A folder that belongs to
# other weights, other data or other settings is refused.


class Crash(RuntimeError):
    pass


passes = iter(range(40))


def fragile_loss(model, batch):
    if next(passes, None) is None:
        raise Crash
    return loss_fn(model, batch)


def whole_run(function, folder):
    operator = hessian(function, model, data[:])
    return eigenvalue_density(
        operator, num_probes=2, num_steps=40, generator=torch.Generator().manual_seed(1), run=folder
    )


with tempfile.TemporaryDirectory() as folder:
    try:
        whole_run(fragile_loss, folder)
    except Crash:
        print("crashed")
    resumed = whole_run(loss_fn, folder)
uninterrupted = whole_run(loss_fn, None)
print("same bits:", torch.equal(resumed.nodes, uninterrupted.nodes))
