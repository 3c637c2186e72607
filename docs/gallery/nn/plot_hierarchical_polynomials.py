"""
A function of one hidden polynomial
===================================

A response that depends on many inputs through a single quadratic form, bent by an unknown curve: y = g(xᵀA x). To a
kernel this is a polynomial of degree six in two dozen variables, out of reach. `HierarchicalPolynomialRegressor`
finds the quadratic form first, by a ridge regression on random quadratic features, then the curve, and has both to
show (`Wang, Nichani and Lee, 2024 <https://arxiv.org/abs/2311.13774>`_).
"""

import matplotlib.pyplot as plt
import torch

from hesse.nn import HierarchicalPolynomialRegressor, hierarchical_target

INK, DATA, GOOD = "#264653", "#d1495b", "#2a9d8f"

# %%
# The feature and the curve
# -------------------------
# 24 inputs, 2,300 samples. Left, the learnt feature against the true polynomial at points not seen in training;
# right, the learnt curve against the true one. Above the two convex stages alone, below 300 steps of joint training
# more.

generator = torch.Generator().manual_seed(0)
target = hierarchical_target(24, generator=generator)
x = torch.randn(2304, 24, generator=generator, dtype=torch.float64)
test = torch.randn(3000, 24, generator=generator, dtype=torch.float64)
y, truth, p = target(x), target(test), target.polynomial(test)

models = {
    "layer by layer": HierarchicalPolynomialRegressor(split=False, random_state=0).fit(x, y),
    "and refined": HierarchicalPolynomialRegressor(split=False, refine=300, random_state=0).fit(x, y),
}
fig, axes = plt.subplots(2, 2, figsize=(10, 7.4), constrained_layout=True, sharex=True)
z = torch.linspace(-3, 3, 200, dtype=torch.float64)
for row, (name, model) in zip(axes, models.items(), strict=True):
    q = model.feature(test)
    correlation = float(torch.corrcoef(torch.stack([q, p]))[0, 1])
    sign = 1 if correlation > 0 else -1
    error = float((model.predict(test) - truth).square().mean() / truth.var())
    row[0].plot(p, sign * q, ".", ms=3, color=INK, alpha=0.4)
    row[0].set(ylabel="learnt feature", title=f"{name}: correlation {abs(correlation):.3f}", xlim=(-3, 3), ylim=(-3, 3))
    row[1].plot(p, truth, ".", ms=3, color="0.75", label="y")
    row[1].plot(z, model.link(sign * z), color=DATA, lw=2, label="learnt curve")
    row[1].plot(z, target.link(z), color=INK, ls="--", label="true curve")
    row[1].set(title=f"{name}: error {error:.2f} of the variance", ylim=(-6, 6))
axes[1, 0].set_xlabel("true polynomial")
axes[1, 1].set_xlabel("feature")
axes[0, 1].legend(frameon=False)
plt.show()

# %%
# How many samples
# ----------------
# Error against the number of samples, in units of d². Curves of several dimensions fall together: d² samples set the
# scale, not the d⁶ of a kernel on the whole.

fig, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
ratios = (1, 2, 4, 8, 16)
for d, colour in ((8, "#e9c46a"), (12, GOOD), (16, INK)):
    errors = []
    for ratio in ratios:
        seen = []
        for seed in range(3):
            draw = torch.Generator().manual_seed(100 * d + seed)
            h = hierarchical_target(d, generator=draw)
            some = torch.randn(ratio * d * d, d, generator=draw, dtype=torch.float64)
            fresh = torch.randn(2000, d, generator=draw, dtype=torch.float64)
            fitted = HierarchicalPolynomialRegressor(split=False, random_state=seed).fit(some, h(some))
            seen.append(float((fitted.predict(fresh) - h(fresh)).square().mean() / h(fresh).var()))
        errors.append(sorted(seen)[1])
    axis.plot(ratios, errors, "o-", color=colour, label=f"d = {d}")
axis.axhline(1, color="0.8")
axis.set(
    xscale="log", xticks=ratios, xticklabels=ratios, xlabel="samples / d²", ylabel="error / variance", ylim=(0, 1.4)
)
axis.legend(frameon=False)
plt.show()

# %%
# **Limits.** Inputs should be like N(0, I) (``whiten=`` helps), the polynomial spread over many terms, and the curve
# must have a linear part: an even one hides the polynomial from the first stage, which then finds another (here the
# radius).
