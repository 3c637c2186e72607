"""
A matrix that is only multiplied by
===================================

The Hessian of a network with a million parameters has 10¹² entries, and a product with it costs two gradients. Kernel
matrices, covariance operators and discretised differential operators are alike: nobody forms them, everybody multiplies
by them. Everything in hesse rests on this one interface. Here is what can be had from products alone: solutions,
eigenvalues, traces, each with a word on how far to trust it.
"""

import matplotlib.pyplot as plt
import torch

from hesse.linalg import (
    Dense,
    Diagonal,
    FunctionOperator,
    Kronecker,
    block_cg,
    cg,
    eigsh,
    hutchinson_trace,
    hutchpp_trace,
    minres,
    nystrom_preconditioner,
    recycled_cg,
    solve,
    spectral_density,
    xnystrace,
    xtrace,
)

generator = torch.Generator().manual_seed(0)
BLUE, GREEN, OCHRE, RED = "#2a6f97", "#5aa469", "#e09f3e", "#9e2a2b"

# %%
# Operators and their algebra
# ---------------------------
# An operator is made from a tensor, a sparse matrix, a SciPy operator, or a function. Sums, products and shifts stay
# operators, and structure is kept where it can be used: a Kronecker product plus a multiple of the identity is solved
# through the eigenvectors of its factors, 360,000 unknowns without one iteration.

factors = [torch.randn(600, 900, dtype=torch.float64, generator=generator) for _ in range(2)]
kron = Kronecker([Dense(f @ f.T / 900, is_psd=True) for f in factors], is_psd=True)
b = torch.randn(kron.shape[0], dtype=torch.float64, generator=generator)
solution = solve(kron.eigh().shift(1e-2), b)
print(f"{kron.shape[0]} unknowns by method {solution.method!r}, residual {float(solution.residual / b.norm()):.1e}")

# %%
# Three ways to a solution
# ------------------------
# A kernel matrix with a little noise on its diagonal is badly conditioned: conjugate gradients take hundreds of steps.
# One product with a block of random vectors makes a preconditioner (`Nyström <https://arxiv.org/abs/2110.02820>`_) that
# leaves a handful. And several right-hand sides can help one another: in the Krylov space of all sixteen, each of them
# needs far fewer steps than in its own.

points = torch.rand(1500, 2, dtype=torch.float64, generator=generator)
kernel = Dense(torch.exp(-(torch.cdist(points, points) ** 2) / (2 * 0.2**2)), is_psd=True)
noise = 1e-3
system = kernel.shift(noise)
B = torch.randn(1500, 16, dtype=torch.float64, generator=generator)
preconditioner = nystrom_preconditioner(kernel, noise, generator=generator)
runs = {
    "conjugate gradients": (cg(system, B, rtol=1e-8, record_history=True), RED),
    "block of 16": (block_cg(system, B, rtol=1e-8, record_history=True), OCHRE),
    f"Nyström of rank {preconditioner.U.shape[1]}": (
        cg(system, B, preconditioner=preconditioner, rtol=1e-8, record_history=True),
        BLUE,
    ),
}
fig, axis = plt.subplots(figsize=(6.5, 3.8), constrained_layout=True)
for name, (run, colour) in runs.items():
    relative = (run.history / B.norm(dim=0)).amax(1)
    axis.loglog(range(1, len(relative) + 1), relative, color=colour, label=f"{name}: {run.num_steps} products")
axis.set(xlabel="products with the block + 1", ylabel="largest ‖b − A x‖ / ‖b‖", ylim=(1e-14, 1e2))
axis.legend(frameon=False)
axis.set_title("One system, sixteen right-hand sides")
plt.show()

# %%
# Learning from the last solve
# ----------------------------
# Newton's method, influence scores, time steps: the same matrix comes back with another right-hand side. What makes a
# solve slow is a handful of low eigenvectors, and the steps of the first solve have found them. ``recycled_cg`` keeps
# them, without a single further product, and the next solve starts without them.

low = torch.logspace(-5, -3, 12, dtype=torch.float64)
values = torch.cat([low, torch.linspace(1, 10, 788, dtype=torch.float64)])
basis = torch.linalg.qr(torch.randn(800, 800, dtype=torch.float64, generator=generator)).Q
hard = Dense((basis * values) @ basis.T, is_psd=True)
space, counts, plain = None, [], []
for _ in range(8):
    b = torch.randn(800, dtype=torch.float64, generator=generator)
    found, space = recycled_cg(hard, b, deflation=space, rank=12, rtol=1e-8)
    counts.append(found.num_steps)
    plain.append(cg(hard, b, rtol=1e-8).num_steps)
fig, axis = plt.subplots(figsize=(6.5, 3.2), constrained_layout=True)
axis.bar([i - 0.2 for i in range(1, 9)], plain, width=0.38, color="0.8", label="each by itself")
axis.bar([i + 0.2 for i in range(1, 9)], counts, width=0.38, color=BLUE, label="with what the last one left")
axis.set(xlabel="solve", ylabel="products")
axis.legend(frameon=False, loc="upper right", ncols=2)
axis.set_ylim(0, 1.25 * max(plain))
axis.set_title(f"{sum(plain)} products, or {sum(counts)}")
plt.show()

# %%
# No solution at all
# ------------------
# A matrix with a null space and a right-hand side outside its range has no solution, and conjugate gradients must not
# pretend. MINRES stops, says so, and returns the shortest of all least-squares solutions.

singular = Diagonal(torch.cat([torch.linspace(-2, -0.5, 40), torch.zeros(5), torch.linspace(0.5, 3, 55)]).double())
b = torch.ones(100, dtype=torch.float64)
found = minres(singular, b)
print(
    f"{found.status.name}: ‖b - A x‖ = {float(found.residual):.4f} = √5, null space {float(found.x[40:45].norm()):.1e}"
)

# %%
# The spectrum, and its edges
# ---------------------------
# Ten random vectors and forty steps of Lanczos draw the density of eigenvalues: here of a covariance matrix of noise,
# whose density is known in the limit (Marchenko and Pastur), with three directions of signal, which ``eigsh`` finds to
# full accuracy. The operator is a function: the matrix of order 2000 is never formed.

n, samples = 2000, 6000
X = torch.randn(samples, n, dtype=torch.float64, generator=generator)
X[:, :3] *= torch.tensor([2.2, 2.0, 1.8], dtype=torch.float64)
covariance = FunctionOperator(lambda v: X.T @ (X @ v) / samples, (n, n), dtype=torch.float64, is_psd=True)
density = spectral_density(covariance, num_probes=10, num_steps=40, generator=generator)
top = eigsh(covariance, 3, which="LA", generator=generator).eigenvalues
ratio = n / samples
edges = ((1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2)
grid = torch.linspace(edges[0], edges[1], 400, dtype=torch.float64)
law = ((grid - edges[0]).clamp_min(0) * (edges[1] - grid).clamp_min(0)).sqrt() / (2 * torch.pi * ratio * grid)
fig, axis = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
axis.fill_between(density.grid, density.density, color=BLUE, alpha=0.35, linewidth=0, label="ten probes, forty steps")
axis.plot(grid, law, color="0.2", linewidth=1, label="Marchenko-Pastur")
axis.plot(top, torch.full_like(top, 0.03), "v", color=RED, label="eigsh")
axis.set(xlabel="eigenvalue", ylabel="density", ylim=(0, 1.1), xlim=(-0.2, 6.5))
axis.legend(frameon=False)
plt.show()

# %%
# Traces, with error bars
# -----------------------
# The trace from m products. Hutchinson's error falls as 1/√m whatever the matrix; the others learn the large
# eigenvalues first and sample only what is left, `XTrace and XNysTrace <https://arxiv.org/abs/2301.07825>`_ using each
# product twice. Lines are root mean squares of the true error over 30 runs, dots the mean of the error that each run
# reports of itself.

eigenvalues = torch.arange(1, 601, dtype=torch.float64) ** -1.5
basis = torch.linalg.qr(torch.randn(600, 600, dtype=torch.float64, generator=generator)).Q
decaying = Dense((basis * eigenvalues) @ basis.T, is_psd=True)
exact = float(eigenvalues.sum())
budgets = [12, 24, 48, 96, 192]
methods = {"Hutchinson": hutchinson_trace, "Hutch++": hutchpp_trace, "XTrace": xtrace, "XNysTrace": xnystrace}
fig, axis = plt.subplots(figsize=(6.5, 4), constrained_layout=True)
for (name, method), colour in zip(methods.items(), (RED, OCHRE, GREEN, BLUE), strict=True):
    true, reported = [], []
    for budget in budgets:
        estimates = [method(decaying, budget, generator=generator) for _ in range(30)]
        true.append(sum((float(e) - exact) ** 2 for e in estimates) ** 0.5 / 30**0.5 / exact)
        reported.append(sum(float(e.standard_error) for e in estimates) / 30 / exact)
    axis.loglog(budgets, true, "-", color=colour, label=name)
    axis.loglog(budgets, reported, "o", color=colour, markersize=4)
axis.set_xticks(budgets, [str(budget) for budget in budgets])
axis.minorticks_off()
axis.set(xlabel="products", ylabel="relative error of the trace")
axis.legend(frameon=False)
plt.show()
