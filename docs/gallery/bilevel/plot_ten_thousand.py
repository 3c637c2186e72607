"""
Recipe: tune 10,000 hyper-parameters of my model by gradient
=============================================================

From a model that learns badly to one that learns well, with every step in between: state the two levels, check them,
look at one gradient, run, decide when to stop, keep the result. The hyper-parameters are the weights of 10,000 training
rows, because nobody knows which of them carry the wrong label. No search over 10,000 numbers is thinkable; a gradient
costs a few passes over the data, whatever their number.

The rows are windows of sixty characters from CPython's own reference; the label says from which of five chapters. An
unreliable annotator has moved 45 % of the labels on to the next chapter.
"""

import zlib
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy

from hesse.bilevel import MASOBA, BilevelProblem, Budget, TensorSampler, check_problem, hypergradient

CHAPTERS = ("compound", "types", "formatstrings", "string-methods", "debugger")
NUM_FEATURES, WINDOW, PIECE = 1024, 60, 400
generator = torch.Generator().manual_seed(0)

# %%
# 1. The data
# -----------
# Pieces of 400 characters go to training, to two trusted sets, or to the test, so that no window of one is seen in
# another. The second trusted set stays aside, to say when to stop: 10,000 numbers can learn the first by heart. A row
# counts its groups of two to four characters, hashed to 1024 features.


def features(window):
    row = torch.zeros(NUM_FEATURES)
    for n in (2, 3, 4):
        for i in range(len(window) - n + 1):
            row[zlib.crc32(window[i : i + n].encode()) % NUM_FEATURES] += 1
    return row.sqrt() / row.sqrt().norm()


pieces = {"train": [], "trusted": [], "aside": [], "test": []}
bounds = {"train": 0.7, "trusted": 0.77, "aside": 0.82, "test": 1.0}
for chapter, name in enumerate(CHAPTERS):
    text = " ".join(topics[name].split())
    for i in range(0, len(text) - PIECE + 1, PIECE):
        u = float(torch.rand((), generator=generator))
        split = next(split for split, bound in bounds.items() if u < bound)
        pieces[split].append((chapter, text[i : i + PIECE]))


def draw(split, count):
    which = torch.randint(len(pieces[split]), (count,), generator=generator).tolist()
    start = torch.randint(PIECE - WINDOW, (count,), generator=generator).tolist()
    windows = [pieces[split][w][1][s : s + WINDOW] for w, s in zip(which, start, strict=True)]
    return torch.stack([features(w) for w in windows]), torch.tensor([pieces[split][w][0] for w in which]), windows


X, true_t, windows = draw("train", 10_000)
X_valid, t_valid, _ = draw("trusted", 700)
X_aside, t_aside, _ = draw("aside", 300)
X_test, t_test, _ = draw("test", 2000)
wrong = torch.rand(len(true_t), generator=generator) < 0.45
t = torch.where(wrong, (true_t + 1) % len(CHAPTERS), true_t)

# %%
# 2. The two levels
# -----------------
# Lower level: fit the model on the weighted rows, with a penalty that makes the fit unique. Upper level: the loss of
# that fit on trusted rows, which asks for the weights. Both take a batch, or all rows where the batch is None.

PENALTY = 1e-4
rows = torch.arange(len(X))


def lower(x, y, batch):
    index, inputs, labels = batch
    each = cross_entropy(inputs @ y["weight"] + y["bias"], labels, reduction="none")
    size = y["weight"].square().sum() + y["bias"].square().sum()
    return (x[index].sigmoid() * each).mean() + PENALTY * size


def upper(x, y, batch):
    inputs, labels = batch
    return cross_entropy(inputs @ y["weight"] + y["bias"], labels)


def accuracy(inputs, labels):
    return lambda x, y: float(((inputs @ y["weight"] + y["bias"]).argmax(1) == labels).float().mean())


problem = BilevelProblem(
    upper=upper,
    lower=lower,
    x0=torch.zeros(len(X)),
    y0={"weight": torch.zeros(NUM_FEATURES, len(CHAPTERS)), "bias": torch.zeros(len(CHAPTERS))},
    lower_sampler=TensorSampler((rows, X, t), 500, seed=1),
    upper_sampler=TensorSampler((X_valid, t_valid), 350, seed=2),
    metrics={"test": accuracy(X_test, t_test), "aside": accuracy(X_aside, t_aside)},
)

# %%
# 3. Check before running
# -----------------------
# Do the losses depend on what they should, is the lower level convex, are gradients right? The condition number says
# what the smallest curvature costs, the largest bounds the step of the lower level: below two over it.

print(check_problem(problem, generator=generator))

# %%
# 4. One gradient
# ---------------
# It is exact up to its two residuals: how far the inner fit is from its minimum, and how far the linear system is from
# its solution. Already here, at equal weights, it leans the right way.

first = hypergradient(problem, problem.x0, lower_tol=1e-4, rtol=1e-3)
print(f"{first.num_steps} products; residual {first.residual:.0e}, of the inner fit {first.lower_residual:.0e}")
shares = [float((first.grad[chosen] > 0).float().mean()) for chosen in (~wrong, wrong)]
print(f"the gradient asks for less weight on {shares[0]:.0%} of the right rows, on {shares[1]:.0%} of the wrong ones")

# %%
# 5. Run
# ------
# A single loop: model, adjoint and weights all move once an iteration, each from one batch. The step of the weights is
# large because each touches one row of 10,000. The best state by the rows kept aside is saved as the run goes; a solver
# can be taken up again from such a file.

solver = MASOBA(problem, lr=1000.0, lr_lower=4.0)
best = {"accuracy": 0.0, "iteration": 0}
with TemporaryDirectory() as folder:
    kept = Path(folder) / "best.safetensors"

    def keep_the_best(row):
        if row.metrics["aside"] > best["accuracy"]:
            best.update(accuracy=row.metrics["aside"], iteration=row.iteration)
            solver.save(kept)

    result = solver.run(Budget(iterations=2000), keep_the_best, trace_every=100)
    solver.load(kept)
found = problem.x_layout.unflatten(solver.x), problem.y_layout.unflatten(solver.y)

# %%
# 6. What was gained
# ------------------
# Against what one would do otherwise: fit all rows as they are; fit the trusted rows alone; fit both together. And
# against what nobody can do: fit the rows whose label is right.


def fit(inputs, labels):
    y = {name: torch.zeros_like(value).requires_grad_() for name, value in problem.y0.items()}
    optimizer = torch.optim.LBFGS(y.values(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        size = y["weight"].square().sum() + y["bias"].square().sum()
        loss = cross_entropy(inputs @ y["weight"] + y["bias"], labels) + PENALTY * size
        loss.backward()
        return loss

    optimizer.step(closure)
    return accuracy(X_test, t_test)(None, y)


trusted, t_trusted = torch.cat([X_valid, X_aside]), torch.cat([t_valid, t_aside])
reached = {
    "all rows as they are": fit(X, t),
    "trusted rows alone": fit(trusted, t_trusted),
    "both together": fit(torch.cat([X, trusted]), torch.cat([t, t_trusted])),
    "learnt weights": accuracy(X_test, t_test)(*found),
    "right rows only (nobody knows them)": fit(X[~wrong], t[~wrong]),
}
for name, value in reached.items():
    print(f"{name:36s} {value:.3f}")

weights = found[0].sigmoid()
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), constrained_layout=True)
steps = [row.iteration for row in result.trace]
left.plot(steps, [row.metrics["test"] for row in result.trace], color="#2a6f97", label="test")
left.plot(steps, [row.metrics["aside"] for row in result.trace], color="#e09f3e", label="kept aside")
left.axvline(best["iteration"], color="0.6", linewidth=1, linestyle=":")
for name, colour in (("all rows as they are", "#9e2a2b"), ("both together", "#5aa469")):
    left.axhline(reached[name], color=colour, linewidth=1, linestyle="--")
    left.text(steps[-1], reached[name] + 0.005, name, color=colour, ha="right", fontsize=9)
left.set(xlabel="iteration", ylabel="accuracy", ylim=(0.3, 0.75))
left.legend(frameon=False, loc="lower right")
for chosen, colour, name in ((~wrong, "#2a6f97", "label right"), (wrong, "#9e2a2b", "label wrong")):
    right.hist(weights[chosen], bins=50, range=(0, 1), color=colour, alpha=0.6, label=name)
right.set(xlabel="learnt weight", ylabel="rows")
right.legend(frameon=False)
plt.show()

# %%
# 7. Look at what it threw out
# ----------------------------

for i in weights.argsort()[:8].tolist():
    verdict = "wrong" if wrong[i] else "RIGHT"
    print(f"{weights[i]:.3f}  {verdict}  {CHAPTERS[t[i]]:14s} {windows[i]!r}")

# %%
# What to remember
# ----------------
# Gradients make many hyper-parameters affordable, they do not make them safe: keep rows aside, as above. With labels
# replaced evenly at random instead of moved to a neighbour, a well penalised linear model averages the noise away by
# itself, and weights learnt so do worse than none: try it.
