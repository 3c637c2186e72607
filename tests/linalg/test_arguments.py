import math

import pytest
import torch

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.linalg._arguments import at_least, same_numbers, single_operator, square_operator, wide_dtype
from hesse.linalg.basic import Dense
from hesse.linalg.diagonals import diagonal
from hesse.linalg.eigen import eigsh, lobpcg, logdet, power_iteration, slq, spectral_density, svds
from hesse.linalg.nystrom import nystrom, nystrom_preconditioner
from hesse.linalg.rsvd import rsvd
from hesse.linalg.solvers.kaczmarz import randomized_kaczmarz, sketch_and_project
from hesse.linalg.traces import trace

ONES = torch.ones(24, dtype=torch.float64)


@pytest.mark.parametrize(
    "routine",
    [
        lambda a: trace(a, 10, method="xtrace"),
        lambda a: trace(a, 10, method="xnystrace"),
        lambda a: trace(a, 12, method="hutchpp"),
        lambda a: diagonal(a, 10),
        lambda a: rsvd(a, 3),
        lambda a: nystrom(a, 5),
        lambda a: nystrom_preconditioner(a, 0.1, initial_rank=4),
        lambda a: eigsh(a, 2),
        lambda a: eigsh(a, 2, sigma=-0.1),
        lambda a: lobpcg(a, 2),
        lambda a: svds(a, 2),
        power_iteration,
        lambda a: slq(a, torch.exp),
        logdet,
        spectral_density,
        lambda a: randomized_kaczmarz(a, ONES, max_steps=5),
        lambda a: sketch_and_project(a, ONES, max_steps=5),
    ],
)
def test_operators_that_require_gradients(routine):
    """Oracle: the run without gradients; no warning (they are errors here), and the same numbers."""
    root = torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = root @ root.T / 24 + torch.eye(24, dtype=torch.float64)
    torch.manual_seed(0)
    plain = routine(Dense(matrix, is_psd=True))
    torch.manual_seed(0)
    traced = routine(Dense(matrix.clone().requires_grad_(), is_psd=True))
    for name in ("value", "eigenvalues", "S", "x", "density"):
        if hasattr(plain, name):
            torch.testing.assert_close(getattr(traced, name).detach(), getattr(plain, name), rtol=1e-10, atol=1e-10)


def test_bounds_and_shapes():
    """Oracle: the error taxonomy."""
    at_least("f", "k", 1, 1)
    for value in (0, math.nan):
        with pytest.raises(ArgumentError, match="f: expected k >= 1"):
            at_least("f", "k", value, 1)
    with pytest.raises(ShapeError, match="square"):
        square_operator("f", torch.ones(2, 3))
    with pytest.raises(ShapeError, match="stack"):
        single_operator("f", Dense(torch.ones(4, 2, 2)))
    with pytest.raises(ShapeError, match=r"b is torch\.float64"):
        same_numbers("f", "b", torch.ones(2, dtype=torch.float64), Dense(torch.ones(2, 2)))


def test_symmetry_is_tested_not_trusted():
    """Oracle: closed form; a tensor by its entries, an operator that promises it by two products."""
    lopsided = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    assert square_operator("f", lopsided + lopsided.T, symmetric=True).is_symmetric
    with pytest.raises(ArgumentError, match="mirror"):
        square_operator("f", lopsided, symmetric=True)
    with pytest.raises(ArgumentError, match="declared"):
        square_operator("f", Dense(lopsided), symmetric=True)
    with pytest.raises(NumericalError, match="declared symmetric"):
        square_operator("f", Dense(lopsided, is_symmetric=True), symmetric=True)


def test_wide_dtype():
    """Oracle: the definition."""
    assert wide_dtype(torch.float16) == wide_dtype(torch.bfloat16) == torch.float32
    assert wide_dtype(torch.complex64) == torch.complex64
