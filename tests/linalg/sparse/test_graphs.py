import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError
from hesse.linalg.sparse import rmat


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_quadrants_have_their_chances():
    """Oracle: the binomial law; the share of edges in each quarter, within five standard errors."""
    draws, probs = 20_000, (0.5, 0.1, 0.25, 0.15)
    graph = rmat(16, draws, probs=probs, generator=seeded(0)).tocoo()
    half = 1 << 15
    row, column = graph.coords
    # merged edges are few at this scale, and count once
    for place, chance in enumerate(probs):
        share = ((row >= half) == place // 2) & ((column >= half) == place % 2)
        assert (
            abs(share.sum() / graph.nnz - chance)
            <= 5 * (chance * (1 - chance) / draws) ** 0.5 + (draws - graph.nnz) / draws
        )


def test_permuting_keeps_the_degrees():
    """Oracle: invariance; new numbers change neither the degrees nor the weights, only where they stand."""
    plain, mixed = (rmat(9, 4000, permute=p, generator=seeded(3)) for p in (False, True))
    assert sorted(np.diff(plain.indptr)) == sorted(np.diff(mixed.indptr))
    np.testing.assert_allclose(np.sort(plain.data), np.sort(mixed.data), rtol=1e-12)
    assert np.argmax(np.diff(plain.indptr)) != np.argmax(np.diff(mixed.indptr))
    assert sorted(plain.diagonal()) == pytest.approx(sorted(mixed.diagonal()))  # one renumbering for both sides


def test_sorted_merged_and_repeatable():
    """Oracle: the definition."""
    first, second = (rmat(6, 3000, generator=seeded(1)) for _ in range(2))
    assert first.has_canonical_format
    assert first.nnz < 3000
    assert (first != second).nnz == 0
    assert first.data.max() > 1  # weights of merged edges add
    assert rmat(0, 5, generator=seeded(0)).shape == (1, 1)
    assert rmat(4, 0).nnz == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1, 5), "scale from 0"), ((32, 5), "scale from 0"), ((3, -1), "num_edges >= 0")],
)
def test_bad_sizes(arguments, message):
    """Oracle: the documented error."""
    with pytest.raises(ArgumentError, match=message):
        rmat(*arguments)


@pytest.mark.parametrize("probs", [(0.5, 0.5), (0.5, 0.5, 0.5, -0.5), (0.3, 0.3, 0.3, 0.3)])
def test_bad_chances(probs):
    """Oracle: the documented error."""
    with pytest.raises(ArgumentError, match="four chances"):
        rmat(3, 5, probs=probs)
