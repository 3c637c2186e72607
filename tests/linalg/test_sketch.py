import numpy as np
import pytest
import scipy.linalg
import torch

from hesse.errors import ArgumentError
from hesse.linalg.sketch import SRHT, CountSketch, GaussianSketch, SparseSign, fwht

KINDS = [GaussianSketch, SRHT, CountSketch, SparseSign]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 2, 8, 64])
@pytest.mark.parametrize("dim", [0, 1])
def test_fwht_is_the_hadamard_matrix(n, dim):
    """Oracle: scipy.linalg.hadamard, scaled to be orthonormal."""
    shape = (n, 3) if dim == 0 else (3, n)
    x = torch.randn(*shape, dtype=torch.float64, generator=seeded(0))
    H = torch.from_numpy(scipy.linalg.hadamard(n).astype(np.float64)) / n**0.5
    torch.testing.assert_close(fwht(x, dim), H @ x if dim == 0 else x @ H)
    torch.testing.assert_close(fwht(fwht(x, dim), dim), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_product_and_adjoint_agree_with_the_dense_form(kind, dtype):
    """Oracle: the dense matrix, read off by unit vectors from the product."""
    S = kind(37, 12, dtype=dtype, generator=seeded(0))
    dense = S.matmat(torch.eye(37, dtype=dtype))
    y = torch.randn(2, 12, 3, dtype=dtype, generator=seeded(1))
    torch.testing.assert_close(S.rmatmat(y), dense.T @ y)
    x = torch.randn(2, 37, 3, dtype=dtype, generator=seeded(2))
    torch.testing.assert_close(S @ x, dense @ x)
    torch.testing.assert_close(S.to_dense(), dense)


@pytest.mark.parametrize("kind", KINDS)
def test_isotropic(kind):
    """Oracle: E[SᵀS] = I; the mean of 400 draws within 5 standard errors at each entry."""
    g = seeded(0)
    grams = []
    for _ in range(400):
        dense = kind(11, 9, dtype=torch.float64, generator=g).to_dense()
        grams.append(dense.T @ dense)
    stack = torch.stack(grams)
    error = (stack.mean(0) - torch.eye(11, dtype=torch.float64)).abs()
    assert bool((error <= 5 * stack.std(0) / 400**0.5 + 1e-12).all())


@pytest.mark.parametrize(("kind", "entries"), [(CountSketch, 1), (SparseSign, 8)])
def test_sparse_columns(kind, entries):
    """Oracle: the definition: s entries a column, each 1/sqrt(s) in size."""
    dense = kind(50, 20, dtype=torch.float64, generator=seeded(0)).to_dense()
    assert bool(((dense != 0).sum(0) == entries).all())
    torch.testing.assert_close(dense.abs().amax(0), torch.full((50,), entries**-0.5, dtype=torch.float64))


def test_srht_rows_are_orthogonal_and_subspaces_survive():
    """Oracle: S Sᵀ = (N2 / M) I; singular values of S U within a factor two for a ten-dimensional subspace."""
    S = SRHT(100, 60, dtype=torch.float64, generator=seeded(0))
    padded = SRHT(128, 60, dtype=torch.float64, generator=seeded(0)).to_dense()
    torch.testing.assert_close(padded @ padded.T, 128 / 60 * torch.eye(60, dtype=torch.float64))
    U = torch.linalg.qr(torch.randn(100, 10, dtype=torch.float64, generator=seeded(1))).Q
    values = torch.linalg.svdvals(S @ U)
    assert 0.5 < float(values[-1]) <= float(values[0]) < 2


@pytest.mark.parametrize("kind", KINDS)
def test_seeded_and_differentiable(kind):
    """Oracle: equal seeds give equal sketches; finite differences with respect to the operand."""
    one, two = (kind(9, 9, dtype=torch.float64, generator=seeded(5)) for _ in range(2))
    assert torch.equal(one.to_dense(), two.to_dense())
    x = torch.randn(9, 2, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: one @ v, x)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="power of two"):
        fwht(torch.ones(3))
    with pytest.raises(ArgumentError, match="m <= 16"):
        SRHT(10, 17)
    with pytest.raises(ArgumentError, match="1 <= s"):
        SparseSign(10, 4, 5)
    with pytest.raises(ArgumentError, match="CountSketch"):
        CountSketch(0, 4)
