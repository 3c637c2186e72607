"""Bases and factors kept as diagonal blocks; the oracle is the same matrix with zeros written out."""

import pytest
import torch

from hesse.curvature import BlockBasis, FactorBlocks, select_layers
from hesse.curvature.block_basis import block_slices, left_times, right_times, rows_times
from hesse.curvature.capture import Captured
from hesse.curvature.kfac import InputFactor, OutputFactor, mirror_

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def basis(order=11, blocks=3):
    parts = [
        torch.linalg.qr(torch.randn(s.stop - s.start, s.stop - s.start, generator=seeded(), dtype=F64))[0]
        for s in block_slices(order, blocks)
    ]
    return BlockBasis(tuple(parts))


@pytest.mark.parametrize("transposed", [False, True])
def test_products(transposed):
    """Oracle: dense products, with and without room for the result."""
    q, x = basis(), torch.randn(2, 5, 11, generator=seeded(1), dtype=F64)
    dense = q.dense().T if transposed else q.dense()
    assert (q.shape, q.dtype, q.slices) == ((11, 11), F64, block_slices(11, 3))
    for other in (q, q.dense()):
        room = torch.full_like(x, 7)
        torch.testing.assert_close(right_times(x, other, transposed=transposed), x @ dense)
        torch.testing.assert_close(right_times(x, other, transposed=transposed, out=room), x @ dense)
        torch.testing.assert_close(room, x @ dense)
        room = torch.full_like(x.mT, 7)
        torch.testing.assert_close(left_times(other, x.mT, transposed=transposed, out=room), dense @ x.mT)
        torch.testing.assert_close(room, dense @ x.mT)
    torch.testing.assert_close(q.dense() @ q.dense().T, torch.eye(11, dtype=F64))
    assert q.to(torch.float32).dtype == torch.float32


@pytest.mark.parametrize("has_bias", [False, True])
def test_rows_with_a_one_at_the_end(has_bias):
    """Oracle: the ones written out."""
    q, x = basis(), torch.randn(2, 5, 11 - has_bias, generator=seeded(1), dtype=F64)
    whole = torch.cat([x, torch.ones(2, 5, 1, dtype=F64)], 2) if has_bias else x
    for other in (q, q.dense()):
        torch.testing.assert_close(rows_times(x, other, has_bias=has_bias), whole @ q.dense())


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_factors_are_blocks_of_the_dense_ones(blocks, bias):
    """Oracle: `InputFactor` and `OutputFactor`; eigenvectors by the identity Q diag(values) Qᵀ = block / count."""
    layer = select_layers(torch.nn.Sequential(torch.nn.Linear(10, 7, bias=bias)), "all-linear")["0"]
    mask = torch.rand(4, 6, generator=seeded(2)) < 0.7
    x, d = (torch.randn(4, 6, n, generator=seeded(n), dtype=F64) for n in (10, 7))
    rows = Captured(layer, x, d * mask[..., None], mask, "0")
    columns = 10 + bias
    whole = InputFactor.zeros(columns, dtype=F64, device=x.device), OutputFactor.zeros(7, dtype=F64, device=x.device)
    parts = [FactorBlocks.zeros(n, blocks, dtype=F64, device=x.device) for n in (columns, 7)]
    for _ in range(2):
        for factor in whole:
            factor.add_(rows)
        parts[0].add_inputs_(rows)
        parts[1].add_grads_(rows)
    parts[1].add_grads_(rows, count=False)
    whole[1].add_(rows, count=False)
    for dense, factor in zip(whole, parts, strict=True):
        assert factor.count == dense.count == 2 * int(mask.sum())
        total = mirror_(dense.total)
        values, vectors = factor.eigendecompose(factor.count, name="x")
        if blocks == 1:
            assert isinstance(vectors, torch.Tensor)
            torch.testing.assert_close(vectors @ values.diag() @ vectors.T, total / factor.count)
            continue
        assert isinstance(vectors, BlockBasis)
        for block, place in zip(vectors.blocks, factor.slices, strict=True):
            torch.testing.assert_close(block @ values[place].diag() @ block.T, total[place, place] / factor.count)


def test_memory_is_that_of_the_blocks():
    """Oracle: bytes of the tensors: n²/c for sums and for bases, a quarter of the whole with four blocks."""
    sizes = {}
    for blocks in (1, 4):
        factor = FactorBlocks.zeros(512, blocks, dtype=torch.float32, device=torch.device("cpu"))
        for total in factor.totals:
            total.fill_diagonal_(1)
        _, vectors = factor.eigendecompose(1, name="x")
        kept = [vectors] if isinstance(vectors, torch.Tensor) else vectors.blocks
        sizes[blocks] = [sum(t.untyped_storage().nbytes() for t in part) for part in (factor.totals, kept)]
    assert sizes[1] == [512 * 512 * 4, 512 * 512 * 8]
    assert sizes[4] == [part // 4 for part in sizes[1]]
