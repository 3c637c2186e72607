"""
Least squares from a sketch: where does the error go?
=====================================================

A tall least-squares problem shrinks to a small one when both sides are multiplied by a random matrix S with few rows.
The residual of the small solution is nearly as good as the best one, whichever S is used. The *solution* is another
matter: a step of Newton's method, an influence score or an attribution reads single coordinates, and it makes a
difference whether the error is spread over all of them or sits in one.

`Song, Ye, Yin and Zhang (2023) <https://arxiv.org/abs/2302.00248>`_ prove that the subsampled randomised Hadamard
transform (SRHT) spreads it: with some D / eps² rows no coordinate is off by more than (eps / √D) ‖r‖ ‖A⁺‖, r the
residual. Sparse sketches have no such guarantee.
"""

import matplotlib.pyplot as plt
import torch

from hesse.linalg import sketched_lstsq

generator = torch.Generator().manual_seed(0)
COLOURS = {"srht": "#2a6f97", "gaussian": "#5aa469", "sparse_sign": "#e09f3e", "countsketch": "#9e2a2b"}

# %%
# An instance made for it
# -----------------------
# A = [I; 0] and a right-hand side on 8 of the rows that A does not reach. The solution is zero, so that whatever comes
# out is the error. CountSketch throws each row into one bucket: a coordinate is wrong if its row shares a bucket with
# one of the eight, and then it carries the whole of that entry. Two rows of I can share one as well, hence ``rcond``:
# of all solutions of the sketched problem take that of least norm.

n, d, k, m = 3000, 64, 8, 512
A = torch.eye(n, d, dtype=torch.float64)
b = torch.zeros(n, dtype=torch.float64)
b[d + torch.randperm(n - d, generator=generator)[:k]] = k**-0.5


def errors(sketch, m, trials):
    """One error a row, in units of 1 / √D."""
    solve = [
        sketched_lstsq(A, b, sketch_size=m, sketch=sketch, rcond=1e-10, generator=generator) for _ in range(trials)
    ]
    return torch.stack(solve) * d**0.5


srht, countsketch = errors("srht", m, 24), errors("countsketch", m, 24)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, constrained_layout=True)
for axis, name, picture in ((axes[0], "SRHT", srht), (axes[1], "CountSketch", countsketch)):
    shown = axis.imshow(picture, cmap="RdBu", vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
    axis.set(title=name, xlabel="coordinate of the solution")
axes[0].set_ylabel("draw of the sketch")
fig.colorbar(shown, ax=axes, label="error × √D")
fig.suptitle(f"24 draws of each sketch, {m} rows for {d} unknowns: the same error, spread or in one place")
plt.show()

# %%
# More rows
# ---------
# The largest error of SRHT falls as 1/√M, as does that of a dense Gaussian sketch, which costs far more to apply.
# CountSketch's stays at the size of one entry of b until M is so large that collisions die out; eight entries a column
# instead of one help in proportion. On a matrix without outstanding rows, such as one of independent normal numbers,
# all four do alike: the guarantee is about the worst case.

sizes = [128, 256, 512, 1024]
fig, axis = plt.subplots(figsize=(6.5, 4), constrained_layout=True)
for sketch, colour in COLOURS.items():
    peaks = torch.stack([errors(sketch, size, 24).abs().amax(1) for size in sizes])
    axis.plot(sizes, torch.quantile(peaks, 0.9, dim=1), "o-", color=colour, label=sketch)
axis.plot(sizes, [3 * (d / size) ** 0.5 for size in sizes], ":", color="0.4", label="∝ 1/√M")
axis.set(xscale="log", yscale="log", xlabel="rows of the sketch, M", ylabel="largest error × √D", ylim=(0.5, 5))
axis.set_xticks(sizes, [str(size) for size in sizes])
axis.minorticks_off()
axis.set_yticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
axis.legend(frameon=False)
axis.set_title("Nine draws in ten stay below")
plt.show()

# %%
# How good is mine?
# -----------------
# One call says so without the exact solution. ``coordinate_bound`` holds for all coordinates at once with probability
# 95 %, and ``error_estimate`` is the error itself, estimated from one more pass over A. Here on a problem with columns
# of very different length.

A = torch.randn(20_000, 40, dtype=torch.float64, generator=generator) * torch.logspace(0, 1, 40, dtype=torch.float64)
true = torch.randn(40, dtype=torch.float64, generator=generator)
b = A @ true + 3 * torch.randn(20_000, dtype=torch.float64, generator=generator)
exact = torch.linalg.lstsq(A, b.unsqueeze(1)).solution.squeeze(1)
x, info = sketched_lstsq(A, b, return_info=True, generator=generator)
print(f"M = {info.sketch_size}, condition {info.condition:.1f}")
print(f"largest error {(x - exact).abs().max():.4f}, estimated {info.error_estimate:.4f}")

fig, axis = plt.subplots(figsize=(6.5, 3.4), constrained_layout=True)
axis.fill_between(range(40), -info.coordinate_bound, info.coordinate_bound, color="#2a6f97", alpha=0.2, linewidth=0)
axis.plot(x - exact, "o", color="#2a6f97", markersize=4)
axis.axhline(0, color="0.6", linewidth=0.8)
axis.set(xlabel="coordinate", ylabel="x − x*", title="Errors inside their bound")
plt.show()

# %%
# All digits
# ----------
# A sketch alone gives one or two digits. If more are wanted, refine: the triangle of the sketched matrix makes
# the error of conjugate gradients fall by √(D/M) a step, whatever the condition of A.

steps = list(range(0, 25, 2))
fig, axis = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
for ratio, shade in ((4, "#a9d6e5"), (16, "#2a6f97"), (64, "#012a4a")):
    gaps = []
    for limit in steps:
        x = sketched_lstsq(A, b, sketch_size=ratio * 40, refine=limit, generator=torch.Generator().manual_seed(1))
        gaps.append(float((x - exact).norm() / exact.norm()))
    axis.semilogy(steps, gaps, "o-", color=shade, markersize=4, label=f"M = {ratio} D")
axis.set(xlabel="steps of refinement", ylabel="relative error of x")
axis.legend(frameon=False)
plt.show()
