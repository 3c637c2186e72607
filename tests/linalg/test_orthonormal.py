"""Bases of tall blocks: both ways of making them, and the border between the two."""

import pytest
import torch
from torch import Tensor

from hesse.errors import ArgumentTypeError, ShapeError
from hesse.linalg import orthonormal
from hesse.linalg.orthonormal import range_basis, thin_qr

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_condition(condition: float, *, rows: int = 200, columns: int = 12, dtype: torch.dtype = F64) -> Tensor:
    left, right = (torch.linalg.qr(torch.randn(n, columns, dtype=F64, generator=seeded(n))).Q for n in (rows, columns))
    return (left * torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), columns, dtype=F64) @ right.T).to(
        dtype
    )


def off_identity(Q: Tensor) -> float:
    return float(torch.linalg.matrix_norm(Q.mH @ Q - torch.eye(Q.shape[-1], dtype=Q.dtype)).max())


def off_block(Q: Tensor, R: Tensor, block: Tensor) -> float:
    size = torch.linalg.matrix_norm(block)
    return float((torch.linalg.matrix_norm(Q @ R - block) / torch.where(size > 0, size, torch.ones_like(size))).max())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("exponent", range(0, 17, 2))
def test_orthonormal_to_rounding_whatever_the_condition(exponent, dtype):
    """Oracle: QᴴQ = I, QR = B and R triangular with a diagonal >= 0, from κ = 1 to singular in the dtype."""
    block = with_condition(10.0**exponent, dtype=dtype)
    Q, R = thin_qr(block)
    rounding = 40 * torch.finfo(dtype).eps
    assert off_identity(Q) < rounding
    assert off_block(Q, R, block) < rounding
    assert torch.equal(R, R.triu())
    assert bool((R.diagonal() >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex64, torch.complex128])
def test_equal_to_householder(dtype):
    """Oracle: torch.linalg.qr with the diagonal of R made positive, which is unique at full column rank."""
    block = torch.randn(3, 2, 50, 8, dtype=dtype, generator=seeded(1))
    expected_Q, expected_R = torch.linalg.qr(block)
    signs = expected_R.diagonal(dim1=-2, dim2=-1).real.sign().to(dtype)
    Q, R = thin_qr(block)
    tight = 1e-5 if dtype in (torch.float32, torch.complex64) else 1e-13
    torch.testing.assert_close(Q, expected_Q * signs.unsqueeze(-2), rtol=0, atol=tight)
    torch.testing.assert_close(R, expected_R * signs.unsqueeze(-1), rtol=tight, atol=tight)


@pytest.mark.parametrize("kind", ["zero", "zero column", "equal columns", "tiny", "huge", "wide", "square", "one"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_awkward_blocks(kind, dtype):
    """Oracle: QᴴQ = I and QR = B, though Gram matrices are singular, underflow or overflow."""
    block = torch.randn(40, 6, dtype=dtype, generator=seeded(2))
    if kind == "zero":
        block = torch.zeros_like(block)
    elif kind == "zero column":
        block[:, 2] = 0
    elif kind == "equal columns":
        block[:, 4] = block[:, 1]
    elif kind in ("tiny", "huge"):
        limit = torch.finfo(dtype)
        block = block * (limit.tiny**0.75 if kind == "tiny" else limit.max**0.75)
        Q, R = thin_qr(block)
        assert off_identity(Q) < 100 * limit.eps
        torch.testing.assert_close(Q @ R / block.abs().max(), block / block.abs().max(), rtol=0, atol=1e-5)
        return
    elif kind in ("wide", "square", "one"):
        block = {"wide": block.T, "square": block[:6], "one": block[:, :1]}[kind]
    Q, R = thin_qr(block)
    assert Q.shape == (block.shape[0], min(block.shape))
    assert R.shape == (min(block.shape), block.shape[1])
    assert off_identity(Q) < 40 * torch.finfo(dtype).eps
    assert off_block(Q, R, block) < 40 * torch.finfo(dtype).eps


def test_every_block_of_a_stack_is_judged_by_itself():
    """Oracle: the same block alone, to rounding; two of the six are beyond the Cholesky way."""
    blocks = [with_condition(c) for c in (1e0, 1e15, 1e3, 1e6, 1e12, 1e1)]
    Q, R = thin_qr(torch.stack(blocks).reshape(2, 3, 200, 12))
    for place, block in enumerate(blocks):
        alone_Q, alone_R = thin_qr(block)
        torch.testing.assert_close(Q.flatten(0, 1)[place], alone_Q, rtol=0, atol=1e-13)
        torch.testing.assert_close(R.flatten(0, 1)[place], alone_R, rtol=0, atol=1e-13)
    assert off_identity(Q) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_well_conditioned_block_needs_no_reflections(dtype, monkeypatch):
    """Oracle: the count of calls to Householder's way: none up to a tenth of the documented limit, some far beyond."""
    calls = []
    householder = orthonormal._householder
    monkeypatch.setattr(orthonormal, "_householder", lambda block: calls.append(1) or householder(block))
    limit = torch.finfo(dtype).eps ** -0.5
    for call in (thin_qr, range_basis):
        call(with_condition(limit / 10, dtype=dtype))
        assert not calls
        call(with_condition(100 * limit, dtype=dtype))
        assert len(calls) == 1
        calls.clear()


@pytest.mark.parametrize("exponent", [0, 2, 4, 6, 8, 12])
def test_range_basis_spans_the_block_and_is_well_conditioned(exponent):
    """Oracle: singular values of Q between 1/2 and 2, and what B has outside of Q's span, by least squares (LAPACK)."""
    block = with_condition(10.0**exponent)
    basis = range_basis(block)
    values = torch.linalg.svdvals(basis)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 2
    outside = block - basis @ torch.linalg.lstsq(basis, block).solution
    assert float(torch.linalg.matrix_norm(outside)) < 1e-14 * float(torch.linalg.matrix_norm(block))


@pytest.mark.parametrize("call", [thin_qr, lambda block: (range_basis(block),)], ids=["thin_qr", "range_basis"])
def test_gradients(call):
    """Oracle: finite differences, for a stack of which one block takes the other way."""
    stack = torch.stack([with_condition(10.0, rows=7, columns=3), with_condition(1e3, rows=7, columns=3)])
    assert torch.autograd.gradcheck(call, stack.requires_grad_(), atol=1e-6)
    mixed = torch.stack([with_condition(10.0), with_condition(1e10)]).requires_grad_()
    sum(part[0].square().sum() + part[0].sum() for part in call(mixed)).backward()
    alone = with_condition(10.0).requires_grad_()
    sum(part.square().sum() + part.sum() for part in call(alone)).backward()
    torch.testing.assert_close(mixed.grad[0], alone.grad, rtol=1e-10, atol=1e-12)


def test_nan_stays_nan_and_stays_where_it_is():
    """Oracle: the block beside it, factored alone."""
    stack = torch.randn(2, 30, 4, dtype=F64, generator=seeded(3))
    clean = stack[1].clone()
    stack[0, 3, 1] = torch.nan
    Q, R = thin_qr(stack)
    assert bool(R[0].isnan().any())
    torch.testing.assert_close((Q[1], R[1]), thin_qr(clean), rtol=1e-12, atol=1e-12)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    for call in (thin_qr, range_basis):
        with pytest.raises(ArgumentTypeError, match="floating"):
            call(torch.ones(3, 2, dtype=torch.int64))
        with pytest.raises(ArgumentTypeError, match="float32 or wider"):
            call(torch.ones(3, 2, dtype=torch.bfloat16))
        with pytest.raises(ArgumentTypeError, match="list"):
            call([1.0])
        with pytest.raises(ShapeError, match=r"\(\.\.\., n, l\)"):
            call(torch.ones(3))
        assert call(torch.ones(3, 0, dtype=F64)) is not None
