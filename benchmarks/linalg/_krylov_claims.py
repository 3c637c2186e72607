"""Claims about Krylov spaces that are shared or kept, and about rows that are streamed, for `linalg_core`.

Oracles: counts of products; the pseudo-inverse from known eigenvectors; peak memory of a fresh process.
"""

import json
import subprocess
import sys

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from hesse.linalg import Deflation, Dense, block_cg, cg, minres, recycled_cg
from hesse.linalg.operator import LinearOperator
from hesse.linalg.stencil import PoissonStencil

__all__ = ["KRYLOV_CLAIMS"]

RANK = 16


def _basis(n: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q


def _with_values(values: Tensor, basis: Tensor) -> Tensor:
    matrix = basis * values @ basis.T
    return (matrix + matrix.T) / 2


def claim_recycling(scale: Scale) -> list[Claim]:
    """Ten systems with one matrix, one after the other: products with a recycled subspace against plain CG."""
    n, side = scale(smoke=300, full=2000), scale(smoke=24, full=100)
    generator = torch.Generator().manual_seed(scale.seed)
    low = torch.logspace(-5, -3, RANK, dtype=torch.float64)
    outliers = torch.cat([low, torch.linspace(1, 10, n - RANK, dtype=torch.float64)])
    cases: dict[str, LinearOperator] = {
        "16 low eigenvalues": Dense(_with_values(outliers, _basis(n, generator)), is_psd=True),
        "2-D Poisson": PoissonStencil(torch.ones(side, side, dtype=torch.bool), dtype=torch.float64),
    }
    claims = []
    for (name, operator), bar in zip(cases.items(), (3.0, 1.5), strict=True):
        plain, ours, space = [], [], None
        for _ in range(10):
            b = torch.randn(operator.shape[0], dtype=torch.float64, generator=generator)
            plain.append(cg(operator, b, rtol=1e-8, max_steps=20 * n))
            found, space = recycled_cg(operator, b, deflation=space, rank=RANK, rtol=1e-8, max_steps=20 * n)
            ours.append(found)
        converged = all(bool(s.converged) for s in plain + ours)
        steps = {"plain": [s.num_steps for s in plain], "recycled": [s.num_steps for s in ours]}
        ratio = sum(steps["plain"]) / sum(steps["recycled"]) if converged else None
        rows = {"order": operator.shape[0], "rank": RANK, "products": steps, "drift of A U": _drift(operator, space)}
        claims.append(Claim(f"recycled CG saves products over ten solves, {name}", ratio, bar, "higher", rows, True))
    return claims


def _drift(operator: LinearOperator, space: Deflation | None) -> float | None:
    if space is None:
        return None
    return float((operator @ space.U - space.AU).norm() / space.AU.norm())


def claim_block_cg(scale: Scale) -> Claim:
    """64 right-hand sides of the 2-D Poisson problem: products with a block, in one Krylov space and in 64."""
    side = scale(smoke=24, full=100)
    operator = PoissonStencil(torch.ones(side, side, dtype=torch.bool), dtype=torch.float64)
    b = torch.randn(side**2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(scale.seed))
    plain, block = cg(operator, b, rtol=1e-8), block_cg(operator, b, rtol=1e-8)
    converged = bool(plain.converged.all()) and bool(block.converged.all())
    rows = {"cg": plain.num_steps, "block_cg": block.num_steps, "largest residual": float(block.residual.max())}
    ratio = plain.num_steps / block.num_steps if converged else None
    return Claim("block CG saves products for 64 columns", ratio, 2.0, "higher", rows, full_only=True)


def claim_shortest_solution(scale: Scale) -> Claim:
    """MINRES on singular, inconsistent systems: distance to the pseudo-inverse's solution, and SciPy's."""
    n, cases = scale(smoke=60, full=200), scale(smoke=3, full=10)
    generator = torch.Generator().manual_seed(scale.seed)
    ours, theirs = [], []
    for _ in range(cases):
        basis = _basis(n, generator)
        signs = torch.where(torch.rand(n, generator=generator) < 0.4, -1.0, 1.0).double()
        values = signs * torch.logspace(0, -2, n, dtype=torch.float64)
        values[-n // 10 :] = 0
        matrix = _with_values(values, basis)
        b = torch.randn(n, dtype=torch.float64, generator=generator)
        inverse = torch.where(values != 0, 1 / torch.where(values != 0, values, 1), 0)
        wanted = basis @ (inverse * (basis.T @ b))
        found = minres(Dense(matrix, is_symmetric=True), b, max_steps=20 * n)
        ours.append(float((found.x - wanted).norm() / wanted.norm()))
        x, _ = scipy.sparse.linalg.minres(matrix.numpy(), b.numpy(), rtol=1e-6, maxiter=20 * n)
        theirs.append(float(np.linalg.norm(x - wanted.numpy()) / wanted.norm()))
    rows = {"errors": ours, "scipy minres": theirs}
    return Claim("MINRES finds the shortest least-squares solution", max(ours), 1e-4, "lower", rows)


STREAM = """
import json, pathlib, sys, torch
from hesse.linalg import streamed_lstsq

def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

n, d, seed = (int(argument) for argument in sys.argv[1:])
torch.set_num_threads(1)
true = torch.randn(d, generator=torch.Generator().manual_seed(seed))

def blocks():
    generator = torch.Generator().manual_seed(seed + 1)
    for start in range(0, n, 4096):
        A = torch.randn(min(4096, n - start), d, generator=generator)
        yield A, A @ true + torch.randn(len(A), generator=generator)

pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = status("VmRSS")
x, info = streamed_lstsq(blocks, n, refine=1, return_info=True, generator=torch.Generator().manual_seed(seed))
growth = status("VmHWM") - before
print(json.dumps({
    "peak over A": growth / (4 * n * d), "sketch rows": info.sketch_size,
    "largest error": float((x - true).abs().max()), "estimated distance to x*": float(info.error_estimate),
}))
"""


def claim_streaming(scale: Scale) -> Claim:
    """Least squares over rows made block by block: peak memory as a share of what A would take."""
    n, d = scale(smoke=1 << 15, full=1 << 21), 64
    command = [sys.executable, "-c", STREAM, str(n), str(d), str(scale.seed)]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    share = rows["peak over A"]
    return Claim("streamed least squares, peak memory over that of A", share, 0.2, "lower", rows, full_only=True)


KRYLOV_CLAIMS: list[ClaimFunction] = [claim_recycling, claim_block_cg, claim_shortest_solution, claim_streaming]
