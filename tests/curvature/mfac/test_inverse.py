"""The inverse Fisher operator against the dense inverse of the same matrix."""

import math

import pytest
import torch
from torch import nn

from benchmarks.curvature._published import static_product, static_rows
from hesse.curvature import MFACInverse
from hesse.curvature.mfac._tiles import pivots_are_rounding
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError, SingularError
from hesse.linalg import cg
from hesse.testing import check_linear_operator

F64 = torch.float64
BLOCKS = [None, 1, 3, 5, 7, 12, 100]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(m=5, d=12, seed=0, dtype=F64):
    return torch.randn(m, d, generator=seeded(seed), dtype=dtype)


def dense_fisher(grads, damping, block_size=None):
    """Form λI + GᵀG/m in float64 and cut it into blocks."""
    wide = grads.double()
    found = wide.mT @ wide / len(wide)
    if block_size is not None:
        block = torch.arange(len(found)) // block_size
        found = found * (block.unsqueeze(1) == block)
    return found + damping * torch.eye(len(found), dtype=F64)


def error(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("mode", ["woodbury", "static"])
@pytest.mark.parametrize("block_size", BLOCKS)
def test_the_operator_keeps_its_promises(block_size, mode):
    """Oracle: the conformance suite, with the dense inverse in float64."""
    grads = gradients()
    dense = torch.linalg.inv(dense_fisher(grads, 0.1, block_size))
    operator = MFACInverse(grads, 0.1, block_size, mode)
    assert len(check_linear_operator(operator, dense, gradcheck=mode == "woodbury")) >= 30


@pytest.mark.parametrize("mode", ["woodbury", "static"])
@pytest.mark.parametrize("block_size", [None, 64, 30])
def test_products_diagonal_elements_at_size(block_size, mode):
    """Oracle: the dense inverse in float64, 300 coordinates and 40 gradients, to 1e-9."""
    grads = gradients(40, 300)
    inverse = torch.linalg.inv(dense_fisher(grads, 1e-3, block_size))
    operator = MFACInverse(grads, 1e-3, block_size, mode)
    x = torch.randn(300, 4, generator=seeded(1), dtype=F64)
    assert error(operator @ x, inverse @ x) <= 1e-9
    assert error(operator.diagonal(), inverse.diagonal()) <= 1e-9
    assert error(operator.row(299), inverse[299]) <= 1e-9
    for i, j in ((0, 0), (3, 250), (299, 299), (299, 298), (63, 64)):
        assert abs(float(operator.element(i, j) - inverse[i, j])) <= 1e-9 * float(inverse.abs().max())
    assert float(operator.logdet()) == pytest.approx(float(torch.logdet(inverse)), rel=1e-9)


@pytest.mark.parametrize("mode", ["woodbury", "static"])
@pytest.mark.parametrize("block_size", BLOCKS)
def test_entries_and_combinations(block_size, mode):
    """Oracle: the dense inverse, entry by entry, and its product with Gᵀc."""
    grads = gradients()
    inverse = torch.linalg.inv(dense_fisher(grads, 0.1, block_size))
    operator = MFACInverse(grads, 0.1, block_size, mode)
    entries = torch.stack([torch.stack([operator.element(i, j) for j in range(12)]) for i in range(12)])
    torch.testing.assert_close(entries, inverse, rtol=1e-9, atol=1e-9)
    c = torch.randn(5, 3, generator=seeded(2), dtype=F64)
    torch.testing.assert_close(operator.inverse_of_combination(c), inverse @ grads.mT @ c, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        operator.inverse_of_combination(c[:, 0]), inverse @ grads.mT @ c[:, 0], rtol=1e-9, atol=1e-9
    )
    size = block_size or 12
    own = torch.randn(-(-12 // size), 5, 3, generator=seeded(3), dtype=F64)  # of every block
    wanted = torch.cat([grads.mT[i * size : (i + 1) * size] @ piece for i, piece in enumerate(own)])
    torch.testing.assert_close(operator.inverse_of_combination(own), inverse @ wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block_size", [None, 5])
def test_forward_operator_is_the_fisher_matrix(block_size):
    """Oracle: the dense matrix; conjugate gradients on it give what the inverse gives."""
    grads = gradients()
    operator = MFACInverse(grads, 0.1, block_size)
    forward = operator.forward_operator
    dense = dense_fisher(grads, 0.1, block_size)
    check_linear_operator(forward, dense, gradcheck=False)
    x = torch.randn(12, generator=seeded(3), dtype=F64)
    torch.testing.assert_close(cg(forward, x, rtol=1e-12).x, operator @ x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(operator.solve(x), dense @ x)
    torch.testing.assert_close(forward.logdet(), -operator.logdet())


@pytest.mark.parametrize("damping", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("block_size", [None, 100])
def test_float32_is_accurate_where_the_published_recurrence_is_not(damping, block_size):
    """Oracle: the dense inverse in float64 of the float32 gradients, for a gradient, generic and mixed vectors."""
    grads = gradients(40, 300, dtype=torch.float32)
    operator = MFACInverse(grads, damping, block_size)
    inverse = torch.linalg.inv(dense_fisher(grads, damping, block_size))
    inside, generic = grads[4], torch.randn(300, generator=seeded(5))
    for x in (generic, inside, inside + 1e-3 * generic):
        assert error(operator @ x, inverse @ x.double()) <= 1e-5
    unit = torch.eye(40)[4]
    assert error(operator.inverse_of_combination(unit), inverse @ grads[4].double()) <= 1e-5
    assert error(operator.diagonal(), inverse.diagonal()) <= 1e-5
    if block_size is None and damping == 1e-7:
        published = static_product(*static_rows(grads, damping), damping, inside)
        assert error(published, inverse @ inside.double()) > 1
        assert error(MFACInverse(grads, damping, mode="static") @ inside, inverse @ inside.double()) > 1


@pytest.mark.parametrize("block_size", [None, 3, 64])
def test_gradients_may_repeat(block_size):
    """Oracle: the dense inverse; the Gram matrix has rank 3 of 9, and two coordinates are dead."""
    grads = gradients(3, 80).repeat(3, 1)
    grads[:, [0, 70]] = 0
    inverse = torch.linalg.inv(dense_fisher(grads, 1e-6, block_size))
    operator = MFACInverse(grads, 1e-6, block_size)
    x = grads.mT[:, :2] + 1e-4 * torch.randn(80, 2, generator=seeded(6), dtype=F64)
    assert error(operator @ x, inverse @ x) <= 1e-8
    assert float(operator.element(70, 70)) == pytest.approx(1e6, rel=1e-12)


def test_more_gradients_than_coordinates():
    """Oracle: the dense inverse; the matrix factored is then of the order of the coordinates."""
    grads = gradients(50, 7)
    operator = MFACInverse(grads, 1e-4)
    assert operator.factors[0].shape == (1, 7, 7)
    torch.testing.assert_close(operator.to_dense(), torch.linalg.inv(dense_fisher(grads, 1e-4)))


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16])
def test_half_precision_is_storage_only(storage):
    """Oracle: the dense inverse for the rounded gradients; operands and results are float32."""
    grads = gradients(8, 60).to(storage)
    operator = MFACInverse(grads, 1e-4)
    assert operator.dtype == torch.float32
    x = torch.randn(60, generator=seeded(7))
    wanted = torch.linalg.inv(dense_fisher(grads, 1e-4)) @ x.double()
    assert error(operator @ x, wanted) <= 1e-6
    assert error(operator.solve(x), dense_fisher(grads, 1e-4) @ x.double()) <= 1e-6
    assert error(operator.forward_operator @ x, dense_fisher(grads, 1e-4) @ x.double()) <= 1e-6


@pytest.mark.parametrize("mode", ["woodbury", "static"])
def test_moving_to_another_dtype_factors_anew(mode):
    """Oracle: the operator built from the rounded gradients, bit by bit."""
    grads = gradients()
    moved = MFACInverse(grads, 0.01, 5, mode).to(dtype=torch.float32)
    built = MFACInverse(grads.float(), 0.01, 5, mode, torch.float64)
    x = torch.randn(12, generator=seeded(8))
    assert torch.equal(moved @ x, built @ x)


@pytest.mark.parametrize("block_size", [None, 8])
def test_tiles_do_not_change_the_numbers(block_size, monkeypatch):
    """Oracle: one tile; float32 storage, sums in float64."""
    grads = gradients(6, 40, dtype=torch.float32)
    x = torch.randn(40, 3, generator=seeded(9))
    whole = MFACInverse(grads, 1e-3, block_size)
    wanted = whole @ x, whole.diagonal(), whole.solve(x)
    monkeypatch.setattr("hesse.curvature.mfac._tiles._TILE", 50)
    monkeypatch.setattr("hesse.curvature.mfac._tiles._WIDTH", 25)
    cut = MFACInverse(grads, 1e-3, block_size)
    for found, expected in zip((cut @ x, cut.diagonal(), cut.solve(x)), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("page_size", [1, 2, 5, 64])
def test_pages_do_not_change_the_recurrence(page_size):
    """Oracle: the recurrence row by row."""
    grads = gradients(9, 30)
    operator = MFACInverse(grads, 0.01, mode="static", page_size=page_size, page_device="cpu")
    V, q = static_rows(grads, 0.01)
    torch.testing.assert_close(operator.unrolled, V, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(operator.factors[0][0], q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["woodbury", "static"])
@pytest.mark.parametrize("block_size", [None, 2, 6])
def test_samples_have_the_covariance(block_size, mode):
    """Oracle: the dense inverse; 20,000 draws, each entry within five of its own standard errors."""
    operator = MFACInverse(gradients(4, 8), 0.3, block_size, mode)
    draws = operator.sample(20_000, generator=seeded(10))
    inverse = torch.linalg.inv(dense_fisher(gradients(4, 8), 0.3, block_size))
    products = draws.unsqueeze(2) * draws.unsqueeze(1)
    standard_error = products.std(0) / math.sqrt(len(draws))
    assert bool(((products.mean(0) - inverse).abs() <= 5 * standard_error).all())
    assert torch.equal(draws, operator.sample(20_000, generator=seeded(10)))


@pytest.mark.parametrize("block_size", [None, 2, 4])
def test_derivatives_reach_the_gradients(block_size):
    """Oracle: finite differences through construction, product, diagonal and determinant."""

    def everything(grads, x):
        operator = MFACInverse(grads, 0.2, block_size)
        return torch.cat(
            [operator @ x, operator.diagonal(), operator.logdet().unsqueeze(0), operator.element(1, 2)[None]]
        )

    x = torch.randn(7, generator=seeded(11), dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(everything, (gradients(3, 7).requires_grad_(), x))


def test_derivatives_pass_through_tiles(monkeypatch):
    """Oracle: F⁻¹ is symmetric, so the derivative of yᵀF⁻¹x is F⁻¹y; a loop for vmap. float32, summed in float64."""
    monkeypatch.setattr("hesse.curvature.mfac._tiles._TILE", 50)
    monkeypatch.setattr("hesse.curvature.mfac._tiles._WIDTH", 25)
    operator = MFACInverse(gradients(6, 40, dtype=torch.float32), 1e-2)
    x, y = torch.randn(2, 40, generator=seeded(15))
    derivative = torch.autograd.functional.jacobian(lambda x: y @ (operator @ x), x)
    torch.testing.assert_close(derivative, operator @ y, rtol=1e-5, atol=1e-5)
    columns = torch.randn(3, 40, generator=seeded(16))
    looped = torch.stack([operator @ column for column in columns])
    torch.testing.assert_close(torch.vmap(lambda column: operator @ column)(columns), looped)


def test_from_a_module():
    """Oracle: per-example gradients by a loop, and the dense inverse."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = (torch.randn(6, 3, generator=seeded(12), dtype=F64), torch.randint(2, (6,), generator=seeded(13)))

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    operator = MFACInverse.from_module(
        model, loss_fn, data, num_grads=6, per_sample=True, damping=1e-2, generator=seeded(14)
    )
    rows = []
    for i in range(6):
        loss = loss_fn(model, (data[0][i : i + 1], data[1][i : i + 1]))
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]))
    torch.testing.assert_close(operator.to_dense(), torch.linalg.inv(dense_fisher(torch.stack(rows), 1e-2)))


def test_bad_input_is_refused():
    """Oracle: the error classes and the names in their messages."""
    grads = gradients()
    for damping in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="damping"):
            MFACInverse(grads, damping)
    with pytest.raises(ArgumentError, match="block_size"):
        MFACInverse(grads, 1.0, 0)
    with pytest.raises(ArgumentError, match="mode"):
        MFACInverse(grads, 1.0, mode="dynamic")
    with pytest.raises(ArgumentError, match="dtype_small"):
        MFACInverse(grads, 1.0, dtype_small=torch.float32)
    with pytest.raises(ArgumentError, match="page_size"):
        MFACInverse(grads, 1.0, page_size=3)
    with pytest.raises(ArgumentError, match="page_size"):
        MFACInverse(grads, 1.0, mode="static", page_size=0)
    with pytest.raises(ShapeError, match="one gradient a row"):
        MFACInverse(grads[0])
    with pytest.raises(ArgumentTypeError, match="int64"):
        MFACInverse(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ArgumentTypeError, match="list"):
        MFACInverse([[1.0]])
    grads[3, 2] = math.nan
    with pytest.raises(NumericalError, match="gradient 3"):
        MFACInverse(grads)
    with pytest.raises(SingularError, match="larger damping"):
        MFACInverse(torch.full((8, 20), 1e6, dtype=F64), 1e-9)
    with pytest.raises(SingularError, match="recurrence"):
        MFACInverse(torch.ones(8, 1), 1e-40, mode="static")
    operator = MFACInverse(gradients())
    with pytest.raises(ArgumentError, match="element"):
        operator.element(0, 12)
    with pytest.raises(ArgumentError, match="row"):
        operator.row(-1)
    with pytest.raises(ArgumentError, match="num_samples"):
        operator.sample(0)
    with pytest.raises(ShapeError, match="coefficients"):
        operator.inverse_of_combination(torch.ones(4, dtype=F64))
    with pytest.raises(ShapeError, match="coefficients"):
        operator.inverse_of_combination(torch.ones(13, 5, 2, dtype=F64))


def test_a_pivot_of_rounding_is_told_from_a_small_one():
    """Oracle: by hand: beside 1 a pivot of 1e-16 is rounding and 1e-12 is not; of a row of size 1e-16 it is the row."""
    eye = torch.eye(2, dtype=F64)

    def told(coupling, last):
        lower = eye.clone()
        lower[1, 0], lower[1, 1] = coupling, last**0.5
        return pivots_are_rounding(lower, lower @ lower.mT)

    assert told(1.0, 1e-16)
    assert not told(1.0, 1e-12)
    assert not told(0.0, 1e-16)
    assert pivots_are_rounding(torch.stack([eye, eye * math.nan]), torch.stack([eye, eye]))
