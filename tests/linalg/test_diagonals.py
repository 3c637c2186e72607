import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.basic import Diagonal
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.diagonals import diagonal, hutchinson_diagonal, xdiag


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decaying(n: int = 80) -> torch.Tensor:
    left = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=seeded(0))).Q
    right = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=seeded(1))).Q
    return left * torch.arange(1, n + 1, dtype=torch.float64) ** -2 @ right.T


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_unbiased_with_honest_errors(method):
    """Oracle: the dense diagonal; the mean of 200 runs within 4.5 of its standard errors at every entry."""
    matrix = decaying()
    runs = [diagonal(matrix, 30, method=method, generator=seeded(s)) for s in range(200)]
    errors = torch.stack([r.value - matrix.diagonal() for r in runs])
    assert float((errors.mean(0).abs() / (errors.std(0) / 200**0.5)).max()) < 4.5
    reported = torch.stack([r.standard_error for r in runs]).square().mean().sqrt()
    assert 0.5 < float(errors.square().mean().sqrt() / reported) < 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_xdiag_is_the_leave_one_out_definition(dtype):
    """Oracle: the definition by brute force, on an unsymmetric matrix."""
    matrix = torch.randn(40, 40, dtype=dtype, generator=seeded(0))
    found = xdiag(matrix, 16, generator=seeded(3))
    g = seeded(3)
    signs = torch.stack([torch.randint(2, (40,), generator=g, dtype=torch.int8) for _ in range(8)], dim=1)
    omega = (signs * 2 - 1).to(dtype)
    samples = []
    for i in range(8):
        others = torch.cat([omega[:, :i], omega[:, i + 1 :]], dim=1)
        Q = torch.linalg.qr(matrix @ others).Q
        image = matrix @ omega[:, i]
        samples.append((Q @ (Q.mH @ matrix)).diagonal() + omega[:, i] * (image - Q @ (Q.mH @ image)))
    torch.testing.assert_close(found.value, torch.stack(samples).mean(0), rtol=1e-10, atol=1e-10)


def test_xdiag_beats_hutchinson_on_decay():
    """Oracle: the dense diagonal; at equal products the error is at least five times smaller."""
    matrix = decaying(200)
    plain = hutchinson_diagonal(matrix, 80, generator=seeded(0)).value - matrix.diagonal()
    sharp = xdiag(matrix, 80, generator=seeded(0)).value - matrix.diagonal()
    assert float(sharp.norm()) < float(plain.norm()) / 5


def test_low_rank_is_exact():
    """Oracle: the dense diagonal; dependent columns and remaining products that find nothing."""
    matrix = torch.outer(torch.arange(1, 31), torch.arange(30, 0, -1)).double()
    found = xdiag(matrix, 20, generator=seeded(0))
    torch.testing.assert_close(found.value, matrix.diagonal(), rtol=1e-11, atol=0)
    assert float(found.standard_error.max()) < 1e-9


def test_chunks_do_not_change_the_numbers():
    """Oracle: invariance, and the plain mean and standard deviation of the samples."""
    matrix = decaying()
    whole = hutchinson_diagonal(matrix, 20, generator=seeded(0))
    pieces = hutchinson_diagonal(matrix, 20, chunk_size=7, generator=seeded(0))
    torch.testing.assert_close(whole.value, pieces.value, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(whole.standard_error, pieces.standard_error, rtol=1e-10, atol=0)


def test_exact_where_it_can_be():
    """Oracle: closed form, for a diagonal operator and for a budget above the order."""
    values = torch.linspace(1, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(hutchinson_diagonal(Diagonal(values), 3).value, values)
    found = diagonal(Diagonal(values), 20)
    torch.testing.assert_close(found.value, values)
    assert float(found.standard_error.max()) == 0


def test_stack_and_gradient():
    """Oracle: each matrix of the stack by itself; finite differences."""
    stack = torch.randn(3, 12, 12, dtype=torch.float64, generator=seeded(0))
    whole = hutchinson_diagonal(stack, 10, generator=seeded(1))
    torch.testing.assert_close(whole.value[1], hutchinson_diagonal(stack[1], 10, generator=seeded(1)).value)
    leaf = stack[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: hutchinson_diagonal(as_linear_operator(a), 4, generator=seeded(1)).value, leaf
    )


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ShapeError, match="square"):
        hutchinson_diagonal(torch.ones(2, 3))
    with pytest.raises(ArgumentError, match="num_matvecs"):
        xdiag(torch.eye(3), 2)
    with pytest.raises(ShapeError, match="stack"):
        xdiag(torch.ones(2, 3, 3))
    with pytest.raises(ArgumentError, match="method"):
        diagonal(torch.eye(3), method="magic")
