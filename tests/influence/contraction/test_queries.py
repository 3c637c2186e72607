"""What is kept of a preconditioned query: its matrix, or the best of a low rank."""

import pytest
import torch

from hesse.curvature.ekfac import sequence_gradients
from hesse.curvature.scratch import Scratch
from hesse.errors import ArgumentError, NumericalError
from hesse.influence.contraction import (
    DenseQueries,
    LowRankQueries,
    check_rank,
    contract,
    empty_queries,
    put,
    put_rows,
    takes_rows,
)
from tests.influence.contraction._rows import CPU, F64, matrices_of, rows_of, stored


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [2, 4, None])
def test_matrices_of_an_eigenbasis_are_rotated_back(rank, bias):
    """Oracle: Q_S N Q_Aᵀ formed in float64 and stored as it is; at low rank, its own best approximation (LAPACK)."""
    rows = rows_of(2, 3, bias=bias)
    p, m = rows.layer.out_features, rows.layer.columns
    generator = torch.Generator().manual_seed(8)
    bases = tuple(torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=F64)).Q for n in (p, m))
    inner = matrices_of(rows, 5)
    queries = empty_queries(rows.layer, 6, rank, F64, CPU)
    put(queries, 1, inner, bases=bases, scratch=Scratch(), seed=0)
    wanted = bases[0] @ inner @ bases[1].T
    if isinstance(queries, DenseQueries):
        found = (
            queries.weight[1:] if queries.bias is None else torch.cat([queries.weight, queries.bias[..., None]], 2)[1:]
        )
    else:
        U, S, Vh = torch.linalg.svd(wanted)
        wanted = (U[:, :, :rank] * S[:, None, :rank]) @ Vh[:, :rank]
        found = queries.left[1:] @ queries.right[1:].transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-2 if rank else 1e-10, atol=2e-2 if rank else 1e-10)


@pytest.mark.parametrize("rank", [7, 8, 100, None])
def test_a_rank_no_less_than_the_matrix_is_full(rank):
    """Oracle: the matrices themselves, bias column apart."""
    rows = rows_of(1, 1)
    matrices = matrices_of(rows, 2)
    queries = stored(rows, matrices, rank)
    assert isinstance(queries, DenseQueries)
    assert torch.equal(torch.cat([queries.weight, queries.bias[..., None]], -1), matrices)


def test_a_low_rank_is_that_of_the_singular_vectors():
    """Oracle: the truncated SVD of a matrix with a gap in its spectrum, and the share of ‖P‖² it holds."""
    rows = rows_of(1, 1, inputs=60, outputs=50, bias=False)
    left, right = (torch.linalg.qr(torch.randn(3, n, 50, dtype=F64)).Q for n in (50, 60))
    values = torch.cat([torch.tensor([5.0, 4.0, 3.0]), 0.01 * torch.ones(47)]).double()
    matrices = left * values @ right.mT
    queries = stored(rows, matrices, 3)
    assert isinstance(queries, LowRankQueries)
    kept = queries.left @ queries.right.mT
    best = left[..., :3] * values[:3] @ right[..., :3].mT
    torch.testing.assert_close(kept, best, rtol=0, atol=1e-6)
    share = values[:3].square().sum() / values.square().sum()
    torch.testing.assert_close(queries.captured.double(), share.expand(3), rtol=1e-5, atol=0)
    norms = queries.left.norm(dim=1), queries.right.norm(dim=1)
    torch.testing.assert_close(norms[0], norms[1])  # split evenly


def test_a_query_does_not_depend_on_its_company():
    """Oracle: the same query stored alone."""
    rows = rows_of(1, 1, inputs=40, outputs=30)
    matrices = matrices_of(rows, 4)
    together = stored(rows, matrices, 2)
    for q in range(4):
        single = stored(rows, matrices[q : q + 1], 2)
        torch.testing.assert_close(together.left[q] @ together.right[q].T, single.left[0] @ single.right[0].T)


def test_dtypes_of_what_is_kept():
    """Oracle: the dtype of the run, at every rank; products in float32 within its rounding."""
    rows = rows_of(3, 4, dtype=torch.float32)
    matrices = matrices_of(rows, 2, 2)
    queries = stored(rows, matrices.float(), 2, torch.float32)
    assert queries.left.dtype == queries.right.dtype == torch.float32
    assert stored(rows, matrices, 2).left.dtype == F64
    assert stored(rows, matrices.bfloat16(), 2, torch.bfloat16).left.dtype == torch.bfloat16
    assert stored(rows, matrices.float(), None, torch.float32).weight.dtype == torch.float32
    wanted = torch.einsum("qpm,npm->qn", matrices, sequence_gradients(rows).double())
    found = contract(rows, queries, torch.float32, Scratch())
    assert found.dtype == torch.float32
    size = matrices.flatten(1).norm(dim=1)[:, None] * sequence_gradients(rows).double().flatten(1).norm(dim=1)
    assert bool(((found - wanted).abs() <= 2.0**-20 * size).all())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("positions", "rank"), [(1, 3), (4, 4), (6, 4), (12, 4), (3, 6)])
def test_rows_give_the_best_approximation_of_their_gradients(positions, rank, bias):
    """Oracle: D_n formed in float64 and its truncated SVD (LAPACK); the share of ‖D‖² that is left; rows in front."""
    rows = rows_of(5, positions, bias=bias, inputs=40, outputs=30)
    queries = empty_queries(rows.layer, 6, rank, F64, CPU)
    assert takes_rows(queries, rows)
    queries.left[0], queries.right[0], queries.captured[0] = 7, 7, 7
    put_rows(queries, 1, rows, F64)
    gradients = sequence_gradients(rows)
    U, S, Vh = torch.linalg.svd(gradients, full_matrices=False)
    best = (U[..., :rank] * S[:, None, :rank]) @ Vh[:, :rank]
    torch.testing.assert_close(queries.left[1:] @ queries.right[1:].mT, best, rtol=1e-10, atol=1e-11)
    total = S.square().sum(1)
    share = torch.where(total > 0, S[:, :rank].square().sum(1) / total, 1.0)
    torch.testing.assert_close(queries.captured[1:].double(), share, rtol=1e-6, atol=0)
    torch.testing.assert_close(queries.left[1:].norm(dim=1), queries.right[1:].norm(dim=1))  # split evenly
    assert bool((queries.left[0] == 7).all() and (queries.right[0] == 7).all() and queries.captured[0] == 7)


@pytest.mark.parametrize(("dtype", "bar"), [(torch.bfloat16, 2.0**-6), (torch.float32, 2.0**-19)])
def test_rows_agree_with_whole_matrices(dtype, bar):
    """Oracle: `put` of the gradients formed in float32, within the rounding of what is kept."""
    rows = rows_of(4, 5, inputs=60, outputs=50, dtype=torch.float32)
    formed = stored(rows, sequence_gradients(rows), 8, dtype)
    queries = empty_queries(rows.layer, 4, 8, dtype, CPU)
    put_rows(queries, 0, rows, torch.float32)
    kept, wanted = (q.left.float() @ q.right.float().mT for q in (queries, formed))
    sizes = wanted.flatten(1).norm(dim=1)
    assert bool(((kept - wanted).flatten(1).norm(dim=1) <= bar * sizes).all())


def test_rows_are_for_short_sequences_at_low_rank():
    """Oracle: the documented border, positions up to the rank and the oversampling of 8."""
    rows = rows_of(2, 12, inputs=40, outputs=30)
    low, lower, full = (empty_queries(rows.layer, 2, rank, F64, CPU) for rank in (4, 3, None))
    assert takes_rows(low, rows)
    assert not takes_rows(lower, rows)
    assert not takes_rows(full, rows)


def test_rows_that_are_not_finite_are_refused():
    """Oracle: the error names the layer."""
    rows = rows_of(2, 3, inputs=40, outputs=30)
    rows.grads[1, 2, 3] = torch.inf
    with pytest.raises(NumericalError, match="'0'"):
        put_rows(empty_queries(rows.layer, 2, 4, F64, CPU), 0, rows, F64)


def test_ranks_are_positive():
    """Oracle: the error that names the argument."""
    check_rank(None)
    check_rank(1)
    with pytest.raises(ArgumentError, match="rank"):
        check_rank(0)
