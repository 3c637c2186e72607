"""Measurements against the inner products that define them."""

import pytest
import torch

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg import Dense, FunctionOperator
from hesse.optim.subgm import (
    EntryMeasurements,
    OperatorMeasurements,
    RankOneDifferences,
    SymmetricMatrices,
    as_measurements,
)
from tests.optim.subgm.cases import F64, seeded

M, D = 7, 5


def kinds():
    g = seeded(0)
    A = torch.randn(M, D, D, generator=g, dtype=F64)
    a, b = torch.randn(2, M, D, generator=g, dtype=F64)
    rows, columns = torch.randint(3, (M,), generator=g), torch.randint(2, (M,), generator=g)
    entries = torch.zeros(M, D, D, dtype=F64)
    entries[torch.arange(M), rows, 3 + columns] = 1
    return {
        "dense": (SymmetricMatrices.from_dense(A), A),
        "differences": (RankOneDifferences(a, b), torch.einsum("mi,mj->mij", a, a) - torch.einsum("mi,mj->mij", b, b)),
        "operator": (as_measurements(Dense(A.flatten(1))), A),
        "entries": (EntryMeasurements(rows, columns, (3, 2), a), entries),
    }


@pytest.mark.parametrize("kind", ["dense", "differences", "operator", "entries"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
def test_products_are_inner_products(kind, lead):
    """Oracle: einsum over the dense A_i, for one problem and for stacks."""
    measurements, A = kinds()[kind]
    U = torch.randn(*lead, D, 4, generator=seeded(1), dtype=F64)
    w = torch.randn(*lead, M, generator=seeded(2), dtype=F64)
    expected = torch.einsum("mij,...ik,...jk->...m", A, U, U)
    torch.testing.assert_close(measurements.apply(U), expected, rtol=1e-12, atol=1e-12)
    full = torch.einsum("...m,mij->...ij", w, A)
    torch.testing.assert_close(measurements.adjoint(w), (full + full.mT) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "differences", "operator", "entries"])
def test_selection_is_a_row_of_the_whole(kind):
    """Oracle: the products of all, indexed, and zero weights elsewhere."""
    measurements, _ = kinds()[kind]
    index = torch.tensor([4, 0, 6])
    U = torch.randn(D, 4, generator=seeded(1), dtype=F64)
    w = torch.randn(3, generator=seeded(2), dtype=F64)
    part = measurements.select(index)
    assert part.num_measurements == 3
    torch.testing.assert_close(part.apply(U), measurements.apply(U)[index])
    torch.testing.assert_close(part.adjoint(w), measurements.adjoint(torch.zeros(M, dtype=F64).index_put((index,), w)))


def test_a_matrix_free_operator_serves():
    """Oracle: the dense matrices it stands for; only products are given."""
    A = torch.randn(M, D, D, generator=seeded(0), dtype=F64)
    flat = A.flatten(1)
    operator = FunctionOperator(lambda x: flat @ x, (M, D * D), rmatmat_fn=lambda y: flat.mT @ y, dtype=F64)
    U = torch.randn(D, 2, generator=seeded(1), dtype=F64)
    torch.testing.assert_close(as_measurements(operator).apply(U), as_measurements(A).apply(U))


def test_bad_measurements_are_refused():
    """Oracle: the errors promised, each with what came."""
    A = torch.randn(M, D, D, dtype=F64)
    with pytest.raises(ShapeError, match=r"A of shape \(m, d, d\), got \(7, 5\)"):
        as_measurements(A[:, 0])
    with pytest.raises(ShapeError, match=r"operator of shape \(m, d²\), got \(7, 24\)"):
        OperatorMeasurements(Dense(A.flatten(1)[:, :24]))
    for bad in (A.half(), A.to(torch.complex128), A.long()):
        with pytest.raises(ArgumentTypeError, match="float32 or float64"):
            as_measurements(bad)
    with pytest.raises(ArgumentTypeError, match="got list"):
        as_measurements([1.0])
    with pytest.raises(ArgumentError, match="A has NaN or Inf"):
        as_measurements(A.index_put((torch.tensor(0),) * 3, torch.tensor(torch.nan, dtype=F64)))
    with pytest.raises(ShapeError, match="left and right of one shape"):
        RankOneDifferences(A[:, 0], A[:3, 0])
    with pytest.raises(ShapeError, match=r"expected factor \(..., 5, k\), got \(4, 2\)"):
        as_measurements(A).apply(A[0, :4, :2])
    with pytest.raises(ShapeError, match=r"expected weights \(..., 7\), got \(6,\)"):
        as_measurements(A).adjoint(A[:6, 0, 0])
