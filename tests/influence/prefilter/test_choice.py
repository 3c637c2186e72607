"""What is chosen, what the scores of it are, and whether the estimate of the rest is honest."""

import numpy as np
import pytest

from hesse.errors import ArgumentError, ArgumentTypeError
from hesse.influence import Influence, Sequence, as_examples
from hesse.influence.prefilter import Prefilter, build_index, choose, chosen_examples, estimate_missed, rank
from hesse.influence.prefilter.missed import missed_of
from hesse.influence.streams import StreamExamples
from hesse.io import load_tensors, verify_run
from tests.influence import _tiny

QUIET = {"progress": False, "rank": None, "batch_size": 1}
FILTER = Prefilter(top=4, random=6, seed=3)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """An Influence, its training rows and queries, and the folder of its run."""
    influence = Influence(_tiny.gpt2(), fisher="empirical")
    train = _tiny.tokens(60, seed=2, low=2, high=5)
    queries = [row | {"id": f"q{i}"} for i, row in enumerate(_tiny.tokens(2, seed=9, low=2, high=3))]
    folder = tmp_path_factory.mktemp("filtered") / "run"
    influence.fit(train, folder, progress=False)
    return influence, train, queries, folder


@pytest.mark.parametrize("method", ["bm25", "tfidf_paper"])
def test_the_union_of_the_leading_ones_and_a_slice_of_the_rest(tmp_path, method):
    """Oracle: set algebra on the rankings."""
    examples, queries = as_examples(_tiny.tokens(80)), as_examples(_tiny.tokens(3, seed=5))
    built = build_index(examples, tmp_path / "index")
    choice = choose(built, queries, examples, Prefilter(method, top=5, random=10))
    ranked = rank(built, [s.input_ids for s in queries.sequences], 5, method=method)
    kept = {int(n) for numbers, _values in ranked for n in numbers}
    assert set(choice.numbers[~choice.drawn].tolist()) == kept
    assert len(set(choice.numbers[choice.drawn].tolist()) - kept) == 10
    assert (np.diff(choice.numbers) > 0).all()
    assert choice.num_rows == 80
    everything = choose(built, queries, examples, Prefilter(method, top=5, random=10_000))
    assert everything.numbers.tolist() == list(range(80))


def test_the_slice_is_even(tmp_path):
    """Oracle: over 400 seeds each row outside is drawn as often as any other, by its binomial standard error."""
    examples = as_examples([[1, 2], [3, 4], [1, 5], [3, 3], [1, 1], [4, 3], [4, 4]])
    built = build_index(examples, tmp_path / "index")
    asked = as_examples([[1, 9]])
    times = np.zeros(7)
    for seed in range(400):
        choice = choose(built, asked, examples, Prefilter(top=9, random=2, seed=seed))
        times[choice.numbers[choice.drawn]] += 1
    assert (times[[0, 2, 4]] == 0).all()
    assert (np.abs(times[[1, 3, 5, 6]] - 200) < 4 * (400 * 0.25) ** 0.5).all()


def test_of_a_row_all_sequences_are_taken_or_none(tmp_path):
    """Oracle: the rows by hand."""

    def piece(name, row, tokens):
        ids = np.array(tokens)
        return Sequence(name, row, ids, np.where(np.arange(len(ids)) > 0, ids, -100))

    examples = as_examples(
        [piece("a#0", "a", [1, 2]), piece("a#1", "a", [3, 4]), piece("b", "b", [5, 6]), piece("c#0", "c", [7, 8]),
         piece("c#1", "c", [9, 9])]
    )  # fmt: skip
    built = build_index(examples, tmp_path / "index")
    choice = choose(built, as_examples([[4, 4]]), examples, Prefilter(random=0))
    assert choice.numbers.tolist() == [0, 1]
    assert choice.drawn.tolist() == [False]
    assert choice.num_rows == 3
    assert chosen_examples(examples, choice.numbers).rows == ["a", "a"]
    with pytest.raises(ArgumentError, match="no sequence shares"):
        choose(built, as_examples([[10, 10]]), examples, Prefilter(random=0))


def test_scores_of_what_is_kept_are_those_of_the_whole_run_bit_for_bit(fitted):
    """Oracle: the run without a filter, sequences alone in both; N is that of the training set."""
    influence, train, queries, folder = fitted
    every = influence.score(queries, train, folder, **QUIET)
    some = influence.score(queries, train, folder, prefilter=FILTER, **QUIET)
    assert 8 <= len(some.train_ids) < len(every.train_ids)
    places = [every.row_places[name] for name in some.train_ids]
    np.testing.assert_array_equal(some.values, every.values[:, places])
    assert some.sequence_ids == some.train_ids
    assert verify_run(folder) == []


def test_batches_change_rounding_only(fitted):
    """Oracle: the same scores one by one, in float64."""
    influence, train, queries, folder = fitted
    one = influence.score(queries, train, folder, prefilter=FILTER, **QUIET)
    many = influence.score(queries, train, folder, prefilter=FILTER, progress=False, rank=None)
    np.testing.assert_allclose(many.values, one.values, rtol=1e-9, atol=1e-14)


def test_streams_and_top_k_are_filtered_alike(fitted):
    """Oracle: the best of the filtered matrix of the same rows in memory."""
    influence, train, queries, folder = fitted
    matrix = influence.score(queries, train, folder, prefilter=FILTER, **QUIET)
    stream = StreamExamples(lambda: iter(train))
    best = influence.score(queries, stream, folder, prefilter=FILTER, top_k=3, **QUIET)
    for query in matrix.query_ids:
        assert best.topk(query, 3) == matrix.topk(query, 3)


def test_the_same_question_is_taken_up_again(fitted, monkeypatch):
    """Oracle: no second choice is made for an answered question."""
    influence, train, queries, folder = fitted
    first = influence.score(queries, train, folder, prefilter=FILTER, **QUIET)
    monkeypatch.setattr("hesse.influence.prefilter.stored.choose", None)
    again = influence.score(queries, train, folder, prefilter=FILTER, **QUIET)
    assert again.folder == first.folder


def test_the_estimate_of_a_run(fitted):
    """Oracle: with a slice of all that is outside, the truth from the run without a filter, and no error."""
    influence, train, queries, folder = fitted
    every = influence.score(queries, train, folder, **QUIET)
    some = influence.score(queries, train, folder, prefilter=Prefilter(top=4, random=100), **QUIET)
    found = estimate_missed(some, k=3)
    positive = np.maximum(every.values, 0).sum(1)
    inside = [name for name, drawn in zip(some.train_ids, _drawn(some), strict=True) if not drawn]
    kept = np.maximum(every.values[:, [every.row_places[name] for name in inside]], 0).sum(1)
    np.testing.assert_allclose(found.positive, positive - kept, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.positive_share, 1 - kept / positive, rtol=1e-9, atol=1e-12)
    assert (found.positive_error == 0).all()
    with pytest.raises(ArgumentError, match="without a prefilter"):
        estimate_missed(every)


def _drawn(scores):
    return load_tensors(scores.run.path / scores.folder / "prefilter.safetensors")["drawn"].tolist()


def test_the_estimate_is_unbiased_and_its_error_honest():
    """Oracle: the whole population; over 400 draws the mean lies within 4 of its own standard errors, and the stated
    error is the spread of the estimates within a tenth."""
    rng = np.random.default_rng(0)
    values = rng.standard_t(4, (1, 1000))
    inside = np.arange(1000) < 200
    positive = np.maximum(values[:, ~inside], 0).sum()
    above = (values[:, ~inside] > np.sort(values[0, inside])[-20]).sum()
    totals, counts, errors, bounds = [], [], [], []
    for seed in range(400):
        places = np.random.default_rng(seed).choice(800, 150, replace=False) + 200
        chosen = np.concatenate([np.arange(200), places])
        found = missed_of(values[:, chosen], np.arange(350) >= 200, 1000, k=20)
        totals.append(found.positive[0])
        errors.append(found.positive_error[0])
        counts.append(found.above[0])
        bounds.append(found.above_bound[0] >= above)
    for seen, truth in ((totals, positive), (counts, above)):
        assert abs(np.mean(seen) - truth) < 4 * np.std(seen) / 20
    assert np.mean(errors) == pytest.approx(np.std(totals), rel=0.1)
    assert np.mean(bounds) >= 0.95 - 2 * (0.05 * 0.95 / 400) ** 0.5


def test_edges_of_the_estimate():
    """Oracle: by hand: nobody outside, nobody drawn, none strong among those drawn."""
    values = np.array([[3.0, 2.0, 1.0, 0.5]])
    whole = missed_of(values, np.zeros(4, dtype=bool), 4, k=2)
    assert (whole.positive, whole.above, whole.above_bound, whole.top_share) == (0, 0, 0, 0)
    nobody = missed_of(values, np.zeros(4, dtype=bool), 10, k=2)
    assert np.isnan(nobody.positive).all()
    assert nobody.above_bound == 6
    weak = missed_of(values, np.array([False, False, True, True]), 12, k=2)
    assert weak.above == 0
    assert weak.positive == pytest.approx(10 * 0.75)
    assert weak.above_bound == pytest.approx(10 * (1 - 0.05**0.5))
    with pytest.raises(ArgumentError, match="k:"):
        missed_of(values, np.zeros(4, dtype=bool), 4, k=0)


def test_bad_filters_are_refused(fitted):
    """Oracle: the argument in the message."""
    influence, train, queries, folder = fitted
    for options in ({"method": "x"}, {"top": 0}, {"random": -1}, {"seed": -1}):
        with pytest.raises(ArgumentError, match="prefilter"):
            Prefilter(**options)
    with pytest.raises(ArgumentTypeError, match="prefilter"):
        influence.score(queries, train, folder, prefilter="bm25", **QUIET)
