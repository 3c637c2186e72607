import numpy as np
import pytest
import scipy.linalg
import torch

from hesse.linalg import _hadamard
from hesse.linalg._hadamard import sampled_hadamard, sylvester
from hesse.linalg.sketch import SRHT


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 2, 16])
def test_sylvester(n):
    """Oracle: scipy.linalg.hadamard."""
    assert np.array_equal(sylvester(n, dtype=torch.float64).numpy(), scipy.linalg.hadamard(n))


@pytest.mark.parametrize("workspace", [1, 1 << 8, 1 << 20])
@pytest.mark.parametrize(("n", "d", "m"), [(1, 1, 1), (37, 3, 12), (300, 5, 512), (1000, 2, 700), (4096, 4, 300)])
def test_sampled_rows(monkeypatch, workspace, n, d, m):
    """Oracle: rows of scipy.linalg.hadamard, drawn with repetitions; whatever the workspace."""
    monkeypatch.setitem(_hadamard._WORKSPACE, "cpu", workspace)
    padded = 1 << (n - 1).bit_length()
    x = torch.randn(n, d, dtype=torch.float64, generator=seeded(0))
    signs = torch.randint(2, (n,), generator=seeded(1)).double() * 2 - 1
    kept = torch.randint(padded, (m,), generator=seeded(2))
    H = torch.from_numpy(scipy.linalg.hadamard(padded).astype(np.float64))
    torch.testing.assert_close(sampled_hadamard(x, signs, kept, padded), H[kept, :n] @ (signs.unsqueeze(1) * x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_wide_blocks_give_the_numbers_of_narrow_ones(dtype):
    """Oracle: SRHT column by column, which is by butterflies over the whole length; a batch of two blocks."""
    S = SRHT(5000, 400, dtype=dtype, generator=seeded(0))
    x = torch.randn(2, 5000, 70, dtype=dtype, generator=seeded(1))
    assert S.padded * x.numel() // 5000 >= 1 << 20
    narrow = torch.stack([torch.cat([S @ block[:, j : j + 1] for j in range(70)], dim=1) for block in x])
    torch.testing.assert_close(S @ x, narrow, rtol=1e-4, atol=1e-4)


def test_forward_mode_and_vmap():
    """Oracle: the function itself, which is linear, and the loop over the stack."""
    signs = torch.randint(2, (11,), generator=seeded(1)).double() * 2 - 1
    kept = torch.tensor([0, 5, 5, 15])
    x, t = (torch.randn(11, 2, dtype=torch.float64, generator=seeded(s)) for s in (0, 1))
    value, slope = torch.func.jvp(lambda x: sampled_hadamard(x, signs, kept, 16), (x,), (t,))
    torch.testing.assert_close(value, sampled_hadamard(x, signs, kept, 16))
    torch.testing.assert_close(slope, sampled_hadamard(t, signs, kept, 16))
    stack = torch.stack([x, t, x + t], dim=1)
    found = torch.func.vmap(lambda x: sampled_hadamard(x, signs, kept, 16), in_dims=1)(stack)
    for i in range(3):
        torch.testing.assert_close(found[i], sampled_hadamard(stack[:, i], signs, kept, 16))


def test_differentiable_twice():
    """Oracle: finite differences of a loss that is not quadratic in x."""
    signs = torch.randint(2, (11,), generator=seeded(1)).double() * 2 - 1
    kept = torch.tensor([0, 5, 5, 15])
    x = torch.randn(11, 2, dtype=torch.float64, generator=seeded(0)).requires_grad_()

    def loss(x):
        return sampled_hadamard(x, signs, kept, 16).sin()

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)
