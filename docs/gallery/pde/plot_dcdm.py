"""
Deep conjugate directions
=========================

The pressure of a fluid solves a Poisson equation on the cells that hold fluid, with a new domain in every frame.
Conjugate gradients need hundreds of steps for it, because each step moves information by one cell.
:class:`hesse.pde.DeepConjugateDirection` asks a small convolutional network for the direction of each step. The answer
is as exact as before: the network only decides how soon it comes.
"""

# %%
# A channel with obstacles
# ------------------------
# Solid walls inside, open at the border of the grid. The network that comes with hesse was trained on an empty box of
# 64 x 64 cells: it has seen neither an obstacle nor a grid of this size.

import matplotlib.pyplot as plt
import torch

from hesse.linalg import PoissonStencil, cg
from hesse.pde.dcdm import DeepConjugateDirection

height, width = 112, 192
y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
fluid = torch.ones(height, width, dtype=torch.bool)
for row, column, radius in [(38, 50, 16), (78, 84, 18), (36, 126, 20), (84, 152, 12)]:
    fluid &= (y - row) ** 2 + (x - column) ** 2 > radius**2
A = PoissonStencil(fluid, dtype=torch.float64)

source = torch.zeros(height, width, dtype=torch.float64)
source[52:60, 10:18] = 1
source[52:60, 174:182] = -1
b = source.where(fluid, 0).flatten()

# %%
# Two solvers, one tolerance
# --------------------------
# The callback keeps the iterates, to be looked at below.

solver = DeepConjugateDirection.pretrained(dim=2)
iterates = []
ours = solver.solve(A, b, record_history=True, callback_fn=lambda _step, x, _r: iterates.append(x[:, 0].clone()))
plain = cg(A, b, rtol=1e-6, record_history=True)
print(f"conjugate gradients {plain.num_steps} steps, deep conjugate directions {ours.num_steps}")
print(f"largest difference {float((ours.require().x - plain.require().x).abs().max()):.1e}")

# %%
# What a step knows
# -----------------
# After four steps the residual direction has reached cells at most four away from the sources; the network has
# filled the channel. Every picture has the same colours.

exact = ours.x.reshape(height, width)
early = cg(A, b, rtol=0.0, max_steps=4).x.reshape(height, width)
pictures = {
    "conjugate gradients, 4 steps": early,
    "deep conjugate directions, 4 steps": iterates[3].reshape(height, width),
    f"solution ({ours.num_steps} steps of ours, {plain.num_steps} of CG)": exact,
}
limit = float(exact.abs().max())
figure, axes = plt.subplots(2, 2, figsize=(10, 6.2), layout="constrained")
colours = plt.get_cmap("RdBu_r").with_extremes(bad="0.25")
for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
    shown = picture.where(fluid, torch.nan).numpy()
    image = axis.imshow(shown, cmap=colours, vmin=-limit, vmax=limit)
    axis.contour(shown, levels=13, colors="k", linewidths=0.4)
    axis.set(title=title, xticks=[], yticks=[])
figure.colorbar(image, ax=axes[:, 0], location="left", shrink=0.6, label="pressure")

decay = axes[1, 1]
decay.semilogy((plain.history / plain.history[0]).numpy(), color="0.4", label="conjugate gradients")
decay.semilogy((ours.history / ours.history[0]).numpy(), color="C3", label="deep conjugate directions")
decay.axhline(1e-6, color="k", linewidth=0.7, linestyle=":")
decay.set(xlabel="steps", ylabel="residual", title="residual norm over that of b")
decay.legend(frameon=False)
plt.show()

# %%
# When the network is of no use
# -----------------------------
# A network with random weights proposes nonsense. After three slow steps in a row a column falls back on conjugate
# gradients for a while, and for twice as long each further time, so that the price is a bounded factor.

from hesse.pde.dcdm import DCDMNet

untrained = DeepConjugateDirection(DCDMNet(2, generator=torch.Generator().manual_seed(0)), max_steps=1000)
lost = untrained.solve(A, b).require()
print(f"untrained network: {lost.num_steps} steps, {int(lost.fallback_steps)} of them along the residual")

# %%
# One's own operator
# ------------------
# ``fit`` needs the operator of an empty domain and no solutions: the loss is what one exact line search along the
# network's direction leaves of the residual. Some seconds here; two minutes give the network used above.

box = PoissonStencil(torch.ones(24, 24, dtype=torch.bool))
own = DeepConjugateDirection(DCDMNet(2, 12, generator=torch.Generator().manual_seed(1)), max_steps=1000)
own.fit(box, num_ritz=150, num_steps=250, generator=torch.Generator().manual_seed(1))
found = own.solve(A, b).require()
print(f"trained for {len(own.losses)} steps: {found.num_steps} steps of the solver")

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.semilogy(own.losses.numpy(), color="C3")
axis.set(xlabel="training step", ylabel="squared residual left by one step", title="training without solutions")
plt.show()

# %%
# A step costs a call of the network. On a CPU multigrid remains the faster solver of this equation, as the benchmark
# says in its table of times; the network's case is many right-hand sides at once on an accelerator, and operators for
# which nobody has built a multigrid method.
