"""
Equations whose solutions are small networks
============================================

`Marwah, Lipton, Lu and Risteski (2023) <https://arxiv.org/abs/2210.12101>`_ prove that certain nonlinear elliptic
equations have solutions that small two-layer networks represent, by running a preconditioned descent in function space
and watching the Barron norm of its iterates. Here the proof is run as a program. For at most three axes finite elements
are the better tool; the certificate, and sparse solutions in many dimensions, are what is new.
"""

import warnings
from math import log

import matplotlib.pyplot as plt
import torch

from hesse.pde import EllipticEnergy, PlaneWaveSeries, PreconditionedDescent, SineSeries

# %%
# A step is worth the same on every mesh
# --------------------------------------
# -Δu + 20 u³ = f on the square, with a solution that is known. The preconditioner (I - Δ)⁻¹ makes the number of steps
# independent of the mesh. A huge shift turns it into a multiple of the identity, which is plain descent: its largest
# stable step shrinks with the square of the frequencies.

solution = SineSeries(torch.tensor([[1, 1], [2, 2]]), torch.tensor([1.0, 0.5], dtype=torch.float64))
energy = EllipticEnergy(2, potential=[0, 0, 0, 0, 5.0], source=solution.zero()).with_solution(solution)


def errors(**options):
    """Relative H¹ errors by step."""
    trace = []
    solver = PreconditionedDescent(energy, backend="grid", tol=1e-11, max_steps=70, **options)
    solver.fit(observe_fn=lambda _t, u: trace.append(float((u - solution).h1_norm() / solution.h1_norm())))
    return trace, solver


fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), constrained_layout=True)
for modes, style in ((16, "-"), (48, "--")):
    ours, solver = errors(step=0.2, num_modes=modes)
    newton, _ = errors(accelerate="newton", num_modes=modes)
    plain, _ = errors(step=1.9e13 / (20 * modes**2 + 300), num_modes=modes, shift=1e13)
    for trace, colour, label in ((plain, "#9e2a2b", "plain"), (ours, "#2a6f97", "H¹"), (newton, "#5aa469", "Newton")):
        left.semilogy(trace, style, color=colour, label=f"{label}, {modes}² modes")
left.set(xlabel="step", ylabel="relative H¹ error", ylim=(1e-11, 2))
left.legend(frameon=False, fontsize=8)

axis = torch.linspace(0, 1, 120, dtype=torch.float64)
grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
picture = solver.predict(grid).reshape(120, 120)
shown = right.imshow(picture.T, origin="lower", extent=(0, 1, 0, 1), cmap="RdBu_r", vmin=-1.3, vmax=1.3)
right.set(title="the solution, a network of four cosines", xticks=[0, 1], yticks=[0, 1])
fig.colorbar(shown, ax=right)
plt.show()

# %%
# What is proved, and what happens
# --------------------------------
# The certificate bounds the Barron norm from the equation alone. It triples its number of digits with every step, as
# the theorem says it must for a cubic term; the norm itself hardly moves.

records = solver.history_[1:7]
report = solver.certificate_report()
certified = 1 - report.strong_convexity / report.smoothness
print(f"each step leaves {report.observed_rate:.2f} of the energy's excess, certified {certified:.2f}")
print(f"H1 distance from the minimiser at most {report.error_bound:.1e}")

fig, axes = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
steps = range(1, len(records) + 1)
axes.semilogy(steps, [record.log_certificate / log(10) for record in records], "o-", color="#9e2a2b", label="certified")
axes.semilogy(steps, [log(record.barron_norm, 10) for record in records], "o-", color="#2a6f97", label="measured")
axes.set(xlabel="step", ylabel="digits of the Barron norm")
axes.legend(frameon=False)
plt.show()

# %%
# Fifty dimensions
# ----------------
# Five waves on the torus, -Δu + u + u³ = f, at most 150 terms: the errors are the same in 10 and in 50 dimensions.

fig, axes = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
for dim, style, colour in ((10, "o", "#2a6f97"), (50, "x", "#e09f3e")):
    freqs = torch.zeros(5, dim, dtype=torch.int64)
    for wave in range(5):
        freqs[wave, 2 * wave : 2 * wave + 2] = torch.tensor([1 + wave % 2, -1])
    exact = PlaneWaveSeries.cosines(freqs, torch.tensor([0.6, -0.5, 0.4, 0.3, -0.2], dtype=torch.float64))
    torus = EllipticEnergy(dim, potential=[0, 0, 0.5, 0, 0.25], source=exact.zero(), boundary="periodic")
    trace = []
    solver = PreconditionedDescent(
        torus.with_solution(exact), step=0.7, max_terms=150, truncation=0.0, tol=0.0, max_steps=15
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that at most 150 terms are kept is the setting
        solver.fit(observe_fn=lambda _t, u, t=trace, e=exact: t.append(float((u - e).l2_norm() / e.l2_norm())))
    axes.semilogy(trace, style, color=colour, label=f"{dim} dimensions", markersize=8 if style == "x" else 5)
axes.set(xlabel="step", ylabel="relative L² error")
axes.legend(frameon=False)
plt.show()
