"""Deflated MINRES on symmetric systems of any signature; deflated conjugate gradients are in test_recycling."""

import pytest
import torch

from hesse.errors import NumericalError, ShapeError
from hesse.linalg import Dense, Diagonal, Status, minres, recycled_cg

N, LOW = 240, 6


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def indefinite(dtype=torch.float64, lowest=1e-5):
    """A Hermitian matrix with both signs, six eigenvalues of either sign near zero, and its eigenvectors."""
    near = lowest * torch.tensor([-30, -10, -2, 1, 20, 50], dtype=torch.float64)
    far = torch.cat([-torch.linspace(1, 3, 60, dtype=torch.float64), torch.linspace(1, 4, N - LOW - 60).double()])
    q = torch.linalg.qr(draw(N, N, dtype=dtype, seed=9)).Q
    m = (q * torch.cat([near, far]).to(q.real.dtype)) @ q.mH
    return (m + m.mH) / 2, q


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(N,), (N, 3), (2, N, 2)], ids=str)
def test_solutions_are_those_of_a_direct_solver_in_fewer_steps(shape, dtype):
    """Oracle: torch.linalg.solve; whatever basis of the subspace (two columns too many), start, M or scale of b."""
    m, q = indefinite(dtype)
    a, b = Dense(m, is_symmetric=True), 1e5 * draw(*shape, dtype=dtype, seed=1)
    U = q[:, :LOW] @ draw(LOW, LOW + 2, dtype=dtype, seed=2)
    wanted = torch.linalg.solve(m, b.unsqueeze(-1) if b.ndim == 1 else b).reshape(b.shape)
    jacobi = Diagonal(torch.linspace(0.5, 2, N).to(dtype), is_psd=True)
    for options in ({}, {"preconditioner": jacobi}, {"x0": draw(*shape, dtype=dtype, seed=4)}):
        deflated = minres(a, b, rtol=1e-10, deflation=U, **options)
        plain = minres(a, b, rtol=1e-10, max_steps=5000, **options)
        assert bool(deflated.converged.all())
        assert 2 * deflated.num_steps < plain.num_steps
        assert float((deflated.x - wanted).abs().max() / wanted.abs().max()) < 1e-5  # condition 4e5


def test_residual_is_the_least_over_both_spaces():
    """Oracle: least squares on the columns A [U, P b, (P A P) P b, ...], at every number of steps."""
    m, _ = indefinite()
    b, U = draw(N, seed=1), draw(N, 4, seed=3)
    C = torch.linalg.qr(m @ U).Q
    P = torch.eye(N, dtype=m.dtype) - C @ C.mT
    krylov = [P @ b / (P @ b).norm()]
    for steps in range(1, 8):
        basis = torch.linalg.qr(torch.stack(krylov, dim=1)).Q
        columns = m @ torch.cat([U, basis], dim=1)
        least = (b - columns @ torch.linalg.lstsq(columns, b).solution).norm()
        found = minres(Dense(m, is_symmetric=True), b, deflation=U, max_steps=steps, rtol=0)
        assert float(found.residual) == pytest.approx(float(least), rel=1e-8)
        grown = P @ (m @ (P @ krylov[-1]))
        krylov.append(grown / grown.norm())


def test_shift_and_a_subspace_of_another_solve():
    """Oracle: torch.linalg.solve; the subspace that conjugate gradients collected serves the shifted matrix."""
    m, _ = indefinite()
    definite = m @ m
    _, space = recycled_cg(Dense(definite, is_psd=True), draw(N), rank=LOW, rtol=1e-8, max_steps=2000)
    b = draw(N, seed=7)
    wanted = torch.linalg.solve(definite - 0.5 * torch.eye(N), b)
    found = minres(Dense(definite, is_psd=True), b, shift=0.5, deflation=space, rtol=1e-11)
    torch.testing.assert_close(found.x, wanted, rtol=1e-7, atol=1e-7 * float(wanted.abs().max()))


def test_no_column_changes_nothing_and_all_columns_need_no_step():
    """Oracle: plain MINRES; the whole space, of which nothing is left to search."""
    m, _ = indefinite()
    a, b = Dense(m, is_symmetric=True), draw(N, seed=1)
    plain, empty = (
        minres(a, b, rtol=1e-8, max_steps=4000),
        minres(a, b, rtol=1e-8, max_steps=4000, deflation=b.new_zeros(N, 0)),
    )
    assert empty.num_steps == plain.num_steps
    assert torch.equal(empty.x, plain.x)
    whole = minres(a, b, rtol=1e-8, deflation=torch.eye(N, dtype=b.dtype))
    assert whole.num_steps == 0
    assert whole.status == Status.CONVERGED


def test_single_precision():
    """Oracle: a direct solve in double."""
    m, q = indefinite(lowest=1e-2)  # rounding leaves eps times the condition number, 4e2, in the residual
    b = draw(N, 2, seed=1)
    found = minres(Dense(m.float(), is_symmetric=True), b.float(), rtol=1e-4, deflation=q[:, :LOW].float())
    assert bool(found.converged.all())
    assert float((m @ found.x.double() - b).norm() / b.norm()) < 2e-4


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    m, _ = indefinite()
    a, b = Dense(m, is_symmetric=True), draw(N)
    with pytest.raises(ShapeError, match="deflation"):
        minres(a, b, deflation=draw(N + 1, 2))
    with pytest.raises(ShapeError, match="stack"):
        minres(Dense(torch.stack([m, m]), is_symmetric=True), b, deflation=draw(N, 2))
    with pytest.raises(NumericalError, match="NaN"):
        minres(a, b, deflation=torch.full((N, 1), torch.nan, dtype=b.dtype))
