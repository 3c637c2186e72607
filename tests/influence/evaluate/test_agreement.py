"""Stability of two fits, and flipped labels by self-influence."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from hesse.errors import ArgumentError, ShapeError
from hesse.influence.evaluate import detect_mislabelled, stability


def test_stability_by_hand():
    """Oracle: set operations and scipy's Spearman, query by query."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 40))
    b = a + 0.5 * rng.normal(size=a.shape)
    found = stability(a, b, k=10)
    overlaps, ranks = [], []
    for left, right in zip(a, b, strict=True):
        tops = [set(np.argsort(-row)[:10].tolist()) for row in (left, right)]
        either = sorted(tops[0] | tops[1])
        overlaps.append(len(tops[0] & tops[1]) / 10)
        ranks.append(spearmanr(left[either], right[either])[0])
    assert found.overlap == pytest.approx(np.mean(overlaps))
    np.testing.assert_allclose(found.per_query, ranks)
    assert stability(a, a).rank_correlation == pytest.approx(1)
    assert stability(np.ones_like(a), a).rank_correlation == 0


def test_auc_counts_pairs():
    """Oracle: the share of pairs in order, by two loops; ties count half."""
    rng = np.random.default_rng(1)
    scores, wrong = rng.integers(0, 5, 30).astype(float), rng.random(30) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[wrong] for b in scores[~wrong]]
    assert detect_mislabelled(scores, wrong).auc == pytest.approx(np.mean(pairs))
    perfect = detect_mislabelled(wrong + 0.0, wrong)
    assert (perfect.auc, perfect.precision) == (1, 1)


def test_peer_agrees_on_the_curve():
    """Oracle: dattri's mislabelling metric, whose area is under the curve with its axes swapped."""
    torch = pytest.importorskip("torch")
    metric = pytest.importorskip("dattri.metric")
    rng = np.random.default_rng(2)
    scores, wrong = rng.normal(size=50), rng.random(50) < 0.2
    _area, (false, true, _thresholds) = metric.mislabel_detection_auc(torch.from_numpy(scores), torch.from_numpy(wrong))
    assert detect_mislabelled(scores, wrong).auc == pytest.approx(float(torch.trapz(true, false)), abs=1e-6)


def test_bad_input_is_named():
    """Oracle: the argument that each message names."""
    for call, error, message in [
        (lambda: stability(np.ones((2, 3)), np.ones((2, 4))), ShapeError, "stability"),
        (lambda: stability(np.ones((2, 3)), np.ones((2, 3)), k=1), ArgumentError, "k:"),
        (lambda: detect_mislabelled(np.ones(3), [True] * 3), ArgumentError, "flipped"),
        (lambda: detect_mislabelled(np.ones(3), [True] * 2), ShapeError, "flipped"),
    ]:
        with pytest.raises(error, match=message):
            call()
