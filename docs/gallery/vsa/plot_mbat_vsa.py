"""
JSON records as vectors: structure that survives
================================================

A JSON record becomes one vector of 1024 numbers, without schema or training. Values are vectors; a key is an orthogonal
matrix that turns them; a record is the sum. Because the matrices keep all lengths and angles, nesting costs nothing,
and because matrices do not commute, ``a`` inside ``b`` is not ``b`` inside ``a``.

The method is MBAT (`Gallant and Okaywe, 2013 <https://doi.org/10.1162/NECO_a_00467>`_) with orthogonal matrices
(`Gallant, 2022 <https://arxiv.org/abs/2202.04771>`_).
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from hesse.vsa import JSONEncoder, JSONIndex, OrthogonalBinding

BLUE, ORANGE, RED, GREEN = "#2a6f97", "#e09f3e", "#9e2a2b", "#5aa469"

# %%
# Why orthogonal
# --------------
# Two vectors with cosine 0.8 are bound again and again. Under matrices of independent normal numbers their lengths and
# their cosine wander; under any of the three orthogonal families nothing moves.

dim, depths = 1024, range(31)
generator = torch.Generator().manual_seed(0)
pair = torch.randn(2, dim, generator=generator)
pair[1] = 0.8 * pair[0] + 0.6 * pair[1]
pair = pair / pair.norm(dim=1, keepdim=True)


def wander(step):
    """Length and cosine after each binding."""
    v, found = pair, []
    for depth in depths:
        found.append((float(v[0].norm()), float(v[0] @ v[1] / v[0].norm() / v[1].norm())))
        v = step(depth, v)
    return np.array(found)


fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
for draw in range(8):
    made = torch.Generator().manual_seed(draw)
    path = wander(lambda _, v, made=made: v @ torch.randn(dim, dim, generator=made) / dim**0.5)
    for axis, column in zip(axes, path.T, strict=True):
        axis.plot(depths, column, color=ORANGE, linewidth=0.9, label="i.i.d. matrices, 8 draws" if draw == 0 else None)
binding = OrthogonalBinding(dim)
path = wander(lambda depth, v: binding.bind(f"role {depth}", v))
for axis, column, name in zip(axes, path.T, ("length", "cosine of the pair"), strict=True):
    axis.plot(depths, column, color=BLUE, linewidth=2.2, label="signed permutations")
    axis.set(xlabel="bindings", title=name)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, loc="lower left")
plt.show()

# %%
# Which records are alike
# -----------------------
# Seven records of a shop. Order of keys does not matter; a price that is off, a misspelt name and a missing key matter
# a little; who sold to whom matters.

sale = {
    "buyer": {"name": "Ana Cruz", "city": "Lima", "tier": "gold"},
    "seller": {"name": "Bo Lindqvist", "city": "Bergen", "tier": "trial"},
    "item": {"sku": "lamp, brass", "price": 118.5},
}
records = {
    "the sale": sale,
    "keys reversed": {key: dict(reversed(list(value.items()))) for key, value in reversed(list(sale.items()))},
    "price + 4 %": sale | {"item": sale["item"] | {"price": 123.2}},
    "name misspelt": sale | {"buyer": sale["buyer"] | {"name": "Ana Curz"}},
    "no seller's city": sale | {"seller": {"name": "Bo Lindqvist", "tier": "trial"}},
    "roles exchanged": sale | {"buyer": sale["seller"], "seller": sale["buyer"]},
    "levels exchanged": {
        inner: {outer: value[inner] for outer, value in sale.items() if inner in value}
        for inner in ("name", "city", "tier", "sku", "price")
    },
}
encoder = JSONEncoder()
vectors = encoder.transform(list(records.values()))
cosines = vectors @ vectors.T
fig, axis = plt.subplots(figsize=(6.4, 5.4), constrained_layout=True)
axis.imshow(cosines, cmap="YlGnBu", vmin=0, vmax=1)
axis.set_xticks(range(len(records)), list(records), rotation=35, ha="right")
axis.set_yticks(range(len(records)), list(records))
for i, row in enumerate(cosines):
    for j, value in enumerate(row):
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "0.2", fontsize=9)
axis.set_title("Cosines of records")
plt.show()

# %%
# ``explain`` says where a cosine comes from: each field's inner product, and what is left over.

found = encoder.explain(sale, records["roles exchanged"])
for pattern, share in found.contributions.items():
    print(f"{pattern:<14} {share:.3f}")
print(f"{'rest':<14} {found.rest:+.3f}   cosine {found.cosine:.3f}")

# %%
# Reading values back
# -------------------
# Unbinding a key leaves its value and the noise of all the others, and the nearest vector of a codebook is the answer.
# With n fields the answer stands out by √(D/n), while the best of N wrong ones reaches √(2 ln N): where the margin is
# positive, the value is right.

words = [f"word {i}" for i in range(300)]
rng = np.random.default_rng(0)
counts = [8, 12, 16, 24, 32, 48, 64, 96, 128]
fig, axis = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
for size, colour in ((512, ORANGE), (1024, BLUE), (2048, GREEN)):
    exact = JSONEncoder(size, string="exact")
    codebook = exact.codebook(words)
    accuracy = []
    for count in counts:
        right = []
        for _ in range(4):
            record = {f"field {i}": str(rng.choice(words)) for i in range(count)}
            v = exact.encode(record)
            right += [exact.get(v, [key], codebook).value == value for key, value in record.items()]
        accuracy.append(np.mean(right))
    axis.semilogx(counts, accuracy, "o-", color=colour, markersize=4, label=f"D = {size}")
    axis.axvline(size / (np.sqrt(2 * np.log(len(words))) + 2) ** 2, color=colour, linestyle=":", linewidth=1.2)
axis.set(xlabel="fields in the record", ylabel="values read back right", xticks=counts, xticklabels=counts)
axis.minorticks_off()
axis.legend(frameon=False, title="margin 0: dotted")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Searching
# ---------
# An index keeps vectors as float32, int8 or single bits, and finds the records most like a question, which may be
# misspelt, rounded, and a part of a record only. On the command line: ``hesse vsa index`` and ``hesse vsa search``.

index = JSONIndex(encoder, "int8")
index.add(records.values(), records)
for hit in index.search({"buyer": {"name": "ana criz"}, "item": {"price": 125}}, k=3):
    print(f"{hit.score:.3f}  {hit.id}")
