from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from hesse.errors import ArgumentError, MemoryLimitError, NumericalError, ShapeError, SingularError
from hesse.linalg.basic import Diagonal, FunctionOperator
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.eigen.eigsh import eigsh, shift_inverse


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def poisson(side: int) -> scipy.sparse.csr_array:
    line = scipy.sparse.diags_array([-np.ones(side - 1), 2 * np.ones(side), -np.ones(side - 1)], offsets=[-1, 0, 1])
    eye = scipy.sparse.eye_array(side)
    return scipy.sparse.csr_array(scipy.sparse.kron(line, eye) + scipy.sparse.kron(eye, line))


def indefinite(n: int, dtype: torch.dtype) -> torch.Tensor:
    matrix = torch.randn(n, n, dtype=dtype, generator=seeded(0))
    return (matrix + matrix.mH) / 2


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_matches_scipy(which, dtype):
    """Oracle: scipy.sparse.linalg.eigsh on the float64 matrix, and the explicit residual."""
    matrix = indefinite(150, dtype)
    found = eigsh(matrix, 5, which=which, generator=seeded(1))
    wide = matrix.to(torch.complex128 if dtype.is_complex else torch.float64)
    peer = np.sort(scipy.sparse.linalg.eigsh(wide.numpy(), 5, which=which, return_eigenvectors=False))
    exact = dtype != torch.float32
    assert found.converged
    np.testing.assert_allclose(found.eigenvalues.numpy(), peer, atol=1e-10 if exact else 2e-4)
    assert float(found.residuals.max()) < (1e-7 if exact else 1e-3)
    gram = found.eigenvectors.mH @ found.eigenvectors
    torch.testing.assert_close(gram, torch.eye(5, dtype=dtype), rtol=0, atol=1e-12 if exact else 1e-5)


def test_shift_invert_on_a_sparse_grid():
    """Oracle: the closed-form eigenvalues of the five-point Laplacian; its second and third agree, as do more."""
    side = 20
    operator = as_linear_operator(poisson(side), is_psd=True)
    found = eigsh(operator, 6, sigma=-0.01, generator=seeded(1))
    line = 2 - 2 * np.cos(np.pi * np.arange(1, side + 1) / (side + 1))
    exact = np.sort((line[:, None] + line).ravel())
    assert found.converged
    # a single start may miss one copy of a double eigenvalue: each value found must be one of the spectrum
    assert max(np.abs(exact - float(v)).min() for v in found.eigenvalues) < 1e-10
    assert abs(float(found.eigenvalues[0]) - exact[0]) < 1e-10


def test_shift_invert_inside_the_spectrum():
    """Oracle: eigvalsh; the four eigenvalues nearest to the shift, by a dense factorisation."""
    matrix = indefinite(80, torch.float64)
    found = eigsh(matrix, 4, sigma=0.3, generator=seeded(1))
    exact = torch.linalg.eigvalsh(matrix)
    nearest = exact[(exact - 0.3).abs().argsort()[:4]].sort().values
    torch.testing.assert_close(found.eigenvalues, nearest, rtol=0, atol=1e-10)


def test_shift_inverse_uses_structure_and_a_given_solver():
    """Oracle: closed form for a diagonal operator."""
    values = torch.linspace(1, 9, 40, dtype=torch.float64)
    operator = Diagonal(values)
    block = torch.ones(40, 2, dtype=torch.float64)
    torch.testing.assert_close(shift_inverse(operator, 0.5)(block), block / (values - 0.5).unsqueeze(1))
    given = eigsh(operator, 2, sigma=0.0, inverse=lambda b: b / values.unsqueeze(1), generator=seeded(0))
    torch.testing.assert_close(given.eigenvalues, values[:2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("k", [1, 7, 8])
def test_all_pairs_of_a_small_matrix(k):
    """Oracle: eigvalsh, with K up to N."""
    matrix = indefinite(8, torch.float64)
    found = eigsh(matrix, k, which="LA", generator=seeded(0))
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(matrix)[-k:], rtol=0, atol=1e-12)


def test_identity_and_zero_have_all_copies():
    """Oracle: closed form; an invariant space at every step, left by random vectors."""
    for value in (0.0, 2.0):
        found = eigsh(value * torch.eye(30, dtype=torch.float64), 4, generator=seeded(0))
        assert found.converged
        torch.testing.assert_close(found.eigenvalues, torch.full((4,), value, dtype=torch.float64))


def test_too_few_steps_are_reported():
    """Oracle: the residual, which must exceed the tolerance when `converged` is False."""
    values = torch.linspace(0, 1, 400, dtype=torch.float64)
    found = eigsh(Diagonal(values), 5, which="SA", max_steps=25, generator=seeded(0))
    assert not found.converged
    assert float(found.residuals.max()) > 1e-10


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    eye = torch.eye(5)
    with pytest.raises(ArgumentError, match="k <="):
        eigsh(eye, 6)
    with pytest.raises(ArgumentError, match="sigma=0"):
        eigsh(eye, 2, which="SM")
    with pytest.raises(ArgumentError, match="needs sigma"):
        eigsh(eye, 2, inverse=lambda b: b)
    with pytest.raises(ArgumentError, match="basis_size"):
        eigsh(torch.eye(50), 6, basis_size=6)
    with pytest.raises(ShapeError, match="start"):
        eigsh(eye, 2, start=torch.ones(4))
    with pytest.raises(SingularError, match="eigenvalue"):
        shift_inverse(as_linear_operator(eye, is_symmetric=True), 1.0)
    big = as_linear_operator(lambda x: x, shape=(3000, 3000), is_symmetric=True)
    with pytest.raises(ArgumentError, match="inverse="):
        eigsh(big, 2, sigma=0.5)


def test_a_run_goes_on_from_any_step():
    """Oracle: the uninterrupted run, bit for bit, from every product on, restarts among them."""
    matrix = indefinite(60, torch.float64)
    seen = []

    def remember(state):
        seen.append(replace(state, basis=state.basis.clone(), T=state.T.clone()))

    whole = eigsh(matrix, 3, basis_size=8, generator=seeded(1), on_step=remember)
    assert seen[-1].num_restarts >= 2
    for state in seen[:: len(seen) // 7]:
        found = eigsh(matrix, 3, basis_size=8, generator=seeded(9), state=state)
        assert torch.equal(found.eigenvalues, whole.eigenvalues)
        assert torch.equal(found.eigenvectors, whole.eigenvectors)
        assert (found.num_steps, found.num_matvecs) == (whole.num_steps, whole.num_matvecs)


def test_a_state_of_another_run_is_refused():
    """Oracle: the error and the argument it names."""
    seen = []
    eigsh(indefinite(20, torch.float64), 2, basis_size=6, generator=seeded(1), on_step=seen.append)
    with pytest.raises(ShapeError, match="state"):
        eigsh(indefinite(21, torch.float64), 2, basis_size=6, state=seen[0])
    with pytest.raises(ShapeError, match="state"):
        eigsh(indefinite(20, torch.float64), 2, basis_size=4, state=seen[4])
    with pytest.raises(ArgumentError, match="exclude"):
        eigsh(indefinite(20, torch.float64), 2, basis_size=6, state=seen[0], start=torch.ones(20))


def test_too_large_a_basis_is_refused_before_any_product():
    """Oracle: the error, and that no product was made."""
    products = []
    huge = FunctionOperator(lambda x: products.append(1) or x, (10**9, 10**9), is_psd=True)
    with pytest.raises(MemoryLimitError, match=r"eigsh: needs about .*basis_size"):
        eigsh(huge, 3, basis_size=5000)
    assert not products


def test_residuals_of_the_recurrence():
    """Oracle: those of a final product, to rounding in float64; the products counted, with restarts and without."""
    matrix = indefinite(80, torch.float64)
    for size in (10, 60):
        verified = eigsh(matrix, 3, basis_size=size, tol=1e-6, generator=seeded(1))
        found = eigsh(matrix, 3, basis_size=size, tol=1e-6, generator=seeded(1), verify=False)
        torch.testing.assert_close(found.eigenvalues, verified.eigenvalues, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.residuals, verified.residuals, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(found.eigenvectors, verified.eigenvectors)
        assert found.num_matvecs == verified.num_matvecs - 3


@pytest.mark.parametrize("max_steps", [1, 3, 10, 25, 50])
def test_no_more_products_than_allowed(max_steps):
    """Oracle: the products counted by the operator itself, K + 1 at least; too few do not converge."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(300, 300, dtype=torch.float64, generator=generator)
    A, calls = A + A.T, []

    def product(x):
        calls.append(x.shape[1])
        return A @ x

    operator = FunctionOperator(product, (300, 300), dtype=torch.float64, is_symmetric=True)
    found = eigsh(operator, 2, which="LA", max_steps=max_steps, tol=1e-12, verify=False, generator=generator)
    assert not found.converged
    assert found.num_matvecs == max(max_steps, 3)
    assert sum(calls) == found.num_matvecs  # the check that A is symmetric takes none of its own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symmetry_is_seen_from_the_recurrence(dtype):
    """Oracle: a matrix a hundredth off its mirror image is refused; a symmetric one never, from any start."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(40, 40, dtype=dtype, generator=generator)
    A, skew = A + A.T, A - A.T
    calls = []

    def operator(matrix):
        def product(x):
            calls.append(x.shape[1])
            return matrix @ x

        return FunctionOperator(product, (40, 40), dtype=dtype, is_symmetric=True)

    with pytest.raises(NumericalError, match="declared symmetric"):
        eigsh(operator(A + 0.01 * skew), 1, generator=generator)
    assert sum(calls) == 2
    low_rank = torch.zeros(40, 40, dtype=dtype)
    low_rank[:2, :2] = torch.tensor([[1.0, 1e-9], [1e-9, 0.0]], dtype=dtype)
    eigenvector = torch.linalg.eigh(A).eigenvectors[:, -1]
    for matrix, start in ((A, eigenvector), (low_rank, torch.eye(40, dtype=dtype)[0]), (A, None)):
        calls.clear()
        found = eigsh(operator(matrix), 1, which="LA", start=start, tol=1e-4, generator=generator)
        assert sum(calls) == found.num_matvecs
