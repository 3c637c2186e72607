"""What a lexical filter would have kept."""

import json

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.influence import bm25_scores, open_run, tfidf_paper
from hesse.influence.studies import study_coverage
from hesse.influence.studies.coverage import kept_of_top
from hesse.influence.studies.texts import asked_of, row_tokens, texts_of
from tests.influence.studies._planted import replanted


def test_ties_at_the_border_count_in_part():
    """Oracle: the mean over random orders of the tied rows, within four standard errors of 4000 of them."""
    rng = np.random.default_rng(0)
    values, top, sizes = rng.integers(0, 3, 12).astype(float), [0, 3, 7, 8, 11], np.array([1, 4, 6, 12])
    drawn = []
    for _ in range(4000):
        order = np.lexsort((rng.random(12), -values))
        drawn.append([np.isin(top, order[:m]).mean() for m in sizes])
    spread = np.std(drawn, axis=0) / np.sqrt(4000)
    assert (np.abs(kept_of_top(values, top, sizes) - np.mean(drawn, axis=0)) <= 4 * spread + 1e-9).all()


def test_a_run_against_a_loop(run_folder):
    """Oracle: both filters called by hand; the k strongest rows of the scores."""
    run = open_run(run_folder)
    study = study_coverage(run, k=9, sizes=[1, 5, 20, 56])
    asked = [question.input_ids for question in asked_of(run, "test")]
    rows = row_tokens(texts_of(run, "test"), run.scores.train_ids)
    for name, method in (("bm25", bm25_scores), ("tfidf", tfidf_paper)):
        values = method(asked, rows)
        for q in range(len(asked)):
            top = np.argsort(-run.scores.values[q], kind="stable")[:9].tolist()
            np.testing.assert_allclose(study.kept[name][q], kept_of_top(values[q], top, study.sizes))
    assert study.num_rows == len(run.scores.train_ids)
    np.testing.assert_allclose(study.mean()["random"], study.sizes / study.num_rows)


def test_what_the_filter_chose_it_keeps(run_folder):
    """Oracle: scores that are BM25's own are kept whole from k rows on; everything is kept by all rows."""
    run = open_run(run_folder)
    asked = [question.input_ids for question in asked_of(run, "test")]
    values = bm25_scores(asked, row_tokens(texts_of(run, "test"), run.scores.train_ids))
    ranks = (values + 1e-3 * np.linspace(1, 0, values.shape[1])).astype(np.float32)
    study = study_coverage(replanted(run, ranks), k=3)
    assert study.sizes[-1] == study.num_rows
    np.testing.assert_allclose(study.kept["bm25"][:, -1], 1)
    for shares in study.kept.values():
        assert (np.diff(shares, axis=1) >= -1e-12).all()
    from matplotlib.figure import Figure

    axes = study.plot(Figure().subplots())
    np.testing.assert_allclose(axes.lines[0].get_ydata(), study.mean()["bm25"])


def test_no_proponents_and_bad_sizes(run_folder):
    """Oracle: None in JSON; the error taxonomy."""
    run = open_run(run_folder)
    study = study_coverage(replanted(run, -np.ones_like(run.scores.values)), sizes=[2])
    found = json.loads(json.dumps(study.to_dict(), allow_nan=False))
    assert found["mean"]["bm25"] == [None]
    for sizes in ([0, 5], [5, 1000], []):
        with pytest.raises(ArgumentError, match="sizes"):
            study_coverage(run, sizes=sizes)
