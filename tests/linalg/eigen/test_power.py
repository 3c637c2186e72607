import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.eigen.power import power_iteration, spectral_norm


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_dominant_eigenvalue_keeps_its_sign(dtype, sign):
    """Oracle: the known spectrum; the relative error is at most the tolerance."""
    n = 60
    Q = torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=seeded(0))).Q
    values = torch.linspace(0, 1, n, dtype=torch.float64)
    values[-1] = 2.0
    matrix = Q * (sign * values).to(dtype) @ Q.mH
    operator = as_linear_operator((matrix + matrix.mH) / 2, is_symmetric=True)
    found = power_iteration(operator, generator=seeded(1))
    assert found.converged
    assert abs(float(found.eigenvalues) - 2 * sign) < 2e-5
    assert float(found.residuals) <= 1e-3 * 2


def test_real_dominant_eigenvalue_of_an_unsymmetric_matrix():
    """Oracle: closed form, a triangular matrix."""
    found = power_iteration(torch.tensor([[3.0, 5.0], [0.0, 1.0]], dtype=torch.float64), tol=1e-10, generator=seeded(0))
    assert float(found.eigenvalues) == pytest.approx(3, abs=1e-9)


def test_spectral_norm_of_a_rectangle():
    """Oracle: the largest singular value; the estimate does not exceed it."""
    matrix = torch.randn(30, 50, dtype=torch.float64, generator=seeded(0))
    found = spectral_norm(matrix, tol=1e-6, max_steps=2000, generator=seeded(1))
    exact = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert exact * (1 - 1e-6) <= float(found.eigenvalues) <= exact * (1 + 1e-14)


def test_zero_operator_and_unfinished_run():
    """Oracle: closed form; and a gap too small for three steps is reported as such."""
    zero = power_iteration(torch.zeros(4, 4), generator=seeded(0))
    assert zero.converged
    assert float(zero.eigenvalues) == 0
    close = torch.diag(torch.linspace(0.99, 1.0, 50, dtype=torch.float64))
    assert not power_iteration(close, tol=1e-8, max_steps=3, generator=seeded(0)).converged


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ShapeError, match="square"):
        power_iteration(torch.ones(2, 3))
    with pytest.raises(ShapeError, match="start"):
        power_iteration(torch.eye(3), start=torch.ones(2))
    with pytest.raises(ArgumentError, match="zero"):
        power_iteration(torch.eye(3), start=torch.zeros(3))
    with pytest.raises(ArgumentError, match="max_steps"):
        power_iteration(torch.eye(3), max_steps=0)
    with pytest.raises(NumericalError, match="NaN"):
        power_iteration(torch.full((3, 3), torch.nan))
