"""Deflated conjugate gradients, and the subspaces that a sequence of solves collects."""

import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg import Deflation, Dense, Diagonal, FunctionOperator, Status, cg, recycled_cg

N, LOW = 300, 8


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


def spectrum(lowest=1e-5, highest=1e-3):
    low = torch.logspace(0, 1, LOW, base=highest / lowest, dtype=torch.float64) * lowest
    return torch.cat([low, torch.linspace(1, 10, N - LOW, dtype=torch.float64)])


def with_values(values, dtype=torch.float64):
    q = torch.linalg.qr(draw(N, N, dtype=dtype, seed=9)).Q
    m = (q * values.to(q.real.dtype)) @ q.mH
    return (m + m.mH) / 2, q


class Counted:
    """A dense operator that counts the columns it is multiplied by."""

    def __init__(self, m):
        self.columns = 0
        self.operator = FunctionOperator(self.product, m.shape, dtype=m.dtype, tensors=(m,), is_psd=True)

    def product(self, x, m):
        self.columns += x.shape[-1]
        return m @ x


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(N,), (N, 3), (2, N, 2)], ids=str)
def test_deflated_solutions_are_the_solutions(shape, dtype):
    """Oracle: torch.linalg.solve; any basis of the low eigenvectors takes their steps away, whatever start or M."""
    m, q = with_values(spectrum(), dtype)
    a, b = Dense(m, is_psd=True), draw(*shape, dtype=dtype, seed=1)
    U = q[:, :LOW] @ draw(LOW, LOW + 2, dtype=dtype, seed=2)  # two columns too many
    wanted = torch.linalg.solve(m, b.unsqueeze(-1) if b.ndim == 1 else b).reshape(b.shape)
    jacobi = Diagonal(torch.linspace(0.5, 2, N).to(dtype), is_psd=True)
    plain = cg(a, b, rtol=1e-10)
    for options in ({}, {"preconditioner": jacobi}, {"x0": draw(*shape, dtype=dtype, seed=4)}):
        found = cg(a, b, rtol=1e-10, deflation=U, **options)
        assert bool(found.converged.all())
        assert 2 * found.num_steps < plain.num_steps
        assert float((found.x - wanted).abs().max() / wanted.abs().max()) < 1e-5  # condition 1e6
    space = Deflation.of(a, U)
    assert space.U.shape == (N, LOW)
    torch.testing.assert_close(space.U.mH @ space.AU, torch.eye(LOW, dtype=dtype), rtol=0, atol=1e-6)
    assert cg(a, b, rtol=1e-10, deflation=space).num_steps == cg(a, b, rtol=1e-10, deflation=U).num_steps


def test_an_empty_or_useless_deflation_changes_little():
    """Oracle: plain CG; no columns at all, and directions that have nothing to do with the spectrum."""
    m, _ = with_values(torch.linspace(1, 30, N))
    a, b = Dense(m, is_psd=True), draw(N, seed=1)
    plain = cg(a, b, rtol=1e-9)
    assert cg(a, b, rtol=1e-9, deflation=b.new_zeros(N, 0)).num_steps == plain.num_steps
    random = cg(a, b, rtol=1e-9, deflation=draw(N, 4, seed=6))
    torch.testing.assert_close(random.x, plain.x, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("window", [None, 2 * LOW + 2, 10 * LOW], ids=str)
def test_a_sequence_of_solves_gets_cheaper(window):
    """Oracle: a count of all products; and the steps that the exact eigenvectors would leave."""
    m, q = with_values(spectrum())
    counted, space, costs = Counted(m), None, []
    for i in range(6):
        counted.columns = 0
        found, space = recycled_cg(
            counted.operator, draw(N, seed=i), deflation=space, rank=LOW, window=window, rtol=1e-8, validate=False
        )
        assert bool(found.converged)
        costs.append(counted.columns)
    counted.columns = 0
    cg(counted.operator, draw(N, seed=0), rtol=1e-8, validate=False)
    assert costs[0] == counted.columns  # collecting is free of products
    ideal = cg(counted.operator, draw(N, seed=5), rtol=1e-8, deflation=q[:, :LOW]).num_steps
    assert all(4 * cost < costs[0] for cost in costs[1:])
    assert costs[-1] <= 1.25 * ideal + 2


def test_the_subspace_is_that_of_the_lowest_eigenvectors():
    """Oracle: the dense eigenvectors; and the products that were never made anew, over twenty solves."""
    m, q = with_values(spectrum())
    a, space = Dense(m, is_psd=True), None
    for i in range(20):
        _, space = recycled_cg(a, draw(N, seed=i), deflation=space, rank=LOW, rtol=1e-8)
    basis = torch.linalg.qr(space.U).Q
    assert float(torch.linalg.svdvals(basis.mT @ q[:, :LOW])[-1]) > 1 - 1e-6
    torch.testing.assert_close(m @ space.U, space.AU, rtol=0, atol=1e-8 * float(space.AU.abs().max()))
    torch.testing.assert_close(space.U.mT @ space.AU, torch.eye(LOW, dtype=m.dtype), rtol=0, atol=1e-6)


def test_several_columns_and_a_preconditioner():
    """Oracle: counts of steps; the subspace is that of M A."""
    values = torch.linspace(0.1, 10, N, dtype=torch.float64)
    m, _ = with_values(spectrum())
    root = torch.diag(values.sqrt())
    a = Dense(root @ m @ root, is_psd=True)
    jacobi = Diagonal(1 / values, is_psd=True)
    first, space = recycled_cg(a, draw(N, 3), rank=LOW, rtol=1e-8, preconditioner=jacobi)
    second, _ = recycled_cg(a, draw(N, 3, seed=1), deflation=space, rank=LOW, rtol=1e-8, preconditioner=jacobi)
    assert bool(first.converged.all())
    assert bool(second.converged.all())
    assert 3 * second.num_steps < first.num_steps


def test_single_precision():
    """Oracle: counts of steps, in products of float32; condition 1000, near what the tolerance allows."""
    m, _ = with_values(spectrum(1e-2, 1e-1))
    a, space, steps = Dense(m.float(), is_psd=True), None, []
    for i in range(3):
        found, space = recycled_cg(a, draw(N, seed=i).float(), deflation=space, rank=LOW, rtol=1e-4)
        assert bool(found.converged)
        steps.append(found.num_steps)
    assert space.U.dtype == torch.float32
    assert 3 * steps[2] < steps[0]


def test_a_tolerance_below_rounding_does_not_diverge():
    """Oracle: the residual of the solution itself: it stays at what float32 can do, whatever was asked for."""
    m, q = with_values(spectrum(1e-3, 1e-2))
    a, b = Dense(m.float(), is_psd=True), draw(N, seed=1).float()
    strong = Dense((torch.eye(N) + 1e3 * q[:, :LOW] @ q[:, :LOW].mT).float(), is_psd=True)
    for options in ({"deflation": q[:, :LOW].float()}, {"preconditioner": strong}):
        found = cg(a, b, rtol=1e-7, max_steps=1000, **options)
        assert found.status in (Status.STAGNATED, Status.MAX_STEPS)
        assert float(found.residual) < 1e-3 * float(b.norm())


def test_a_changed_operator_takes_the_subspace_over():
    """Oracle: counts of steps; a matrix that moves a little keeps its low eigenvectors nearly."""
    m, _ = with_values(spectrum())
    noise = draw(N, N, seed=3)
    moved = m + 1e-7 * noise @ noise.mT
    first, space = recycled_cg(Dense(m, is_psd=True), draw(N), rank=LOW, rtol=1e-8)
    other = Dense(moved, is_psd=True)
    second = cg(other, draw(N, seed=1), deflation=Deflation.of(other, space.U), rtol=1e-8)
    assert bool(second.converged)
    assert 3 * second.num_steps < first.num_steps


def test_edges():
    """Oracle: closed forms: a zero right-hand side teaches nothing; order one; negative curvature is still seen."""
    m, _ = with_values(spectrum())
    found, space = recycled_cg(Dense(m, is_psd=True), torch.zeros(N, dtype=torch.float64))
    assert found.num_steps == 0
    assert space.U.shape == (N, 0)
    again, _ = recycled_cg(Dense(m, is_psd=True), draw(N), deflation=space, rtol=1e-6)
    assert bool(again.converged)
    single, space = recycled_cg(Diagonal(torch.tensor([4.0]), is_psd=True), torch.tensor([2.0]))
    assert float(single.x) == pytest.approx(0.5)
    assert float(space.ritz_values) == pytest.approx(4.0)
    bad, _ = recycled_cg(Dense(m - torch.eye(N), is_symmetric=True), draw(N))
    assert bad.status == Status.NEGATIVE_CURVATURE


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    m, _ = with_values(spectrum())
    a, b = Dense(m, is_psd=True), draw(N)
    with pytest.raises(ArgumentError, match="rank"):
        recycled_cg(a, b, rank=0)
    with pytest.raises(ArgumentError, match="window"):
        recycled_cg(a, b, rank=4, window=9)
    with pytest.raises(ShapeError, match="stack"):
        recycled_cg(Dense(torch.stack([m, m]), is_psd=True), b)
    with pytest.raises(ShapeError, match="deflation"):
        cg(a, b, deflation=Deflation(draw(N - 1, 2), draw(N - 1, 2)))
    with pytest.raises(ShapeError, match="expected U"):
        cg(a, b, deflation=draw(N - 1, 2))
    with pytest.raises(NumericalError, match="positive definite"):
        Deflation.of(Dense(-m, is_symmetric=True), draw(N, 2))
    saddle = Diagonal(torch.tensor([1.0, -1.0], dtype=torch.float64))
    skew = torch.tensor([[1.0, 1.0], [0.9, -0.9]], dtype=torch.float64)  # either column alone looks positive definite
    with pytest.raises(NumericalError, match="positive definite"):
        Deflation.of(saddle, skew)
    with pytest.raises(NumericalError, match="NaN"):
        Deflation.of(a, draw(N, 2) * torch.nan)
