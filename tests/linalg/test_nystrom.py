import pytest
import torch

from hesse.errors import ArgumentError, NumericalError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.nystrom import NystromPreconditioner, nystrom, nystrom_preconditioner


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decaying(n: int = 150, base: float = 0.9) -> torch.Tensor:
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=seeded(0))).Q
    matrix = Q * base ** torch.arange(n, dtype=torch.float64) @ Q.T
    return (matrix + matrix.T) / 2


def test_is_the_nystrom_formula():
    """Oracle: (A Omega)(Omega^T A Omega)^-1 (A Omega)^T, formed from the same orthonormal block."""
    matrix = decaying(60)
    found = nystrom(matrix, 10, generator=seeded(2))
    g = seeded(2)
    omega = torch.linalg.qr(
        torch.stack([torch.randn(60, dtype=torch.float64, generator=g) for _ in range(10)], dim=1)
    ).Q
    Y = matrix @ omega
    exact = Y @ torch.linalg.solve(omega.T @ Y, Y.T)
    torch.testing.assert_close(found.U * found.eigenvalues @ found.U.T, exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.U.T @ found.U, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-12)


def test_never_exceeds_the_operator():
    """Oracle: the eigenvalues of A minus its approximation are not negative beyond rounding."""
    matrix = decaying()
    found = nystrom(matrix, 40, generator=seeded(0))
    gap = torch.linalg.eigvalsh(matrix - found.U * found.eigenvalues @ found.U.T)
    assert float(gap[0]) > -1e-12


def test_residual_trace_is_unbiased():
    """Oracle: the trace left out with one column fewer; 200 runs within four standard errors of their mean."""
    matrix = decaying()
    gaps = []
    for seed in range(200):
        estimate = nystrom(matrix, 21, generator=seeded(seed)).residual_trace
        fewer = nystrom(matrix, 20, generator=seeded(1000 + seed))
        gaps.append(estimate - (matrix.trace() - fewer.eigenvalues.sum()))
    gap = torch.stack(gaps)
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 200**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_low_rank_is_recovered(dtype):
    """Oracle: the matrix itself, of rank 4, from 12 columns; the factorisation does not fail."""
    root = torch.randn(50, 4, dtype=dtype, generator=seeded(0))
    matrix = root @ root.mH
    found = nystrom((matrix + matrix.mH) / 2, 12, generator=seeded(1))
    bound = 1e-3 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(
        found.U * found.eigenvalues.to(dtype) @ found.U.mH, matrix, rtol=0, atol=bound * float(matrix.abs().max())
    )


def test_zero_and_full_rank():
    """Oracle: closed form for A = 0; eigvalsh where the rank is the order."""
    assert float(nystrom(torch.zeros(9, 9), 3).eigenvalues.max()) == 0
    matrix = decaying(12)
    found = nystrom(matrix, 50, generator=seeded(0))
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(matrix).flip(0), rtol=0, atol=1e-12)
    assert float(found.residual_trace) == 0


def test_preconditioner_formula():
    """Oracle: the dense formula with the inverse of U (Lambda + mu) U^T + (lambda_L + mu)(I - U U^T), scaled."""
    matrix = decaying(40)
    found = nystrom(matrix, 8, generator=seeded(0))
    mu = 1e-3
    last = found.eigenvalues[-1] + mu
    projector = found.U @ found.U.T
    eye = torch.eye(40, dtype=torch.float64)
    dense = found.U * (found.eigenvalues + mu) @ found.U.T / last + (eye - projector)
    operator = found.preconditioner(mu)
    torch.testing.assert_close(operator.to_dense() @ dense, eye, rtol=0, atol=1e-10)
    assert operator.is_psd


def test_adaptive_rank_brings_the_condition_down():
    """Oracle: the eigenvalues of P^-1/2 (A + mu I) P^-1/2, dense: the condition number falls below 50 from 1e4."""
    matrix = decaying()
    mu = 1e-4
    found = nystrom_preconditioner(matrix, mu, initial_rank=5, generator=seeded(0))
    assert float(found.eigenvalues[-1]) <= 10 * mu
    assert len(found.eigenvalues) in (5, 10, 20, 40, 80, 150)
    P = found.to_dense()
    values, vectors = torch.linalg.eigh((P + P.T) / 2)
    root = vectors * values.sqrt() @ vectors.T
    spectrum = torch.linalg.eigvalsh(root @ (matrix + mu * torch.eye(150, dtype=torch.float64)) @ root)
    assert float(spectrum[-1] / spectrum[0]) < 50


def test_adaptive_rank_stops_at_its_limit():
    """Oracle: closed form; the identity has no smallest eigenvalue below the shift."""
    found = nystrom_preconditioner(torch.eye(64, dtype=torch.float64), 1e-3, initial_rank=4, max_rank=20)
    assert found.U.shape == (64, 20)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(NumericalError, match="negative eigenvalues"):
        nystrom(-torch.eye(20), 4)
    with pytest.raises(ArgumentError, match="is_psd=True"):
        nystrom(as_linear_operator(torch.eye(4), is_symmetric=True), 2)
    with pytest.raises(ArgumentError, match="shift > 0"):
        nystrom_preconditioner(torch.eye(4), 0.0)
    with pytest.raises(ArgumentError, match="max_rank"):
        nystrom_preconditioner(torch.eye(4), 1.0, initial_rank=3, max_rank=2)
    with pytest.raises(ArgumentError, match="shift > 0"):
        NystromPreconditioner(torch.eye(3), torch.ones(3), -1.0)
