import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg import Dense, Diagonal, FunctionOperator, Status, cg, solve
from hesse.linalg.solvers.block_cg import block_cg

N = 120
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


def with_values(values, dtype=torch.float64):
    q = torch.linalg.qr(draw(len(values), len(values), dtype=dtype, seed=9)).Q
    m = (q * values.to(q.real.dtype)) @ q.mH
    return (m + m.mH) / 2


HARD = torch.cat([torch.logspace(-4, -2, 8), torch.linspace(1, 10, N - 8)]).double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 7), (2, N, 3), (N, N + 5)], ids=str)
def test_solves_every_shape(shape, dtype):
    """Oracle: torch.linalg.solve in double precision; more columns than unknowns are solved in one step."""
    double = dtype in (torch.float64, torch.complex128)
    m = with_values(torch.linspace(1, 40, N), dtype)
    b = draw(*shape, dtype=dtype, seed=1)
    found = block_cg(Dense(m, is_psd=True), b, rtol=1e-12 if double else 1e-5)
    assert bool(found.converged.all())
    assert found.converged.shape == (shape[:-2] + shape[-1:] if len(shape) > 1 else ())
    wide = torch.promote_types(dtype, torch.float64)
    wanted = torch.linalg.solve(m.to(wide), (b.unsqueeze(-1) if b.ndim == 1 else b).to(wide)).reshape(b.shape)
    assert float((found.x - wanted).abs().max() / wanted.abs().max()) <= (1e-11 if double else 1e-4)
    assert found.num_steps == 1 or shape != (N, N + 5)


def test_one_column_is_plain_cg():
    """Oracle: the residual norms of `cg`, step by step, until rounding parts them."""
    a, b = Dense(with_values(torch.linspace(1, 40, N)), is_psd=True), draw(N, 1)
    ours, plain = (solver(a, b, rtol=1e-8, record_history=True) for solver in (block_cg, cg))
    assert ours.num_steps == plain.num_steps
    torch.testing.assert_close(ours.history, plain.history, rtol=1e-5, atol=0)


def test_columns_help_each_other():
    """Oracle: the count of products with a block; eight low eigenvalues are nothing to sixteen columns."""
    a, b = Dense(with_values(HARD), is_psd=True), draw(N, 16)
    ours, plain = block_cg(a, b, rtol=1e-10), cg(a, b, rtol=1e-10)
    assert bool(ours.converged.all())
    assert ours.num_steps * 3 <= plain.num_steps


def test_dependent_zero_and_tiny_columns():
    """Oracle: dense LAPACK; equal columns have equal solutions, and a zero column stays zero."""
    m, b = with_values(HARD), draw(N, 9)
    b[:, 3], b[:, 4], b[:, 5], b[:, 6] = b[:, 2], 0, 1e-12 * b[:, 5], b[:, 0] + b[:, 1]
    found = block_cg(Dense(m, is_psd=True), b, rtol=1e-9)
    assert bool(found.converged.all())
    assert found.num_steps <= 40
    assert not bool(found.x[:, 4].any())
    torch.testing.assert_close(found.x[:, 3], found.x[:, 2], rtol=1e-8, atol=1e-10)
    wanted = torch.linalg.solve(m, b)
    assert float(((found.x - wanted).norm(dim=0) / wanted.norm(dim=0).clamp_min(1e-30)).max()) <= 1e-5  # condition 1e5


@pytest.mark.parametrize("rank", [1, 4])
def test_right_hand_sides_of_low_rank(rank):
    """Oracle: dense LAPACK; the Krylov space ends with as many directions as b has."""
    m = with_values(torch.linspace(1, 3, N))
    b = draw(N, rank) @ draw(rank, 12, seed=3)
    widths = []

    def product(x):
        widths.append(x.shape[1])
        return m @ x

    operator = FunctionOperator(product, (N, N), dtype=torch.float64, is_psd=True)
    found = block_cg(operator, b, rtol=1e-10, validate=False)
    torch.testing.assert_close(found.x, torch.linalg.solve(m, b), rtol=1e-8, atol=1e-9)
    assert set(widths[:-1]) == {rank}  # the last product is that of the explicit residual


def test_preconditioner_and_start():
    """Oracle: dense LAPACK; an inverse up to a small shift leaves a handful of steps, the solution as start none."""
    m, b = with_values(HARD), draw(N, 5)
    a = Dense(m, is_psd=True)
    inverse = Dense(with_values(1 / (HARD + 1e-4)), is_psd=True)
    found = block_cg(a, b, rtol=1e-10, preconditioner=inverse)
    assert bool(found.converged.all())
    assert found.num_steps <= 6
    wanted = torch.linalg.solve(m, b)
    assert float((found.x - wanted).abs().max() / wanted.abs().max()) <= 1e-7
    assert block_cg(a, b, x0=found.x, rtol=1e-9).num_steps == 0
    rough = block_cg(a, b, x0=draw(N, 5, seed=8), rtol=1e-9, preconditioner=Diagonal(1 / m.diagonal(), is_psd=True))
    assert bool(rough.converged.all())


def test_negative_curvature_is_returned():
    """Oracle: the sign of pᴴAp."""
    m = with_values(torch.linspace(-1, 10, N))
    found = block_cg(Dense(m, is_symmetric=True), draw(N, 4))
    assert found.status == Status.NEGATIVE_CURVATURE
    curvature = (found.direction * (m @ found.direction)).sum(0)
    assert bool((curvature[~found.converged] < 0).all())


def test_breakdowns_are_named():
    """Oracle: the status, or the error."""
    m = with_values(torch.linspace(1, 10, N))
    a, b = Dense(m, is_psd=True), draw(N, 3)
    assert block_cg(a, b, preconditioner=lambda r: -r).status == Status.BREAKDOWN
    assert block_cg(a, b, rtol=1e-12, max_steps=2).status == Status.MAX_STEPS
    assert block_cg(a, b, rtol=1e-40).status == Status.STAGNATED
    with pytest.raises(NumericalError, match="first product"):
        block_cg(FunctionOperator(lambda x: x * torch.nan, (N, N), dtype=torch.float64), b)
    with pytest.raises(ShapeError, match="stack"):
        block_cg(Dense(torch.stack([m, m]), is_psd=True), b)
    with pytest.raises(ArgumentError, match="rtol"):
        block_cg(a, b, rtol=-1.0)


def test_float32_products_in_float64_recurrences():
    """Oracle: the dense float64 residual of the rounded matrix; a tolerance near what float32 products allow."""
    m = with_values(torch.linspace(4, 40, N)).float()  # products round at 10 eps: the tolerance is above that
    b = draw(N, 16).float()
    mixed, single = (block_cg(Dense(m, is_psd=True), b, rtol=1e-6, recurrence_dtype=d) for d in (torch.float64, None))
    assert mixed.x.dtype == torch.float32
    assert bool(mixed.converged.all())
    assert float(mixed.residual.max()) < 2 * float(single.residual.max())


def test_gradient_through_solve():
    """Oracle: finite differences."""
    root, b = draw(4, 4).requires_grad_(), draw(4, 2, seed=1).requires_grad_()

    def run(root, b):
        operator = Dense(root @ root.mT + torch.eye(4, dtype=root.dtype), is_psd=True)
        return solve(operator, b, method="block_cg", rtol=1e-13, strict=False).x

    assert torch.autograd.gradcheck(run, (root, b))
