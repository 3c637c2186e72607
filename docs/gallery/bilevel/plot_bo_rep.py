"""
One step length for near and far starts
=======================================

A recurrent network, or anything with an exponential in it, has a curvature that grows with its gradient. A step that
is right near the solution then blows up far from it, and a step that survives far away never arrives. BO-REP moves the
upper variable by a set *length* along an averaged direction,

.. math:: m \\leftarrow \\beta m + (1 - \\beta) d, \\qquad x \\leftarrow x - \\eta\\, m / \\|m\\|

so that the gradient's size does not matter, and the lower variable, which then has moved by little, may wait.
"""

import matplotlib.pyplot as plt
import torch

from hesse.bilevel import BOREP, MASOBA, BilevelProblem, Budget, problems, relaxed_smoothness, tasks

BLUE, AMBER, RED, GREEN = "#2a6f97", "#e09f3e", "#9e2a2b", "#5aa469"

# %%
# A problem whose gradient spans five decades
# -------------------------------------------
# :math:`f = \sum_i \cosh(x_i) + \|y - t\|^2/2` over a quadratic lower level; noise on every derivative. At
# :math:`x_i = 1` the gradient's norm is about 30, at 13 it is a million. Everything is known in closed form.


def noisy(start):
    return problems.cosh_upper(20, start=start, noise=0.5, relative_noise=0.15, seed=3).problem


def trace(solver, iterations, lr):
    """Linear decay for everybody."""

    def decay(row):
        solver.lr = lr * (1 - row.iteration / iterations)

    return solver.run(Budget(iterations=iterations), decay, trace_every=10)


runs = {}
for start in (1.0, 7.0, 13.0):
    runs["BO-REP, η = 0.05", start] = trace(BOREP(noisy(start), lr_decay=None), 2500, 0.05)
    for lr in (1e-5, 1e-3):
        runs[f"MA-SOBA, {lr:g}", start] = trace(MASOBA(noisy(start), lr=lr, lr_lower=0.1), 2500, lr)

fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.6), sharey=True, layout="constrained")
for axis, start in zip(axes, (1.0, 7.0, 13.0), strict=True):
    for (name, where), result in runs.items():
        if where == start:
            colour = BLUE if name.startswith("BO") else AMBER if "1e-05" in name else RED
            iterations, norms = result.column("iteration"), result.column("exact_norm")
            axis.semilogy(iterations, norms, color=colour, label=name)
            if "NaN" in result.message or "failed" in result.message or norms[-1] > 1e8:
                axis.annotate(
                    "diverged", (iterations[-1], 1e8), color=colour, xytext=(8, 0), textcoords="offset points"
                )
    axis.set(title=f"start at {start:g}", xlabel="iteration", ylim=(0.2, 1e9), xlim=(-60, 2560))
axes[0].set_ylabel("‖∇Φ(x)‖")
axes[2].legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93))
plt.show()

# %%
# The larger step of MA-SOBA is the best of all from near, and gone at once from far. The smaller one survives and
# gets nowhere. No step serves both; the length does.
#
# Is my problem of this kind?
# ---------------------------
# `relaxed_smoothness` measures how the gradient changes over small displacements along a trajectory, and fits
# :math:`L_0 + L_1\|\nabla f\|`. A slope of zero is ordinary smoothness, and asks for an ordinary solver.
#
# Here is an encoder with a recurrent matrix, whose spectral radius is a *gain*, under a linear head. The task is toy:
# which of two letters came more often. As the gain goes up, so do the gradient and, faster still, the curvature.


class Reader(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(16, 16, generator=generator, dtype=torch.float64)
        self.inwards = torch.nn.Parameter(torch.randn(2, 16, generator=generator, dtype=torch.float64))
        self.recurrent = torch.nn.Parameter(torch.linalg.qr(square).Q)

    def forward(self, letters):
        hidden = self.inwards.new_zeros(len(letters), 16)
        for column in letters.T:
            hidden = torch.tanh(self.inwards[column] + hidden @ self.recurrent)
        return hidden


generator = torch.Generator().manual_seed(1)
letters = torch.randint(2, (300, 20), generator=generator)
answers = (letters.double().mean(1) > 0.5).long()
head = torch.nn.Linear(16, 2, dtype=torch.float64)
train, valid = (letters[:200], answers[:200]), (letters[200:], answers[200:])
reading: BilevelProblem = tasks.hyper_representation(Reader(), head, train, valid, regularization=1e-2)

points = []
for gain in torch.linspace(0.3, 2.2, 24, dtype=torch.float64):
    start = {name: value.clone() for name, value in reading.x0.items()}
    points.append(start | {"recurrent": gain * start["recurrent"]})
network = relaxed_smoothness(reading, points, 1e-4, generator=generator).x

far = problems.cosh_upper(20, seed=3).problem
line = [torch.full((20,), float(a), dtype=torch.float64) for a in torch.linspace(0.5, 8, 24)]
cosh = relaxed_smoothness(far, line, 1e-4, generator=generator).x

fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
for axis, fit, name in zip(axes, (cosh, network), ("cosh", "recurrent encoder, gains 0.3 to 2.2"), strict=True):
    axis.loglog(fit.gradient_norms, fit.quotients, "o", color=GREEN, markersize=4)
    ends = fit.gradient_norms.sort().values
    axis.loglog(ends, fit.constant + fit.slope * ends, color=BLUE, label=f"{fit.constant:.2g} + {fit.slope:.2g} ‖∇f‖")
    axis.set(title=name, xlabel="‖∇f‖ with respect to x", ylabel="change of ∇f over displacement")
    axis.legend(frameon=False)
plt.show()

# %%
# What a length costs
# -------------------
# A step of length η does not shrink near the solution, so that without decay the gradient stays at about η times the
# curvature, and goes round: the linear system follows with a delay. `BOREP` therefore lets η fall to zero over the
# budget of its `run`, unless told otherwise. It chooses the steps of the lower level and of the linear system from the
# largest eigenvalue of :math:`g_{yy}`, and can be stopped and taken up again on the same schedule: give the whole
# budget as ``horizon``.

fig, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for decay, colour in (("linear", BLUE), (None, AMBER)):
    solver = BOREP(problems.cosh_upper(20, start=4.0, seed=3).problem, lr_decay=decay)
    result = solver.run(Budget(iterations=1500), trace_every=5)
    label = "length falls to zero" if decay else "length stays"
    axis.semilogy(result.column("iteration"), result.column("exact_norm"), color=colour, label=label)
axis.set(xlabel="iteration", ylabel="‖∇Φ(x)‖, no noise")
axis.legend(frameon=False)
plt.show()
