"""Across languages: averages of planted scores."""

import json

import numpy as np
import pytest

from hesse.errors import ArgumentError
from hesse.influence.studies import study_languages
from tests.influence.studies._planted import planted

QUERIES = ["sun-en", "sun-fr", "sea-en", "sea-fr"]
CONCEPTS = {name: name.split("-")[0] for name in QUERIES}
LANGUAGES = {name: name.split("-")[1] for name in QUERIES}


def test_matrix_is_that_of_a_loop():
    """Oracle: means over the sorted rows, one pair of languages at a time."""
    values = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)
    study = study_languages(planted(values, queries=QUERIES), CONCEPTS, LANGUAGES, k=5)
    assert (study.concepts, study.languages) == (["sun", "sea"], ["en", "fr"])
    wanted = np.zeros((2, 2, 2))
    for c in range(2):
        for a in range(2):
            top = np.argsort(-values[2 * c + a])[:5]
            for b in range(2):
                wanted[c, a, b] = values[2 * c + b, top].mean()
    np.testing.assert_allclose(study.influence, wanted, rtol=1e-6)
    total = wanted.sum(0)
    np.testing.assert_allclose(study.transfer(), total / np.diagonal(total)[:, None], rtol=1e-6)
    assert study.mean_transfer == pytest.approx((study.transfer()[0, 1] + study.transfer()[1, 0]) / 2)
    assert study.to_dict()["transfer"][0][0] == 1


def test_alike_and_unlike_languages():
    """Oracle: 1 where all versions have the same scores, 0 where they share no row."""
    row = np.arange(20.0) - 10
    same = study_languages(planted([row, row, row, row], queries=QUERIES), CONCEPTS, LANGUAGES, k=3)
    np.testing.assert_allclose(same.transfer(), 1)
    first, second = np.zeros(20), np.zeros(20)
    first[:3], second[3:6] = 1, 1
    apart = study_languages(planted([first, second] * 2, queries=QUERIES), CONCEPTS, LANGUAGES, k=3)
    np.testing.assert_allclose(apart.transfer(), np.eye(2))


def test_a_version_without_proponents_is_unknown():
    """Oracle: None in JSON, and no mean."""
    values = -np.ones((4, 9))
    study = study_languages(planted(values, queries=QUERIES), CONCEPTS, LANGUAGES)
    assert study.mean_transfer is None
    assert json.loads(json.dumps(study.to_dict(), allow_nan=False))["transfer"] == [[None, None]] * 2
    from matplotlib.figure import Figure

    axes = study.plot(Figure().subplots())
    assert [text.get_text() for text in axes.texts] == [""] * 4


def test_bad_input_is_named():
    """Oracle: the error taxonomy."""
    scores = planted(np.ones((4, 9)), queries=QUERIES)
    for languages, message in [
        ({name: "en" for name in QUERIES if name.endswith("en")}, "at least two"),
        (dict.fromkeys(QUERIES, "en"), "twice"),
        ({**LANGUAGES, "sea-fr": "de"}, "not asked"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            study_languages(scores, CONCEPTS, languages)
