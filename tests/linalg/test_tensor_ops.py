import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.linalg.convert import as_linear_operator
from hesse.linalg.tensor_ops import fold, khatri_rao, mode_product, multi_mode_product, unfold


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", [0, 1, 2, -1])
def test_unfold_and_fold(mode):
    """Oracle: a for-loop over the entries; fold undoes it."""
    X = randn(2, 3, 4)
    M = unfold(X, mode)
    k = mode % 3
    others = [j for j in range(3) if j != k]
    for index in torch.cartesian_prod(*[torch.arange(n) for n in X.shape]).tolist():
        column = index[others[0]] * X.shape[others[1]] + index[others[1]]
        assert M[index[k], column] == X[tuple(index)]
    assert torch.equal(fold(M, mode, X.shape), X)


@pytest.mark.parametrize("mode", [0, 1, 2, -1])
@pytest.mark.parametrize("as_operator", [False, True])
def test_mode_product(mode, as_operator):
    """Oracle: einsum, written out."""
    X = randn(2, 3, 4)
    k = mode % 3
    A = randn(5, X.shape[k], seed=1)
    letters = "abc"
    expected = torch.einsum(f"z{letters[k]},abc->{letters.replace(letters[k], 'z')}", A, X)
    torch.testing.assert_close(mode_product(X, as_linear_operator(A) if as_operator else A, mode), expected)


def test_multi_mode_product_is_the_kronecker_product():
    """Oracle: torch.kron on the flattened tensor; None counts as the identity."""
    X = randn(2, 3, 4)
    A, C = randn(5, 2, seed=1), randn(2, 4, seed=2)
    dense = torch.kron(torch.kron(A, torch.eye(3, dtype=torch.float64)), C)
    found = multi_mode_product(X, [A, None, C])
    torch.testing.assert_close(found.reshape(-1), dense @ X.reshape(-1))
    back = multi_mode_product(found, [A, None, C], transpose=True)
    torch.testing.assert_close(back.reshape(-1), dense.T @ found.reshape(-1))


def test_khatri_rao_unfolds_a_sum_of_rank_ones():
    """Oracle: the tensor by einsum; its unfolding in mode 1 is B (A ⊙ C)ᵀ."""
    A, B, C = randn(2, 3, seed=1), randn(4, 3, seed=2), randn(5, 3, seed=3)
    X = torch.einsum("ar,br,cr->abc", A, B, C)
    torch.testing.assert_close(unfold(X, 1), B @ khatri_rao([A, C]).T)


def test_gradient():
    """Oracle: finite differences."""
    X, A = randn(2, 3).requires_grad_(), randn(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a: mode_product(x, a, 1), (X, A))


def test_bad_arguments_are_named():
    """Oracle: the error taxonomy."""
    with pytest.raises(ArgumentError, match="no mode 3"):
        unfold(randn(2, 3, 4), 3)
    with pytest.raises(ShapeError, match="mode 1"):
        mode_product(randn(2, 3), randn(4, 4), 1)
    with pytest.raises(ShapeError, match="unfolds to"):
        fold(randn(2, 5), 0, (2, 3))
    with pytest.raises(ShapeError, match="one a mode"):
        multi_mode_product(randn(2, 3), [None])
    with pytest.raises(ShapeError, match="equally many"):
        khatri_rao([randn(2, 3), randn(2, 2)])
    with pytest.raises(ArgumentError, match="at least one"):
        khatri_rao([])
