"""
Tune a thousand hyper-parameters of my model by gradient
=========================================================

Half of the training labels are wrong, and nobody knows which half. Give every training row a weight, fit the model on
the weighted rows, look how well it does on three hundred rows that are trusted: the weights are a thousand
hyper-parameters, far too many for trials, and no more work than one for a gradient.

.. math:: \\min_x f(x, y^*(x)), \\qquad y^*(x) = \\operatorname{argmin}_y g(x, y)

The gradient of the outer objective goes through the solution of the inner problem:
:math:`\\nabla\\Phi = f_x - g_{xy} v` with :math:`g_{yy} v = f_y`. No matrix is formed; v comes from conjugate
gradients.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from hesse.bilevel import (
    AID,
    MASOBA,
    SOBA,
    AmIGO,
    BilevelProblem,
    Budget,
    TensorSampler,
    check_problem,
    hypergradient,
    plot_traces,
    problems,
)

# %%
# The data, and the damage
# ------------------------

generator = torch.Generator().manual_seed(0)
table = load_digits()
order = torch.randperm(len(table.target), generator=generator)
pixels, labels = torch.from_numpy(table.data)[order] / 16, torch.from_numpy(table.target)[order]
train_x, valid_x, test_x = pixels.split([1000, 300, len(pixels) - 1300])
train_t, valid_t, test_t = labels.split([1000, 300, len(pixels) - 1300])
replaced = torch.rand(1000, generator=generator) < 0.5
noisy_t = torch.where(replaced, torch.randint(10, (1000,), generator=generator), train_t)
wrong = noisy_t != train_t

# %%
# Two ordinary modules
# --------------------
# x and y may be tensors, dictionaries of tensors, or the parameters of modules. The upper module holds one logit a row,
# the lower one is the model. The losses are called with both, as one would call the modules.


class RowWeights(torch.nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(rows, dtype=torch.float64))

    def forward(self, index):
        return self.logits[index].sigmoid()


weights, model = RowWeights(1000), torch.nn.Linear(64, 10, bias=False, dtype=torch.float64)


def lower_loss(weigh, predict, batch):
    index, inputs, targets = batch
    each = torch.nn.functional.cross_entropy(predict(inputs), targets, reduction="none")
    size = predict(torch.eye(64, dtype=torch.float64)).square().sum()  # of the weight; it makes the solution unique
    return (weigh(index) * each).mean() + 1e-3 * size


def upper_loss(weigh, predict, batch):
    inputs, targets = batch
    return torch.nn.functional.cross_entropy(predict(inputs), targets)


def accuracy(x, y):
    return float(((test_x @ y["weight"].T).argmax(1) == test_t).double().mean())


def make_problem():
    return BilevelProblem.from_modules(
        weights,
        model,
        upper_loss,
        lower_loss,
        lower_sampler=TensorSampler((torch.arange(1000), train_x, noisy_t), 100, seed=1),
        upper_sampler=TensorSampler((valid_x, valid_t), 100, seed=2),
        metrics={"test accuracy": accuracy},
    )


problem = make_problem()
print(check_problem(problem, generator=generator))

# %%
# One gradient
# ------------
# At the start every row weighs one half. The hypergradient already tells the rows apart: a negative entry asks for more
# weight. Its two residuals say how far to trust it.

first = hypergradient(problem, problem.x0, lower_tol=1e-8, rtol=1e-6)
print(f"{first.num_steps} products, residuals {first.residual:.1e} and {first.lower_residual:.1e}")

fig, axis = plt.subplots(figsize=(6.5, 3.4), constrained_layout=True)
for chosen, colour, name in ((~wrong, "#2a6f97", "label right"), (wrong, "#9e2a2b", "label wrong")):
    axis.hist(first.grad["logits"][chosen], bins=60, color=colour, alpha=0.6, label=name)
axis.set(xlabel="hypergradient with respect to the row's logit", ylabel="rows")
axis.legend(frameon=False)
plt.show()

# %%
# Solvers in one interface
# ------------------------
# All solvers take the problem, a budget (steps, oracle calls or seconds) and leave the same trace. A run can be saved
# to a file and taken up again bit by bit. Calls are counted alike: a gradient of one sample is one, a product two.

solvers = {
    "SOBA": SOBA(make_problem(), lr=1000.0, lr_lower=0.5, decay=0.2),
    "MASOBA": MASOBA(make_problem(), lr=1000.0, lr_lower=0.5),
    "AmIGO": AmIGO(make_problem(), lr=1000.0, lr_lower=0.5),
}
results = {name: s.run(Budget(oracle_calls=400_000), trace_every=10) for name, s in solvers.items()}
fig, axis = plt.subplots(figsize=(6.5, 4), constrained_layout=True)
plot_traces(results, figure_of="test accuracy", log=False, axes=axis)
axis.set(ylim=(0.6, 1.0))
plt.show()

# %%
# Which rows were wrong?
# ----------------------

found = results["MASOBA"].x["logits"].sigmoid()
auroc = float((found[~wrong][:, None] > found[wrong][None]).double().mean())
print(f"a right row outweighs a wrong one in {100 * auroc:.1f} % of pairs")
fig, axis = plt.subplots(figsize=(6.5, 3.4), constrained_layout=True)
for chosen, colour, name in ((~wrong, "#2a6f97", "label right"), (wrong, "#9e2a2b", "label wrong")):
    axis.hist(found[chosen], bins=40, range=(0, 1), color=colour, alpha=0.6, label=name)
axis.set(xlabel="learnt weight of the row", ylabel="rows")
axis.legend(frameon=False)
plt.show()

# %%
# How exact are hypergradients?
# -----------------------------
# On problems whose answer is known in closed form there is nothing to argue about. Conjugate gradients stop where they
# are told to; the Neumann series and the unrolled loop, one and the same from y*, fall by 1 - aμ a step; a Nystrom
# sketch errs by its damping and by what its rank leaves out.

case = problems.quadratic(10, 40, condition=50.0, seed=0)
x = case.problem.x0 + 0.1
y, truth = case.lower_solution(x), case.hypergradient(x)
steps = [1, 2, 5, 10, 20, 40, 80, 160, 320]
fig, axis = plt.subplots(figsize=(6.5, 4), constrained_layout=True)
for method, colour in (("cg", "#2a6f97"), ("neumann", "#e09f3e"), ("unroll", "#5aa469")):
    grads = [hypergradient(case.problem, x, y, method=method, max_steps=k, rtol=1e-14).grad for k in steps]
    axis.loglog(steps, [float((g - truth).norm() / truth.norm()) for g in grads], "o-", color=colour, label=method)
ranks = [5, 10, 20, 40]
grads = [hypergradient(case.problem, x, y, method="nystrom", rank=k, damping=0.02).grad for k in ranks]
axis.loglog(
    ranks, [float((g - truth).norm() / truth.norm()) for g in grads], "s--", color="#9e2a2b", label="nystrom, rank"
)
axis.set(xlabel="steps, or rank", ylabel="relative error of the hypergradient")
axis.legend(frameon=False)
plt.show()

# %%
# Exact where exactness is cheap
# ------------------------------
# Deterministic and with a line search: on small problems `AID` needs no step sizes at all.

case = problems.quadratic(10, 40, condition=5.0, seed=0)
result = AID(case.problem).run(Budget(iterations=40))
print(f"‖∇Φ‖ from {result.trace[0].exact_norm:.1e} to {result.trace[-1].exact_norm:.1e} in {result.counts.calls} calls")
