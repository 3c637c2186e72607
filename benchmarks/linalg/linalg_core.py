"""What the operator layer promises: agreement with LAPACK and SciPy, batched CG, exact structure, honest failure.

Oracles: dense LAPACK in float64, SciPy's solvers, finite differences. Times: ratios of interleaved runs in one thread.
"""

import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from benchmarks._claims import Claim, ClaimFunction, Scale
from benchmarks.linalg._krylov_claims import KRYLOV_CLAIMS
from benchmarks.linalg._trace_claims import TRACE_CLAIMS
from benchmarks.peers import has_peer, require_peer
from hesse._threads import one_thread
from hesse.linalg import (
    Dense,
    EighKronecker,
    Kronecker,
    LinearOperator,
    Status,
    as_linear_operator,
    cg,
    eigsh,
    gmres,
    logdet,
    lsmr,
    lsqr,
    minres,
    nystrom_preconditioner,
    solve,
)

__all__ = ["CLAIMS"]

DTYPES = (torch.float64, torch.complex128)
BATCHES = ((), (2,), (2, 3))


def _draw(*shape: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=generator)


def _hermitian(
    batch: tuple[int, ...], n: int, values: Tensor, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    q = torch.linalg.qr(_draw(*batch, n, n, dtype=dtype, generator=generator)).Q
    m = q * values.to(q.real.dtype) @ q.mH
    return (m + m.mH) / 2


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def claim_oracle_sweep(scale: Scale) -> list[Claim]:
    """Every solver in double precision, real and complex, single and stacked, against LAPACK and against SciPy."""
    n, generator = scale(smoke=30, full=120), torch.Generator().manual_seed(scale.seed)
    lapack: dict[str, float] = {}
    adjoint = 0.0
    positive = torch.linspace(1, 50, n)
    either = torch.cat([torch.linspace(-20, -1, n // 3), torch.linspace(1, 50, n - n // 3)])
    for dtype in DTYPES:
        for batch in BATCHES:
            b = _draw(n, 3, dtype=dtype, generator=generator)
            for name, run, values in (
                ("cg", cg, positive),
                ("minres", minres, either),
                ("gmres", lambda a, b, **kw: gmres(a, b, restart=n, **kw), either),
                ("lsqr", _least_squares(lsqr), either),
                ("lsmr", _least_squares(lsmr), either),
            ):
                m = _hermitian(batch, n, values, dtype, generator)
                x = run(Dense(m, is_symmetric=True), b, rtol=1e-13, max_steps=5000).x
                error = _relative(x, torch.linalg.solve(m, b.expand(*batch, n, 3)))
                lapack[name] = max(lapack.get(name, 0.0), error)
                adjoint = max(adjoint, _adjoint_gap(Dense(m) @ Dense(m.mT), generator))
            factors = [_hermitian(batch, k, torch.linspace(1, 9, k), dtype, generator) for k in (5, 6)]
            kron = Kronecker(factors, is_psd=True)
            error = _relative(kron.shift(0.3).solve(b[:30]), torch.linalg.solve(kron.shift(0.3).to_dense(), b[:30]))
            lapack["kronecker"] = max(lapack.get("kronecker", 0.0), error)
            adjoint = max(adjoint, _adjoint_gap(kron, generator))
    scipy_gaps = _against_scipy(n, either, positive, generator)
    return [
        Claim("solvers agree with LAPACK", max(lapack.values()), 1e-10, "lower", lapack),
        Claim("solvers agree with SciPy", max(scipy_gaps.values()), 1e-10, "lower", scipy_gaps),
        Claim("adjoint identity <y, Ax> = <A^H y, x>", adjoint, 1e-12, "lower", {"dtypes": [str(d) for d in DTYPES]}),
    ]


def _least_squares(solver: Callable) -> Callable:
    return lambda a, b, *, rtol, max_steps: solver(a, b, atol=rtol, max_steps=max_steps, conlim=0.0)


def _adjoint_gap(a: LinearOperator, generator: torch.Generator) -> float:
    x = _draw(a.shape[1], 2, dtype=a.dtype, generator=generator)
    y = _draw(a.shape[0], 2, dtype=a.dtype, generator=generator)
    forward, back = a.matmat(x), a.rmatmat(y)
    left, right = (y.conj() * forward).sum((-2, -1)), (back.conj() * x).sum((-2, -1))
    return float(((left - right).abs() / (forward.norm() * y.norm())).max())


def _against_scipy(n: int, either: Tensor, positive: Tensor, generator: torch.Generator) -> dict[str, float]:
    m = _hermitian((), n, either, torch.float64, generator)
    p = _hermitian((), n, positive, torch.float64, generator)
    b = _draw(n, dtype=torch.float64, generator=generator)
    ours = {
        "cg": cg(Dense(p, is_psd=True), b, rtol=1e-13).x,
        "minres": minres(Dense(m, is_symmetric=True), b, rtol=1e-13).x,
        "lsqr": lsqr(Dense(m), b, atol=1e-14, conlim=0.0, max_steps=5000).x,
        "eigsh": eigsh(Dense(p, is_psd=True), 4, which="LA", tol=1e-13).eigenvalues.sort().values,
    }
    theirs = {
        "cg": scipy.sparse.linalg.cg(p.numpy(), b.numpy(), rtol=1e-13)[0],
        "minres": scipy.sparse.linalg.minres(m.numpy(), b.numpy(), rtol=1e-15)[0],
        "lsqr": scipy.sparse.linalg.lsqr(m.numpy(), b.numpy(), atol=1e-14, btol=1e-14, conlim=0, iter_lim=5000)[0],
        "eigsh": np.sort(scipy.sparse.linalg.eigsh(p.numpy(), k=4, which="LA")[0]),
    }
    return {name: _relative(x, torch.from_numpy(theirs[name])) for name, x in ours.items()}


def claim_gradients(scale: Scale) -> Claim:
    """Finite differences agree through every method of solve, through a Kronecker solve and the log-determinants."""
    generator = torch.Generator().manual_seed(scale.seed)

    def leaf(*shape: int) -> Tensor:
        return _draw(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    def definite(root: Tensor) -> Dense:
        return Dense(root @ root.mT + torch.eye(root.shape[-1], dtype=root.dtype), is_psd=True)

    def through(method: str) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda root, b: solve(definite(root), b, method=method, rtol=1e-14, strict=False).x

    root, b, small, x = leaf(4, 4), leaf(4, 2), leaf(3, 3), leaf(12, 2)
    checks: dict[str, tuple[Callable, tuple[Tensor, ...]]] = {
        method: (through(method), (root, b)) for method in ("dense", "cg", "minres", "gmres", "lsmr", "lsqr")
    }
    checks["kronecker solve"] = (
        lambda r, s, x: (
            solve(Kronecker([definite(r), definite(s)]).shift(0.2), x, method="cg", rtol=1e-14, strict=False).x
        ),
        (root, small, x),
    )
    checks["kronecker logdet"] = (lambda r, s: Kronecker([r, s]).logdet(), (root, small))
    checks["logdet"] = (lambda r: logdet(definite(r), method="cholesky").value, (root,))
    passed = {}
    for name, (function, inputs) in checks.items():
        passed[name] = bool(torch.autograd.gradcheck(function, inputs, raise_exception=False))
    return Claim("gradcheck passes", sum(passed.values()) / len(passed), 1.0, "higher", passed)


def _poisson(side: int) -> scipy.sparse.csr_array:
    t = scipy.sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(side, side))
    eye = scipy.sparse.eye(side)
    return scipy.sparse.csr_array(scipy.sparse.kron(t, eye) + scipy.sparse.kron(eye, t))


def _interleaved(arms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each arm, the arms taking turns in one thread."""
    gc.collect()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with one_thread():
        for run in range(repeats + 1):
            for name, arm in arms.items():
                start = time.perf_counter()
                arm()
                if run:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


SPEED_BARS = {
    (14, "float64"): 6.0,
    (30, "float64"): 4.0,
    (100, "float32"): 2.0,
    (100, "float64"): 0.9,
}


def claim_batched_cg(scale: Scale) -> list[Claim]:
    """64 right-hand sides of the 2-D Poisson problem at once, against a loop over SciPy's CG, and linear_operator."""
    repeats = scale(smoke=1, full=9)
    claims = []
    for (full_side, kind), bar in SPEED_BARS.items():
        side = min(full_side, scale(smoke=32, full=full_side))
        matrix = _poisson(side).astype(kind)
        a = as_linear_operator(matrix, is_psd=True)
        b = np.random.default_rng(scale.seed).standard_normal((side**2, 64)).astype(kind)
        rtol = 1e-6 if kind == "float64" else 1e-5
        block = torch.from_numpy(b)
        arms: dict[str, Callable[[], object]] = {
            "hesse": lambda a=a, block=block, rtol=rtol: cg(a, block, rtol=rtol),
            "scipy": lambda m=matrix, b=b, rtol=rtol: [
                scipy.sparse.linalg.cg(m, b[:, j], rtol=rtol) for j in range(64)
            ],
        }
        ours = cg(a, block, rtol=rtol)
        rows: dict[str, object] = {
            "steps": ours.num_steps,
            "converged": bool(ours.converged.all()),
            "hesse residual": float((ours.residual / block.norm(dim=0)).max()),
        }
        if has_peer("linear_operator"):
            peer, rows["linear_operator residual"] = _peer_cg(matrix, block, float(rows["hesse residual"]))
            arms["linear_operator"] = peer
        seconds = _interleaved(arms, repeats)
        rows["seconds"] = seconds
        name = f"n={side**2}, {kind}"
        ratio = seconds["scipy"] / seconds["hesse"] if rows["converged"] else None
        claims.append(
            Claim(f"batched CG against a loop over SciPy, {name}", ratio, bar, "higher", rows, full_only=True)
        )
        peer_ratio = seconds["linear_operator"] / seconds["hesse"] if "linear_operator" in seconds else None
        title = f"batched CG against linear_operator at equal residual, {name}"
        claims.append(Claim(title, peer_ratio, 1.0, "higher", rows, full_only=True))
    return claims


def _peer_cg(matrix: scipy.sparse.csr_array, block: Tensor, goal: float) -> tuple[Callable[[], Tensor], float]:
    """linear_operator's CG at our worst true residual, or as near to it as it gets; found untimed.

    Its tolerance is a mean over columns, and its ``eps`` (1e-10 by default, on squares) holds residuals above 1e-5:
    both are set so that it can reach the goal.
    """
    linear_cg = require_peer("linear_operator.utils.linear_cg").linear_cg
    csr = as_linear_operator(matrix)._csr  # the same stored matrix and the same product as ours
    norms = block.norm(dim=0)

    def run(tolerance: float) -> Tensor:
        return linear_cg(
            lambda x: csr @ x,
            block,
            tolerance=tolerance,
            eps=1e-30,
            stop_updating_after=goal / 100,
            max_iter=600,
            max_tridiag_iter=0,
        )

    best, chosen, tolerance = float("inf"), goal, goal * 2
    for _ in range(12):
        tolerance /= 1.25
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it stopped at 600 steps shows in the residual
            residual = float(((block - csr @ run(tolerance)).norm(dim=0) / norms).max())
        if residual < 0.98 * best:
            best, chosen = residual, tolerance
        if residual <= goal * 1.02:
            break
    return lambda: run(chosen), best


def claim_small_overhead(scale: Scale) -> Claim:
    """A dense 10 x 10 system: checks, choice of method and residual cost less than four factorisations."""
    generator = torch.Generator().manual_seed(scale.seed)
    m = _hermitian((), 10, torch.linspace(1, 10, 10), torch.float64, generator)
    b = _draw(10, dtype=torch.float64, generator=generator)
    a, calls = Dense(m, is_psd=True), range(scale(smoke=200, full=2000))
    seconds = _interleaved(
        {
            "hesse": lambda: [solve(a, b) for _ in calls],
            "torch": lambda: [torch.linalg.solve(m, b) for _ in calls],
        },
        repeats=9,
    )
    each = {name: value / len(calls) * 1e6 for name, value in seconds.items()}
    ratio = seconds["hesse"] / seconds["torch"]
    return Claim(
        "dense 10 x 10 solve against torch.linalg.solve", ratio, 5.0, "lower", {"microseconds": each}, full_only=True
    )


def claim_nystrom_pcg(scale: Scale) -> Claim:
    """Randomised Nystrom preconditioning of an RBF kernel matrix with damping 1e-4, in steps of CG."""
    n, damping = scale(smoke=600, full=4000), 1e-4
    generator = torch.Generator().manual_seed(scale.seed)
    points = torch.rand(n, 2, dtype=torch.float64, generator=generator)
    kernel = Dense(torch.exp(-(torch.cdist(points, points) ** 2) / (2 * 0.3**2)), is_psd=True)
    b = _draw(n, dtype=torch.float64, generator=generator)
    system = kernel.shift(damping)
    preconditioner = nystrom_preconditioner(kernel, damping, generator=generator)
    plain = cg(system, b, rtol=1e-6, max_steps=20 * n)
    ours = cg(system, b, rtol=1e-6, preconditioner=preconditioner)
    ratio = plain.num_steps / ours.num_steps if bool(ours.converged) else None
    rows = {"plain steps": plain.num_steps, "steps": ours.num_steps, "plain converged": bool(plain.converged)}
    return Claim("Nystrom-PCG saves steps on a kernel matrix", ratio, 5.0, "higher", rows)


KRONECKER_MEMORY = """
import json, pathlib, sys, torch
from hesse.linalg import EighKronecker

def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

n = int(sys.argv[1])
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(int(sys.argv[2]))
qs = [torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q for _ in range(2)]
e = EighKronecker(qs, torch.rand(n, n, dtype=torch.float64, generator=generator))
b = torch.randn(n * n, dtype=torch.float64, generator=generator)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = status("VmRSS")
e.shift(1e-3).solve(b)
print(json.dumps((status("VmHWM") - before) / (8 * n * n)))
"""


def claim_kronecker_solve(scale: Scale) -> list[Claim]:
    """A damped Kronecker system of two 500 x 500 factors, n = 250,000, through the eigenbases of the factors."""
    n, damping = scale(smoke=120, full=500), 1e-3
    generator = torch.Generator().manual_seed(scale.seed)
    factors = [_draw(n, 2 * n, dtype=torch.float64, generator=generator) for _ in range(2)]
    factors = [f @ f.mT / (2 * n) for f in factors]
    e = Kronecker(factors, is_psd=True).eigh()
    wanted = _draw(n, n, dtype=torch.float64, generator=generator)
    b = factors[0] @ wanted @ factors[1].mT + damping * wanted  # vec(A X Bᵀ), without the class under test
    seconds = _interleaved(
        {"shaped": lambda: e.solve_shaped(b, damping), "flat": lambda: _flat_solve(e, b, damping)}, 5
    )
    errors = {
        "shaped": _relative(e.solve_shaped(b, damping), wanted),
        "flat": _relative(_flat_solve(e, b, damping), wanted),
    }
    command = [sys.executable, "-c", KRONECKER_MEMORY, str(n), str(scale.seed)]
    growth = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows = {"errors": errors, "seconds after eigh": seconds, "order": n * n}
    return [
        Claim("damped Kronecker solve is exact", max(errors.values()), 1e-10, "lower", rows),
        Claim("damped Kronecker solve, seconds after eigh", max(seconds.values()), 1.0, "lower", rows, full_only=True),
        Claim(
            "damped Kronecker solve, peak memory in vectors of length n", growth, 32.0, "lower", rows, full_only=True
        ),
    ]


def _flat_solve(e: EighKronecker, b: Tensor, damping: float) -> Tensor:
    return e.shift(damping).solve(b.reshape(-1)).reshape(b.shape)


def claim_negative_curvature(scale: Scale) -> Claim:
    """Indefinite matrices handed to CG: how often it says so, and hands back a direction of negative curvature."""
    cases, n = scale(smoke=40, full=400), 20
    generator = torch.Generator().manual_seed(scale.seed)
    caught = silent = 0
    linear_cg = require_peer("linear_operator.utils.linear_cg").linear_cg if has_peer("linear_operator") else None
    for _ in range(cases):
        m = _hermitian((), n, torch.linspace(-3, 9, n), torch.float64, generator)
        b = _draw(n, 1, dtype=torch.float64, generator=generator)
        found = cg(Dense(m, is_symmetric=True), b, rtol=1e-10)
        flagged = found.status == Status.NEGATIVE_CURVATURE and found.direction is not None
        if flagged and float((found.direction * (m @ found.direction)).sum()) <= 0:
            caught += 1
        if linear_cg is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns; the vector comes back all the same
                x = linear_cg(m.matmul, b, tolerance=1e-10, max_iter=10 * n, max_tridiag_iter=0)
            silent += float((b - m @ x).norm() / b.norm()) > 1e-3
    rows = {"cases": cases, "linear_operator: wrong vectors without an error": silent if linear_cg else "not installed"}
    return Claim("CG names negative curvature", caught / cases, 1.0, "higher", rows)


CLAIMS: list[ClaimFunction] = [
    claim_oracle_sweep,
    claim_gradients,
    claim_batched_cg,
    claim_small_overhead,
    claim_nystrom_pcg,
    *TRACE_CLAIMS,
    claim_kronecker_solve,
    claim_negative_curvature,
    *KRYLOV_CLAIMS,
]
