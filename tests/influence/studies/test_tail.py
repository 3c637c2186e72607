"""How thinly influence is spread: exponents, intervals, and what the top carries."""

import json

import numpy as np
import pytest
import scipy.stats

from hesse.errors import ArgumentError, NumericalError
from hesse.influence import open_scores
from hesse.influence.studies import fit_tail, study_tail
from tests.influence.studies._planted import planted


def pareto(exponent, size, seed):
    return 1 + np.random.default_rng(seed).pareto(exponent, size)


def test_exponent_and_distance_are_those_of_scipy():
    """Oracle: scipy's maximum likelihood with the threshold held, and its Kolmogorov-Smirnov statistic."""
    sample = pareto(1.7, 3000, 0)
    fit = fit_tail(sample, 400)
    above = np.sort(sample)[::-1][:399]
    wanted, _loc, _scale = scipy.stats.pareto.fit(above, floc=0, fscale=fit.threshold)
    assert fit.threshold == np.sort(sample)[::-1][399]
    assert fit.exponent == pytest.approx(wanted, rel=1e-6)
    law = scipy.stats.pareto(fit.exponent, scale=fit.threshold)
    assert fit.distance == pytest.approx(scipy.stats.kstest(above, law.cdf).statistic, rel=1e-9)


@pytest.mark.parametrize("exponent", [1.5, 2.5])
def test_power_laws_are_recovered_with_an_honest_interval(exponent):
    """Oracle: the law of the samples; mean within three standard errors, intervals hold it 19 times of 20."""
    fits = [fit_tail(pareto(exponent, 4000, [s, 1]), 300, num_bootstrap=300, seed=s) for s in range(200)]
    found = np.array([fit.exponent for fit in fits])
    k = 299
    expected = exponent * k / (k - 1)  # the inverse of a mean is biased by 1/k
    assert abs(found.mean() - expected) < 3 * found.std() / np.sqrt(len(found))
    assert 178 <= sum(fit.low <= exponent <= fit.high for fit in fits) <= 199


def test_the_threshold_that_fits_best_finds_the_tail():
    """Oracle: a sample that is a power law above 1 and flat below."""
    rng = np.random.default_rng(3)
    sample = np.concatenate([rng.uniform(0, 1, 4000), pareto(2.0, 1000, 4)])
    best, all_of_it = fit_tail(sample, None), fit_tail(sample, 4500)
    assert 200 < best.num_tail < 1300
    assert abs(best.exponent - 2.0) < 4 * 2.0 / np.sqrt(best.num_tail)
    assert best.distance < all_of_it.distance


def test_units_do_not_matter():
    """Oracle: invariance; a power law has no scale."""
    sample = pareto(1.5, 1000, 5)
    one, other = fit_tail(sample, 200), fit_tail(1e-6 * sample, 200)
    assert (other.exponent, other.low, other.high) == pytest.approx((one.exponent, one.low, one.high), rel=1e-9)
    assert other.threshold == pytest.approx(1e-6 * one.threshold)


def test_shares_of_the_top_in_closed_form():
    """Oracle: sums of the numbers 1 to 200; the opponents do not count."""
    values = np.concatenate([np.arange(1, 201), -np.arange(1, 51)])
    (q,) = study_tail(planted([values]), top_percent=1).queries
    assert (q.num_rows, len(q.proponents), q.num_top) == (250, 200, 2)
    assert q.share_of_top == pytest.approx(399 / 20100)
    assert q.num_for_half == 59  # 200 + ... + 142 = 10089 of 20100; without the last 9947
    assert q.fit.num_tail == 20


def test_few_or_equal_scores_have_no_fit():
    """Oracle: None instead of a number, and JSON."""
    few, equal, none = np.zeros(40), np.zeros(40), -np.ones(40)
    few[:5], equal[:20] = np.arange(1, 6), 0.25
    study = study_tail(planted([few, equal, none]))
    assert [q.fit for q in study.queries] == [None, None, None]
    assert [q.best for q in study.queries] == [None, None, None]
    assert [q.num_for_half for q in study.queries] == [2, 10, 0]
    assert study.queries[2].share_of_top == 0
    assert json.loads(json.dumps(study.to_dict(), allow_nan=False))["queries"][2]["best_fit"] is None


def test_a_run_is_read_and_drawn(run_folder):
    """Oracle: the scores of the run, sorted; the survival function at its ends."""
    from matplotlib.figure import Figure

    scores = open_scores(run_folder)
    study = study_tail(scores, queries=["q0"])
    values = scores.ranked_by("q0")
    np.testing.assert_allclose(study.queries[0].proponents, np.sort(values[values > 0])[::-1])
    axes = study.plot(Figure().subplots())
    np.testing.assert_allclose(axes.lines[0].get_xdata(), study.queries[0].proponents)
    np.testing.assert_allclose(axes.lines[0].get_ydata()[[0, -1]], [1 / len(values), (values > 0).mean()])
    fit = study.queries[0].fit
    x, y = axes.lines[1].get_data()
    assert np.diff(np.log(y))[0] / np.diff(np.log(x))[0] == pytest.approx(-fit.exponent)


def test_bad_input_is_named():
    """Oracle: the error taxonomy."""
    scores = planted([np.arange(50.0)])
    for call, message in [
        (lambda: fit_tail(np.arange(20), 9), "num_tail"),
        (lambda: fit_tail(np.arange(20), 21), "num_tail"),
        (lambda: fit_tail(np.arange(20), 12, num_bootstrap=0), "num_bootstrap"),
        (lambda: study_tail(scores, top_percent=0), "top_percent"),
        (lambda: study_tail(scores, num_tail=3), "num_tail"),
        (lambda: study_tail(scores, queries=["who"]), "'who'"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            call()
    with pytest.raises(NumericalError, match="NaN"):
        fit_tail([1.0] * 20 + [np.nan])
    with pytest.raises(NumericalError, match="equal"):
        fit_tail(np.ones(20), 10)
