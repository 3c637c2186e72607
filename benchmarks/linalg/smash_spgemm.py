"""Claims about products of sparse matrices: speed beside four libraries, and the thesis' comparison re-run as counts.

Oracles: SciPy's product for values, the product of the patterns for places, torch's gradcheck for gradients. Times are
the best of interleaved rounds: CPU seconds for one thread, wall seconds for two. Every arm makes its result from ready
inputs in its own format.
"""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.data import interleave_clocks
from benchmarks.peers import require_peer
from hesse.linalg.sparse import SpgemmCounts, rmat, spgemm, spgemm_model, spgemm_symbolic

__all__ = ["CLAIMS"]

THESIS_SPEEDUP = 9.4  # first to third version, from the abstract
MODEL_WINDOW = 20_000  # partial products a window: several rows of the graph
MODEL_THREADS = 64


def _graph(scale: int, edges: int, seed: int, *, permute: bool = False) -> Any:
    return rmat(scale, edges, permute=permute, generator=torch.Generator().manual_seed(seed))


def _peers(a: Any) -> dict[str, tuple[Callable[[], Any], Callable[[int], Any]]]:
    """Each peer's product, and how it is told the number of threads."""
    for library in sorted((Path(sys.prefix) / "lib").glob("libmkl_rt.so*")):
        os.environ.setdefault("MKL_RT", str(library))  # where pip puts it; the peer looks elsewhere
    dot_mkl: Any = require_peer("sparse_dot_mkl")
    graphblas: Any = require_peer("graphblas")
    tensor = torch.sparse_csr_tensor(
        torch.from_numpy(a.indptr),
        torch.from_numpy(a.indices),
        torch.from_numpy(a.data),
        a.shape,
        check_invariants=True,
    )
    stored, plus_times = graphblas.io.from_scipy_sparse(a), graphblas.semiring.plus_times
    matrix = scipy.sparse.csr_matrix(a)
    return {
        "MKL": (lambda: dot_mkl.dot_product_mkl(matrix, matrix), dot_mkl.mkl_set_num_threads),
        "MKL, sorted": (
            lambda: dot_mkl.dot_product_mkl(matrix, matrix, reorder_output=True),
            dot_mkl.mkl_set_num_threads,
        ),
        "torch.sparse.mm": (lambda: torch.sparse.mm(tensor, tensor), torch.set_num_threads),
        "GraphBLAS": (
            lambda: stored.mxm(stored, plus_times).new(),
            lambda threads: graphblas.ss.config.update(nthreads=threads),
        ),
    }


def _times(a: Any, repeats: int, peer_threads: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    # wall and CPU seconds of each arm, the best of all rounds

    def sorted_scipy() -> Any:
        product = a @ a
        product.sort_indices()
        return product

    arms: dict[str, Callable[[], Any]] = {
        "scipy": lambda: a @ a,
        "scipy, sorted": sorted_scipy,
        "hesse": lambda: spgemm(a, a, num_threads=1),
        "hesse, 2 threads": lambda: spgemm(a, a, num_threads=2),
    }
    for name, (product, set_threads) in _peers(a).items():
        for threads in peer_threads:

            def arm(product: Any = product, set_threads: Any = set_threads, threads: int = threads) -> Any:
                set_threads(threads)
                return product()

            arms[name if threads == 1 else f"{name}, 2 threads"] = arm
    before = torch.get_num_threads()
    try:
        return {name: (min(t.wall), min(t.cpu)) for name, t in interleave_clocks(arms, repeats).items()}
    finally:
        torch.set_num_threads(before)


def claim_speed(scale: Scale) -> list[Claim]:
    """A @ A on R-MAT graphs, one thread: against SciPy, MKL, torch and GraphBLAS."""
    claims = []
    sizes = scale(smoke=((10, 16_384),), full=((14, 262_144), (15, 16 << 15)))
    for vertices, edges in sizes:
        a = _graph(vertices, edges, scale.seed)
        plan = spgemm_symbolic(a, a)
        rounds = scale(smoke=2, full=5)
        seconds = _times(a, rounds, (1, 2) if vertices < 15 else (1,))  # the large peers' second thread costs minutes
        # one thread's CPU seconds are its wall seconds on an idle machine, and no neighbour adds to them
        ratios = {name: cpu / seconds["hesse"][1] for name, (_, cpu) in seconds.items()}
        wall = {name: value / seconds["hesse"][0] for name, (value, _) in seconds.items()}
        rows = {
            "nnz": a.nnz,
            "partial products": int(plan.flops.sum()),
            "nnz(C)": plan.nnz,
            "rounds": rounds,
            "CPU seconds over ours, one thread": {
                name: ratio for name, ratio in ratios.items() if "2 threads" not in name
            },
            "wall seconds over ours, one thread": wall,
            "load a core, mean of the last minute": os.getloadavg()[0] / (os.cpu_count() or 1),
        }
        for name, measured, bar in (
            ("one thread, over SciPy", ratios["scipy"], 2.0),
            ("one thread, over SciPy with sorted rows", ratios["scipy, sorted"], 4.0),
            ("one thread, over MKL", ratios["MKL"], 3.0),
            ("one thread, over MKL with sorted rows", ratios["MKL, sorted"], 3.0),
            ("one thread, over torch.sparse.mm", ratios["torch.sparse.mm"], 3.0),
            ("one thread, over GraphBLAS", ratios["GraphBLAS"], 3.0),
        ):
            note = "judged by CPU seconds, for the machine is shared; the wall-clock ratios stand in the rows"
            claims.append(Claim(f"scale {vertices}: {name}", measured, bar, "higher", rows, full_only=True, note=note))
    return claims


def claim_threads(scale: Scale) -> list[Claim]:
    """A @ A with two threads: against SciPy, and against one. The best of many rounds: a busy machine hides a core."""
    claims = []
    for vertices, edges in scale(smoke=((10, 16_384),), full=((14, 262_144), (15, 16 << 15))):
        a = _graph(vertices, edges, scale.seed)
        arms: dict[str, Callable[[], Any]] = {
            "scipy": lambda a=a: a @ a,
            "one": lambda a=a: spgemm(a, a, num_threads=1),
            "two": lambda a=a: spgemm(a, a, num_threads=2),
        }
        rounds = scale(smoke=2, full=25)
        timings = interleave_clocks(arms, rounds)
        wall = {name: min(timing.wall) for name, timing in timings.items()}
        cpu = {name: min(timing.cpu) for name, timing in timings.items()}
        rows = {
            "rounds": rounds,
            "work of two threads over work of one, CPU seconds": cpu["two"] / cpu["one"],
            "SciPy's work over half of that, CPU seconds": 2 * cpu["scipy"] / cpu["two"],
            "load a core, mean of the last minute": os.getloadavg()[0] / (os.cpu_count() or 1),
        }
        for name, measured, bar in (
            ("two threads, over SciPy", wall["scipy"] / wall["two"], 3.0),
            ("two threads, over one", wall["one"] / wall["two"], 1.0),
        ):
            claims.append(Claim(f"scale {vertices}: {name}", measured, bar, "higher", rows, full_only=True))
    return claims


def claim_traffic(scale: Scale) -> list[Claim]:
    """Row by row moves less than the outer product, and far less than inner products."""
    a = _graph(*scale(smoke=(10, 16_384), full=(14, 262_144)), scale.seed)
    by_row = spgemm_model(a, a, "row_wise")
    others: dict[str, SpgemmCounts] = {
        "outer product": spgemm_model(a, a, "outer"),
        "inner product": spgemm_model(a, a, "inner"),
        "inner product without empty rows": spgemm_model(a, a, "inner", skip_empty=True),
    }
    cached = spgemm_model(a, a, "row_wise", cache_numbers=1 << 15)
    rows = {"bytes": {name: counts.total_bytes for name, counts in ({"row-wise": by_row} | others).items()}}
    rows["bytes"]["row-wise, cache of 32,768 numbers"] = cached.total_bytes
    return [
        Claim(
            f"{name}: bytes over row-wise", counts.total_bytes / by_row.total_bytes, bar, "higher", rows, full_only=True
        )
        for (name, counts), bar in zip(others.items(), (1.5, 80.0, 50.0), strict=True)
    ]


def claim_probes(scale: Scale) -> list[Claim]:
    """Probes an insertion, in windows of several rows, by the bits that choose the slot."""
    size = scale(smoke=(9, 8_192), full=(14, 262_144))
    probes, fullest = {}, 0.0
    for permute in (True, False):
        a = _graph(*size, scale.seed, permute=permute)
        for kind in ("low", "high", "multiplicative"):
            windows = spgemm_model(a, a, window_flops=MODEL_WINDOW, hash_kind=kind).windows
            if windows is None:
                raise RuntimeError("a row-wise model without windows")
            probes[kind, permute] = windows.probes_per_insertion
            fullest = max(fullest, float(windows.load_factor.max()))
    shown = {f"{kind}, {'permuted' if permute else 'raw'} labels": value for (kind, permute), value in probes.items()}
    rows = {"probes an insertion": shown, "fullest table": fullest, "window": MODEL_WINDOW}
    worst = max(probes["multiplicative", permute] for permute in (True, False))
    return [
        Claim("low bits, permuted: probes an insertion", probes["low", True], 3.0, "lower", rows, full_only=True),
        Claim(
            "high bits over low bits, permuted: probes",
            probes["high", True] / probes["low", True],
            10.0,
            "higher",
            rows,
            full_only=True,
        ),
        Claim("multiplicative, either labels: probes", worst, 1.5, "lower", rows),
        Claim("fullest table of all", fullest, 0.5, "lower", rows),
    ]


def claim_schedule(scale: Scale) -> list[Claim]:
    """64 threads: tokens even out the skewed rows that a static split leaves to a few."""
    a = _graph(*scale(smoke=(10, 16_384), full=(14, 262_144)), scale.seed)
    counts = {kind: spgemm_model(a, a, window_flops=MODEL_WINDOW, hash_kind=kind) for kind in ("low", "multiplicative")}
    permuted = _graph(*scale(smoke=(10, 16_384), full=(14, 262_144)), scale.seed, permute=True)
    versions = {
        kind: spgemm_model(permuted, permuted, window_flops=MODEL_WINDOW, hash_kind=kind) for kind in ("high", "low")
    }
    tokens = counts["multiplicative"].schedule(MODEL_THREADS)
    static = counts["multiplicative"].schedule(MODEL_THREADS, tokens=False)
    model = {}
    for bytes_per_unit in (8.0, 64.0, 512.0, math.inf):  # a memory that moves so much while one slot is looked at
        first = versions["high"].schedule(MODEL_THREADS, tokens=False, overlap=False, bytes_per_unit=bytes_per_unit)
        second = versions["low"].schedule(MODEL_THREADS, tokens=True, overlap=False, bytes_per_unit=bytes_per_unit)
        third = versions["low"].schedule(MODEL_THREADS, tokens=True, overlap=True, bytes_per_unit=bytes_per_unit)
        model[f"{bytes_per_unit:g} bytes a unit"] = {
            "first over second": first.time / second.time,
            "first over third": first.time / third.time,
        }
    rows = {
        "threads": MODEL_THREADS,
        "imbalance": {"tokens": tokens.imbalance, "static": static.imbalance},
        "imbalance of tokens, low bits": counts["low"].schedule(MODEL_THREADS).imbalance,
        "model ratios of the versions, permuted labels": model,
        "thesis, first over third": THESIS_SPEEDUP,
    }
    note = "ratios of the versions are ratios of modelled units, not of times; the thesis' figure stands beside them"
    return [
        Claim("tokens: makespan over ideal", tokens.imbalance, 1.10, "lower", rows, full_only=True, note=note),
        Claim("static rows: makespan over ideal", static.imbalance, 2.0, "higher", rows, full_only=True),
    ]


def _rectangle(rng: np.random.Generator, kind: type) -> tuple[Any, Any]:
    m, k, n = (int(x) for x in rng.integers(1, 120, 3))
    sides = []
    for shape in ((m, k), (k, n)):
        count = int(rng.integers(0, max(1, shape[0] * shape[1] // 4) + 1))
        values = rng.standard_normal(count) * (20 if kind is np.int64 else 1)
        if kind is np.complex128:
            values = values + 1j * rng.standard_normal(count)
        rows, columns = (rng.integers(0, size, count) for size in shape)  # repeated places, empty rows
        starts = np.r_[0, np.cumsum(np.bincount(rows, minlength=shape[0]))]
        order = np.argsort(rows, kind="stable")
        sides.append(scipy.sparse.csr_array((values.astype(kind)[order], columns[order], starts), shape=shape))
    return sides[0], sides[1]


def claim_exact(scale: Scale) -> list[Claim]:
    """200 random rectangles, some with repeated and unsorted entries: SciPy's values, the places of the patterns."""
    rng = np.random.default_rng(abs(scale.seed))
    worst, foreign, count = {"double": 0.0, "single": 0.0}, 0, 200
    for case in range(count):
        kind = (np.float64, np.float32, np.int64, np.complex128)[case % 4]
        a, b = _rectangle(rng, kind)
        ones: list[Any] = [scipy.sparse.csr_array((np.ones(x.nnz), x.indices, x.indptr), shape=x.shape) for x in (a, b)]
        pattern = ones[0] @ ones[1]
        pattern.sort_indices()
        found = spgemm(a, b, num_threads=1 + case % 2, accumulator=("auto", "bitmap", "hash")[case % 3])
        same = np.array_equal(found.indptr, pattern.indptr) and np.array_equal(found.indices, pattern.indices)
        foreign += not same
        wide = [x.astype(np.complex128) for x in (a, b)]
        error = np.abs(found.toarray() - (wide[0] @ wide[1]).toarray())
        # by hand: abs() of a matrix sums repeated entries first, and their cancellation would hide the magnitudes
        sizes: list[Any] = [
            scipy.sparse.csr_array((np.abs(x.data), x.indices, x.indptr), shape=x.shape) for x in (a, b)
        ]
        size = (sizes[0].astype(np.float64) @ sizes[1].astype(np.float64)).toarray()
        relative = float(np.max(error / np.where(size > 0, size, 1), initial=0.0))
        precision = "single" if kind is np.float32 else "double"
        worst[precision] = max(worst[precision], relative)
    rows = {"cases": count, "worst relative error": worst, "wrong patterns": foreign}
    return [
        Claim("worst error over the sum of magnitudes, 64-bit numbers", worst["double"], 1e-12, "lower", rows),
        Claim("worst error over the sum of magnitudes, float32", worst["single"], 1e-5, "lower", rows),
        Claim("products with a wrong pattern", foreign, 0, "lower", rows),
    ]


def claim_gradients(scale: Scale) -> Claim:
    """Gradients of random 6 x 5 by 5 x 6 products agree with finite differences."""
    passed, count = 0, 20
    rng = np.random.default_rng(abs(scale.seed))
    for _ in range(count):
        patterns = []
        for shape in ((6, 5), (5, 6)):
            hit = rng.random(shape) < 0.5
            starts = torch.from_numpy(np.r_[0, np.cumsum(hit.sum(1))])
            columns = torch.from_numpy(np.ascontiguousarray(np.nonzero(hit)[1]))
            values = torch.from_numpy(rng.standard_normal(len(columns))).requires_grad_()
            patterns.append((starts, columns, values, shape))

        def product(x: torch.Tensor, y: torch.Tensor, patterns: Any = tuple(patterns)) -> torch.Tensor:
            sides = (
                torch.sparse_csr_tensor(p[0], p[1], v, p[3], check_invariants=True)
                for p, v in zip(patterns, (x, y), strict=True)
            )
            return spgemm(*sides).values()

        passed += torch.autograd.gradcheck(product, tuple(p[2] for p in patterns), raise_exception=False)
    return Claim("products whose gradients pass gradcheck", passed / count, 1.0, "higher", {"products": count})


CLAIMS: list[ClaimFunction] = [
    claim_exact,
    claim_gradients,
    claim_traffic,
    claim_probes,
    claim_schedule,
    claim_speed,
    claim_threads,
]
