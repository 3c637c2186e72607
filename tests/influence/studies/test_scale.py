"""Across checkpoints: shared rows, and how lexical they are."""

import json

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.influence import bm25_scores, open_run
from hesse.influence.studies import study_scale
from hesse.influence.studies.texts import asked_of, row_texts, texts_of, word_numbers
from tests.influence.studies._planted import replanted


@pytest.fixture(scope="module")
def run(run_folder):
    return open_run(run_folder)


@pytest.fixture(scope="module")
def lexical(run):
    """What BM25 gives the rows, over words: the words are counted here once more."""
    questions = [asked.prompt + asked.completion for asked in asked_of(run, "test")]
    asked, rows = word_numbers(questions, row_texts(texts_of(run, "test"), run.scores.train_ids, "test"))
    return bm25_scores(asked, rows)


def test_a_run_shares_all_rows_with_itself(run):
    """Oracle: the identity."""
    study = study_scale({"one": run, "two": run}, k=6)
    np.testing.assert_array_equal(study.jaccard, 1)
    np.testing.assert_array_equal(study.lexical[:, 0], study.lexical[:, 1])


def test_rows_that_bm25_would_choose_are_wholly_lexical(run, lexical):
    """Oracle: 1 for BM25's own choice; its mean over some rows by hand for another."""
    other = np.zeros_like(lexical)
    other[:, 10:14] = 1
    study = study_scale({"bm25": replanted(run, lexical), "other": replanted(run, other)}, k=4)
    known = lexical.max(1) > 0
    assert known[0]
    np.testing.assert_allclose(study.lexical[known, 0], 1, rtol=1e-6)
    best = np.sort(lexical[0])[::-1][:4].mean()
    wanted = (lexical[0, 10:14].mean() - lexical[0].mean()) / (best - lexical[0].mean())
    assert study.lexical[0, 1] == pytest.approx(wanted, rel=1e-5)
    top = set(np.argsort(-lexical[0], kind="stable")[:4].tolist())
    shared = len(top & {10, 11, 12, 13})
    assert study.jaccard[0, 0, 1] == pytest.approx(shared / (8 - shared))
    json.dumps(study.to_dict(), allow_nan=False)
    from matplotlib.figure import Figure

    axes = study.plot(Figure().subplots())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["bm25", "other"]


def test_runs_that_cannot_be_compared_are_named(run):
    """Oracle: the error taxonomy."""
    from tests.influence.studies._planted import planted

    with pytest.raises(ArgumentError, match="at least two"):
        study_scale({"one": run})
    stranger = replanted(run, run.scores.values)
    stranger.__dict__["scores"] = planted(np.ones((1, 3)))
    with pytest.raises(ArgumentError, match="'two' was asked other queries"):
        study_scale({"one": run, "two": stranger})
    stranger.__dict__["scores"] = planted(np.ones((2, 3)), queries=run.scores.query_ids)
    with pytest.raises(ArgumentError, match="'two' scored other rows"):
        study_scale({"one": run, "two": stranger})
