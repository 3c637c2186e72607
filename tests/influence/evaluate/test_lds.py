"""The linear datamodelling score and what chance leaves of it."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from hesse.errors import ArgumentError, NumericalError, ShapeError
from hesse.influence.evaluate import bootstrap_interval, draw_masks, lds, reliability


def setting(seed=0, queries=5, total=20, masks=12, runs=3, noise=1.0):
    rng = np.random.default_rng(seed)
    scores, kept = rng.normal(size=(queries, total)), draw_masks(masks, total, seed=seed)
    return scores, kept, kept @ scores.T + noise * rng.normal(size=(runs, masks, queries))


def test_score_is_the_mean_of_scipys_spearman():
    """Oracle: scipy.stats.spearmanr in a loop over queries, ties included."""
    scores, kept, outcomes = setting()
    scores, outcomes = scores.round(), outcomes.round()
    found = lds(scores, kept, outcomes)
    wanted = [spearmanr(kept @ row, outcomes.mean(0)[:, q])[0] for q, row in enumerate(scores)]
    np.testing.assert_allclose(found.per_query, wanted, rtol=1e-12)
    assert float(found) == pytest.approx(np.mean(wanted))
    low, high = found.interval
    assert low <= found.value <= high


def test_peer_agrees():
    """Oracle: dattri's metric on the tensors that the export makes for it."""
    torch = pytest.importorskip("torch")
    metric = pytest.importorskip("dattri.metric")
    from hesse.influence.evaluate import metric_tensors

    scores, kept, outcomes = setting(3)
    t = metric_tensors(scores, layout="dattri", masks=kept, outcomes=outcomes)
    theirs = metric.lds(t["score"], (t["target"], t["indices"]))[0]
    torch.testing.assert_close(torch.from_numpy(lds(scores, kept, outcomes).per_query), theirs)


def test_exact_scores_reach_one_and_constant_ones_zero():
    """Oracle: without noise the sums are the outcomes; scores that do not vary rank nothing."""
    scores, kept, outcomes = setting(noise=0.0)
    assert lds(scores, kept, outcomes).value == pytest.approx(1.0)
    assert lds(-scores, kept, outcomes).value == pytest.approx(-1.0)
    assert lds(np.ones_like(scores), kept, outcomes).value == 0.0
    assert lds(scores, kept, outcomes[0]).reliability is None


def test_ceiling_is_what_the_exact_expectation_reaches():
    """Oracle: simulation: outcomes are a true ranking plus noise, and its own score averages to the ceiling."""
    reached, promised = [], []
    for seed in range(200):
        scores, kept, outcomes = setting(seed, queries=8, masks=40, runs=4, noise=4.0)
        found = lds(scores, kept, outcomes, resamples=1)
        reached.append(found.value)
        promised.append(found.reliability.ceiling)
    error = np.std(np.subtract(reached, promised)) / np.sqrt(len(reached))
    assert abs(np.mean(reached) - np.mean(promised)) < 4 * error + 0.01


def test_split_half_by_hand():
    """Oracle: the three ways to split four seeds in halves."""
    _scores, _kept, outcomes = setting(1, runs=4)
    values = []
    for a, b in [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]:
        left, right = outcomes[list(a)].mean(0), outcomes[list(b)].mean(0)
        values.append(np.mean([spearmanr(left[:, q], right[:, q])[0] for q in range(left.shape[1])]))
    found = reliability(outcomes)
    r = np.mean(values)
    assert found.split_half == pytest.approx(r)
    assert found.full == pytest.approx(2 * r / (1 + r))
    assert found.ceiling == pytest.approx(found.full**0.5)


def test_intervals_cover():
    """Oracle: 95 % intervals of 300 samples of 40 normal numbers hold the mean about 95 times in 100."""
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        low, high = bootstrap_interval(rng.normal(size=40), resamples=400, seed=i)
        hits += low <= 0 <= high
    assert 268 <= hits <= 299


def test_masks_keep_their_share():
    """Oracle: counts, and the binomial spread of how often a sequence is kept."""
    masks = draw_masks(400, 30, fraction=0.3, seed=1)
    assert (masks.sum(1) == 9).all()
    assert np.abs(masks.mean(0) - 0.3).max() < 5 * (0.3 * 0.7 / 400) ** 0.5
    assert (draw_masks(4, 30, seed=2) == draw_masks(4, 30, seed=2)).all()


def test_bad_input_is_named():
    """Oracle: the argument that each message names."""
    scores, kept, outcomes = setting()
    broken = outcomes.copy()
    broken[0, 0, 0] = np.nan
    for call, error, message in [
        (lambda: lds(scores[:, :-1], kept, outcomes), ShapeError, "scores"),
        (lambda: lds(scores[0], kept, outcomes), ShapeError, "scores"),
        (lambda: lds(scores, kept, outcomes[0, 0]), ShapeError, "outcomes"),
        (lambda: lds(scores * np.nan, kept, outcomes), NumericalError, "scores"),
        (lambda: lds(scores, kept, broken), NumericalError, "outcomes"),
        (lambda: lds(scores, kept[:2], outcomes[:, :2]), ArgumentError, "masks"),
        (lambda: reliability(outcomes[:1]), ArgumentError, "outcomes"),
        (lambda: draw_masks(0, 5), ArgumentError, "num_masks"),
        (lambda: draw_masks(3, 5, fraction=0.01), ArgumentError, "fraction"),
        (lambda: bootstrap_interval([]), ArgumentError, "bootstrap"),
    ]:
        with pytest.raises(error, match=message):
            call()
