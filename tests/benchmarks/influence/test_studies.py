"""What the studies on real models count."""

import numpy as np
import pytest

from benchmarks.influence import _studies as studies
from benchmarks.influence._sentences import FACTS
from hesse.influence import Query

LANGUAGES = ["English", "French", "German"]


@pytest.fixture
def asked():
    return [Query(f"{c}-{g}", "p", "c", {"concept": c, "language": g}) for c in ("sky", "snow") for g in LANGUAGES]


def names():
    return [f"{c}-{g}-{i}" for c in ("sky", "snow") for g in LANGUAGES for i in (0, 1)]


def test_same_fact_is_an_area_under_a_curve(asked):
    """Oracle: scores set by hand: a fact's rows win in every language but French, where all are equal."""
    values = np.array([[q.metadata["concept"] == row.split("-")[0] for row in names()] for q in asked], dtype=float)
    values[:, ["French" in row for row in names()]] = 0.25
    assert studies.same_fact(values, names(), asked, LANGUAGES) == [[1.0, 0.5, 1.0]] * 3
    assert studies.same_fact(-values, names(), asked, LANGUAGES) == [[0.0, 0.5, 0.0]] * 3


def test_shares_of_languages_are_counted_among_ten(asked):
    """Oracle: counting: eight rows of two languages score highest, and two of the third fill up the ten."""
    values = np.array([["German" not in row for row in names()] for _q in asked], dtype=float)
    assert studies.shares_of_languages(values, names(), asked, LANGUAGES) == [[0.4, 0.4, 0.2]] * 3


def test_every_fact_is_said_in_every_language_and_answered_in_its_rows():
    """Oracle: the completion's first letters stand in both statements, so that a row states what is asked."""
    for concept, languages in FACTS.items():
        assert list(languages) == LANGUAGES, concept
        for first, second, _prompt, completion in languages.values():
            assert first != second
            stem = completion.strip().lower()[:3]
            assert all(stem in text.lower() or stem.replace("u", "ü") in text.lower() for text in (first, second)), (
                concept, first, second, completion,
            )  # fmt: skip
