import numpy as np
import pytest
import scipy.sparse
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.eigen.lobpcg import lobpcg


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def poisson(side: int) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    line = scipy.sparse.diags_array([-np.ones(side - 1), 2 * np.ones(side), -np.ones(side - 1)], offsets=[-1, 0, 1])
    eye = scipy.sparse.eye_array(side)
    values = 2 - 2 * np.cos(np.pi * np.arange(1, side + 1) / (side + 1))
    matrix = scipy.sparse.csr_array(scipy.sparse.kron(line, eye) + scipy.sparse.kron(eye, line))
    return matrix, np.sort((values[:, None] + values).ravel())


@pytest.mark.parametrize("which", ["SA", "LA"])
def test_finds_both_copies_of_double_eigenvalues(which):
    """Oracle: the closed-form spectrum of the five-point Laplacian, where most eigenvalues are double."""
    matrix, exact = poisson(16)
    found = lobpcg(as_linear_operator(matrix, is_psd=True), 6, which=which, generator=seeded(0))
    wanted = exact[:6] if which == "SA" else exact[-6:]
    assert found.converged
    np.testing.assert_allclose(found.eigenvalues.numpy(), wanted, atol=1e-12)
    gram = found.eigenvectors.T @ found.eigenvectors
    torch.testing.assert_close(gram, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_preconditioner_and_start_save_steps():
    """Oracle: the same eigenvalues in fewer steps, with the shifted inverse as preconditioner, then with the answer."""
    matrix, exact = poisson(16)
    operator = as_linear_operator(matrix, is_psd=True)
    plain = lobpcg(operator, 4, generator=seeded(0))
    inverse = torch.linalg.inv(torch.from_numpy(matrix.toarray()))
    helped = lobpcg(operator, 4, preconditioner=as_linear_operator(inverse, is_psd=True), generator=seeded(0))
    np.testing.assert_allclose(helped.eigenvalues.numpy(), exact[:4], atol=1e-11)
    assert helped.num_steps < plain.num_steps / 2
    warm = lobpcg(operator, 4, start=plain.eigenvectors)
    assert warm.num_steps <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_other_dtypes(dtype):
    """Oracle: eigvalsh in double precision."""
    matrix = torch.randn(60, 60, dtype=dtype, generator=seeded(0))
    matrix = (matrix + matrix.mH) / 2
    found = lobpcg(matrix, 3, which="LA", generator=seeded(1))
    exact = torch.linalg.eigvalsh(matrix.to(torch.complex128 if dtype.is_complex else torch.float64))[-3:]
    assert found.converged
    torch.testing.assert_close(
        found.eigenvalues.double(), exact, rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-11
    )
    assert found.eigenvectors.dtype == dtype


def test_too_few_steps_are_reported():
    """Oracle: the residual, which must exceed the tolerance when `converged` is False."""
    matrix, _ = poisson(16)
    found = lobpcg(as_linear_operator(matrix, is_psd=True), 4, max_steps=3, generator=seeded(0))
    assert not found.converged
    assert float(found.residuals.max()) > 1e-8


def test_zero_operator():
    """Oracle: closed form."""
    found = lobpcg(torch.zeros(12, 12, dtype=torch.float64), 2, generator=seeded(0))
    assert found.converged
    assert float(found.eigenvalues.abs().max()) == 0


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="N / 3"):
        lobpcg(torch.eye(9), 4)
    with pytest.raises(ArgumentError, match="which"):
        lobpcg(torch.eye(9), 2, which="LM")
    with pytest.raises(ShapeError, match="start"):
        lobpcg(torch.eye(9), 2, start=torch.ones(9, 3))
