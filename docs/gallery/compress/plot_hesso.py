"""
Train once, and cut two thirds of the channels away
===================================================

Pruning is usually a pipeline: train, cut, fine-tune, cut again. HESSO puts the cut into the training. A wrapper around
the optimiser picks the groups of parameters that look most redundant, fades them out along a straight line while
everything trains on, and holds them at zero. What is left is a smaller dense network with the same outputs.

`Chen et al. (2024) <https://arxiv.org/abs/2409.09085>`_ is the paper; the groups are found here by following every
channel through the graph of the network.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from hesse.compress import HESSO, DependencyGraph, slim_report

torch.manual_seed(0)
COLOURS = ["#2a6f97", "#5aa469", "#e09f3e", "#9e2a2b"]
table = load_digits()
x = torch.as_tensor(table.images / 16.0, dtype=torch.float32).unsqueeze(1)
y = torch.as_tensor(table.target)
order = torch.randperm(len(x))
train, test = order[:1300], order[1300:]

# %%
# Which parameters belong together
# --------------------------------
# A channel of the first convolution is a filter, its bias, an entry of the batch norm, and a column of whatever reads
# it. The residual sum below ties the first and the third convolution together: their channels can go only in pairs.


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.inner, self.outer = nn.Conv2d(24, 32, 3, padding=1), nn.Conv2d(32, 24, 3, padding=1)
        self.hidden, self.head = nn.Linear(24 * 16, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        x = x + self.outer(F.relu(self.inner(x)))
        return self.head(F.relu(self.hidden(x.flatten(1))))


net = Net()
graph = DependencyGraph(net, x[:2])
print(graph.summary())

# %%
# Zeros that arrive as zeros
# --------------------------
# A group may be cut if nothing notices once it is zero. ``check_zero_invariance`` puts this to the test: it zeroes half
# of the groups and fills all columns that read them with noise. The output stays the same to the last bit.

print("change of the output:", graph.check_zero_invariance())

# %%
# Training
# --------
# Two lines more than a plain loop. Twelve epochs of which the first sixth is warm-up; in the half that follows, five
# periods each choose a fifth of the groups to go.

epochs, batch = 12, 64
steps = epochs * -(-len(train) // batch)
optimizer = HESSO(
    graph,
    torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    target_sparsity=0.7,
    start_step=steps // 6,
    pruning_steps=steps // 2,
    min_keep=2,
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
lengths, losses = [], []
for _ in range(epochs):
    for rows in train[torch.randperm(len(train))].split(batch):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        lengths.append(net.inner.weight.detach().flatten(1).norm(dim=1))

fig, (above, below) = plt.subplots(2, 1, figsize=(8, 5.4), sharex=True, constrained_layout=True)
above.plot(torch.stack(lengths), color=COLOURS[0], alpha=0.6, linewidth=0.9)
above.set(ylabel="length of each filter", title="The 32 filters of the inner convolution")
below.plot(losses, color=COLOURS[3], linewidth=0.8)
below.set(xlabel="step", ylabel="training loss", yscale="log")
for axis in (above, below):
    for period in range(6):
        axis.axvline(steps // 6 + period * (steps // 2 // 5), color="0.8", linewidth=0.8, zorder=0)
plt.show()

# %%
# The smaller network
# -------------------
# ``slim_report`` cuts the zeros out, checks that the outputs are the same, and says what was gained.

report = slim_report(graph)
small = report.module.eval()
net.eval()
with torch.no_grad():
    accuracy = (small(x[test]).argmax(1) == y[test]).float().mean().item()
print(f"test accuracy {accuracy:.3f}, outputs differ by {report.difference:.1e}")
print(f"parameters {report.num_parameters[0]} -> {report.num_parameters[1]}")
print(f"multiplications and additions for two pictures {report.flops[0]} -> {report.flops[1]}")
print(small)

# %%
# Why scores are compared within families
# ---------------------------------------
# The score adds up five criteria: the length of a group, the same per entry, two Taylor estimates of what its loss
# would cost, and a cosine with the step about to be made. As published, groups of all layers are compared as they are,
# and layers whose groups are short lose nearly everything. Dividing each criterion by its mean within the family first,
# the default here, spreads the cut.


def cut_by_layer(normalize):
    torch.manual_seed(1)
    net = Net()
    graph = DependencyGraph(net, x[:2])
    base = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    optimizer = HESSO(graph, base, 0.8, 60, 100, normalize=normalize, min_keep=2)
    for step in range(200):
        rows = train[torch.arange(step * batch, (step + 1) * batch) % len(train)]
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        accuracy = (net(x[test]).argmax(1) == y[test]).float().mean().item()
    return [optimizer.pruned[family.groups].float().mean().item() for family in graph.families], accuracy


names = [family.axes[0][0].split(".")[0] for family in graph.families]
fig, axis = plt.subplots(figsize=(7, 3.4), constrained_layout=True)
for place, (normalize, colour) in enumerate((("family", COLOURS[0]), ("global", COLOURS[2]))):
    shares, accuracy = cut_by_layer(normalize)
    positions = [i + 0.4 * place - 0.2 for i in range(len(names))]
    axis.bar(positions, shares, 0.38, color=colour, label=f'normalize="{normalize}": accuracy {accuracy:.3f}')
axis.axhline(0.8, color="0.5", linewidth=0.8)
axis.set(ylabel="share of groups cut", ylim=(0, 1.4), yticks=[0, 0.25, 0.5, 0.75, 1])
axis.set_xticks(range(len(names)), names)
axis.legend(frameon=False, loc="upper left")
plt.show()
