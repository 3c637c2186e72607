import numpy as np
import pytest

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.influence.retrieval import mean_reciprocal_rank, recall_at_k, support_mask


def recall_of_order(order, relevant, k):
    return sum(relevant[j] for j in order[:k]) / min(k, sum(relevant))


def test_recall_without_ties_counts_the_first_k():
    """Oracle: a loop over the sorted sequences."""
    rng = np.random.default_rng(0)
    scores, relevant = rng.normal(size=(20, 15)), rng.random((20, 15)) < 0.3
    relevant[:, 0] = True
    for k in (1, 3, 15, 40):
        expected = [recall_of_order(np.argsort(-row), truth, k) for row, truth in zip(scores, relevant, strict=True)]
        np.testing.assert_allclose(recall_at_k(scores, relevant, k), expected)


def test_recall_with_ties_is_the_mean_over_random_orders():
    """Oracle: 4,000 random orders of the tied; agreement within four of their standard errors."""
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 3, (4, 10)).astype(float)
    relevant = rng.random((4, 10)) < 0.4
    relevant[:, 0] = True
    for i in range(4):
        runs = []
        for _ in range(4000):
            shuffle = rng.permutation(10)
            order = shuffle[np.argsort(-scores[i][shuffle], kind="stable")]
            runs.append(recall_of_order(order, relevant[i], 3))
        error = np.std(runs) / len(runs) ** 0.5
        assert abs(recall_at_k(scores, relevant)[i] - np.mean(runs)) <= 4 * error + 1e-12


def test_reciprocal_rank():
    """Oracle: worked by hand; two relevant and one other tie for the second place: expected rank 2 + 1/3."""
    scores = [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]
    relevant = [[True, False, False], [True, False, False]]
    assert mean_reciprocal_rank(scores, relevant) == pytest.approx((1 + 1 / 3) / 2)
    assert mean_reciprocal_rank([[5.0, 4.0, 4.0, 4.0]], [[False, True, True, False]]) == pytest.approx(3 / 7)


def test_support_mask_marks_what_the_world_says():
    """Oracle: written by hand."""
    mask = support_mask({"q1": ("b",), "q0": ("a", "c")}, ["q0", "q1"], ["a", "b", "c"])
    assert mask.tolist() == [[True, False, True], [False, True, False]]


def test_refuses_bad_input():
    """Oracle: the documented errors."""
    with pytest.raises(ArgumentError, match="q1"):
        support_mask({}, ["q1"], ["a"])
    with pytest.raises(ArgumentError, match="'z'"):
        support_mask({"q": ("z",)}, ["q"], ["a"])
    with pytest.raises(ArgumentError, match="k:"):
        recall_at_k([[1.0]], [[True]], 0)
    with pytest.raises(ShapeError):
        recall_at_k([[1.0, 2.0]], [[True]])
    with pytest.raises(ArgumentError, match="number 1 has no relevant"):
        recall_at_k([[1.0], [1.0]], [[True], [False]])
    with pytest.raises(NumericalError, match="NaN"):
        mean_reciprocal_rank([[np.nan]], [[True]])
    with pytest.raises(ArgumentError, match="no query"):
        mean_reciprocal_rank(np.zeros((0, 2)), np.zeros((0, 2), dtype=bool))
