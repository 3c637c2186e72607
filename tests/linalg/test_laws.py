"""Laws that hold for every operator, on shapes, entries and trees of operators that hypothesis makes up."""

import os
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hesse.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    InverseOperator,
    Kronecker,
    LinearOperator,
    LowRankPlusDiagonal,
    Permutation,
    ScaledIdentity,
    Toeplitz,
    cg,
    symmetric_power,
)

F64 = torch.float64
FEW = settings(max_examples=50, deadline=None, derandomize="HESSE_NEW_EXAMPLES" not in os.environ)
MANY = settings(max_examples=2000, deadline=None, derandomize=False)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def leaf(kind: str, n: int, seed: int) -> LinearOperator:
    """A square operator of order n."""
    match kind:
        case "dense":
            return Dense(normal(seed, n, n))
        case "diagonal":
            return Diagonal(normal(seed, n))
        case "scaled identity":
            return ScaledIdentity(n, normal(seed, 1)[0], dtype=F64)
        case "low rank plus diagonal":
            return LowRankPlusDiagonal(normal(seed + 1, n).abs() + 0.1, normal(seed, n, 2))
        case "toeplitz":
            bands = normal(seed, 2 * n - 1)
            return Toeplitz(bands[n - 1 :], bands[:n].flip(0))
        case "permutation":
            return Permutation(torch.randperm(n, generator=torch.Generator().manual_seed(seed)), dtype=F64)
        case "blocks":
            sizes = [n // 2, n - n // 2] if n > 1 else [n]
            return BlockDiagonal([Dense(normal(seed + i, size, size)) for i, size in enumerate(sizes)])
        case _:
            raise AssertionError(kind)


KINDS = ("dense", "diagonal", "scaled identity", "low rank plus diagonal", "toeplitz", "permutation", "blocks")
seeds = st.integers(0, 2**20)
orders = st.integers(1, 7)


@st.composite
def square_operators(draw: Callable, order: int | None = None) -> LinearOperator:
    """A leaf, or up to three of them added, multiplied, scaled and turned round."""
    n = order or draw(orders)
    a = leaf(draw(st.sampled_from(KINDS)), n, draw(seeds))
    for _ in range(draw(st.integers(0, 2))):
        b = leaf(draw(st.sampled_from(KINDS)), n, draw(seeds))
        match draw(st.sampled_from(("sum", "product", "multiple", "adjoint"))):
            case "sum":
                a = a + b
            case "product":
                a = a @ b
            case "multiple":
                a = -1.5 * a
            case _:
                a = a.T
    return a


@st.composite
def definite_operators(draw: Callable) -> LinearOperator:
    """Symmetric and positive definite, of condition at most about a thousand."""
    n, seed = draw(orders), draw(seeds)
    match draw(st.sampled_from(("dense", "diagonal", "low rank plus diagonal", "kronecker"))):
        case "dense":
            root = normal(seed, n, n)
            return Dense(root @ root.T + torch.eye(n, dtype=F64), is_psd=True)
        case "diagonal":
            return Diagonal(normal(seed, n).abs() + 0.1)
        case "low rank plus diagonal":
            return LowRankPlusDiagonal(normal(seed + 1, n).abs() + 0.1, normal(seed, n, 2))
        case _:
            roots = normal(seed, 2, 3, 3)
            factors = roots @ roots.mT + torch.eye(3, dtype=F64)
            return Kronecker([Dense(factor, is_psd=True) for factor in factors])


def near(found: Tensor, wanted: Tensor, scale: Tensor | float = 1.0) -> bool:
    bound = 1e-10 * max(1.0, float(wanted.abs().max()), float(scale))
    return bool((found - wanted).abs().max() <= bound)


def kron(a: LinearOperator, b: LinearOperator) -> Tensor:
    return torch.einsum("ij,kl->ikjl", a.to_dense(), b.to_dense()).reshape(a.shape[0] * b.shape[0], -1)


def linearity(data: st.DataObject) -> None:
    a = data.draw(square_operators())
    x, y = normal(data.draw(seeds), a.shape[1]), normal(data.draw(seeds), a.shape[1])
    assert near(a @ (2 * x - 3 * y), 2 * (a @ x) - 3 * (a @ y), (a @ x).abs().max() + (a @ y).abs().max())


def adjoint(data: st.DataObject) -> None:
    a = data.draw(square_operators())
    x, y = normal(data.draw(seeds), a.shape[1]), normal(data.draw(seeds), a.shape[0])
    assert near((a @ x) @ y, x @ (a.T @ y), (a @ x).norm() * y.norm())


def dense_twin(data: st.DataObject) -> None:
    a = data.draw(square_operators())
    x = normal(data.draw(seeds), a.shape[1], 3)
    assert near(a @ x, a.to_dense() @ x, a.to_dense().norm() * x.norm())


def gram_is_symmetric_and_psd(data: st.DataObject) -> None:
    a = data.draw(square_operators())
    gram = (a.T @ a).to_dense()
    scale = float(gram.norm())
    assert near(gram, gram.T, scale)
    assert float(torch.linalg.eigvalsh((gram + gram.T) / 2)[0]) >= -1e-12 * max(1.0, scale)


def mixed_product(data: st.DataObject) -> None:
    m, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    a, c = data.draw(square_operators(m)), data.draw(square_operators(m))
    b, d = data.draw(square_operators(n)), data.draw(square_operators(n))
    both = (Kronecker([a, b]) @ Kronecker([c, d])).to_dense()
    apart = kron(a @ c, b @ d)
    assert near(both, apart, kron(a, b).norm() * kron(c, d).norm())


def inverse_undoes(data: st.DataObject) -> None:
    a = data.draw(definite_operators())
    x = normal(data.draw(seeds), a.shape[1])
    assert near(InverseOperator(a, partial(cg, rtol=1e-13, max_steps=500)) @ (a @ x), x, 1e3)
    if not isinstance(a, Dense):
        assert near(a.solve(a @ x), x, 1e3)


def roots_square_back(data: st.DataObject) -> None:
    a = data.draw(definite_operators()).to_dense()
    root = symmetric_power(a, 0.5)
    assert near(root @ root, a, a.norm())
    assert near(symmetric_power(a, -0.5) @ root, torch.eye(len(a), dtype=F64), 100.0)


LAWS = (
    linearity,
    adjoint,
    dense_twin,
    gram_is_symmetric_and_psd,
    mixed_product,
    inverse_undoes,
    roots_square_back,
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@FEW
@given(data=st.data())
def test_laws(law, data):
    """Oracle: the law, to rounding in float64; 50 trees of operators each."""
    law(data)


@pytest.mark.nightly
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@MANY
@given(data=st.data())
def test_laws_on_many_examples(law, data):
    """Oracle: as above, on 2,000 trees that are drawn anew every night."""
    law(data)
