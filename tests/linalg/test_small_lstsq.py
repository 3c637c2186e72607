"""Small least squares: the normal equations, and the same bits whatever the memory held."""

import torch

from hesse.linalg._small_lstsq import small_lstsq

F64 = torch.float64


def systems(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, rows, columns, dtype=F64, generator=generator)
    return A, torch.randn(6, rows, 2, dtype=F64, generator=generator)


def test_residuals_are_normal_to_the_columns():
    """Oracle: the normal equations, and the pseudo-inverse where the columns depend on each other."""
    A, B = systems(9, 5)
    X = small_lstsq(A, B)
    assert float((A.mT @ (A @ X - B)).abs().max()) < 1e-12
    A[..., 4] = A[..., 0] - 2 * A[..., 3]
    torch.testing.assert_close(small_lstsq(A, B), torch.linalg.pinv(A, rtol=1e-12) @ B, rtol=1e-10, atol=1e-10)


def test_the_memory_before_does_not_matter():
    """Oracle: the bits of the first call; memory of the size of a list of pivots is filled and freed in between."""
    A, B = systems(9, 9)
    first = small_lstsq(A, B)
    for value in range(40):
        torch.full((9,), value % 3, dtype=torch.int32)
        torch.randint(-3, 4, (1 + value,), dtype=torch.int32)
        assert torch.equal(small_lstsq(A, B), first)
