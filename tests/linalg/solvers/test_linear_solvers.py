"""All solvers on one table of systems: dense LAPACK and SciPy are the oracles."""

import importlib

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg import (
    Dense,
    Diagonal,
    Solution,
    Status,
    cg,
    gmres,
    jacobi,
    lsmr,
    lsqr,
    minres,
    multishift_cg,
    pivoted_cholesky,
    pivoted_cholesky_preconditioner,
)

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
N = 30


def draw(*shape, dtype=torch.float64, seed=0):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def matrix(kind, batch, dtype):
    root = draw(*batch, N, N, dtype=dtype)
    q = torch.linalg.qr(root).Q
    if kind == "psd":
        m = (q * torch.linspace(1, 50, N)) @ q.mH
    elif kind == "symmetric":
        m = (q * torch.cat([torch.linspace(-9, -1, 10), torch.linspace(1, 30, N - 10)])) @ q.mH
    else:
        return root / N**0.5 + 2 * torch.eye(N, dtype=dtype)
    return ((m + m.mH) / 2).to(dtype)


SQUARE = [(cg, "psd"), (minres, "psd"), (minres, "symmetric"), (gmres, "psd"), (gmres, "symmetric"), (gmres, "general")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize(("solver", "kind"), SQUARE, ids=lambda v: getattr(v, "__name__", v))
def test_square_systems_against_lapack(solver, kind, batch, dtype):
    """Oracle: torch.linalg.solve in float64, over vectors, blocks and stacks of both."""
    m = matrix(kind, batch, dtype)
    a = Dense(m, is_psd=kind == "psd", is_symmetric=kind != "general")
    double = dtype in (torch.float64, torch.complex128)
    wide = torch.promote_types(dtype, torch.float64)
    options = {"rtol": 1e-13 if double else 2e-6, "max_steps": 400} | ({"restart": N} if solver is gmres else {})
    for b in (draw(N, dtype=dtype), draw(N, 4, dtype=dtype), draw(*(batch or (2, 3)), N, 2, dtype=dtype)):
        solution = solver(a, b, **options)
        columns = b.unsqueeze(-1) if b.ndim == 1 else b
        wanted = torch.linalg.solve(
            m.to(wide), columns.to(wide).expand(*torch.broadcast_shapes(batch, columns.shape[:-2]), *columns.shape[-2:])
        )
        wanted = wanted.squeeze(-1) if b.ndim == 1 else wanted
        assert solution.x.dtype == dtype
        assert solution.x.shape == wanted.shape
        error = float((solution.x - wanted).abs().max() / wanted.abs().max())
        assert error <= (1e-10 if double else 2e-4)
        expected = columns - a.matmat(solution.x.unsqueeze(-1) if b.ndim == 1 else solution.x)
        expected = torch.linalg.vector_norm(expected, dim=-2)
        expected = expected.squeeze(-1) if b.ndim == 1 else expected
        torch.testing.assert_close(solution.residual, expected, rtol=1e-3, atol=1e-4 if not double else 1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40, 15), (15, 40), (25, 25)], ids=str)
@pytest.mark.parametrize("solver", [lsmr, lsqr])
def test_least_squares_against_lapack(solver, shape, dtype):
    """Oracle: the pseudo-inverse, plain; the normal equations, damped."""
    double = dtype in (torch.float64, torch.complex128)
    u, _, vh = torch.linalg.svd(draw(*shape, dtype=dtype), full_matrices=False)
    m = (u * torch.linspace(1, 5, min(shape)).to(u.real.dtype)) @ vh
    b = draw(shape[0], 3, dtype=dtype)
    tol, slack = (1e-13, 1e-10) if double else (1e-6, 1e-4)
    plain = solver(Dense(m), b, atol=tol)
    assert bool(plain.converged.all())
    assert (plain.x - torch.linalg.pinv(m) @ b).abs().max() <= slack
    assert plain.status == (Status.LEAST_SQUARES if shape[0] > shape[1] else Status.CONVERGED)
    damped = solver(Dense(m), b, atol=tol, damp=0.7)
    normal = m.mH @ m + 0.49 * torch.eye(shape[1], dtype=dtype)
    assert (damped.x - torch.linalg.solve(normal, m.mH @ b)).abs().max() <= slack
    start = draw(shape[1], 3, dtype=dtype, seed=5)
    again = solver(Dense(m), b, atol=tol, x0=start, preconditioner=Diagonal(torch.linspace(1, 2, shape[1]).to(dtype)))
    assert bool(again.converged.all())
    fitted, best = m @ again.x, m @ (torch.linalg.pinv(m) @ b)
    assert (fitted - best).abs().max() <= 10 * slack


@pytest.mark.parametrize(
    ("ours", "theirs", "kind", "options"),
    [
        (cg, scipy.sparse.linalg.cg, "psd", {"rtol": 1e-8}),
        (minres, scipy.sparse.linalg.minres, "symmetric", {"rtol": 1e-8}),
        (lsqr, scipy.sparse.linalg.lsqr, "general", {"atol": 1e-9, "btol": 1e-9}),
        (lsmr, scipy.sparse.linalg.lsmr, "general", {"atol": 1e-9, "btol": 1e-9}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_as_many_steps_as_scipy(ours, theirs, kind, options):
    """Oracle: SciPy's step count on the same system and tolerance, give or take two (MINRES stops by another norm)."""
    m = matrix(kind, (), torch.float64)
    b = draw(N)
    steps = []
    if theirs in (scipy.sparse.linalg.cg, scipy.sparse.linalg.minres):
        x, info = theirs(m.numpy(), b.numpy(), callback=lambda _: steps.append(0), **options)
        assert info == 0
        count = len(steps)
    else:
        x, _, count = theirs(m.numpy(), b.numpy(), **options)[:3]
    solution = ours(Dense(m, is_symmetric=kind != "general"), b, **options)
    assert bool(solution.converged)
    assert abs(solution.num_steps - count) <= 2
    assert np.abs(solution.x.numpy() - x).max() <= 1e-6


@pytest.mark.parametrize("solver", [cg, minres, gmres, lsmr, lsqr])
def test_edges(solver):
    """Oracle: zero for zero in no steps; n = 1; no columns; NaN and misfits refused; a tiny b is not taken for zero."""
    a = Dense(matrix("psd", (), torch.float64), is_psd=True)
    nothing = solver(a, torch.zeros(N, dtype=torch.float64))
    assert nothing.num_steps == 0
    assert not bool(nothing.x.any())
    assert bool(nothing.converged)
    assert solver(a, draw(N, 0)).x.shape == (N, 0)
    single = solver(Dense(torch.full((1, 1), 4.0), is_psd=True), torch.tensor([2.0]))
    assert single.x.item() == pytest.approx(0.5, rel=1e-6)
    tiny = solver(Dense(a.matrix.float(), is_psd=True), draw(N).float() * 1e-30)
    full = solver(Dense(a.matrix.float(), is_psd=True), draw(N).float())
    assert abs(tiny.num_steps - full.num_steps) <= 1
    torch.testing.assert_close(tiny.x * 1e30, full.x, rtol=1e-3, atol=1e-5)
    with pytest.raises(NumericalError, match="NaN"):
        solver(a, torch.full((N,), torch.nan, dtype=torch.float64))
    with pytest.raises(ShapeError, match="b has shape"):
        solver(a, draw(N + 1))
    with pytest.raises(ShapeError, match="float32"):
        solver(a, draw(N).float())
    with pytest.raises(ArgumentError, match="max_steps"):
        solver(a, draw(N), max_steps=-1)
    short = solver(a, draw(N), max_steps=2)
    assert short.status == Status.MAX_STEPS
    assert not bool(short.converged)


def test_columns_stop_by_themselves():
    """Oracle: each column alone. An easy column is frozen while a hard one goes on; compaction must not mix them."""
    d = torch.linspace(1, 1e4, 400, dtype=torch.float64)
    a = Diagonal(d)
    b = draw(400, 12)
    b[:, :6] = 0
    b[torch.arange(6), torch.arange(6)] = 1.0  # eigenvectors: one step each
    together = cg(a, b, rtol=1e-9)
    alone = [cg(a, b[:, j], rtol=1e-9) for j in range(12)]
    assert alone[0].num_steps == 1 < 32 < alone[-1].num_steps
    assert together.num_steps == max(s.num_steps for s in alone)
    torch.testing.assert_close(together.x, torch.stack([s.x for s in alone], 1), rtol=1e-6, atol=1e-12)


def test_groups_of_columns_change_nothing():
    """Oracle: the same block in two halves small enough to run whole."""
    n = 6000
    a = Diagonal(torch.linspace(1, 100, n, dtype=torch.float64))
    b = draw(n, 32)
    whole = cg(a, b)
    assert bool(whole.converged.all())
    parts = [cg(a, part.contiguous()) for part in b.split(8, 1)]
    assert torch.equal(whole.x, torch.cat([p.x for p in parts], 1))


def test_negative_curvature_is_returned():
    """Oracle: the direction's own curvature. Columns that never meet it converge beside the one that does."""
    a = Dense(torch.diag(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)), is_symmetric=True)
    solution = cg(a, torch.eye(3, dtype=torch.float64))
    assert solution.statuses.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.NEGATIVE_CURVATURE]
    assert solution.status == Status.NEGATIVE_CURVATURE
    p = solution.direction[:, 2]
    assert p @ (a @ p) < 0
    assert not bool(solution.direction[:, :2].any())


def test_masks_of_an_accelerator_give_the_same_numbers(monkeypatch):
    """Oracle: the branches of the CPU, which look at every step; here the masks run on the CPU too."""
    a, b = Diagonal(torch.linspace(1, 1e3, 300, dtype=torch.float64)), draw(300, 12)
    b[:, :5] = torch.eye(300, 5, dtype=torch.float64)
    indefinite = Dense(torch.diag(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)), is_symmetric=True)

    def runs():
        return (
            cg(a, b, preconditioner=jacobi(Diagonal(a.values.sqrt()))),
            cg(a, b),
            cg(indefinite, torch.eye(3).double()),
        )

    looking = runs()
    monkeypatch.setattr(importlib.import_module("hesse.linalg.solvers.cg"), "_is_lazy", lambda device: True)
    for plain, masked in zip(looking, runs(), strict=True):
        assert torch.equal(plain.x, masked.x)
        assert torch.equal(plain.statuses, masked.statuses)
        assert plain.num_steps <= masked.num_steps < plain.num_steps + 8
    assert torch.equal(looking[2].direction, runs()[2].direction)


def test_first_product_with_nan():
    """Oracle: an operator that gives NaN, not declared symmetric so that no earlier check sees it."""
    with pytest.raises(NumericalError, match="first product"):
        cg(Dense(torch.full((3, 3), torch.nan)), torch.ones(3))


def test_preconditioner_that_is_not_positive_definite():
    """Oracle: the status."""
    a = Dense(matrix("psd", (), torch.float64), is_psd=True)
    solution = cg(a, draw(N), preconditioner=Diagonal(-torch.ones(N, dtype=torch.float64)))
    assert solution.status == Status.BREAKDOWN


def test_preconditioners_save_steps():
    """Oracle: plain CG's count, and the same solution."""
    d = torch.logspace(0, 6, 200, dtype=torch.float64)
    m = torch.diag(d) + 0.1 * torch.ones(200, 200, dtype=torch.float64)
    a, b = Dense(m, is_psd=True), draw(200, 3)
    plain = cg(a, b, rtol=1e-8, max_steps=4000)
    scaled = cg(a, b, rtol=1e-8, preconditioner=jacobi(a))
    assert bool(scaled.converged.all())
    assert 10 * scaled.num_steps < plain.num_steps
    flexible = cg(
        a,
        b,
        rtol=1e-8,
        preconditioner=lambda r: r / d.unsqueeze(-1) * (1 + 0.3 * torch.sin(r.sum() * 1e3)),
        flexible=True,
    )
    assert bool(flexible.converged.all())
    grid = torch.linspace(0, 1, 300, dtype=torch.float64)
    kernel = Dense(torch.exp(-((grid[:, None] - grid) ** 2) * 50), is_psd=True)
    system = kernel.shift(1e-3)
    m = pivoted_cholesky_preconditioner(kernel, 25, 1e-3)
    quick, slow = cg(system, draw(300), preconditioner=m), cg(system, draw(300))
    assert bool(quick.converged)
    assert 5 * quick.num_steps < slow.num_steps
    turned = minres(system, draw(300), preconditioner=m)
    assert bool(turned.converged)
    assert turned.num_steps < slow.num_steps


def test_pivoted_cholesky_error_is_the_remaining_trace():
    """Oracle: the dense difference; its trace falls below that of any other columns' projection by the pivot rule."""
    m = matrix("psd", (), torch.complex128)
    factor, pivots = pivoted_cholesky(Dense(m, is_psd=True), 10)
    assert factor.shape == (N, 10)
    assert len(set(pivots.tolist())) == 10
    rest = m - factor @ factor.mH
    assert rest[pivots].abs().max() <= 1e-10
    assert torch.linalg.eigvalsh(rest).min() >= -1e-9
    low = draw(N, 4)
    rank, _ = pivoted_cholesky(Dense(low @ low.mT, is_psd=True), 10)
    assert rank.shape == (N, 4)


def test_tridiagonal_has_the_spectrum():
    """Oracle: the eigenvalues of A, all found after n steps; and the log-determinant from its first row."""
    d = torch.linspace(1, 4, 12, dtype=torch.float64)
    solution = cg(
        Diagonal(d), torch.ones(12, 1, dtype=torch.float64), rtol=1e-14, return_tridiagonal=True, max_steps=12
    )
    diagonal, off = solution.tridiagonal
    t = torch.diag(diagonal[0]) + torch.diag(off[0], 1) + torch.diag(off[0], -1)
    values, vectors = torch.linalg.eigh(t)
    torch.testing.assert_close(values[:12], d, rtol=1e-5, atol=1e-6)
    assert float(12 * (vectors[0] ** 2 * values.log()).sum()) == pytest.approx(float(d.log().sum()), rel=1e-8)


def test_history_and_fixed_number_of_steps():
    """Oracle: the explicit residual of a run stopped at each step."""
    a, b = Dense(matrix("psd", (), torch.float64), is_psd=True), draw(N, 2)
    run = cg(a, b, rtol=0.0, max_steps=7, record_history=True)
    assert run.num_steps == 7
    assert run.history.shape == (8, 2)
    for steps in (1, 4, 7):
        torch.testing.assert_close(run.history[steps], cg(a, b, rtol=0.0, max_steps=steps).residual)


def test_start_is_used():
    """Oracle: the solution itself as start costs no step; a start near it, fewer."""
    m = matrix("psd", (), torch.float64)
    b = draw(N, 2)
    x = torch.linalg.solve(m, b)
    for solver in (cg, minres, gmres):
        assert solver(Dense(m, is_psd=True), b, x0=x).num_steps == 0


def test_single_precision_reaches_its_tolerance():
    """Oracle: the explicit residual in float64, where plain recurrences claim more than they have."""
    d = torch.logspace(0, 3, 500)
    b = draw(500, dtype=torch.float32)
    solution = cg(Diagonal(d), b, rtol=1e-5)
    true = (b.double() - d.double() * solution.x.double()).norm() / b.double().norm()
    assert bool(solution.converged)
    assert true <= 1.1e-5
    wide = cg(Diagonal(d), b, rtol=1e-5, recurrence_dtype=torch.float64)
    assert bool(wide.converged)
    half = cg(Dense(torch.eye(4, dtype=torch.bfloat16) * 2, is_psd=True), torch.ones(4, dtype=torch.bfloat16))
    assert half.x.dtype == torch.bfloat16
    assert bool(half.converged)


@pytest.mark.parametrize("solver", [cg, minres, gmres, lsmr, lsqr])
def test_float32_products_in_float64_recurrences(solver):
    """Oracle: float64 throughout, on the rounded matrix: hardly a step more, and the same solution."""
    m = matrix("psd", (), torch.float64).float()
    b = draw(N, 2).float()
    tolerance = {"atol" if solver in (lsmr, lsqr) else "rtol": 1e-5}
    mixed = solver(Dense(m, is_psd=True), b, recurrence_dtype=torch.float64, **tolerance)
    double = solver(Dense(m.double(), is_psd=True), b.double(), **tolerance)
    assert mixed.x.dtype == torch.float32
    assert bool(mixed.converged.all())
    assert mixed.num_steps <= 1.25 * double.num_steps + 1  # LSMR sees rounding times the condition squared
    assert float((mixed.x - double.x).abs().max() / double.x.abs().max()) < 1e-3


def test_unreachable_tolerance_stagnates():
    """Oracle: eps. No residual of an ill-conditioned float32 system is 1e-9 of b, and the status says so."""
    d = torch.logspace(0, 4, 300)
    solution = cg(Diagonal(d), draw(300, dtype=torch.float32), rtol=1e-9, max_steps=3000)
    assert solution.status in (Status.STAGNATED, Status.MAX_STEPS)
    assert not bool(solution.converged)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_minres_on_singular_systems(dtype):
    """Oracle: the pseudo-inverse. Consistent or not: the shortest solution; inconsistent systems are flagged."""
    values, q = torch.linalg.eigh(matrix("symmetric", (), dtype))
    values[12:15] = 0
    m = (q * values) @ q.mH
    m = (m + m.mH) / 2
    a, b = Dense(m, is_symmetric=True), draw(N, 3, dtype=dtype)
    inverse = torch.linalg.pinv(m, hermitian=True, rtol=1e-10)
    inside = minres(a, m @ b, rtol=1e-10)
    assert bool(inside.converged.all())
    torch.testing.assert_close(inside.x, inverse @ (m @ b), rtol=1e-6, atol=1e-7)
    outside = minres(a, b, rtol=1e-10)
    assert outside.status == Status.LEAST_SQUARES
    assert not bool(outside.converged.any())
    torch.testing.assert_close(outside.residual, (b - m @ (inverse @ b)).norm(dim=0))
    torch.testing.assert_close(outside.x, inverse @ b, rtol=0, atol=1e-5 * float((inverse @ b).abs().max()))
    start = draw(N, 3, dtype=dtype, seed=7)
    near = start + inverse @ (b - m @ start)  # of the least-squares solutions the one nearest to the start
    torch.testing.assert_close(minres(a, b, x0=start).x, near, rtol=0, atol=1e-5 * float(near.abs().max()))
    mixed = torch.cat([m @ b[:, :1], b[:, 1:]], dim=1)
    found = minres(a, mixed, rtol=1e-10)
    assert found.converged.tolist() == [True, False, False]
    torch.testing.assert_close(found.x, inverse @ mixed, rtol=0, atol=1e-5 * float(found.x.abs().max()))


def test_minres_on_singular_systems_with_a_preconditioner():
    """Oracle: the pseudo-inverse of LᴴAL with M = L Lᴴ: least residual in the norm of M, shortest in that of M⁻¹."""
    values, q = torch.linalg.eigh(matrix("symmetric", (), torch.float64))
    values[12:15] = 0
    m = (q * values) @ q.mT
    root = torch.linspace(1, 2, N, dtype=torch.float64)
    inner = root.unsqueeze(1) * (m + m.mT) / 2 * root
    b = draw(N)
    found = minres(Dense((m + m.mT) / 2, is_symmetric=True), b, preconditioner=Diagonal(root**2, is_psd=True))
    wanted = root * (torch.linalg.pinv(inner, hermitian=True, rtol=1e-10) @ (root * b))
    assert found.status == Status.LEAST_SQUARES
    torch.testing.assert_close(found.x, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_gmres_on_singular_systems():
    """Oracle: no solution exists; the residual must not grow."""
    a = Dense(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    solution = gmres(a, torch.ones(2))
    assert solution.status == Status.STAGNATED
    assert solution.residual <= 1.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_shifts_at_the_price_of_one(batch, dtype):
    """Oracle: LAPACK on each shifted matrix; CG's step count on the smallest shift."""
    m = matrix("psd", batch, dtype)
    m = m - 0.9 * torch.eye(N, dtype=dtype)
    a, b = Dense(m, is_psd=True), draw(N, 3, dtype=dtype)
    shifts = torch.tensor([1.0, 0.01, 100.0, 0.1], dtype=torch.float64)
    sweep = multishift_cg(a, b, shifts, rtol=1e-11)
    assert bool(sweep.converged.all())
    assert sweep.x.shape == (4, *batch, N, 3)
    for shift, x in zip(shifts, sweep.x, strict=True):
        torch.testing.assert_close(
            x, torch.linalg.solve(m + shift * torch.eye(N, dtype=dtype), b.expand_as(x)), rtol=1e-8, atol=1e-9
        )
    assert sweep.num_steps == cg(a.shift(0.01), b, rtol=1e-11).num_steps
    assert sweep.residual.shape == (4, *batch, 3)


def test_solution_is_immutable():
    """Oracle: dataclasses."""
    solution = cg(Diagonal(torch.ones(2)), torch.ones(2))
    assert isinstance(solution, Solution)
    with pytest.raises(AttributeError):
        solution.x = None
