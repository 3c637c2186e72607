import math

import pytest
import torch
from torch import Tensor

from hesse.errors import ArgumentError, ArgumentTypeError, ShapeError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.rsvd import rsvd


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_spectrum(m: int, n: int, values: Tensor, seed: int = 0) -> Tensor:
    left = torch.linalg.qr(torch.randn(m, len(values), dtype=torch.float64, generator=seeded(seed))).Q
    right = torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64, generator=seeded(seed + 1))).Q
    return left * values @ right.T


@pytest.mark.parametrize("shape", [(120, 80), (80, 120)])
@pytest.mark.parametrize("as_operator", [False, True])
def test_leading_triplets_match_lapack(shape, as_operator):
    """Oracle: torch.linalg.svd in float64, on a spectrum with power-law decay."""
    matrix = with_spectrum(*shape, torch.arange(1, 81, dtype=torch.float64) ** -1.5)
    target = as_linear_operator(matrix) if as_operator else matrix
    found = rsvd(target, 6, num_power_steps=4, oversampling=14, generator=seeded(3))
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(found.S, S[:6], rtol=1e-9, atol=0)
    torch.testing.assert_close(found.U * found.S @ found.V.mH, U[:, :6] * S[:6] @ Vh[:6], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.U.mH @ found.U, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.V.mH @ found.V, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_exact_when_the_rank_is_low(dtype):
    """Oracle: the matrix itself, of rank 5 in a stack of three; the fraction captured is 1."""
    left = torch.randn(3, 60, 5, dtype=dtype, generator=seeded(0))
    stack = left @ torch.randn(3, 5, 90, dtype=dtype, generator=seeded(1))
    found = rsvd(stack, 5, generator=seeded(2))
    rebuilt = found.U * found.S.unsqueeze(-2) @ found.V.mH
    tight = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(rebuilt, stack, rtol=tight, atol=tight)
    assert found.U.dtype == dtype
    assert not found.S.dtype.is_complex
    torch.testing.assert_close(found.captured, torch.ones_like(found.captured), rtol=0, atol=1e-5)


def test_captured_fraction_of_a_tensor_is_exact():
    """Oracle: the squared Frobenius norm of the residual, formed."""
    matrix = torch.randn(70, 50, dtype=torch.float64, generator=seeded(0))
    found = rsvd(matrix, 10, generator=seeded(1))
    missed = (matrix - found.U * found.S @ found.V.T).square().sum() / matrix.square().sum()
    assert math.isclose(1 - float(found.captured), float(missed), rel_tol=1e-10)
    assert float(found.captured_standard_error) == 0


def test_captured_fraction_of_an_operator_is_honest():
    """Oracle: the exact fraction; about 95 % of 200 runs land within two standard errors (8 probes: Student's t)."""
    matrix = torch.randn(40, 30, dtype=torch.float64, generator=seeded(0))
    hits = 0
    for seed in range(200):
        found = rsvd(as_linear_operator(matrix), 5, generator=seeded(seed))
        exact = found.S.square().sum() / matrix.square().sum()
        hits += bool((found.captured - exact).abs() <= 2.36 * found.captured_standard_error)
    assert 178 <= hits <= 200


def test_stack_cut_in_pieces_gives_the_same_numbers():
    """Oracle: invariance; every matrix of a stack sees the same random block."""
    stack = torch.randn(4, 60, 50, dtype=torch.float64, generator=seeded(0))
    whole = rsvd(stack, 7, generator=seeded(9))
    for i in range(4):
        piece = rsvd(stack[i : i + 1], 7, generator=seeded(9))
        torch.testing.assert_close(piece.S[0], whole.S[i], rtol=1e-12, atol=0)
        torch.testing.assert_close(piece.U[0].abs(), whole.U[i].abs(), rtol=0, atol=1e-9)


def test_small_matrix_gets_all_its_triplets():
    """Oracle: torch.linalg.svd; a rank above min(m, n) is cut to it."""
    matrix = torch.randn(4, 9, dtype=torch.float64, generator=seeded(0))
    found = rsvd(matrix, 32)
    torch.testing.assert_close(found.S, torch.linalg.svdvals(matrix))
    assert found.U.shape == (4, 4)
    assert found.V.shape == (9, 4)


def test_half_precision_is_computed_in_float32():
    """Oracle: the float64 singular values, to the precision of bfloat16."""
    matrix = torch.randn(64, 48, generator=seeded(0)).to(torch.bfloat16)
    found = rsvd(matrix, 4, generator=seeded(1))
    assert found.S.dtype == torch.bfloat16
    torch.testing.assert_close(found.S.double(), torch.linalg.svdvals(matrix.double())[:4], rtol=0.03, atol=0)


def test_zero_matrix_is_captured_whole():
    """Oracle: closed form; nothing of a zero matrix is left out, and nothing is NaN."""
    for target in (torch.zeros(30, 20), as_linear_operator(torch.zeros(30, 20))):
        found = rsvd(target, 3)
        assert float(found.captured) == 1
        assert float(found.S.abs().max()) == 0


def test_gradient_of_singular_values():
    """Oracle: finite differences of the sum of the leading singular values."""
    matrix = with_spectrum(20, 15, torch.tensor([5.0, 3, 2, 1e-3, 5e-4], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: rsvd(a, 3, num_power_steps=4, oversampling=2, generator=seeded(1)).S.sum(), matrix, atol=1e-5
    )


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="rank"):
        rsvd(torch.eye(3), 0)
    with pytest.raises(ArgumentError, match="oversampling"):
        rsvd(torch.eye(3), 1, oversampling=-1)
    with pytest.raises(ShapeError, match=r"\(\.\.\., m, n\)"):
        rsvd(torch.ones(3), 1)
    with pytest.raises(ArgumentTypeError, match="floating"):
        rsvd(torch.ones(3, 3, dtype=torch.int64), 1)
