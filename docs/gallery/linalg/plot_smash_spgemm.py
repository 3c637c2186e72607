"""
Two hops in a skewed graph: where do the partial products go?
=============================================================

The product of two sparse matrices is one line of code, and most of its cost is invisible: before anything is added
up, every entry of A meets a whole row of B. `Shivdikar's thesis (2021) <https://arxiv.org/abs/2105.14156>`_ proposes
a machine that merges these partial products on the chip as they appear. `spgemm` does the same in the cache of an
ordinary processor, and `spgemm_model` counts what the proposed machine would move and hash, so that the thesis'
comparison can be made again without it.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LogNorm

from hesse.linalg.sparse import rmat, spgemm, spgemm_model, spgemm_symbolic

BLUE, GREEN, AMBER, RED, INK = "#2a6f97", "#5aa469", "#e09f3e", "#9e2a2b", "#333333"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

# %%
# A graph with heavy vertices
# ---------------------------
# R-MAT draws each edge by halving the adjacency matrix twelve times; the upper left quarter wins most often. The
# product counts paths of two hops. A third of a percent of A is filled, and a seventh of A A.

graph = rmat(12, 65_536, generator=torch.Generator().manual_seed(0))
plan = spgemm_symbolic(graph, graph)
paths = spgemm(graph, graph)


def blocks(matrix, width=16):
    """Entries in each square of width x width."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)) // width
    side = matrix.shape[0] // width
    counts = np.zeros((side, side))
    np.add.at(counts, (rows, matrix.indices // width), 1)
    return np.where(counts > 0, counts / width**2, np.nan)


figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.3), layout="constrained")
for axis, matrix, name in ((axes[0], graph, "A"), (axes[1], paths, "A A")):
    image = axis.imshow(blocks(matrix), norm=LogNorm(1 / 256, 1), cmap="magma_r", interpolation="nearest")
    axis.set_title(f"{name}: {matrix.nnz:,} entries, {matrix.nnz / 4096**2:.2%} filled")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
figure.colorbar(image, ax=axes, label="share of a 16 x 16 square that is filled", shrink=0.8)
plt.show()

# %%
# The plan knows the work before any number is multiplied: how many partial products there are, how many of them meet
# in one entry, and what the result will weigh.

print(f"{plan.flops.sum():,} partial products, {plan.compression:.1f} for each entry of the result")
print(f"result: {plan.nbytes / 1e6:.0f} MB; bound from the row lengths alone: {plan.nbytes_upper / 1e6:.0f} MB")

# %%
# Three orders of the same loops
# ------------------------------
# Inner products read each row of A once for every column of B. Outer products read the inputs once, but every partial
# product travels to memory and back. Row by row, partial products never leave the chip; the rows of B are read again
# and again, and a cache that holds half of them, 32,768 numbers, catches most of that.

flows = {
    "inner products": spgemm_model(graph, graph, "inner"),
    "outer products": spgemm_model(graph, graph, "outer"),
    "row by row": spgemm_model(graph, graph, "row_wise"),
    "row by row, cached": spgemm_model(graph, graph, "row_wise", cache_numbers=32_768),
}
print(flows["row by row"].table())

figure, axis = plt.subplots(figsize=(8.4, 2.6), layout="constrained")
for place, counts in enumerate(flows.values()):
    parts = (counts.input_reads, counts.partial_writes + counts.partial_reads, counts.output_writes)
    start = 0.0
    for part, colour, label in zip(
        parts, (BLUE, RED, GREEN), ("inputs read", "partial products out and back", "result written"), strict=True
    ):
        size = part * counts.bytes_per_number / 1e6
        axis.barh(place, size, left=start, color=colour, label=label if place == 1 else None)
        start += size
    cut = start > 330
    axis.text(
        327 if cut else start + 3,
        place,
        f"{start:,.0f} MB" + " →" * cut,
        va="center",
        ha="right" if cut else "left",
        color="white" if cut else INK,
    )
axis.set_xlim(0, 330)
axis.set_yticks(range(len(flows)), flows)
axis.invert_yaxis()
axis.set_xlabel("MB moved (first bar cut)")
axis.legend(frameon=False, loc="lower right")
plt.show()

# %%
# Which bits choose the slot?
# ---------------------------
# Row by row means a hash table on the chip. The thesis' first version takes the high bits of (row, column), which keeps
# the table nearly sorted; its second takes the low bits. Where columns crowd, both send neighbours to the same slots,
# and linear probing walks. Giving the vertices random numbers rescues the low bits, though not the high ones. A
# multiplicative hash does not care: that is what `spgemm` uses where it hashes at all.

kinds = {"high": RED, "low": AMBER, "multiplicative": BLUE}
mixed = rmat(12, 65_536, permute=True, generator=torch.Generator().manual_seed(0))
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True, layout="constrained")
for axis, matrix, title in ((axes[0], graph, "vertices as drawn"), (axes[1], mixed, "vertices renumbered at random")):
    for kind, colour in kinds.items():
        windows = spgemm_model(matrix, matrix, window_flops=20_000, hash_kind=kind).windows
        each = windows.probes / windows.flops.clip(1)
        axis.plot(np.sort(each)[::-1], color=colour, lw=2, label=f"{kind} bits" if kind != "multiplicative" else kind)
    axis.set_yscale("log")
    axis.set_title(title)
    axis.set_xlabel("windows, worst first")
    axis.grid(axis="y", alpha=0.25)
axes[0].set_ylabel("slots looked at an insertion")
axes[0].legend(frameon=False)
plt.show()

# %%
# Rows or tokens?
# ---------------
# With 64 threads and an equal share of rows each, the thread with the heaviest vertices works long after the others
# have gone home. The second version cuts the work into tokens, one scaled row of B each, that idle threads take from a
# queue.

counts = flows["row by row"]
static, tokens = counts.schedule(64, tokens=False), counts.schedule(64)
starts = graph.indptr[np.linspace(0, graph.shape[0], 65).round().astype(int)]
shares = np.diff(np.concatenate([[0], np.cumsum(counts.windows.entry_probes)])[starts]) / static.ideal
figure, axis = plt.subplots(figsize=(8.4, 2.8), layout="constrained")
axis.bar(np.arange(64), shares, color=RED, width=0.8, label=f"equal rows: ends at {static.imbalance:.1f} x ideal")
axis.axhline(tokens.imbalance, color=BLUE, lw=2, label=f"tokens: ends at {tokens.imbalance:.2f} x ideal")
axis.set_xlabel("thread")
axis.set_ylabel("work over ideal")
axis.legend(frameon=False)
plt.show()

# %%
# On this machine
# ---------------
# The same product in the cache of one core: a dense row of sums with one bit a column. No branch in the inner loop,
# and the columns come out sorted. A mask keeps only the places of interest, which counts triangles without ever
# forming A A; the tropical semiring turns the same loops into shortest paths of two hops.

links = graph.copy()
links.data[:] = 1.0
closed = spgemm(links, links, mask=links)
shortest = spgemm(graph, graph, semiring="min_plus")
print(f"paths of two hops that an edge closes: {closed.sum():,.0f} in {closed.nnz:,} places, of {paths.nnz:,} in A A")
print(f"lightest path of two hops: {shortest.data.min():.2e}")
