import pytest
import torch

from hesse.errors import ArgumentTypeError, ShapeError
from hesse.linalg import clip_eigenvalues


def stack(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    matrices = torch.randn(2, 3, 5, 5, generator=g, dtype=dtype)
    matrices[0, 0] = matrices[0, 0] @ matrices[0, 0].mT + torch.eye(5, dtype=dtype)
    return matrices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_projection(dtype):
    """Oracle: dense float64 eigenvalues of every matrix, clipped one by one."""
    matrices, low = stack(dtype), torch.tensor([0.1, 0.5, -0.2])
    found = clip_eigenvalues(matrices, low)
    for i in range(2):
        for j in range(3):
            values, vectors = torch.linalg.eigh((matrices[i, j] + matrices[i, j].mT).double() / 2)
            expected = vectors @ torch.diag(values.clamp_min(float(low[j]))) @ vectors.mT
            torch.testing.assert_close(found[i, j].double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(clip_eigenvalues(found, low), found, rtol=1e-5, atol=1e-5)


def test_leaves_the_set_alone():
    """Oracle: identity; a matrix of the set comes back bit for bit, its skew part gone."""
    inside = stack()[0, 0]
    symmetric = (inside + inside.mT) / 2
    torch.testing.assert_close(clip_eigenvalues(inside, 0.5), symmetric, rtol=0, atol=0)


def test_nan_is_handed_back():
    """Oracle: the other matrices of the stack, projected without it."""
    matrices = stack()
    expected = clip_eigenvalues(matrices[1], 0.1)
    matrices[0] = torch.nan
    found = clip_eigenvalues(matrices, 0.1)
    assert bool(found[0].isnan().all())
    torch.testing.assert_close(found[1], expected)


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ShapeError, match="square"):
        clip_eigenvalues(torch.zeros(2, 3), 0.1)
    with pytest.raises(ArgumentTypeError, match="float32 or float64"):
        clip_eigenvalues(torch.zeros(2, 2, dtype=torch.float16), 0.1)
