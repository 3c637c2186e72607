"""
Which layers can do with two bits?
==================================

A network at a minimum of its loss does not feel small errors in its weights to first order. To second order it feels
them through the Hessian, and an error without a preferred direction through its trace alone: if every entry of a layer
with n weights is off a little, with squares that add up to E, the loss rises by Tr(H) E / (2 n).

`Dong, Yao, Cai, Arfeen, Gholami, Mahoney and Keutzer (2020) <https://arxiv.org/abs/1911.03852>`_ make a rule of it,
HAWQ-V2: measure the average trace of every layer, multiply by the squared error of rounding to b bits, and give the
bits to the layers where that product says they count.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from hesse.compress import (
    HAWQ,
    BitPlan,
    UniformQuantizer,
    allocate_bits,
    fine_tune,
    layer_traces,
    pareto_frontier,
    plan_losses,
    sensitivity_table,
    uniform_plan,
)

BLUE, RED, GREY, YELLOW = "#2a6f97", "#9e2a2b", "0.7", "#e09f3e"
BITS = (2, 3, 4, 6, 8)

# %%
# A small network for digits
# --------------------------

torch.manual_seed(0)
table = load_digits()
x, y = torch.tensor(table.data / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(table.target)
order = torch.randperm(len(x))
train, calibration, test = ((x[rows], y[rows]) for rows in (order[:1300], order[:512], order[1300:]))

net = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(8, 16, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(128, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for _ in range(25):
    for rows in torch.randperm(1300).split(128):
        optimizer.zero_grad()
        loss_fn(net, (train[0][rows], train[1][rows])).backward()
        optimizer.step()
net.eval()

# %%
# Traces
# ------
# One call probes all layers with the same products. Bars are standard errors. The first and the last layer, which
# practice has long kept at eight bits, stand out by themselves.

traces = layer_traces(
    net, loss_fn, calibration, num_probes=30, chunk_size=1, generator=torch.Generator().manual_seed(0)
)
labels = [
    f"{type(net[int(n.split('.')[0])]).__name__[:4]} {n.split('.')[0]}\n{k}"
    for n, k in zip(traces.names, traces.numel, strict=True)
]
fig, axis = plt.subplots(figsize=(7, 3.4), constrained_layout=True)
axis.bar(labels, traces.average, yerr=traces.standard_error / torch.tensor(traces.numel), color=BLUE, capsize=3)
axis.set(
    yscale="log",
    ylabel="average trace of the Hessian",
    title="Weights of the first and last layer count tens of times those of the fourth",
)
plt.show()

# %%
# Every trade at once
# -------------------
# Sensitivities of layers add up, and so do sizes: a knapsack, small enough to be solved exactly for every budget. No
# network is run for this. Random plans are measured against it below.

quantizer = UniformQuantizer()
table = sensitivity_table(net, traces, BITS, quantizer)
frontier = pareto_frontier(table, "average_bits")
rng = np.random.default_rng(0)
numel = dict(zip(table.names, table.numel.tolist(), strict=True))
choices = np.array(BITS)[rng.integers(0, len(BITS), (300, 6))]
random_omega = [table.omega[range(6), [BITS.index(b) for b in row]].sum() for row in choices]
random_bits = choices @ table.numel / table.numel.sum()

fig, axis = plt.subplots(figsize=(7, 3.8), constrained_layout=True)
axis.semilogy(random_bits, random_omega, ".", color=GREY, label="random plans")
axis.semilogy(frontier.cost, frontier.omega, color=BLUE, label=f"frontier, {len(frontier.cost)} plans")
axis.semilogy(BITS, table.omega.sum(0), "o", color=RED, label="one width for all")
axis.set(xlabel="bits a weight", ylabel="Ω, twice the predicted rise of the loss")
axis.legend(frameon=False)
plt.show()

# %%
# Is the prediction true?
# -----------------------
# Round one layer at a time and measure. Ω/2 ranks the thirty pairs of layer and width well; where two bits are asked of
# a large layer, errors leave the range in which the loss is quadratic, and it rises by more. Small rises
# drown in the slope that training has left: some are negative.

alone = [(i, j) for i in range(6) for j in range(len(BITS))]
plans = [BitPlan({table.names[i]: BITS[j]}, numel=numel) for i, j in alone]
single = plan_losses(net, loss_fn, calibration, plans, quantizer)
rises = (single.losses - single.dense).reshape(6, len(BITS))
fig, axis = plt.subplots(figsize=(6, 4.4), constrained_layout=True)
for j, bits in enumerate(BITS):
    axis.plot(table.omega[:, j] / 2, rises[:, j], "o", label=f"{bits} bits")
ends = np.array([1e-7, 1])
axis.plot(ends, ends, color="0.4", linewidth=0.8)
axis.set_xscale("log")
axis.set_yscale("symlog", linthresh=1e-4)
axis.set(xlabel="predicted rise, Ω/2", ylabel="measured rise", xlim=(1e-7, 1))
axis.legend(frameon=False)
plt.show()

# %%
# So measure before you choose
# ----------------------------
# ``HAWQ`` therefore tries a handful of plans on the calibration data, each with one choice of the best prediction held
# otherwise, and one width for all among them. With scales that reach the largest weight instead of leaving the least
# error, the prediction alone would walk into a trap at three bits.

shown = []
for scale in ("mse", "max"):
    rule = UniformQuantizer(scale=scale)
    picked = HAWQ(3.0, BITS, quantizer=rule, num_probes=30, generator=torch.Generator().manual_seed(0))
    picked.fit(net, loss_fn, calibration)
    predicted = allocate_bits(picked.table_, 3.0, constraint="average_bits")
    even = uniform_plan(numel, 3)
    losses = plan_losses(net, loss_fn, test, [even, predicted, picked.plan_], rule).losses
    shown.append(losses)
    print(scale, "predicted", list(predicted.weights.values()), "measured", list(picked.plan_.weights.values()))

fig, axis = plt.subplots(figsize=(6.5, 3.4), constrained_layout=True)
for k, (name, colour) in enumerate((("one width", RED), ("best prediction", GREY), ("best measured", BLUE))):
    axis.bar(np.arange(2) + (k - 1) * 0.25, [losses[k] for losses in shown], 0.25, color=colour, label=name)
axis.axhline(loss_fn(net, test).item(), color="0.4", linewidth=0.8, label="not quantised")
axis.set_xticks([0, 1], ["scale of least error", "scale to the largest weight"])
axis.set(ylabel="test loss at 3 bits", yscale="log")
axis.legend(frameon=False)
plt.show()

# %%
# Train through the rounding, and pack
# ------------------------------------
# A few epochs of training with rounded weights make good most of what is lost, whichever plan it started from. Frozen,
# the weights are whole numbers in as many bits as the plan says.

model = (
    HAWQ(2.5, BITS, num_probes=30, generator=torch.Generator().manual_seed(0))
    .fit(net, loss_fn, calibration)
    .transform()
)


def accuracy(module):
    with torch.no_grad():
        return (module(test[0]).argmax(1) == test[1]).double().mean().item()


before = accuracy(model)
fine_tune(model, loss_fn, list(zip(train[0].split(64), train[1].split(64), strict=True)), epochs=3)
model.freeze()
full = sum(p.numel() * 4 for p in net.parameters())
print(f"plan {list(model.plan.weights.values())}: {model.storage_bytes():,} bytes, {full:,} before")
print(f"accuracy {accuracy(net):.3f}, rounded to 2.5 bits {before:.3f}, after three epochs {accuracy(model):.3f}")
