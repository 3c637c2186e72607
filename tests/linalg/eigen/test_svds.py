import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.eigen.svds import svds


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(90, 140), (140, 90)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_matches_lapack(shape, dtype):
    """Oracle: torch.linalg.svdvals in double precision, and the explicit residuals."""
    matrix = torch.randn(*shape, dtype=dtype, generator=seeded(0))
    found = svds(matrix, 5, generator=seeded(1))
    exact = torch.linalg.svdvals(matrix.to(torch.complex128 if dtype.is_complex else torch.float64))[:5]
    sharp = dtype != torch.float32
    assert found.converged
    torch.testing.assert_close(found.S.double(), exact, rtol=1e-12 if sharp else 1e-5, atol=0)
    assert float(found.residuals.max()) < (1e-7 if sharp else 2e-3)
    torch.testing.assert_close(
        found.U.mH @ matrix @ found.V, torch.diag(found.S).to(dtype), rtol=0, atol=1e-10 if sharp else 1e-3
    )


def test_small_singular_values_keep_their_digits():
    """Oracle: the known spectrum from 1 to 1e-9; on A^H A the last value would drown at 1e-8."""
    values = torch.logspace(0, -9, 10, dtype=torch.float64)
    left = torch.linalg.qr(torch.randn(40, 10, dtype=torch.float64, generator=seeded(0))).Q
    right = torch.linalg.qr(torch.randn(30, 10, dtype=torch.float64, generator=seeded(1))).Q
    found = svds(left * values @ right.T, 10, generator=seeded(2))
    torch.testing.assert_close(found.S, values, rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 5), (5, 1)])
def test_all_triplets_of_a_small_matrix(shape):
    """Oracle: torch.linalg.svdvals, with K = min(M, N)."""
    matrix = torch.randn(*shape, dtype=torch.float64, generator=seeded(0))
    found = svds(matrix, min(shape), generator=seeded(1))
    assert found.converged
    torch.testing.assert_close(found.S, torch.linalg.svdvals(matrix), rtol=0, atol=1e-12)


def test_low_rank_and_zero():
    """Oracle: closed form; a breakdown at each step, left by random vectors."""
    found = svds(torch.ones(20, 30, dtype=torch.float64), 3, generator=seeded(0))
    torch.testing.assert_close(found.S, torch.tensor([600.0**0.5, 0, 0], dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert float(svds(torch.zeros(4, 7, dtype=torch.float64), 2).S.max()) == 0


def test_too_few_steps_are_reported():
    """Oracle: the residual, which must exceed the tolerance when `converged` is False."""
    matrix = torch.randn(200, 200, dtype=torch.float64, generator=seeded(0))
    found = svds(matrix, 5, max_steps=40, generator=seeded(1))
    assert not found.converged
    assert float(found.residuals.max()) > 1e-8


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match=r"min\(m, n\)"):
        svds(torch.ones(3, 4), 4)
    with pytest.raises(ShapeError, match="start"):
        svds(torch.ones(3, 4), 1, start=torch.ones(3))
    with pytest.raises(ShapeError, match="stack"):
        svds(as_linear_operator(torch.ones(2, 3, 4)), 1)
