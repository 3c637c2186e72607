"""
How far are the factors from the formula?
=========================================

EK-FAC answers a query at once, and only approximately. Here a small network is small enough to write its damped
Gauss-Newton matrix down, so that every answer can be compared with the exact one: that of the factors, and those of
three iterative solvers after k products with the matrix.
"""

# %%
# A network and its factors
# -------------------------
# Digits with one label in ten wrong, trained until it fits most of them.

import tempfile

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from hesse.influence import CG, PCG, ClassificationLoss, Influence, LiSSA, as_examples, damped_ggn, solve
from hesse.influence.gradients import gradient_pass, stacked_gradients

torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
order = torch.randperm(len(pixels), generator=generator)
x, y = pixels[order].double() / 16, labels[order]
wrong = torch.rand(200, generator=generator) < 0.1
train = (x[:200], torch.where(wrong, (y[:200] + 1) % 10, y[:200]))
queries = (x[200:210], y[200:210])

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
for _step in range(200):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(train[0]), train[1]).backward()
    optimizer.step()
net.eval()

loss = ClassificationLoss()
with tempfile.TemporaryDirectory() as folder:
    factors = Influence(net, loss=loss).fit(train, folder, progress=False)

# %%
# The exact answer
# ----------------
# ``damped_ggn`` is the matrix that the factors approximate, over all layers together, with the factors' own damping.

system = damped_ggn(net, train, factors, loss=loss)
run_pass = gradient_pass(net, loss=loss)
asked, given = (stacked_gradients(run_pass, as_examples(data)) for data in (queries, train))
with torch.no_grad():
    dense = system.operator(columns=64).to_dense()
exact = torch.linalg.solve(dense, system.flatten(asked))
rows = system.flatten(given)


def correlations(matrices):
    """Correlation with the exact scores, a number a query."""
    found, wanted = system.flatten(matrices).T @ rows, exact.T @ rows
    return [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(found, wanted, strict=True)]


# %%
# Fidelity for work
# -----------------
# A product is one pass over the training set, for all queries together.

budgets = {
    "PCG, from EK-FAC on": [PCG(steps=k, rtol=0.0) for k in (0, 1, 2, 4, 7, 12, 20)],
    "CG, from zero": [CG(steps=k, rtol=0.0) for k in (1, 2, 4, 7, 12, 20)],
    "LiSSA, all rows": [LiSSA(steps=k, batch_size=None, rtol=0.0) for k in (2, 8, 20, 50)],
}
curves, residuals = {}, []
for name, solvers in budgets.items():
    curves[name] = []
    for solver in solvers:
        answer = solve(system, asked, solver)
        each = correlations(answer.matrices)
        curves[name].append((answer.num_products, sum(each) / len(each)))
        if name.startswith("PCG"):
            residuals.append((answer.residual.tolist(), each, solver.steps))

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
colours = ("#2166ac", "#777777", "#e07426")
for (name, points), colour, marker in zip(curves.items(), colours, "os^", strict=True):
    left.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5)
    shift, side = ((-8, 4), "right") if name.startswith("PCG") else ((8, -14), "left")
    left.annotate(name, points[-3], shift, textcoords="offset points", color=colour, ha=side)
ekfac = curves["PCG, from EK-FAC on"][0][1]
left.axhline(ekfac, color="#2166ac", linewidth=1, linestyle=":")
left.text(65, ekfac + 0.01, "EK-FAC alone, no product", ha="right", color="#2166ac", fontsize=9)
left.set(xscale="log", xlabel="products with the matrix", ylabel="correlation with the exact scores", ylim=(None, 1.02))
left.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
left.set_xticks([], minor=True)
left.set_title("Fidelity for work", loc="left")

# %%
# The residual as an error bar
# ----------------------------
# Nobody has the exact scores of a large model. The residual of each query is there anyway: for one method, a smaller
# one means a closer answer.

cmap = plt.get_cmap("viridis_r")
for i, (error, each, steps) in enumerate(residuals):
    missing = [1 - value for value in each]
    right.scatter(error, missing, s=18, color=cmap(i / (len(residuals) - 1)), label=f"{steps} steps")
right.set(xscale="log", yscale="log", xlabel="relative residual of the query", ylabel="1 - correlation")
right.legend(frameon=False, fontsize=8, ncols=2, loc="lower right")
right.set_title("What PCG tells of itself", loc="left")
plt.show()
