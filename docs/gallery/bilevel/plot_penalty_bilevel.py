"""
Which of many solutions? Bilevel optimisation without second derivatives
=========================================================================

An over-parameterised model has a whole valley of perfect fits. A bilevel problem over it means the best point *in* the
valley: among all y that solve the lower problem, the one the upper objective likes best. Implicit differentiation
cannot see the valley's floor, because the Hessian is singular along it. Penalty methods walk it:

.. math:: \\nabla\\psi_s(x) = f_x(x, y) + \\frac{g_x(x, y) - g_x(x, z)}{s},
          \\qquad y \\in \\operatorname{argmin} s f + g, \\quad z \\in \\operatorname{argmin} g

Two copies of the lower variable, gradients only, and an error proportional to s
(`Kwon, Kwon, Wright and Nowak, 2024 <https://arxiv.org/abs/2309.01753>`_).
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from hesse.bilevel import (
    SOBA,
    BilevelProblem,
    Budget,
    PenaltyBilevel,
    degenerate_hypergradient,
    penalty_hypergradient,
    problems,
    tasks,
)

BLUE, RED, GOLD, GREEN = "#2a6f97", "#9e2a2b", "#e09f3e", "#5aa469"

# %%
# A curved valley
# ---------------
# The lower loss vanishes on a circle of radius x. The upper one asks for a point to the upper left, and for a radius
# near 2. Both solvers start at the lower right. The copy y of the penalty method walks along the valley's floor, whose
# radius shrinks and grows meanwhile, to the point that f prefers; z only follows the radius. SOBA cannot turn: along
# the floor its linear system is singular. What is left to it is to shrink the radius, until the valley is a point.

target = torch.tensor([-1.6, 1.9], dtype=torch.float64)
valley = BilevelProblem(
    upper=lambda x, y, batch: (y - target).square().sum() / 2 + (x - 2).square().sum() / 4,
    lower=lambda x, y, batch: (y.square().sum() - x.square().sum()).square() / 8,
    x0=torch.ones(1, dtype=torch.float64),
    y0=torch.tensor([1.6, -0.4], dtype=torch.float64),
)


def path_of(solver, steps, names):
    points = {name: [] for name in names}
    for k in range(steps):
        solver.run(Budget(iterations=k + 1), trace_every=steps)
        for name in names:
            points[name].append(getattr(solver, name))
    return {name: torch.stack(rows) for name, rows in points.items()}


penalty = path_of(PenaltyBilevel(valley, lr=0.003, lr_lower=0.1, sigma=0.1, sigma_decay=0.0), 2500, ("x", "y", "z"))
soba = path_of(SOBA(valley, lr=0.003, lr_lower=0.1, decay=0.0), 2500, ("x", "y"))

grid = torch.stack(torch.meshgrid(*[torch.linspace(-2.9, 2.9, 200).double()] * 2, indexing="xy"), -1)
radius = float(penalty["x"][-1])
height = ((grid.square().sum(-1) - radius**2).square() / 8).clamp_min(1e-2).log10()
fig, axis = plt.subplots(figsize=(6.4, 5.6), constrained_layout=True)
axis.contourf(grid[..., 0], grid[..., 1], height, levels=25, cmap="Greys_r", alpha=0.55)
axis.plot(*penalty["z"].T, color=GOLD, lw=2, label="z, minimising g alone")
axis.plot(*soba["y"].T, color=RED, lw=2, label="SOBA's y")
axis.plot(*penalty["y"].T, color=BLUE, lw=2.5, label="y, minimising s f + g")
axis.plot(*target, "*", color=GREEN, ms=16, label="where f would be")
axis.plot(*valley.y0, "o", color="black", ms=6, label="start")
for points, colour in ((penalty["y"], BLUE), (soba["y"], RED)):
    axis.plot(*points[-1], "o", color=colour, ms=9)
axis.set(xlabel="first entry of y", ylabel="second entry of y", aspect="equal", xlim=(-2.9, 2.9), ylim=(-2.9, 2.9))
axis.legend(loc="lower left", fontsize=9)
axis.set_title("the floor of the valley, at the radius learnt")
plt.show()
ends = {
    name: float(valley.upper(run["x"][-1], run["y"][-1], None)) for name, run in (("penalty", penalty), ("SOBA", soba))
}
print("f at the end:", {name: round(value, 3) for name, value in ends.items()})

# %%
# The error in s, and how to square it
# ------------------------------------
# A quadratic lower level of rank 5 in 8 unknowns has a closed form to compare with. One gradient is off by O(s);
# Richardson's combination of s and s/2 by O(s²). Where second derivatives can be had after all, the pseudo-inverse
# formula is exact, at the solution that f likes best and only there.

case = problems.quadratic(5, 8, rank=5, condition=3.0, seed=0)
x = case.problem.x0 + 0.1
truth = case.hypergradient(x)


def error(found):
    return float((found.grad - truth).norm() / truth.norm())


sigmas = [10**-k for k in (1, 1.5, 2, 2.5, 3, 3.5, 4)]
fig, axis = plt.subplots(figsize=(6.4, 4), constrained_layout=True)
for richardson, colour, name in ((False, GOLD, "one gradient"), (True, BLUE, "Richardson")):
    errors = [error(penalty_hypergradient(case.problem, x, s, richardson=richardson, tol=1e-14)) for s in sigmas]
    axis.loglog(sigmas, errors, "o-", color=colour, label=name)
exact = error(degenerate_hypergradient(case.problem, x, case.lower_solution(x)))
axis.set(xlabel="s", ylabel="relative error of the hypergradient")
axis.legend(frameon=False)
plt.show()
print(f"pseudo-inverse formula: {exact:.1e}")

# %%
# Half of the labels are wrong
# ----------------------------
# One weight a training row, learnt from 300 trusted rows. The penalty method sorts out the wrong labels as well as the
# solvers that differentiate twice.

table = load_digits()
generator = torch.Generator().manual_seed(0)
order = torch.randperm(len(table.target), generator=generator)
pixels, labels = torch.from_numpy(table.data)[order] / 16, torch.from_numpy(table.target)[order]
shift = torch.randint(1, 10, (1000,), generator=generator)
wrong = torch.rand(1000, generator=generator) < 0.5
noisy = torch.where(wrong, (labels[:1000] + shift) % 10, labels[:1000])
problem = tasks.hyper_cleaning(
    pixels[:1000], noisy, pixels[1000:1300], labels[1000:1300], num_classes=10, batch_size=64
)
solver = PenaltyBilevel(problem, lr=1000.0, lr_lower=0.5, sigma=0.3, sigma_decay=0.0)
result = solver.run(Budget(iterations=3000), trace_every=3000)
weights = result.x.sigmoid()
guesses = (pixels[1300:] @ result.y["weight"] + result.y["bias"]).argmax(1)
accuracy = float((guesses == labels[1300:]).double().mean())
print(f"test accuracy {accuracy:.3f}; penalty gap {result.extra['penalty_gap']:.3f}")

fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True, width_ratios=(2, 3))
for chosen, colour, name in ((~wrong, BLUE, "label right"), (wrong, RED, "label wrong")):
    axes[0].hist(weights[chosen], bins=40, range=(0, 1), color=colour, alpha=0.6, label=name)
axes[0].set(xlabel="learnt weight of the row", ylabel="rows")
axes[0].legend(frameon=False)
lightest = weights.argsort()[:24]
axes[1].imshow(
    pixels[lightest].reshape(3, 8, 8, 8).permute(0, 2, 1, 3).reshape(24, 64), cmap="Greys", interpolation="nearest"
)
for place, row in enumerate(lightest.tolist()):
    axes[1].text(8 * (place % 8), 8 * (place // 8) + 1, str(int(noisy[row])), color=RED, weight="bold")
axes[1].set(xticks=[], yticks=[], title="the lightest rows, and what they were labelled")
plt.show()
