import pytest
import torch

from hesse.errors import ArgumentError, ShapeError, SingularError
from hesse.linalg.cholesky import cholesky_downdate, cholesky_update, safe_cholesky


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive_definite(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    root = torch.randn(*shape, shape[-1], dtype=dtype, generator=seeded(0))
    return root @ root.mH + shape[-1] * torch.eye(shape[-1], dtype=dtype)


def test_no_jitter_where_none_is_needed():
    """Oracle: torch.linalg.cholesky."""
    A = positive_definite(6)
    found = safe_cholesky(A)
    assert float(found.jitter) == 0
    torch.testing.assert_close(found.L, torch.linalg.cholesky(A))


def test_smallest_jitter_that_works_for_each_matrix_alone():
    """Oracle: L Lᵀ = A + jitter I; ten times less jitter fails; the neighbour in the stack stays exact."""
    good = positive_definite(5)
    bad = torch.diag(torch.tensor([1.0, 1, 1, 1, -3e-6], dtype=torch.float64))
    found = safe_cholesky(torch.stack([good, bad]), relative=False)
    assert float(found.jitter[0]) == 0
    assert float(found.jitter[1]) == pytest.approx(1e-5)
    eye = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(found.L[1] @ found.L[1].T, bad + found.jitter[1] * eye)


def test_singular_kernel_in_float32():
    """Oracle: the kernel matrix itself, reproduced to the jitter; a plain factorisation fails."""
    x = torch.linspace(0, 1, 200)
    K = torch.exp(-((x.unsqueeze(1) - x) ** 2) / 0.1)
    assert int(torch.linalg.cholesky_ex(K).info) != 0
    found = safe_cholesky(K)
    assert 0 < float(found.jitter) <= 1e-4
    torch.testing.assert_close(found.L @ found.L.T, K + found.jitter * torch.eye(200), rtol=0, atol=1e-5)


def test_gradient():
    """Oracle: finite differences of the factor."""
    A = positive_definite(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: safe_cholesky((a + a.T) / 2).L, A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("k", [None, 1, 3])
def test_update_and_downdate(dtype, k):
    """Oracle: a factorisation from scratch, for a stack of two."""
    A = positive_definite(2, 7, dtype=dtype)
    V = torch.randn(*((2, 7) if k is None else (2, 7, k)), dtype=dtype, generator=seeded(1))
    columns = V.unsqueeze(-1) if k is None else V
    L = torch.linalg.cholesky(A)
    grown = cholesky_update(L, V)
    tight = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(grown, torch.linalg.cholesky(A + columns @ columns.mH), **tight)
    torch.testing.assert_close(cholesky_downdate(grown, V), L, **tight)


def test_long_chain_of_replacements_stays_accurate():
    """Oracle: a factorisation from scratch after 200 row replacements in a window of 30 (the cyclic use)."""
    g = seeded(3)
    rows = torch.randn(30, 400, dtype=torch.float64, generator=g)
    A = rows @ rows.T / 400 + 0.01 * torch.eye(30, dtype=torch.float64)
    L = torch.linalg.cholesky(A)
    for step in range(200):
        slot = step % 30
        fresh = torch.randn(400, dtype=torch.float64, generator=g)
        rows[slot] = fresh
        column = rows @ fresh / 400
        change = column - A[:, slot]
        change[slot] = (column[slot] + 0.01 - A[slot, slot]) / 2
        unit = torch.zeros(30, dtype=torch.float64)
        unit[slot] = 1
        # e dᵀ + d eᵀ = ((e + d)(e + d)ᵀ - (e - d)(e - d)ᵀ) / 2
        A[slot, :] += change
        A[:, slot] += change
        L = cholesky_update(L, (unit + change) / 2**0.5)
        L = cholesky_downdate(L, (unit - change) / 2**0.5)
    torch.testing.assert_close(L, torch.linalg.cholesky(A), rtol=0, atol=1e-11)


def test_update_gradient():
    """Oracle: finite differences."""
    L = torch.linalg.cholesky(positive_definite(4)).requires_grad_()
    v = torch.randn(4, dtype=torch.float64, generator=seeded(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: cholesky_update(a.tril(), b), (L, v))


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(SingularError, match="smallest eigenvalue is -1"):
        safe_cholesky(-torch.eye(3))
    with pytest.raises(SingularError, match="NaN"):
        safe_cholesky(torch.full((2, 2), torch.nan))
    with pytest.raises(ShapeError, match="square"):
        safe_cholesky(torch.ones(2, 3))
    with pytest.raises(ArgumentError, match="growth"):
        safe_cholesky(torch.eye(2), growth=1.0)
    with pytest.raises(SingularError, match="definiteness"):
        cholesky_downdate(torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="vectors"):
        cholesky_update(torch.eye(3), torch.ones(4))
