import numpy as np
import pytest
import scipy.linalg
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError, SingularError
from hesse.linalg.solvers.cg import cg
from hesse.linalg.toeplitz import Toeplitz, _levinson, circulant_preconditioner


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kernel(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    column = torch.exp(-torch.arange(n, dtype=torch.float64) / 5)
    column[0] += 0.1
    return column.to(dtype)


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (4, 9), (9, 4), (1, 6), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_products_match_scipy(shape, dtype):
    """Oracle: scipy.linalg.toeplitz, for the product, the adjoint, rows, diagonal and dense form."""
    column = torch.randn(shape[0], dtype=dtype, generator=seeded(0))
    row = torch.randn(shape[1], dtype=dtype, generator=seeded(1))
    row[0] = column[0]
    operator = Toeplitz(column, row)
    dense = torch.from_numpy(np.ascontiguousarray(scipy.linalg.toeplitz(column.numpy(), row.numpy())))
    x = torch.randn(shape[1], 3, dtype=dtype, generator=seeded(2))
    y = torch.randn(shape[0], 3, dtype=dtype, generator=seeded(3))
    tight = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(operator.to_dense(), dense)
    torch.testing.assert_close(operator @ x, dense @ x, **tight)
    torch.testing.assert_close(operator.rmatmat(y), dense.mH @ y, **tight)
    torch.testing.assert_close(operator.diagonal(), dense.diagonal())
    index = torch.tensor([shape[0] - 1, 0])
    torch.testing.assert_close(operator.rows(index), dense[index])


def test_complex_symmetric_means_hermitian():
    """Oracle: the dense matrix equals its adjoint."""
    column = torch.randn(6, dtype=torch.complex128, generator=seeded(0))
    column[0] = 2.0
    operator = Toeplitz(column)
    assert operator.is_symmetric
    torch.testing.assert_close(operator.to_dense(), operator.to_dense().mH)


@pytest.mark.parametrize("n", [1, 2, 30, 600])
def test_solve_and_logdet(n):
    """Oracle: scipy.linalg.solve_toeplitz and numpy's slogdet, below and above the order where Levinson takes over."""
    column = kernel(n)
    operator = Toeplitz(column, is_psd=True)
    b = torch.randn(n, 2, dtype=torch.float64, generator=seeded(0))
    torch.testing.assert_close(
        operator.solve(b), torch.from_numpy(scipy.linalg.solve_toeplitz(column.numpy(), b.numpy())), rtol=0, atol=1e-10
    )
    exact = np.linalg.slogdet(scipy.linalg.toeplitz(column.numpy()))[1]
    assert float(operator.logdet()) == pytest.approx(exact, abs=1e-9)


def test_levinson_on_a_stack():
    """Oracle: torch.linalg.solve for each matrix."""
    columns = torch.stack([kernel(9), 2 * kernel(9)])
    b = torch.randn(2, 9, 3, dtype=torch.float64, generator=seeded(0))
    x, logdet = _levinson(columns, b)
    dense = Toeplitz(columns).to_dense()
    torch.testing.assert_close(x, torch.linalg.solve(dense, b), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(logdet, torch.linalg.slogdet(dense).logabsdet)


def test_gradients():
    """Oracle: finite differences through product, solve, logdet and Levinson's recursion."""
    column = kernel(6).requires_grad_()
    b = torch.randn(6, 2, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, x: Toeplitz(c) @ x, (column, b))
    assert torch.autograd.gradcheck(lambda c, x: Toeplitz(c, is_psd=True).solve(x), (column, b))
    assert torch.autograd.gradcheck(lambda c: Toeplitz(c, is_psd=True).logdet(), column)
    assert torch.autograd.gradcheck(_levinson, (column, b))


def test_shift_stays_toeplitz():
    """Oracle: the dense matrix plus a multiple of the identity."""
    operator = Toeplitz(kernel(7), is_psd=True).shift(0.5)
    assert isinstance(operator, Toeplitz)
    assert operator.is_psd
    dense = torch.from_numpy(scipy.linalg.toeplitz(kernel(7).numpy())) + 0.5 * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(operator.to_dense(), dense)


def test_circulant_is_the_nearest_one_and_saves_steps():
    """Oracle: the orthogonal projection on circulants, dense; and the steps of plain conjugate gradients."""
    column = kernel(8)
    operator = Toeplitz(column, is_psd=True)
    dense = operator.to_dense()
    nearest = torch.zeros(8, dtype=torch.float64)
    for lag in range(8):
        nearest[lag] = torch.stack([dense[(i + lag) % 8, i] for i in range(8)]).mean()
    circulant = torch.from_numpy(scipy.linalg.circulant(nearest.numpy()))
    inverse = circulant_preconditioner(operator).to_dense()
    torch.testing.assert_close(inverse, torch.linalg.inv(circulant), rtol=1e-12, atol=1e-12)
    large = Toeplitz(torch.exp(-torch.arange(1000, dtype=torch.float64) / 50), is_psd=True)
    b = torch.randn(1000, dtype=torch.float64, generator=seeded(0))
    plain = cg(large, b, rtol=1e-8, max_steps=3000)
    helped = cg(large, b, rtol=1e-8, preconditioner=circulant_preconditioner(large))
    assert bool(helped.converged.all())
    assert helped.num_steps < plain.num_steps / 5


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="same entry"):
        Toeplitz(torch.ones(3), torch.zeros(3))
    with pytest.raises(ShapeError, match="at least one"):
        Toeplitz(torch.ones(0))
    with pytest.raises(ShapeError, match="float64"):
        Toeplitz(torch.ones(3), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ArgumentTypeError, match="is_psd"):
        Toeplitz(torch.ones(3)).solve(torch.ones(3))
    with pytest.raises(SingularError, match="positive definite"):
        Toeplitz(torch.tensor([1.0, 2.0]), is_psd=True).solve(torch.ones(2))
    with pytest.raises(SingularError, match="order 2"):
        _levinson(torch.tensor([1.0, 2.0]), torch.ones(2, 1))
    with pytest.raises(ArgumentError, match="symmetric"):
        circulant_preconditioner(Toeplitz(torch.ones(2), torch.tensor([1.0, 3.0])))
