import pytest
import scipy.linalg
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.tensor_sketch import TensorSRHT


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def dense_of(S):
    # the definition: row r is (row p_r of H D1) ⊗ (row q_r of H D2) / √M
    parts = []
    for signs, kept, n, padded in zip(S.signs, S.kept, S.dims, S.padded, strict=True):
        H = torch.from_numpy(scipy.linalg.hadamard(padded)).to(signs.dtype)
        parts.append(H[kept, :n] * signs)
    return (parts[0].unsqueeze(2) * parts[1].unsqueeze(1)).flatten(1) / S.shape[0] ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("dims", [(5, 8), (1, 3), (16, 7)])
def test_is_the_dense_definition(dims, dtype):
    """Oracle: the definition, written out with scipy.linalg.hadamard for the same signs and rows."""
    S = TensorSRHT(dims, 30, dtype=dtype, generator=seeded(0))
    dense = dense_of(S)
    x = torch.randn(2, dims[0] * dims[1], 3, dtype=dtype, generator=seeded(1))
    torch.testing.assert_close(S @ x, dense @ x, rtol=0, atol=1e-12)
    y = torch.randn(2, 30, 3, dtype=dtype, generator=seeded(2))
    torch.testing.assert_close(S.rmatmat(y), dense.mH @ y, rtol=0, atol=1e-12)
    left = torch.randn(dims[0], 2, dtype=dtype, generator=seeded(3))
    right = torch.randn(dims[1], 4, dtype=dtype, generator=seeded(4))
    torch.testing.assert_close(S.apply_factors(left, right), dense @ torch.kron(left, right), rtol=0, atol=1e-12)


def test_isotropic():
    """Oracle: E[SᵀS] = I; the mean of 400 draws within 5 standard errors at each entry."""
    g = seeded(0)
    grams = torch.stack(
        [(d := TensorSRHT((3, 4), 9, dtype=torch.float64, generator=g).to_dense()).T @ d for _ in range(400)]
    )
    error = (grams.mean(0) - torch.eye(12, dtype=torch.float64)).abs()
    assert bool((error <= 5 * grams.std(0) / 20 + 1e-12).all())


def test_seeded_differentiable_and_movable():
    """Oracle: equal seeds give equal sketches; finite differences; the dtype asked for."""
    one, two = (TensorSRHT((3, 5), 7, dtype=torch.float64, generator=seeded(5)) for _ in range(2))
    assert torch.equal(one.to_dense(), two.to_dense())
    x = torch.randn(15, 2, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: one @ v, x)
    torch.testing.assert_close(one.to(dtype=torch.float32).to_dense(), one.to_dense().float())


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ShapeError, match="two dimensions"):
        TensorSRHT((2, 3, 4), 5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="dims"):
        TensorSRHT((2, 0), 5)
    with pytest.raises(ArgumentError, match="m >= 1"):
        TensorSRHT((2, 3), 0)
    S = TensorSRHT((2, 3), 4)
    with pytest.raises(ShapeError, match="left of shape"):
        S.apply_factors(torch.ones(3, 1), torch.ones(3, 1))
    with pytest.raises(ShapeError, match="right is"):
        S.apply_factors(torch.ones(2, 1), torch.ones(3, 1, dtype=torch.float64))
