"""The domains, right-hand sides and rival solvers of the benchmark `dcdm`.   Shapes: grid (n, n) or (n, n, n), N cells.

A solver here is a function of a right-hand side that returns how many steps it took; what it needs beforehand (a
factorisation, a multigrid hierarchy, Ritz vectors) is made once per domain and timed apart.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from benchmarks.peers import require_peer
from hesse.linalg import FunctionOperator, PoissonStencil, cg
from hesse.pde.dcdm import DeepConjugateDirection, DirectionSolution, ritz_training_set

__all__ = ["Case", "cases", "deflated_cg", "fluid_matrix", "incomplete_cholesky_cg", "multigrid", "steps_of_both"]

Solve = Callable[[Tensor], int]
MAX_STEPS = 3000


@dataclass(frozen=True, slots=True)
class Case:
    """One domain with a white-noise and a smooth right-hand side."""

    name: str
    operator: PoissonStencil
    b: Tensor  # (N, 2), float64


def domains(size: int, dim: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """An empty box, a box with a ball cut out, a box with four random boxes cut out."""
    axes = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * dim, indexing="ij")
    full = torch.ones((size,) * dim, dtype=torch.bool)
    yield "empty box", full
    centre = (0.45, 0.55, 0.5)[:dim]
    yield "ball", torch.stack([(x - c) ** 2 for x, c in zip(axes, centre, strict=True)]).sum(0) > 0.2**2
    generator = torch.Generator().manual_seed(seed)
    holes = full.clone()
    for _ in range(4):
        extent = 0.08 + 0.2 * torch.rand(dim, generator=generator)
        low = (1 - extent) * torch.rand(dim, generator=generator)
        holes &= ~torch.stack([(x >= a) & (x < a + e) for x, a, e in zip(axes, low, extent, strict=True)]).all(0)
    yield "four boxes", holes


def cases(size: int, dim: int, holes: str, seed: int) -> list[Case]:
    """Six systems on three domains; ``holes`` are "empty" (held at zero) or "solid" (walls)."""
    found = []
    for name, fluid in domains(size, dim, seed):
        generator = torch.Generator().manual_seed(seed + 1)  # the same at every size and kind of hole
        operator = PoissonStencil(fluid, empty=~fluid if holes == "empty" else None, dtype=torch.float64)
        noise = torch.randn(fluid.shape, generator=generator, dtype=torch.float64)
        axes = torch.meshgrid(*[(torch.arange(size, dtype=torch.float64) + 0.5) / size] * dim, indexing="ij")
        smooth = torch.zeros(fluid.shape, dtype=torch.float64)
        for _ in range(4):
            wave, phase = 6 * torch.rand(dim, generator=generator), 6.3 * torch.rand((), generator=generator)
            smooth += torch.sin(
                torch.stack([float(k) * x for k, x in zip(wave, axes, strict=True)]).sum(0) + float(phase)
            )
        b = torch.stack([noise.flatten(), smooth.flatten()], 1) * fluid.reshape(-1, 1)
        found.append(Case(name, operator, b))
    return found


def steps_of_both(
    solver: DeepConjugateDirection, case: Case, tols: Sequence[float]
) -> tuple[dict[float, tuple[list[int], list[int]]], int]:
    """Steps of CG and of DCDM to each tolerance, a list entry a right-hand side, and the fallback steps of DCDM in all.

    One run to the tightest tolerance; the looser ones are read off its residuals.
    """
    tightest = min(tols)
    plain = cg(case.operator, case.b, rtol=tightest, max_steps=MAX_STEPS, record_history=True).require()
    ours = solver.solve(case.operator, case.b, tol=tightest, max_steps=MAX_STEPS, record_history=True).require()
    if plain.history is None or not isinstance(ours, DirectionSolution) or ours.fallback_steps is None:
        raise RuntimeError("a solver kept no record")
    table = {tol: (_first_below(plain.history, tol), _first_below(ours.history, tol)) for tol in tols}
    return table, int(ours.fallback_steps.sum())


def _first_below(history: Tensor | None, tol: float) -> list[int]:
    if history is None:
        raise RuntimeError("a solver kept no record")
    return (history <= tol * history[0]).int().argmax(0).tolist()


def fluid_matrix(operator: PoissonStencil) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """The rows and columns of the fluid cells, for SciPy and pyamg, and which cells those are."""
    inside = operator.fluid.flatten().numpy()
    sparse = operator.to_csr()
    matrix = scipy.sparse.csr_array((sparse.values.numpy(), sparse.col.numpy(), sparse.crow.numpy()), operator.shape)
    return scipy.sparse.csr_array(matrix[inside][:, inside]), inside


def incomplete_cholesky_cg(operator: PoissonStencil, tol: float) -> Solve:
    """SciPy's CG with IC(0), which on a graph without triangles changes nothing but the diagonal."""
    matrix, inside = fluid_matrix(operator)
    lower = scipy.sparse.csr_array(scipy.sparse.tril(matrix, -1))
    pivots = matrix.diagonal().copy()
    for i in range(len(pivots)):
        row = slice(lower.indptr[i], lower.indptr[i + 1])
        pivots[i] -= (lower.data[row] ** 2 / pivots[lower.indices[row]]).sum()
    half = scipy.sparse.csc_array(lower + scipy.sparse.diags_array(pivots))
    # splu in the given order, pivots on the diagonal: nothing but the two triangular solves
    factor = scipy.sparse.linalg.splu(half, permc_spec="NATURAL", diag_pivot_thresh=0.0)
    wrap: Any = scipy.sparse.linalg.LinearOperator
    apply = wrap(matrix.shape, matvec=lambda r: factor.solve(pivots * factor.solve(r), trans="T"), dtype=np.float64)

    def solve(b: Tensor) -> int:
        count = [0]
        _, failed = scipy.sparse.linalg.cg(
            matrix, b.numpy()[inside], rtol=tol, maxiter=MAX_STEPS, M=apply, callback=lambda _x: _count(count)
        )
        if failed:
            raise RuntimeError("IC(0)-CG did not converge")
        return count[0]

    return solve


def _count(counter: list[int]) -> None:
    counter[0] += 1


def deflated_cg(operator: PoissonStencil, tol: float, seed: int, num_vectors: int = 16, num_ritz: int = 200) -> Solve:
    """CG on the complement of the lowest Ritz vectors Z, whose part is solved exactly."""
    ritz = ritz_training_set(operator, num_ritz, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    Z = ritz.vectors[:, :num_vectors]
    image = operator @ Z
    coarse = torch.linalg.inv(Z.T @ image)

    def project(block: Tensor) -> Tensor:
        return block - image @ (coarse @ (Z.T @ block))

    deflated = FunctionOperator(lambda x: project(operator @ x), operator.shape, dtype=torch.float64, is_psd=True)

    def solve(b: Tensor) -> int:
        found = cg(deflated, project(b), rtol=0.0, atol=tol * float(b.norm()), max_steps=MAX_STEPS).require()
        x = found.x - Z @ (coarse @ (image.T @ found.x)) + Z @ (coarse @ (Z.T @ b))
        if float((b - operator @ x).norm()) > 1.01 * tol * float(b.norm()):
            raise RuntimeError("deflated CG did not reach its tolerance")
        return found.num_steps

    return solve


def multigrid(operator: PoissonStencil, tol: float, kind: str) -> Solve:
    """pyamg's hierarchy as the preconditioner of CG; ``kind`` is a solver factory of pyamg."""
    pyamg = require_peer("pyamg")
    matrix, inside = fluid_matrix(operator)
    csr = scipy.sparse.csr_matrix(matrix)
    csr.indices, csr.indptr = csr.indices.astype(np.int32), csr.indptr.astype(np.int32)
    with torch.random.fork_rng():
        hierarchy = getattr(pyamg, kind)(csr)

    def solve(b: Tensor) -> int:
        norms: list[float] = []
        right = b.numpy()[inside]
        x = hierarchy.solve(right, tol=tol, maxiter=200, accel="cg", residuals=norms)
        if np.linalg.norm(right - csr @ x) > 1.01 * tol * np.linalg.norm(right):
            raise RuntimeError(f"pyamg's {kind} did not reach its tolerance")
        return len(norms) - 1

    return solve
